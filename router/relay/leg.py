"""One transport of a session under the project's own ``asyncio.Protocol``.

A leg knows nothing of the other one: it hands what it reads to its ``Receiver``, which is the opening handshake's waiter first
and the relay later. Its flags say what the relay's sweep needs: when bytes last came, whether reading or writing stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Final, Protocol

from router.relay.fastpath import SLOW, FastPath
from router.relay.frames import encode_frame
from router.relay.turns import Turns, turns_of

# Above this a transport's write buffer stops the other leg's reading. Bound per leg: this plus one read of at most 256 KiB.
WRITE_BUFFER_HIGH_BYTES: Final = 64 * 1024

# A read below this is handed over without a look at the clock: 64 of the smallest frames, which take 0.2 to 0.4 ms.
TINY_BYTES: Final = 128
# How much of which nothing is known is handed over between two looks at the clock: 256 of the smallest frames, 0.8 to 1.5 ms.
SLICE_BYTES: Final = 512
# How far the fast path may look ahead: 500 of the smallest hot frames, 0.3 ms.
HOT_WINDOW_BYTES: Final = 64 * 1024
# A read that takes no longer than this is quick. 4 ns a byte are ten times what large frames cost, and a hundredth of what
# the smallest do.
QUICK_S: Final = 0.000_25
QUICK_S_PER_BYTE: Final = 4e-9


class Receiver(Protocol):
    """Who gets what a leg reads."""

    def data(self, data: bytes) -> None:
        """Bytes arrived."""

    def lost(self, exc: BaseException | None) -> None:
        """The connection is gone, in whatever way."""

    def writing(self, *, paused: bool) -> None:
        """The leg's write buffer passed its high mark, or fell below its low mark again."""


