"""Clients of a router whose ``listen`` has TLS, or begins with a PROXY header, or both.

A ``HandTls`` is a client's end with OpenSSL and without the event loop's TLS, so that a test decides when which byte goes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.helpers.raw import PATIENCE_S, RawPeer, upgrade_request
from tests.helpers.tls import HOST, Authority, Pair


def put(pair: Pair, folder: Path) -> Mapping[str, str]:
    """Put a certificate where a router looks for it, as tools do that replace one; return the section ``tls``."""
    for source, name in ((pair.key, "server.key"), (pair.certificate, "server.pem")):
        new = folder / f"{name}.new"
        new.write_bytes(source.read_bytes())
        new.replace(folder / name)
    return {"cert_file": str(folder / "server.pem"), "key_file": str(folder / "server.key")}


def client_context(authority: Authority) -> ssl.SSLContext:
    """A client's context as any program has one."""
    return ssl.create_default_context(cafile=str(authority.ca_file))


async def secure_client(
    port: int,
    context: ssl.SSLContext | None,
    *,
    before: bytes = b"",
    early: bytes = b"",
    request: bytes | None = None,
    receive_buffer: int | None = None,
    limit: int = 65536,
) -> RawPeer:
    """Connect to a router and open a session.

    Args:
        port: on the loopback.
        context: for TLS; ``None``: without.
        before: sent first, in clear: a PROXY header.
        early: sent right behind the request, in the same write.
        request: in the place of an upgrade.
        receive_buffer: SO_RCVBUF.
        limit: what the stream reads ahead.
    """
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        if before:
            await loop.sock_sendall(sock, before)
        more: dict[str, Any] = {} if context is None else {"ssl": context, "server_hostname": HOST}
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(sock=sock, limit=limit, **more)
    except BaseException:
        sock.close()
        raise
    peer = RawPeer(reader, writer, masks=True)
    try:
        await peer.send((upgrade_request(port) if request is None else request) + early)
        async with asyncio.timeout(PATIENCE_S):
            peer.head = await reader.readuntil(b"\r\n\r\n")
        if request is None:
            assert peer.head.startswith(b"HTTP/1.1 101 "), peer.head
    except BaseException:
        peer.abandon()
        raise
    return peer


class HandTls:
    """A client's end of TLS over plain streams, moved by hand."""

    def __init__(self, peer: RawPeer, context: ssl.SSLContext) -> None:
        self.peer = peer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self._incoming, self._outgoing, False, HOST)

    def sealed(self, data: bytes = b"") -> bytes:
        """Encrypt, and return what is to be sent, with what OpenSSL itself has to say."""
        if data:
            self.ssl.write(data)
        return self._outgoing.read()

    def hello(self) -> bytes:
        """The handshake's first message."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.ssl.do_handshake()
        return self._outgoing.read()

    async def shake_hands(self, *, piece: int = 65536) -> None:
        """Do the handshake, sending no more than ``piece`` bytes in one write."""
        out = self.hello()
        done = False
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for start in range(0, len(out), piece):
                    await self.peer.send(out[start : start + piece])
                    await asyncio.sleep(0)
                if done:
                    return
                await self._feed()
                try:
                    self.ssl.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    pass
                out = self._outgoing.read()

    async def read(self) -> bytes:
        """Decrypt some bytes; nothing: the server said ``close_notify``.

        Raises: ConnectionError: the connection ended without it.
        """
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return self.ssl.read(65536)
                except ssl.SSLZeroReturnError:
                    return b""
                except ssl.SSLWantReadError:
                    await self._feed()

    async def read_until(self, end: bytes) -> bytes:
        """Decrypt up to some bytes."""
        data = b""
        while end not in data:
            part = await self.read()
            assert part, data
            data += part
        return data

    def goodbye(self) -> bytes:
        """``close_notify``."""
        with contextlib.suppress(ssl.SSLError):
            self.ssl.unwrap()
        return self._outgoing.read()

    async def _feed(self) -> None:
        data = await self.peer.reader.read(65536)
        if not data:
            raise ConnectionResetError("the connection ended")
        self._incoming.write(data)
