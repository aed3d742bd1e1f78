"""Routers that take each other's place while clients come and calls go on: nothing is refused, reset or ended."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import stat
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import aiohttp
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from router.handover import take_over
from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.ports import free_port
from tests.helpers.processes import PATIENCE_S, RouterProcess, environment, router_process, run, written
from tests.helpers.running import MODEL, config_of, next_type, run_turn, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux spreads connections over SO_REUSEPORT")

SESSIONS_PER_S = 50
NEVER_S = 120
KEY = "sk-router-0123456789abcdef"
# 100 ms of silence at 24 kHz, 16 bits.
FRAME = orjson.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(4800)).decode()}).decode()


@pytest.fixture
async def sim(simulator: SimulatorFactory) -> Simulator:
    """A provider."""
    return await simulator()


@contextmanager
def held_port() -> Any:
    """A port that nothing else takes meanwhile: it is bound, by a socket that does not listen and shares it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def replaceable(sim: Simulator, *, timeout_s: float = NEVER_S, **general: Any) -> dict[str, Any]:
    """A configuration with a handover; no grace of it would end within a test."""
    drain = {"grace_s": NEVER_S, "timeout_s": timeout_s}
    # A provider that is slow because the machine is has no part in this.
    patient = {"total_timeout_s": 60, "connect_timeout_s": 30, "ready_timeout_s": 30, "allowed_fails": 1000}
    return config_of(sim, router=patient, general={"handover": "handover.sock", "drain": drain, **general})


@asynccontextmanager
async def session(url: str) -> AsyncIterator[ClientConnection]:
    """A session that has got its first event."""
    async with asyncio.timeout(PATIENCE_S), connect(url, proxy=None, compression=None, open_timeout=None) as ws:
        assert await next_type(ws) == "session.created"
        yield ws


