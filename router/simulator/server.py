"""The simulated provider as a server: listening, the HTTP side of the handshake, faults before the 101, and the control paths."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import logging
import math
import random
import socket
import ssl
import string
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Literal, Self, cast

import orjson
from aiohttp import web

from router.simulator import faults as verbs
from router.simulator.audio import AudioBank
from router.simulator.connection import Connection, reset
from router.simulator.dialects import BETA_PROTOCOL, DIALECTS, DialectName, Route, RouteError, find_route, offered_keys
from router.simulator.items import Naming
from router.simulator.schema import Json
from router.simulator.session import Behaviour, Session
from router.simulator.stats import RateMeter, SeenRequest, Stats
from router.tasks import Tasks

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
CONTROL = "/_sim/"
BACKLOG = 2048

_TAG_LETTERS = string.ascii_letters + string.digits
_STOP_POLITE_S = 0.3
_STOP_HARD_S = 0.2


# aiohttp's annotation does not allow for None, which it takes for "no access log"; a disabled logger costs one check a request.
_NO_ACCESS_LOG = logging.Logger("router.simulator.access", logging.CRITICAL)


class _Dropped(ConnectionError):
    """The handler is done with the connection without an answer; aiohttp takes a ConnectionError for a client that left."""


class _HttpProtocol(web.RequestHandler):
    """aiohttp's protocol, telling when the connection is gone: a fault that reads nothing learns it from nowhere else."""

    __slots__ = ("lost",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)


class _ResetProtocol(asyncio.Protocol):
    """Resets a connection as soon as it is accepted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        reset(transport)


class _HttpNoise(logging.Filter):
    """Drops what aiohttp logs, with a traceback, about requests that are no HTTP: a simulator is sent garbage on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Error handling request")


def _read_pace(pace: Literal["realtime", "fast"] | float) -> float:
    if pace == "realtime":
        return 1.0
    if pace == "fast":
        return math.inf
    if isinstance(pace, bool) or not isinstance(pace, (int, float)) or not pace > 0:
        raise ValueError(f"pace: found {pace!r}, expected 'realtime', 'fast' or a positive number")
    return float(pace)


