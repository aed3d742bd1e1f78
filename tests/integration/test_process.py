"""The router as a process: what it prints, how it ends, and that signals and closed pipes do not hurt calls."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from router.events import Observers
from router.process import serve_until_signal
from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.ports import free_port
from tests.helpers.processes import PATIENCE_S, RouterProcess, environment, router_process, run, written
from tests.helpers.running import MODEL, config_of, deployment_of, load_config, run_turn

URL_LINE = re.compile(r"realtime-router listening on (ws://127\.0\.0\.1:\d+/v1/realtime)\n")


@asynccontextmanager
async def session(router: RouterProcess) -> AsyncIterator[ClientConnection]:
    """A session that has got its first event."""
    async with asyncio.timeout(PATIENCE_S), connect(router.url(MODEL), proxy=None, compression=None) as ws:
        assert json.loads(await ws.recv())["type"] == "session.created"
        yield ws


async def get(url: str) -> tuple[int, bytes]:
    """Make a request of its own connection."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as response:
        return response.status, await response.read()


async def ended(ws: ClientConnection) -> tuple[int, list[str]]:
    """Read to the end; return the close code and the types of what came before it."""
    types = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                types.append(json.loads(await ws.recv())["type"])
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else 1006, types


@pytest.fixture
async def sim(simulator: SimulatorFactory) -> Simulator:
    """A provider."""
    return await simulator()


async def test_one_line_on_stdout_and_json_on_stderr(sim: Simulator, tmp_path: Path) -> None:
    """Standard output holds one line with the URL, which accepts at once; standard error one JSON object a line."""
    async with router_process(written(tmp_path, config_of(sim))) as router:
        assert URL_LINE.fullmatch(router.out.decode())
        async with session(router) as ws:
            assert (await run_turn(ws))[-1] == "response.done"
        record = await router.logged("session ended")
        status, metrics = await get(f"{router.http}/metrics")
        assert status == 200
        assert b"realtime_router_" in metrics
        assert await router.end(signal.SIGTERM) == 0
    assert URL_LINE.fullmatch(router.out.decode())
    lines = router.lines()
    assert router.err.endswith(b"\n")
    assert all(line.keys() >= {"timestamp", "level", "event"} for line in lines)
    assert [line["event"] for line in lines if line["event"] in ("listening", "stopping", "stopped")] == [
        "listening",
        "stopping",
        "stopped",
    ]
    assert not [line for line in lines if line["level"] in ("warning", "error")]
    assert record["group"] == MODEL
    assert record["deployment"] == "d0"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_sessions_politely(sim: Simulator, tmp_path: Path, number: signal.Signals) -> None:
    """On SIGTERM and SIGINT running sessions get an ``error`` event and 1001, the provider is told too, the exit code is 0.

    "Promptly" is measured by the router's own log, between its ``stopping`` and ``stopped``: no wait for a time limit.
    """
    async with router_process(written(tmp_path, config_of(sim))) as router, session(router) as first, session(router) as second:
        router.signal(number)
        outcomes = await asyncio.gather(ended(first), ended(second))
        assert await router.end() == 0
        for code, types in outcomes:
            assert code == 1001
            assert types[-1:] == ["error"]
        stopping, stopped = router.lines("stopping")[0], router.lines("stopped")[0]
        assert stopping["sessions"] == 2
        records = router.lines("session ended")
        assert [(record["who"], record["cause"], record["client_code"]) for record in records] == [
            ("router", "shutdown", 1001)
        ] * 2
        assert _seconds(stopped) - _seconds(stopping) < 2.5
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    assert sim.stats.close_codes == {1001: 2}
    assert not router.lines("task failed") and not router.lines("event loop")


def _seconds(line: dict[str, Any]) -> float:
    from datetime import datetime

    return datetime.fromisoformat(line["timestamp"]).timestamp()


