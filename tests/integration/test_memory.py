"""Memory of a router's process while peers do their worst: it grows by a bounded amount a session, however long the messages."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router.relay.frames import COLLECT_LIMIT_BYTES, HOLD_LIMIT_BYTES
from tests.helpers.processes import RouterProcess, router_process, written
from tests.helpers.raw import (
    PATIENCE_S,
    SESSION_CREATED,
    TEXT,
    RawPeer,
    RawUpstream,
    encode,
    fragments,
    raw_client,
    raw_upstream,
)
from tests.helpers.running import config_of

MIB = 1024 * 1024
SESSIONS = 20
# What a session whose reader takes nothing may hold.
SESSION_BYTES = 2 * MIB
# What a router may need on top of an idle session while one long message passes: far less than the message.
PASSING_BYTES = 6 * MIB
LONG_MESSAGE_BYTES = 16 * MIB


def memory_bytes(router: RouterProcess, name: str = "VmRSS") -> int:
    """Memory of a router that is in RAM, or with ``VmHWM`` the most that was since ``forget_peak``."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{router.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(router: RouterProcess) -> None:
    """Let ``VmHWM`` begin anew."""
    Path(f"/proc/{router.pid}/clear_refs").write_text("5")


@asynccontextmanager
async def opened(folder: Path, count: int, **settings: Any) -> AsyncIterator[tuple[RouterProcess, list[tuple[RawPeer, RawPeer]]]]:
    """A router's process with sessions: for each the client, which has read the greeting, and the upstream."""
    async with (
        raw_upstream(receive_buffer=16 * 1024) as server,
        # Watching the file takes memory some moments after the start, which would be counted with what the test looks for.
        router_process(written(folder, config_of(server.api_base, router=settings, general={"watch": False}))) as router,
    ):
        pairs = []
        try:
            for _ in range(count):
                pairs.append(await joined(router, server))
            yield router, pairs
        finally:
            for client, upstream in pairs:
                client.abandon()
                upstream.abandon()


async def joined(router: RouterProcess, server: RawUpstream) -> tuple[RawPeer, RawPeer]:
    """Open a session. Its client takes little at once, so that the kernel's buffers are full soon."""
    client = await raw_client(int(router.http.rpartition(":")[2]), receive_buffer=16 * 1024)
    upstream = await server.accept()
    assert await client.message() == SESSION_CREATED
    return client, upstream


async def pour(peer: RawPeer, frame: bytes, sent: list[int], index: int) -> None:
    """Send a frame again and again, as fast as it is taken."""
    with contextlib.suppress(ConnectionError):
        while True:
            await peer.send(frame)
            sent[index] += len(frame)


FLOODS = {
    "audio": b'{"type":"response.output_audio.delta","delta":"' + b"A" * 8_000 + b'"}',
    "long audio": b'{"type":"response.output_audio.delta","delta":"' + b"A" * 2 * MIB + b'"}',
    # The router keeps copies of such while they pass, or holds them back, up to a limit: some below it, and one beyond.
    "collected": b'{"type":"response.done","response":{"x":"' + b"x" * (COLLECT_LIMIT_BYTES - 100) + b'"}}',
    "long collected": b'{"type":"response.done","response":{"x":"' + b"x" * 4 * MIB + b'"}}',
    "session.update": b'{"type":"session.update","session":{"instructions":"' + b"x" * (HOLD_LIMIT_BYTES - 100) + b'"}}',
    "type unknown": b'{"x":"' + b"x" * (COLLECT_LIMIT_BYTES - 100) + b'","type":"last"}',
    "empty": b"",
}


