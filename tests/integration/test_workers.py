"""Several processes on one address: they serve together, die alone, count as one, and end together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.parts import require
from tests.helpers.ports import free_port
from tests.helpers.processes import PATIENCE_S, RouterProcess, router_process, run, written
from tests.helpers.redis_servers import redis_server
from tests.helpers.running import MODEL, config_of, deployment_of, next_type, run_turn

WORKERS = {"workers": 2}
# What only a worker tells, and only when asked for: which session it took.
DEBUG = {**WORKERS, "log_level": "debug"}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux spreads connections over SO_REUSEPORT")


@pytest.fixture
async def sim(simulator: SimulatorFactory) -> Simulator:
    """A provider."""
    return await simulator()


@asynccontextmanager
async def session(router: RouterProcess) -> AsyncIterator[ClientConnection]:
    """A session that has got its first event."""
    async with asyncio.timeout(PATIENCE_S), connect(router.url(MODEL), proxy=None, compression=None) as ws:
        assert await next_type(ws) == "session.created"
        yield ws


async def open_session(router: RouterProcess, stack: AsyncExitStack) -> ClientConnection:
    """Open a session that lives as long as ``stack``."""
    return await stack.enter_async_context(session(router))


async def worker_of(router: RouterProcess, ws: ClientConnection) -> int:
    """Which worker serves a session, by the log."""
    assert ws.response is not None
    mine = ws.response.headers["x-router-session"]
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for line in router.lines("session ready"):
                if line["session"] == mine:
                    return int(line["worker"])
            await asyncio.sleep(0.01)


async def a_session_of_each(router: RouterProcess, stack: AsyncExitStack) -> dict[int, ClientConnection]:
    """Open sessions until each worker has one, and return one of each. All of them stay."""
    found: dict[int, ClientConnection] = {}
    # That one of two workers gets none of so many happens once in 2^39 runs.
    for _ in range(40):
        ws = await open_session(router, stack)
        found.setdefault(await worker_of(router, ws), ws)
        if len(found) == 2:
            return found
    raise AssertionError(f"40 sessions, all of them by worker {next(iter(found))}")


async def pids(router: RouterProcess) -> list[int]:
    """The workers' process ids at the start, by their numbers."""
    return list((await router.logged("listening"))["workers"])


