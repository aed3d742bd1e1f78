"""One leg's flood of tiny frames leaves every other session its turn: large reads are handed over in slices, with pauses.

The clock is moved by hand, by what each byte is said to cost; the pauses are real ones of a millisecond.
"""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from router.relay import leg as legs
from router.relay.fastpath import FAIR_BYTES
from router.relay.leg import LEAST_SLICE_BYTES, SLICE_BYTES, TURN_S, Leg
from tests.helpers.clock import ManualClock
from tests.helpers.running import until
from tests.unit.relay.fakes import FakeTransport

# 256 KiB of which every piece can be told from the others.
READ = b"".join(number.to_bytes(4, "big") for number in range(64 * 1024))


class Handler:
    """A receiver that takes its time.

    Attributes:
        slices: what it was given.
        cost_s: seconds that a byte takes.
        pause_after: number of slices after which it stops the leg's reading once.
    """

    def __init__(self, leg: Leg, clock: ManualClock, *, cost_s: float = 0.0, pause_after: int = 0) -> None:
        self.leg = leg
        self.slices: list[bytes] = []
        self.cost_s = cost_s
        self.pause_after = pause_after
        self.losses: list[int] = []  # bytes that had come when the loss was told
        self._clock = clock
        leg.receiver = self

    @property
    def read(self) -> bytes:
        """Everything it was given."""
        return b"".join(self.slices)

    def data(self, data: bytes) -> None:
        self.slices.append(data)
        self._clock.advance(len(data) * self.cost_s)
        if len(self.slices) == self.pause_after:
            self.leg.pause_reading()

    def lost(self, exc: BaseException | None) -> None:
        self.losses.append(len(self.read))

    def writing(self, *, paused: bool) -> None:
        """Nothing is written here."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The legs' clock; the event loop keeps its own."""
    clock = ManualClock()
    monkeypatch.setattr(legs, "time", SimpleNamespace(monotonic=clock))
    return clock


# A whole turn for 16 KiB: what tiny frames cost on a slow machine.
SLOW_S = TURN_S / FAIR_BYTES * 1.1


async def test_a_slow_read_arrives_whole_in_slices_with_turns_for_others(clock: ManualClock) -> None:
    """Without it 256 KiB of tiny frames were handled in one go, and 32 such reads in a row, for seconds."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock, cost_s=SLOW_S)
    transport.leg.data_received(READ)
    assert 0 < len(handler.read) <= 2 * FAIR_BYTES
    assert not transport.reading
    others = 0
    seen = len(handler.slices)
    while len(handler.read) < len(READ):
        await asyncio.sleep(0)
        if len(handler.slices) > seen:
            others, seen = others + 1, len(handler.slices)
    assert handler.read == READ
    assert others >= len(READ) // (2 * FAIR_BYTES)
    await until(lambda: transport.reading)
    assert transport.leg.bytes_in == len(READ)


async def test_a_quick_read_costs_no_turn(clock: ManualClock) -> None:
    """Audio in large frames is handed over at once: reading never stops."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock)
    transport.leg.data_received(READ)
    assert handler.read == READ
    assert transport.reading


async def test_small_reads_are_not_even_timed(clock: ManualClock) -> None:
    """The hot path has no look at the clock."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock, cost_s=1.0)
    transport.leg.data_received(READ[: FAIR_BYTES - 1])
    assert handler.slices == [READ[: FAIR_BYTES - 1]]
    assert transport.reading


async def test_slices_shrink_while_they_are_slow_and_grow_when_they_are_quick(clock: ManualClock) -> None:
    """64 KiB of the smallest frames take twenty turns: a fixed size would make others wait for that."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock, cost_s=TURN_S)
    transport.leg.data_received(READ)
    await until(lambda: len(handler.slices) > 6)
    sizes = [len(piece) for piece in handler.slices]
    assert sizes[0] > sizes[1] > sizes[2] > LEAST_SLICE_BYTES
    assert sizes[5] == sizes[6] == LEAST_SLICE_BYTES
    handler.cost_s = 0.0
    await until(lambda: len(handler.read) == len(READ))
    transport.leg.data_received(READ)
    assert handler.read == READ + READ
    assert max(len(piece) for piece in handler.slices) == SLICE_BYTES
    assert len(handler.slices[-2]) == SLICE_BYTES


