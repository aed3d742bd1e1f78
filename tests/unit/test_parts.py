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
