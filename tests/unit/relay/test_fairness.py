"""Floods of tiny frames leave every other session its turn: long reads are handed over in pieces, and all share one budget.

Clock and timers are moved by hand; time passes by what each byte is said to cost.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from router.relay.fastpath import FAIR_BYTES, MIDDLE, FastPath, hot_table
from router.relay.leg import QUICK_S, SLICE_BYTES, TINY_BYTES, Leg
from router.relay.turns import SHARE_S, TURN_S, Turns
from tests.helpers.clock import ManualClock
from tests.helpers.raw import PING, TEXT, close_frame, encode
from tests.unit.relay.fakes import Bench, FakeTransport, Timers

# 256 KiB of which every piece can be told from the others.
READ = b"".join(number.to_bytes(4, "big") for number in range(64 * 1024))
# What a byte costs: of the smallest frames, and of large ones.
SLOW_S, FAST_S = 3e-6, 0.4e-9
# One slice of the smallest frames.
SLICE_S = SLICE_BYTES * SLOW_S
# The most that one pass of the event loop takes: the budget, the slice that is under way when it is used up, and one of a flood
# that comes in any case. With something for what sums of small numbers lack.
PASS_S = TURN_S + 2 * SLICE_S + 1e-9


class Place:
    """A budget with a clock and timers of its own.

    Attributes:
        wall, cpu: its clocks.
    """

    def __init__(self) -> None:
        self.wall = ManualClock()
        self.cpu = ManualClock()
        self.timers = Timers()
        self.turns = Turns(clock=self.wall, cpu_clock=self.cpu, call_later=self.timers.call_later)

    def work(self, seconds: float) -> None:
        """Be busy."""
        self.wall.advance(seconds)
        self.cpu.advance(seconds)

    def transport(self, *, masks: bool = False) -> FakeTransport:
        """A connection whose leg has its turns here."""
        return FakeTransport(masks=masks, turns=self.turns)

    def flood(self) -> tuple[FakeTransport, Handler]:
        """One whose leg has been found to be a flood; nothing waits."""
        transport = self.transport()
        handler = Handler(transport.leg, self, cost_s=SLOW_S)
        for _ in range(2):
            transport.leg.data_received(READ[:SLICE_BYTES])
        self.rest()
        handler.slices.clear()
        assert transport.leg._slow == 2
        return transport, handler

    def rest(self) -> None:
        """Let timers come until none is left."""
        while self.timers.come():
            pass


class Handler:
    """A receiver that takes its time.

    Attributes:
        slices: what it was given.
        losses: bytes that had come when the loss was told.
        rooms: how often it was told that the leg takes again.
        cost_s: seconds that a byte takes.
        interrupted_s: seconds that another process has in the middle of each slice.
        pause_after: number of slices after which it stops the leg's reading once.
        then: what it does at the end of each slice.
    """

    def __init__(self, leg: Leg, place: Place, *, cost_s: float = 0.0, pause_after: int = 0) -> None:
        self.leg = leg
        self.slices: list[bytes] = []
        self.losses: list[int] = []
        self.rooms = 0
        self.cost_s = cost_s
        self.interrupted_s = 0.0
        self.pause_after = pause_after
        self.then: Callable[[], object] | None = None
        self._place = place
        leg.receiver = self

    @property
    def read(self) -> bytes:
        """Everything it was given."""
        return b"".join(self.slices)

    def data(self, data: bytes) -> None:
        self.slices.append(data)
        self._place.work(len(data) * self.cost_s)
        self._place.wall.advance(self.interrupted_s)
        if len(self.slices) == self.pause_after:
            self.leg.pause_reading()
        if self.then is not None:
            self.then()

    def lost(self, exc: BaseException | None) -> None:
        self.losses.append(len(self.read))

    def writing(self, *, paused: bool) -> None:
        self.rooms += not paused


@pytest.fixture
def place() -> Place:
    """Nobody waits in it yet."""
    return Place()


# --- how long it takes ----------------------------------------------------------------------------


def test_a_slow_read_arrives_whole_in_turns(place: Place) -> None:
    """Without them 256 KiB of tiny frames were handled in one go, and 32 such reads in a row, for seconds."""
    transport = place.transport()
    handler = Handler(transport.leg, place, cost_s=SLOW_S)
    started = place.wall()
    transport.leg.data_received(READ)
    turns = 1
    while not transport.reading:
        assert 0 < place.wall() - started < PASS_S
        started = place.wall()
        assert place.timers.come()
        turns += 1
    assert handler.read == READ
    assert turns >= len(READ) * SLOW_S / (TURN_S + SLICE_S)
    assert transport.leg.bytes_in == len(READ)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("number", [1, 5, 20, 100])
def test_many_floods_take_no_longer_than_one(place: Place, number: int, known: bool) -> None:
    """Each had a turn of its own in every pass of the event loop: twenty of them were 360 ms in a round trip of somebody else."""
    floods = [place.flood() for _ in range(number)]
    if not known:
        floods = [(transport := place.transport(), Handler(transport.leg, place, cost_s=SLOW_S)) for _ in range(number)]
    started = place.wall()
    for transport, _ in floods:
        transport.leg.data_received(READ)
    # Known ones have no turn at once at all.
    assert place.wall() - started < (1e-9 if known else PASS_S)
    for _ in range(30):
        started = place.wall()
        assert place.timers.come()
        assert 0 < place.wall() - started < PASS_S
    if number <= 20:
        # All are served alike, but for the first one of new ones, which found the budget untouched.
        sizes = sorted(len(handler.read) for _, handler in floods[1:] or floods)
        assert sizes[0] > 0
        assert sizes[-1] - sizes[0] <= SHARE_S / SLOW_S + SLICE_BYTES
    place.rest()
    assert all(handler.read == READ and transport.reading for transport, handler in floods)


@pytest.mark.parametrize("size", [TINY_BYTES, SLICE_BYTES, 2 * SLICE_BYTES, FAIR_BYTES - 1])
def test_many_small_slow_reads_share_the_budget_as_well(place: Place, size: int) -> None:
    """No size is free of it: a hundred sessions may each send a little less than what would be looked at."""
    pairs = [(transport := place.transport(), Handler(transport.leg, place, cost_s=SLOW_S)) for _ in range(100)]
    for _ in range(3):
        started = place.wall()
        for transport, _ in pairs:
            transport.leg.data_received(READ[:size])
        assert place.wall() - started < PASS_S
        while place.timers.set:
            started = place.wall()
            place.timers.come()
            assert place.wall() - started < PASS_S
    assert all(handler.read == 3 * READ[:size] and transport.reading for transport, handler in pairs)


def test_what_came_before_makes_no_slice_longer(place: Place) -> None:
    """Slices grew while they were quick: behind a large frame 64 KiB of tiny ones were a single slice, 100 ms and more."""
    transport = place.transport()
    handler = Handler(transport.leg, place)
    transport.leg.data_received(READ)
    handler.slices.clear()
    handler.cost_s = SLOW_S
    transport.leg.data_received(READ)
    place.rest()
    assert handler.read == READ
    assert max(map(len, handler.slices)) == SLICE_BYTES


def test_a_quick_read_costs_no_turn(place: Place) -> None:
    """Audio in large frames is handed over at once and uses nothing up, however much it is."""
    transport = place.transport()
    handler = Handler(transport.leg, place, cost_s=FAST_S)
    for count in range(1, 101):
        transport.leg.data_received(READ)
        assert len(handler.read) == count * len(READ) and transport.reading
    assert place.turns.left_s == TURN_S
    assert not place.timers.set


def test_tiny_reads_are_not_even_timed(place: Place) -> None:
    """Most of what does not pass on the fast path is one short event."""
    transport = place.transport()
    handler = Handler(transport.leg, place, cost_s=1.0)
    transport.leg.data_received(READ[: TINY_BYTES - 1])
    assert handler.slices == [READ[: TINY_BYTES - 1]]
    assert transport.reading
    assert place.turns.left_s == TURN_S


# --- who goes first -------------------------------------------------------------------------------


def test_a_quick_leg_goes_before_all_floods(place: Place) -> None:
    """When the budget is used up its read waits for the next round, of which it is the first one; a tiny one does not wait."""
    floods = [place.flood() for _ in range(20)]
    for transport, _ in floods:
        transport.leg.data_received(READ)
    place.timers.come()
    transport = place.transport()
    handler = Handler(transport.leg, place, cost_s=FAST_S)
    transport.leg.data_received(b"tiny")
    assert handler.read == b"tiny"
    transport.leg.data_received(READ[:300])
    assert handler.read == b"tiny" and not transport.reading
    # Not even this, for it would overtake.
    transport.leg.data_received(b"tiny")
    came = [len(flood.read) for _, flood in floods]
    flooded: list[list[int]] = []
    handler.then = lambda: flooded.append([len(flood.read) for _, flood in floods])
    place.timers.come()
    assert flooded == [came, came]
    assert transport.reading
    assert handler.read == b"tiny" + READ[:300] + b"tiny"


def test_a_known_flood_has_no_turn_at_once(place: Place) -> None:
    """Whatever it reads, and however much of the budget is left."""
    transport, handler = place.flood()
    assert place.turns.left_s == TURN_S
    transport.leg.data_received(b"x")
    assert (handler.read, transport.reading) == (b"", False)
    place.timers.come()
    assert (handler.read, transport.reading) == (b"x", True)


def test_a_quick_read_ends_a_flood(place: Place) -> None:
    """It waits for one turn, and is like all others from then on."""
    transport, handler = place.flood()
    handler.cost_s = FAST_S
    transport.leg.data_received(READ)
    assert not transport.reading
    place.rest()
    transport.leg.data_received(READ)
    assert transport.reading
    assert handler.read == 2 * READ


def test_a_read_that_was_interrupted_is_no_flood(place: Place) -> None:
    """On a busy machine another process has its turn in the middle of it: such a leg used to wait behind all floods."""
    transport = place.transport()
    handler = Handler(transport.leg, place)
    handler.interrupted_s = 20 * QUICK_S
    for _ in range(10):
        transport.leg.data_received(READ[:300])
        assert transport.reading
        place.rest()
    assert handler.read == 10 * READ[:300]


# --- back-pressure --------------------------------------------------------------------------------


def test_a_receiver_that_pauses_in_the_middle_keeps_the_rest_for_later(place: Place) -> None:
    """Back-pressure holds within a read as well, and no turn undoes it; resuming goes on in order."""
    transport = place.transport()
    handler = Handler(transport.leg, place, pause_after=2)
    transport.leg.data_received(READ)
    assert len(handler.slices) == 2
    place.rest()
    assert len(handler.slices) == 2
    assert not transport.reading
    transport.leg.resume_reading()
    place.rest()
    assert handler.read == READ
    assert transport.reading


def test_a_pause_while_the_turn_is_waited_for_outlives_it(place: Place) -> None:
    """A turn must not resume what back-pressure has stopped since, and no timer is left for a leg that it stops."""
    transport, handler = place.flood()
    transport.leg.data_received(READ)
    place.timers.come()
    place.timers.come()
    came = len(handler.read)
    assert 0 < came < len(READ)
    transport.leg.pause_reading()
    place.rest()
    assert (len(handler.read), transport.reading, len(place.turns)) == (came, False, 0)
    transport.leg.resume_reading()
    place.rest()
    assert handler.read == READ
    assert transport.reading


@pytest.mark.parametrize("at", [1, 2, 511, 512])
def test_a_pause_that_ends_within_the_slice_changes_nothing(place: Place, at: int) -> None:
    """What a slice makes the other leg write may fill it and empty it again."""
    transport = place.transport()
    handler = Handler(transport.leg, place, pause_after=at)
    handler.then = transport.leg.resume_reading
    transport.leg.data_received(READ)
    place.rest()
    assert handler.read == READ
    assert transport.reading
    assert len(handler.slices) == 512


def test_a_resume_does_not_overtake_the_turn(place: Place) -> None:
    """Whoever resumes a leg that waits for its turn does not give it a second one, and bytes that come stay behind the rest."""
    transport, handler = place.flood()
    transport.leg.data_received(READ)
    transport.leg.pause_reading()
    transport.leg.resume_reading()
    assert not transport.reading
    # A transport may hand over what it had read before it was paused.
    transport.leg.data_received(b"behind")
    assert len(place.turns) == 1
    place.rest()
    assert handler.read == READ + b"behind"
    assert transport.reading


def test_what_comes_while_reading_is_paused_waits_where_a_flood_would(place: Place) -> None:
    """A transport that hands over more than it should cannot get a known flood a turn."""
    transport, handler = place.flood()
    transport.leg.pause_reading()
    transport.leg.data_received(READ)
    place.rest()
    assert handler.read == b""
    transport.leg.resume_reading()
    place.rest()
    assert handler.read == READ
    assert transport.reading


async def test_silence_of_a_leg_that_waits_proves_nothing(place: Place) -> None:
    """A flood among a hundred may wait for longer than a ping's answer: it was cut as dead, though it was we who did not read."""
    client = place.transport()
    bench = Bench(client=client, ping_timeout_s=45, ping_interval_s=20)
    await bench.begin()
    flood = encode(TEXT, b"", masked=True, key=bytes(4)) * 10_000
    client.leg._slow = 2
    client.leg.data_received(flood)
    for _ in range(10):
        bench.upstream.leg.data_received(encode(TEXT, b'{"type":"x"}', masked=False))
        bench.pass_time(20)
    assert not client.aborted
    place.rest()
    bench.pass_time(20)
    assert not client.aborted
    bench.upstream.leg.data_received(encode(TEXT, b'{"type":"x"}', masked=False))
    bench.pass_time(40)
    assert client.aborted
    await bench.finish()


