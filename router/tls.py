"""TLS towards the upstreams: one context for each combination of authority and client certificate.

A context costs some 20 ms to make (it reads all of the system's authorities) and is where session resumption lives, so
deployments with equal settings share one. The certificate and the host name are always checked; there is no switch for it.

A resumed handshake (RFC 8446 §2.2, RFC 5077) costs a third of a full one and a quarter of its bytes. asyncio has no argument for
it, so ``ResumingContext`` hands the last session of the same address and host name in where the connection is made.
"""

from __future__ import annotations

import os
import ssl
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from router.config.settings import DeploymentSettings
from router.errors import ConnectFailed

# A resumed session shows no certificate: it was checked when the first of its line was made. After so many seconds it is checked
# again, for by then it may have been withdrawn.
VERIFIED_FOR_S: Final = 3600.0
# A ticket is replaced by a newer one after this share of its life. Not at each handshake: a copy costs 40 µs.
_RENEWED_AT: Final = 0.5

# host:port of the dial that is under way. Contexts are shared, and a name may have several addresses (``tls_server_name``).
_address: ContextVar[str] = ContextVar("router_tls_address", default="")


@dataclass(slots=True)
class _Known:
    """The last session of an address and host name.

    Attributes:
        session: to be offered.
        verified_at: when the certificate was looked at, for this session or the one that it resumed; monotonic seconds.
        renew_at: when a newer one shall take its place.
        resumed, refused: handshakes that were offered a session, and did or did not resume it.
    """

    session: ssl.SSLSession
    verified_at: float
    renew_at: float
    resumed: int = 0
    refused: int = 0


class _Connection(ssl.SSLObject):
    # When the certificate was looked at for the session that this one offers; ``None`` where it offers none.
    offered: float | None = None