async def test_a_receiver_that_pauses_in_the_middle_keeps_the_rest_for_later(clock: ManualClock) -> None:
    """Back-pressure holds within a read as well, and no turn of the clock undoes it; resuming goes on in order."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock, pause_after=2)
    transport.leg.data_received(READ)
    assert len(handler.slices) == 2
    assert not transport.reading
    for _ in range(3):
        await asyncio.sleep(2 * legs.PAUSE_S)
    assert len(handler.slices) == 2
    assert not transport.reading
    transport.leg.resume_reading()
    await until(lambda: transport.reading)
    assert handler.read == READ


async def test_a_pause_while_the_turn_is_waited_for_outlives_it(clock: ManualClock) -> None:
    """The turn's timer must not resume what back-pressure has stopped since."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock, cost_s=SLOW_S)
    transport.leg.data_received(READ)
    came = len(handler.read)
    transport.leg.pause_reading()
    for _ in range(3):
        await asyncio.sleep(2 * legs.PAUSE_S)
    assert len(handler.read) == came
    assert not transport.reading
    transport.leg.resume_reading()
    await until(lambda: transport.reading)
    assert handler.read == READ


async def test_a_resume_does_not_overtake_the_turn(clock: ManualClock) -> None:
    """Whoever resumes a leg that waits for its turn does not give it a second one, and bytes that come stay behind the rest."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock, cost_s=SLOW_S)
    transport.leg.data_received(READ)
    transport.leg.pause_reading()
    transport.leg.resume_reading()
    assert not transport.reading
    # A transport may hand over what it had read before it was paused.
    transport.leg.data_received(b"behind")
    await until(lambda: transport.reading)
    assert handler.read == READ + b"behind"


async def test_a_loss_hands_the_rest_over_first(clock: ManualClock) -> None:
    """What the peer said before it left counts, such as its CLOSE; then the loss is told, once."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock, cost_s=SLOW_S)
    transport.leg.data_received(READ)
    transport.lose()
    assert handler.read == READ
    assert handler.losses == [len(READ)]
    for _ in range(3):
        await asyncio.sleep(2 * legs.PAUSE_S)
    assert handler.losses == [len(READ)]
    assert not transport.reading


async def test_a_release_drops_the_rest(clock: ManualClock) -> None:
    """Nobody is left to take it; the turn that was waited for does nothing."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock, cost_s=SLOW_S)
    transport.leg.data_received(READ)
    came = len(handler.read)
    transport.leg.release()
    transport.lose()
    for _ in range(3):
        await asyncio.sleep(2 * legs.PAUSE_S)
    assert (len(handler.read), handler.losses) == (came, [])
    assert transport.released == [None]


async def test_the_rest_goes_to_whoever_is_the_receiver_then(clock: ManualClock) -> None:
    """An upstream's first read may hold more than its first event; the relay that takes over gets the rest, in order."""
    transport = FakeTransport()
    first = Handler(transport.leg, clock, pause_after=1)
    transport.leg.data_received(READ)
    second = Handler(transport.leg, clock)
    transport.leg.resume_reading()
    await until(lambda: transport.reading)
    assert (len(first.slices), first.read + second.read) == (1, READ)


async def test_many_reads_in_any_pace_stay_in_order(clock: ManualClock) -> None:
    """Sizes around every bound, quick and slow by turns."""
    transport = FakeTransport()
    handler = Handler(transport.leg, clock)
    sent = b""
    sizes = (1, FAIR_BYTES - 1, FAIR_BYTES, FAIR_BYTES + 1, SLICE_BYTES, SLICE_BYTES + 1, 4 * SLICE_BYTES)
    for size, cost_s in itertools.product(sizes, (0.0, SLOW_S)):
        handler.cost_s = cost_s
        piece = READ[:size]
        sent += piece
        transport.leg.data_received(piece)
        await until(lambda: transport.reading)
    assert handler.read == sent
