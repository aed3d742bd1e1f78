"""Everything that serves sessions, put together once: what the server and the library face share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final, cast

from router.accounting import Accounting
from router.auth import Principal
from router.config.settings import DeploymentSettings, FleetSettings, Settings
from router.errors import EndedByOperator, KeyLimitReached, Overloaded, RouterError, ShuttingDown
from router.events import (
    ConfigAlarm,
    CooledDown,
    DeploymentGone,
    FirstAudio,
    Notice,
    Observers,
    SessionReady,
    SessionRecord,
    SessionStarted,
    Traffic,
    Turn,
    TurnEnded,
    UsageRecorded,
)
from router.fleet.beat import Fleet
from router.fleet.exchange import Exchange
from router.fleet.picture import Picture
from router.generations import Change, change_of
from router.health import Prober
from router.live import Live, Request
from router.pool import Deployment, Pool
from router.providers import ErrorKind, error_kind
from router.relay.contract import SessionEnd, error_event
from router.relay.leg import Leg
from router.relay.relay import Relay
from router.relay.sweep import Sweep
from router.retry import Outcome, RetryBudget, Verdict, abnormal_end
from router.routing import Opened, Routing, Search
from router.tasks import Tasks
from router.upstream import Dialer
from router.usage import Usage
from strategies.base import Freshness

# How often a running session's counts reach the observers, so that metrics of hour-long calls move.
TRAFFIC_INTERVAL_S = 5.0

# Told to a client whose search an operator has ended.
_RETRY_AFTER_S = 5.0

# How long a connection that was cut takes to be gone; a turn or two of the event loop.
_CUT_TIMEOUT_S = 0.5

# How often a session that has to end is looked at for a quiet moment.
_QUIET_LOOK_S = 0.05

_EARLY_CLOSE = Verdict(outcome=Outcome.EARLY_CLOSE, blames=True, transient=True)


def where(settings: FleetSettings) -> str:
    """A fleet's server in an operator's words, without any secret."""
    if settings.path is not None:
        return settings.path
    nodes = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in settings.nodes)
    kind = {"single": "", "sentinel": f"{settings.service} by sentinels ", "cluster": "cluster of "}[settings.kind]
    return f"{kind}{nodes}{' with TLS' if settings.tls else ''}"


#: What ``new_session_id`` makes.
SESSION_ID: Final = re.compile(r"rs_[0-9a-f]{20}")


def new_session_id() -> str:
    """A random id, safe in headers and logs."""
    return "rs_" + secrets.token_hex(10)


# Given the upstream that was found, sends the client's 101; returns its leg and what came behind the request.
Accept = Callable[[Opened, Search], Awaitable[tuple[Leg, bytes]]]


class Engine:
    """Serves sessions under the generation of the configuration that is in force.

    Args:
        settings: the generation.
        tell: observers.
        environ: for proxy variables.
        clock: monotonic seconds.
        rng: for strategies, jitter and back-off.
        generation: its number, for records.
        exchange: through which a fleet shares its state; ``None``: the server of the settings, if they name one.
        member: this process's name in the fleet; ``None``: a random one.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tell: Observers,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        generation: int = 1,
        exchange: Exchange | None = None,
        member: str | None = None,
    ) -> None:
        self.settings = settings
        self.generation = generation
        self.tell = tell
        self.clock = clock
        self.rng = rng if rng is not None else random.Random()
        self.tasks = Tasks(on_error=self._task_failed)
        self.fleet = self._fleet(exchange, member if member is not None else secrets.token_hex(8))
        self._picture = Picture(clock) if self.fleet is None else self.fleet.picture
        gate = None if self.fleet is None else self.fleet.gate
        self.pool = Pool(settings, clock=clock, rng=self.rng, tell=tell, picture=self._picture, limits=gate)
        self._gate = gate
        self.dialer = Dialer(environ=os.environ if environ is None else environ, on_error=self._task_failed)
        self.sweep = Sweep(clock=clock)
        server = settings.server
        self._budget = RetryBudget(ratio=server.retry_budget_ratio, min_per_s=server.retry_budget_min_per_s, clock=clock)
        self.routing = Routing(
            pool=self.pool,
            dialer=self.dialer,
            budget=self._budget,
            tasks=self.tasks,
            tell=tell,
            clock=clock,
            rng=self.rng,
            admission=gate,
        )
        self.traced = settings.server.tracing  # observers are told of turns and of clients' traces; fixed at the start
        self.draining = False  # its end has begun: no load balancer should send anybody here
        self.stopping = False  # no new sessions any more
        self.retry_after_s = 1.0  # what clients are told that come then
        self._ending = False  # those that run are being ended
        self.room: int | None = None  # most sessions that the descriptors allow; ``None``: nobody has counted them
        self._probers: dict[Deployment, tuple[DeploymentSettings, asyncio.Task[None]]] = {}
        self._started = False
        self._removed: set[tuple[str, str]] = set()  # deployments of earlier generations that observers still know: id, group
        self._forgetting = False  # ``_forget_removed`` runs
        self._serving = 0  # sessions between their search and their record
        self._pending = 0  # those of them that look for an upstream
        self._searching: set[asyncio.Task[object]] = set()  # whose these are; ``end_all`` takes out those that it cancels
        self._relays: dict[str, Relay] = {}  # running sessions by id
        self._live: dict[str, Live] = {}  # all sessions by id, oldest first
        self._relay_ended = asyncio.Event()  # whenever one leaves ``_relays``, or a search ends; for ``end_all``
        self._by_principal: dict[str, int] = {}  # sessions by virtual key's name
        self._by_group: dict[str, int] = {}  # sessions by the group that they asked for

    def _fleet(self, exchange: Exchange | None, member: str) -> Fleet | None:
        settings = self.settings.fleet
        if exchange is None and settings is not None:
            # redis is imported only where there is a fleet.
            from router.fleet.redis_link import RedisExchange

            exchange = RedisExchange(settings, member=member)
        if exchange is None:
            return None
        return Fleet(
            exchange,
            where="the parent of the workers" if settings is None else where(settings),
            member=member,
            deployments=self._deployments,
            keys=self._sessions_of_keys,
            picture=Picture(self.clock),
            on_loss="open" if settings is None else settings.on_loss,
            tasks=self.tasks,
            tell=self.tell,
            clock=self.clock,
            rng=self.rng,
        )

    def _deployments(self) -> Iterator[Deployment]:
        return self.pool.every

    def _sessions_of_keys(self) -> Mapping[str, int]:
        return self._by_principal

    @property
    def sessions(self) -> int:
        """Sessions that are under way, those that wait for an upstream included."""
        return self._serving

    @property
    def relays(self) -> Mapping[str, Relay]:
        """Running sessions by id."""
        return self._relays

    @property
    def max_sessions(self) -> int:
        """Most sessions at a time."""
        most = self.settings.server.max_sessions
        return most if self.room is None else min(most, self.room)

    @property
    def live(self) -> Mapping[str, Live]:
        """Sessions by id, oldest first, those that wait for an upstream included."""
        return self._live

    def end_session(self, session: str, *, code: int, reason: str) -> bool:
        """End a session as an operator wants it; return whether there is one. Who searches gets 503, all others ``code``.

        The end has begun when this returns; a client that does not answer is cut a few seconds later.
        """
        live = self._live.get(session)
        if live is None:
            return False
        live.end(code=code, reason=reason)
        task = live.task
        if task in self._searching:
            self._searching.discard(task)
            task.cancel()
        return True

    def start(self) -> None:
        """Begin what runs in the background; inside the event loop."""
        self._started = True
        self._attend()
        if self.fleet is not None:
            self.tasks.spawn(self.fleet.run(), name="fleet beat")

    def apply(self, settings: Settings, *, generation: int) -> Change:
        """Serve under another generation from now on; sessions that run are not touched.

        Args:
            settings: the generation. What belongs to the process (addresses, the fleet's server) is not looked at again.
            generation: its number.

        Raises:
            Exception: a strategy cannot be made; the generation in force stays.
        """
        before = set(map(_place, self.pool.deployments))
        change = change_of(self.settings, settings)
        self.pool.apply(settings)
        self.settings = settings
        self.generation = generation
        server = settings.server
        self._budget.configure(ratio=server.retry_budget_ratio, min_per_s=server.retry_budget_min_per_s)
        # One that has moved to another group is not there any more, either.
        self._removed |= before - set(map(_place, self.pool.deployments))
        self.dialer.forget()
        if self._started and not self.tasks.closed:
            self._attend()
            if not self._forgetting and (self._removed or self.pool.leaving):
                self._forgetting = True
                self.tasks.spawn(self._forget_removed(), name="removed deployments")
        return change

    def _attend(self) -> None:
        """Probe what is to be probed, and nothing else; look new names up."""
        wanted = {item: _probed(item.settings) for item in self.pool.deployments if item.settings.health_check is not None}
        for deployment, (settings, task) in list(self._probers.items()):
            if wanted.get(deployment) != settings:
                task.cancel()
                del self._probers[deployment]
        for deployment in self.pool.deployments:
            self.dialer.prefetch(deployment.settings)
        for deployment, settings in wanted.items():
            if deployment in self._probers:
                continue
            prober = Prober(
                deployment, dialer=self.dialer, tell=self.tell, clock=self.clock, rng=self.rng, admission=self._gate
            )
            task = self.tasks.spawn(prober.run(), name=f"health check {deployment.id}")
            self._probers[deployment] = (settings, task)

    async def _forget_removed(self) -> None:
        """Tell the observers when a removed deployment's last session has ended, its last counts included."""
        while self._removed or self.pool.leaving:
            await asyncio.sleep(TRAFFIC_INTERVAL_S)
            self.pool.forget_left()
            configured = set(map(_place, self.pool.deployments))
            leaving = set(map(_place, self.pool.leaving))
            groups = {deployment.settings.group for deployment in self.pool.every}
            # A later generation may have brought it back.
            self._removed -= configured
            for deployment, group in self._removed - leaving:
                self._removed.discard((deployment, group))
                # Sessions that asked for the group may run on another one's deployments.
                with_group = group not in groups and group not in self._by_group
                self.tell(DeploymentGone(deployment=deployment, group=group, with_group=with_group))
        self._forgetting = False

    async def join(self) -> None:
        """Return when the others of the fleet, if there is one, were heard for the first time, or could not be."""
        if self.fleet is not None:
            await self.fleet.joined.wait()

    async def end_quietly(self, *, code: int, reason: str, timeout_s: float, hurry: Callable[[], bool]) -> None:
        """Refuse new sessions and end each running one as it comes to a quiet moment.

        Args:
            code, reason: of the CLOSE.
            timeout_s: it returns after this, when not all have ended before; those that run on are left to ``end_all``.
            hurry: whether it should return before that.
        """
        self._end_searches()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._relays and not hurry():
                    for relay in list(self._relays.values()):
                        if relay.quiet:
                            _end_relay(relay, code=code, reason=reason)
                    await asyncio.sleep(_QUIET_LOOK_S)

    async def end_all(self, *, code: int, reason: str, timeout_s: float) -> None:
        """Refuse new sessions and end the running ones politely; return when they have ended, or after ``timeout_s``."""
        self._end_searches()
        for relay in list(self._relays.values()):
            _end_relay(relay, code=code, reason=reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._relays or self._pending:
                    self._relay_ended.clear()
                    await self._relay_ended.wait()
        # Who has not answered by now is cut; the handlers end before the server cancels them.
        for relay in list(self._relays.values()):
            relay.cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CUT_TIMEOUT_S):
                while self._relays:
                    self._relay_ended.clear()
                    await self._relay_ended.wait()

    def _end_searches(self) -> None:
        self.stopping = self._ending = True
        # Their clients are told at once, and need not wait for a dial that hangs.
        while self._searching:
            self._searching.pop().cancel()

    async def close(self) -> None:
        """End what runs in the background."""
        self.stopping = self._ending = True
        await self.tasks.close(timeout_s=1.0)
        if self.fleet is not None:
            await self.fleet.leave()
            await self.fleet.close()
        await self.dialer.close()

    # --- one session --------------------------------------------------------------------------------

    def check_room(self, principal: Principal) -> None:
        """Do nothing when another session may begin.

        Raises:
            ShuttingDown, Overloaded: the process takes no more.
            KeyLimitReached: the key's own limit is reached.
        """
        if self.stopping:
            raise ShuttingDown(retry_after_s=self.retry_after_s)
        if self.sessions >= self.max_sessions or self._pending >= self.settings.server.max_pending:
            raise Overloaded(retry_after_s=5.0)
        limit = principal.max_sessions
        if limit is not None and self._key_is_full(principal.name, limit):
            raise KeyLimitReached(retry_after_s=5.0)

    def _key_is_full(self, name: str, limit: int) -> bool:
        """Whether a key holds all its sessions, in all processes as far as they are known."""
        own = self._by_principal.get(name, 0)
        if self._picture.freshness is Freshness.LOCAL:
            return own >= self._picture.local_share(limit)
        return own + self._picture.sessions_of_key(name) >= limit

    async def serve(self, request: Request, accept: Accept) -> None:
        """Serve one session from its search to its end.

        Raises:
            RouterError: no upstream was found; ``accept`` was not called.
            asyncio.CancelledError: the client left, or the process ends. Everything is given back.
        """
        self.check_room(request.principal)
        holders = ((self._by_principal, request.principal.name), (self._by_group, request.group.settings.name))
        for counts, name in holders:
            counts[name] = counts.get(name, 0) + 1
        self._serving += 1
        if self.fleet is not None:
            self.fleet.begun()
        try:
            await self._serve(request, accept)
        finally:
            self._serving -= 1
            for counts, name in holders:
                counts[name] -= 1
                if not counts[name]:
                    del counts[name]

    async def _serve(self, request: Request, accept: Accept) -> None:
        search = self.routing.search(
            session=request.session, group=request.group, call=request.call, forward=request.forward
        )
        task = cast("asyncio.Task[object]", asyncio.current_task())
        live = self._live[request.session] = Live(request=request, search=search, task=task, generation=self.generation)
        try:
            await self._serve_live(live, accept)
        finally:
            del self._live[request.session]

    async def _serve_live(self, live: Live, accept: Accept) -> None:
        request, search = live.request, live.search
        self.tell(
            SessionStarted(
                session=request.session,
                group=request.group.settings.name,
                principal=request.principal.name,
                client=request.client,
                trace=request.trace,
            )
        )
        opened = live.opened = await self._open(live)
        ready_s = live.ready_s = self.clock() - search.started
        books = _Books(self, request, opened)
        live.accounting = books.accounting
        leg: Leg | None = None
        relay: Relay | None = None
        try:
            try:
                leg, early = await accept(opened, search)
            except BaseException:
                # The client left in the last moment.
                opened.upstream.close(1001)
                raise
            relay = self._relay(opened, leg, early, books)
            self._relays[request.session] = relay
            live.joined(relay)
            self._ready(request, search, opened, ready_s)
            await relay.run()
        finally:
            self._relays.pop(request.session, None)
            # Its numbers are in the record from here on; the relay is taken apart.
            live.relay = None
            self._relay_ended.set()
            end = relay.summary() if relay is not None else None
            self._judge(opened, books, end, ready_s)
            opened.lease.release()
            if relay is not None:
                opened.upstream.leg.release()
            if leg is not None:
                leg.release()
            books.flush()
            books.accounting.end_turns()
            self._record(request, search, books, end, ready_s=ready_s, deployment=opened.deployment.id)
            if relay is not None:
                relay.dissolve()
            books.accounting.close()

    async def _open(self, live: Live) -> Opened:
        request, search, task = live.request, live.search, live.task
        self._pending += 1
        self._searching.add(task)
        try:
            opened = await self.routing.open(search)
            if self._ending:
                # ``end_all`` did not see this session: one that began now would be cut without a word.
                opened.upstream.close(1001)
                opened.lease.release()
                raise ShuttingDown(retry_after_s=1.0)
            return opened
        except RouterError as error:
            self._record(request, search, None, None, who="router", cause=error.code, status=error.http_status)
            error.recorded = True
            # For the traceback of a program that uses the library; a server's client never sees it.
            for attempt in search.all_attempts(self.clock()):
                error.add_note(f"{attempt.deployment}: {attempt.outcome} after {attempt.seconds:.3f} s: {attempt.detail}")
            for deployment, reason in search.passed_over():
                error.add_note(f"{deployment}: not dialled: {reason}")
            raise
        except asyncio.CancelledError:
            # Whoever cancels: the server when its client has left, or the end of the process.
            if self._ending:
                self._record(request, search, None, None, who="router", cause="shutdown", status=503)
                # Cancelled by ``end_all``, which wanted to end the search and not the request (unless the client left as well).
                if task not in self._searching and task.uncancel() == 0:
                    refusal = ShuttingDown(retry_after_s=1.0)
                    refusal.recorded = True
                    raise refusal from None
            elif live.ending is not None and task not in self._searching and task.uncancel() == 0:
                self._record(request, search, None, None, who="router", cause="admin", status=503)
                ended = EndedByOperator(retry_after_s=_RETRY_AFTER_S)
                ended.recorded = True
                raise ended from None
            else:
                self._record(request, search, None, None, who="client", cause="lost", status=499)
            raise
        except BaseException:
            # A fault of this program, or of a third party's strategy; what began is ended in the books all the same.
            self._record(request, search, None, None, who="router", cause="internal_error", status=500)
            raise
        finally:
            self._pending -= 1
            self._searching.discard(task)
            self._relay_ended.set()

    def _relay(self, opened: Opened, leg: Leg, early: bytes, books: _Books) -> Relay:
        upstream = opened.upstream
        return Relay(
            leg,
            upstream.leg,
            scanner=upstream.scanner,
            backlog=upstream.backlog,
            seen=upstream.seen,
            upstream_close=upstream.closed,
            early=early,
            model=opened.deployment.settings.model,
            settings=books.group.settings.relay,
            tap=books.accounting,
            sweep=self.sweep,
            clock=self.clock,
        )

    def _ready(self, request: Request, search: Search, opened: Opened, ready_s: float) -> None:
        self.tell(
            SessionReady(
                session=request.session,
                group=request.group.settings.name,
                deployment=opened.deployment.id,
                seconds=ready_s,
                attempts=search.dials,
                fallback=search.dials > 1,
            )
        )

    def _judge(self, opened: Opened, books: _Books, end: SessionEnd | None, ready_s: float) -> None:
        """What the end says about the deployment."""
        deployment = opened.deployment
        if end is None:
            return
        abnormal = abnormal_end(
            by_upstream=end.who == "upstream", cause=end.cause, code=end.upstream_code, client_spoke=end.client_events > 0
        )
        if abnormal and end.seconds < books.group.settings.breaker.early_close_s:
            detail = f"session ended by the upstream ({end.cause}, code {end.upstream_code}) after {end.seconds:.1f} s"
            deployment.failed(opened.lease, _EARLY_CLOSE, ready_s, detail)
        elif not abnormal and opened.lease.current:
            deployment.survived()

    def _record(
        self,
        request: Request,
        search: Search,
        books: _Books | None,
        end: SessionEnd | None,
        *,
        who: str = "client",
        cause: str = "lost",
        status: int = 101,
        ready_s: float | None = None,
        deployment: str = "",
    ) -> None:
        accounting = books.accounting if books is not None else None
        self.tell(
            SessionRecord(
                session=request.session,
                group=request.group.settings.name,
                principal=request.principal.name,
                client=request.client,
                deployment=deployment,
                attempts=search.all_attempts(self.clock()),
                passed_over=search.passed_over() if end is None and books is None else (),
                who=end.who if end is not None else who,
                cause=end.cause if end is not None else cause,
                phase=end.phase if end is not None else "waiting",
                status=status if end is not None or books is None else 499,
                client_code=end.client_code if end is not None else None,
                upstream_code=end.upstream_code if end is not None else None,
                upstream_reason=books.tellable(end.upstream_reason) if end is not None and books is not None else "",
                seconds=self.clock() - search.started,
                ready_s=ready_s,
                client_bytes=end.client_bytes if end is not None else 0,
                upstream_bytes=end.upstream_bytes if end is not None else 0,
                client_events=end.client_events if end is not None else 0,
                upstream_events=end.upstream_events if end is not None else 0,
                turns=accounting.turns if accounting is not None else 0,
                first_audio_s=accounting.first_audio_s if accounting is not None else None,
                usage=accounting.usage if accounting is not None else Usage(),
                generation=self.generation,
            )
        )

    def _task_failed(self, name: str, error: Exception) -> None:
        # A task that fails unexpectedly is a fault of this program.
        self.tell(Notice(level="error", event="task failed", facts={"task": name, "error": error}))


