"""The HTTP surface: sessions, models, health, metrics, admin; and the server that carries it.

The client's 101 is written by hand, after an upstream is ready. A refusal is a real HTTP status with a JSON body in OpenAI's
form; a browser's script could not read that, so it is accepted, told by an ``error`` event, and closed (DESIGN §3.1).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import math
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, cast

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware

from router import handshake
from router._version import __version__
from router.admin.contract import Ask, Configuration, FixedConfiguration
from router.admin.desk import Desk
from router.admin.routes import AdminRoutes, Operator
from router.auth import Authenticator, Principal
from router.config.settings import ListenSettings, ServerSettings
from router.dashboard.login import principal_of
from router.engine import Engine, Request, new_session_id
from router.errors import (
    AuthenticationFailed,
    BadHandshake,
    PermissionDenied,
    RouterError,
    ShuttingDown,
    Unavailable,
    UnknownModel,
    UpgradeRequired,
)
from router.events import Notice, Observers, SessionRefused
from router.listener.certificate import Certificate
from router.listener.door import Doors
from router.listener.paths import under
from router.pool import Group
from router.providers.base import Forward
from router.relay.contract import error_event
from router.relay.farewell import Farewell
from router.relay.leg import Leg
from router.relay.takeover import take_client
from router.routing import Opened, Search
from router.tracecontext import trace_context

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
SERVER_NAME: Final = f"realtime-router/{__version__}"
# How long a browser that is being refused may take to answer the CLOSE.
_REFUSAL_TIMEOUT_S: Final = 2.0
# Descriptors kept for everything that is no session: listeners, metrics, files, DNS.
_RESERVED_DESCRIPTORS: Final = 128
# Connections that may wait to be accepted.
BACKLOG: Final = 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Given an ``Accept`` header, returns the body and content type of a metrics page; one of several processes has to ask for it,
# and raises OSError (TimeoutError is one) when the others cannot be asked.
MetricsPage = tuple[bytes, str]
RenderMetrics = Callable[[str], MetricsPage | Awaitable[MetricsPage]]
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


def raise_descriptor_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit; return the limit now in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1_048_576
    if soft < hard:
        # Some systems name a hard limit that they then do not allow.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Surface:
    """The handlers, over one engine.

    Args:
        engine: serves the sessions.
        render_metrics: for ``/metrics``.
        ask: puts operators' questions to all processes; ``None``: there is this process alone.
        configuration: for operators; ``None``: it stays as it is.
        spend: makes sure that a ticket of the dashboard is used once in all processes; ``None``: there is this process alone.
        wall_clock: epoch seconds, for the expiry of keys and the moments of views.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        render_metrics: RenderMetrics,
        ask: Ask | None = None,
        configuration: Configuration | None = None,
        spend: Spend | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.retired = False  # no new sessions here any more, those that run go on
        self._engine = engine
        self._wall_clock = wall_clock
        self.configure(engine.settings.server)
        self._render_metrics = render_metrics
        self._tell: Observers = engine.tell
        self._spend = spend
        self.desk = Desk(engine, draining=lambda: engine.draining or engine.stopping or self.retired, wall_clock=wall_clock)
        if configuration is None:
            configuration = FixedConfiguration(generation=engine.generation, loaded_at=wall_clock())
        self._admin = AdminRoutes(
            ask=self.desk.ask if ask is None else ask,
            configuration=configuration,
            door=self,
            tell=self._tell,
            root_path=self._server.root_path,
        )

    def configure(self, server: ServerSettings) -> None:
        """Go by the settings of another generation."""
        self._server = server
        self._authenticator = Authenticator(server, wall_clock=self._wall_clock)

    def routes(self, *, sessions: bool, operations: bool) -> list[web.RouteDef]:
        """The routes of a listening address: those of clients, those of operators, or both."""
        routes = [
            web.get(path, handler)
            for path, handler in (
                ("/health/live", self.live),
                ("/health/liveliness", self.live),
                ("/health/ready", self.ready),
                ("/health/readiness", self.ready),
            )
        ]
        if sessions:
            for path in handshake.ROUTES:
                routes += [web.get(path, self.realtime), web.get(path + "/", self.realtime)]
            routes.append(web.get("/v1/models", self.models))
        if operations:
            routes += [web.get("/metrics", self.metrics), *self._admin.routes()]
            if self._server.dashboard:
                # Its module needs this one, and its files are read only where it is served.
                from router.dashboard.pages import Dashboard

                routes += Dashboard(
                    lambda: self._engine.settings.server,
                    serve=self.serve,
                    tell=self._tell,
                    spend=self._spend,
                    wall_clock=self._wall_clock,
                ).routes()
        return routes

    # --- sessions -----------------------------------------------------------------------------------

    async def realtime(self, request: web.Request) -> web.StreamResponse:
        """A session, or its refusal."""
        return await self.serve(request, request_head(request), self._server, self._by_key)

    async def _by_key(self, upgrade: handshake.Upgrade) -> Principal:
        return self._authenticator.authenticate(upgrade.credentials)

    async def serve(
        self, request: web.Request, head: handshake.RequestHead, server: ServerSettings, identify: Identify
    ) -> web.StreamResponse:
        """A session, or its refusal.

        Args:
            request: that is taken over.
            head: of it, as the handshake shall see it.
            server: whose rules the handshake follows.
            identify: tells whose session it is.
        """
        session = new_session_id()
        began = _Began()
        facts = {"principal": "", "model": ""}  # for the log of a refusal
        trace = trace_context(head) if self._engine.traced else None
        try:
            if self.retired:
                raise ShuttingDown(retry_after_s=self._engine.retry_after_s)
            upgrade = handshake.parse(head, server, peer=peer_address(request))
            facts["model"] = upgrade.model[:128]
            principal = await identify(upgrade)
            facts["principal"] = principal.name
            group = self._engine.pool.find(upgrade.model)
            if group is None:
                raise UnknownModel("The model of this request does not exist here.")
            principal.require(group.settings.name)
            own = handshake.forward(upgrade, group.settings)  # what cannot travel is refused before anybody is dialled

            def forward(target: Group) -> Forward:
                return own if target is group else handshake.forward(upgrade, target.settings)

            async def accept(opened: Opened, search: Search) -> tuple[Leg, bytes]:
                return await self._accept(request, upgrade, session, opened, search, began)

            await self._engine.serve(
                Request(
                    session=session,
                    group=group,
                    principal=principal,
                    client=upgrade.client,
                    call=handshake.to_call(upgrade, group.settings, principal),
                    forward=forward,
                    trace=trace,
                ),
                accept,
            )
        except RouterError as error:
            if began.response is not None:
                return began.response
            how = handshake.refusal(head, server)
            return await self._refuse(request, how, session, error, client_of(request, self._server), facts, trace)
        except ConnectionResetError:
            # The client left while its 101 was on the way; the record says so.
            return began.response if began.response is not None else web.Response(status=499)
        assert began.response is not None
        return began.response

    async def _accept(
        self,
        request: web.Request,
        upgrade: handshake.Upgrade,
        session: str,
        opened: Opened,
        search: Search,
        began: _Began,
    ) -> tuple[Leg, bytes]:
        """Send the 101 and take the transport over."""
        headers = {"Server": SERVER_NAME, "x-router-session": session}
        if self._server.expose_routing:
            headers["x-router-deployment"] = opened.deployment.id
            headers["x-router-attempts"] = str(search.dials)
        response = switching(request, upgrade.subprotocol, headers)
        began.response = response
        await response.prepare(request)
        return take_client(request)

    async def _refuse(
        self,
        request: web.Request,
        how: handshake.Refusal,
        session: str,
        error: RouterError,
        peer: str,
        facts: Mapping[str, str],
        trace: Mapping[str, str] | None,
    ) -> web.StreamResponse:
        """Tell a client that it gets no session, in the form that it can read."""
        if not error.recorded:
            self._tell(
                SessionRefused(
                    session=session,
                    status=error.http_status,
                    code=error.code,
                    detail=error.public_message,
                    client=peer,
                    principal=facts["principal"],
                    model=facts["model"],
                    trace=trace,
                )
            )
        headers = {"Server": SERVER_NAME, "x-router-session": session}
        if not how.by_close:
            if isinstance(error, UpgradeRequired):
                headers.update(handshake.UPGRADE_REQUIRED_HEADERS)
            if isinstance(error, AuthenticationFailed):
                headers["WWW-Authenticate"] = "Bearer"
            if error.retry_after_s is not None:
                headers["Retry-After"] = str(math.ceil(error.retry_after_s))
            response = json_response(error_body(error), status=error.http_status, headers=headers)
            if "Connection" not in headers:
                response.force_close()
            return response
        return await self._accept_and_close(request, how.subprotocol, headers, error)

    async def _accept_and_close(
        self, request: web.Request, subprotocol: str | None, headers: Mapping[str, str], error: RouterError
    ) -> web.StreamResponse:
        """Accept a browser only to tell it why it gets no session."""
        response = switching(request, subprotocol, headers)
        try:
            await response.prepare(request)
            leg, early = take_client(request)
        except ConnectionError:
            # A client that is gone has no use for an explanation.
            return response
        try:
            farewell = Farewell(leg)
            if early:
                farewell.data(early)
            await farewell.say(
                error_event(error.code, error.public_message, error_type=error.error_type),
                code=error.close_code,
                reason=error.code,
                timeout_s=_REFUSAL_TIMEOUT_S,
            )
        finally:
            leg.release()
        return response

    # --- everything else ----------------------------------------------------------------------------

    async def models(self, request: web.Request) -> web.StreamResponse:
        """The groups that the key may use, in the form of OpenAI's list."""
        principal = self._identify(request)
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "realtime-router"}
            for name in self._engine.pool.names
            if (group := self._engine.pool.find(name)) is not None and principal.may_use(group.settings.name)
        ]
        return json_response({"object": "list", "data": data})

    async def live(self, request: web.Request) -> web.StreamResponse:
        """The process answers."""
        return json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.StreamResponse:
        """New sessions are welcome; providers have no say in this."""
        if self._engine.draining or self._engine.stopping or self.retired:
            return json_response({"status": "draining"}, status=503)
        return json_response({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """Prometheus text."""
        if self._server.metrics_auth:
            self._require_master(request)
        elif self._server.keyless:
            handshake.check_keyless(request_head(request), peer=peer_address(request))
        page = self._render_metrics(request.headers.get("Accept", ""))
        if not isinstance(page, tuple):
            try:
                page = await page
            except OSError as error:
                return self._unanswered("metrics", error)
        body, content_type = page
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    def operator(self, request: web.Request, *, acts: bool) -> Operator:
        """Who asks as an operator.

        Args:
            request: it.
            acts: it changes something.

        Raises:
            AuthenticationFailed, PermissionDenied: nobody who may.
        """
        principal = self._require_master(request)
        head = request_head(request)
        # Any page can make a browser on this host send a request; one with a key cannot be made by a page that does not know it.
        if acts and self._server.keyless and not handshake.origin_allowed(head.value("origin"), head.value("host"), ()):
            raise PermissionDenied("A router without keys takes such requests from no other page than its own.")
        address = client_of(request, self._server)
        return Operator(name=principal.name, client=address)

    def _unanswered(self, what: str, error: OSError) -> web.Response:
        """Numbers of one process in the place of those of all would be wrong ones."""
        self._tell(Notice(level="warning", event="other workers not asked", facts={"what": what, "error": error}))
        return json_response(error_body(Unavailable()), status=503, headers={"Retry-After": "1"})

    def _identify(self, request: web.Request) -> Principal:
        head = request_head(request)
        if self._server.keyless:
            handshake.check_keyless(head, peer=peer_address(request))
        return self._authenticator.authenticate(handshake.credentials(head))

    def _require_master(self, request: web.Request) -> Principal:
        head = request_head(request)
        # Who shows a key means the key; without any, and without keys at all, it matters which page asks.
        if self._server.keyless or not handshake.credentials(head):
            by_page = principal_of(head, self._server, now_s=self._wall_clock())
            if by_page is not None:
                return by_page
        principal = self._identify(request)
        if not principal.is_master and not self._server.keyless:
            raise PermissionDenied("This needs the master key.")
        return principal


class _Began:
    """The 101, once it is on its way: after it nothing else can be answered."""

    response: web.StreamResponse | None = None


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
    if isinstance(request.protocol, _Http) and not request.protocol.named:
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
    if isinstance(request.protocol, _Http) and request.protocol.peer:
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


class _Limits:
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


class _Http(web.RequestHandler):
    """aiohttp's protocol, with the router's words where aiohttp answers by itself.

    Its own answers name the program, and its texts about requests that are no legal HTTP quote them: an oversized header's
    quote may be a key, which then stood in the log as well.
    """

    __slots__ = ("_counted", "_limits", "_stall", "named", "peer")

    def __init__(self, manager: web.Server, *, limits: _Limits, **options: Any) -> None:
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


async def _name_server(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER_NAME


class Server:
    """Listens, and carries the surface.

    Args:
        engine: serves the sessions.
        render_metrics: for ``/metrics``.
        ask, configuration, spend: see ``Surface``.
        sockets: to listen on, those of clients and those of operators; ``None``: it opens its own. Closed with the server.
        certificate: of ``listen``, where it has been read already.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        render_metrics: RenderMetrics,
        ask: Ask | None = None,
        configuration: Configuration | None = None,
        spend: Spend | None = None,
        sockets: tuple[Sequence[socket.socket], Sequence[socket.socket]] | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self._engine = engine
        self._certificate = Certificate(engine.tell, known=certificate)
        self._doors: Doors | None = None  # set by ``start``
        self._surface = Surface(engine, render_metrics=render_metrics, ask=ask, configuration=configuration, spend=spend)
        self._sockets = sockets
        self._limits: _Limits  # set by ``start``
        self._runners: list[web.AppRunner] = []
        self._listeners: list[asyncio.Server] = []
        self.addresses: list[tuple[str, int]] = []  # that are listened on, the clients' first

    async def start(self) -> None:
        """Listen.

        Raises: OSError: an address cannot be had, or the certificate cannot be read.
        """
        self._engine.start()
        await self._engine.join()
        server = self._engine.settings.server
        limit = raise_descriptor_limit()
        room = max(2, limit - _RESERVED_DESCRIPTORS)
        # A session has two sockets.
        self._engine.room = room // 2
        self._limits = _Limits(most=room, engine=self._engine, answer_timeout_s=server.handshake_timeout_s)
        if server.tls is not None:
            self._certificate.context(server.tls)
        self._doors = doors = Doors(self._limits, self._certificate, self._engine.tell)
        clients, operators = (None, None) if self._sockets is None else self._sockets
        routes = self._surface.routes(sessions=True, operations=server.ops_listen is None)
        await self._listen(server.listen, routes, clients, doors)
        if server.ops_listen is not None:
            await self._listen(server.ops_listen, self._surface.routes(sessions=False, operations=True), operators)

    @property
    def desk(self) -> Desk:
        """What this process answers to operators."""
        return self._surface.desk

    def configure(self, server: ServerSettings) -> None:
        """Go by the settings of another generation, but for those of addresses, which stay as they are."""
        self._surface.configure(server)
        self._limits.answer_timeout_s = server.handshake_timeout_s

    def retire(self) -> None:
        """Listen no longer and begin no session; those that are under way go on."""
        self._surface.retired = True
        self.leave()

    def leave(self) -> None:
        """Listen no longer; whoever has connected until now is served."""
        for listener in self._listeners:
            listener.close()

    @property
    def connections(self) -> int:
        """Of clients and operators, those of sessions included."""
        return self._limits.open

    async def _part(self, request: web.Request, response: web.StreamResponse) -> None:
        """While draining an answer is its connection's last one, so that load balancers move on to another router."""
        if not self._engine.draining or response.status == 101:
            return
        response.force_close()
        # aiohttp has decided on its own header before; a 426 must keep the word that belongs to its "Upgrade".
        upgrade = response.headers.get("Connection", "").lower() == "upgrade"
        response.headers["Connection"] = "Upgrade, close" if upgrade else "close"

    async def _listen(
        self,
        listen: ListenSettings,
        routes: list[web.RouteDef],
        sockets: Sequence[socket.socket] | None,
        doors: Doors | None = None,
    ) -> None:
        def client(request: web.Request) -> str:
            return client_of(request, self._engine.settings.server)

        app = web.Application(middlewares=[in_json(self._engine.tell, client)], client_max_size=64 * 1024)
        app.add_routes(under(self._engine.settings.server.root_path, routes))
        app.on_response_prepare.append(_name_server)
        app.on_response_prepare.append(self._part)
        runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            # A handler whose client has left is cancelled, and its dials with it.
            handler_cancellation=True,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        self._runners.append(runner)
        loop = asyncio.get_running_loop()

        def protocol() -> _Http:
            assert runner.server is not None  # set by ``setup``
            return _Http(
                runner.server,
                loop=loop,
                access_log=cast(Any, None),
                # The only guard against a request head that never ends; aiohttp's default is an hour.
                keepalive_timeout=self._engine.settings.server.handshake_timeout_s,
                # No request has a body that anybody reads: it is neither unpacked nor waited for.
                auto_decompress=False,
                lingering_time=0,
                limits=self._limits,
            )

        def entrance() -> asyncio.BaseProtocol:
            server = self._engine.settings.server
            if doors is None or (server.tls is None and not server.proxy_protocol):
                return protocol()
            return doors.door(server, protocol)

        if sockets is None:
            opened = [await loop.create_server(entrance, listen.host, listen.port, backlog=BACKLOG, reuse_address=True)]
        else:
            opened = [await loop.create_server(entrance, sock=sock, backlog=BACKLOG) for sock in sockets]
        for listener in opened:
            self._listeners.append(listener)
            for sock in listener.sockets:
                host, port, *_ = sock.getsockname()
                self.addresses.append((host, port))

    async def stop(self, *, code: int = 1001, timeout_s: float = 1.0) -> None:
        """Refuse new sessions, end the running ones with ``code``, stop listening."""
        await self._engine.end_all(code=code, reason="router shutting down", timeout_s=timeout_s)
        for listener in self._listeners:
            listener.close()
        if self._doors is not None:
            self._doors.close()
        for runner in self._runners:
            await runner.cleanup()
        await self._engine.close()
