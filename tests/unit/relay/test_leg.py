"""A leg hands on what it reads, counts, keeps its flags true, and gives its transport's first owner its due exactly once."""

from __future__ import annotations

from router.relay.fastpath import MIDDLE, FastPath
from router.relay.frames import PING
from router.relay.leg import WRITE_BUFFER_HIGH_BYTES, Leg
from tests.unit.relay.fakes import FakeTransport


class Receiver:
    """Records what a leg tells it."""

    def __init__(self) -> None:
        self.read = b""
        self.losses: list[BaseException | None] = []
        self.paused: list[bool] = []

    def data(self, data: bytes) -> None:
        self.read += data

    def lost(self, exc: BaseException | None) -> None:
        self.losses.append(exc)

    def writing(self, *, paused: bool) -> None:
        self.paused.append(paused)


def test_bytes_go_to_whoever_is_the_receiver_and_are_counted() -> None:
    """Without a receiver bytes are dropped, but still counted: the peer was heard."""
    transport = FakeTransport()
    leg = transport.leg
    leg.data_received(b"early")
    first, second = Receiver(), Receiver()
    leg.receiver = first
    leg.data_received(b"one")
    leg.receiver = second
    leg.data_received(b"two")
    leg.receiver = None
    leg.data_received(b"three")
    assert (first.read, second.read) == (b"one", b"two")
    assert leg.bytes_in == 16


def test_the_write_buffer_is_bounded_from_the_start() -> None:
    """The high mark is the project's, not the loop's."""
    assert FakeTransport().limits == (WRITE_BUFFER_HIGH_BYTES, None)


def test_writes_are_dropped_once_the_connection_ends() -> None:
    """Neither a transport that the leg closed or cut nor a lost one is written to; asyncio's would complain, uvloop's raise."""
    for end in (Leg.close, Leg.abort, lambda leg: leg.connection_lost(None)):
        transport = FakeTransport()
        transport.leg.write(b"abc")
        end(transport.leg)
        transport.leg.write(b"def")
        assert bytes(transport.written) == b"abc"


def test_the_fast_path_writes_no_more_to_a_leg_that_ended() -> None:
    """It holds the other transport's own method, so the leg takes that away."""
    for end in (Leg.close, Leg.abort, lambda leg: leg.connection_lost(None)):
        source, target = FakeTransport(), FakeTransport()
        fast = FastPath(False, 1 << 20)
        source.leg.join(fast, target.leg)
        fast.write(b"abc")
        end(target.leg)
        fast.write(b"def")
        assert bytes(target.written) == b"abc"


def test_a_released_leg_passes_nothing_on() -> None:
    """What the event loop still hands over is dropped, on both paths."""
    source, target = FakeTransport(), FakeTransport()
    fast = FastPath(False, 1 << 20)
    receiver = Receiver()
    source.leg.receiver = receiver
    source.leg.join(fast, target.leg)
    received = source.leg.data_received
    fast.mode, fast.left = MIDDLE, 100
    received(b"a")
    received(b"b" * 99)
    source.leg.release()
    received(b"c")
    assert (bytes(target.written), receiver.read) == (b"a", b"b" * 99)


def test_reading_is_paused_and_resumed_once() -> None:
    """Flags follow the transport, and repeated calls do nothing."""
    transport = FakeTransport()
    leg = transport.leg
    leg.resume_reading()
    leg.pause_reading()
    leg.pause_reading()
    assert (leg.reading_paused, transport.reading) == (True, False)
    leg.resume_reading()
    assert (leg.reading_paused, transport.reading) == (False, True)


def test_a_closing_transport_that_refuses_to_be_paused_is_no_error() -> None:
    """uvloop raises RuntimeError there; there is nothing left to pause."""
    transport = FakeTransport()
    transport.stubborn = True
    transport.leg.pause_reading()
    transport.leg.resume_reading()
    assert not transport.leg.reading_paused


def test_the_receiver_hears_of_the_watermarks() -> None:
    """The flag is set before the receiver is told."""
    transport = FakeTransport()
    receiver = Receiver()
    transport.leg.receiver = receiver
    transport.leg.pause_writing()
    assert transport.leg.writing_paused
    transport.leg.resume_writing()
    assert not transport.leg.writing_paused
    assert receiver.paused == [True, False]


def test_a_loss_clears_back_pressure_and_is_told_with_its_reason() -> None:
    """A leg that is gone takes nothing, so nobody must wait for room in it."""
    transport = FakeTransport()
    receiver = Receiver()
    transport.leg.receiver = receiver
    transport.leg.pause_writing()
    error = ConnectionResetError()
    transport.lose(error)
    assert (transport.leg.lost, transport.leg.lost_by, transport.leg.writing_paused) == (True, error, False)
    assert receiver.losses == [error]


def test_a_peer_that_ends_its_direction_is_gone() -> None:
    """``eof_received`` asks the loop to close (RFC 6455 §7.1.1)."""
    assert FakeTransport().leg.eof_received() is False


def test_the_first_owner_is_told_when_both_have_happened() -> None:
    """Release and loss, in either order; told once, with the reason, and a living connection is cut."""
    transport = FakeTransport()
    transport.leg.release()
    assert transport.aborted
    assert transport.released == []
    error = ConnectionResetError()
    transport.lose(error)
    assert transport.released == [error]
    other = FakeTransport()
    other.lose()
    assert other.released == []
    other.leg.release()
    other.leg.release()
    assert other.released == [None]


def test_own_frames_are_masked_only_towards_a_server() -> None:
    """RFC 6455 §5.3: a client masks, with a fresh key each time; a server never does."""
    assert FakeTransport(masks=False).leg.frame(PING, b"x") == b"\x89\x01x"
    leg = FakeTransport(masks=True).leg
    frames = {leg.frame(PING, b"x")[2:6] for _ in range(50)}
    assert len(frames) > 40
    frame = leg.frame(PING, b"x")
    assert (frame[:2], frame[6] ^ frame[2]) == (b"\x89\x81", ord("x"))


def test_closing_and_aborting_a_lost_leg_does_nothing() -> None:
    """The transport is not touched once it is gone."""
    transport = FakeTransport()
    transport.lose()
    transport.closing = False
    transport.leg.close()
    transport.leg.abort()
    transport.leg.pause_reading()
    assert (transport.closing, transport.aborted, transport.reading) == (False, False, True)
