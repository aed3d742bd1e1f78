"""The same conversations without a network: each piece is read exactly as it was cut, in any order, and readers stop at will.

What a kernel does to segments is left to ``test_sequences.py``; here one byte is one read. Nothing but the seed decides.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from router.relay.turns import TURN_S, Turns
from tests.conformance.sequences import COUNT, FIRST_SEED, Part, Sequence, Side, check, close_of, sequence_of, summary
from tests.unit.relay.fakes import Bench, FakeTransport

# A transport reads no more than this at once.
READ_BYTES = 256 * 1024
# For one conversation; only a fault reaches it.
PATIENCE_S = 20.0


class End(Part):
    """One side of a conversation, in the place of its transport.

    Args:
        side: which.
        sequence: the conversation.
        transport: towards the relay.
    """

    def __init__(self, side: Side, sequence: Sequence, transport: FakeTransport) -> None:
        super().__init__(side, sequence)
        self.transport = transport
        self.other: End
        self.pieces = [
            piece[at : at + READ_BYTES] for piece in self.script.pieces for at in range(0, len(piece), READ_BYTES)
        ]
        self.ended = False

    def receive(self, data: bytes) -> None:
        """The relay reads something from this side."""
        self.sent += len(data)
        self.transport.leg.data_received(data)

    def look(self) -> None:
        """See what the relay wrote to this side."""
        if data := self.transport.take():
            self.got.feed(data)


async def readable(end: End) -> None:
    """Wait until a side is read; one that is not read because the other one takes nothing waits until that takes again."""
    while not end.transport.reading:
        if end.other.transport.leg.writing_paused:
            end.other.transport.leg.resume_writing()
        # Or a long read waits for its turn.
        await asyncio.sleep(0)


async def step(end: End, sequence: Sequence) -> bool:
    """One side does the next thing that it has to do; return whether there was one."""
    ending = sequence.ending
    begins = end.side == ending.by
    masked = end.side == "client"
    if end.pieces:
        if end.transport.closing:
            end.pieces.clear()
            return True
        await readable(end)
        end.receive(end.pieces.pop(0))
        return True
    if end.ended:
        return False
    if ending.late and end.other.pieces:
        return False
    if ending.late and begins:
        # What took long on a busy machine waits for its turn in the router; "late" is when that has come as well.
        await readable(end.other)
    if ending.how == "crossed" or (begins and ending.how == "close"):
        await readable(end)
        end.receive(close_of(ending.close if begins else ending.answer, masked=masked))
    elif begins:
        if ending.partial:
            await readable(end)
            end.receive(ending.partial)
        end.transport.lose(ConnectionResetError() if ending.how == "reset" else None)
    elif end.got.close is not None:
        await readable(end)
        end.receive(close_of(ending.answer if ending.how == "close" else end.got.close, masked=masked))
    elif not end.transport.closing:
        return False
    end.ended = True
    return True


async def play(seed: int, counts: Counter[str]) -> None:
    """Play a conversation and check it."""
    sequence = sequence_of(seed)
    rng = random.Random(seed)
    bench = Bench()
    client, upstream = End("client", sequence, bench.client), End("upstream", sequence, bench.upstream)
    client.other, upstream.other = upstream, client
    ends = (client, upstream)
    await bench.begin()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not all(end.ended for end in ends):
                end = rng.choice(ends)
                leg = end.transport.leg
                if rng.random() < 0.05 and not leg.lost:
                    if leg.writing_paused:
                        leg.resume_writing()
                    else:
                        leg.pause_writing()
                if not await step(end, sequence):
                    # It waits for the router, where something may wait for its turn.
                    await asyncio.sleep(0)
                for one in ends:
                    one.look()
            # Before the end below, which would close it in any case. What waits for its turn needs a side that takes it.
            while not bench.client.closing:
                for one in ends:
                    if one.transport.leg.writing_paused:
                        one.transport.leg.resume_writing()
                await asyncio.sleep(0)
    finally:
        await bench.finish()
    for one in ends:
        one.look()
    check(sequence, client, upstream, bench.running.result(), b"")
    counts[sequence.ending.how] += 1
    counts["messages"] += client.script.complete + upstream.script.complete
    counts["reads"] += len(client.script.pieces) + len(upstream.script.pieces)
    counts["bytes"] += len(client.script.wire) + len(upstream.script.wire)


@pytest.mark.parametrize("busy", [False, True])
async def test_any_segments_and_pauses_leave_sequences_identical(
    sequences_told: list[str], monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """Read by read, with readers that stop and go on in between, everything arrives as it was sent.

    On a busy machine any read may take long, and what comes behind it waits for its turn.
    """
    if busy:
        turns = Turns(clock=_slow_at_times(random.Random(FIRST_SEED)))
        monkeypatch.setattr("router.relay.leg.turns_of", lambda loop: turns)
    counts: Counter[str] = Counter()
    # Each of them waits a lot.
    count = COUNT // 4 if busy else COUNT
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        try:
            await play(seed, counts)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    sequences_told.append(summary("in memory, busy" if busy else "in memory", count, counts))


def _slow_at_times(rng: random.Random) -> Callable[[], float]:
    """A clock for reads; one in five takes long."""
    lost_s = 0.0

    def clock() -> float:
        nonlocal lost_s
        lost_s += 2 * TURN_S * (rng.random() < 0.2)
        return time.monotonic() + lost_s

    return clock
