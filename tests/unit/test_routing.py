"""The attempt loop by itself: a scripted dialer in the place of the network, everything else as it is."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import pytest

from router.config.settings import DeploymentSettings
from router.errors import (
    BadHandshake,
    ConnectFailed,
    HandshakeRejected,
    NoDeploymentAvailable,
    RateLimited,
    TimedOut,
    UpstreamError,
)
from router.events import Attempt, Event, Observers
from router.pool import Pool
from router.providers.base import Forward
from router.retry import RetryBudget
from router.routing import DEFAULT_RETRY_AFTER_S, MAX_OPEN, Opened, Routing, Search
from router.tasks import Tasks
from router.upstream import Dialer
from strategies.base import Call
from tests.helpers.running import MODEL, config_of, deployment_of, load_config, until

BASE = "http://127.0.0.1:9/v1"


class FakeUpstream:
    """Remembers that it was closed."""

    def __init__(self, deployment: str) -> None:
        self.deployment = deployment
        self.closed = False

    def close(self, code: int = 1000) -> None:
        """Nobody needs it."""
        self.closed = True


Script = Callable[[], Awaitable[None]]


async def works() -> None:
    """A dial that succeeds at once."""


async def hangs() -> None:
    """A dial that never ends."""
    await asyncio.Event().wait()


def fails(error: UpstreamError) -> Script:
    """A dial that fails at once."""

    async def script() -> None:
        raise error

    return script


REFUSES = fails(HandshakeRejected(503))
LIMITED = fails(HandshakeRejected(429, retry_after_s=7.0))
NO_KEY = fails(HandshakeRejected(401))


class World:
    """Routing over a pool of deployments, each with the script of its dials (the last one goes on for ever)."""

    def __init__(
        self,
        *scripts: list[Script] | Script,
        router: Mapping[str, Any] | None = None,
        params: list[dict[str, Any]] | None = None,
        budget_per_s: float = 1000.0,
    ) -> None:
        entries = [deployment_of(BASE, **(params[index] if params else {})) for index in range(len(scripts))]
        settings = load_config(config_of(*entries, router={"allowed_fails": 10_000, **(router or {})})).settings
        self.scripts = {
            f"d{index}": list(script) if isinstance(script, list) else [script] for index, script in enumerate(scripts)
        }
        self.dials: list[str] = []
        self.upstreams: list[FakeUpstream] = []
        self.events: list[Event] = []
        self.faults: list[str] = []
        self.tasks = Tasks(on_error=lambda name, error: self.faults.append(f"{name}: {error!r}"))
        tell = Observers([self.events.append])
        rng = random.Random(1)
        self.pool = Pool(settings, clock=time.monotonic, rng=rng, tell=tell)
        self.routing = Routing(
            pool=self.pool,
            dialer=cast(Dialer, self),
            budget=RetryBudget(ratio=0.0, min_per_s=budget_per_s, clock=time.monotonic),
            tasks=self.tasks,
            tell=tell,
            clock=time.monotonic,
            rng=rng,
        )

    # --- Dialer ---

    async def dial(self, deployment: DeploymentSettings, forward: Forward, *, max_message_bytes: int) -> FakeUpstream:
        """Follow the script."""
        self.dials.append(deployment.id)
        script = self.scripts[deployment.id]
        await (script.pop(0) if len(script) > 1 else script[0])()
        upstream = FakeUpstream(deployment.id)
        self.upstreams.append(upstream)
        return upstream

    def key_refused(self, deployment: DeploymentSettings) -> None:
        """There is no token to renew."""

    # --- use ---

    def search(self) -> Search:
        """Begin a session's search."""
        return self.routing.search(
            session="rs_1", group=self.pool.groups[MODEL], call=Call(group=MODEL, principal="p"), forward=lambda group: Forward()
        )

    async def open(self) -> Opened:
        """Search for a session."""
        return await self.routing.open(self.search())

    @property
    def leases(self) -> int:
        """Held on any deployment."""
        return sum(deployment.sessions for deployment in self.pool.deployments)

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        """Deployments and outcomes of the attempts that ended."""
        return [(event.deployment, event.outcome) for event in self.events if isinstance(event, Attempt)]

    async def settle(self) -> None:
        """Let every dial that can end do so; cancel those that hang."""
        await self.tasks.close(timeout_s=1.0)
        assert not self.faults


