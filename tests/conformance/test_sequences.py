"""Random conversations through a router over real sockets: both directions at once, any segments, every kind of end.

    CONFORMANCE_SEQUENCES=1 CONFORMANCE_SEED=1234 pytest tests/conformance/test_sequences.py

runs one again. Its seed is in the message of a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from router.events import SessionRecord
from router.relay import relay as relay_module
from tests.conformance.sequences import COUNT, FIRST_SEED, Ending, Part, Sequence, Side, check, close_of, sequence_of, summary
from tests.helpers.raw import SESSION_CREATED, TEXT, RawPeer, RawUpstream, encode, on_both_loops, raw_client, raw_upstream
from tests.helpers.running import RunningRouter, config_of, deployment_of, running_router

# Conversations at once, each with an upstream of its own.
LANES = 6
# Sessions of one router; after them it must have come clean.
BATCH = 250
# For one conversation; only a fault reaches it.
PATIENCE_S = 30.0
GREETING = encode(TEXT, SESSION_CREATED, masked=False)


class Player(Part):
    """One side of a conversation, on a connection.

    Args:
        side: which.
        sequence: the conversation.
        peer: its connection.
        skip: bytes that come before the conversation.
    """

    def __init__(self, side: Side, sequence: Sequence, peer: RawPeer, *, skip: int) -> None:
        super().__init__(side, sequence)
        self.peer = peer
        self.other: Player
        self._ending: Ending = sequence.ending
        self._skip = skip
        self._all_here = asyncio.Event()  # all frames that must come have come, or nothing comes any more
        self._closed = asyncio.Event()  # a CLOSE has come, or nothing comes any more
        self._over = asyncio.Event()  # the connection has ended

    async def run(self, *, early: int) -> None:
        """Play; ``early`` pieces have been sent already."""
        self.sent = sum(len(piece) for piece in self.script.pieces[:early])
        reading = asyncio.create_task(self._read())
        try:
            await self._speak(early)
            await self._end()
            await self._over.wait()
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        if not reading.cancelled():
            reading.result()

    async def _read(self) -> None:
        try:
            if self._skip:
                await self.peer.reader.readexactly(self._skip)
            self._look()
            while data := await self.peer.reader.read(65536):
                self.got.feed(data)
                self._look()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            for event in (self._all_here, self._closed, self._over):
                event.set()

    def _look(self) -> None:
        script = self.other.script
        if len(self.got.data) >= script.arriving and len(self.got.controls) == len(script.controls):
            self._all_here.set()
        if self.got.close is not None:
            self._closed.set()

    async def _send(self, data: bytes) -> None:
        # The router may have ended the connection; what arrives on the other side tells whether it should have.
        with contextlib.suppress(ConnectionError):
            if not self.peer.writer.transport.is_closing():
                await self.peer.send(data)
                self.sent += len(data)

    async def _speak(self, early: int) -> None:
        script = self.script
        for piece, yields in zip(script.pieces[early:], script.yields[early:], strict=True):
            await self._send(piece)
            if yields:
                await asyncio.sleep(0)

    async def _end(self) -> None:
        ending = self._ending
        if ending.late:
            await self._all_here.wait()
            await self.other._all_here.wait()
        begins = self.side == ending.by
        if ending.how == "crossed" or (begins and ending.how == "close"):
            await self._send(close_of(ending.close if begins else ending.answer, masked=self.peer.masks))
            await self._closed.wait()
        elif begins and ending.how == "reset":
            self.peer.reset()
            self._over.set()
            return
        elif begins:
            await self._send(ending.partial)
            self.peer.half_close()
            return
        else:
            await self._closed.wait()
            if self.got.close is not None:
                # A lost connection is answered as any peer does, with the code that came.
                close = ending.answer if ending.how == "close" else self.got.close
                await self._send(close_of(close, masked=self.peer.masks))
        if self.side == "upstream":
            # The server ends the connection (RFC 6455 §7.1.1); between client and router that is the router.
            self.peer.hang_up()


async def converse(sequence: Sequence, router: RunningRouter, server: RawUpstream, model: str) -> tuple[Player, Player, str]:
    """Play a conversation. Returns the client, the upstream, and the session's id."""
    early = sequence.early and bool(sequence.client.pieces)
    first = sequence.client.pieces[0] if early else b""
    connection = await raw_client(router.port, model=model, early=first)
    upstream_connection = await server.accept()
    client = Player("client", sequence, connection, skip=len(server.greeting))
    upstream = Player("upstream", sequence, upstream_connection, skip=0)
    client.other, upstream.other = upstream, client
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(client.run(early=int(early)), upstream.run(early=0))
    finally:
        connection.abandon()
        upstream_connection.abandon()
    session = next(
        line.partition(b":")[2].strip() for line in connection.head.split(b"\r\n") if line.lower().startswith(b"x-router-session")
    )
    return client, upstream, session.decode()


async def record_of(session: str, router: RunningRouter) -> SessionRecord:
    """Wait for what the router says of a session."""
    return await router.until(SessionRecord, where=lambda record: record.session == session)


async def play(seeds: Iterator[int], router: RunningRouter, server: RawUpstream, model: str, counts: Counter[str]) -> None:
    """Play conversations one after the other, and check each."""
    for seed in seeds:
        sequence = sequence_of(seed)
        try:
            client, upstream, session = await converse(sequence, router, server, model)
            record = await record_of(session, router)
            check(sequence, client, upstream, record, server.greeting)
        except (AssertionError, TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
            text = f"seed {seed} ({sequence.ending.how} by {sequence.ending.by}): {type(error).__name__}: {error}"
            raise AssertionError(text) from error
        counts[sequence.ending.how] += 1
        counts["messages"] += sequence.client.complete + sequence.upstream.complete
        counts["bytes"] += len(sequence.client.wire) + len(sequence.upstream.wire)


@on_both_loops
async def test_random_sequences_arrive_identical(sequences_told: list[str]) -> None:
    """Whatever two peers say at once, it arrives frame for frame, and each learns how the other one ended."""
    on_uvloop = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    # The router runs on uvloop wherever there is one.
    count = COUNT if on_uvloop else max(1, COUNT // 10)
    counts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        # Those who end early while the other one still talks must not run into it on a busy machine.
        patch.setattr(relay_module, "CLOSE_TIMEOUT_S", PATIENCE_S)
        for first in range(FIRST_SEED, FIRST_SEED + count, BATCH):
            seeds = iter(range(first, min(first + BATCH, FIRST_SEED + count)))
            await play_batch(seeds, counts)
    sequences_told.append(summary("sockets, uvloop" if on_uvloop else "sockets, asyncio", count, counts))


async def play_batch(seeds: Iterator[int], counts: Counter[str]) -> None:
    """Play conversations on all lanes of one router."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(raw_upstream(greeting=GREETING if lane % 2 else b"")) for lane in range(LANES)]
        entries = []
        for lane, server in enumerate(servers):
            ready = "first_event" if server.greeting else "handshake"
            entries.append(deployment_of(server.api_base, id=f"lane{lane}", model=f"lane{lane}", ready=ready))
        # An upstream that is lost soon would be ejected.
        router = await stack.enter_async_context(running_router(config_of(*entries, router={"early_close_s": 0})))
        async with asyncio.TaskGroup() as group:
            for lane, server in enumerate(servers):
                group.create_task(play(seeds, router, server, f"lane{lane}", counts))
        await router.idle()