class Simulator:
    """A provider on a local port. Start it with ``await start()`` or ``async with``.

    Args:
        dialect: what it speaks; ``DIALECTS`` has the names.
        host: address to listen on.
        port: 0 takes a free one; see ``port`` after the start.
        api_keys: keys that are accepted; ``None``: any, and none is needed.
        bad_key: how another key is answered: a 101 with ``error`` and close 3000, or HTTP 401.
        pace: ``realtime``, ``fast`` (no waiting), or how many times faster than real time.
        seed: of ids and of the faults' probability; ``None``: a different one each time.
        models: names that are served; ``None``: any.
        session_cap_s: longest session in seconds; ``None``: the dialect's.
        max_sessions: most at a time, beyond which upgrades get HTTP 429; ``None``: no limit.
        name: in the header ``x-simulator`` of each answer and in what the model says; empty: in neither.
        reply: what the model says; ``None``: it follows from what it was told.
        heard: what the user's speech is taken to say; ``None``: its length.
        usage: where ``response.done`` has its usage; ``None``: as the dialect does.
        ping_interval_s: seconds between ``ping`` events, as xAI sends them; ``None``: none.
        path: serve sessions here instead of on the dialect's paths.
        faults: set from the start, in order; texts are in the command line's form.
        keep_received: how many of the clients' messages ``stats.received`` keeps.
        ssl_context: serve TLS.

    Raises:
        ValueError: an option does not fit; ``FaultError`` for a fault.
    """

    def __init__(
        self,
        *,
        dialect: DialectName = "openai",
        host: str = "127.0.0.1",
        port: int = 0,
        api_keys: Collection[str] | None = None,
        bad_key: Literal["event", "http"] = "event",
        pace: Literal["realtime", "fast"] | float = "fast",
        seed: int | None = None,
        models: Collection[str] | None = None,
        session_cap_s: float | None = None,
        max_sessions: int | None = None,
        name: str = "",
        reply: str | None = None,
        heard: str | None = None,
        usage: Literal["response", "beside", "none"] | None = None,
        ping_interval_s: float | None = None,
        path: str | None = None,
        faults: Iterable[verbs.Fault | str] = (),
        keep_received: int = 0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"dialect: found {dialect!r}, expected one of {', '.join(DIALECTS)}")
        if session_cap_s is not None and not session_cap_s > 0:
            raise ValueError(f"session_cap_s: found {session_cap_s}, expected a positive number of seconds")
        if ping_interval_s is not None and not ping_interval_s > 0:
            raise ValueError(f"ping_interval_s: found {ping_interval_s}, expected a positive number of seconds")
        if not name.isprintable():
            raise ValueError(f"name: found {name!r}, expected printable characters: it is sent as a header")
        if isinstance(api_keys, str):
            raise ValueError("api_keys: found a text, expected a collection of texts")
        self.dialect = DIALECTS[dialect]
        self.name = name
        self.stats = Stats(received=deque(maxlen=keep_received))
        self._host = host
        self._port = port
        self._keys = None if api_keys is None else [key.encode() for key in api_keys]
        self._bad_key = bad_key
        self._pace = _read_pace(pace)
        self._rng = random.Random(seed)
        self._models = None if models is None else frozenset(models)
        self._cap_s = self.dialect.session_cap_s if session_cap_s is None else session_cap_s
        self._max_sessions = max_sessions
        self._behaviour = Behaviour(name=name, reply=reply, heard=heard, usage=usage or self.dialect.usage)
        self._ping_interval_s = ping_interval_s
        self._path = path
        self._plan = verbs.FaultPlan(map(verbs.as_fault, faults), rng=self._rng)
        self._ssl = ssl_context
        self._bank = AudioBank()
        # All of these are only set between start and stop.
        self._meter: RateMeter | None = None
        self._tasks: Tasks | None = None
        self._http: web.Server | None = None
        # Keeps the port while the listener is closed by a fault; it never listens.
        self._holder: socket.socket | None = None
        # The listener is to be open. What follows is set while it is: the socket at once, the server a moment later, and in
        # between, while the loop begins to watch the socket, the future.
        self._wanted = False
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Future[None] | None = None
        self._server: asyncio.Server | None = None
        self._reopening: asyncio.TimerHandle | None = None
        self._handlers: set[asyncio.Task[object]] = set()
        self._connections: set[Connection] = set()

    # --- life ---

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
            RuntimeError: it runs already.
        """
        if self._tasks is not None:
            raise RuntimeError("the simulator runs already")
        loop = asyncio.get_running_loop()
        self._meter = RateMeter(clock=loop.time)
        self._holder = self._bind(self._port)
        self._port = self._holder.getsockname()[1]
        self._tasks = Tasks(on_error=self._report)
        self._http = web.Server(self._handle)
        refusal = self._plan.listener_closed
        if refusal is not None:
            self._arm_reopening(refusal)
            return
        try:
            self._open_listener()
        except OSError:
            await self.stop()
            raise

    async def stop(self, *, abrupt: bool = False) -> None:
        """Stop listening and end every session, within a second. Nothing happens when it does not run.

        Args:
            abrupt: reset all connections, as a process that is killed does, instead of closing them with 1001.
        """
        tasks, http = self._tasks, self._http
        if tasks is None or http is None:
            return
        self._cancel_reopening()
        if self._accepting is not None:
            await asyncio.wait([self._accepting])  # cancelled half-way it would leave a watched socket behind
        self._close_listener()
        if self._holder is not None:
            self._holder.close()
        for connection in self._connections:
            if abrupt:
                connection.reset()
            else:
                connection.close(1001, "The simulator is shutting down.")
        current = cast("asyncio.Task[object] | None", asyncio.current_task())
        pending = self._handlers - {current} if current is not None else set(self._handlers)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=_STOP_POLITE_S)
        for handler in pending:
            handler.cancel()
        if pending:
            await asyncio.wait(pending, timeout=_STOP_HARD_S)
        await tasks.close(timeout_s=_STOP_HARD_S)
        for protocol in http.connections:
            if protocol.transport is not None and protocol.transport.is_closing():
                protocol.transport.abort()  # what its peer has not read by now it never will
        http.pre_shutdown()
        await http.shutdown(_STOP_HARD_S)
        self._tasks = self._http = self._holder = self._meter = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # --- what a user sees ---

    @property
    def port(self) -> int:
        """The port it listens on; before the start the one that was asked for."""
        return self._port

    @property
    def url(self) -> str:
        """Scheme, host and port, as ``http://127.0.0.1:4010``; an address for all interfaces is written as the loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self._host, self._host)
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self._ssl else 'http'}://{shown}:{self._port}"

    @property
    def api_base(self) -> str:
        """What a deployment's ``api_base`` is to be: the URL, and ``/v1`` where the dialect has it."""
        return f"{self.url}{self.dialect.base_path}"

    @property
    def faults(self) -> tuple[verbs.Fault, ...]:
        """What is set, in order, spent ones included."""
        return self._plan.faults

    def set_fault(self, fault: verbs.Fault | str, **options: object) -> None:
        """Set a fault, in the place of those of the same verb. It applies to sessions that begin from now on.

        Args:
            fault: a fault, a text in the command line's form, or (with ``options``) a verb.

        Raises:
            FaultError: there is no such fault.
        """
        if options:
            made = verbs.make_fault(fault if isinstance(fault, str) else fault.verb, options)
        else:
            made = verbs.as_fault(fault)
        self._plan.replace(made)
        self._follow_plan()

    def clear_faults(self) -> None:
        """Take out all faults. Sessions that one has struck stay as they are."""
        self._plan.clear()
        self._follow_plan()

    def close_sessions(self, code: int = 1011, reason: str = "") -> int:
        """Close all open sessions with a close frame.

        Returns:
            How many there were.
        """
        for connection in self._connections:
            connection.close(code, reason)
        return len(self._connections)

    def reset_sessions(self) -> int:
        """End all open sessions with a TCP reset.

        Returns:
            How many there were.
        """
        for connection in self._connections:
            connection.reset()
        return len(self._connections)

    # --- listening ---

    def _bind(self, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            # With it on both, the port may be bound twice as long as at most one socket listens (Linux).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._host, port))
        except OSError:
            sock.close()
            raise
        return sock

    def _open_listener(self) -> None:
        """Listen at once, so that nobody is refused from here on; connections are accepted a moment later."""
        self._wanted = True
        if self._tasks is None or self._listener is not None:
            return
        sock = self._bind(self._port)
        try:
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        self._listener = sock
        self._tasks.spawn(self._accept(sock), name="simulator listens")

    async def _accept(self, sock: socket.socket) -> None:
        if self._listener is not sock:
            return  # closed before this task ran
        loop = asyncio.get_running_loop()
        self._accepting = loop.create_future()
        try:
            self._server = await loop.create_server(self._make_protocol, sock=sock, backlog=BACKLOG, ssl=self._ssl)
        finally:
            self._accepting.set_result(None)
            self._accepting = None
        if not self._wanted:
            self._close_listener()

    def _close_listener(self) -> None:
        self._wanted = False
        if self._accepting is not None:
            return  # closing a socket that the loop begins to watch would confuse it: ``_accept`` does so at its end
        server, sock = self._server, self._listener
        self._server = self._listener = None
        if server is not None:
            server.close()
        if sock is not None:
            sock.close()

    def _follow_plan(self) -> None:
        """Open or close the listener as the faults want it; before the start there is none."""
        if self._tasks is None:
            return
        self._cancel_reopening()
        refusal = self._plan.listener_closed
        if refusal is not None:
            self._close_listener()
            self._arm_reopening(refusal)
        else:
            self._open_listener()

    def _arm_reopening(self, refusal: verbs.Refuse) -> None:
        if refusal.for_s is not None:
            self._reopening = asyncio.get_running_loop().call_later(refusal.for_s, self._end_refusal)

    def _end_refusal(self) -> None:
        self._plan.remove(verbs.Refuse.verb)
        self._follow_plan()
        self.stats.changed()

    def _cancel_reopening(self) -> None:
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None

    def _make_protocol(self) -> asyncio.Protocol:
        if self._plan.draw_connection() or self._http is None:
            self.stats.connections_reset += 1
            self.stats.changed()
            return _ResetProtocol()
        self.stats.connections += 1
        logger = logging.Logger("router.simulator.http")
        logger.parent = logging.getLogger("router.simulator")
        logger.addFilter(_HttpNoise())
        return _HttpProtocol(
            self._http, loop=asyncio.get_running_loop(), logger=logger, access_log=_NO_ACCESS_LOG, keepalive_timeout=10
        )

    # --- HTTP ---

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._handlers.add(task)
        try:
            if request.path.startswith(CONTROL):
                return await self._control(request)
            return await self._answer(request)
        except ConnectionError:
            raise
        except web.HTTPException:  # an upgrade that is none, or a control body that is too large
            self.stats.upgrades_refused += 1
            raise
        except Exception as error:
            self._report("handler", error)
            raise _Dropped from error
        finally:
            self._handlers.discard(task)
            self.stats.changed()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = _seen(request)
        self.stats.requests.append(seen)
        fault = self._plan.draw_session()
        self.stats.changed()
        if isinstance(fault, verbs.HangBefore101):
            await self._wait_lost(request, fault.for_s)
        if isinstance(fault, verbs.Garbage) and fault.kind == "http":
            self.stats.upgrades_refused += 1
            _transport(request).write(fault.payload)
            _transport(request).close()
            raise _Dropped
        if isinstance(fault, verbs.Status):
            return self._refuse_as(fault)
        route = self._route(seen)
        if isinstance(route, web.Response):
            return route
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return self._error(426, "upgrade_required", "Expected a WebSocket upgrade.", headers={"Upgrade": "websocket"})
        if self._max_sessions is not None and self.stats.active >= self._max_sessions:
            return self._error(429, "rate_limit_exceeded", "Too many sessions at a time.", headers={"Retry-After": "1"})
        if self._bad_key == "http" and not self._key_fits(seen):
            return self._error(401, "invalid_api_key", "Incorrect API key provided.")
        return await self._upgrade(request, seen, route, fault)

    def _route(self, seen: SeenRequest) -> Route | web.Response | None:
        """What is asked for; ``None`` for an echo."""
        if self.dialect.name == "echo":
            return None
        try:
            route = find_route(self.dialect, seen.path, seen.query, own_path=self._path)
        except RouteError as error:
            return self._error(error.status, error.code, error.message)
        if self.dialect.name == "azure" and not self._serves(route):
            return self._error(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
        return route

    def _serves(self, route: Route) -> bool:
        return self._models is None or route.model is None or route.model in self._models

    def _key_fits(self, seen: SeenRequest) -> bool:
        if self._keys is None:
            return True
        offered = offered_keys(self.dialect, seen.headers, seen.query, list(seen.protocols))
        return any(hmac.compare_digest(key.encode(), known) for key in offered for known in self._keys)

    def _headers(self) -> dict[str, str]:
        return {"x-simulator": self.name} if self.name else {}

    def _error(self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> web.Response:
        """An HTTP answer with an error body as OpenAI writes it."""
        self.stats.upgrades_refused += 1
        kind = "invalid_request_error" if status < 500 else "server_error"
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        return _json(body, status=status, headers=self._headers() | dict(headers or {}))

    def _refuse_as(self, fault: verbs.Status) -> web.Response:
        self.stats.upgrades_refused += 1
        headers = self._headers()
        if fault.retry_after is not None:
            headers["Retry-After"] = f"{fault.retry_after:g}" if not isinstance(fault.retry_after, str) else fault.retry_after
        if fault.location:
            headers["Location"] = fault.location
        if not fault.code:
            return web.Response(status=fault.status, headers=headers)
        body = {"error": {"message": fault.message, "type": fault.type, "param": None, "code": fault.code}}
        return _json(body, status=fault.status, headers=headers)

    async def _wait_lost(self, request: web.BaseRequest, for_s: float | None) -> None:
        """Wait until the client has left, or for a time.

        Raises:
            ConnectionError: it has left.
        """
        lost = _lost(request)
        done, _ = await asyncio.wait([lost], timeout=for_s)
        if done:
            raise _Dropped

    # --- a session ---

    async def _upgrade(
        self, request: web.BaseRequest, seen: SeenRequest, route: Route | None, fault: verbs.Fault | None
    ) -> web.StreamResponse:
        # aiohttp logs the offered subprotocols when it can answer none of them, and a key may be among them.
        protocols = ("realtime",) if "realtime" in seen.protocols else ()
        if not protocols and "Sec-WebSocket-Protocol" in request.headers:
            headers = request.headers.copy()
            headers.popall("Sec-WebSocket-Protocol")
            request = request.clone(headers=headers)
        transport, lost = _transport(request), _lost(request)
        ws: web.WebSocketResponse[Literal[False]] = web.WebSocketResponse(
            protocols=protocols,
            autoclose=False,
            autoping=False,
            compress=False,
            max_msg_size=MAX_MESSAGE_BYTES,
            timeout=_STOP_HARD_S,
            decode_text=False,
        )
        ws.headers.update(self._headers())
        writer = await ws.prepare(request)
        if self._tasks is None:
            raise _Dropped
        connection = Connection(
            ws,
            transport=transport,
            writer=writer,
            lost=lost,
            tasks=self._tasks,
            stats=self.stats,
            pace=self._pace,
            fault=fault,
        )
        self._connections.add(connection)
        self.stats.active += 1
        self.stats.peak = max(self.stats.peak, self.stats.active)
        try:
            await self._converse(connection, request, seen, route, fault)
        finally:
            self._connections.discard(connection)
            self.stats.active -= 1
            await connection.finish()
        return ws

    async def _converse(
        self,
        connection: Connection,
        request: web.BaseRequest,
        seen: SeenRequest,
        route: Route | None,
        fault: verbs.Fault | None,
    ) -> None:
        naming = Naming("".join(self._rng.choices(_TAG_LETTERS, k=12)))
        if not self._admitted(connection, seen, route, fault, naming):
            self.stats.sessions_refused += 1
            await connection.read()
            return
        self.stats.sessions_opened += 1
        self.stats.changed()
        if isinstance(fault, verbs.HangAfter101):
            await connection.read()
            return
        if isinstance(fault, verbs.SlowFirstEvent):
            await self._wait_lost(request, fault.seconds)
        if route is None:
            await connection.echo()
            return
        await connection.serve(
            self._new_session(connection, route, naming, fault), cap_s=self._cap_s, ping_interval_s=self._ping_interval_s
        )

    def _admitted(
        self, connection: Connection, seen: SeenRequest, route: Route | None, fault: verbs.Fault | None, naming: Naming
    ) -> bool:
        """Whether a session may begin; if not, the client has been told by event and close. Faults come first."""
        event_id = naming.new("event")
        if isinstance(fault, verbs.ErrorEvent):
            reason = f"{fault.type}.{fault.code}" if fault.reason is None else fault.reason
            connection.refuse(
                event_id=event_id,
                code=fault.code,
                kind=fault.type,
                message=fault.message,
                param=fault.param,
                close=fault.close,
                reason=reason,
            )
            return False
        refusal = self._refusal(seen, route)
        if refusal is None:
            return True
        code, message, close = refusal
        kind = "invalid_request_error"
        connection.refuse(
            event_id=event_id, code=code, kind=kind, message=message, param=None, close=close, reason=f"{kind}.{code}"
        )
        return False

    def _refusal(self, seen: SeenRequest, route: Route | None) -> tuple[str, str, int] | None:
        """Error code, message and close code of a session that is not to be, as the real ones answer it."""
        if not self._key_fits(seen):
            return "invalid_api_key", "Incorrect API key provided.", 3000
        asks_beta = "realtime=v1" in seen.headers.get("OpenAI-Beta", "") or BETA_PROTOCOL in seen.protocols
        if self.dialect.refuses_beta and asks_beta:
            problem = "The Realtime Beta API is no longer supported. Please use /v1/realtime for the GA API."
            return "beta_api_shape_disabled", problem, 4000
        if route is not None and not self._serves(route):
            return "model_not_found", "The requested model does not exist or you do not have access to it.", 4000
        return None

    def _new_session(self, connection: Connection, route: Route, naming: Naming, fault: verbs.Fault | None) -> Session:
        behaviour = self._behaviour
        if isinstance(fault, verbs.FailTurn):
            failure = {"type": fault.type, "code": fault.code, "message": fault.message}
            behaviour = dataclasses.replace(behaviour, failure=failure)
        assert self._meter is not None  # set from start to stop, and connections live within
        return Session(
            shape=route.shape,
            host=connection,
            naming=naming,
            bank=self._bank,
            meter=self._meter,
            behaviour=behaviour,
            model=route.model,
            transcription=route.transcription,
            expires_at=int(time.time() + self._cap_s),
            conversation_id=route.conversation_id,
        )

    # --- control ---

    async def _control(self, request: web.BaseRequest) -> web.Response:
        what = (request.method, request.path.removeprefix(CONTROL))
        if what == ("GET", "stats"):
            return _json(self.stats.told() | {"dialect": self.dialect.name, "name": self.name})
        if what == ("GET", "faults"):
            return _json(self._plan.describe())
        if what == ("DELETE", "faults"):
            self.clear_faults()
            return _json([])
        if what == ("POST", "faults"):
            return self._set_faults(await request.read())
        return _json({"error": {"message": "Expected GET stats, or GET, POST or DELETE faults."}}, status=404)

    def _set_faults(self, body: bytes) -> web.Response:
        try:
            made = verbs.read_faults(orjson.loads(body))
            for fault in made:
                if isinstance(fault, verbs.Refuse) and not fault.reset and fault.for_s is None:
                    raise verbs.FaultError("fault 'refuse': for_s: found nothing, expected seconds: nothing else could end it")
        except (verbs.FaultError, orjson.JSONDecodeError) as error:
            return _json({"error": {"message": str(error)}}, status=400)
        for verb in {fault.verb for fault in made}:
            self._plan.remove(verb)
        for fault in made:
            self._plan.add(fault)
        self._follow_plan()
        return _json(self._plan.describe())

    def _report(self, what: str, error: Exception) -> None:
        """Keep an exception that should not have been: tests look at them, and a session's failure is no other's."""
        self.stats.failures.append(f"{what}: {type(error).__name__}: {error}")
        logging.getLogger("router.simulator").error("%s failed", what, exc_info=error)


def _seen(request: web.BaseRequest) -> SeenRequest:
    offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", []))
    query: dict[str, str] = {}
    for name, value in request.query.items():
        query.setdefault(name, value)
    return SeenRequest(
        path=request.path,
        query=query,
        query_string=request.query_string,
        headers=request.headers,
        protocols=tuple(name for name in (part.strip() for part in offered.split(",")) if name),
    )


def _json(body: Json | list[Json], *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type="application/json")


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    if request.transport is None:
        raise _Dropped
    return request.transport


def _lost(request: web.BaseRequest) -> asyncio.Future[None]:
    protocol = request.protocol
    assert isinstance(protocol, _HttpProtocol)  # _make_protocol makes no other
    return protocol.lost
