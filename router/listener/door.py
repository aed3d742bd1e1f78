"""A connection on its way in, from accept until the application has it: PROXY header, TLS handshake, and their limits.

The header comes first, in clear, and only from ``trusted_proxies``; then the handshake. Both together have
``handshake_timeout_s``; the application gives the request's head as much again. A connection counts against the limit of
descriptors from its accept on. Whom the door sends away is told nothing and logged seldom, for the whole world may knock.

With TLS the application gets a ``TlsTransport``; without, the transport of the event loop itself, so that a session behind a
PROXY header is relayed as any other.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from router.config.settings import ServerSettings
from router.events import Event, Notice
from router.handshake import is_trusted
from router.listener import proxyprotocol
from router.listener.certificate import Certificate, UnfitCertificate
from router.tlstransport import TlsTransport

#: Seconds between two lines about connections that were sent away for the same reason.
COMPLAIN_EVERY_S: Final = 10.0
_HANDSHAKE_RECORD: Final = 0x16  # RFC 8446 §5.1
_PLAIN_BODY: Final = json.dumps(
    {
        "error": {
            "type": "invalid_request_error",
            "code": "tls_required",
            "message": "This address speaks TLS: connect by wss:// or https://.",
            "param": None,
        }
    }
).encode()
_PLAIN_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
    % (len(_PLAIN_BODY), _PLAIN_BODY)
)


class Room(Protocol):
    """What all connections of the process share."""

    open: int

    def full(self) -> bool:
        """No room for the last connection that was counted."""


class Guest(Protocol):
    """The application's protocol for one connection."""

    def admitted(self, peer: str, *, named: bool) -> None:
        """Come before ``connection_made``: the connection is counted already, and its end is the guest's to count.

        Args:
            peer: address of whoever opened the connection, behind a proxy as the PROXY header has it.
            named: not by a proxy that could not tell for whom it speaks.
        """


