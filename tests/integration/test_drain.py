"""How a router ends: not ready at once, a grace, 503, patience with those that run, quiet moments; alone and with workers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.processes import PATIENCE_S, RouterProcess, router_process, written
from tests.helpers.running import MODEL, config_of, next_type, run_turn

# Longer than any test: what this long a time limit decides has not happened by itself.
NEVER_S = 120

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux spreads connections over SO_REUSEPORT")


@pytest.fixture
async def sim(simulator: SimulatorFactory) -> Simulator:
    """A provider."""
    return await simulator()


def draining(sim: Simulator, *, grace_s: float = 0, timeout_s: float = NEVER_S, code: int = 1001, **general: Any) -> Any:
    """A configuration with these times."""
    return config_of(sim, general={"drain": {"grace_s": grace_s, "timeout_s": timeout_s, "code": code}, **general})


@asynccontextmanager
async def session(router: RouterProcess) -> AsyncIterator[ClientConnection]:
    """A session that has got its first event."""
    async with asyncio.timeout(PATIENCE_S), connect(router.url(MODEL), proxy=None, compression=None) as ws:
        assert await next_type(ws) == "session.created"
        yield ws


async def refusal(router: RouterProcess) -> tuple[int, Mapping[str, str]]:
    """Ask for a session and return the status and headers of the answer; 101 when it was given."""
    try:
        async with asyncio.timeout(PATIENCE_S), connect(router.url(MODEL), proxy=None):
            return 101, {}
    except InvalidStatus as refused:
        return refused.response.status_code, refused.response.headers


async def get(router: RouterProcess, path: str) -> tuple[int, str, str]:
    """Status, Connection header and body of a request of its own connection."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(timeout=timeout) as client, client.get(router.http + path) as answer:
        return answer.status, answer.headers.get("Connection", ""), await answer.text()


async def ended(ws: ClientConnection) -> tuple[int, list[str]]:
    """Read to the end; return the close code and the types of what came before it."""
    types: list[str] = []
    try:
        while True:
            types.append(await next_type(ws))
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else 1006, types


def clean(router: RouterProcess) -> None:
    """The router reported no fault of its own."""
    for fault in ("task failed", "event loop", "worker killed", "worker ended"):
        assert router.lines(fault) == []


