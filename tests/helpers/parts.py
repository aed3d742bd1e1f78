"""Parts of a machine that some tests need: programs that ``make test-system`` installs, and what is built with them.

A test that needs one calls ``require("chromium")``. Where the part is missing the test is skipped with the reason, unless the
environment variable ``REALTIME_ROUTER_REQUIRE`` demands it (a comma-separated list of parts, or ``all``): then it fails, so that
a machine on which everything must run cannot pass by running less.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

VARIABLE = "REALTIME_ROUTER_REQUIRE"
NODE_DIR = Path(__file__).parent.parent / "node"


class MissingPart(Exception):
    """A part is not on this machine; the text says what was looked for and how to get it."""


def _program(*names: str, package: str) -> str:
    """Return the path of the first of ``names`` that starts; a shim on the PATH need not."""
    for name in names:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            done = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return path
    raise MissingPart(f"found no working {' or '.join(names)}, expected one (package {package}; make test-system installs it)")


def _node() -> str:
    path = _program("node", "nodejs", package="nodejs")
    if not (NODE_DIR / "node_modules" / "ws" / "package.json").is_file():
        raise MissingPart("found no module ws under tests/node/node_modules, expected it there (make node-modules installs it)")
    return path


def _chromium() -> str:
    return _program("chromium", "chromium-browser", "google-chrome", package="chromium")


def _accelerator() -> str:
    spec = importlib.util.find_spec("realtime_router_accel")
    if spec is None or spec.origin is None:
        raise MissingPart("found no module realtime_router_accel, expected it on the path (make test builds it with a compiler)")
    return spec.origin


def _procfs() -> str:
    path = Path("/proc/self/smaps_rollup")
    if not path.exists():
        raise MissingPart(f"found no {path}, expected it (Linux tells of a process's threads and memory there)")
    return str(path)


def _uvloop() -> str:
    spec = importlib.util.find_spec("uvloop")
    if spec is None or spec.origin is None:
        raise MissingPart("found no module uvloop, expected it (it is not made for every platform)")
    return spec.origin


def _openssl() -> str:
    program = shutil.which("openssl")
    # LibreSSL's of the same name has other options.
    if program is None or b"OpenSSL" not in subprocess.run([program, "version"], capture_output=True).stdout:
        raise MissingPart("found no program openssl of OpenSSL, expected it on the path (make test-system installs openssl)")
    return program


# Part → probe, which returns the program's path or raises MissingPart.
PARTS: Mapping[str, Callable[[], str]] = {
    "accelerator": _accelerator,
    "chromium": _chromium,
    "node": _node,
    "openssl": _openssl,
    "procfs": _procfs,
    "uvloop": _uvloop,
}


def demanded(value: str) -> frozenset[str]:
    """Return the parts that a value of the environment variable demands.

    Raises:
        ValueError: it names a part that does not exist; a misspelt demand would demand nothing.
    """
    names = frozenset(value.replace(",", " ").split())
    if "all" in names:
        return frozenset(PARTS)
    if unknown := names - PARTS.keys():
        raise ValueError(f"{VARIABLE}: found {', '.join(sorted(unknown))}, expected all or some of {', '.join(sorted(PARTS))}")
    return names


def require(part: str) -> str:
    """Return the path of a part's program, or skip the running test; fail it where the part is demanded.

    Args:
        part: a name in ``PARTS``.
    """
    needed = part in demanded(os.environ.get(VARIABLE, ""))
    try:
        return PARTS[part]()
    except MissingPart as error:
        if needed:
            pytest.fail(f"{VARIABLE} demands {part}: {error}", pytrace=False)
        pytest.skip(f"{part}: {error}")
