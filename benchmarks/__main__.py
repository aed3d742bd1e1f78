"""Run the measurements named on the command line, or all of them, each in its own process.

    python -m benchmarks [NAME …]
    python -m benchmarks NAME OPTION …      options go to the measurement
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

PREFIX = "bench_"


def main(arguments: Sequence[str]) -> int:
    """Run what is named, in the order given; return a process's exit status."""
    wanted = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = list(arguments[len(wanted) :])
    known = sorted(path.stem.removeprefix(PREFIX) for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))
    if unknown := [name for name in wanted if name not in known]:
        print(f"found {', '.join(unknown)}, expected some of {', '.join(known)}", file=sys.stderr)
        return 2
    if options and len(wanted) != 1:
        print(f"found options after {len(wanted)} names, expected them after one of {', '.join(known)}", file=sys.stderr)
        return 2
    if len(wanted) == 1:
        print(f"== {wanted[0]}", flush=True)
        # In the place of this process, so that signals reach it, and its exit status whoever asked.
        os.execv(sys.executable, command(wanted[0], options))
    failed = []
    for name in wanted or known:
        print(f"== {name}", flush=True)
        if subprocess.run(command(name), check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0


def command(name: str, options: Sequence[str] = ()) -> list[str]:
    """The command line that runs one measurement."""
    program = f"import sys; from {__package__}.{PREFIX}{name} import main; sys.exit(main())"
    return [sys.executable, "-c", program, *options]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
