"""The dial: a deployment's settings in, an upstream that has sent its first good event out.

A 101 proves nothing, for providers answer 101 and then an ``error`` event for a bad key, a spent quota or an unknown model
(PROTOCOL §1.2). So a dial ends with the first good event, which is kept and delivered to the client when there is one.

aiohttp's exceptions become the router's here and nowhere else. ``session.get`` is used instead of ``ws_connect``: it lets the
body of a refusal be read, never follows a redirect with the key in its hands, and leaves the bytes behind the 101 unparsed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import os
import re
import ssl
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson
from yarl import URL

from router.config.settings import DeploymentSettings
from router.errors import (
    ConnectFailed,
    ErrorEvent,
    HandshakeRejected,
    Overloaded,
    Phase,
    ProtocolViolation,
    UpstreamClosed,
    UpstreamTimeout,
)
from router.jsontext import parse_object
from router.providers import PROVIDERS
from router.providers.base import Forward
from router.proxies import Proxy, proxy_for, split_userinfo
from router.relay import frames
from router.relay.contract import Seen
from router.relay.frames import BINARY, CLOSE, COLLECT, PASS, PING, PONG, TEXT, Disposition, FrameError, FrameScanner
from router.relay.leg import Leg
from router.relay.takeover import take_upstream
from router.retry import parse_retry_after
from router.tasks import ErrorReport
from router.tls import TlsContexts, dialling, remember_session
from router.tokens import TokenSources

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
# Of a refusal's body; more is not read.
_BODY_BYTES: Final = 8 * 1024
_BODY_TIMEOUT_S: Final = 0.5
# What an upstream may send before it is joined to a client; then its reading is paused.
_BACKLOG_BYTES: Final = 1024 * 1024
_DNS_TTL_S: Final = 10
# This machine has no more of something; that is no deployment's fault.
_OUR_OWN_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_OVERLOAD_S: Final = 5.0
# How long the end of all connections is waited for when the dialer closes.
_CLOSE_TIMEOUT_S: Final = 2.0
# A shorter part of a key tells nothing, and may well be part of a word.
_TELLING_CHARS: Final = 8
_PLAIN_QUERY: Final = frozenset({"api-version", "deployment", "intent", "model"})
_WORDS: Final = re.compile(r"[a-z][a-z0-9_\-]{2,63}")


class Upstream:
    """An upstream that is ready. Receiver of its leg and sink of its scanner until the relay takes over.

    Attributes:
        leg: its transport.
        scanner: has followed the leg since the 101.
        backlog: what the scanner let out; goes to the client first.
        seen: the messages in the backlog.
        closed: a CLOSE that is already in the backlog.
    """

    def __init__(self, leg: Leg, *, max_message_bytes: int, sent: frozenset[str] = frozenset()) -> None:
        self.leg = leg
        self._sent = sent
        self.scanner = FrameScanner(masked=False, max_message_bytes=max_message_bytes, sink=self)
        self.backlog: list[bytes] = []
        self.seen: list[Seen] = []
        self.closed: tuple[int, str] | None = None
        self._bytes = 0
        # Its result: the first good event came. Its exception: why there will be none.
        self._first_event: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        leg.receiver = self

    def tellable(self, text: str) -> str:
        """The upstream's words for a log: nothing when they repeat a part of what was sent to it, such as the key."""
        return text if all(_word(word[:64], self._sent) for word in text.split()) else ""

    async def first_event(self) -> None:
        """Wait for the first good event.

        Raises: UpstreamError: there will be none.
        """
        await self._first_event

    def close(self, code: int = 1000) -> None:
        """Say CLOSE and end the connection; for an upstream that nobody needs."""
        leg = self.leg
        if not leg.lost and self.closed is None:
            leg.write(leg.frame(CLOSE, frames.close_payload(code)))
        leg.receiver = None
        if leg.lost:
            leg.release()
            return
        # Its answer is not of interest, but a reset while our CLOSE is on its way could take that back.
        leg.receiver = _Parting(leg)
        leg.resume_reading()
        asyncio.get_running_loop().call_later(1.0, leg.release)

    def abort(self) -> None:
        """Cut the connection."""
        self.leg.release()

    # --- Receiver -----------------------------------------------------------------------------------

    def data(self, data: bytes) -> None:
        """Bytes from the upstream."""
        try:
            out = self.scanner.feed(data)
        except FrameError as error:
            # What stood before the breach may have been the good event.
            self.backlog.extend(frames.legal_output(error))
            self._fail(ProtocolViolation(error.detail))
            # What is behind the breach, in the same read even, is not looked at.
            self.leg.receiver = None
            self.leg.abort()
            return
        self.backlog.extend(out)
        self._bytes += sum(map(len, out))
        if self._bytes > _BACKLOG_BYTES:
            self.leg.pause_reading()
            # Too long a first message to look at whole; an error event never is.
            if self.scanner.current_type not in (None, "error"):
                self._succeed()
            else:
                self._fail(ProtocolViolation(f"first message is longer than {_BACKLOG_BYTES} bytes"))

    def lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        self._fail(UpstreamClosed(1006))

    def writing(self, *, paused: bool) -> None:
        """Before the join nothing is written that could fill the buffer."""

    # --- Sink ---------------------------------------------------------------------------------------

    def classify(self, opcode: int, event_type: str | None) -> Disposition:
        """Whatever comes before the join is kept for the taps."""
        return COLLECT if opcode == TEXT else PASS

    def message(self, opcode: int, event_type: str | None, size: int, payload: bytes | None) -> bytes | None:
        """A message is complete; the first one decides."""
        if self._first_event.done():
            self.seen.append(Seen(opcode=opcode, event_type=event_type, size=size, payload=payload))
            return None
        if opcode == BINARY or payload is None:
            # Too long to look at whole: an error event never is.
            self._succeed()
        else:
            event_type = self._judge(payload)
        self.seen.append(Seen(opcode=opcode, event_type=event_type, size=size, payload=payload))
        return None

    def control(self, opcode: int, payload: bytes) -> bool:
        """There is no client yet to answer a ping."""
        # One that pings and does not read the answers gets none.
        if opcode == PING and not self.leg.writing_paused:
            self.leg.write(self.leg.frame(PONG, payload))
        return False

    def closing(self, code: int, reason: str) -> bool:
        """A CLOSE: a failure, or the early end of a session that became ready just before."""
        self.closed = (code, reason)
        self._fail(UpstreamClosed(code, reason))
        return True

    def _judge(self, payload: bytes) -> str | None:
        """Decide by the first message; return its type."""
        event = parse_object(payload)
        event_type = event.get("type")
        if not isinstance(event_type, str):
            self._fail(ProtocolViolation("first message is not a JSON object with a type"))
            return None
        if event_type == "error":
            detail = event.get("error")
            detail = detail if isinstance(detail, dict) else event
            self._fail(
                ErrorEvent(
                    error_code=_word(detail.get("code"), self._sent),
                    error_kind=_word(detail.get("type"), self._sent) if detail is not event else "",
                    param=_word(detail.get("param"), self._sent),
                )
            )
        else:
            self._succeed()
        return event_type

    def _succeed(self) -> None:
        if not self._first_event.done():
            self._first_event.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._first_event.done():
            self._first_event.set_exception(error)
            # Whether somebody still waits is not known here; Python must not complain if nobody does.
            self._first_event.exception()


