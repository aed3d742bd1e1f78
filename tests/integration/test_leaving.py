"""A client that leaves before it has a session: its dials end at once, nobody is blamed, and everything is given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import psutil
import pytest

from router.auth import Principal
from router.errors import RouterError, UpstreamError
from router.events import Attempt, SessionRecord
from router.live import Request
from router.providers.base import Forward
from router.relay.leg import Leg
from router.routing import Opened, Search
from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from router.upstream import Upstream
from strategies.base import Call
from tests.helpers.running import (
    BROWSER,
    MODEL,
    PATIENCE_S,
    UPGRADE,
    RunningRouter,
    config_of,
    next_type,
    outcomes,
    running_router,
    until,
)

T = TypeVar("T")

# So long that whatever ends sooner was ended, and did not time out.
LONG = {"connect_timeout_s": 60, "ready_timeout_s": 60, "total_timeout_s": 60, "stagger_s": 30}


@asynccontextmanager
async def asking(router: RunningRouter, *, rest: bytes = b"", **headers: str) -> AsyncIterator[asyncio.StreamWriter]:
    """A client that has asked for a session and is cut off when the block ends."""
    _, writer = await asyncio.open_connection("127.0.0.1", router.port)
    try:
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**UPGRADE, **headers}.items())
        writer.write(f"GET /v1/realtime?model={MODEL} HTTP/1.1\r\nHost: 127.0.0.1:{router.port}\r\n{lines}\r\n".encode() + rest)
        await writer.drain()
        yield writer
    finally:
        writer.transport.abort()


async def descriptors_back(before: int) -> None:
    """Wait until the process has no more descriptors open than before; a socket that was left behind fails the test."""
    process = psutil.Process()
    await until(lambda: process.num_fds() <= before, every_s=0.01)


# --- over the wire -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["hang_before_101", "hang_after_101", "slow_first_event=60"])
@pytest.mark.parametrize("orderly", [True, False], ids=["FIN", "RST"])
async def test_leaving_during_the_dial_cancels_it_and_blames_nobody(
    simulator: SimulatorFactory, fault: str, orderly: bool
) -> None:
    """The dial ends in the moment the client hangs up, in whatever way, and not at its time-out a minute later."""
    sim = await simulator(name="first", faults=[fault])
    async with running_router(config_of(sim, router=LONG | {"allowed_fails": 1})) as router:
        before = psutil.Process().num_fds()
        async with asking(router) as writer:
            await sim.stats.wait_until(lambda stats: len(stats.requests) == 1)
            assert router.leases == 1
            if orderly:
                writer.close()
            else:
                writer.transport.abort()
            record = await router.until(SessionRecord)
        assert (record.who, record.cause, record.phase, record.status) == ("client", "lost", "waiting", 499)
        assert outcomes(record) == ["client_gone"]
        assert record.seconds < 30
        await router.idle()
        assert router.deployment("first").breaker.failures == 0 and not router.ejections
        assert router.deployment("first").ready_s is None
        await sim.stats.wait_until(lambda stats: stats.active == 0)
        await descriptors_back(before)


async def test_leaving_ends_all_attempts_that_are_open(simulator: SimulatorFactory) -> None:
    """Three silent dials side by side, and none of them outlives its client."""
    sims = [await simulator(name=f"d{number}", faults=["hang_after_101"]) for number in range(4)]
    async with running_router(config_of(*sims, router=LONG | {"stagger_s": 0.05})) as router:
        async with asking(router):
            await router.until_true(lambda: sum(sim.stats.active for sim in sims) == 3)
        record = await router.until(SessionRecord)
        assert outcomes(record) == ["client_gone"] * 3
        await router.idle()
        assert sum(len(sim.stats.requests) for sim in sims) == 3
        for sim in sims:
            await sim.stats.wait_until(lambda stats: stats.active == 0)


async def test_leaving_during_a_back_off_ends_the_search(simulator: SimulatorFactory) -> None:
    """Between two rounds of re-dials nothing is open; afterwards nobody is dialled any more."""
    sim = await simulator(name="first", faults=["status=503"])
    config = config_of(sim, router={"allowed_fails": 10_000, "total_timeout_s": 60}, general={"retry_budget_min_per_s": 100})
    async with running_router(config) as router:
        async with asking(router):
            await router.until(Attempt, 3)  # the next back-off is 0.4 s at least
        record = await router.until(SessionRecord)
        assert (record.who, record.status) == ("client", 499)
        seen = len(sim.stats.requests)
        await asyncio.sleep(1.2)  # the longest back-off that could have been under way
        assert len(sim.stats.requests) == seen


async def test_a_probing_client_that_leaves_gives_the_probe_back(simulator: SimulatorFactory) -> None:
    """Otherwise a deployment that was ejected could never be tried again."""
    sim = await simulator(name="first", faults=["status=503,next=1"])
    times = {"allowed_fails": 1, "cooldown_time": 0.1, "cooldown_jitter": 0, "num_retries": 0}
    async with running_router(config_of(sim, router=LONG | times)) as router:
        assert (await router.refused()).status == 503
        sim.set_fault("hang_after_101")
        await router.until_true(lambda: router.deployment("first").state == "probing")
        async with asking(router):
            await router.until_true(lambda: router.leases == 1 and not router.deployment("first").breaker.admits())
        await router.idle()
        assert router.deployment("first").breaker.admits()
        sim.clear_faults()
        assert (await router.session()).deployment == "first"


@pytest.mark.parametrize("fault", [None, "status=503", "error_event=server_error", "slow_first_event=0.02", "hang_before_101"])
@pytest.mark.parametrize("page", [False, True], ids=["program", "browser"])
async def test_leaving_at_any_moment_leaves_nothing_behind(simulator: SimulatorFactory, fault: str | None, page: bool) -> None:
    """Clients cut off after 0, 1, 2 … ms, through dial, 101, first event and refusal: no lease, task or socket stays."""
    first = await simulator(name="first", faults=[fault] if fault else [])
    second = await simulator(name="second")
    config = config_of(first, second, router={"allowed_fails": 10_000, "stagger_s": 0.01})
    async with running_router(config) as router:
        before = psutil.Process().num_fds()
        headers = {**BROWSER, "Origin": router.http} if page else {}

        async def leave_after(seconds: float) -> None:
            async with asking(router, rest=b"\x81\x80\x00\x00\x00\x00", **headers):
                await asyncio.sleep(seconds)

        for start in range(0, 40, 10):
            await asyncio.gather(*(leave_after((start + step) / 1000) for step in range(10)))
        await router.until_true(lambda: router.engine.sessions == 0)
        # A loser of a race goes on by itself and may be blamed; what its client cut off may not.
        seen = {(attempt.deployment, attempt.outcome) for attempt in router.attempts if not attempt.raced}
        faults = {("first", "refused"), ("first", "error_event")} if fault else set()
        assert seen <= {(name, outcome) for name in ("first", "second") for outcome in ("ready", "client_gone")} | faults
        assert router.deployment("second").breaker.failures == 0
        first.clear_faults()
        assert (await router.session()).status == 101
        await router.idle()
    await descriptors_back(before)


# --- at every await ----------------------------------------------------------------------------------------


class CancelledAt:
    """Awaits a coroutine and cancels the task at its n-th suspension.

    Attributes:
        reached: it had so many; otherwise it ended before.
    """

    def __init__(self, coro: Coroutine[Any, Any, T], at: int) -> None:
        self._coro = coro
        self._at = at
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        seen = 0
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited_for = self._coro.send(value) if error is None else self._coro.throw(error)
            except StopIteration as end:
                return end.value
            value = error = None
            seen += 1
            if seen == self._at:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                value = yield waited_for
            except BaseException as thrown:
                error = thrown


async def sweep(make: Any, check: Any, *, most: int = 200) -> int:
    """Run a coroutine again and again, cancelled at its first, second, … suspension, until it ends by itself.

    Args:
        make: returns the coroutine.
        check: awaited after each run.
        most: suspensions that it may have.

    Returns: how many it had.
    """
    for at in range(1, most + 1):
        run = CancelledAt(make(), at)

        async def driver(run: CancelledAt = run) -> Any:
            return await run

        task = asyncio.create_task(driver())
        done, _ = await asyncio.wait([task], timeout=PATIENCE_S)
        assert done, f"cancelled at its suspension {at}, it did not end"
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, RouterError):
            raise error
        await check()
        if not run.reached:
            return at - 1
    raise AssertionError(f"more than {most} suspensions")


def request_of(router: RunningRouter) -> Request:
    """What the handshake would have made of a client's request."""
    return Request(
        session="rs_test",
        group=router.group,
        principal=Principal(name="anonymous"),
        client="127.0.0.1",
        call=Call(group=MODEL, principal="anonymous"),
        forward=lambda group: Forward(),
    )


