"""One transport of a session under the project's own ``asyncio.Protocol``.

A leg knows nothing of the other one: it hands what it reads to its ``Receiver``, which is the opening handshake's waiter first
and the relay later. Its flags say what the relay's sweep needs: when bytes last came, whether reading or writing stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Final, Protocol

from router.relay.fastpath import FAIR_BYTES, FastPath
from router.relay.frames import encode_frame

# Above this a transport's write buffer stops the other leg's reading. Bound per leg: this plus one read of at most 256 KiB.
WRITE_BUFFER_HIGH_BYTES: Final = 64 * 1024

# A read of ``FAIR_BYTES`` or more may be a flood, and is timed. What is handed over between two looks at the clock: 64 KiB of
# the smallest frames take up to 100 ms, so a leg whose slices take longer than a turn gets smaller ones, down to the second
# number, until they are quick again.
SLICE_BYTES: Final = 64 * 1024
LEAST_SLICE_BYTES: Final = 2 * 1024
# How long one leg may keep the event loop, and for how long it is not read after that, in seconds.
TURN_S: Final = 0.005
PAUSE_S: Final = 0.001


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
    """

    __slots__ = (
        "_bytes",
        "_data",
        "_fast",
        "_feeder",
        "_on_released",
        "_receiver",
        "_released",
        "_rest",
        "_slice",
        "_turn",
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
        self, transport: asyncio.Transport, *, masks: bool, on_released: Callable[[BaseException | None], None] | None = None
    ) -> None:
        self.transport = transport
        self.masks = masks
        self._bytes = 0  # read so far, without those that the fast path passed on
        self._fast: FastPath | None = None  # whose reads this leg's are, once there is another leg to write to
        self._feeder: FastPath | None = None  # who writes to this leg
        # Queue bytes; they are dropped when the connection is gone. The transport's own method: nothing stands in between.
        self.write: Callable[[bytes], object] = transport.write
        self.data_received: Callable[[bytes], None] = self.received
        self.lost = False
        self.lost_by: BaseException | None = None  # only set once ``lost``; ``None`` then means an orderly end of the stream
        self.reading_paused = False
        self.writing_paused = False
        self.resumes = 0  # how often the write buffer had room again
        self._released = False
        self._rest = b""  # of a read that waits for its turn; reading is paused then
        self._slice = FAIR_BYTES  # grows while what the peer sends is quickly handled, and shrinks when it is not
        self._turn: asyncio.TimerHandle | None = None  # only set while the leg waits for its turn
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
        if not self.lost:
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

    def pause_reading(self) -> None:
        """Stop reading until ``resume_reading``."""
        if self.reading_paused or self.lost:
            return
        self.reading_paused = True
        self._pause_transport()

    def resume_reading(self) -> None:
        """Read again."""
        if not self.reading_paused or self.lost:
            return
        self.reading_paused = False
        if self._rest:
            self._wait_for_turn()
        elif self._turn is None:
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
        if not self.lost:
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
        self._rest = b""
        if self._fast is not None:
            self._fast.slow = self._fast.write = _drop
        if self.lost:
            self._run_on_released()
        else:
            self.abort()

    # --- asyncio.Protocol ---------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes from the peer, for the receiver."""
        self._bytes += len(data)
        if len(data) < FAIR_BYTES and not self._rest:
            self._data(data)
        else:
            self._fairly(data)

    def _fairly(self, data: bytes) -> None:
        """Hand a large read over in slices, and let other sessions have their turn when that takes long.

        A read is up to 256 KiB, and libuv makes up to 32 of them in a row while more is there: 43,690 tiny frames each, which is
        seconds of work without a turn for anybody else.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
            if self._fast is not None:
                self._fast.waiting = False
        started = now = time.monotonic()
        at = 0
        while at < len(data):
            if at and (self.reading_paused or now - started > TURN_S):
                self._rest = data[at:]
                if self._fast is not None:
                    self._fast.waiting = True
                break
            size = self._slice
            self._data(data if at == 0 and len(data) <= size else data[at : at + size])
            at += size
            before, now = now, time.monotonic()
            if now - before > TURN_S:
                self._slice = max(LEAST_SLICE_BYTES, size // 2)
            elif size < SLICE_BYTES and now - before < TURN_S / 4:
                self._slice = size * 2
        if (self._rest or now - started > TURN_S) and not self.reading_paused:
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        if self._turn is not None or self.lost:
            return
        self._pause_transport()
        self._turn = asyncio.get_running_loop().call_later(PAUSE_S, self._next_turn)

    def _next_turn(self) -> None:
        self._turn = None
        if self.lost or self.reading_paused:
            return
        if self._rest:
            self._fairly(b"")
        # Either may have been set by what was just handed over.
        if self._turn is None and not self.reading_paused:
            self._resume_transport()

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
        self.lost = True
        self.lost_by = exc
        self._write_no_more()
        self.data_received = _drop  # nothing refers to the leg in a circle any more
        self.writing_paused = False
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self._rest:
            rest, self._rest = self._rest, b""
            self._data(rest)
        receiver = self._receiver
        if receiver is not None:
            receiver.lost(exc)
        if self._released:
            self._run_on_released()

    def _run_on_released(self) -> None:
        callback, self._on_released = self._on_released, None
        if callback is not None:
            callback(self.lost_by)


def _drop(data: bytes) -> None:
    """Where bytes go that nobody waits for."""