class Leg(asyncio.BaseProtocol):
    """A transport taken over after its handshake: an ``asyncio.Protocol`` whose ``data_received`` is exchanged by the join.

    Args:
        transport: open; its protocol is replaced by the caller in the same step.
        masks: whether what is written to it must be masked (it leads to a server).
        on_released: called once, when the connection is lost and ``release`` has been called.
        turns: for reads that take long; ``None``: those of the event loop that runs when there is one.
    """

    __slots__ = (
        "_at",
        "_bytes",
        "_data",
        "_fast",
        "_feeder",
        "_gone",
        "_on_released",
        "_receiver",
        "_released",
        "_rest",
        "_slow",
        "_turns",
        "data_received",
        "lost",
        "lost_by",
        "masks",
        "reading_paused",
        "resumes",
        "transport",
        "write",
        "writing_paused",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        masks: bool,
        on_released: Callable[[BaseException | None], None] | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.transport = transport
        self.masks = masks
        self._bytes = 0  # read so far, without those that the fast path passed on
        self._fast: FastPath | None = None  # whose reads this leg's are, once there is another leg to write to
        self._feeder: FastPath | None = None  # who writes to this leg
        # Queue bytes; they are dropped when the connection is gone. The transport's own method: nothing stands in between.
        self.write: Callable[[bytes], object] = transport.write
        self.data_received: Callable[[bytes], None] = self.received
        self.lost = False  # the connection is gone, and everything that was read has been handed over
        self.lost_by: BaseException | None = None  # only set with a lost connection; ``None`` then means an orderly end
        self.reading_paused = False
        self.writing_paused = False
        self.resumes = 0  # how often the write buffer had room again
        self._released = False
        # Reads that wait for their turn, or for the end of back-pressure; the transport's reading is paused then.
        self._rest: list[bytes] = []
        self._at = 0  # how much of the first one has been handed over
        self._slow = 0  # how often in a row a read, or a piece of it, took long: once may be chance, twice is a flood
        self._gone = False  # the connection is gone; that is told behind what still waits
        self._turns = turns
        self._on_released = on_released
        self._receiver: Receiver | None = None
        self._data: Callable[[bytes], None] = _drop
        transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH_BYTES)

    @property
    def bytes_in(self) -> int:
        """Bytes read so far."""
        return self._bytes + (self._fast.skipped_bytes if self._fast is not None else 0)

    def count(self, size: int) -> None:
        """Count bytes that were read before the leg was there."""
        self._bytes += size

    def join(self, fast: FastPath, other: Leg) -> None:
        """Let reads go past the fast path to another leg; what does not pass there still goes to the receiver."""
        self._fast = other._feeder = fast
        fast.slow = self.received
        fast.write = other.write
        fast.waiting = bool(self._rest)
        if not self._gone:
            self.data_received = fast.data_received
            # The event loop may have kept the method that it found at first.
            self.transport.set_protocol(self)

    @property
    def receiver(self) -> Receiver | None:
        """Who gets the bytes; ``None`` drops them."""
        return self._receiver

    @receiver.setter
    def receiver(self, receiver: Receiver | None) -> None:
        self._receiver = receiver
        self._data = receiver.data if receiver is not None else _drop

    def frame(self, opcode: int, payload: bytes) -> bytes:
        """Encode a frame of the router's own for this leg, masked with a fresh key where it must be (RFC 6455 §5.3)."""
        return encode_frame(opcode, payload, mask_key=os.urandom(4) if self.masks else None)

    @property
    def waiting(self) -> bool:
        """Bytes that were read have not been handed over yet, and no more are read meanwhile."""
        return bool(self._rest)

    def pause_reading(self) -> None:
        """Stop reading until ``resume_reading``."""
        if self.reading_paused or self.lost:
            return
        self.reading_paused = True
        if self._rest:
            self.turns.discard(self)
        self._pause_transport()

    def resume_reading(self) -> None:
        """Read again."""
        if not self.reading_paused or self.lost:
            return
        self.reading_paused = False
        if self._rest:
            self.turns.wait(self, flood=self._slow > 1)
        else:
            self._resume_transport()

    def _pause_transport(self) -> None:
        # uvloop raises on a transport that is closing, where there is nothing left to pause.
        with contextlib.suppress(RuntimeError):
            self.transport.pause_reading()

    def _resume_transport(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.transport.resume_reading()

    def close(self) -> None:
        """Send what is buffered, then end the connection."""
        if not self.lost:
            self._write_no_more()
            self.transport.close()

    def abort(self) -> None:
        """End the connection at once; what is buffered is lost."""
        if self._gone and not self.lost:
            self._forget_rest()
            # Not from here: whoever aborts is not prepared for being told.
            self.turns.wait(self, flood=False)
        elif not self.lost:
            self._write_no_more()
            self.transport.abort()

    def _write_no_more(self) -> None:
        """A transport that is going down complains of what is written to it."""
        self.write = _drop
        if self._feeder is not None:
            self._feeder.write = _drop

    def release(self) -> None:
        """The owner is done with the leg: end it if it still lives, and give the transport's first owner its due."""
        self._released = True
        self.receiver = None
        self._forget_rest()
        if self._fast is not None:
            self._fast.slow = self._fast.write = _drop
        self.lost |= self._gone
        if self.lost:
            self._run_on_released()
        else:
            self.abort()

    # --- asyncio.Protocol ---------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes from the peer, for the receiver."""
        size = len(data)
        self._bytes += size
        if size < TINY_BYTES and not self._slow and not self._rest:
            self._data(data)
            return
        turns = self.turns
        if self._rest:
            # A transport may hand over what it had read before it was paused.
            self._rest.append(data)
            return
        left_s = turns.left_s
        if self._slow > 1 or left_s <= 0:
            self._rest.append(data)
            self._wait()
            return
        if size <= SLICE_BYTES and not self._slow:
            # The same in short.
            started = turns.clock()
            self._data(data)
            took_s = turns.clock() - started
            self._judge(took_s, size)
        else:
            self._rest.append(data)
            took_s = self._hand_over(left_s)
        if self._slow:
            turns.charge(took_s)
        if self._rest:
            self._wait()

    def eof_received(self) -> bool:
        """A WebSocket peer that ends its direction is gone (RFC 6455 §7.1.1): close ours too."""
        return False

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self.writing_paused = True
        if self._receiver is not None:
            self._receiver.writing(paused=True)

    def resume_writing(self) -> None:
        """The write buffer has room again."""
        self.writing_paused = False
        self.resumes += 1
        if self._receiver is not None:
            self._receiver.writing(paused=False)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        self._gone = True
        self.lost_by = exc
        self._write_no_more()
        self.data_received = _drop  # nothing refers to the leg in a circle any more
        if not self._rest or self._receiver is None:
            self.writing_paused = False
            self._end()
            return
        # What the peer said before it left counts, such as its CLOSE. It comes in turns as well: the end is no way to flood.
        if self.writing_paused:
            # Nobody must wait for room in it meanwhile.
            self.resume_writing()
        if not self.reading_paused:
            self.turns.wait(self, flood=self._slow > 1)

    def _end(self) -> None:
        """Everything has been handed over: tell the loss."""
        self.lost = True
        self._forget_rest()
        if self._receiver is not None:
            self._receiver.lost(self.lost_by)
        if self._released:
            self._run_on_released()

    def _run_on_released(self) -> None:
        callback, self._on_released = self._on_released, None
        if callback is not None:
            callback(self.lost_by)

    # --- turns --------------------------------------------------------------------------------------

    @property
    def turns(self) -> Turns:
        """The budget that the leg shares with all others."""
        if self._turns is None:
            self._turns = turns_of(asyncio.get_running_loop())
        return self._turns

    def turn(self, share_s: float) -> None:
        """Go on with what waits; the leg has left the queue."""
        try:
            self._hand_over(share_s)
        except Exception as error:  # as the event loop does with what comes out of ``data_received``
            context = {"message": "what a leg had read could not be handled", "exception": error, "transport": self.transport}
            asyncio.get_running_loop().call_exception_handler(context)
            self.abort()
        if self._rest:
            self._wait()
            return
        if self._fast is not None:
            self._fast.waiting = False
        if self._gone:
            self._end()
        elif not self.reading_paused:
            self._resume_transport()

    def _wait(self) -> None:
        """Keep what is left; whatever comes stays behind it."""
        if self._fast is not None:
            self._fast.waiting = True
        if not self.reading_paused:
            self._pause_transport()
            self.turns.wait(self, flood=self._slow > 1)

    def _hand_over(self, share_s: float) -> float:
        """Hand over what was read, piece by piece, until nothing is left, the time is over, or reading is paused.

        Returns: seconds that it took; of CPU time, when the last time was slow.
        """
        clock = self.turns.cpu_clock if self._slow else self.turns.clock
        handed, ahead = 0, HOT_WINDOW_BYTES
        started = now = clock()
        try:
            while self._rest and (not handed or (now - started < share_s and not self.reading_paused)):
                passed = self._pass_hot(ahead)
                # To look far ahead is worth its while where all of it passes.
                ahead = HOT_WINDOW_BYTES if passed >= ahead else SLICE_BYTES
                handed += passed or self._hand_over_slice()
                now = clock()
        except BaseException:
            # A receiver that failed in the middle is not given what follows.
            self._forget_rest()
            raise
        self._judge(now - started, handed)
        return now - started

    def _judge(self, took_s: float, size: int) -> None:
        """Tell a flood by what handing ``size`` bytes over took."""
        if took_s <= QUICK_S + size * QUICK_S_PER_BYTE:
            self._slow = 0
        elif self._slow < 2:
            self._slow += 1

    def _pass_hot(self, ahead: int) -> int:
        """Let pass what ``FastPath.data_received`` would of a smaller read; return how many bytes that were."""
        fast = self._fast
        if fast is None or fast.mode == SLOW:
            return 0
        data = self._peek(max(ahead, fast.left))
        passes = fast.skip(data)
        if passes:
            self._move(passes)
            fast.write(data if passes == len(data) else data[:passes])
        return passes

    def _hand_over_slice(self) -> int:
        """Give the receiver the rest of the frame that is under way, or else a little; return how many bytes that were.

        The time it takes is bounded by what it may hold: one end of a frame, or so many frames as go into a slice. A size that
        follows the pace so far would be no bound, for the next frames may be others.
        """
        data = self._peek((self._fast is not None and self._fast.left) or SLICE_BYTES)
        self._move(len(data))
        self._data(data)
        return len(data)

    def _peek(self, size: int) -> bytes:
        """The next bytes that wait, at most ``size``, and of one read only."""
        data, at = self._rest[0], self._at
        return data if at == 0 and len(data) <= size else data[at : at + size]

    def _move(self, size: int) -> None:
        """The next bytes do not wait any more."""
        self._at += size
        if self._at >= len(self._rest[0]):
            del self._rest[0]
            self._at = 0

    def _forget_rest(self) -> None:
        """Nobody wants what waits any more."""
        self._rest.clear()
        self._at = 0
        if self._turns is not None:
            self._turns.discard(self)


def _drop(data: bytes) -> None:
    """Where bytes go that nobody waits for."""
