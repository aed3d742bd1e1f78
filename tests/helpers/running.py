"""A router in this process, on a free port, with everything it told its observers: for tests over real sockets.

    async with running_router(config_of(first, second)) as router:
        async with router.connect("voice") as ws:
            assert await next_type(ws) == "session.created"
        record = await router.until(SessionRecord)
        assert outcomes(record) == ["refused", "ready"]

``config_of`` writes the configuration for a list of simulators; ``running_router`` takes it, or YAML as it stands in a file. When
the block ends well, the router must have come clean: no failed task, no observer that raised, no session and no lease left.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import orjson
import yaml
from prometheus_client import CollectorRegistry
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.typing import Subprotocol

from router.accounting import KNOWN_TYPES
from router.app import Server
from router.config import Loaded, load_text
from router.engine import Engine
from router.events import (
    Attempt,
    ConfigAlarm,
    CooledDown,
    Ejected,
    Event,
    Notice,
    Observers,
    SessionReady,
    SessionRecord,
    SessionRefused,
)
from router.metrics import Metrics
from router.pool import Deployment, Group
from router.simulator import Simulator

# Longest wait for anything that must happen; far beyond what a busy machine needs, so that only a fault reaches it.
PATIENCE_S = 15.0
# The group and the provider key of ``config_of``.
MODEL = "voice"
UPSTREAM_KEY = "sk-upstream-0123456789abcdef"

E = TypeVar("E")

# Enough to see what a session went through.
_MOST_TROUBLES = 20
_PROVIDERS = {"openai": "openai", "openai-beta": "openai", "azure": "azure", "xai": "xai", "echo": "openai_compatible"}


# --- configuration ------------------------------------------------------------------------------


def deployment_of(
    target: Simulator | str,
    *,
    id: str | None = None,
    model: str = MODEL,
    provider: str | None = None,
    info: Mapping[str, Any] | None = None,
    **params: Any,
) -> dict[str, Any]:
    """Return an entry of ``model_list``.

    Args:
        target: a simulator, or an ``api_base`` (see ``closed_port``).
        id: of the deployment; a simulator's name unless given.
        model: the group.
        provider: follows from the simulator's dialect unless given.
        info: more of ``model_info``.
        params: more of ``litellm_params``; they win.
    """
    base = target if isinstance(target, str) else target.api_base
    if id is None and not isinstance(target, str):
        id = target.name or None
    kind = provider or ("openai" if isinstance(target, str) else _PROVIDERS[target.dialect.name])
    return {
        "model_name": model,
        "litellm_params": {"model": f"{kind}/upstream-model", "api_base": base, "api_key": UPSTREAM_KEY, **params},
        "model_info": {"mode": "realtime", **({} if id is None else {"id": id}), **(info or {})},
    }


def config_of(
    *targets: Simulator | str | dict[str, Any],
    router: Mapping[str, Any] | None = None,
    general: Mapping[str, Any] | None = None,
    groups: Mapping[str, Any] | None = None,
    **params: Any,
) -> dict[str, Any]:
    """Return a configuration with one deployment a target, all in the group ``MODEL`` unless an entry says otherwise.

    Deployments without a name are called ``d0``, ``d1``, … by their place. They are tried in that order: the strategy is
    ``first`` unless ``router`` names another.

    Args:
        targets: simulators, ``api_base``s, or entries made by ``deployment_of``.
        router: more of ``router_settings``.
        general: ``general_settings``.
        groups: ``groups``.
        params: more of every deployment's ``litellm_params``, entries made by ``deployment_of`` excepted.
    """
    entries = []
    for index, target in enumerate(targets):
        if isinstance(target, dict):
            entry = target
            entry["model_info"].setdefault("id", f"d{index}")
        else:
            name = target.name if isinstance(target, Simulator) and target.name else f"d{index}"
            entry = deployment_of(target, id=name, **params)
        entries.append(entry)
    config: dict[str, Any] = {
        "model_list": entries,
        "router_settings": {"routing_strategy": "first", **(router or {})},
    }
    # A test that is not about draining ends its router at once.
    config["general_settings"] = {"drain": {"grace_s": 0, "timeout_s": 0}, **(general or {})}
    if groups:
        config["groups"] = {name: dict(keys) for name, keys in groups.items()}
    return config


def load_config(config: str | Mapping[str, Any], *, environ: Mapping[str, str] | None = None, port: int | None = 0) -> Loaded:
    """Check a configuration as the router does, with no environment but the one given."""
    text = config if isinstance(config, str) else yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False)
    return load_text(text, environ={} if environ is None else environ, port=port)


# --- the router ---------------------------------------------------------------------------------


class RunningRouter:
    """A router that listens, and what it told.

    Attributes:
        loaded: its configuration and the warnings of it.
        engine: serves its sessions.
        server: carries its surface.
        metrics: what ``/metrics`` shows.
        events: everything its observers were told, oldest first; empty with ``record=False``.
    """

    def __init__(self, loaded: Loaded, *, environ: Mapping[str, str], record: bool, seed: int) -> None:
        self.loaded = loaded
        self.events: list[Event] = []
        self.faults: list[str] = []  # of the router itself: must stay empty
        self._waiting: list[asyncio.Future[None]] = []
        tell = Observers(on_error=lambda error: self.faults.append(f"observer: {type(error).__name__}: {error}"))
        registry = CollectorRegistry()
        self.metrics = Metrics(registry, known_types=KNOWN_TYPES)
        tell.add(self.metrics)
        tell.add(self._take if record else self._take_faults)
        self.engine = Engine(loaded.settings, tell=tell, environ=environ, rng=random.Random(seed))
        self.metrics.watch(lambda: self.engine.pool.every)
        self.server = Server(self.engine, render_metrics=self.metrics.render)

    def _take_faults(self, event: Event) -> None:
        if isinstance(event, Notice) and event.level == "error":
            self.faults.append(f"{event.event}: {dict(event.facts)}")

    def _take(self, event: Event) -> None:
        self._take_faults(event)
        self.events.append(event)
        while self._waiting:
            waiter = self._waiting.pop()
            if not waiter.done():
                waiter.set_result(None)

    # --- what it told ---

    def of(self, kind: type[E]) -> list[E]:
        """Events of a kind, oldest first."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def records(self) -> list[SessionRecord]:
        """Sessions that ended."""
        return self.of(SessionRecord)

    @property
    def attempts(self) -> list[Attempt]:
        """Dials that ended, those that lost a race included."""
        return self.of(Attempt)

    @property
    def refusals(self) -> list[SessionRefused]:
        """Requests that were refused before a session began."""
        return self.of(SessionRefused)

    @property
    def alarms(self) -> list[ConfigAlarm]:
        """Deployments that need an operator."""
        return self.of(ConfigAlarm)

    @property
    def ejections(self) -> list[Ejected]:
        """Deployments that a breaker took out."""
        return self.of(Ejected)

    @property
    def cool_downs(self) -> list[CooledDown]:
        """Deployments that asked to be left alone."""
        return self.of(CooledDown)

    @property
    def readies(self) -> list[SessionReady]:
        """Sessions that found a deployment."""
        return self.of(SessionReady)

    async def until(self, kind: type[E], count: int = 1, *, where: Callable[[E], bool] | None = None) -> E:
        """Wait until there are ``count`` events of a kind; return the last of these.

        Args:
            kind: class of the events.
            count: how many must have come, from the start on.
            where: counts only those for which it holds.

        Raises:
            TimeoutError: they did not come in time.
        """

        def found() -> list[E]:
            return [event for event in self.of(kind) if where is None or where(event)]

        await self.until_true(lambda: len(found()) >= count)
        return found()[count - 1]

    async def until_true(self, condition: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> None:
        """Wait until a condition holds. It is looked at after every event and, for what makes no event, now and then.

        Raises:
            TimeoutError: it did not hold in time.
        """
        async with asyncio.timeout(patience_s):
            while not condition():
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(waiter)
                await asyncio.wait([waiter], timeout=0.02)

    async def session(self, model: str | None = MODEL, *, key: str | None = None, turn: bool = False) -> SessionRecord:
        """Run one session from connect to close and return its record.

        Args:
            model: the group.
            key: sent as Bearer.
            turn: also run a turn; without one the greeting alone proves the upstream.
        """
        async with self.connect(model, key=key) as ws:
            assert await next_type(ws) in GREETINGS
            if turn:
                assert "response.output_audio.delta" in await run_turn(ws)
        return await self.record_of(ws)

    async def record_of(self, ws: ClientConnection) -> SessionRecord:
        """Wait for the record of a session by its connection."""
        assert ws.response is not None
        session = ws.response.headers["x-router-session"]
        return await self.until(SessionRecord, where=lambda record: record.session == session)

    def troubles(self) -> list[str]:
        """The last of what failed or was refused, as text."""
        refused = (SessionRefused, Notice)
        return [
            repr(event)
            for event in self.events
            if isinstance(event, refused) or (isinstance(event, Attempt) and event.outcome != "ready")
        ][-_MOST_TROUBLES:]

    # --- where it is ---

    @property
    def port(self) -> int:
        """The clients' port."""
        return self.server.addresses[0][1]

    @property
    def http(self) -> str:
        """``http://host:port``, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def url(self, model: str | None = MODEL, *, path: str = "/v1/realtime", **query: str) -> str:
        """The WebSocket URL of a session; ``model=None`` names none."""
        pairs = {**({} if model is None else {"model": model}), **query}
        return f"ws://127.0.0.1:{self.port}{path}" + (f"?{urlencode(pairs, quote_via=quote)}" if pairs else "")

    def connect(
        self,
        model: str | None = MODEL,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
        path: str = "/v1/realtime",
        open_timeout: float | None = PATIENCE_S,
        **query: str,
    ) -> Any:
        """A connection of the ``websockets`` library: ``async with`` it, or await it.

        Args:
            model: the group; ``None`` names none.
            key: sent as Bearer.
            headers: more of the request.
            subprotocols: offered ones.
            path: one of the router's.
            open_timeout: of the library, seconds.
            query: more of the URL.
        """
        extra = dict(headers or {})
        if key is not None:
            extra["Authorization"] = f"Bearer {key}"
        return connect_websocket(
            self.url(model, path=path, **query),
            additional_headers=extra,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            open_timeout=open_timeout,
            close_timeout=2,
            ping_interval=None,
            proxy=None,
            compression=None,
            max_size=64 * 1024 * 1024,
        )

    async def request(
        self,
        path: str,
        *,
        method: str = "GET",
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        upgrade: bool = False,
    ) -> Answer:
        """Make a plain request, or one that asks for a WebSocket, and return what was answered.

        Args:
            path: with its query.
            method: of HTTP.
            key: sent as Bearer.
            headers: more of the request.
            upgrade: with the headers of a WebSocket upgrade; for requests that will be refused.
        """
        sent = dict(UPGRADE) if upgrade else {}
        sent.update(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as session,
            session.request(method, self.http + path, headers=sent, allow_redirects=False) as response,
        ):
            body = b"" if response.status == 101 else await response.read()
            return Answer(status=response.status, headers=dict(response.headers), body=body)

    async def refused(self, model: str | None = MODEL, *, headers: Mapping[str, str] | None = None, **query: str) -> Answer:
        """Ask for a session as a program does, and return the refusal."""
        path = self.url(model, **query).removeprefix(f"ws://127.0.0.1:{self.port}")
        return await self.request(path, headers=headers, upgrade=True)

    # --- what it holds ---

    @property
    def group(self) -> Group:
        """The group ``MODEL``."""
        group = self.engine.pool.find(MODEL)
        assert group is not None
        return group

    def deployment(self, id: str) -> Deployment:
        """A deployment by its id."""
        return next(deployment for deployment in self.engine.pool.deployments if deployment.id == id)

    @property
    def leases(self) -> int:
        """Held on any deployment."""
        return sum(deployment.sessions for deployment in self.engine.pool.deployments)

    async def idle(self) -> None:
        """Wait until no session runs, no lease is held and no dial is under way."""
        await self.until_true(
            lambda: not self.engine.sessions
            and not self.leases
            and not any(name.startswith("dial ") for name in self.engine.tasks.names)
        )


GREETINGS = ("session.created", "conversation.created", "transcription_session.created")
UPGRADE: Mapping[str, str] = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
BROWSER: Mapping[str, str] = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return orjson.loads(self.body)

    @property
    def error(self) -> Mapping[str, Any]:
        """The ``error`` object of a refusal."""
        error = self.json["error"]
        assert isinstance(error, dict)
        return error

    @property
    def retry_after_s(self) -> int:
        """``Retry-After``; a refusal without it fails the test."""
        return int(self.headers["Retry-After"])


@asynccontextmanager
async def running_router(
    config: str | Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    record: bool = True,
    seed: int = 7,
    expect_faults: bool = False,
) -> AsyncIterator[RunningRouter]:
    """Run a router in this process until the block ends.

    Args:
        config: YAML, or the same as a mapping (``config_of``).
        environ: for ``os.environ/NAME`` and proxies; empty unless given.
        record: keep all events; without it only the router's own faults are looked at.
        seed: of strategies, jitter and back-off.
        expect_faults: do not look at the router's own faults.

    Raises:
        AssertionError: the block ended well and the router did not: a task failed, or something was left behind.
    """
    environ = {} if environ is None else environ
    router = RunningRouter(load_config(config, environ=environ), environ=environ, record=record, seed=seed)
    try:
        await router.server.start()
        yield router
    except Exception as error:
        # What a client sees says little, on purpose; whoever reads of a test that failed once wants to know what the router saw.
        if told := router.troubles():
            error.add_note("\n".join(("the router saw, last:", *told)))
        raise
    finally:
        await router.server.stop()
    if not expect_faults:
        assert not router.faults, f"the router failed inside: {router.faults}"
    assert router.engine.sessions == 0, f"{router.engine.sessions} sessions are left"
    assert router.leases == 0, f"{router.leases} leases are left"
    assert len(router.engine.tasks) == 0, f"tasks are left: {router.engine.tasks.names}"


async def until(condition: Callable[[], bool], *, every_s: float = 0.0) -> None:
    """Wait until a condition holds that nobody can tell of.

    Args:
        condition: looked at each time.
        every_s: seconds in between; 0: at each turn of the event loop.

    Raises:
        TimeoutError: it did not hold in time.
    """
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(every_s)


# --- clients and what they see ------------------------------------------------------------------


async def next_event(ws: ClientConnection) -> dict[str, Any]:
    """Receive one event."""
    async with asyncio.timeout(PATIENCE_S):
        event = orjson.loads(await ws.recv())
    assert isinstance(event, dict)
    return event


async def next_type(ws: ClientConnection) -> str:
    """Receive one event and return its type."""
    return str((await next_event(ws))["type"])


async def run_turn(ws: ClientConnection, text: str = "hello") -> list[str]:
    """Say something on a session that greeted already, and return the types of the answer's events, to ``response.done``."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    await ws.send(orjson.dumps({"type": "conversation.item.create", "item": item}).decode())
    await ws.send('{"type":"response.create"}')
    types: list[str] = []
    while not types or types[-1] != "response.done":
        types.append(await next_type(ws))
    return types


def outcomes(record: SessionRecord) -> list[str]:
    """How a session's attempts ended, in that order."""
    return [attempt.outcome for attempt in record.attempts]


def dialled(record: SessionRecord) -> list[str]:
    """Which deployments a session's attempts were on, in the order in which they ended."""
    return [attempt.deployment for attempt in record.attempts]


# --- upstreams that are no simulator ------------------------------------------------------------


@asynccontextmanager
async def closed_port() -> AsyncIterator[str]:
    """An ``api_base`` where every connection is refused: the port is taken, and nobody listens."""
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}/v1"


@asynccontextmanager
async def raw_server(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[str]:
    """An ``api_base`` behind which ``handler`` is given each connection; what it leaves open is cut at the end."""
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """Read a request's head."""
    return await reader.readuntil(b"\r\n\r\n")


def leaks(seen: bytes, *, hosts: Collection[str] = (), secrets: Collection[str] = (), words: Collection[str] = ()) -> list[str]:
    """Return what of the inside is in bytes that a client got: upstreams' addresses, keys, an upstream's own words."""
    text = seen.decode("latin-1").lower()
    return [item for item in (*hosts, *secrets, *words, "traceback", "aiohttp", "exception") if item.lower() in text]
