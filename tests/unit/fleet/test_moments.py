"""Moments at which a place, a count or an answer could be lost or taken twice."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from router.fleet.budget import budget
from router.fleet.exchange import Heard, Wanted
from router.fleet.picture import MOST, add, decode, encode, field, vector
from tests.helpers.fleets import Process, World


def entered(world: World, deployment: str = "d0") -> int:
    """Places on the board."""
    return len(world.board.places(deployment, now_s=world.board_clock()))


async def admitted(process: Process, count: int) -> int:
    """How many of ``count`` sessions at once are let in."""
    return sum(lease is not None for lease in await asyncio.gather(*(process.admit() for _ in range(count))))


async def test_a_server_that_forgot_between_two_calls_is_told_again() -> None:
    """Restarted empty, or flushed, between two beats: no call fails, and yet everything has to be entered again."""
    world = World(2, max_sessions=10)
    first, second = world.processes
    await world.beats(3)
    assert await admitted(first, 10) == 10
    await world.beats(1)
    world.board.clear()
    await world.beats(1)
    assert await admitted(second, 10) == 0, "ten run already"


async def test_others_do_not_look_gone_when_a_server_forgot_between_two_calls() -> None:
    """The answer of a server that has just been emptied is not "nobody is there"."""
    world = World(2)
    first, second = world.processes
    for _ in range(8):
        second.lease()
    await world.beats(3)
    assert first.deployment().elsewhere.sessions == 8
    world.board.clear()
    await first.fleet.beat()
    assert first.deployment().elsewhere.sessions == 8


async def test_a_client_that_leaves_in_the_moment_of_the_grant() -> None:
    """The answer has come and the session has not run since: its place goes back all the same."""
    world = World(1, max_sessions=1)
    process = world.processes[0]
    await world.beats()
    asking = asyncio.create_task(process.admit())
    real = process.exchange.acquire

    async def acquire(wanted: Sequence[Wanted]) -> Sequence[bool]:
        granted = await real(wanted)
        # Behind whoever tells the answer, before the one that waits for it.
        asyncio.get_running_loop().call_soon(asking.cancel)
        return granted

    setattr(process.exchange, "acquire", acquire)  # noqa: B010 (a method is replaced on purpose)
    with pytest.raises(asyncio.CancelledError):
        await asking
    await process.settled()
    assert entered(world) == 0


async def test_places_go_back_when_a_process_ends() -> None:
    """Sessions end, and the process right behind them: there is room at once and not 15 s later."""
    world = World(2, max_sessions=3)
    first, second = world.processes
    await world.beats()
    assert await admitted(first, 3) == 3
    for _ in range(3):
        first.end()
    # As ``Engine.close`` does it after a run.
    first.fleet.joined.set()
    await first.tasks.close(timeout_s=1)
    await first.fleet.leave()
    await first.fleet.close()
    assert entered(world) == 0
    assert await admitted(second, 3) == 3


async def test_a_way_of_30_ms_is_within_a_budget_of_50() -> None:
    """Who asks while others are on their way does not pay for their way as well."""
    world = World(1, max_sessions=100)
    process = world.processes[0]
    await world.beats()
    real = process.exchange.acquire

    async def acquire(wanted: Sequence[Wanted]) -> Sequence[bool]:
        await asyncio.sleep(0.03)
        return await real(wanted)

    setattr(process.exchange, "acquire", acquire)  # noqa: B010 (a method is replaced on purpose)
    asking = []
    for _ in range(20):
        asking.append(asyncio.create_task(process.admit()))
        await asyncio.sleep(0.005)
    await asyncio.gather(*asking)
    assert process.fleet.gate.reachable


async def test_a_loop_that_was_busy_for_about_the_limit_is_no_silence() -> None:
    """The answer has been there for most of the time; that the timer is hardly late does not make it a silence."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        with theirs:
            answering = threading.Timer(0.005, theirs.sendall, (b"answer\n",))
            answering.start()
            async with budget(0.05):
                waiting = asyncio.ensure_future(reader.readline())
                await asyncio.sleep(0)
                time.sleep(0.054)  # noqa: ASYNC251 (the loop is to be held up)
                assert await waiting == b"answer\n"
            answering.join()
    finally:
        writer.close()


async def test_a_limit_a_minute_is_not_used_up_by_each_process() -> None:
    """Three processes that see the same empty minute do not start the whole of it each before the next beat."""
    world = World(3, rpm=60)
    await world.beats(3)
    started = 0
    for _ in range(60):
        for process in world.processes:
            if process.deployment().eligible():
                process.lease()
                started += 1
    assert started <= 66, "a tenth more at most"


async def test_a_failure_while_a_beat_is_on_its_way_is_not_forgotten() -> None:
    """What was answered before the failure is no sign of life after it: all places are entered again."""
    world = World(2, max_sessions=10)
    first = world.processes[0]
    await world.beats(6)
    assert await admitted(first, 4) == 4
    await world.beats(1)
    real = first.exchange.beat

    async def beat(share: Any, renew: Any) -> Heard:
        heard = await real(share, renew)
        # Before the answer arrives, the server ends and another request finds that out; then it is back, empty.
        world.board.clear()
        first.exchange.condition = "down"
        assert await first.admit() is not None, "within its part of the limit"
        first.exchange.condition = "up"
        return heard

    setattr(first.exchange, "beat", beat)  # noqa: B010 (a method is replaced on purpose)
    await first.fleet.beat()
    setattr(first.exchange, "beat", real)  # noqa: B010 (it is put back)
    world.advance(1.0)
    await first.fleet.beat()
    await first.settled()
    assert entered(world) == 5


async def test_a_clock_that_steps_back_a_little_frees_no_place() -> None:
    """The server's clock is set half a second back, or its successor's is: what was just entered is held all the same."""
    world = World(2, max_sessions=10)
    first, second = world.processes
    await world.beats(3)
    assert await admitted(first, 10) == 10
    world.board_clock.advance(-0.5)
    assert await admitted(second, 10) == 0


def test_a_sum_is_heard_even_if_its_parts_are_the_most_there_can_be() -> None:
    """What two processes may each say, they may say together: the sessions beside an absurd number are not lost."""
    parts = [{"d:x": vector(sessions=5, minute_tokens=MOST)}, {"d:x": vector(sessions=7, minute_tokens=MOST)}]
    assert field(decode(encode(add(parts)))["d:x"], "sessions") == 12
