"""Hard limits across the fleet: who is let in, who is turned away, and what becomes of places when calls are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from router.fleet.board import PLACE_TTL_S
from router.fleet.exchange import Wanted
from router.fleet.gate import REFUSAL_HOLDS_S, RENEWAL_S
from tests.helpers.fleets import Process, World


def entered(world: World, deployment: str = "d0") -> int:
    """Places on the board."""
    return len(world.board.places(deployment, now_s=world.board_clock()))


async def admitted(process: Process, count: int) -> int:
    """How many of ``count`` sessions at once are let in."""
    return sum(lease is not None for lease in await asyncio.gather(*(process.admit() for _ in range(count))))


async def test_no_more_than_the_limit_whoever_asks() -> None:
    """Three processes, a hundred sessions each, all at once: exactly the limit get in."""
    world = World(3, max_sessions=50)
    await world.beats()
    counts = await asyncio.gather(*(admitted(process, 100) for process in world.processes))
    assert sum(counts) == 50
    assert entered(world) == 50
    assert [len(process.leases) for process in world.processes] == counts
    assert [process.deployment().sessions for process in world.processes] == counts


async def test_a_burst_costs_a_few_calls() -> None:
    """Sessions that come together ask together."""
    world = World(1, max_sessions=400)
    process = world.processes[0]
    await world.beats()
    before = process.exchange.calls
    assert await admitted(process, 300) == 300
    assert process.exchange.calls - before <= 4


async def test_an_end_makes_room_at_once() -> None:
    """A place is given back when its session ends, not with the next beat."""
    world = World(2, max_sessions=1)
    first, second = world.processes
    await world.beats()
    assert await first.admit() is not None
    assert await second.admit() is None
    first.end()
    await first.settled()
    world.advance(REFUSAL_HOLDS_S)
    assert await second.admit() is not None


async def test_a_refusal_counts_as_full_for_a_moment() -> None:
    """Who was turned away leaves no trace in the counts, and the next sessions do not ask again at once."""
    world = World(2, max_sessions=1, rpm=100)
    first, second = world.processes
    await world.beats()
    await first.admit()
    assert await second.admit() is None
    deployment = second.deployment()
    assert (deployment.sessions, deployment.starts.used(), deployment.started) == (0, 0, 0)
    assert deployment.obstacle() == "full"
    world.advance(REFUSAL_HOLDS_S)
    assert deployment.obstacle() == ""


async def test_without_a_limit_nobody_asks() -> None:
    """A deployment without ``max_sessions`` costs the exchange nothing."""
    world = World(1)
    process = world.processes[0]
    assert await process.admit() is not None
    assert process.exchange.calls == 0


@pytest.mark.parametrize("condition", ["down", "frozen", "deaf"])
@pytest.mark.parametrize("on_loss", ["open", "closed"])
async def test_a_lost_exchange(condition: Any, on_loss: Any) -> None:
    """``open``: each process grants its part; ``closed``: nothing. Only the first session waits, the others do not ask."""
    world = World(3, max_sessions=30, on_loss=on_loss)
    await world.beats()
    process = world.processes[0]
    process.exchange.condition = condition
    calls = process.exchange.calls
    got = await admitted(process, 60)
    assert got == (10 if on_loss == "open" else 0)
    got += await admitted(process, 60)
    assert got == (10 if on_loss == "open" else 0)
    assert process.exchange.calls - calls <= 3
    assert process.deployment().sessions == got
    assert process.deployment().obstacle() == ("full" if on_loss == "open" else "limit_unknown")
    # A frozen call is still under way.
    await process.tasks.close(timeout_s=1)


@pytest.mark.parametrize("condition", ["down", "deaf"])
async def test_what_was_granted_alone_is_entered_when_the_exchange_is_back(condition: Any) -> None:
    """Sessions that run are entered whatever the limit says; what was asked for in vain is not left behind."""
    world = World(2, max_sessions=10)
    await world.beats()
    first, second = world.processes
    assert await admitted(second, 8) == 8
    first.exchange.condition = condition
    assert await admitted(first, 20) == 5
    first.exchange.condition = "up"
    await world.beats(2)
    await first.settled()
    assert entered(world) == 13, "more than the limit, for they run"
    assert await second.admit() is None
    for _ in range(5):
        first.end()
    await first.settled()
    assert entered(world) == 8


async def test_a_server_that_forgot_is_told_again() -> None:
    """After a restart all places are entered with the first beat that is answered."""
    world = World(1, max_sessions=10)
    process = world.processes[0]
    await world.beats()
    assert await admitted(process, 7) == 7
    process.exchange.condition = "down"
    await process.fleet.beat()
    world.board.clear()
    process.exchange.condition = "up"
    await process.fleet.beat()
    assert entered(world) == 7


async def test_places_are_renewed_while_sessions_run_and_end_with_their_process() -> None:
    """A session of an hour keeps its place; 15 s after a crash the room is back."""
    world = World(2, max_sessions=3)
    first, second = world.processes
    await world.beats()
    assert await admitted(first, 3) == 3
    for _ in range(60):
        await world.beats(1)
        assert entered(world) == 3
    world.processes.remove(first)
    await world.beats(int(PLACE_TTL_S - RENEWAL_S - 2))
    assert await second.admit() is None
    await world.beats(int(RENEWAL_S + 3))
    assert await second.admit() is not None


async def test_renewals_are_spread() -> None:
    """A beat renews what is due, not everything: hundreds of places are not hundreds of entries a second."""
    world = World(1, max_sessions=1000)
    process = world.processes[0]
    await world.beats()
    assert await admitted(process, 500) == 500
    renewed = []
    for _ in range(10):
        renewed.append(sum(map(len, process.fleet.gate.to_renew().values())))
        await world.beats(1)
    assert renewed.count(500) <= 2
    assert renewed.count(0) >= 8


async def test_a_client_that_leaves_while_it_is_asked_for() -> None:
    """The place that comes for it goes back, and the lease is free."""
    world = World(1, max_sessions=1)
    process = world.processes[0]
    await world.beats()
    asking = asyncio.create_task(process.admit())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await process.settled()
    assert entered(world) == 0


async def test_a_place_that_is_given_back_while_it_is_renewed() -> None:
    """The beat may enter it once more behind the return; then it is given back again."""
    world = World(1, max_sessions=5)
    process = world.processes[0]
    await world.beats()
    await process.admit()
    process.fleet.gate.forget_entries()
    real = process.exchange.beat

    async def slowly(share: Any, renew: Any) -> Any:
        process.end()
        await process.settled()
        return await real(share, renew)

    setattr(process.exchange, "beat", slowly)  # noqa: B010 (a method is replaced on purpose)
    await process.fleet.beat()
    await process.settled()
    assert entered(world) == 0


async def test_returns_that_were_lost_are_told_later() -> None:
    """While the exchange is away, ends are kept in mind."""
    world = World(1, max_sessions=5)
    process = world.processes[0]
    await world.beats()
    await process.admit()
    process.exchange.condition = "down"
    await process.fleet.beat()
    process.end()
    await process.settled()
    assert entered(world) == 1
    process.exchange.condition = "up"
    await world.beats(2)
    await process.settled()
    assert entered(world) == 0


async def test_a_failure_of_the_exchange_in_the_midst_of_a_batch() -> None:
    """Everybody who waits is told, whatever is raised, and the process goes on alone."""
    world = World(1, max_sessions=100)
    process = world.processes[0]
    await world.beats()

    async def fail(wanted: Sequence[Wanted]) -> Sequence[bool]:
        raise ValueError("garbage")

    setattr(process.exchange, "acquire", fail)  # noqa: B010 (a method is replaced on purpose)
    assert await admitted(process, 50) == 50
    assert not process.fleet.gate.reachable
    assert process.failed == []


async def test_an_exchange_that_answers_for_fewer_than_were_asked_for() -> None:
    """Nobody is left waiting for an answer that was not among them."""
    world = World(1, max_sessions=100)
    process = world.processes[0]
    await world.beats()

    async def one_too_few(wanted: Sequence[Wanted]) -> Sequence[bool]:
        return [True] * (len(wanted) - 1)

    setattr(process.exchange, "acquire", one_too_few)  # noqa: B010 (a method is replaced on purpose)
    async with asyncio.timeout(10):
        assert await admitted(process, 20) == 20
    assert not process.fleet.gate.reachable
    assert process.failed == []
