"""The beat: what is published and heard, when it is believed, and what an operator reads of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from router.events import FleetBeat, Notice
from router.fleet.beat import BURST
from router.fleet.exchange import ExchangeError
from router.fleet.picture import field
from router.retry import Outcome, Verdict
from strategies.base import Freshness
from tests.helpers.fleets import Process, World
from tests.helpers.running import config_of, deployment_of, load_config, until

TIMEOUT = Verdict(outcome=Outcome.TIMEOUT, blames=True, transient=True)


def freshness(process: Process) -> Freshness:
    """How far a process knows the others."""
    return process.fleet.picture.freshness


def mode(process: Process) -> str:
    """The same, in the fleet's own word."""
    return process.fleet.mode


def notices(process: Process) -> list[str]:
    """What it logged."""
    return [event.event for event in process.events if isinstance(event, Notice)]


async def test_each_hears_the_sum_of_the_others() -> None:
    """Own sessions are not in it, and every kind of number arrives."""
    world = World(3, deployments=2, rpm=100)
    first, second, third = world.processes
    for _ in range(3):
        second.lease("d0")
    third.lease("d0")
    first.lease("d1")
    lease = third.lease("d1")
    third.deployment("d1").ready(lease, 0.4)
    third.deployment("d1").tokens.add(500)
    third.keys["team"] = 2
    await world.beats()
    seen = first.deployment("d0")
    assert (seen.sessions, seen.elsewhere.sessions, seen.elsewhere.members) == (0, 4, 2)
    assert seen.minute_starts == 4
    seen = first.deployment("d1")
    assert (seen.sessions, seen.elsewhere.sessions) == (1, 1)
    assert seen.minute_tokens == 500
    assert seen.elsewhere.ready_s == pytest.approx(0.4, rel=0.1)
    assert first.fleet.picture.sessions_of_key("team") == 2
    assert second.deployment("d0").elsewhere.sessions == 1


async def test_an_end_is_seen_with_the_next_beat() -> None:
    """State is published, so nothing needs to be taken back."""
    world = World()
    first, second = world.processes
    first.lease()
    await world.beats()
    assert second.deployment().elsewhere.sessions == 1
    first.end()
    await world.beats(1)
    await second.fleet.beat()
    assert second.deployment().elsewhere.sessions == 0


async def test_ejections_travel_as_hints() -> None:
    """Who has ejected a deployment says so; the others' breakers do not move."""
    world = World()
    first, second = world.processes
    for _ in range(3):
        first.deployment().failed(first.lease(), TIMEOUT, 1.0, "seen")
    assert not first.deployment().eligible()
    await world.beats()
    assert second.deployment().elsewhere.ejected == 1
    assert second.deployment().eligible()


async def test_the_first_answer_is_not_believed_yet() -> None:
    """After a start, only the second answer in a row is taken for a picture."""
    world = World()
    first, second = world.processes
    second.lease()
    await second.fleet.beat()
    await first.fleet.beat()
    assert freshness(first) is Freshness.LOCAL
    assert first.fleet.picture.members == 1
    await first.fleet.beat()
    assert freshness(first) is Freshness.FRESH
    assert first.deployment().elsewhere.sessions == 1


async def test_without_answers_the_picture_ages_and_two_answers_mend_it() -> None:
    """Fresh, ageing, local; then the first answer is a sign of life and the second a picture."""
    world = World()
    first, second = world.processes
    second.lease()
    await world.beats()
    first.exchange.condition = "down"
    modes = []
    for _ in range(13):
        world.advance(1.0)
        assert not await first.fleet.beat()
        modes.append(first.fleet.mode)
    assert modes[0] == "fresh" or modes[0] == "ageing"
    assert modes[-1] == "local"
    assert first.deployment().elsewhere.sessions == 0
    first.exchange.condition = "up"
    await second.fleet.beat()
    await first.fleet.beat()
    assert mode(first) == "local"
    await first.fleet.beat()
    assert mode(first) == "fresh"
    assert first.deployment().elsewhere.sessions == 1
    assert notices(first) == ["fleet joined", "fleet: shared state is lost", "fleet: shared state is back"]