class ResumingContext(ssl.SSLContext):
    """A client's context whose connections resume the last session of their server."""

    sslobject_class = _Connection
    # Set by ``resuming_context``: ``SSLContext`` is made by ``__new__`` and takes no arguments of others.
    _clock: Callable[[], float]
    _known: dict[tuple[str, str | None], _Known]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As ``SSLContext.wrap_bio``, which event loops call; with the session that is known."""
        verified_at = None
        if session is None and not server_side and isinstance(server_hostname, str | None):
            known = self._known.get((_address.get(), server_hostname))
            if known is not None and self._clock() - known.verified_at < VERIFIED_FOR_S:
                session, verified_at = known.session, known.verified_at
        connection = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        assert isinstance(connection, _Connection)
        connection.offered = verified_at
        return connection

    def remember(self, connection: ssl.SSLObject) -> None:
        """Keep a connection's session for the next one. Before the server's first data its ticket may not be there (TLS 1.3)."""
        assert isinstance(connection, _Connection)
        now = self._clock()
        key = (_address.get(), connection.server_hostname)
        known = self._known.get(key)
        # Its certificate was looked at then, however long the other connections' of this address have been since.
        verified_at = connection.offered if connection.session_reused else None
        if known is not None:
            if verified_at is not None:
                known.resumed += 1
            elif connection.offered is not None:
                known.refused += 1
            # Some servers take a ticket only once, as RFC 8446 §C.4 has it: then every connection's own is kept, and after a
            # while always. A server that starts anew refuses as well, but seldom.
            if verified_at is not None and now < known.renew_at and 4 * known.refused**2 <= known.resumed:
                return
        session = connection.session
        if session is None or not (session.has_ticket or session.id):
            return
        if verified_at is None:
            verified_at = now
        renew_at = now + min(session.timeout, VERIFIED_FOR_S) * _RENEWED_AT
        if known is None:
            self._known[key] = _Known(session, verified_at, renew_at)
        else:
            known.session, known.verified_at, known.renew_at = session, verified_at, renew_at


def resuming_context(*, clock: Callable[[], float] = time.monotonic) -> ResumingContext:
    """Return a context as ``ssl.create_default_context`` makes it, without authorities.

    Args:
        clock: monotonic seconds.
    """
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    context._clock = clock
    context._known = {}
    # A WebSocket needs no other handshake in its middle (TLS 1.2), and what is written would have to wait for it.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if sys.version_info >= (3, 13):
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    return context


def dialling(host: str | None, port: int | None) -> None:
    """Name the server that the current task is about to dial."""
    _address.set(f"{host}:{port}")


def remember_session(ssl_object: Any) -> None:
    """Keep the session of a connection that the current task dialled and has read from; ``None`` is no TLS."""
    if ssl_object is not None and isinstance(ssl_object.context, ResumingContext):
        ssl_object.context.remember(ssl_object)


@dataclass(frozen=True, slots=True)
class _Key:
    ca_file: str | None
    client_cert: str | None
    client_key: str | None


# What tells that a file was replaced or rewritten: device, inode, modification time in ns, size. None: it cannot be read.
Stamp = tuple[int, int, int, int] | None


class TlsContexts:
    """The contexts of one dialer.

    Files that change are read again at the next dial, as certificates are short-lived and replaced under the same name. While
    the new ones cannot be used (a certificate without its key yet), the context made before goes on serving.
    """

    def __init__(self) -> None:
        self._contexts: dict[_Key, tuple[tuple[Stamp, ...], ssl.SSLContext]] = {}

    def ssl_context(self, deployment: DeploymentSettings) -> ssl.SSLContext | None:
        """Return the context for a deployment's dials.

        Returns:
            ``None`` when its ``api_base`` asks for a connection without TLS (``ws://`` or ``http://``).

        Raises:
            ConnectFailed: a file cannot be read or does not fit; the message names the setting and the file.
        """
        if deployment.api_base is not None and deployment.api_base.strip().lower().startswith(("ws:", "http:")):
            return None
        key = _Key(deployment.ca_file, deployment.client_cert, deployment.client_key)
        stamps = tuple(stamp_of(path) for path in (key.ca_file, key.client_cert, key.client_key))
        known = self._contexts.get(key)
        if known is not None and known[0] == stamps:
            return known[1]
        try:
            context = _build(key)
        except ConnectFailed:
            if known is None:
                raise
            # The old stamps stay, so that the next dial looks again.
            return known[1]
        self._contexts[key] = (stamps, context)
        return context


def _build(key: _Key) -> ssl.SSLContext:
    try:
        context = resuming_context()
        if key.ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            context.load_verify_locations(key.ca_file)
    except (OSError, ValueError) as exc:
        raise ConnectFailed(f"ca_file {key.ca_file!r}: {_reason(exc, 'PEM certificates')}") from exc
    if key.ca_file is not None and not context.get_ca_certs():
        raise ConnectFailed(f"ca_file {key.ca_file!r}: found no certificate authority, expected PEM certificates of one")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A WebSocket is opened by HTTP/1.1; without this a server may settle on HTTP/2 and answer nothing we understand.
    context.set_alpn_protocols(["http/1.1"])
    if key.client_cert is None:
        return context
    try:
        context.load_cert_chain(key.client_cert, key.client_key, password=_no_password)
    except (OSError, ValueError) as exc:
        files = f"client_cert {key.client_cert!r}"
        if key.client_key is not None:
            files += f" with client_key {key.client_key!r}"
        raise ConnectFailed(f"{files}: {_reason(exc, 'a PEM certificate and its unencrypted key')}") from exc
    return context


def _no_password() -> str:
    # Without a callback OpenSSL asks on the terminal, and the whole process waits for an answer.
    raise ValueError("the key is encrypted")


def _reason(exc: OSError | ValueError, expected: str) -> str:
    # SSLError is an OSError whose errno is OpenSSL's own number.
    if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError) and exc.strerror:
        return f"found {exc.strerror.lower()}, expected a readable file with {expected}"
    if isinstance(exc, ssl.SSLError):
        return f"found {(exc.reason or 'unusable content').replace('_', ' ').lower()}, expected {expected}"
    return f"found {exc}, expected {expected}"


def stamp_of(path: str | None) -> Stamp:
    """Return what tells that a file was replaced under its name; ``None`` for one that is not there."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