async def test_the_first_that_works_is_taken_and_nothing_else_dialled() -> None:
    """One attempt, one lease."""
    world = World(works, works)
    opened = await world.open()
    assert (opened.deployment.id, world.dials, world.leases) == ("d0", ["d0"], 1)
    opened.lease.release()
    await world.settle()


async def test_each_is_tried_once_before_any_is_tried_again() -> None:
    """A deployment's second dial comes after everybody's first."""
    world = World([REFUSES, works], REFUSES, REFUSES)
    opened = await world.open()
    assert world.dials == ["d0", "d1", "d2", "d0"] and opened.deployment.id == "d0"
    opened.lease.release()
    assert world.leases == 0
    await world.settle()


async def test_one_that_is_ready_in_the_same_moment_is_closed() -> None:
    """Two attempts end in one turn of the loop: one serves, the other is closed and gives its place back."""
    gate = asyncio.Event()

    async def waits() -> None:
        await gate.wait()

    world = World(waits, waits, router={"stagger_s": 0.01})
    opening = asyncio.create_task(world.open())
    await until(lambda: len(world.dials) == 2)
    gate.set()
    opened = await opening
    assert len(world.upstreams) == 2
    assert [upstream.closed for upstream in world.upstreams if upstream is not cast(Any, opened.upstream)] == [True]
    assert not cast(FakeUpstream, opened.upstream).closed and world.leases == 1
    opened.lease.release()
    await world.settle()


async def test_a_cancellation_in_the_moment_of_success_closes_what_was_opened() -> None:
    """The dial has ended, the search has not noticed yet, and the client leaves: nobody would close the upstream otherwise."""
    gate = asyncio.Event()

    async def waits() -> None:
        await gate.wait()

    world = World(waits)
    opening = asyncio.create_task(world.open())
    await until(lambda: bool(world.dials))
    gate.set()
    await until(lambda: bool(world.upstreams))
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert world.upstreams[0].closed and world.leases == 0
    await world.settle()


async def test_a_loser_is_left_alone_and_gives_its_place_back() -> None:
    """It is neither waited for nor cancelled; when it is ready after all, it is closed."""
    gate = asyncio.Event()

    async def late() -> None:
        await gate.wait()

    world = World(late, works, router={"stagger_s": 0.01})
    opened = await world.open()
    assert opened.deployment.id == "d1" and world.leases == 2
    gate.set()
    await until(lambda: world.leases == 1)
    assert world.upstreams[1].closed and world.outcomes == [("d1", "ready"), ("d0", "ready")]
    assert [event.raced for event in world.events if isinstance(event, Attempt)] == [False, True]
    opened.lease.release()
    await world.settle()


async def test_no_more_than_three_are_open() -> None:
    """And when one of them fails the next begins at once, without waiting for the stagger."""
    fail = asyncio.Event()

    async def fails_later() -> None:
        await fail.wait()
        raise ConnectFailed("refused")

    world = World(fails_later, hangs, hangs, works, router={"stagger_s": 0.01})
    opening = asyncio.create_task(world.open())
    await until(lambda: len(world.dials) == MAX_OPEN)
    await asyncio.sleep(0.05)  # five staggers, in which a fourth must not begin
    assert len(world.dials) == MAX_OPEN
    fail.set()
    opened = await opening
    assert opened.deployment.id == "d3"
    opened.lease.release()
    await world.settle()
    assert world.leases == 0


async def test_one_that_was_never_dialled_goes_before_those_that_failed() -> None:
    """It was full in the first pass and has a place in the second: its first dial costs no budget and comes first."""
    world = World(REFUSES, works, params=[{}, {"max_sessions": 1}], budget_per_s=0.0)
    held = next(item for item in world.pool.deployments if item.id == "d1").lease()
    opening = asyncio.create_task(world.open())
    await until(lambda: world.outcomes == [("d0", "refused")])
    await asyncio.sleep(0.03)  # into the back-off, which takes 0.1 s at least
    held.release()
    opened = await opening
    assert world.dials == ["d0", "d1"]
    opened.lease.release()
    await world.settle()


async def test_time_that_runs_out_is_told_as_such() -> None:
    """All hang: 504 after ``total_timeout_s``, and the dials go on by themselves."""
    world = World(hangs, hangs, router={"total_timeout_s": 0.2, "stagger_s": 0.05})
    with pytest.raises(TimedOut):
        await world.open()
    assert world.leases == 2
    await world.settle()
    assert world.leases == 0