async def test_an_emptied_server_is_not_taken_for_an_empty_fleet() -> None:
    """When the board was lost, a process does not act on "nobody is there" for the beat in which the others have not come yet."""
    world = World()
    first, second = world.processes
    for _ in range(8):
        second.lease()
    await world.beats()
    first.exchange.condition = "down"
    await first.fleet.beat()
    world.board.clear()
    first.exchange.condition = "up"
    await first.fleet.beat()
    assert first.deployment().elsewhere.sessions == 8, "the old picture stands until there is a better one"
    await second.fleet.beat()
    await first.fleet.beat()
    assert first.deployment().elsewhere.sessions == 8


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
async def test_a_jump_of_the_exchange_clock_heals(seconds: float) -> None:
    """Everybody's entry has ended, or ends in the future: nothing is believed for a beat, and nothing of a dead process stays."""
    world = World(3)
    first, second, third = world.processes
    second.lease()
    third.lease()
    await world.beats()
    assert first.deployment().elsewhere.sessions == 2
    world.board_clock.advance(seconds)
    world.processes.remove(third)  # dies in that moment
    await world.beats(1)
    assert first.deployment().elsewhere.sessions == 2, "the old picture stands"
    await world.beats(1)
    assert first.deployment().elsewhere.sessions == 1
    assert second.deployment().elsewhere.sessions == 0


async def test_a_process_that_was_stopped_is_careful() -> None:
    """Longer without a beat than an entry lives: the picture is old, and the next answer alone does not make it new."""
    world = World()
    first, second = world.processes
    second.lease()
    await world.beats()
    world.advance(60.0)
    await second.fleet.beat()
    assert first.fleet.mode == "local"
    await first.fleet.beat()
    assert mode(first) == "local"
    await first.fleet.beat()
    assert mode(first) == "fresh"


async def test_a_dead_process_is_gone_when_its_entry_ends() -> None:
    """Nobody has to take it back: 5 s after its last beat its sessions are nobody's."""
    world = World()
    first, second = world.processes
    second.lease()
    await world.beats()
    world.processes.remove(second)
    for _ in range(3):
        world.advance(1.0)
        await first.fleet.beat()
        assert first.deployment().elsewhere.sessions == 1
    world.advance(1.5)
    await first.fleet.beat()
    assert first.deployment().elsewhere.sessions == 0
    assert first.deployment().elsewhere.members == 0


async def test_a_process_that_ends_says_so() -> None:
    """Its entry is gone with the next beat of the others, and an exchange that fails does not keep it from ending."""
    world = World()
    first, second = world.processes
    second.lease()
    await world.beats()
    second.fleet.joined.set()  # as its task does after the first beat
    await second.fleet.leave()
    await first.fleet.beat()
    assert first.deployment().elsewhere.sessions == 0
    first.exchange.condition = "down"
    first.fleet.joined.set()
    await first.fleet.leave()
    third = world.start()
    await third.fleet.leave()
    assert third.exchange.calls == 0, "one that never began has nothing to take back"


@pytest.mark.parametrize(
    "error",
    [OSError("reset"), TimeoutError(), ValueError("garbage"), KeyError("field"), RuntimeError("loop"), MemoryError()],
)
async def test_every_kind_of_exception_is_a_failure(error: Exception) -> None:
    """Whatever an exchange raises, the beat goes on."""
    world = World(1)
    process = world.processes[0]

    async def fail(*arguments: Any) -> Any:
        raise error

    setattr(process.exchange, "beat", fail)  # noqa: B010 (a method is replaced on purpose)
    assert not await process.fleet.beat()
    assert not process.fleet.gate.reachable
    assert [event.outcome for event in process.events if isinstance(event, FleetBeat)] == ["failed"]


async def test_a_server_that_comes_and_goes_does_not_fill_the_log() -> None:
    """Two lines a minute at most, however often it changes."""
    world = World(1)
    process = world.processes[0]
    await world.beats()
    for _ in range(30):
        for condition in ("down", "down", "up", "up"):
            process.exchange.condition = condition
            await process.fleet.beat()
            world.advance(0.45)
    assert notices(process) == ["fleet joined", "fleet: shared state is lost", "fleet: shared state is back"]


async def test_nothing_to_tell_is_not_told() -> None:
    """Idle deployments and keys cost no bytes."""
    world = World(1, deployments=20)
    process = world.processes[0]
    process.lease("d7")
    share = process.fleet.share()
    assert list(share) == ["d:d7"]
    assert field(share["d:d7"], "sessions") == 1