def seconds(line: Mapping[str, Any]) -> float:
    """When a line was written."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


# --- one process ---------------------------------------------------------------------------------


async def test_in_the_grace_it_is_not_ready_and_serves(sim: Simulator, tmp_path: Path) -> None:
    """Load balancers are told at once, by readiness and by ``Connection: close``; whoever they still send is served."""
    async with router_process(written(tmp_path, draining(sim, grace_s=NEVER_S))) as router, session(router) as before:
        assert (await get(router, "/health/ready"))[:2] == (200, "")
        assert "realtime_router_draining 0.0" in (await get(router, "/metrics"))[2]
        router.signal(signal.SIGTERM)
        line = await router.logged("draining")
        assert (line["sessions"], line["grace_s"], line["timeout_s"], line["signal"]) == (1, NEVER_S, NEVER_S, "SIGTERM")
        status, connection, body = await get(router, "/health/ready")
        assert (status, connection, body) == (503, "close", '{"status":"draining"}')
        assert (await get(router, "/health/live"))[:2] == (200, "close")
        assert "realtime_router_draining 1.0" in (await get(router, "/metrics"))[2]
        async with session(router) as fresh:
            assert (await run_turn(fresh))[-1] == "response.done"
            assert (await run_turn(before))[-1] == "response.done"
            # A second signal waits for nothing any more.
            router.signal(signal.SIGTERM)
            assert [await ended(ws) for ws in (before, fresh)] == [(1001, ["error"])] * 2
        assert await router.end() == 0
        assert router.lines("ending at once")
        stopped = router.lines("stopped")[0]
        assert (stopped["by_themselves"], stopped["ended"]) == (0, 2)
        clean(router)


@pytest.mark.parametrize(("number", "grace_s"), [(signal.SIGTERM, 0), (signal.SIGINT, NEVER_S)])
async def test_new_sessions_are_refused_and_running_ones_end_by_themselves(
    sim: Simulator, tmp_path: Path, number: signal.Signals, grace_s: float
) -> None:
    """The address answers 503 with Retry-After; the process ends with its last session, long before its time is over."""
    async with router_process(written(tmp_path, draining(sim, grace_s=grace_s))) as router:
        async with session(router) as first, session(router) as second:
            router.signal(number)
            await router.logged("draining")
            status, headers = await refusal(router)
            assert (status, headers["Connection"]) == (503, "close")
            assert 1 <= int(headers["Retry-After"]) <= 5
            assert (await get(router, "/health/ready"))[0] == 503
            for ws in (first, second):
                assert (await run_turn(ws))[-1] == "response.done"
            await first.close()
            assert (await run_turn(second))[-1] == "response.done"
            assert router.alive
        assert await router.end() == 0
        stopped = router.lines("stopped")[0]
        assert (stopped["by_themselves"], stopped["ended"]) == (2, 0)
        assert {line["who"] for line in router.lines("session ended")} == {"client"}
        clean(router)


async def test_nothing_is_accepted_by_an_idle_process_after_its_grace(sim: Simulator, tmp_path: Path) -> None:
    """Without sessions it stays for the grace, and no longer."""
    async with router_process(written(tmp_path, draining(sim, grace_s=1))) as router:
        assert await router.end(signal.SIGTERM) == 0
        (begun,), (over,) = router.lines("draining"), router.lines("stopping")
        assert seconds(over) - seconds(begun) >= 0.99
        clean(router)


async def test_ctrl_c_without_a_session_ends_at_once(sim: Simulator, tmp_path: Path) -> None:
    """Neither the grace nor the timeout is waited for."""
    async with router_process(written(tmp_path, draining(sim, grace_s=NEVER_S))) as router:
        assert await router.end(signal.SIGINT) == 0


async def test_a_session_that_searches_is_served(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """Its upstream answers after the signal, and new sessions are refused already: it has begun before."""
    slow = await simulator(faults=["slow_first_event=1"])
    async with router_process(written(tmp_path, draining(slow))) as router:
        waiting = asyncio.create_task(_one_turn(router))
        await slow.stats.wait_until(lambda stats: len(stats.requests) == 1)
        router.signal(signal.SIGTERM)
        await router.logged("draining")
        assert (await refusal(router))[0] == 503
        assert await waiting == "response.done"
        assert await router.end() == 0
        assert [line["status"] for line in router.lines("session ended")] == [101]
        clean(router)


async def _one_turn(router: RouterProcess) -> str:
    async with session(router) as ws:
        return (await run_turn(ws))[-1]


async def test_a_session_that_still_searches_at_the_end_is_refused(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """When the time is over it is told so, by a status and not by a reset."""
    hanging = await simulator(faults=["hang_before_101"])
    config = draining(hanging, timeout_s=0.2)
    config["router_settings"]["total_timeout_s"] = NEVER_S
    config["model_list"][0]["litellm_params"]["connect_timeout_s"] = 60
    async with router_process(written(tmp_path, config)) as router:
        waiting = asyncio.create_task(refusal(router))
        await hanging.stats.wait_until(lambda stats: len(stats.requests) == 1)
        router.signal(signal.SIGTERM)
        status, headers = await waiting
        assert (status, int(headers["Retry-After"])) == (503, 1)
        assert await router.end() == 0
        clean(router)


async def test_what_runs_when_the_time_is_over_is_ended(sim: Simulator, tmp_path: Path) -> None:
    """By an ``error`` event and the configured code; the provider is told as well."""
    async with router_process(written(tmp_path, draining(sim, timeout_s=0.5, code=1012))) as router, session(router) as ws:
        router.signal(signal.SIGTERM)
        assert (await run_turn(ws))[-1] == "response.done"
        assert await ended(ws) == (1012, ["error"])
        assert await router.end() == 0
        (record,) = router.lines("session ended")
        assert (record["who"], record["cause"], record["client_code"], record["phase"]) == ("router", "shutdown", 1012, "idle")
        clean(router)
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    assert sim.stats.close_codes == {1001: 1}


async def test_an_answer_that_is_under_way_is_heard_to_its_end(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """Its session is ended right behind ``response.done``; an idle one does not wait for that."""
    sim = await simulator(pace=3.0, reply="Three words, please.")
    async with router_process(written(tmp_path, draining(sim, timeout_s=0))) as router:
        async with session(router) as idle, session(router) as speaking:
            answer = await _begin_answer(speaking)
            router.signal(signal.SIGTERM)
            assert await ended(idle) == (1001, ["error"])
            code, types = await ended(speaking)
            assert (code, types[-1]) == (1001, "error")
            assert "response.done" in [*answer, *types]
        assert await router.end() == 0
        assert [record["phase"] for record in router.lines("session ended")] == ["idle", "idle"]
        clean(router)


async def _begin_answer(ws: ClientConnection) -> list[str]:
    """Ask for an answer, and return when it has begun."""
    await ws.send('{"type":"response.create"}')
    types: list[str] = []
    while "response.created" not in types:
        types.append(await next_type(ws))
    return types


@pytest.mark.parametrize("hurry", [False, True])
async def test_an_answer_that_never_ends_is_not_waited_for(simulator: SimulatorFactory, tmp_path: Path, hurry: bool) -> None:
    """A quiet moment that does not come ends the process all the same; a second signal spares that wait, too."""
    sim = await simulator(faults=["stall=1"])
    async with router_process(written(tmp_path, draining(sim, timeout_s=0))) as router, session(router) as ws:
        await _begin_answer(ws)
        router.signal(signal.SIGTERM)
        begun = await router.logged("stopping")
        if hurry:
            router.signal(signal.SIGTERM)
        code, types = await ended(ws)
        assert (code, types[-1]) == (1001, "error")
        assert await router.end() == 0
        (record,) = router.lines("session ended")
        assert (record["who"], record["cause"], record["phase"]) == ("router", "shutdown", "turn")
        # Between them lies the wait for a quiet moment, or not.
        waited_s = seconds(record) - seconds(begun)
        assert waited_s < 2.9 if hurry else waited_s >= 2.9
        clean(router)


async def test_a_kept_connection_is_told_to_go(sim: Simulator, tmp_path: Path) -> None:
    """A load balancer's idle connection stays open until its next request, whose answer says that it was the last one."""
    async with router_process(written(tmp_path, draining(sim))) as router, session(router):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(router.http.rpartition(":")[2]))
        ask = b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        async with asyncio.timeout(PATIENCE_S):
            writer.write(ask)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and b"Connection: close" not in head
            await reader.readexactly(len('{"status":"ok"}'))
            router.signal(signal.SIGTERM)
            await router.logged("draining")
            writer.write(ask)
            rest = await reader.read()
        assert rest.startswith(b"HTTP/1.1 503") and b"Connection: close" in rest and rest.endswith(b'{"status":"draining"}')
        writer.close()