# --- the end --------------------------------------------------------------------------------------


def test_a_loss_is_told_behind_the_rest(place: Place) -> None:
    """What the peer said before it left counts, such as its CLOSE; that it left is no way to a turn of its own."""
    transport, handler = place.flood()
    transport.leg.data_received(READ)
    error = ConnectionResetError()
    started = place.wall()
    transport.lose(error)
    assert place.wall() == started
    assert (handler.losses, transport.leg.lost) == ([], False)
    while not handler.losses:
        started = place.wall()
        assert place.timers.come()
        assert place.wall() - started < PASS_S
    assert handler.losses == [len(READ)]
    assert (transport.leg.lost, transport.leg.lost_by) == (True, error)
    place.rest()
    assert handler.losses == [len(READ)]
    assert len(place.turns) == 0


def test_a_loss_waits_for_room_on_the_other_side(place: Place) -> None:
    """The rest is not poured into a leg that is full; and the one that is gone lets nobody wait for room in itself."""
    transport = place.transport()
    handler = Handler(transport.leg, place, pause_after=2)
    transport.leg.data_received(READ)
    transport.leg.pause_writing()
    transport.lose()
    place.rest()
    assert (len(handler.slices), handler.losses) == (2, [])
    assert handler.rooms == 1 and not transport.leg.writing_paused
    transport.leg.resume_reading()
    place.rest()
    assert (handler.read, handler.losses) == (READ, [len(READ)])