SCENARIOS = {
    "ready": (),
    "refused": ("status=503,code=server_error",),
    "slow": ("slow_first_event=0.05",),
    "error event": ("error_event=server_error",),
    "two dials": ("hang_after_101", ""),
}


async def simulators(simulator: SimulatorFactory, faults: tuple[str, ...]) -> list[Simulator]:
    """Start one simulator a fault; an empty text is none."""
    return [
        await simulator(name=f"d{number}", faults=[fault] if fault else []) for number, fault in enumerate(faults or ("",))
    ]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_dial_cancelled_at_any_await_leaves_no_socket(simulator: SimulatorFactory, scenario: str) -> None:
    """From name resolution to the first event."""
    sims = await simulators(simulator, SCENARIOS[scenario][:1])
    async with running_router(config_of(*sims, ready_timeout_s=0.2)) as router:
        settings = router.deployment("d0").settings
        before = psutil.Process().num_fds()

        async def dial() -> None:
            try:
                upstream: Upstream = await router.engine.dialer.dial(settings, Forward(), max_message_bytes=1 << 20)
            except UpstreamError:
                return
            upstream.close()

        async def check() -> None:
            await descriptors_back(before)

        assert await sweep(dial, check) >= 2


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_search_cancelled_at_any_await_gives_everything_back(simulator: SimulatorFactory, scenario: str) -> None:
    """The loop of attempts, its races and back-offs: no lease, no dial, no blame."""
    sims = await simulators(simulator, SCENARIOS[scenario])
    config = config_of(*sims, router={"num_retries": 1, "stagger_s": 0.02, "allowed_fails": 10_000}, ready_timeout_s=0.2)
    async with running_router(config) as router:

        async def search() -> None:
            request = request_of(router)
            found: Search = router.engine.routing.search(
                session=request.session, group=request.group, call=request.call, forward=request.forward
            )
            opened = await router.engine.routing.open(found)
            opened.upstream.close()
            opened.lease.release()

        async def check() -> None:
            await router.idle()

        assert await sweep(search, check) >= 1
        assert not router.faults


