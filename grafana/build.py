"""Write the dashboards' JSON: ``python -m grafana.build``, or with ``--check`` only say whether what is there is up to date.

Each module of ``grafana/source`` but ``kit`` describes one dashboard. Nothing but the standard library is needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from grafana.source import deployments, fleet, overview, sessions, usage

FOLDER: Final = Path(__file__).parent / "dashboards"


def built() -> Mapping[str, dict[str, Any]]:
    """Return every dashboard: file name → its JSON."""
    boards = (overview.board(), deployments.board(), sessions.board(), fleet.board(), usage.board())
    return {f"{board['uid'].removeprefix('realtime-router-')}.json": board for board in boards}


def written(board: Mapping[str, Any]) -> str:
    """Return the text of a dashboard's file."""
    return json.dumps(board, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the files, or check them; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the dashboards' JSON.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is not what would be written")
    check = parser.parse_args().check
    stale = 0
    for name, board in built().items():
        path, text = FOLDER / name, written(board)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"{path.name}: found another text than grafana/source describes; python -m grafana.build writes it anew")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name}: written")
    for path in sorted(FOLDER.glob("*.json")):
        if path.name not in built():
            stale += 1
            print(f"{path.name}: found no module of grafana/source that describes it")
    return int(check and stale > 0)


if __name__ == "__main__":
    raise SystemExit(main())