async def test_re_dials_end_before_the_deadline() -> None:
    """No pass begins that could not end in time; the failure is then that nothing is available, not that time ran out."""
    world = World(REFUSES, router={"total_timeout_s": 1})
    search = world.search()
    with pytest.raises(NoDeploymentAvailable):
        await world.routing.open(search)
    # 0.2 s and 0.4 s, ± half, fit; 0.8 s more seldom does, and a busy machine may lose one.
    assert 2 <= len(world.dials) <= 4


@pytest.mark.parametrize(
    ("scripts", "kind", "low", "high"),
    [
        ((REFUSES, REFUSES), NoDeploymentAvailable, DEFAULT_RETRY_AFTER_S, DEFAULT_RETRY_AFTER_S),
        ((LIMITED, LIMITED), RateLimited, 6, 7),
        ((REFUSES, LIMITED), RateLimited, 6, 7),
        ((LIMITED, NO_KEY), RateLimited, 6, 7),
        ((NO_KEY, NO_KEY), NoDeploymentAvailable, 60, 60),
        ((REFUSES, NO_KEY), NoDeploymentAvailable, 60, 60),
    ],
)
async def test_what_is_told_when_nothing_is_left(
    scripts: tuple[Script, ...], kind: type[NoDeploymentAvailable], low: float, high: float
) -> None:
    """A limit, if anything is limited, for that is what keeps the client waiting; with the shortest wait that is known."""
    world = World(*scripts, router={"num_retries": 0})
    with pytest.raises(kind) as caught:
        await world.open()
    assert caught.value.retry_after_s is not None and low <= caught.value.retry_after_s <= high
    assert world.leases == 0
    await world.settle()


async def test_full_and_failed_is_a_limit() -> None:
    """One deployment is full and the other down: when a place is free, the client will be served."""
    world = World(works, REFUSES, router={"num_retries": 0}, params=[{"max_sessions": 1}, {}])
    opened = await world.open()
    with pytest.raises(RateLimited):
        await world.open()
    opened.lease.release()
    (await world.open()).lease.release()
    await world.settle()


async def test_what_the_client_sent_ends_the_search() -> None:
    """A 400 about a forwarded parameter: no second deployment is asked."""
    world = World(fails(HandshakeRejected(400, mentions=frozenset({"conversation_id"}))), works)
    search = world.routing.search(
        session="rs_1",
        group=world.pool.groups[MODEL],
        call=Call(group=MODEL, principal="p"),
        forward=lambda group: Forward(query={"conversation_id": "c"}),
    )
    with pytest.raises(BadHandshake):
        await world.routing.open(search)
    assert world.dials == ["d0"] and world.leases == 0
    await world.settle()


async def test_without_budget_an_ejected_deployment_is_left_alone() -> None:
    """Failing open is a re-dial like any other; a first attempt on an eligible deployment is free."""
    world = World(REFUSES, REFUSES, router={"allowed_fails": 1}, budget_per_s=0.0)
    for _ in range(3):
        with pytest.raises(NoDeploymentAvailable):
            await world.open()
    assert world.dials == ["d0", "d1"]
    await world.settle()


async def test_a_cancelled_search_cancels_its_dials_and_sees_them_end() -> None:
    """When ``open`` has raised, every lease is back: nobody need wait for anything."""
    world = World(hangs, hangs, hangs, router={"stagger_s": 0.01})
    opening = asyncio.create_task(world.open())
    await until(lambda: len(world.dials) == 3)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert world.leases == 0 and len(world.tasks) == 0
    assert world.outcomes == [(f"d{number}", "client_gone") for number in range(3)]
    await world.settle()


async def test_concurrent_searches_see_each_others_leases() -> None:
    """Twenty at once on places for three, two and fifteen: none is exceeded, none is left empty."""

    async def takes_a_while() -> None:
        await asyncio.sleep(0.02)

    world = World(
        takes_a_while, takes_a_while, takes_a_while, params=[{"max_sessions": 3}, {"max_sessions": 2}, {"max_sessions": 15}]
    )
    opened = await asyncio.gather(*(world.open() for _ in range(20)))
    counts = [sum(item.deployment.id == f"d{number}" for item in opened) for number in range(3)]
    assert counts == [3, 2, 15] and len(world.dials) == 20
    for item in opened:
        item.lease.release()
    await world.settle()