async def test_a_client_that_leaves_in_the_last_moment(simulator: SimulatorFactory) -> None:
    """The upstream is ready and the 101 cannot be sent any more: the upstream is closed politely, nobody is blamed."""
    sim = await simulator(name="first")
    async with running_router(config_of(sim, router={"allowed_fails": 1})) as router:

        async def accept(opened: Opened, search: Search) -> tuple[Leg, bytes]:
            raise ConnectionResetError("gone")

        with pytest.raises(ConnectionResetError):
            await router.engine.serve(request_of(router), accept)
        assert router.leases == 0 == router.engine.sessions
        record = router.records[0]
        assert (record.who, record.status, record.deployment) == ("client", 499, "first")
        assert not router.ejections
        await sim.stats.wait_until(lambda stats: stats.close_codes[1001] == 1)


async def test_a_whole_session_cancelled_at_any_await(simulator: SimulatorFactory) -> None:
    """Including the wait for the 101 to be written: whatever was taken is given back."""
    sim = await simulator(name="first")
    async with running_router(config_of(sim)) as router:

        async def accept(opened: Opened, search: Search) -> tuple[Leg, bytes]:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            raise ConnectionResetError("gone")

        async def serve() -> None:
            try:
                await router.engine.serve(request_of(router), accept)
            except ConnectionResetError:
                return

        async def check() -> None:
            await router.idle()
            await sim.stats.wait_until(lambda stats: stats.active == 0)

        assert await sweep(serve, check) >= 3
        assert {record.who for record in router.records} == {"client"}
        assert router.deployment("first").breaker.failures == 0


async def test_leaving_right_after_the_101(simulator: SimulatorFactory) -> None:
    """The session has begun: it ends as one that its client left, and the upstream hears 1001."""
    sim = await simulator(name="first")
    async with running_router(config_of(sim)) as router:
        async with router.connect() as ws:
            assert await next_type(ws) == "session.created"
            ws.transport.abort()
            record = await router.record_of(ws)
        assert (record.who, record.status, record.deployment) == ("client", 101, "first")
        await sim.stats.wait_until(lambda stats: stats.close_codes[1001] == 1)
        await router.idle()
