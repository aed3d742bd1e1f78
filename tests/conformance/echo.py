"""A WebSocket server that sends back every message, as strict as RFC 6455 can be read: the upstream of the Autobahn cases.

It handles what comes in the order in which it came, refuses the first byte that is illegal, and looks at the UTF-8 of a text
while it arrives (§8.1), so that in front of it the suite finds nothing to excuse. It knows nothing of ``router.relay.frames``.

A lenient one takes whatever can be read as a frame: what is refused in front of it was refused by somebody else.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import hashlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

from tests.helpers.raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode, xor

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
# How long a peer that was told CLOSE may go on talking before its connection is cut.
_LINGER_S: Final = 2.0


class _Breach(Exception):
    """The client broke the protocol; ``code`` is what it gets for that."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class EchoConnection(asyncio.Protocol):
    """One connection, from its request to its end.

    Args:
        strict: whether breaches of the protocol are refused.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._open = False  # the 101 has been sent
        self._over = False  # CLOSE has been sent: nothing is looked at any more
        self._frame: tuple[int, bool, bytes] | None = None  # opcode, FIN and key of the frame that is under way
        self._left = 0  # payload bytes of it still to come
        self._seen = 0  # payload bytes of it that came
        self._control = bytearray()
        self._message: bytearray | None = None  # set from a message's first frame to its last
        self._opcode = TEXT
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    # --- asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of it."""
        if self._over:
            return
        self._buffer += data
        if not self._open and not self._accept():
            return
        try:
            while not self._over and self._step():
                pass
        except _Breach as breach:
            self._end(breach.code, breach.reason)

    def eof_received(self) -> bool:
        """It has nothing more to say."""
        return False

    def pause_writing(self) -> None:
        """It does not take its echoes: it is not listened to meanwhile."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It takes them again."""
        self._transport.resume_reading()

    # --- the request --------------------------------------------------------------------------------

    def _accept(self) -> bool:
        """Answer the upgrade request once it is all there."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        key = next(line.partition(b":")[2].strip() for line in lines if line.lower().startswith(b"sec-websocket-key:"))
        accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        self._transport.write(head + accept + b"\r\n\r\n")
        self._open = True
        return True

    # --- frames -------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Take a head, or a piece of payload, from the buffer. Returns whether there was enough of it."""
        if self._frame is None:
            return self._begin()
        if self._left and not self._buffer:
            return False
        opcode, fin, key = self._frame
        part = bytes(self._buffer[: self._left])
        del self._buffer[: self._left]
        if part:
            turn = self._seen & 3
            part = xor(part, key[turn:] + key[:turn])
        self._left -= len(part)
        self._seen += len(part)
        if opcode & 0x8:
            self._control += part
        else:
            if self._message is None:
                self._message = bytearray()
            self._message += part
            if self._strict and self._opcode == TEXT:
                self._check_text(part, final=fin and not self._left)
        if not self._left:
            self._finish(opcode, fin)
        return True

    def _begin(self) -> bool:
        """Read a frame's head."""
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        first, second = buffer[0], buffer[1]
        opcode, fin, size = first & 0xF, bool(first & 0x80), second & 0x7F
        if self._strict:
            self._check_head(first, second)
        extended = {126: 2, 127: 8}.get(size, 0)
        if len(buffer) < 2 + extended + 4:
            return False
        if extended:
            size = int.from_bytes(buffer[2 : 2 + extended], "big")
            if self._strict and (size < (126 if extended == 2 else 65536) or size >> 63):
                raise _Breach(1002, "length not in its shortest form")
        self._frame = opcode, fin, bytes(buffer[2 + extended : 6 + extended])
        self._left, self._seen = size, 0
        del buffer[: 6 + extended]
        if opcode & 0x8:
            self._control.clear()
        elif opcode != CONTINUATION:
            self._opcode = opcode
            self._message = bytearray()
            self._utf8.reset()
        return True

    def _check_head(self, first: int, second: int) -> None:
        opcode = first & 0xF
        if first & 0x70:
            raise _Breach(1002, "reserved bit")
        if not second & 0x80:
            raise _Breach(1002, "not masked")
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise _Breach(1002, "reserved opcode")
        if opcode & 0x8:
            if not first & 0x80 or second & 0x7F > 125:
                raise _Breach(1002, "control frame in pieces or too long")
        elif (opcode == CONTINUATION) != (self._message is not None):
            raise _Breach(1002, "fragments out of order")

    def _check_text(self, part: bytes, *, final: bool) -> None:
        try:
            self._utf8.decode(part, final)
        except UnicodeDecodeError:
            raise _Breach(1007, "not UTF-8") from None

    def _finish(self, opcode: int, fin: bool) -> None:
        """A frame is complete."""
        self._frame = None
        if opcode == PING:
            self._transport.write(encode(PONG, bytes(self._control), masked=False))
        elif opcode == CLOSE:
            self._closed(bytes(self._control))
        elif not opcode & 0x8 and fin:
            message, self._message = self._message, None
            # A reserved opcode must not go back as it came: the suite would end the connection itself, and be content.
            opcode = TEXT if self._opcode == TEXT else BINARY
            self._transport.write(encode(opcode, bytes(message or b""), masked=False))

    # --- the end ------------------------------------------------------------------------------------

    def _closed(self, payload: bytes) -> None:
        """A CLOSE came: it is answered with its own code (§5.5.1)."""
        if self._strict:
            self._check_close(payload)
        self._end(struct.unpack(">H", payload[:2])[0] if len(payload) >= 2 else None, "")

    def _check_close(self, payload: bytes) -> None:
        if len(payload) == 1:
            raise _Breach(1002, "close payload of one byte")
        if not payload:
            return
        (code,) = struct.unpack(">H", payload[:2])
        # §7.4.1, and 1012 to 1014 of the registry.
        if not (3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))):
            raise _Breach(1002, "close code")
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            raise _Breach(1007, "close reason not UTF-8") from None

    def _end(self, code: int | None, reason: str) -> None:
        """Send CLOSE and end this direction; what is still on its way is read, or a reset could overtake the CLOSE."""
        self._over = True
        self._buffer.clear()
        payload = b"" if code is None else struct.pack(">H", code) + reason.encode()
        self._transport.write(encode(CLOSE, payload, masked=False))
        self._transport.write_eof()
        # As long as echoes are not taken reading would stay paused.
        self._transport.set_write_buffer_limits(high=1 << 30)
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(_LINGER_S, self._transport.abort)


@asynccontextmanager
async def echo_server(*, strict: bool = True) -> AsyncIterator[int]:
    """Run the server on the loopback until the block ends; the value is its port."""
    server = await asyncio.get_running_loop().create_server(lambda: EchoConnection(strict=strict), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
