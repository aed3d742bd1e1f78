"""HTTP as this router speaks it: requests in the handshake's terms, answers in OpenAI's form, and aiohttp's protocol with the
router's own words and limits.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware

from router import handshake
from router._version import __version__
from router.auth import Principal
from router.config.settings import ServerSettings
from router.engine import Engine
from router.errors import AuthenticationFailed, BadHandshake, RouterError
from router.events import Observers, SessionRefused

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
SERVER_NAME: Final = f"realtime-router/{__version__}"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Tells whose session a legal request is; raises a RouterError when it is nobody's.
Identify = Callable[[handshake.Upgrade], Awaitable[Principal]]
# Given a ticket's nonce: whether it is used for the first time, in all processes of this router. Raises OSError when they cannot
# be asked.
Spend = Callable[[str], Awaitable[bool]]


def error_body(error: RouterError) -> dict[str, Any]:
    """A refusal's JSON in OpenAI's form."""
    return {"error": {"type": error.error_type, "code": error.code, "message": error.public_message, "param": None}}


def json_response(
    document: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """JSON, never cached."""
    return web.Response(
        body=orjson.dumps(document),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def switching(request: web.Request, subprotocol: str | None, headers: Mapping[str, str]) -> web.StreamResponse:
    """The 101 to an upgrade request that has been checked (RFC 6455 §4.2.2)."""
    key = request.headers["Sec-WebSocket-Key"].strip().encode()
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
    response = web.StreamResponse(
        status=101, headers={"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept, **headers}
    )
    if subprotocol is not None:
        response.headers["Sec-WebSocket-Protocol"] = subprotocol
    response.force_close()
    return response


def request_head(request: web.Request) -> handshake.RequestHead:
    """What the pure handshake needs of an aiohttp request."""
    return handshake.RequestHead(
        method=request.method,
        path=request.rel_url.raw_path,
        query=request.rel_url.raw_query_string,
        headers=headers_of(request),
        version=(request.version.major, request.version.minor),
    )


def headers_of(request: web.Request) -> list[tuple[str, str]]:
    """The headers; of one that came by a proxy that could not tell for whom it speaks, without what is its client's invention."""
    headers = list(request.headers.items())
    if isinstance(request.protocol, HttpProtocol) and not request.protocol.named:
        headers = [pair for pair in headers if not pair[0].lower().startswith("x-forwarded-")]
    return headers


def client_of(request: web.Request, server: ServerSettings) -> str:
    """Address of the client, behind trusted proxies the one they report."""
    return handshake.client_address(peer_address(request), headers_of(request), server.trusted_proxies)


def scheme_of(request: web.Request, server: ServerSettings) -> str:
    """``http`` or ``https``: by what the client came, as far as trusted proxies tell."""
    return handshake.client_scheme(
        peer_address(request), headers_of(request), server.trusted_proxies, tls=request.scheme == "https"
    )


def peer_address(request: web.Request) -> str:
    """Address at the other end of the TCP connection, or of whom its PROXY header speaks; of a Unix socket nothing."""
    if isinstance(request.protocol, HttpProtocol) and request.protocol.peer:
        return request.protocol.peer
    transport = request.transport
    name = transport.get_extra_info("peername") if transport is not None else None
    return str(name[0]) if isinstance(name, tuple) else ""


def in_json(tell: Observers, client: Callable[[web.Request], str] | None = None) -> Middleware:
    """Return the middleware by which every error leaves as JSON in OpenAI's form, and none with anything of the inside.

    Args:
        tell: of upgrades at a path where nothing is.
        client: who makes a request; ``None``: the other end of the connection.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await _in_json(request, handler, tell, peer_address if client is None else client)

    return middleware


async def _in_json(
    request: web.Request, handler: Handler, tell: Observers, client: Callable[[web.Request], str]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RouterError as error:
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, AuthenticationFailed) else {}
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        return json_response(error_body(error), status=error.http_status, headers=headers)
    except web.HTTPException as error:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status, "invalid_request")
        message = {
            404: "Nothing is served at this path. Sessions are at /v1/realtime?model=NAME.",
            405: "This path takes another method.",
        }.get(error.status, "The request could not be served.")
        if "Upgrade" in request.headers:
            # A client with a wrong address: whoever set it up looks for it in the log. Not its path, for some put keys there.
            tell(SessionRefused(session="", status=error.status, code=code, detail=message, client=client(request)))
        body = {"error": {"type": "invalid_request_error", "code": code, "message": message, "param": None}}
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return json_response(body, status=error.status, headers=headers)


class ConnectionLimits:
    """What all connections of the process share.

    Args:
        most: descriptors for clients and upstreams together.
        engine: knows the sessions, each of which has an upstream's descriptor as well.
        answer_timeout_s: how long a client may take nothing of an answer.
    """

    def __init__(self, *, most: int, engine: Engine, answer_timeout_s: float) -> None:
        self.open = 0  # clients' connections, whatever they do
        self.answer_timeout_s = answer_timeout_s
        self._most = most
        self._engine = engine

    def full(self) -> bool:
        """No room for the last connection that was opened."""
        return self.open + self._engine.sessions > self._most


class HttpProtocol(web.RequestHandler):
    """aiohttp's protocol, with the router's words where aiohttp answers by itself.

    Its own answers name the program, and its texts about requests that are no legal HTTP quote them: an oversized header's
    quote may be a key, which then stood in the log as well.
    """

    __slots__ = ("_counted", "_limits", "_stall", "named", "peer")

    def __init__(self, manager: web.Server, *, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(manager, **options)
        self._limits = limits
        self._counted = False  # by a door already
        self.peer = ""  # whom a door has let in; empty: nobody came through one
        self.named = True  # see ``Guest.admitted``
        self._stall: asyncio.TimerHandle | None = None  # only set while the client takes nothing of an answer

    def admitted(self, peer: str, *, named: bool) -> None:
        """See ``router.listener.door.Guest``."""
        self._counted = True
        self.peer = peer
        self.named = named

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client, unless descriptors would run out: sessions that run need theirs."""
        super().connection_made(transport)
        if self._counted:
            return
        self._limits.open += 1
        if self._limits.full():
            cast(asyncio.Transport, transport).abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone, or its session is over."""
        self._limits.open -= 1
        self._end_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes nothing; aiohttp would wait for it for ever."""
        super().pause_writing()
        loop = asyncio.get_running_loop()
        self._stall = loop.call_later(self._limits.answer_timeout_s, self._cut)

    def resume_writing(self) -> None:
        """It takes again."""
        self._end_stall()
        super().resume_writing()

    def _cut(self) -> None:
        self._stall = None
        # A session that has taken the connection over since has limits of its own.
        if self.transport is not None and self.transport.get_protocol() is self:
            self.transport.abort()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer for a request that could not be read, or whose handler failed."""
        error = RouterError()
        if status == 400:
            # Noise from the network, and nothing an operator could do about it.
            error = BadHandshake("The request is not legal HTTP, or a part of it is too long.")
        else:
            self.log_exception("A request's handler failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is on its way already")
        response = json_response(error_body(error), status=error.http_status, headers={"Server": SERVER_NAME})
        response.force_close()
        return response


async def name_server(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER_NAME