async def test_two_lost_legs_that_wait_for_room_in_each_other_do_not_wait_for_ever(place: Place) -> None:
    """Both full, both with a rest: each is freed by the other one's loss."""
    client, upstream = place.transport(), place.transport(masks=True)
    bench = Bench(client=client, upstream=upstream)
    await bench.begin()
    for transport in (client, upstream):
        transport.leg.pause_writing()
    for transport, masked in ((client, True), (upstream, False)):
        transport.leg._slow = 2
        transport.leg.data_received(encode(TEXT, b'{"type":"x"}', masked=masked) * 100)
        assert transport.leg.waiting
    client.lose()
    upstream.lose()
    place.rest()
    async with asyncio.timeout(10):
        end = await bench.running
    assert (end.client_events, end.upstream_events) == (100, 100)


@pytest.mark.parametrize("paused", [False, True])
def test_cutting_a_leg_that_is_gone_tells_its_loss_without_the_rest(place: Place, paused: bool) -> None:
    """Nobody wants it any more. Not within ``abort``, whose caller may be in the middle of something; and once."""
    transport, handler = place.flood()
    transport.leg.data_received(READ)
    if paused:
        transport.leg.pause_reading()
    transport.lose()
    transport.leg.abort()
    transport.leg.abort()
    transport.leg.pause_reading()
    assert handler.losses == []
    place.rest()
    assert (handler.read, handler.losses, transport.aborted) == (b"", [0], False)


