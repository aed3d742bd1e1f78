"""Milliseconds of a round trip through the router beside sessions that flood it.

Up to twenty sessions have an upstream, or a client, that never stops sending; the other end never reads, reads 64 KiB every
50 ms, or reads all. Beside them one session makes round trips of 1.3 KB of audio and its echo, in turn with a connection that
bypasses the router: p50, p99 and worst of both. The worst through the router may be 50 ms above the worst of the control, however
many sessions flood. The router is a process, the flooding peers are another one, and the round trips are made by a third.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from router.process import run
from tests.helpers.processes import router_process, written
from tests.helpers.raw import TEXT, RawPeer, encode, raw_client, raw_upstream
from tests.helpers.running import config_of, deployment_of

SESSIONS = 20
# Of the floods that cost most: they share what there is, and do not each get as much.
NUMBERS = (1, 5, 20)
# Of each row, and how long it may take.
ROUND_TRIPS, ROW_S = 500, 10.0
PAUSE_S = 0.005
# Readers that stall, and do not answer pings, are to stay.
PATIENT = {"stall_timeout_s": 600, "ping_interval_s": 300, "ping_timeout_s": 600}
LIMIT_MS = 50.0
MESSAGE = b'{"type":"input_audio_buffer.append","audio":"' + b"A" * 1300 + b'"}'
FLOODS = {
    "audio deltas": b'{"type":"response.output_audio.delta","delta":"' + b"A" * 6_500 + b'"}',
    "empty messages": b"",
    "responses of 400 KB": b'{"type":"response.done","response":{"x":"' + b"x" * 400_000 + b'"}}',
}
TINY, FROM_CLIENTS = "empty messages", "empty messages of clients"
READ_BYTES, READ_EVERY_S = 64 * 1024, 0.05
# Longest wait for anything; only a fault reaches it.
PATIENCE_S = 30.0


# --- the peers that flood, in a process of their own ----------------------------------------------


async def pour(sender: RawPeer, flood: bytes) -> None:
    """Never stop sending."""
    frame = encode(TEXT, flood, masked=sender.masks)
    frame *= max(1, 50_000 // len(frame))
    with contextlib.suppress(ConnectionError):
        while True:
            await sender.send(frame)


async def sip(reader: RawPeer, every_s: float) -> None:
    """Read a little now and then, or all that comes."""
    with contextlib.suppress(ConnectionError):
        while await reader.reader.read(READ_BYTES):  # noqa: ASYNC110 (slowness is what it is for)
            await asyncio.sleep(every_s)


async def flood_others(flood: str, reads: str, sessions: str) -> int:
    """Tell the upstream's port, learn the router's, open the sessions, flood them until the standard input ends."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    async with raw_upstream(receive_buffer=16 * 1024) as server:
        print(server.port, flush=True)
        port = int(await loop.run_in_executor(None, sys.stdin.readline))
        clients = []
        for _ in range(int(sessions)):
            client = await raw_client(port, model="flood", receive_buffer=16 * 1024)
            clients.append(client)
            sender, reader = await server.accept(), client
            if flood == FROM_CLIENTS:
                sender, reader = reader, sender
            tasks.append(asyncio.create_task(pour(sender, FLOODS.get(flood, b""))))
            if reads != "never":
                tasks.append(asyncio.create_task(sip(reader, READ_EVERY_S if reads == "slowly" else 0)))
        print("flooding", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for peer in (*server.peers, *clients):
            peer.abandon()
    return 0


@asynccontextmanager
async def flooder(flood: str, reads: str, sessions: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, until the block ends."""
    program = "import sys; from benchmarks.bench_backpressure import main; main(sys.argv[1:])"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, flood, reads, str(sessions)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    try:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0, "the flooding peers failed"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


# --- the round trips ------------------------------------------------------------------------------


async def echo(upstream: RawPeer) -> None:
    """Send back what comes."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        while True:
            await upstream.text(await upstream.message())


async def trip_ms(client: RawPeer) -> float:
    """Send a message and receive it again."""
    started = time.perf_counter()
    await client.text(MESSAGE)
    assert await client.message() == MESSAGE
    return (time.perf_counter() - started) * 1000


async def trips_ms(control: RawPeer, routed: RawPeer) -> tuple[list[float], list[float]]:
    """Make round trips on both connections in turn; return their times, sorted."""
    times: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for number in range(ROUND_TRIPS):
        if time.perf_counter() - started > ROW_S:
            break
        # Each is the first one as often as the other.
        for which in (0, 1) if number % 2 else (1, 0):
            times[which].append(await trip_ms((control, routed)[which]))
        await asyncio.sleep(PAUSE_S)
    return sorted(times[0]), sorted(times[1])


async def measure(flood: str | None, reads: str, sessions: int) -> tuple[list[float], list[float], int]:
    """Return the times of the control and of the session through the router, and how many sessions ended meanwhile."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = await stack.enter_async_context(raw_upstream(greeting=b""))
        entries = [deployment_of(server.api_base, id="echo", ready="handshake")]
        process = None
        if flood is not None:
            process = await stack.enter_async_context(flooder(flood, reads, sessions))
            port = int(await line_of(process))
            entries.append(deployment_of(f"http://127.0.0.1:{port}/v1", id="flood", model="flood"))
        router = await stack.enter_async_context(router_process(written(folder, config_of(*entries, router=PATIENT))))
        router_port = int(router.http.rpartition(":")[2])
        if process is not None:
            assert process.stdin is not None
            process.stdin.write(f"{router_port}\n".encode())
            assert await line_of(process) == "flooding"
        # Opened while it floods already.
        peers = []
        for at in (server.port, router_port):
            peers.append(await raw_client(at))
            peers.append(await server.accept())
        echoes = [asyncio.create_task(echo(upstream)) for upstream in peers[1::2]]
        try:
            control, routed = await trips_ms(peers[0], peers[2])
            return control, routed, len([one for one in router.lines("session ended") if one["group"] == "flood"])
        finally:
            for peer in peers:
                peer.abandon()
            await asyncio.wait(echoes)
            if process is not None and process.stdin is not None:
                # They end before the router does.
                process.stdin.close()
                await process.wait()


async def line_of(process: asyncio.subprocess.Process) -> str:
    """What the flooding peers say next."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        return (await process.stdout.readline()).decode().strip()


def row(title: str, times: Sequence[float]) -> str:
    """p50, p99 and worst."""
    return f"{title}{times[len(times) // 2]:9.2f}{times[int(len(times) * 0.99)]:9.2f}{times[-1]:9.2f}"


async def table() -> int:
    """Print all rows; return a process's exit status."""
    print(f"{'milliseconds':60}{'control':>9}{'':18}{'router':>9}")
    print(f"{'beside':60}" + 2 * f"{'p50':>9}{'p99':>9}{'worst':>9}")
    within = True
    cases: list[tuple[str | None, str, int]] = [(None, "", 0)]
    cases += [(flood, reads, SESSIONS) for reads in ("never", "slowly") for flood in FLOODS]
    cases += [(flood, "at once", number) for flood in (TINY, FROM_CLIENTS) for number in NUMBERS]
    for flood, reads, sessions in cases:
        control, routed, ended = await measure(flood, reads, sessions)
        ok = routed[-1] - control[-1] <= LIMIT_MS and not ended
        within &= ok
        title = "nothing else" if flood is None else f"sessions with {flood}, read {reads}: {sessions}"
        remark = ("" if ok else "  beyond") + (f", {ended} ended" if ended else "")
        print(row(f"{title:60}", control) + row("", routed) + remark, flush=True)
    return 0 if within else 1


def main(arguments: Sequence[str] = ()) -> None:
    """Measure, on the event loop that the router uses; with arguments: be the peers that flood."""
    raise SystemExit(run((lambda: flood_others(*arguments)) if arguments else table))


if __name__ == "__main__":
    main()
