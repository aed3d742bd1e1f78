"""Readers that take nothing: memory stays bounded, other sessions go on, and the stalled one ends. Both directions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.engine import Engine
from router.events import SessionRecord
from router.relay import relay as relay_module
from router.relay.leg import WRITE_BUFFER_HIGH_BYTES
from router.relay.relay import Relay
from tests.helpers.raw import SESSION_CREATED, TEXT, RawPeer, close_frame, encode, on_both_loops, raw_client, raw_upstream
from tests.helpers.running import PATIENCE_S, RunningRouter, config_of, running_router

MIB = 1024 * 1024
# One read of a loop's transport is the most that can come on top of the high mark.
LARGEST_READ = 256 * 1024
BUFFER_BOUND = WRITE_BUFFER_HIGH_BYTES + LARGEST_READ + 1024
# Small, so that the kernel's own buffers are full soon; what it takes beyond is the same for every router.
RECEIVE_BUFFER = 16 * 1024


def resident_bytes() -> int:
    """Memory of this process that is in RAM, the peers of the test included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def buffered(relay: Relay) -> int:
    """The most that waits in the write buffers of a session's legs."""
    return max(leg.transport.get_write_buffer_size() for leg in (relay._client, relay._upstream))


@asynccontextmanager
async def flooding(peer: RawPeer, frame: bytes) -> AsyncIterator[list[int]]:
    """A peer that sends as fast as it may; the list's only item is how many bytes it got rid of."""
    sent = [0]

    async def flood() -> None:
        try:
            while True:
                await peer.send(frame)
                sent[0] += len(frame)
        except ConnectionError:
            return

    task = asyncio.create_task(flood())
    try:
        yield sent
    finally:
        task.cancel()
        await asyncio.wait([task])


async def stuck(router: RunningRouter, relay: Relay, sent: list[int]) -> None:
    """Wait until a flood stands still: the reading of its leg is paused, and nothing moved for a while."""
    calm, last = 0, -1
    async with asyncio.timeout(PATIENCE_S):
        while calm < 10:
            await asyncio.sleep(0.02)
            assert buffered(relay) <= BUFFER_BOUND
            paused = relay._client.reading_paused or relay._upstream.reading_paused
            calm = calm + 1 if paused and sent[0] == last else 0
            last = sent[0]


def relay_of(engine: Engine) -> Relay:
    """The only session that runs."""
    (relay,) = engine.relays.values()
    return relay