class Complaints:
    """Tells of connections that were sent away: each reason at once, and then no more often than ``COMPLAIN_EVERY_S``.

    Args:
        tell: gets the lines.
        clock: monotonic seconds.
    """

    def __init__(self, tell: Callable[[Event], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}  # reason → when it was told last, and how often it came since

    def __call__(self, reason: str, client: str, detail: str) -> None:
        """Tell, or count for the next time.

        Args:
            reason: one of a few.
            client: address, as far as it is known.
            detail: more about this one.
        """
        now = self._clock()
        last, more = self._last.get(reason, (-COMPLAIN_EVERY_S, 0))
        if now - last < COMPLAIN_EVERY_S:
            self._last[reason] = (last, more + 1)
            return
        self._last[reason] = (now, 0)
        facts: dict[str, Any] = {"reason": reason, "client": client, "detail": detail}
        if more:
            facts["more"] = more  # untold since the last line
        self._tell(Notice(level="warning", event="connection refused", facts=facts))


class Doors:
    """Makes doors for one listening address.

    Args:
        room: where connections are counted.
        certificate: for TLS.
        tell: gets what there is to log.
    """

    def __init__(self, room: Room, certificate: Certificate, tell: Callable[[Event], None]) -> None:
        self.room = room
        self.certificate = certificate
        self.complain = Complaints(tell)
        self.open: set[Door] = set()

    def door(self, server: ServerSettings, guest: Callable[[], Guest]) -> asyncio.BaseProtocol:
        """Return the protocol for a connection that is being accepted.

        Args:
            server: of the generation in force.
            guest: makes the application's protocol, when the connection is about to be its.
        """
        return Door(self, server, guest)

    def close(self) -> None:
        """Cut those that are on their way in."""
        for door in list(self.open):
            door.abort()


class Door(asyncio.Protocol):
    """One connection; see the module."""

    __slots__ = (
        "_aborted",
        "_client",
        "_done",
        "_doors",
        "_early",
        "_guest",
        "_header",
        "_named",
        "_server",
        "_timer",
        "_tls",
        "_transport",
    )

    def __init__(self, doors: Doors, server: ServerSettings, guest: Callable[[], Guest]) -> None:
        self._doors = doors
        self._server = server
        self._guest = guest
        self._client = ""
        self._named = True
        self._header = server.proxy_protocol  # it is to come, or to be completed
        self._early = bytearray()  # of the header
        self._aborted = False  # by the door itself
        self._done = False  # the connection was sent away, or is somebody else's
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport  # set by ``connection_made``
        self._tls: TlsTransport | None = None  # only set during its handshake

    # --- asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody knocks."""
        self._transport = cast(asyncio.Transport, transport)
        doors = self._doors
        doors.room.open += 1
        doors.open.add(self)
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else ""
        if doors.room.full():
            self._done = True
            self._transport.abort()
        elif self._header and not is_trusted(self._client, self._server.trusted_proxies):
            self._refuse("untrusted proxy", "found somebody else, expected one of general_settings.trusted_proxies")
        else:
            self._timer = asyncio.get_running_loop().call_later(self._server.handshake_timeout_s, self._late)

    def data_received(self, data: bytes) -> None:
        """Bytes of the header, or the first ones behind it."""
        if self._done:
            return
        if self._header:
            self._early += data
            try:
                header = proxyprotocol.parse(self._early)
            except proxyprotocol.BadHeader as error:
                self._refuse("PROXY header", str(error))
                return
            if header is None:
                return
            self._header = False
            self._client = header.source or self._client
            self._named = header.source is not None
            data = bytes(self._early[header.size :])
            self._early.clear()
        if self._server.tls is None:
            self._let_in(data)
        elif data:
            self._secure(data)

    def eof_received(self) -> bool:
        """Who has no more to say before the beginning is gone."""
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone, while it was the door's."""
        self._leave()
        self._doors.room.open -= 1

    # --- TLS ----------------------------------------------------------------------------------------

    def _secure(self, data: bytes) -> None:
        """Begin the handshake with the first bytes."""
        assert self._server.tls is not None
        if data[0] != _HANDSHAKE_RECORD:
            self._refuse("plain HTTP", "found bytes that are no TLS, expected wss:// or https://", answer=_PLAIN_ANSWER)
            return
        try:
            context = self._doors.certificate.context(self._server.tls)
        except UnfitCertificate as error:
            self._refuse("certificate", str(error))
            return
        guest = self._guest()
        guest.admitted(self._client, named=self._named)
        tls = TlsTransport(
            asyncio.get_running_loop(), cast(asyncio.BaseProtocol, guest), context, None, server_side=True
        )
        self._tls = tls
        self._done = True
        # Called at the end of the handshake or of the connection, whichever comes first.
        tls.established.add_done_callback(self._shaken)
        self._transport.set_protocol(cast(asyncio.BaseProtocol, tls))
        tls.connection_made(self._transport)
        tls.data_received(data)

    def _shaken(self, established: asyncio.Future[None]) -> None:
        self._leave()
        error = established.exception()
        if error is None:
            return
        # The guest has heard of nothing.
        self._doors.room.open -= 1
        if isinstance(error, ssl.SSLError):
            reason = (error.reason or str(error)).lower().replace("_", " ")
            self._doors.complain("TLS handshake", self._client, reason)
        elif not self._aborted:
            # Many programs that do not accept a certificate go without a word.
            self._doors.complain("TLS handshake", self._client, "found the end of the connection in its middle")

    # --- ways out -----------------------------------------------------------------------------------

    def _let_in(self, data: bytes) -> None:
        """Without TLS: the transport itself is the guest's."""
        guest = self._guest()
        guest.admitted(self._client, named=self._named)
        protocol = cast(asyncio.Protocol, guest)
        transport = self._transport
        self._done = True
        self._leave()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if data:
            protocol.data_received(data)

    def _late(self) -> None:
        self._timer = None
        if self._tls is not None:
            self._doors.complain("TLS handshake", self._client, "found no end of it in time")
        elif self._early:
            self._doors.complain("PROXY header", self._client, "found no end of it in time")
        # Else it said nothing at all, as a load balancer's look whether somebody listens.
        self.abort()

    def _refuse(self, reason: str, detail: str, *, answer: bytes = b"") -> None:
        self._done = True
        self._doors.complain(reason, self._client, detail)
        if answer:
            self._transport.write(answer)
            self._transport.close()
        else:
            self._transport.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self._done = self._aborted = True
        (self._tls or self._transport).abort()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tls = None
        self._doors.open.discard(self)


__all__ = ["COMPLAIN_EVERY_S", "Complaints", "Door", "Doors", "Guest", "Room"]
