"""The event loop that the router's own processes run on: uvloop where there is one, else asyncio's.

With two changes, for what a dial costs: TLS of the project's own (``router/tlstransport.py``), behind a proxy as well, and no
thread that resolves what is an address already. A program that uses the library brings its own loop and goes without them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from router.tls import ResumingContext
from router.tlstransport import TlsTransport


def loop_class(base: type[asyncio.AbstractEventLoop]) -> type[asyncio.AbstractEventLoop]:
    """Return a class of event loops with the changes.

    Args:
        base: without them.
    """

    # mypy knows no class whose base is a parameter.
    class Loop(base):  # type: ignore[valid-type, misc]
        async def getaddrinfo(
            self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
        ) -> Any:
            # uvloop's ``sock_connect`` names no type of socket, and its short cut for addresses wants one: without it five
            # switches between threads for each dial are a tenth of what a session costs.
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
            _without_limits(options)
            app = protocol_factory()
            transport = TlsTransport(self, app, ssl, server_hostname or host)
            raw = (await super().create_connection(lambda: transport, host, port, **options))[0]
            try:
                await transport.established
            except BaseException:
                raw.abort()
                # What is raised holds this frame: together they would wait for the collector.
                del app, raw, transport
                raise
            return transport, app

        async def start_tls(
            self,
            transport: Any,
            protocol: asyncio.BaseProtocol,
            sslcontext: Any,
            *,
            server_side: bool = False,
            server_hostname: str | None = None,
            **options: Any,
        ) -> asyncio.Transport | None:
            # Behind the CONNECT of a proxy. One that is dialled by ``https://`` itself has a ``TlsTransport``, which the event
            # loop would not take.
            if server_side or not isinstance(sslcontext, ResumingContext):
                upgraded: asyncio.Transport | None = await super().start_tls(
                    transport, protocol, sslcontext, server_side=server_side, server_hostname=server_hostname, **options
                )
                return upgraded
            if transport.is_closing():
                raise ConnectionResetError("connection lost before the TLS handshake")
            tls = TlsTransport(self, protocol, sslcontext, server_hostname, announced=True)
            transport.set_protocol(tls)
            tls.connection_made(transport)
            transport.resume_reading()
            try:
                await tls.established
            except BaseException:
                transport.abort()
                del protocol, tls, transport
                raise
            return tls

    return Loop


def _without_limits(options: dict[str, Any]) -> None:
    """The dial has its own limits of time."""
    for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
        options.pop(name, None)


try:
    import uvloop
except ImportError:  # not made for every platform
    _Loop = loop_class(asyncio.SelectorEventLoop)
else:
    _Loop = loop_class(uvloop.Loop)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make one."""
    return _Loop()


__all__ = ["loop_class", "new_event_loop"]