async def test_an_id_that_was_given_to_something_else_is_told_once() -> None:
    """Sessions of the old one count with those of the new one, and what was learned of the old one does not."""
    world = World(2, deployments=1)
    first, second = world.processes
    first.lease()
    for _ in range(3):
        first.deployment().failed(first.lease(), TIMEOUT, 1.0, "seen")
    moved = load_config(config_of(deployment_of("http://127.0.0.1:9/v1", id="d0", model="other"))).settings
    first.pool.apply(moved)
    first.lease()
    assert len(list(first.pool.every)) == 2
    await world.beats()
    seen = second.deployment().elsewhere
    assert (seen.sessions, seen.ejected) == (5, 0)


async def test_bursts_bring_a_beat_forward_and_make_no_more_of_them() -> None:
    """Sessions that begin all the time: as many calls as without, for the early one takes the place of the next."""
    world = World(1)
    process = world.processes[0]
    loop = asyncio.get_running_loop()
    process.fleet._clock = loop.time
    process.exchange.interval_s = 0.05
    started = loop.time()
    beating = asyncio.create_task(process.fleet.run())
    for _ in range(100):
        for _ in range(BURST):
            process.fleet.begun()
        await asyncio.sleep(0.005)
    elapsed = loop.time() - started
    beating.cancel()
    assert 3 <= process.exchange.calls <= elapsed / 0.05 / 0.95 + 2


async def test_a_burst_is_told_early() -> None:
    """The beat after a burst comes before its time."""
    world = World(1)
    process = world.processes[0]
    loop = asyncio.get_running_loop()
    process.fleet._clock = loop.time
    process.exchange.interval_s = 8.0
    started = loop.time()
    beating = asyncio.create_task(process.fleet.run())
    await process.fleet.joined.wait()
    process.lease()
    for _ in range(BURST):
        process.fleet.begun()
    await until(lambda: process.exchange.calls == 2, every_s=0.01)
    assert loop.time() - started < 7.0
    beating.cancel()


async def test_a_budget_ends_silence() -> None:
    """An exchange that never answers ends the beat by its own time limit, and the next one is tried."""
    world = World(1)
    process = world.processes[0]
    process.exchange.condition = "frozen"
    beat = asyncio.create_task(process.fleet.beat())
    assert not await asyncio.wait_for(beat, 10)
    process.exchange.condition = "up"
    assert await process.fleet.beat()


def test_a_burst_asks_for_an_early_beat() -> None:
    """So many sessions since the last beat, and not one fewer."""
    world = World(1)
    fleet = world.processes[0].fleet
    for _ in range(BURST - 1):
        fleet.begun()
    assert not fleet._early.is_set()
    fleet.begun()
    assert fleet._early.is_set()


async def test_places_that_cannot_be_asked_for_are_not_called_back() -> None:
    """Beats go through and places do not: the log says so, and not in the same breath that all is well."""
    world = World(1, max_sessions=5)
    process = world.processes[0]
    await world.beats()

    async def fail(wanted: object) -> Sequence[bool]:
        raise ExchangeError("no right to do so")

    real = process.exchange.acquire
    setattr(process.exchange, "acquire", fail)  # noqa: B010 (a method is replaced on purpose)
    for _ in range(5):
        assert await process.admit() is not None
        await world.beats(1)
    assert notices(process) == ["fleet joined", "fleet: places across the fleet cannot be asked for"]
    setattr(process.exchange, "acquire", real)  # noqa: B010 (and put back)
    await world.beats(1)
    assert notices(process)[2:] == ["fleet: shared state is back"]


async def test_an_answer_that_cannot_be_dealt_with_is_a_failure_like_others() -> None:
    """The beat goes on, and the next answer counts."""
    world = World(1)
    process = world.processes[0]
    await world.beats()
    real = process.exchange.beat

    async def senseless(share: object, renew: object) -> object:
        return None

    setattr(process.exchange, "beat", senseless)  # noqa: B010 (a method is replaced on purpose)
    assert not await process.fleet.beat()
    setattr(process.exchange, "beat", real)  # noqa: B010 (and put back)
    assert await process.fleet.beat()
    assert mode(process) == "fresh"
