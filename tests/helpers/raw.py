"""WebSocket peers over plain streams that may send anything: half frames, fragments, illegal bytes, resets.

They encode and decode on their own, without ``router.relay.frames``, so that a fault there cannot hide itself. A ``RawPeer`` is
either end: ``raw_client`` connects to a router, ``raw_upstream`` is what a router dials.

Unrealistic on purpose: a peer answers neither PING nor CLOSE unless told to, and reads only when a test reads.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import itertools
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, cast

import pytest
import uvloop

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

# Far beyond what anything here takes; only a fault reaches it.
PATIENCE_S: Final = 15.0
SESSION_CREATED: Final = b'{"type":"session.created","event_id":"event_1","session":{"id":"sess_1","object":"realtime.session"}}'

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


# What ``connect`` made in the test that runs.
_clients: ContextVar[list[RawPeer]] = ContextVar("clients")


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test on asyncio's loop and on uvloop. It may take parameters and fixtures that are not asynchronous."""

    async def main(given: dict[str, Any]) -> None:
        clients: list[RawPeer] = []
        _clients.set(clients)
        try:
            await test(**given)
        finally:
            # A test that fails must not be buried under warnings of what it left open.
            for client in clients:
                client.abandon()
            await asyncio.sleep(0)

    def run(loop: str, **given: Any) -> None:
        with asyncio.Runner(loop_factory=_LOOPS[loop]) as runner:
            runner.run(main(given))

    # Not ``functools.wraps``: pytest would take it for asynchronous, and see no parameter ``loop``.
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    loop = inspect.Parameter("loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([loop, *inspect.signature(test).parameters.values()])  # type: ignore[attr-defined]
    return cast(Callable[..., None], pytest.mark.parametrize("loop", sorted(_LOOPS))(run))


# --- frames -------------------------------------------------------------------------------------


def xor(data: bytes, key: bytes) -> bytes:
    """Mask or unmask (RFC 6455 §5.3)."""
    size = len(data)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


def encode(
    opcode: int,
    payload: bytes = b"",
    *,
    masked: bool,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = None,
    length: int | None = None,
    form: int | None = None,
) -> bytes:
    """Encode a frame, legal or not.

    Args:
        opcode: any of 16.
        payload: before masking.
        masked: whether it is.
        fin: the FIN bit.
        rsv: the three reserved bits.
        key: of the mask, random unless given.
        length: the announced one, where it is to be a lie.
        form: 7, 16 or 64 bits for the length; the shortest unless given.
    """
    announced = len(payload) if length is None else length
    if form is None:
        form = 7 if announced < 126 else 16 if announced < 65536 else 64
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if masked else 0
    if form == 7:
        head += bytes([bit | announced])
    elif form == 16:
        head += bytes([bit | 126]) + struct.pack(">H", announced)
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", announced)
    if not masked:
        return head + payload
    key = os.urandom(4) if key is None else key
    return head + key + xor(payload, key)


def close_frame(code: int | None, reason: bytes | str = b"", *, masked: bool) -> bytes:
    """A CLOSE; ``None``: without a code."""
    text = reason.encode() if isinstance(reason, str) else reason
    return encode(CLOSE, b"" if code is None else struct.pack(">H", code) + text, masked=masked)


def fragments(payload: bytes, cuts: list[int], *, masked: bool, opcode: int = TEXT) -> list[bytes]:
    """A message as one frame a piece; empty pieces are allowed."""
    edges = [0, *sorted(cuts), len(payload)]
    parts = [payload[start:end] for start, end in itertools.pairwise(edges)]
    return [
        encode(opcode if index == 0 else CONTINUATION, part, masked=masked, fin=index == len(parts) - 1)
        for index, part in enumerate(parts)
    ]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it came."""

    opcode: int
    fin: bool
    masked: bool
    payload: bytes

    @property
    def close(self) -> tuple[int | None, bytes]:
        """Code and reason of a CLOSE."""
        return (None, b"") if not self.payload else (struct.unpack(">H", self.payload[:2])[0], self.payload[2:])


@dataclass(frozen=True, slots=True)
class Ended:
    """How a connection ended, seen from one end.

    Attributes:
        code: of the CLOSE, ``None`` when it had none.
        reason: of the CLOSE.
        clean: there was a CLOSE.
        messages: that came before.
    """

    code: int | None
    reason: bytes
    clean: bool
    messages: list[bytes]


@dataclass(slots=True)
class RawPeer:
    """One end of a WebSocket connection.

    Attributes:
        reader, writer: the streams.
        masks: what it sends is masked: it is the client.
        controls: PINGs and PONGs that ``message`` passed by.
        head: the HTTP head that the other end sent.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    masks: bool
    head: bytes = b""
    controls: list[Frame] = field(default_factory=list)

    # --- sending ---

    async def send(self, data: bytes) -> None:
        """Send bytes as they are, and wait while the other end takes nothing."""
        self.writer.write(data)
        await self.writer.drain()

    async def send_frame(self, opcode: int, payload: bytes = b"", **odd: Any) -> None:
        """Send a frame; ``odd`` are ``encode``'s."""
        await self.send(encode(opcode, payload, **{"masked": self.masks, **odd}))

    async def text(self, payload: bytes) -> None:
        """Send a text message."""
        await self.send_frame(TEXT, payload)

    async def close(self, code: int | None = 1000, reason: bytes | str = b"") -> None:
        """Send a CLOSE; the connection stays open."""
        await self.send(close_frame(code, reason, masked=self.masks))

    def half_close(self) -> None:
        """End the sending direction of the TCP connection (FIN)."""
        self.writer.write_eof()

    def hang_up(self) -> None:
        """End the connection (FIN) without another word."""
        self.writer.close()

    def reset(self) -> None:
        """End the connection by RST."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and sock.fileno() != -1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    # --- receiving ---

    async def frame(self) -> Frame:
        """Receive a frame.

        Raises: asyncio.IncompleteReadError, ConnectionError: the connection has ended.
        """
        async with asyncio.timeout(PATIENCE_S):
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack(">H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", await self.reader.readexactly(8))
            key = await self.reader.readexactly(4) if second & 0x80 else None
            payload = await self.reader.readexactly(size)
        assert not first & 0x70, f"reserved bits in {first:#x}"
        return Frame(first & 0x0F, bool(first & 0x80), key is not None, xor(payload, key) if key is not None else payload)

    async def data_frame(self) -> Frame:
        """Receive a frame that is no PING or PONG; those are kept in ``controls``."""
        while True:
            frame = await self.frame()
            if frame.opcode not in (PING, PONG):
                return frame
            self.controls.append(frame)

    async def message(self) -> bytes:
        """Receive a message, whatever its fragments; a CLOSE in its place fails the test."""
        parts: list[bytes] = []
        while True:
            frame = await self.data_frame()
            assert frame.opcode != CLOSE, f"closed with {frame.close}"
            assert (frame.opcode == CONTINUATION) == bool(parts), "fragments out of order"
            parts.append(frame.payload)
            if frame.fin:
                return b"".join(parts)

    async def closed(self) -> tuple[int | None, bytes]:
        """Receive frames up to the CLOSE, and return its code and reason.

        Raises: asyncio.IncompleteReadError, ConnectionError: the connection ended without.
        """
        while True:
            frame = await self.data_frame()
            if frame.opcode == CLOSE:
                return frame.close

    async def end(self) -> Ended:
        """Receive everything to the end of the connection, answering nothing."""
        messages: list[bytes] = []
        parts: list[bytes] = []
        closing: Frame | None = None
        try:
            while True:
                frame = await self.data_frame()
                if frame.opcode == CLOSE:
                    assert closing is None, "two CLOSE frames"
                    closing = frame
                    continue
                assert closing is None, "a message after the CLOSE (RFC 6455 §5.5.1)"
                parts.append(frame.payload)
                if frame.fin:
                    messages.append(b"".join(parts))
                    parts.clear()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        if closing is None:
            return Ended(None, b"", False, messages)
        return Ended(*closing.close, True, messages)

    async def gone(self) -> bytes:
        """Read to the end of the connection, and return what came."""
        data = bytearray()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while chunk := await self.reader.read(65536):
                    data += chunk
        except ConnectionError:
            pass
        return bytes(data)

    def abandon(self) -> None:
        """Cut the connection; for the end of a test."""
        self.writer.transport.abort()


# --- the client's end ---------------------------------------------------------------------------


def upgrade_request(port: int, model: str = "voice") -> bytes:
    """The head of an upgrade request."""
    key = base64.b64encode(random.Random(1).randbytes(16)).decode()
    return (
        f"GET /v1/realtime?model={model} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()


async def connect(port: int, *, receive_buffer: int | None = None, limit: int = 65536) -> RawPeer:
    """Open a TCP connection to a router; nothing is sent yet.

    Args:
        port: on the loopback.
        receive_buffer: SO_RCVBUF, so that a reader that takes nothing is full early.
        limit: what the stream reads ahead.
    """
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    peer = RawPeer(reader, writer, masks=True)
    clients = _clients.get(None)
    if clients is not None:
        clients.append(peer)
    return peer


async def raw_client(port: int, *, early: bytes = b"", model: str = "voice", **how: Any) -> RawPeer:
    """Connect to a router and open a session.

    Args:
        port: on the loopback.
        early: sent right behind the request, in the same write.
        model: the group.
        how: ``connect``'s.
    """
    peer = await connect(port, **how)
    try:
        await peer.send(upgrade_request(port, model) + early)
        async with asyncio.timeout(PATIENCE_S):
            peer.head = await peer.reader.readuntil(b"\r\n\r\n")
        assert peer.head.startswith(b"HTTP/1.1 101 "), peer.head
    except BaseException:
        peer.abandon()
        raise
    return peer


# --- the upstream's end -------------------------------------------------------------------------


class RawUpstream:
    """A server that a router dials. Each connection gets a 101, and ``greeting`` in the same write.

    Attributes:
        greeting: frames that follow the 101 at once.
        sockets: SO_RCVBUF of what is accepted, ``None``: the system's.
    """

    def __init__(self, greeting: bytes, receive_buffer: int | None) -> None:
        self.greeting = greeting
        self.peers: list[RawPeer] = []
        self._receive_buffer = receive_buffer
        self._arrived: asyncio.Queue[RawPeer] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def api_base(self) -> str:
        """For a deployment."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def accept(self) -> RawPeer:
        """The next connection that was answered with a 101."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._arrived.get()

    async def start(self) -> None:
        """Listen."""
        sock = socket.socket()
        if self._receive_buffer is not None:
            # Inherited by what is accepted.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        sock.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._serve, sock=sock)
        self.port = sock.getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and cut what is open."""
        assert self._server is not None
        self._server.close()
        for peer in self.peers:
            peer.abandon()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()
            return
        lines = head.split(b"\r\n")
        key = next(line.split(b":", 1)[1].strip() for line in lines if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + accept
            + b"\r\n\r\n"
            + self.greeting
        )
        peer = RawPeer(reader, writer, masks=False, head=head)
        self.peers.append(peer)
        self._arrived.put_nowait(peer)


@asynccontextmanager
async def raw_upstream(
    *, greeting: bytes | None = None, receive_buffer: int | None = None
) -> AsyncIterator[RawUpstream]:
    """A server for a router to dial; its greeting is a ``session.created`` unless given."""
    upstream = RawUpstream(encode(TEXT, SESSION_CREATED, masked=False) if greeting is None else greeting, receive_buffer)
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.stop()