async def get(router: RouterProcess, path: str, *, base: str | None = None, **headers: str) -> tuple[int, bytes]:
    """Make a request of its own connection."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        async with client.get((base or router.http) + path, headers=headers) as response:
            return response.status, await response.read()


async def metrics(router: RouterProcess) -> dict[str, float]:
    """Name → sum over its labels."""
    status, body = await get(router, "/metrics")
    assert status == 200
    sums: defaultdict[str, float] = defaultdict(float)
    for family in parse_text(body.decode()):
        for sample in family.samples:
            sums[sample.name] += sample.value
    return {name.removeprefix("realtime_router_"): value for name, value in sums.items()}


async def metrics_when(router: RouterProcess, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Scrape until a condition holds; return that page."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            page = await metrics(router)
            if condition(page):
                return page
            await asyncio.sleep(0.02)


async def close_code(ws: ClientConnection) -> tuple[int, list[str]]:
    """Read to the end; return the close code and the types of what came before it."""
    types: list[str] = []
    try:
        while True:
            types.append(await next_type(ws))
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else 1006, types


async def test_connections_are_spread_over_all_workers(sim: Simulator, tmp_path: Path) -> None:
    """Of 400 sessions each of two workers serves between 160 and 240 (4 sigma of a fair coin), and all are in the counts."""
    opened = 400
    async with router_process(written(tmp_path, config_of(sim, general=WORKERS))) as router:
        room = asyncio.Semaphore(16)

        async def one() -> None:
            async with room, session(router):
                pass

        await asyncio.gather(*(one() for _ in range(opened)))
        await router.logged("session ended", opened)
        by_worker = Counter(line["worker"] for line in router.lines("session ended"))
        assert set(by_worker) == {0, 1}
        assert all(160 <= count <= 240 for count in by_worker.values()), by_worker
        page = await metrics_when(router, lambda page: page["sessions_active"] == 0)
        assert page["sessions_started_total"] == page["sessions_ended_total"] == page["session_seconds_count"] == opened
        assert page["workers"] == 2
        assert page["worker_restarts_total"] == 0
        assert await router.end(signal.SIGTERM) == 0
    assert not [line for line in router.lines() if line["level"] in ("warning", "error")]
    assert router.out.decode().count("\n") == 1


async def test_a_killed_worker_costs_its_own_sessions_only(sim: Simulator, tmp_path: Path) -> None:
    """It is replaced; the other's sessions go on; who connects meanwhile is served and not reset; no count ever falls."""
    async with router_process(written(tmp_path, config_of(sim, general=DEBUG))) as router, AsyncExitStack() as stack:
        held = await a_session_of_each(router, stack)
        victim = (await pids(router))[0]
        before = await metrics_when(router, lambda page: page["sessions_active"] == sim.stats.active)
        mine = [line["session"] for line in router.lines("session ready") if line["worker"] == 0]
        os.kill(victim, signal.SIGKILL)
        # These are made while nobody accepts on half of the sockets.
        during = await asyncio.gather(*(open_session(router, stack) for _ in range(30)))
        death = await router.logged("worker ended")
        replaced = await router.logged("worker replaced")
        assert (death["worker"], death["pid"], death["signal"], death["level"]) == (0, victim, "SIGKILL", "error")
        assert (replaced["worker"], replaced["pid"] != victim) == (0, True)
        assert (await close_code(held[0]))[0] == 1006
        assert (await run_turn(held[1]))[-1] == "response.done"
        for ws in during:
            assert (await run_turn(ws))[-1] == "response.done"
        assert {await worker_of(router, ws) for ws in during} == {0, 1}
        after = await metrics_when(router, lambda page: page["workers"] == 2)
        assert {name: value for name, value in before.items() if _counted(name) and after[name] < value} == {}
        assert after["sessions_started_total"] == before["sessions_started_total"] + len(during)
        assert after["sessions_active"] == before["sessions_active"] + len(during) - len(mine)
        assert after["worker_restarts_total"] == 1
        status, body = await get(router, "/admin/deployments")
        assert status == 200
        assert replaced["pid"] in {worker["pid"] for worker in _json(body)["workers"]}


def _counted(name: str) -> bool:
    return name.endswith(("_total", "_count", "_sum", "_bucket"))


def _json(body: bytes) -> Any:
    return orjson.loads(body)


async def test_the_view_of_operators_is_of_all(sim: Simulator, tmp_path: Path) -> None:
    """Sessions are sums, and what each worker sees stands beside them, whichever worker is asked."""
    config = config_of(sim, general={**DEBUG, "ops_listen": "127.0.0.1:0"})
    async with router_process(written(tmp_path, config)) as router, AsyncExitStack() as stack:
        await a_session_of_each(router, stack)
        base = (await router.logged("listening"))["operations"]
        counts = Counter(line["worker"] for line in router.lines("session ready"))
        for _ in range(4):
            status, body = await get(router, "/admin/deployments", base=base)
            assert status == 200
            (deployment,) = _json(body)["groups"][0]["deployments"]
            assert deployment["sessions"] == counts.total()
            assert deployment["state"] == "admitting"
            assert {one["worker"]: one["sessions"] for one in deployment["workers"]} == dict(counts)
            assert [one["pid"] for one in deployment["workers"]] == await pids(router)
        # The operators' address serves nothing else, and the clients' nothing of theirs.
        assert (await get(router, "/metrics"))[0] == 404
        assert (await get(router, "/metrics", base=base))[0] == 200