def test_a_receiver_that_cuts_a_lost_leg_within_its_turn_is_told_once(place: Place) -> None:
    """The turn's own end tells the loss."""
    transport, handler = place.flood()
    transport.leg.data_received(READ)
    transport.lose()
    handler.then = transport.leg.abort
    place.rest()
    assert handler.losses == [SLICE_BYTES]
    assert len(place.turns) == 0


def test_a_loss_that_nobody_is_there_for_is_told_at_once(place: Place) -> None:
    """Without a receiver the rest is of no interest."""
    transport, _ = place.flood()
    transport.leg.data_received(READ)
    transport.leg.receiver = None
    transport.lose()
    assert transport.leg.lost
    place.rest()
    transport.leg.release()
    assert transport.released == [None]


@pytest.mark.parametrize("lost_first", [False, True])
def test_a_release_drops_the_rest(place: Place, lost_first: bool) -> None:
    """Nobody is left to take it; the leg leaves the queue, and its first owner is told once."""
    transport, handler = place.flood()
    transport.leg.data_received(READ)
    if lost_first:
        transport.lose()
    transport.leg.release()
    assert len(place.turns) == 0
    if not lost_first:
        assert transport.aborted
        transport.lose()
    place.rest()
    assert (handler.read, handler.losses) == (b"", [])
    assert transport.released == [None]


