"""The parent of several workers: whom it replaces and when, what it makes of what they say, how it ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from router.workers.slots import FIRST_DELAY_S, MOST_DELAY_S, SETTLED_S, cause_of, delay_s
from tests.helpers.processes import RouterProcess, environment
from tests.unit.workers.acting import UNREAD_BYTES


@asynccontextmanager
async def acting(scenario: str, folder: Path, *, wait: bool = True) -> AsyncIterator[RouterProcess]:
    """A parent whose workers act a scenario."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.unit.workers.acting", scenario),
        env=environment(ACTING_FOLDER=str(folder)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    parent = RouterProcess(process)
    try:
        if wait:
            await parent.started()
        yield parent
    finally:
        await parent.kill()


def seconds(line: dict[str, Any]) -> float:
    """When a line was written."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def peak_bytes(pid: int) -> int:
    """Most memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


# --- pure ----------------------------------------------------------------------------------------


def test_the_delay_grows_with_each_early_death_and_has_a_bound() -> None:
    """Doubled from the first on; a worker that had settled is replaced at once, whatever came before it."""
    delays = [delay_s(1.0, deaths) for deaths in range(8)]
    assert delays[0] == FIRST_DELAY_S
    assert all(later == min(MOST_DELAY_S, 2 * earlier) for earlier, later in itertools.pairwise(delays))
    assert delay_s(0.0, 10**9) == MOST_DELAY_S
    assert delay_s(SETTLED_S, 5) == 0.0


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (0, {"code": 0}),
        (3, {"code": 3}),
        (-9, {"signal": "SIGKILL"}),
        (-15, {"signal": "SIGTERM"}),
        (-200, {"signal": "signal 200"}),
    ],
)
def test_how_a_worker_ended(status: int, cause: dict[str, Any]) -> None:
    """In an operator's words."""
    assert cause_of(status) == cause


# --- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "code", "cause"),
    [("raises", 1, {"code": 1}), ("returns", 3, {"code": 3}), ("killed", 1, {"signal": "SIGKILL"})],
)
async def test_a_worker_that_fails_at_the_start_ends_it(tmp_path: Path, scenario: str, code: int, cause: dict[str, Any]) -> None:
    """The next one would fail as well: no loop of crashes, but the end of all with the worker's exit code."""
    async with acting(scenario, tmp_path, wait=False) as parent:
        assert await parent.end() == code
        assert parent.out == b""
        (line,) = parent.lines("worker ended")
        assert line.items() >= {"worker": 1, "level": "error", **cause}.items()
        assert [line["worker"] for line in parent.lines("start failed")] == [1]
        assert not parent.lines("worker replaced")
        if scenario == "raises":
            (told,) = parent.lines("uncaught exception")
            assert told["exception"]["message"] == "cannot begin"


# --- deaths --------------------------------------------------------------------------------------


async def test_early_deaths_wait_longer_each_time(tmp_path: Path) -> None:
    """A worker that dies again and again is replaced later each time, and the other one serves meanwhile."""
    async with acting("dies_young", tmp_path) as parent:
        await parent.logged("worker replaced", 4)
        assert await parent.end(signal.SIGTERM) == 0
        deaths, lives = parent.lines("worker ended"), parent.lines("worker replaced")
        assert [(line["worker"], line["code"]) for line in deaths] == [(1, 9)] * 4
        waits_s = [seconds(life) - seconds(death) for death, life in zip(deaths, lives, strict=True)]
        assert all(wait_s >= FIRST_DELAY_S * 2**number * 0.9 for number, wait_s in enumerate(waits_s)), waits_s
        assert (tmp_path / "1").stat().st_size == 5


async def test_a_worker_that_says_nothing_is_killed_and_replaced(tmp_path: Path) -> None:
    """Its event loop hangs: connections that the kernel gives to it would wait for ever."""
    async with acting("silent", tmp_path) as parent:
        killed, ended = await parent.logged("worker killed"), await parent.logged("worker ended")
        assert (killed["worker"], "nothing heard" in killed["reason"]) == (1, True)
        assert (ended["worker"], ended["signal"], ended["sessions"]) == (1, "SIGKILL", 0)
        await parent.logged("worker replaced")
        assert await parent.end(signal.SIGTERM) == 0
        assert len(parent.lines("worker killed")) == 1


async def test_a_worker_that_cannot_be_understood_is_killed_and_replaced(tmp_path: Path) -> None:
    """After a broken frame nothing of it means anything any more."""
    async with acting("senseless", tmp_path) as parent:
        killed = await parent.logged("worker killed")
        assert (killed["worker"], "length" in killed["reason"]) == (1, True)
        await parent.logged("worker replaced")
        assert await parent.end(signal.SIGTERM) == 0


async def test_messages_that_mean_nothing_hurt_nobody(tmp_path: Path) -> None:
    """They are refused, the log says so once, and the worker lives."""
    async with acting("odd", tmp_path) as parent:
        assert (await parent.logged("worker not understood"))["worker"] == 1
        assert await parent.end(signal.SIGTERM) == 0
        assert len(parent.lines("worker not understood")) == 1
        assert not parent.lines("worker ended") and not parent.lines("uncaught exception")


async def test_a_worker_that_does_not_read_is_killed_within_bounds(tmp_path: Path) -> None:
    """The parent keeps so much for it and no more, and serves the others meanwhile."""
    async with acting("deaf", tmp_path) as parent:
        killed = await parent.logged("worker killed")
        assert (killed["worker"], "unread" in killed["reason"]) == (1, True)
        # A bare one has about 50 MiB.
        assert peak_bytes(parent.pid) < 3 * UNREAD_BYTES + 100 * 1024 * 1024
        await parent.logged("worker replaced")
        assert await parent.end(signal.SIGTERM) == 0


# --- the end -------------------------------------------------------------------------------------


async def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """The end has a bound, and its exit code is that of an orderly one."""
    async with acting("stubborn", tmp_path) as parent:
        assert await parent.end(signal.SIGTERM) == 0
        (killed,) = parent.lines("worker killed")
        assert (killed["worker"], "still there" in killed["reason"]) == (1, True)


async def test_the_parents_death_is_heard(tmp_path: Path) -> None:
    """No worker holds the parent's end of another's channel: all read the end, a replacement as well."""
    async with acting("dies_young", tmp_path) as parent:
        await parent.logged("worker replaced", 4)
        os.kill(parent.pid, signal.SIGKILL)
        # Ends when nobody holds its standard error any more.
        assert await parent.end() == -signal.SIGKILL