def _probed(settings: DeploymentSettings) -> DeploymentSettings:
    """Return what a probe goes by, with all else made equal: it begins anew only when that changes."""
    return replace(settings, position=0, weight=1.0, order=0, max_sessions=None, rpm=None, tpm=None, state="ready")


def _place(deployment: Deployment) -> tuple[str, str]:
    return deployment.id, deployment.settings.group


def _end_relay(relay: Relay, *, code: int, reason: str) -> None:
    message = error_event("router_shutting_down", "The router is shutting down.")
    relay.end(cause="shutdown", code=code, reason=reason, error_event=message)


class _Books:
    """Ties a session's accounting to its deployment and the observers."""

    def __init__(self, engine: Engine, request: Request, opened: Opened) -> None:
        self.group = request.group
        self.tellable = opened.upstream.tellable
        self._tell = engine.tell
        self._session = request.session
        self._deployment = opened.deployment
        self._lease = opened.lease
        self._early_close_s = request.group.settings.breaker.early_close_s
        self._started = engine.clock()
        self._credited = False
        self._flushed_at = self._started
        self.accounting = Accounting(
            clock=engine.clock,
            on_usage=self._on_usage,
            on_first_audio=self._on_first_audio,
            on_trouble=self._on_trouble,
            on_limits=self._on_limits,
            on_tick=self._on_tick,
            on_turn=self._on_turn if engine.traced else None,
        )

    def flush(self) -> None:
        """Tell the observers what was counted since the last time."""
        counts = self.accounting.take_counts()
        if counts:
            self._tell(Traffic(deployment=self._deployment.id, counts=counts))

    def _on_tick(self, now: float) -> None:
        if not self._credited and now - self._started >= self._early_close_s:
            self._credited = True
            if self._lease.current:
                self._deployment.survived()
        if now - self._flushed_at >= TRAFFIC_INTERVAL_S:
            self._flushed_at = now
            self.flush()

    def _on_usage(self, usage: Usage) -> None:
        self._deployment.tokens.add(usage.total)
        self._tell(UsageRecorded(deployment=self._deployment.id, group=self._deployment.settings.group, usage=usage))

    def _on_first_audio(self, seconds: float) -> None:
        if self._lease.current:
            self._deployment.first_audio(seconds)
        self._tell(FirstAudio(deployment=self._deployment.id, group=self._deployment.settings.group, seconds=seconds))

    def _on_limits(self, spent: float, seconds: float) -> None:
        if self._lease.current:
            self._deployment.reported(spent, seconds)

    def _on_turn(self, turn: Turn) -> None:
        settings = self._deployment.settings
        self._tell(
            TurnEnded(
                session=self._session,
                deployment=settings.id,
                group=settings.group,
                provider=settings.provider,
                model=settings.model,
                turn=turn,
            )
        )

    def _on_trouble(self, code: str, kind: str) -> None:
        """A failed turn tells of limits and quota too (PROTOCOL §3); the running session itself is not touched."""
        if not self._lease.current:
            return
        meaning = error_kind(self._deployment.provider, code, kind)
        settings = self._deployment.settings
        if meaning is ErrorKind.RATE_LIMITED:
            seconds = self._deployment.cool_down.start(None, reason="rate_limited")
            self._tell(CooledDown(deployment=settings.id, group=settings.group, seconds=seconds))
        elif meaning is ErrorKind.AUTHENTICATION:
            detail = f"a running session was told {code or kind}"
            self._tell(ConfigAlarm(deployment=settings.id, group=settings.group, detail=detail))