@pytest.mark.parametrize("kind", ["one long frame", "many short frames"])
@pytest.mark.parametrize("direction", ["down", "up"])
@on_both_loops
async def test_a_reader_that_takes_nothing_stops_its_writer_and_nobody_else(direction: str, kind: str) -> None:
    """The flood is paused at the watermark, a second session runs meanwhile, and when the reader wakes up nothing is missing."""
    filler = b"x" * (300_000 if kind == "one long frame" else 40)
    text = b'{"type":"response.output_audio.delta","delta":"' + filler + b'"}'
    async with (
        raw_upstream(receive_buffer=RECEIVE_BUFFER) as server,
        running_router(config_of(server.api_base)) as router,
    ):
        client = await raw_client(router.port, receive_buffer=RECEIVE_BUFFER)
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        relay = relay_of(router.engine)
        writer, reader = (upstream, client) if direction == "down" else (client, upstream)
        frame = encode(TEXT, text, masked=writer.masks)
        before = resident_bytes()
        async with flooding(writer, frame * max(1, 50_000 // len(frame))) as sent:
            await stuck(router, relay, sent)
            assert resident_bytes() - before < 32 * MIB

            # Another session on the same router is served as if nothing were the matter.
            other_client = await raw_client(router.port)
            other_upstream = await server.accept()
            assert await other_client.message() == SESSION_CREATED
            for _ in range(20):
                await other_client.text(b"question")
                assert await other_upstream.message() == b"question"
                await other_upstream.text(b"answer")
                assert await other_client.message() == b"answer"
            other_client.abandon()
            other_upstream.abandon()

            # The way back of the stalled session is open as well.
            await reader.text(b"still here")
            assert await writer.message() == b"still here"

            stood_at = sent[0]
            while sent[0] < stood_at + 2 * MIB:
                assert await reader.message() == text
                assert buffered(relay) <= BUFFER_BOUND
        client.abandon()
        upstream.abandon()


@pytest.mark.parametrize("direction", ["down", "up"])
@on_both_loops
async def test_a_reader_that_stalls_too_long_is_cut_and_the_other_side_told(direction: str) -> None:
    """``stall_timeout_s``: the reader is cut off, its writer gets 1011 or 1001, and the record names the one that stalled."""
    async with (
        raw_upstream(receive_buffer=RECEIVE_BUFFER) as server,
        running_router(config_of(server.api_base, router={"stall_timeout_s": 0.4})) as router,
    ):
        router.engine.sweep._interval_s = 0.02
        client = await raw_client(router.port, receive_buffer=RECEIVE_BUFFER)
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        writer, reader = (upstream, client) if direction == "down" else (client, upstream)
        text = b'{"type":"response.output_audio.delta","delta":"' + b"x" * 20_000 + b'"}'
        async with flooding(writer, encode(TEXT, text, masked=writer.masks)):
            code, _ = await writer.closed()
            assert code == (1001 if direction == "down" else 1011)
        writer.abandon()
        record = await router.until(SessionRecord)
        stalled = "client" if direction == "down" else "upstream"
        assert (record.who, record.cause) == (stalled, "stalled")
        reader.abandon()


@on_both_loops
async def test_a_slow_reader_is_not_a_stalled_one() -> None:
    """A reader that takes something now and then keeps its session, though its buffer is found full again and again."""
    async with (
        raw_upstream(receive_buffer=RECEIVE_BUFFER) as server,
        running_router(config_of(server.api_base, router={"stall_timeout_s": 0.8})) as router,
    ):
        router.engine.sweep._interval_s = 0.02
        client = await raw_client(router.port, receive_buffer=RECEIVE_BUFFER, limit=4096)
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        relay = relay_of(router.engine)
        frame = encode(TEXT, b'{"type":"x.y","z":"' + b"x" * 5_000 + b'"}', masked=False)
        async with flooding(upstream, frame) as sent:
            await stuck(router, relay, sent)
            started = relay.summary().seconds
            while relay.summary().seconds < started + 1.8:
                # In steps larger than a window, so that each is seen as movement.
                await client.reader.readexactly(400_000)
                await asyncio.sleep(0.03)
            assert not router.records
            assert len(router.engine.relays) == 1
        client.abandon()
        upstream.abandon()


@on_both_loops
async def test_an_end_reaches_a_reader_that_wakes_up_in_time() -> None:
    """A CLOSE stands behind everything that was relayed before it, and a reader that still takes it gets all of that."""
    async with (
        raw_upstream() as server,
        running_router(config_of(server.api_base)) as router,
    ):
        client = await raw_client(router.port, receive_buffer=RECEIVE_BUFFER)
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        text = b'{"type":"response.output_audio.delta","delta":"' + b"x" * 200_000 + b'"}'
        # More than the kernel takes for the two connections.
        count = 50
        for _ in range(count):
            upstream.writer.write(encode(TEXT, text, masked=False))
        upstream.writer.write(close_frame(1000, "done", masked=False))
        # Nobody reads yet; then somebody does.
        await router.until_true(lambda: relay_of(router.engine)._client.writing_paused)
        for _ in range(count):
            assert await client.message() == text
        assert await client.closed() == (1000, b"done")
        await client.close(1000)
        assert await upstream.closed() == (1000, b"")
        client.abandon()
        upstream.abandon()


@on_both_loops
async def test_a_stalled_reader_does_not_delay_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """``end_all`` gives a client that takes nothing its time for a CLOSE and not more."""
    monkeypatch.setattr(relay_module, "CLOSE_TIMEOUT_S", 0.3)
    async with (
        raw_upstream(receive_buffer=RECEIVE_BUFFER) as server,
        running_router(config_of(server.api_base)) as router,
    ):
        client = await raw_client(router.port, receive_buffer=RECEIVE_BUFFER)
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        relay = relay_of(router.engine)
        async with flooding(upstream, encode(TEXT, b"x" * 20_000, masked=False)) as sent:
            await stuck(router, relay, sent)
            await router.engine.end_all(code=1001, reason="router shutting down", timeout_s=10)
        (record,) = router.records
        assert (record.who, record.cause, record.upstream_code) == ("router", "shutdown", 1001)
        client.abandon()
        upstream.abandon()