class _Parting:
    """Receiver of a leg that was told CLOSE: whoever waits for the connection's end need not wait for the time limit."""

    def __init__(self, leg: Leg) -> None:
        self._leg = leg

    def data(self, data: bytes) -> None:
        """Of no interest any more."""

    def lost(self, exc: BaseException | None) -> None:
        """The upstream has ended the connection."""
        self._leg.release()

    def writing(self, *, paused: bool) -> None:
        """Nothing is written any more."""


def _word(value: object, sent: frozenset[str]) -> str:
    """A code or type from outside: short, printable, and no part of what was sent; or nothing."""
    if not isinstance(value, str) or len(value) > 64 or not value.isprintable():
        return ""
    # It gets into logs. A cut key, which an indiscreet upstream may answer with, is none that a log could recognise.
    if len(value) >= _TELLING_CHARS and any(value in item or item in value for item in sent):
        return ""
    return value


class Dialer:
    """Dials deployments. Owns the connector, the TLS contexts and the token sources, all shared by every session.

    Args:
        environ: for the proxy variables.
        on_error: told of failures in the background that no dial waits for.
    """

    def __init__(self, *, environ: Mapping[str, str], on_error: ErrorReport) -> None:
        self._environ = environ
        self._contexts = TlsContexts()
        self._tokens = TokenSources(on_error=on_error)
        self._session: aiohttp.ClientSession | None = None  # made by the first dial, inside the event loop
        self._routes: dict[str, _Route] = {}  # by deployment's id; for dials to which the client adds nothing

    async def close(self) -> None:
        """Close what is shared."""
        session, self._session = self._session, None
        if session is not None:
            # aiohttp waits for the end of every connection, those that were taken over included; the process's end does not.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await session.close()
        await self._tokens.close()

    def forget(self) -> None:
        """Another generation is in force: keep nothing that was made of the settings, and keys, of the one before."""
        self._routes.clear()

    def prefetch(self, deployment: DeploymentSettings) -> None:
        """Start to fetch a token that takes longer than a dial may; nothing happens when the deployment uses none."""
        self._tokens.prefetch(deployment)

    def key_refused(self, deployment: DeploymentSettings) -> None:
        """The upstream did not accept the key: a token that is renewed is fetched anew by the next dial."""
        self._tokens.invalidate(deployment)

    async def dial(self, deployment: DeploymentSettings, forward: Forward, *, max_message_bytes: int) -> Upstream:
        """Dial a deployment until it is ready.

        Args:
            deployment: what to dial; its time limits hold.
            forward: the client's part of the request.
            max_message_bytes: of the session that will be relayed.

        Raises:
            UpstreamError: any failure whatsoever of the upstream.
            Overloaded: this process or machine has no socket left.
        """
        upgrade_limit_s = deployment.connect_timeout_s
        if deployment.timeout_s is not None:
            upgrade_limit_s = min(upgrade_limit_s, deployment.timeout_s)
        progress = _Progress()
        now = asyncio.get_running_loop().time
        started = now()
        limit_s = upgrade_limit_s
        upstream: Upstream | None = None
        try:
            # One timer for both phases; it is set anew for the second.
            async with asyncio.timeout(upgrade_limit_s) as timer:
                leg, early = await self._connect(deployment, forward, progress)
                upstream = Upstream(leg, max_message_bytes=max_message_bytes, sent=progress.sent)
                progress.phase = "first_event"
                if early:
                    upstream.data(early)
                if deployment.ready != "handshake":
                    limit_s = deployment.ready_timeout_s
                    if deployment.timeout_s is not None:
                        limit_s = min(limit_s, max(0.0, deployment.timeout_s - (now() - started)))
                    if deployment.ready == "auto" and deployment.ready_grace_s < limit_s:
                        # Some servers never speak first; silence on an open socket is all they give.
                        progress.silence_will_do = True
                        limit_s = deployment.ready_grace_s
                    timer.reschedule(now() + limit_s)
                    await upstream.first_event()
        except TimeoutError:
            if not progress.silence_will_do:
                if upstream is not None:
                    upstream.abort()
                raise UpstreamTimeout(progress.phase, limit_s) from None
        except BaseException:
            if upstream is not None:
                upstream.abort()
            raise
        assert upstream is not None
        remember_session(upstream.leg.transport.get_extra_info("ssl_object"))
        return upstream

    async def _connect(self, deployment: DeploymentSettings, forward: Forward, progress: _Progress) -> tuple[Leg, bytes]:
        """TCP, TLS, upgrade, takeover."""
        token = await self._tokens.token(deployment)
        route = self._route(deployment, forward, token)
        url, proxy = route.url, route.proxy
        key = base64.b64encode(os.urandom(16))
        headers = {**route.headers, "Sec-WebSocket-Key": key.decode()}
        progress.sent = route.sent
        dialling(url.host, url.port)
        _dialled.set(progress)
        try:
            response = await self._client().get(
                url,
                headers=headers,
                allow_redirects=False,
                proxy=proxy.url if proxy is not None else None,
                proxy_headers=route.proxy_headers,
                ssl=self._contexts.ssl_context(deployment) or True,
                server_hostname=deployment.tls_server_name if url.scheme == "https" else None,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            )
        except aiohttp.ClientError as error:
            if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno in _OUR_OWN_LIMITS:
                raise Overloaded(f"no socket for a dial: {error.os_error}", retry_after_s=_OVERLOAD_S) from error
            raise _translate(error, progress, f"{url.host}:{url.port}") from error
        except (OSError, ssl.SSLError, UnicodeError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _OUR_OWN_LIMITS:
                raise Overloaded(f"no socket for a dial: {error}", retry_after_s=_OVERLOAD_S) from error
            # ValueError: a host name or an answer that aiohttp or yarl cannot make sense of.
            raise ConnectFailed(f"{url.host}:{url.port}: {type(error).__name__}: {_short(error)}") from error
        try:
            if response.status != 101:
                raise await _rejected(response, progress.sent)
            _check_upgrade(response, key)
            return take_upstream(response)
        except ConnectionResetError as error:
            response.close()
            raise UpstreamClosed(1006) from error
        except BaseException:
            response.close()
            raise

    def _route(self, deployment: DeploymentSettings, forward: Forward, token: str | None) -> _Route:
        """Where and how to dial; the same for every session to which a client adds nothing."""
        shared = not (forward.query or forward.headers)
        known = self._routes.get(deployment.id) if shared else None
        if known is not None and known.deployment is deployment and known.token == token:
            return known
        target = PROVIDERS[deployment.provider].target(deployment, forward, token=token)
        headers = {**target.headers, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        # aiohttp opens ws and http alike, and knows the proxies of the latter.
        url = URL("http" + target.url.removeprefix("ws"), encoded=True)
        named = proxy_for(target.url, deployment, self._environ)
        proxy = split_userinfo(named) if named is not None else None
        proxy_headers: dict[str, str] = {}
        if proxy is not None and proxy.authorization is not None:
            # Not left in the URL, which aiohttp's errors repeat. A tunnel is asked for by CONNECT, which has headers of its
            # own; a plain request goes to the proxy itself.
            (proxy_headers if url.scheme == "https" else headers)["Proxy-Authorization"] = proxy.authorization.reveal()
        route = _Route(
            deployment=deployment,
            token=token,
            url=url,
            headers=headers,
            proxy=proxy,
            proxy_headers=proxy_headers,
            sent=_credentials(target.headers, proxy, url),
        )
        if shared:
            self._routes[deployment.id] = route
        return route

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # The 101st session would wait under the default limit. A connection is never used twice: after a WebSocket it
                # cannot be, and after a refusal it may be stale by the next dial.
                connector=_Connector(limit=0, force_close=True, ttl_dns_cache=_DNS_TTL_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_read=None, sock_connect=None),
                # A refusal's body is hostile like everything else: it is not unpacked.
                auto_decompress=False,
            )
        return self._session


@dataclass(frozen=True, slots=True, kw_only=True)
class _Route:
    """A dial's request, but for its ``Sec-WebSocket-Key``. Not in the ``repr``: most of it is, or may hold, a key.

    Attributes:
        deployment: whose it is.
        token: of a token source, ``None`` where the deployment uses none.
        url: ``http`` or ``https``.
        headers: for the upstream.
        proxy: to go through.
        proxy_headers: for its ``CONNECT``.
        sent: the words that may be secret.
    """

    deployment: DeploymentSettings = field(repr=False)
    token: str | None = field(repr=False)
    url: URL = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    proxy: Proxy | None
    proxy_headers: Mapping[str, str] = field(repr=False)
    sent: frozenset[str] = field(repr=False)


class _Progress:
    """How far a dial has come, for the phase of a time-out; and what was sent that must not come back in a log."""

    __slots__ = ("phase", "sent", "silence_will_do")

    def __init__(self) -> None:
        self.phase: Phase = "dial"
        self.sent: frozenset[str] = frozenset()
        self.silence_will_do = False  # the upgrade was accepted, and a time-out now means ready


# The current task's dial.
_dialled: ContextVar[_Progress | None] = ContextVar("router_dial", default=None)


class _Connector(aiohttp.TCPConnector):
    """Tells the dial that its connection is there. aiohttp's tracing does that too, by a dozen coroutines a request."""

    async def connect(self, *args: Any, **more: Any) -> Any:
        connection = await super().connect(*args, **more)
        progress = _dialled.get()
        if progress is not None:
            progress.phase = "upgrade"
        return connection


def _credentials(headers: Mapping[str, str], proxy: Proxy | None, url: URL) -> frozenset[str]:
    """The words of a request that may be secret."""
    values = [*headers.values(), *(value for name, value in url.query.items() if name not in _PLAIN_QUERY)]
    if proxy is not None and proxy.authorization is not None:
        values.append(proxy.authorization.reveal())
    return frozenset(word for value in values for word in value.split() if len(word) >= _TELLING_CHARS)


def _short(error: BaseException) -> str:
    """An exception's text, bounded; it is for the operator's log."""
    return " ".join(str(error).split())[:200]


def _translate(error: aiohttp.ClientError, progress: _Progress, address: str) -> Exception:
    """An aiohttp error as one of ours (learned from httpcore's ``map_exceptions``)."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return ConnectFailed(f"proxy answered CONNECT with HTTP {error.status}")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ConnectFailed(f"{address}: certificate not accepted: {_short(error.certificate_error)}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return ConnectFailed(f"{address}: {_short(error.os_error) or type(error.os_error).__name__}")
    if isinstance(error, aiohttp.ClientResponseError):
        # ``error.status`` is aiohttp's own 400 then, which no upstream sent.
        return HandshakeRejected(0, detail="answer is not legal HTTP")
    if isinstance(error, aiohttp.ServerDisconnectedError) or progress.phase == "upgrade":
        return HandshakeRejected(0, detail="connection closed without an answer")
    return ConnectFailed(f"{address}: {type(error).__name__}: {_short(error)}")


async def _rejected(response: aiohttp.ClientResponse, sent: frozenset[str]) -> HandshakeRejected:
    """Read what a refusal says, in bounded time and space."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while len(body) < _BODY_BYTES:
                chunk = await response.content.read(_BODY_BYTES - len(body))
                if not chunk:
                    break
                body += chunk
    except (TimeoutError, aiohttp.ClientError, OSError):
        # What has come so far must do.
        pass
    error_code, mentions = _body_facts(bytes(body), sent)
    return HandshakeRejected(
        response.status,
        error_code=error_code,
        mentions=mentions,
        retry_after_s=parse_retry_after(response.headers, epoch_s=time.time()),
    )


def _body_facts(body: bytes, sent: frozenset[str]) -> tuple[str, frozenset[str]]:
    """``error.code`` (or type) of a refusal's body, and the words in it that could be parameters' names."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", frozenset()
    error = document.get("error") if isinstance(document, dict) else None
    error = error if isinstance(error, dict) else document
    if not isinstance(error, dict):
        return "", frozenset()
    texts = [value for value in (error.get("param"), error.get("message"), error.get("detail")) if isinstance(value, str)]
    words = frozenset(_WORDS.findall(" ".join(texts).lower()))
    return _word(error.get("code"), sent) or _word(error.get("type"), sent), words


def _check_upgrade(response: aiohttp.ClientResponse, key: bytes) -> None:
    """Check a 101 (RFC 6455 §4.1)."""
    headers = response.headers
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
    if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in headers.get("Connection", "").lower():
        raise HandshakeRejected(101, detail="no Upgrade to websocket")
    if headers.get("Sec-WebSocket-Accept", "").strip() != accept:
        raise HandshakeRejected(101, detail="wrong Sec-WebSocket-Accept")
    if headers.get("Sec-WebSocket-Extensions", "").strip():
        raise HandshakeRejected(101, detail="an extension that was not offered")