async def test_a_signal_while_clients_wait_and_one_does_not_read(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """The end waits for nobody: neither for a provider that hangs nor for a client that takes nothing."""
    hanging = await simulator(faults=["hang_before_101"])
    flooding = await simulator(dialect="echo")
    config = config_of(hanging, router={"total_timeout_s": 60})
    config["model_list"].append(
        {
            "model_name": "echo",
            "litellm_params": {"model": "openai_compatible/echo", "api_base": flooding.api_base, "ready": "handshake"},
            "model_info": {"mode": "realtime"},
        }
    )
    config["model_list"][0]["litellm_params"] |= {"connect_timeout_s": 60}
    async with router_process(written(tmp_path, config)) as router:
        waiting = asyncio.create_task(_opened(router.url(MODEL)))
        await hanging.stats.wait_until(lambda stats: len(stats.requests) == 1)
        loop = asyncio.get_running_loop()
        deaf = socket.socket()
        try:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            deaf.connect(("127.0.0.1", int(router.http.rpartition(":")[2])))
            deaf.setblocking(False)
            head = "GET /v1/realtime?model=echo HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            # Zeros as the mask: the payload travels as it is.
            frame = b"\x82\xff" + (64 * 1024).to_bytes(8, "big") + bytes(4) + bytes(64 * 1024)
            # 64 MiB to be echoed, far more than all buffers on the way hold.
            flood = asyncio.create_task(loop.sock_sendall(deaf, head.encode() + frame * 1024))
            for _ in range(int(PATIENCE_S / 0.02)):
                if flooding.stats.bytes_received >= 256 * 1024:
                    break
                await asyncio.sleep(0.02)
            assert flooding.stats.bytes_received >= 256 * 1024
            assert not flood.done()
            before = time.monotonic()
            assert await router.end(signal.SIGTERM) == 0
            # Time limits of the end are 1 s and 2 s; those of the dial and of a stalled reader 60 s and 30 s.
            assert time.monotonic() - before < 10
            flood.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await flood
        finally:
            deaf.close()
        # It is told at once, and not merely cut.
        assert await waiting == 503


async def _opened(url: str) -> int:
    """Try to open a session; return the HTTP status of the answer, 0 for none."""
    try:
        async with asyncio.timeout(PATIENCE_S), connect(url, proxy=None):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code
    except (OSError, EOFError, WebSocketException):
        return 0


async def test_nothing_new_begins_while_it_ends(sim: Simulator, tmp_path: Path) -> None:
    """Two signals are one: the second neither kills the process nor changes the exit code."""
    async with router_process(written(tmp_path, config_of(sim))) as router, session(router) as ws:
        router.signal(signal.SIGTERM)
        router.signal(signal.SIGTERM)
        router.signal(signal.SIGINT)
        code, _ = await ended(ws)
        assert code == 1001
        assert await router.end() == 0


async def test_sighup_ends_no_call(sim: Simulator, tmp_path: Path) -> None:
    """A terminal that closes, or an operator who wants a reload."""
    async with router_process(written(tmp_path, config_of(sim))) as router, session(router) as ws:
        for count in (1, 2):
            router.signal(signal.SIGHUP)
            line = await router.logged("configuration applied", count)
            assert (line["level"], line["trigger"], line["generation"]) == ("info", "signal", count + 1)
        assert (await run_turn(ws))[-1] == "response.done"
        async with session(router):
            pass
        assert router.alive


async def test_sighup_during_the_start(sim: Simulator, tmp_path: Path) -> None:
    """A SIGHUP while the configuration is still being read does not end the process.

    The file is a pipe: the process is known to be in mid-start when the pipe has a reader.
    """
    path = tmp_path / "config.yaml"
    os.mkfifo(path)
    async with router_process(path, wait=False) as router:
        # Opening to write returns when the router has opened it to read.
        writer = await asyncio.wait_for(asyncio.to_thread(os.open, path, os.O_WRONLY), PATIENCE_S)
        try:
            router.signal(signal.SIGHUP)
            os.write(writer, json.dumps(config_of(sim)).encode())
        finally:
            os.close(writer)
        await router.started()
        # A pipe cannot be read again.
        router.signal(signal.SIGHUP)
        assert "a pipe, which can be read once" in (await router.logged("configuration"))["problem"]
        async with session(router):
            pass
        assert await router.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
async def test_nobody_reads_what_it_prints(sim: Simulator, tmp_path: Path, closed: str) -> None:
    """A supervisor that closed its end of the pipe (EPIPE on every write) ends neither the router nor a call."""
    path = written(tmp_path, config_of(sim))
    port = free_port()
    reader, writer = os.pipe()
    os.close(reader)
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, closed: writer}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "--config", path, "--port", str(port)),
        env=environment(),
        stdin=subprocess.DEVNULL,
        **streams,
    )
    os.close(writer)
    try:
        url = f"ws://127.0.0.1:{port}/v1/realtime?model={MODEL}"
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert process.returncode is None
                with contextlib.suppress(OSError):
                    async with connect(url, proxy=None) as ws:
                        await ws.recv()
                        assert (await run_turn(ws))[-1] == "response.done"
                        break
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_taken_port(sim: Simulator, tmp_path: Path) -> None:
    """An address that is taken ends the start with 1 and one sentence that names it, without a traceback."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        code, out, err = await run("--config", written(tmp_path, config_of(sim)), "--port", str(port))
    assert (code, out) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port}: " in err
    assert "in use" in err
    assert "Traceback" not in err


async def test_an_address_of_another_machine(sim: Simulator, tmp_path: Path) -> None:
    """So does an address that this machine does not have, and a host name that does not exist."""
    config = written(tmp_path, config_of(sim, general={"master_key": "rr-0123456789abcdef0123"}))
    for host in ("192.0.2.1", "no-such-host.invalid"):
        code, out, err = await run("--config", config, "--host", host, "--port", "0")
        assert (code, out) == (1, "")
        assert f"cannot listen on {host}:0" in err
        assert "Traceback" not in err


async def test_host_and_port_win(sim: Simulator, tmp_path: Path) -> None:
    """``--host`` and ``--port`` win over ``general_settings.listen``; ``ops_listen`` gets an address of its own."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        config = config_of(sim, general={"listen": f"127.0.0.1:{taken}", "ops_listen": "127.0.0.1:0"})
        path = written(tmp_path, config)
        async with router_process(path, command=("--host", "::1", "--port", "0")) as router:
            assert re.fullmatch(r"realtime-router listening on ws://\[::1\]:\d+/v1/realtime\n", router.out.decode())
            async with session(router):
                pass
            status, _ = await get(f"{router.http}/metrics")
            assert status == 404