@pytest.mark.parametrize("flood", sorted(FLOODS))
@pytest.mark.parametrize("direction", ["down", "up"])
async def test_readers_that_take_nothing_cost_bounded_memory(direction: str, flood: str, tmp_path: Path) -> None:
    """Twenty senders that never stop, twenty readers that never read: what is kept of it is small and does not grow."""
    async with opened(tmp_path, SESSIONS) as (router, pairs):
        senders = [upstream if direction == "down" else client for client, upstream in pairs]
        frame = encode(TEXT, FLOODS[flood], masked=senders[0].masks)
        frame *= max(1, 50_000 // len(frame))
        before = memory_bytes(router)
        forget_peak(router)
        sent = [0] * SESSIONS
        tasks = [asyncio.create_task(pour(sender, frame, sent, index)) for index, sender in enumerate(senders)]
        try:
            await at_rest(senders, sent)
            peak = memory_bytes(router, "VmHWM")
            # It is the router that holds them back, and not for want of trying.
            assert not any(task.done() for task in tasks)
            assert peak - before <= SESSIONS * SESSION_BYTES, f"{(peak - before) / SESSIONS / MIB:.2f} MiB a session"
            # All sessions are there: the way back is open.
            for client, upstream in pairs:
                reader, sender = (client, upstream) if direction == "down" else (upstream, client)
                await reader.text(b"still here")
                assert await sender.message() == b"still here"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def at_rest(senders: list[RawPeer], sent: list[int]) -> None:
    """Wait until none of the senders gets rid of a single byte any more.

    That nothing happens is no event to wait for: it is looked at again and again, and has to hold for a while.
    """
    calm, last = 0, -1
    async with asyncio.timeout(3 * PATIENCE_S):
        while calm < 20:
            await asyncio.sleep(0.02)
            waiting = [sender.writer.transport.get_write_buffer_size() for sender in senders]
            now = sum(sent) - sum(waiting)
            calm = calm + 1 if all(waiting) and now == last else 0
            last = now


LONG = {
    "type first": b'{"type":"input_audio_buffer.append","audio":"%s"}',
    "type last": b'{"audio":"%s","type":"input_audio_buffer.append"}',
    "fragments": b'{"type":"input_audio_buffer.append","audio":"%s"}',
}


@pytest.mark.parametrize("reader", ["quick", "late"])
@pytest.mark.parametrize("spelling", sorted(LONG))
async def test_an_append_of_16_mib_is_never_held_whole(spelling: str, reader: str, tmp_path: Path) -> None:
    """One event of 16 MiB passes, be it read at once or after a while; the router's memory grows by a fraction of it."""
    text = LONG[spelling] % (b"A" * (LONG_MESSAGE_BYTES - len(LONG[spelling]) + 2))
    assert len(text) == LONG_MESSAGE_BYTES
    cuts = list(range(1_000_000, len(text), 1_000_000)) if spelling == "fragments" else []
    wire = b"".join(fragments(text, cuts, masked=True))
    async with opened(tmp_path, 1) as (router, [(client, upstream)]):
        # What the process allocates once, on its first message, is no part of it.
        await client.text(b'{"type":"input_audio_buffer.append","audio":"AAAA"}')
        await upstream.message()
        before = memory_bytes(router)
        forget_peak(router)
        sending = asyncio.create_task(client.send(wire))
        try:
            if reader == "late":
                await at_rest([client], [0])
            async with asyncio.timeout(PATIENCE_S):
                assert await upstream.message() == text
                await sending
        finally:
            sending.cancel()
            await asyncio.wait([sending])
        grown = memory_bytes(router, "VmHWM") - before
        assert grown <= PASSING_BYTES, f"{grown / MIB:.1f} MiB for a message of 16"
        await client.text(b"after it")
        assert await upstream.message() == b"after it"


@pytest.mark.parametrize("form", ["whole", "continued"])
@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_length_of_2_to_the_62_is_refused_at_once(side: str, form: str, tmp_path: Path) -> None:
    """The announced length is enough: 1009 comes before a byte of the payload, and costs no memory."""
    async with opened(tmp_path, 1) as (router, [(client, upstream)]):
        speaker, other = (client, upstream) if side == "client" else (upstream, client)
        before = memory_bytes(router)
        forget_peak(router)
        if form == "continued":
            await speaker.send(encode(TEXT, b"begun", masked=speaker.masks, fin=False))
        # The head alone, and the mask.
        head = encode(0 if form == "continued" else TEXT, b"", masked=speaker.masks, length=1 << 62)
        await speaker.send(head)
        code, reason = await speaker.closed()
        assert code == 1009
        assert (b"limit" in reason) == (side == "client")
        assert (await other.closed())[0] == (1001 if side == "client" else 1011)
        await speaker.close(1009)
        await other.close(1001)
        other.hang_up()
        record = await router.logged("session ended")
        assert (record["who"], record["cause"]) == (side, "protocol")
        assert memory_bytes(router, "VmHWM") - before < MIB