# --- several processes ---------------------------------------------------------------------------


async def _pids(router: RouterProcess) -> list[int]:
    return list((await router.logged("listening"))["workers"])


async def _a_session_of_each(router: RouterProcess, stack: AsyncExitStack) -> dict[int, ClientConnection]:
    """Open sessions until both workers have one (that one gets none of 40 happens once in 2^39 runs); the others end."""
    found: dict[int, ClientConnection] = {}
    for count in range(1, 41):
        async with AsyncExitStack() as own:
            ws = await own.enter_async_context(session(router))
            number = (await router.logged("session ready", count))["worker"]
            if number not in found:
                found[number] = ws
                stack.push_async_exit(own.pop_all())
        if len(found) == 2:
            return found
    raise AssertionError(f"40 sessions, all of them by worker {next(iter(found))}")


WORKERS: dict[str, Any] = {"workers": 2, "log_level": "debug"}


@linux_only
async def test_all_workers_drain_as_one(sim: Simulator, tmp_path: Path) -> None:
    """The signal reaches every process, as a supervisor sends it; none is ready, none takes a session, all wait for the last."""
    async with router_process(written(tmp_path, draining(sim, **WORKERS))) as router, AsyncExitStack() as stack:
        held = await _a_session_of_each(router, stack)
        for pid in (router.pid, *await _pids(router)):
            os.kill(pid, signal.SIGTERM)
        line = await router.logged("draining")
        assert (line["workers"], line["signal"]) == (2, "SIGTERM")
        # The workers obey the parent's clock, within a moment.
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if {await _status(router) for _ in range(8)} == {503}:
                    break
                await asyncio.sleep(0.02)
        assert {(await refusal(router))[0] for _ in range(8)} == {503}
        assert "realtime_router_draining 1.0" in (await get(router, "/metrics"))[2]
        for ws in held.values():
            assert (await run_turn(ws))[-1] == "response.done"
        await held[0].close()
        assert (await run_turn(held[1]))[-1] == "response.done"
        assert {(await refusal(router))[0] for _ in range(8)} == {503}
        await held[1].close()
        assert await router.end() == 0
        stopped = next(line for line in router.lines("stopped") if "worker" not in line)
        assert (stopped["by_themselves"], stopped["ended"]) == (2, 0)
        clean(router)