class Calls:
    """Clients of an address: short sessions at a steady rate, and long ones that send sound all the time.

    Attributes:
        failed: what went wrong, by its text; must stay empty.
        served: short sessions that were served.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.failed: Counter[str] = Counter()
        self.served = 0
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._clock: asyncio.Task[None] | None = None

    def has_served(self, count: int) -> bool:
        """Whether so many were served."""
        return self.served >= count

    async def __aenter__(self) -> Calls:
        self._clock = asyncio.create_task(self._start())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopping = True
        assert self._clock is not None
        await self._clock
        await asyncio.gather(*self._tasks)

    def hold(self) -> asyncio.Event:
        """Begin a long session; the event is set once it has begun."""
        begun = asyncio.Event()
        self._tasks.append(asyncio.create_task(self._long(begun)))
        return begun

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stopping:
            self._tasks.append(asyncio.create_task(self._short()))
            due += 1 / SESSIONS_PER_S
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _short(self) -> None:
        try:
            async with session(self.url) as ws:
                await ws.send(FRAME)
            self.served += 1
        except InvalidStatus as refused:
            self.failed[f"{refused.response.status_code}: {refused.response.body!r}"] += 1
        except (OSError, EOFError, WebSocketException, AssertionError) as error:
            self.failed[f"{type(error).__name__}: {error}"] += 1

    async def _long(self, begun: asyncio.Event) -> None:
        try:
            async with connect(self.url, proxy=None, compression=None, open_timeout=PATIENCE_S) as ws:
                assert await next_type(ws) == "session.created"
                begun.set()
                while not self._stopping:
                    await ws.send(FRAME)
                    await asyncio.sleep(0.1)
                assert (await run_turn(ws))[-1] == "response.done"
        except (OSError, EOFError, WebSocketException, AssertionError) as error:
            self.failed[f"long: {type(error).__name__}: {error}"] += 1


async def listening(router: RouterProcess) -> dict[str, Any]:
    """Wait until it accepts connections."""
    return await router.logged("listening")


@pytest.mark.parametrize("workers", [(1, 1, 1, 1), (2, 3, 2), (1, 2, 1)], ids=str)
async def test_replacements_under_load_lose_nothing(sim: Simulator, tmp_path: Path, workers: Sequence[int]) -> None:
    """50 new sessions a second while routers of so many workers follow each other; calls of each of them go on to the end."""
    async with AsyncExitStack() as stack:
        routers: list[RouterProcess] = []

        async def start(count: int) -> RouterProcess:
            config = written(tmp_path, replaceable(sim, workers=count))
            command = ("--port", routers[0].http.rpartition(":")[2]) if routers else ("--port", "0")
            router = await stack.enter_async_context(router_process(config, command=command))
            await listening(router)
            routers.append(router)
            return router

        first = await start(workers[0])
        async with Calls(first.url(MODEL)) as calls:
            for held, count in enumerate(workers[1:], start=1):
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.gather(*(calls.hold().wait() for _ in range(3)))
                    router = await start(count)
                    old = routers[-2]
                    await old.logged("handed over")
                    assert (await old.logged("draining"))["successor"] == router.pid
                    assert (await router.logged("taken over"))["predecessor"] == old.pid
                    # The new one is known to serve: the calls that come now are its own.
                    await until(partial(calls.has_served, calls.served + SESSIONS_PER_S // 2), every_s=0.02)
                assert sim.stats.active >= 3 * held
                assert all(one.alive for one in routers)
        # With what each router has logged: a failure under load may not come again.
        assert calls.failed == {}, [dict(Counter(line["event"] for line in router.lines())) for router in routers]
        assert calls.served > SESSIONS_PER_S * (len(workers) - 1) / 2
        for old in routers[:-1]:
            assert await old.end() == 0
            stopped = next(line for line in old.lines("stopped") if "worker" not in line)
            assert stopped["ended"] == 0 and stopped["by_themselves"] >= 3
        newest = routers[-1]
        assert await newest.end(SIGINT) == 0
        for router in routers:
            assert [line for line in router.lines() if line["level"] in ("error", "critical")] == []
        total = sum(len(router.lines("session ended")) for router in routers[:-1])
        assert total >= 3 * (len(workers) - 1)


async def test_a_successor_that_fails_changes_nothing(sim: Simulator, tmp_path: Path) -> None:
    """One whose other address is taken ends with a sentence; the old one serves on, is ready, and hands over to the next one."""
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(router_process(written(tmp_path, replaceable(sim))))
        port = old.http.rpartition(":")[2]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            for workers in (1, 2):
                bad = replaceable(sim, ops_listen=f"127.0.0.1:{taken.getsockname()[1]}", workers=workers)
                code, out, err = await run("--config", written(tmp_path, bad, name="bad.yaml"), "--port", port)
                assert (code, out) == (1, "")
                assert "cannot listen on" in err and "in use" in err and "Traceback" not in err
                await old.logged("successor failed", workers)
        async with session(old.url(MODEL)) as ws:
            assert (await run_turn(ws))[-1] == "response.done"
            assert not old.lines("draining")
            good = await stack.enter_async_context(
                router_process(written(tmp_path, replaceable(sim), name="good.yaml"), command=("--port", port))
            )
            await old.logged("handed over")
            assert (await run_turn(ws))[-1] == "response.done"
            async with session(good.url(MODEL)) as fresh:
                assert (await run_turn(fresh))[-1] == "response.done"
        assert await old.end() == 0
        assert _names(tmp_path) == ["bad.yaml", "config.yaml", "good.yaml", "handover.sock"]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_successor_that_is_killed_before_it_serves(sim: Simulator, tmp_path: Path, workers: int) -> None:
    """The kernel tells its predecessor, who goes on; no connection that came meanwhile is lost."""
    config = written(tmp_path, replaceable(sim, workers=workers))
    async with router_process(config) as old:
        # It has the sockets, and will not say that it accepts: a successor in the middle of its start.
        found = await asyncio.to_thread(take_over, str(tmp_path / "handover.sock"))
        assert found is not None
        given, predecessor = found
        assert len(given) == workers
        code, _, err = await run("--config", config, "--port", old.http.rpartition(":")[2])
        assert code == 1
        assert f"process {os.getpid()} is taking over already" in err and "Traceback" not in err
        for one in given:
            one.sock.close()
        predecessor.close()
        await old.logged("successor failed")
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(_turn(old.url(MODEL)) for _ in range(8)))
        assert stat.S_IMODE(os.stat(tmp_path / "handover.sock").st_mode) == 0o600


async def _turn(url: str) -> None:
    async with session(url) as ws:
        assert (await run_turn(ws))[-1] == "response.done"


async def test_whoever_has_connected_is_served_by_the_old_router(sim: Simulator, tmp_path: Path) -> None:
    """A connection that has not asked for anything yet, and one that a load balancer keeps, get their sessions."""
    config = written(tmp_path, replaceable(sim))
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(router_process(config))
        port = int(old.http.rpartition(":")[2])
        kept = await asyncio.open_connection("127.0.0.1", port)
        silent = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(PATIENCE_S):
            kept[1].write(b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await kept[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await kept[0].readexactly(len('{"status":"ok"}'))
            await stack.enter_async_context(router_process(config, command=("--port", str(port))))
            await old.logged("draining")
            ask = (
                f"GET /v1/realtime?model={MODEL} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            for reader, writer in (kept, silent):
                writer.write(ask.encode())
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
                writer.close()
            assert await old.end() == 0
        stopped = old.lines("stopped")[0]
        assert (stopped["by_themselves"], stopped["ended"]) == (2, 0)


async def test_signals_after_the_handover(sim: Simulator, tmp_path: Path) -> None:
    """A supervisor's SIGTERM to the old router is no second one; another one ends its sessions, and only them."""
    config = written(tmp_path, replaceable(sim))
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(router_process(config))
        async with session(old.url(MODEL)) as held:
            new = await stack.enter_async_context(router_process(config, command=("--port", old.http.rpartition(":")[2])))
            await old.logged("draining")
            old.signal(SIGTERM)
            assert (await run_turn(held))[-1] == "response.done"
            async with session(new.url(MODEL)) as fresh:
                old.signal(SIGTERM)
                assert await next_type(held) == "error"
                assert await old.end() == 0
                assert (await run_turn(fresh))[-1] == "response.done"


