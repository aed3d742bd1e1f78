"""A client inside the process: the library face's end of a session.

``LocalTransport`` stands where a client's TCP connection would be, so that a program without a server gets the same relay,
limits, accounting and back-pressure as a client that came over the network. Frames are built and parsed on this side as any
WebSocket client does; the relay cannot tell the difference.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any, Final

from router.relay import frames
from router.relay.frames import BINARY, CLOSE, COLLECT, PING, PONG, TEXT, Disposition, FrameScanner
from router.relay.leg import Leg

# Received and not yet taken messages may hold this much before the upstream's reading is paused, and half of it when it goes on.
_HIGH_BYTES: Final = 1024 * 1024
_CHUNK_BYTES: Final = 256 * 1024
# What keeping a message costs besides its payload; an empty one is not free.
_MESSAGE_COST_BYTES: Final = 100


class SessionClosed(Exception):
    """The session is over.

    Attributes:
        code: close code, 1006 when the connection was lost (RFC 6455 §7.1.5).
        reason: close reason, may be empty.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"session closed with {code}" + (f" ({reason})" if reason else ""))
        self.code = code
        self.reason = reason


class LocalTransport(asyncio.Transport):
    """The client's side of a session in memory, and the sink of the frames that the relay writes to it."""

    def __init__(self, *, max_message_bytes: int) -> None:
        super().__init__()
        self.leg = Leg(self, masks=False)
        self.closed: tuple[int, str] | None = None  # the CLOSE that came, or 1006
        # Here every message is wanted whole.
        self._scanner = FrameScanner(
            masked=False, max_message_bytes=max_message_bytes, sink=self, collect_limit_bytes=max_message_bytes
        )
        self._loop = asyncio.get_running_loop()
        self._messages: deque[tuple[str | bytes, int]] = deque()  # each with what it counts for in ``_size``
        self._size = 0  # bytes in ``_messages``, as they came: a text has fewer characters than bytes
        self._arrived: asyncio.Future[None] | None = None  # only set while ``receive`` waits
        self._readable: asyncio.Future[None] | None = None  # only set while ``send`` waits
        self._writing_paused = False
        self._reading_paused = False
        self._closing = False
        self._close_sent = False

    # --- the program's side -------------------------------------------------------------------------

    async def send(self, opcode: int, payload: bytes) -> None:
        """Send a message; waits while the upstream takes nothing.

        Raises: SessionClosed: it is over.
        """
        if self._close_sent:
            raise SessionClosed(*(self.closed or (1000, "")))
        while self._reading_paused and self.closed is None and not self._closing:
            self._readable = self._readable or self._loop.create_future()
            await asyncio.shield(self._readable)
        if self.closed is not None or self._closing:
            raise SessionClosed(*(self.closed or (1006, "")))
        self._deliver(frames.encode_frame(opcode, payload, mask_key=os.urandom(4)))

    async def receive(self) -> str | bytes:
        """Return the next message.

        Raises: SessionClosed: there is none left, and none will come.
        """
        while not self._messages:
            if self.closed is not None:
                raise SessionClosed(*self.closed)
            self._arrived = self._arrived or self._loop.create_future()
            await asyncio.shield(self._arrived)
        message, cost = self._messages.popleft()
        self._size -= cost
        if self._writing_paused and self._size <= _HIGH_BYTES // 2:
            self._writing_paused = False
            self.leg.resume_writing()
        return message

    def send_close(self, code: int, reason: str) -> None:
        """Say CLOSE; the answer ends ``receive``."""
        if not self._close_sent and not self._closing:
            self._close_sent = True
            self._deliver(frames.encode_frame(CLOSE, frames.close_payload(code, reason), mask_key=os.urandom(4)))

    def _deliver(self, data: bytes) -> None:
        # In pieces, as a socket would: the relay's own bounds are made for reads of at most this size.
        for start in range(0, len(data), _CHUNK_BYTES):
            self.leg.data_received(data[start : start + _CHUNK_BYTES])

    def _wake(self) -> None:
        for name in ("_arrived", "_readable"):
            waiter = getattr(self, name)
            setattr(self, name, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    # --- Sink: what the relay sent ------------------------------------------------------------------

    def classify(self, opcode: int, event_type: str | None) -> Disposition:
        """Every message is wanted."""
        return COLLECT

    def message(self, opcode: int, event_type: str | None, size: int, payload: bytes | None) -> bytes | None:
        """A message is complete."""
        payload = payload or b""
        cost = size + _MESSAGE_COST_BYTES
        self._messages.append((payload.decode(errors="replace") if opcode == TEXT else payload, cost))
        self._size += cost
        if self._size > _HIGH_BYTES and not self._writing_paused:
            self._writing_paused = True
            self.leg.pause_writing()
        self._wake()
        return None

    def control(self, opcode: int, payload: bytes) -> bool:
        """Answer pings."""
        if opcode == PING:
            self._loop.call_soon(self._answer, frames.encode_frame(PONG, payload, mask_key=os.urandom(4)))
        return False

    def _answer(self, frame: bytes) -> None:
        if not self._closing and not self._close_sent:
            self._deliver(frame)

    def closing(self, code: int, reason: str) -> bool:
        """The other side said CLOSE: answer it."""
        self.closed = (code, reason)
        self._loop.call_soon(self.send_close, 1000 if code == 1005 else code, "")
        self._wake()
        return False

    # --- asyncio.Transport: the relay's side --------------------------------------------------------

    def write(self, data: Any) -> None:
        """Bytes for the client."""
        if self._closing:
            return
        self._scanner.feed(bytes(data))

    def close(self) -> None:
        """End it."""
        self._end()

    def abort(self) -> None:
        """End it."""
        self._end()

    def _end(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self.closed is None:
            self.closed = (1006, "")
        self._loop.call_soon(self.leg.connection_lost, None)
        self._wake()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """It is the leg's for ever."""

    def is_closing(self) -> bool:
        """Whether it was ended."""
        return self._closing

    def get_write_buffer_size(self) -> int:
        """Bytes the program has not taken yet."""
        return self._size

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The bound is this transport's own."""

    def pause_reading(self) -> None:
        """The upstream takes nothing: ``send`` waits."""
        self._reading_paused = True

    def resume_reading(self) -> None:
        """The upstream takes again."""
        self._reading_paused = False
        self._wake()


__all__ = ["BINARY", "TEXT", "LocalTransport", "SessionClosed"]