async def _status(router: RouterProcess) -> int:
    return (await get(router, "/health/ready"))[0]


@linux_only
async def test_a_worker_that_dies_in_the_grace_is_replaced_and_drains_too(sim: Simulator, tmp_path: Path) -> None:
    """Load balancers still send sessions; the replacement is as little ready as the one that died."""
    async with router_process(written(tmp_path, draining(sim, grace_s=NEVER_S, **WORKERS))) as router:
        router.signal(signal.SIGTERM)
        await router.logged("draining")
        os.kill((await _pids(router))[0], signal.SIGKILL)
        await router.logged("worker replaced")
        assert {await _status(router) for _ in range(12)} == {503}
        async with AsyncExitStack() as stack:
            held = await _a_session_of_each(router, stack)
            router.signal(signal.SIGINT)
            assert await asyncio.gather(*map(ended, held.values())) == [(1001, ["error"])] * 2
        assert await router.end() == 0


@linux_only
async def test_a_worker_that_dies_after_the_grace_is_not_replaced(sim: Simulator, tmp_path: Path) -> None:
    """The others answer its share of those who come; its death keeps the end from nobody."""
    async with router_process(written(tmp_path, draining(sim, **WORKERS))) as router, AsyncExitStack() as stack:
        held = await _a_session_of_each(router, stack)
        router.signal(signal.SIGTERM)
        await router.logged("draining")
        os.kill((await _pids(router))[0], signal.SIGKILL)
        await router.logged("worker ended")
        assert {(await refusal(router))[0] for _ in range(16)} == {503}
        assert (await run_turn(held[1]))[-1] == "response.done"
        await held[1].close()
        assert await router.end() == 0
        assert not router.lines("worker replaced")


@linux_only
async def test_a_second_signal_ends_all_workers_at_once(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """Also one that waits for a quiet moment."""
    sim = await simulator(faults=["stall=1"])
    async with router_process(written(tmp_path, draining(sim, timeout_s=0, **WORKERS))) as router, session(router) as ws:
        await _begin_answer(ws)
        router.signal(signal.SIGTERM)
        begun = await router.logged("stopping")
        router.signal(signal.SIGTERM)
        code, types = await ended(ws)
        assert (code, types[-1]) == (1001, "error")
        assert await router.end() == 0
        assert seconds(router.lines("session ended")[0]) - seconds(begun) < 2.9
        clean(router)