async def test_both_formats_under_many_scrapes_at_once(sim: Simulator, tmp_path: Path) -> None:
    """A flood of scrapes is answered in full, in either format, as each format's own parser says."""
    async with router_process(written(tmp_path, config_of(sim, general=WORKERS))) as router:
        async with session(router) as ws:
            await run_turn(ws)
        await router.logged("session ended")
        accept = "application/openmetrics-text;version=1.0.0"
        answers = await asyncio.gather(
            *(get(router, "/metrics") for _ in range(20)), *(get(router, "/metrics", Accept=accept) for _ in range(20))
        )
        assert {status for status, _ in answers} == {200}
        text = {family.name for family in parse_text(answers[0][1].decode())}
        openmetrics = {family.name for family in parse_openmetrics(answers[-1][1].decode())}
        assert "realtime_router_sessions_active" in text
        # The two name infos differently.
        assert openmetrics - text == {"realtime_router_build", "realtime_router_deployment"}
        assert answers[-1][1].endswith(b"# EOF\n") and answers[-1][1].count(b"# EOF") == 1


async def test_a_worker_that_hangs_is_left_out(sim: Simulator, tmp_path: Path) -> None:
    """A stopped worker keeps nobody waiting for long: its counts stay as last heard, its gauges go; later it is back."""
    async with router_process(written(tmp_path, config_of(sim, general=DEBUG))) as router, AsyncExitStack() as stack:
        await a_session_of_each(router, stack)
        before = await metrics_when(router, lambda page: page["sessions_active"] == sim.stats.active)
        hung = (await pids(router))[1]
        os.kill(hung, signal.SIGSTOP)
        try:
            # Only a connection that the other worker takes is answered now; the kernel gives each of these half of the time.
            pages = await _answers(router, "/metrics", 3)
            views = await _answers(router, "/admin/deployments", 1)
        finally:
            os.kill(hung, signal.SIGCONT)
        for body in pages:
            page = {sample.name: sample.value for family in parse_text(body.decode()) for sample in family.samples}
            assert page["realtime_router_workers"] == 1
            assert page["realtime_router_sessions_started_total"] == before["sessions_started_total"]
        assert [worker["answered"] for worker in _json(views[0])["workers"]] == [True, False]
        after = await metrics_when(router, lambda page: page["workers"] == 2)
        assert after["sessions_active"] == before["sessions_active"]
        assert not router.lines("worker ended")


