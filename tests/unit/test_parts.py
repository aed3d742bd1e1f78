"""What tests may rely on of the machine: skipped where a part is missing, failed where it is demanded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import parts


def _missing() -> str:
    raise parts.MissingPart("found no frobnicator, expected one")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with one part there and one missing, and nothing demanded."""
    monkeypatch.setattr(parts, "PARTS", {"there": lambda: "/bin/there", "gone": _missing})
    monkeypatch.delenv(parts.VARIABLE, raising=False)
    return monkeypatch


def test_a_part_that_is_there_gives_its_path(machine: pytest.MonkeyPatch) -> None:
    """The probe's answer is what the test gets, demanded or not."""
    assert parts.require("there") == "/bin/there"
    machine.setenv(parts.VARIABLE, "there")
    assert parts.require("there") == "/bin/there"


def test_a_missing_part_skips_with_its_reason(machine: pytest.MonkeyPatch) -> None:
    """Nobody demanded it, so the test is skipped and says what was looked for."""
    with pytest.raises(pytest.skip.Exception, match="gone: found no frobnicator"):
        parts.require("gone")


@pytest.mark.parametrize("value", ["all", "gone", "there,gone", "there gone"])
def test_a_demanded_part_fails(machine: pytest.MonkeyPatch, value: str) -> None:
    """A demand turns the skip into a failure, by name and by ``all``."""
    machine.setenv(parts.VARIABLE, value)
    with pytest.raises(pytest.fail.Exception, match="demands gone: found no frobnicator"):
        parts.require("gone")


def test_a_demand_of_something_else_does_not_fail(machine: pytest.MonkeyPatch) -> None:
    """Demanding one part leaves another one optional."""
    machine.setenv(parts.VARIABLE, "there")
    with pytest.raises(pytest.skip.Exception):
        parts.require("gone")


def test_a_misspelt_demand_is_an_error(machine: pytest.MonkeyPatch) -> None:
    """A name that no part has would silently demand nothing."""
    machine.setenv(parts.VARIABLE, "thier")
    with pytest.raises(ValueError, match="found thier, expected all or some of gone, there"):
        parts.require("there")


def test_all_demands_what_can_be_had(machine: pytest.MonkeyPatch) -> None:
    """A wheel that is not made for this machine is skipped where all is demanded, and fails where its own name is."""
    machine.setattr(parts, "MADE_FOR_THIS", {"gone": False})
    assert parts.demanded("all") == {"there"}
    assert parts.demanded("all,gone") == {"there", "gone"}
    machine.setenv(parts.VARIABLE, "all")
    with pytest.raises(pytest.skip.Exception):
        parts.require("gone")


def test_a_misspelling_beside_all_is_an_error(machine: pytest.MonkeyPatch) -> None:
    """``all`` does not hide it."""
    with pytest.raises(ValueError, match="found thier"):
        parts.demanded("all thier")


def test_what_is_not_made_for_every_machine_is_a_part() -> None:
    """A misspelt exception would excuse nothing."""
    assert parts.MADE_FOR_THIS.keys() <= parts.PARTS.keys()


def _executable(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_program_that_does_not_start_is_missing(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    """A shim on the PATH that only fails is passed over for the next name, and is no part by itself."""
    _executable(tmp_path / "shim", "exit 127")
    _executable(tmp_path / "real", "echo 1.0")
    machine.setenv("PATH", str(tmp_path))
    assert parts._program("nowhere", "shim", "real", package="real") == str(tmp_path / "real")
    with pytest.raises(parts.MissingPart, match="found no working nowhere or shim"):
        parts._program("nowhere", "shim", package="real")


def _no_servers(path: Path, machine: pytest.MonkeyPatch) -> None:
    machine.setenv("PATH", f"{path}:/nowhere")


def test_a_redis_that_is_too_old_is_none(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    """Version 6 on the PATH is not what a test of 7.0 asks for."""
    _executable(tmp_path / "redis-server", "echo 'Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64'")
    _no_servers(tmp_path, machine)
    with pytest.raises(parts.MissingPart, match="found no redis-server of 7"):
        parts._redis_7_0()


def test_the_tool_of_redis_is_the_server(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    """Where only the package without the service is installed, its tool is found; the server itself comes first."""
    _executable(tmp_path / "redis-check-rdb", "echo 'redis-check-rdb 7.0.15'")
    _no_servers(tmp_path, machine)
    assert parts._redis_7_0() == str(tmp_path / "redis-check-rdb")
    _executable(tmp_path / "redis-server", "echo 'Redis server v=10.2.0 sha=00000000:0 malloc=libc bits=64'")
    assert parts._redis_7_0() == str(tmp_path / "redis-server")


def test_a_package_without_its_program_is_missing() -> None:
    """The wheel of another platform is empty inside."""
    with pytest.raises(parts.MissingPart, match="found no package frobnicator"):
        parts._wheel_program("frobnicator", "bin/frobnicate")
    with pytest.raises(parts.MissingPart, match="found no bin/frobnicate in the package pytest"):
        parts._wheel_program("pytest", "bin/frobnicate")