def resident_kib(pid: int) -> int:
    """Resident memory of a process."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


async def test_memory_at_the_start(tmp_path: Path) -> None:
    """With twenty deployments a router that serves takes at most 80 MiB."""
    entries = [
        deployment_of(f"http://127.0.0.1:9/{index}", id=f"d{index}", provider=("openai", "xai", "azure")[index % 3])
        for index in range(20)
    ]
    async with router_process(written(tmp_path, config_of(*entries))) as router:
        assert (await get(f"{router.http}/health/ready"))[0] == 200
        assert resident_kib(router.pid) <= 80 * 1024


async def test_the_collector_runs_while_serving(sim: Simulator) -> None:
    """The command holds the garbage collector while modules load; serving lets it go, or memory would grow for ever."""
    seen: list[bool] = []

    def started(url: str) -> str:
        seen.append(gc.isenabled())
        os.kill(os.getpid(), signal.SIGTERM)
        return url

    loop = asyncio.get_running_loop()
    gc.disable()
    try:
        code = await serve_until_signal(load_config(config_of(sim)).settings, Observers(), started=started)
    finally:
        gc.enable()
        gc.unfreeze()
        loop.set_exception_handler(None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
    assert (code, seen) == (0, [True])


async def test_the_demo(tmp_path: Path) -> None:
    """``demo`` needs no file and no key, prints a command to try, serves a turn, and ends on Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "demo", "--port", "0"),
        env=environment(),
        cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    router = RouterProcess(process)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (found := re.search(rb"--url (ws://\S+) --model (\S+)", router.out)) is None:
                assert router.alive, router.err.decode()
                await asyncio.sleep(0.02)
        url, model = (part.decode() for part in found.groups())
        code, out, err = await run("talk", "--url", url, "--model", model, "Tell me the weather in Paris.")
        assert code == 0, err
        assert "completed after" in out
        assert await router.end(signal.SIGINT) == 0
    finally:
        await router.kill()
    assert b"Traceback" not in router.err


async def test_talk_to_nobody(sim: Simulator, tmp_path: Path) -> None:
    """``talk`` says in a sentence why it got no answer: nobody listens, or the router refused."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{holder.getsockname()[1]}/v1/realtime"
        code, _, err = await run("talk", "--url", url, "--model", "voice", "Hello")
        assert code == 1
        assert "cannot connect" in err
        assert "Traceback" not in err
    async with router_process(written(tmp_path, config_of(sim, general={"master_key": "rr-0123456789abcdef0123"}))) as router:
        code, _, err = await run("talk", "--url", router.base, "--model", "voice", "Hello")
        assert code == 1
        assert "401" in err
        assert "Traceback" not in err


async def test_a_simulator_as_a_process() -> None:
    """``simulate`` prints where it is, serves, and ends with 0 on a signal; a taken port is a sentence."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "simulate", "--port", "0", "--pace", "fast"),
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    simulator = RouterProcess(process)
    try:
        await simulator.started()
        base = simulator.out.decode().split()[-1]
        url = f"ws{base.removeprefix('http')}/realtime?model=gpt-realtime"
        async with asyncio.timeout(PATIENCE_S), connect(url, proxy=None) as ws:
            await ws.recv()
            assert (await run_turn(ws))[-1] == "response.done"
        port = base.removesuffix("/v1").rpartition(":")[2]
        code, out, err = await run("simulate", "--port", port)
        assert (code, out) == (1, "")
        assert "cannot listen" in err and "Traceback" not in err
        assert await simulator.end(signal.SIGTERM) == 0
    finally:
        await simulator.kill()
