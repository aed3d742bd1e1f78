"""Run the measurements named on the command line, or all of them, each in its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PREFIX = "bench_"


def main(wanted: Sequence[str]) -> int:
    """Run ``wanted`` in the order given; return a process's exit status."""
    known = sorted(path.stem.removeprefix(PREFIX) for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))
    if unknown := [name for name in wanted if name not in known]:
        print(f"found {', '.join(unknown)}, expected some of {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted or known:
        print(f"== {name}", flush=True)
        module = f"{__package__}.{PREFIX}{name}"
        if subprocess.run([sys.executable, "-c", f"from {module} import main; main()"], check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