async def test_a_router_that_drains_by_a_signal_still_hands_over(sim: Simulator, tmp_path: Path) -> None:
    """Old stopped first, new started then: also in this order nobody is refused once the new one is there."""
    config = written(tmp_path, replaceable(sim, drain={"grace_s": 0, "timeout_s": NEVER_S}))
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(router_process(config))
        async with session(old.url(MODEL)) as held:
            old.signal(SIGTERM)
            await old.logged("draining")
            new = await stack.enter_async_context(router_process(config, command=("--port", old.http.rpartition(":")[2])))
            await old.logged("addresses left")
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(_turn(new.url(MODEL)) for _ in range(8)))
            assert (await run_turn(held))[-1] == "response.done"
        assert await old.end() == 0


async def test_a_crashed_router_leaves_nothing_in_the_way(sim: Simulator, tmp_path: Path) -> None:
    """Its socket's file is stale; the next one starts as if it were the first."""
    config = written(tmp_path, replaceable(sim))
    at = ("--port", str(free_port()))
    async with router_process(config, command=at) as old:
        await old.kill()
    assert (tmp_path / "handover.sock").is_socket()
    async with router_process(config, command=at) as new:
        await _turn(new.url(MODEL))
        assert not new.lines("taken over")
        async with router_process(config, command=at) as third:
            await new.logged("handed over")
            await _turn(third.url(MODEL))


async def test_the_operators_address_goes_along(sim: Simulator, tmp_path: Path) -> None:
    """Both addresses are handed over; one that the new configuration does not name any more is left, and told."""
    config = written(tmp_path, replaceable(sim, ops_listen="127.0.0.1:0"))
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(router_process(config))
        operations = (await listening(old))["operations"]
        port = old.http.rpartition(":")[2]
        new = await stack.enter_async_context(router_process(config, command=("--port", port)))
        assert (await listening(new))["operations"] == operations
        await old.end()
        assert await _get(f"{operations}/metrics") == 200
        one = written(tmp_path, replaceable(sim), name="one.yaml")
        last = await stack.enter_async_context(router_process(one, command=("--port", port)))
        left = await last.logged("inherited address left")
        assert (left["address"], left["for"]) == (operations.removeprefix("http://"), "operators")
        # Until it has gone it may be the one that accepts.
        await new.end()
        assert await _get(f"http://127.0.0.1:{port}/metrics") == 200


async def _get(url: str) -> int:
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as answer:
        return answer.status


# --- systemd's sockets ---------------------------------------------------------------------------

# What systemd does between fork and exec: the sockets are 3, 4, …, and the variables name the process.
LAUNCHER = """
import os, sys
numbers = [int(number) for number in sys.argv[1].split(",")]
high = [os.dup2(number, 200 + index) for index, number in enumerate(numbers)]
os.closerange(3, 200)
for index, number in enumerate(high):
    os.dup2(number, 3 + index)
os.closerange(200, 200 + len(high))
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "router", *sys.argv[3:]])
"""


@asynccontextmanager
async def activated(
    config: Path, sockets: Sequence[socket.socket], *, names: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[RouterProcess]:
    """Start a router as systemd does with a ``.socket`` unit."""
    numbers = [sock.fileno() for sock in sockets]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LAUNCHER, ",".join(map(str, numbers)), names, "--config", str(config)),
        env=environment(**(environ or {})),
        pass_fds=numbers,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    router = RouterProcess(process)
    try:
        yield router
    finally:
        await router.kill()


def listener(host: str = "127.0.0.1") -> socket.socket:
    """A socket that listens, as systemd's do."""
    sock = socket.socket()
    sock.bind((host, 0))
    sock.listen(128)
    return sock


