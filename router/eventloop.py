"""The event loop that the router's own processes run on: uvloop where there is one, else asyncio's.

With two changes, for what a dial costs: TLS of the project's own (``router/tlstransport.py``), and no thread that resolves what
is an address already. A program that uses the library brings its own loop and goes without them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from router.tls import ResumingContext
from router.tlstransport import TlsTransport

_Base: type[asyncio.AbstractEventLoop]
try:
    import uvloop
except ImportError:  # not made for every platform
    _Base = asyncio.SelectorEventLoop
else:
    _Base = uvloop.Loop


class _Loop(_Base):  # type: ignore[valid-type, misc]
    async def getaddrinfo(self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        # uvloop's ``sock_connect`` names no type of socket, and its short cut for addresses wants one: without it five switches
        # between threads for each dial are a tenth of what a session costs.
        type = type or socket.SOCK_STREAM
        return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: Any = None,
        server_hostname: str | None = None,
        **options: Any,
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        if not isinstance(ssl, ResumingContext):
            made: tuple[asyncio.BaseTransport, asyncio.BaseProtocol] = await super().create_connection(
                protocol_factory, host, port, ssl=ssl, server_hostname=server_hostname, **options
            )
            return made
        # The dial has its own limits.
        for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            options.pop(name, None)
        app = protocol_factory()
        transport = TlsTransport(self, app, ssl, server_hostname or host)
        raw, _ = await super().create_connection(lambda: transport, host, port, **options)
        try:
            await transport.established
        except BaseException:
            raw.abort()
            raise
        return transport, app


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make one."""
    loop: asyncio.AbstractEventLoop = _Loop()
    return loop


__all__ = ["new_event_loop"]