async def _answers(router: RouterProcess, path: str, count: int) -> list[bytes]:
    """Make requests until so many are answered; those that a stopped worker got are given up when the others have come."""
    found: list[bytes] = []
    requests = [asyncio.create_task(get(router, path)) for _ in range(count + 16)]
    try:
        for done in asyncio.as_completed(requests):
            status, body = await done
            assert status == 200
            found.append(body)
            if len(found) == count:
                return found
    finally:
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
    raise AssertionError(f"found {len(found)} answers, expected {count}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_all_politely(sim: Simulator, tmp_path: Path, number: signal.Signals) -> None:
    """Every session of every worker gets an ``error`` event and 1001; the exit code is 0 and nobody is left."""
    async with router_process(written(tmp_path, config_of(sim, general=DEBUG))) as router, AsyncExitStack() as stack:
        await a_session_of_each(router, stack)
        more = [await open_session(router, stack) for _ in range(4)]
        router.signal(number)
        router.signal(number)
        for code, types in await asyncio.gather(*(close_code(ws) for ws in more)):
            assert (code, types) == (1001, ["error"])
        assert await router.end() == 0
        assert {line.get("worker") for line in router.lines("stopped")} == {0, 1, None}
        assert not router.lines("worker ended") and not router.lines("worker killed")
        for pid in await pids(router):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


async def test_a_worker_that_is_asked_to_end_is_replaced(sim: Simulator, tmp_path: Path) -> None:
    """SIGTERM to a worker ends its sessions politely; what it counted until the end stays, the other's sessions too."""
    async with router_process(written(tmp_path, config_of(sim, general=DEBUG))) as router, AsyncExitStack() as stack:
        held = await a_session_of_each(router, stack)
        opened = len(router.lines("session ready"))
        os.kill((await pids(router))[1], signal.SIGTERM)
        assert await close_code(held[1]) == (1001, ["error"])
        assert (await router.logged("worker ended"))["code"] == 0
        await router.logged("worker replaced")
        assert (await run_turn(held[0]))[-1] == "response.done"
        page = await metrics_when(router, lambda page: page["workers"] == 2)
        # Nobody had scraped before: these are its last words.
        assert page["sessions_started_total"] == opened
        assert page["sessions_ended_total"] == sum(line["worker"] == 1 for line in router.lines("session ready"))


async def test_sessions_outlive_the_parent(sim: Simulator, tmp_path: Path) -> None:
    """Without their parent the workers stop listening, so that a new router can; their sessions run to their ends."""
    path = written(tmp_path, config_of(sim, general=DEBUG))
    port = free_port()
    at = ("--port", str(port))
    async with router_process(path, command=at) as router, AsyncExitStack() as stack:
        held = await a_session_of_each(router, stack)
        os.kill(router.pid, signal.SIGKILL)
        await router.logged("parent process is gone", 2)
        await _nobody_listens(port)
        async with router_process(path, command=at) as second:
            for ws in held.values():
                assert (await run_turn(ws))[-1] == "response.done"
            async with session(second) as fresh:
                assert (await run_turn(fresh))[-1] == "response.done"
            assert not router.lines("stopped")
            await stack.aclose()
            await router.logged("stopped", 2)
            # Standard error ends when the last of those that hold it has ended.
            assert await router.end() == -signal.SIGKILL
            assert not router.lines("task failed") and not router.lines("event loop")
            assert await second.end(signal.SIGTERM) == 0


async def _nobody_listens(port: int) -> None:
    """Return once connections are refused; one that was waiting to be accepted as its socket closed is reset instead."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            await asyncio.sleep(0.01)


async def test_an_orphan_obeys_signals(sim: Simulator, tmp_path: Path) -> None:
    """A worker without its parent can still be asked to end, and does so politely."""
    async with router_process(written(tmp_path, config_of(sim, general=DEBUG))) as router, AsyncExitStack() as stack:
        held = await a_session_of_each(router, stack)
        os.kill(router.pid, signal.SIGKILL)
        await router.logged("parent process is gone", 2)
        for pid in await pids(router):
            os.kill(pid, signal.SIGTERM)
        for ws in held.values():
            assert await close_code(ws) == (1001, ["error"])
        assert await router.end() == -signal.SIGKILL
        assert len(router.lines("stopped")) == 2


async def test_sighup_is_one_reload_and_never_fatal(sim: Simulator, tmp_path: Path) -> None:
    """A terminal that closes sends it to every process of the router; it is one reload, and calls go on."""
    async with router_process(written(tmp_path, config_of(sim, general=WORKERS))) as router, session(router) as ws:
        for pid in await pids(router):
            os.kill(pid, signal.SIGHUP)
        router.signal(signal.SIGHUP)
        await router.logged("configuration applied")
        assert (await run_turn(ws))[-1] == "response.done"
        assert len(router.lines("configuration applied")) == 1
        assert not router.lines("worker ended")


@pytest.mark.parametrize("shared", [False, True], ids=["taken", "taken-by-one-that-shares"])
async def test_a_taken_port(sim: Simulator, tmp_path: Path, shared: bool) -> None:
    """The same words and exit code as one process's; a port that another router's workers share is taken as well."""
    with socket.socket() as holder:
        if shared:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        answers = []
        for workers in (1, 2):
            config = written(tmp_path, config_of(sim, general={"workers": workers}))
            answers.append(await run("--config", config, "--port", str(port)))
    assert answers[0] == answers[1]
    code, out, err = answers[1]
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"cannot listen on 127\.0\.0\.1:{port}: .*in use\n", err)


async def test_a_hard_limit_holds_across_workers(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """Of many sessions at once no more than ``max_sessions`` are on a deployment, as it counts them itself.

    A worker that is killed gives its places back with its life.
    """
    # On a machine with too much to do the parent may not get to answer in the time that a session waits for it, and each worker
    # grants its part; the log says so then, and that is another test's matter.
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        if await _limit_held(simulator, folder):
            return
    raise AssertionError("the parent was not asked in five runs")


async def _limit_held(simulator: SimulatorFactory, folder: Path) -> bool:
    """Fill a deployment, kill a worker, fill it again. Returns whether the parent could be asked; if not, little is checked."""
    first, second = await simulator(name="first"), await simulator(name="second")
    limit, opened = 10, 60
    config = config_of(deployment_of(first, max_sessions=limit), deployment_of(second), general=DEBUG)
    async with router_process(written(folder, config)) as router, AsyncExitStack() as stack:
        sessions = await asyncio.gather(*(open_session(router, stack) for _ in range(opened)))
        if await _parent_was_missed(router):
            return False
        assert first.stats.peak == first.stats.active == limit
        assert second.stats.active == opened - limit
        by_worker = Counter(line["worker"] for line in router.lines("session ready") if line["deployment"] == "first")
        victim = max(by_worker, key=by_worker.__getitem__)
        os.kill((await pids(router))[victim], signal.SIGKILL)
        await router.logged("worker replaced")
        await first.stats.wait_until(lambda stats: stats.active == limit - by_worker[victim])
        for _ in range(opened):
            if first.stats.active == limit:
                break
            sessions.append(await open_session(router, stack))
        if await _parent_was_missed(router):
            return False
        assert first.stats.peak == first.stats.active == limit
        return True


async def _parent_was_missed(router: RouterProcess) -> bool:
    """Whether the log says that places could not be asked for; it does so with the next beat that is answered."""
    beats = (await metrics(router))["fleet_beats_total"]
    await metrics_when(router, partial(_has_beaten, beats + 6))
    return any(line["event"].startswith("fleet:") and line["level"] == "warning" for line in router.lines())


async def test_workers_balance_as_one(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """Without a server the parent tells each worker what the other holds: two sessions for each of six deployments."""
    simulators = [await simulator(name=f"d{number}") for number in range(6)]
    config = config_of(*simulators, general=DEBUG, router={"routing_strategy": "shared-least-connections"})
    async with router_process(written(tmp_path, config)) as router, AsyncExitStack() as stack:
        await metrics_when(router, lambda page: page["fleet_members"] == 2)
        for _ in range(12):
            await open_session(router, stack)
            # Both have heard of it when both have beaten twice.
            beats = (await metrics(router))["fleet_beats_total"]
            await metrics_when(router, partial(_has_beaten, beats + 4))
        assert [simulator.stats.active for simulator in simulators] == [2] * 6


def _has_beaten(least: float, page: dict[str, float]) -> bool:
    return page["fleet_beats_total"] >= least


async def test_workers_meet_through_a_server(sim: Simulator, tmp_path: Path) -> None:
    """With a server each worker is a member of the fleet by itself; when it is gone they go on, and nobody is replaced."""
    async with redis_server(require("valkey"), tmp_path) as server:
        config = config_of(sim, general=DEBUG, router={"redis": f"redis://127.0.0.1:{server.port}"})
        async with router_process(written(tmp_path, config)) as router, AsyncExitStack() as stack:
            await metrics_when(router, lambda page: page["fleet_members"] == 2)
            held = await a_session_of_each(router, stack)
            await server.kill()
            for ws in (*held.values(), await open_session(router, stack)):
                assert (await run_turn(ws))[-1] == "response.done"
            assert not router.lines("worker ended")
            assert await router.end(signal.SIGTERM) == 0


async def test_the_parent_is_one_thread(sim: Simulator, tmp_path: Path) -> None:
    """A fork copies the thread that forks and no other: what another one held would be held for ever in the child."""
    require("procfs")
    async with router_process(written(tmp_path, config_of(sim, general=WORKERS))) as router, session(router) as ws:
        await run_turn(ws)
        assert len(os.listdir(f"/proc/{router.pid}/task")) == 1