@pytest.mark.parametrize("workers", [1, 2])
async def test_sockets_of_systemds(sim: Simulator, tmp_path: Path, workers: int) -> None:
    """They are taken by name; a process that is asked to end accepts at once no more, and whoever waits is the next one's."""
    with listener() as clients, listener() as operators, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.setblocking(False)
        url = f"ws://127.0.0.1:{clients.getsockname()[1]}/v1/realtime?model={MODEL}"
        operations = "{}:{}".format(*operators.getsockname())
        config = config_of(
            sim,
            general={
                "listen": f"127.0.0.1:{clients.getsockname()[1]}",
                "ops_listen": operations,
                "workers": workers,
                "drain": {"grace_s": NEVER_S, "timeout_s": NEVER_S},
            },
        )
        path = written(tmp_path, config)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            old = await stack.enter_async_context(
                activated(path, [operators, clients], names="operators:clients", environ=environ)
            )
            assert (await listening(old))["operations"] == f"http://{operations}"
            async with asyncio.timeout(PATIENCE_S):
                assert await loop.sock_recv(supervisor, 100) == b"READY=1"
            assert await _get(f"http://{operations}/metrics") == 200
            async with session(url) as held:
                old.signal(SIGTERM)
                assert (await old.logged("draining"))["grace_s"] == 0
                async with asyncio.timeout(PATIENCE_S):
                    assert await loop.sock_recv(supervisor, 100) == b"STOPPING=1"
                    # The workers have been told, and take no connection that comes from now on.
                    await until(lambda: not _accepts(old.pid, clients), every_s=0.02)
                waiting = [asyncio.create_task(_turn(url)) for _ in range(8)]
                new = await stack.enter_async_context(activated(path, [clients, operators], names="x:x"))
                assert (await listening(new))["operations"] == f"http://{operations}"
                await asyncio.gather(*waiting)
                assert (await run_turn(held))[-1] == "response.done"
                await new.logged("session ended", 8)
            assert await old.end() == 0
            for router in (old, new):
                assert [line for line in router.lines() if line["level"] in ("warning", "error")] == []


def _accepts(pid: int, sock: socket.socket) -> bool:
    """Whether a process, or a child of it, has this socket open."""
    inode = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    folders = [Path(f"/proc/{one}/fd") for one in (str(pid), *children)]
    return any(_leads(entry) == inode for folder in folders for entry in folder.iterdir())


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _leads(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except OSError:
        return ""


async def test_sockets_elsewhere_than_configured(sim: Simulator, tmp_path: Path) -> None:
    """The unit wins, and the log says that the two differ."""
    with listener() as clients, held_port() as port:
        config = written(tmp_path, config_of(sim, general={"listen": f"127.0.0.1:{port}"}))
        async with activated(config, [clients], names="realtime-router.socket") as router:
            await listening(router)
            line = router.lines("address of another place")[0]
            assert (line["found"], line["configured"]) == (f"127.0.0.1:{clients.getsockname()[1]}", f"127.0.0.1:{port}")
            await _turn(f"ws://127.0.0.1:{clients.getsockname()[1]}/v1/realtime?model={MODEL}")


@pytest.mark.parametrize("workers", [1, 2])
async def test_sockets_that_others_reach_need_a_key(sim: Simulator, tmp_path: Path, workers: int) -> None:
    """A configuration without keys is right because of its loopback address, and the unit listens everywhere."""
    config = config_of(sim, general={"workers": workers})
    with listener("0.0.0.0") as clients:
        async with activated(written(tmp_path, config), [clients], names="clients") as router:
            assert await router.end() == 1
            place = f"0.0.0.0:{clients.getsockname()[1]}"
            assert f"LISTEN_FDS: found {place} without any key, expected general_settings.master_key".encode() in router.err
            assert b"Traceback" not in router.err


@pytest.mark.parametrize("workers", [1, 2])
async def test_keys_cannot_go_while_systemd_listens_everywhere(sim: Simulator, tmp_path: Path, workers: int) -> None:
    """The file's own address is loopback; a reload knows the sockets as the start did."""
    with listener("0.0.0.0") as clients:
        place = f"127.0.0.1:{clients.getsockname()[1]}"
        general = {"listen": place, "workers": workers}
        config = written(tmp_path, config_of(sim, general={**general, "master_key": KEY}))
        async with activated(config, [clients], names="clients") as router:
            await listening(router)
            written(tmp_path, config_of(sim, general=general))
            await router.logged("configuration refused")
            problem = (await router.logged("configuration"))["problem"]
            assert "no key any more, while systemd's socket is 0.0.0.0:" in problem
            assert await _get(f"http://{place}/admin/config") == 401


async def test_what_is_no_listening_socket(sim: Simulator, tmp_path: Path) -> None:
    """A unit with the wrong kind of socket is told by a sentence."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        async with activated(written(tmp_path, config_of(sim)), [packets], names="clients") as router:
            assert await router.end() == 1
            assert b"LISTEN_FDS: descriptor 3: found a socket of AF_INET, SOCK_DGRAM" in router.err
            assert b"Traceback" not in router.err