@pytest.mark.parametrize("end", ["release", "lose"])
def test_no_queue_keeps_a_leg_that_is_over(place: Place, end: str) -> None:
    """Reference counting frees it at once; a flood that left must not stay in memory until somebody else comes."""
    transport, handler = place.flood()
    transport.leg.data_received(READ)
    leg = weakref.ref(handler)
    gc.disable()
    try:
        if end == "lose":
            transport.lose()
            place.rest()
        transport.leg.release()
        transport.leg.connection_lost(None)
        handler.leg = None  # type: ignore[assignment]
        del transport, handler
        assert leg() is None
    finally:
        gc.enable()
    assert len(place.turns) == 0


def failing() -> None:
    """What a receiver comes to grief with."""
    raise ValueError("broken")


async def test_a_receiver_that_fails_ends_its_own_connection_only(place: Place) -> None:
    """As when it fails in ``data_received``: the event loop is told, what follows is not handed over, others have their turns."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    broken, handler = place.flood()
    other, others = place.flood()

    handler.then = failing
    for transport in (broken, other):
        transport.leg.data_received(READ)
    place.rest()
    assert (others.read, other.reading) == (READ, True)
    assert broken.aborted
    broken.lose()
    assert [str(context["exception"]) for context in told] == ["broken"]
    assert (len(handler.slices), handler.losses) == (1, [SLICE_BYTES])


def test_a_receiver_that_fails_at_once_is_not_given_what_follows(place: Place) -> None:
    """The event loop cuts the connection, whose loss would hand the rest over."""
    transport = place.transport()
    handler = Handler(transport.leg, place)

    handler.then = failing
    with pytest.raises(ValueError, match="broken"):
        transport.leg.data_received(READ)
    transport.lose()
    place.rest()
    assert (len(handler.slices), handler.losses) == (1, [SLICE_BYTES])


# --- order ----------------------------------------------------------------------------------------


def test_the_rest_goes_to_whoever_is_the_receiver_then(place: Place) -> None:
    """An upstream's first read may hold more than its first event; the relay that takes over gets the rest, in order."""
    transport = place.transport()
    first = Handler(transport.leg, place, pause_after=1)
    transport.leg.data_received(READ)
    second = Handler(transport.leg, place)
    transport.leg.resume_reading()
    place.rest()
    assert transport.reading
    assert (len(first.slices), first.read + second.read) == (1, READ)


def test_nothing_overtakes_on_the_fast_path(place: Place) -> None:
    """It is told that bytes wait: in the queue, under back-pressure, and already at the join."""
    hot = hot_table(["response.output_audio.delta"], masked=False)
    frame = encode(TEXT, b'{"type":"response.output_audio.delta","delta":"' + b"A" * 300 + b'"}', masked=False)
    for paused, early in itertools.product((False, True), (False, True)):
        source, target = place.transport(), place.transport()
        fast = FastPath(False, 1 << 20)
        fast.hot = hot
        handler = Handler(source.leg, place)
        handler.data = target.write  # type: ignore[method-assign]
        source.leg.receiver = handler
        if not early:
            source.leg.join(fast, target.leg)
        source.leg._slow = 2
        source.leg.data_received(b"first")
        if paused:
            source.leg.pause_reading()
        if early:
            source.leg.join(fast, target.leg)
        assert fast.waiting
        source.leg.data_received(frame)
        assert target.take() == b""
        source.leg.resume_reading()
        place.rest()
        assert target.take() == b"first" + frame
        assert not fast.waiting
        source.leg.data_received(frame)
        assert target.take() == frame


