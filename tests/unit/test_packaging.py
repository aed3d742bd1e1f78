"""What a fresh machine installs: complete, locked by hash, without an address, the same for users and for tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from router._version import __version__

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")
PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ]+)(?: ; (?P<marker>[^\\]+?))? \\$")


def _pins(lock: str) -> dict[str, tuple[str, int]]:
    """Return package → (version, number of hashes). Any line of another form is an error."""
    pins: dict[str, tuple[str, int]] = {}
    name = ""
    for number, line in enumerate((ROOT / lock).read_text(encoding="utf-8").splitlines(), 1):
        if match := PIN.match(line):
            name = match["name"]
            assert name not in pins, f"{lock}:{number}: {name} is there twice"
            pins[name] = (match["version"], 0)
        elif re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            version, hashes = pins[name]
            pins[name] = (version, hashes + 1)
        else:
            assert re.fullmatch(r" *#.*", line), f"{lock}:{number}: found {line!r}, expected name==version, a hash or a comment"
    return pins


def _canonical(requirement: str) -> str:
    """Return the name in a requirement such as ``PyYAML>=6 ; marker`` as the index spells it."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def _project(folder: str = ".") -> dict[str, Any]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_hashes_and_no_address(lock: str) -> None:
    """Every package is pinned with at least one hash, and nothing says where it comes from."""
    assert "://" not in (ROOT / lock).read_text(encoding="utf-8")
    pins = _pins(lock)
    assert pins
    assert [name for name, (_, hashes) in pins.items() if hashes == 0] == []


def test_the_locks_hold_every_declared_dependency() -> None:
    """A dependency that was declared after the last ``make lock`` is missing here."""
    document = _project()
    runtime = {_canonical(item) for item in document["project"]["dependencies"]}
    backend = {_canonical(item) for folder in (".", "accel") for item in _project(folder)["build-system"]["requires"]}
    development = {_canonical(item) for item in document["dependency-groups"]["dev"]}
    assert (runtime | backend) - _pins("requirements.lock").keys() == set()
    assert (runtime | backend | development) - _pins("requirements-dev.lock").keys() == set()


def test_tests_run_with_the_versions_that_users_get() -> None:
    """Whatever the runtime lock pins, the development lock pins alike."""
    runtime, development = map(_pins, LOCKS)
    assert {name: development.get(name) for name in runtime} == runtime


def test_the_node_lock_has_hashes_and_no_address() -> None:
    """The client's package is locked by integrity hash; npm finds it wherever the machine's settings say."""
    text = (ROOT / "tests/node/package-lock.json").read_text(encoding="utf-8")
    assert "://" not in text
    packages = {name: entry for name, entry in json.loads(text)["packages"].items() if name}
    assert packages
    assert [name for name, entry in packages.items() if not entry.get("integrity") or "resolved" in entry] == []


def test_the_version_has_one_source() -> None:
    """The build reads the module, so the file must hold nothing but a literal that it understands."""
    document = _project()
    assert "version" in document["project"]["dynamic"]
    assert document["tool"]["hatch"]["version"]["path"] == "router/_version.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", __version__)


def test_the_accelerator_is_the_one_that_the_extra_asks_for() -> None:
    """Its name and version fit, so that what is installed from the folder satisfies the router that stands beside it."""
    (extra,) = map(Requirement, _project()["project"]["optional-dependencies"]["accel"])
    accelerator = _project("accel")["project"]
    assert accelerator["name"] == extra.name
    assert accelerator["version"] in extra.specifier
    assert accelerator["requires-python"] == _project()["project"]["requires-python"]


def test_the_accelerator_comes_with_its_licence() -> None:
    """Its distribution is made of its folder alone, so the text is there once more."""
    assert (ROOT / "accel/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert _project("accel")["project"]["license"] == _project()["project"]["license"]


def test_the_router_is_distributed_without_the_accelerator() -> None:
    """Its wheel stays pure Python: nothing of it is compiled, on no machine."""
    targets = _project()["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"] == {"packages": ["router", "strategies"]}
    assert "accel" not in targets["sdist"]["only-include"]
    assert not [path for package in ("router", "strategies") for path in (ROOT / package).rglob("*.c")]


def test_entry_points_lead_somewhere() -> None:
    """The console script and the test plugin name objects that exist."""
    project = _project()["project"]
    module, _, attribute = project["scripts"]["realtime-router"].partition(":")
    assert callable(getattr(import_module(module), attribute))
    import_module(project["entry-points"]["pytest11"]["realtime_router_simulator"])


def _venv_script(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".ci/venv", "--python"],
        env={**os.environ, "PYTHON": "", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_make_takes_the_interpreter_that_it_is_told_to() -> None:
    """``PYTHON=`` wins over whatever is on the PATH."""
    done = _venv_script(PYTHON=sys.executable)
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable)


def test_make_passes_over_an_interpreter_that_does_not_start(tmp_path: Path) -> None:
    """A version manager's shim is on the PATH and fails when run: the next name is tried."""
    for name, body in {"python3.13": "exit 127", "python3": f'exec "{sys.executable}" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = _venv_script(PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert subprocess.run([done.stdout.strip(), "-c", ""], check=False).returncode == 0


@pytest.mark.parametrize("python", ["/nowhere/python3", "false"])
def test_make_says_what_it_expected_of_an_interpreter(python: str) -> None:
    """An unfit PYTHON is not replaced in silence: the message names it and what was expected."""
    done = _venv_script(PYTHON=python)
    assert done.returncode == 1
    assert f"PYTHON={python} does not start a Python 3.11 or newer" in done.stderr
    assert "Traceback" not in done.stderr


def _accel_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".ci/accel", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_machine_without_a_compiler_is_told_in_one_line(tmp_path: Path) -> None:
    """What was looked for, that it is not needed, and how to get it; nothing is built, and the exit code is this case's own."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    done = _accel_script("install", os.path.relpath(tmp_path, ROOT), CC="false")
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("The accelerator cannot be built: found no working C compiler (tried false)")
    assert "The router runs without it." in line and "apt-get install gcc libc6-dev" in line


def test_an_environment_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    """``make accel`` names both of make's environments, and one is enough."""
    done = _accel_script("install", os.path.relpath(tmp_path / "none", ROOT), CC="false")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_packages_of_a_compiler_are_named_for_the_system() -> None:
    """``make test-system`` installs what this prints."""
    done = _accel_script("missing", sys.executable, CC="false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["gcc", "libc6-dev"]
