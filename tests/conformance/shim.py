"""A TCP proxy for a client that knows a host and a port and nothing else: it writes the request's head anew, the rest verbatim.

Every byte behind the head passes as it came, and so do both ways of ending a connection, FIN for each direction apart and RST.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

# Longer than any client's.
_MAX_HEAD_BYTES = 16 * 1024


class _End(asyncio.Protocol):
    """One of the two connections of a pair."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End
        self._before = bytearray()  # came before the other connection was there
        self._ended = False  # this connection has said FIN
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        other = self.other
        if other._before:
            self.transport.write(bytes(other._before))
            other._before.clear()
        if other._ended:
            self.transport.write_eof()

    def data_received(self, data: bytes) -> None:
        if self.other.transport is None:
            self._before += data
        elif not self.other.lost:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        transport = self.other.transport
        if transport is not None and not self.other.lost:
            transport.write_eof()
        # With both directions at their end, asyncio closes this one.
        return not self.other._ended

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        transport = self.other.transport
        if transport is None or self.other.lost:
            return
        if exc is None:
            transport.close()
        else:
            transport.abort()


class _Front(_End):
    """The client's connection: its request goes on under another path and with more headers."""

    def __init__(self, port: int, path: str, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.other = _End()
        self.other.other = self
        self._port = port
        self._target = f"GET {path} HTTP/1.1\r\n".encode()
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        self._dial: asyncio.Task[None] | None = None  # only set once the head is complete

    def data_received(self, data: bytes) -> None:
        if self._dial is not None:
            super().data_received(data)
            return
        self._before += data
        if b"\r\n\r\n" not in self._before:
            assert len(self._before) < _MAX_HEAD_BYTES, "a request without an end"
            return
        first = self._before.index(b"\r\n") + 2
        self._before[:first] = self._target + self._headers
        self._dial = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.other, "127.0.0.1", self._port)
        except OSError:
            assert self.transport is not None
            self.transport.abort()
            return
        if self.lost:
            assert self.other.transport is not None
            self.other.transport.abort()


@asynccontextmanager
async def rewriting_shim(port: int, *, path: str, headers: Mapping[str, str]) -> AsyncIterator[int]:
    """Run the proxy until the block ends; the value is its port.

    Args:
        port: of the server behind it, on the loopback.
        path: with its query, in the place of the client's.
        headers: in front of the client's own.
    """
    fronts: list[_Front] = []

    def accept() -> _Front:
        front = _Front(port, path, headers)
        fronts.append(front)
        return front

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for front in fronts:
            for end in (front, front.other):
                if end.transport is not None:
                    end.transport.abort()
        await server.wait_closed()