async def test_the_middle_of_a_large_frame_is_moved_in_one_piece(place: Place) -> None:
    """A read that belongs to one frame is written as it came, and a message that is looked at is taken whole: no slices."""
    upstream = place.transport(masks=True)
    bench = Bench(upstream=upstream)
    await bench.begin()
    scanner = bench.relay._down.scanner
    written: list[bytes] = []
    scanner.write = bench.client.leg.write = written.append
    for event_type, passes in ((b"response.output_audio.delta", True), (b"response.done", False)):
        frame = encode(TEXT, b'{"type":"' + event_type + b'","x":"' + b"y" * 400_000 + b'"}', masked=False)
        upstream.leg.data_received(frame[:1000])
        assert (scanner.mode == MIDDLE) == passes
        handed: list[int] = []
        data = upstream.leg._data
        upstream.leg._data = lambda piece, data=data, handed=handed: (handed.append(len(piece)), data(piece))  # type: ignore[assignment, misc]
        reads = [frame[1000:201_000], frame[201_000:]]
        for read in reads:
            written.clear()
            upstream.leg.data_received(read)
            assert sum(map(len, written)) == len(read)
        assert written[0] is reads[1]
        assert handed == ([len(reads[1])] if passes else [200_000, len(reads[1])])
        upstream.leg._data = data
    await bench.finish()


@pytest.mark.parametrize("seed", range(20))
async def test_any_mix_of_frames_in_any_pace_passes_whole_and_in_order(seed: int) -> None:
    """Hot, large, tiny, fragmented and control frames, reads of any size, floods or not, room or none: same bytes and counts."""
    rng = random.Random(seed)
    place = Place()
    upstream = place.transport(masks=True)
    bench = Bench(upstream=upstream)
    await bench.begin()
    audio = b'{"type":"response.output_audio.delta","response_id":"r","delta":"'
    bench.relay._down.scanner.hot = hot_table(["response.output_audio.delta"], masked=False)
    stream, events = bytearray(), 0
    while len(stream) < 600_000:
        kind = rng.randrange(6)
        count = rng.choice([1, 3, 200])
        if kind == 0:
            frame = encode(TEXT, b"", masked=False)
        elif kind == 1:
            frame = encode(TEXT, audio + b"A" * rng.choice([100, 1300, 60_000]) + b'"}', masked=False)
            count = min(count, 3)
        elif kind == 2:
            frame = encode(TEXT, b'{"type":"x","y":"' + b"z" * rng.choice([10, 900, 100_000]) + b'"}', masked=False)
            count = min(count, 3)
        elif kind == 3:
            frame = encode(PING, b"p" * rng.randrange(9), masked=False)
        elif kind == 4:
            frame = encode(TEXT, b'{"type"', masked=False, fin=False) + encode(0, b':"x"}', masked=False)
        else:
            frame = encode(TEXT, b'{"type":"response.done","response":{}}', masked=False)
        stream += frame * count
        events += 0 if kind == 3 else count
    stream += close_frame(1000, masked=False)
    data = bench.relay._down.data
    cost_s = 0.0

    def slow(piece: bytes) -> None:
        data(piece)
        place.work(len(piece) * cost_s)
        if rng.random() < 0.05:
            upstream.leg.pause_reading()

    upstream.leg._data = slow
    at = 0
    while at < len(stream):
        size = rng.choice([1, TINY_BYTES, SLICE_BYTES, 2000, FAIR_BYTES - 1, FAIR_BYTES, 65_536, 262_144])
        cost_s = rng.choice([0.0, FAST_S, SLOW_S])
        upstream.leg.data_received(bytes(stream[at : at + size]))
        at += size
        if rng.random() < 0.7:
            place.timers.come()
        if rng.random() < 0.7:
            upstream.leg.resume_reading()
    if seed % 2:
        upstream.lose()
    while upstream.leg.waiting:
        upstream.leg.resume_reading()
        place.timers.come()
    assert bytes(bench.client.written[: len(stream)]) == stream
    assert bench.relay._down.scanner.events == events
    assert bench.relay._down.scanner.close_seen
    assert bench.relay._down.close == (1000, "")
    assert upstream.leg.lost == bool(seed % 2)
    await bench.finish()


def test_many_reads_in_any_pace_stay_in_order(place: Place) -> None:
    """Sizes around every bound, quick and slow by turns."""
    transport = place.transport()
    handler = Handler(transport.leg, place)
    sent = b""
    edges = (TINY_BYTES, SLICE_BYTES, 2 * SLICE_BYTES, FAIR_BYTES, len(READ))
    sizes = [1, *(edge + offset for edge in edges for offset in (-1, 0, 1))]
    for size, cost_s in itertools.product(sizes, (0.0, SLOW_S)):
        handler.cost_s = cost_s
        piece = READ[:size]
        sent += piece
        transport.leg.data_received(piece)
        place.rest()
        assert transport.reading
    assert handler.read == sent

