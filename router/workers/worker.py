"""One worker: what a single process of the router does, on sockets of the parent's and at the end of a channel to it.

It tells the parent that it serves, that it lives, how many sessions it has, and what it has counted; asks it for what only all
workers know; and, without a server of the fleet's, balances with the others through it. When the parent is gone, the worker
listens no longer, so that a new router can, lets its sessions go on to their ends, and ends with the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

from router import logs
from router.admin.contract import ACTS, QUESTIONS, Args, Document
from router.app import MetricsPage, Server
from router.config.settings import Settings
from router.departure import Departure
from router.engine import Engine
from router.errors import ConfigError
from router.events import Notice, Observers
from router.lag import LoopLag
from router.listener.certificate import Certificate
from router.metrics import PREFIX, RELOADS, Metrics
from router.process import assemble, drop_unread, loop_error, run, settle, trace
from router.reload import Source, prepare
from router.tasks import Tasks
from router.workers import merge
from router.workers.channel import BadFrame, ChannelLost, WorkerEnd
from router.workers.exchange import ParentExchange
from router.workers.generations import Generations, ParentConfiguration
from router.workers.reloads import Newest

#: How often a worker says that it lives ...
PULSE_S: Final = 1.0
#: ... and once in so many times what it has counted, so that a crash loses little of it.
_PULSES_PER_SAMPLES: Final = 10
# Above the time that the parent takes to ask everybody.
_GATHER_TIMEOUT_S: Final = 3.0
# How long a signal waits for the parent's word.
_ORDER_S: Final = 1.0
# The last words take no longer.
_FAREWELL_S: Final = 1.0
_OPENMETRICS: Final = "application/openmetrics-text"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a worker gets from its parent.

    Attributes:
        number: of its slot, from 0; in every line of its log.
        member: its name among the workers.
        channel: leads to the parent.
        clients: sockets that listen for clients.
        operators: those for operators, where they have an address of their own.
        certificate: of ``listen``, as the parent has read it.
        overrides: what operators have said of deployments (``router.admin.overrides``).
        source: of the configuration; ``None``: it is not read again.
        newest: the configuration in force; ``None``: the one that the parent started with.
    """

    number: int
    member: str
    channel: socket.socket
    clients: Sequence[socket.socket]
    operators: Sequence[socket.socket]
    certificate: Certificate | None = None
    overrides: Sequence[Args] = ()
    source: Source | None = None
    newest: Newest | None = None


def work(settings: Settings, place: Place) -> int:
    """Serve until the parent orders the end, or is gone and the last session has ended. Returns the exit code.

    Args:
        settings: the generation.
        place: of this worker; everything in it is the worker's to close.
    """
    server = settings.server
    logs.configure(server.log_format, server.log_level, worker=place.number)
    observer = logs.LogObserver()
    tell = Observers([observer])
    generation = 1
    code = 1
    try:
        if place.source is not None and place.newest is not None:
            # Forked after a reload: what the parent loaded at the start is not in force any more.
            newest = place.newest
            settings = prepare(place.source, newest.text, settings, remembered=newest.secrets).settings
            generation = newest.generation
            logs.register_secrets(logs.secrets_of(settings))
            logs.set_level(settings.server.log_level)
        code = run(lambda: _Worker(settings, generation, place, tell).serve())
    except ConfigError as error:
        # A file may have gone since, of a strategy for example; the parent tries again in a while.
        for problem in error.problems:
            tell(Notice(level="error", event="worker not started", facts={"problem": str(problem)}))
    observer.flush()
    drop_unread(sys.stderr)
    return code


class _Worker:
    """Inside the event loop."""

    def __init__(self, settings: Settings, generation: int, place: Place, tell: Observers) -> None:
        self._settings = settings
        self._generation = generation
        self._place = place
        self._tell = tell
        self._tasks = Tasks(on_error=self._task_failed)
        self._pulses_since_samples = 0  # the parent was told of, whether it asked or not
        # All set by ``serve`` before anybody can ask for them.
        self._end: WorkerEnd
        self._engine: Engine
        self._metrics: Metrics
        self._server: Server
        self._generations: Generations | None = None  # only set when the configuration can be read again
        self._departure: Departure | None = None  # only unset while the process starts
        self._early: list[Callable[[Departure], None]] = []  # what came meanwhile

    async def serve(self) -> int:
        """See ``work``."""
        loop = asyncio.get_running_loop()
        # The parent says what it does with SIGHUP, once for all.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        loop.set_exception_handler(lambda _, context: loop_error(self._tell, context))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        self._end = await WorkerEnd.open(self._place.channel, self)
        tracing = trace(self._settings, self._tell, worker=self._place.number)
        # With a server, the workers of one router are members of the fleet like any other.
        exchange = ParentExchange(self._end) if self._settings.fleet is None else None
        self._engine, self._metrics = assemble(
            self._settings, self._tell, exchange=exchange, member=self._place.member, generation=self._generation
        )
        pages = {accept: _Together(partial(self._ask_metrics, accept), self._tasks) for accept in ("", _OPENMETRICS)}
        self._server = Server(
            self._engine,
            # There are two formats, and a client's own words need not travel.
            render_metrics=lambda accept: pages[_OPENMETRICS if _OPENMETRICS in accept else ""](),
            ask=self._ask_operators,
            spend=self._spend,
            configuration=None if self._place.source is None else ParentConfiguration(self._end),
            sockets=(self._place.clients, self._place.operators),
            certificate=self._place.certificate,
        )
        self._server.desk.restore(self._place.overrides)
        if self._place.source is not None:
            self._generations = Generations(
                self._place.source,
                self._settings,
                generation=self._generation,
                apply=self._apply,
                send=self._end.send,
                metrics=self._metrics,
                tasks=self._tasks,
                tell=self._tell,
            )
        self._departure = departure = Departure(
            self._server,
            self._engine,
            self._tell,
            kept=True,
            follows=True,
            on_draining=self._metrics.draining,
            on_idle=self._idle,
        )
        for early in self._early:
            early(self._departure)
        lag = LoopLag(self._metrics.loop_lag)
        lag.start()
        try:
            await self._server.start()
            settle()
            try:
                self._end.send({"k": "ready"})
            except ChannelLost:
                self.parent_gone()
            self._tasks.spawn(self._pulses(), name="pulse")
            await departure.run()
            await departure.stop()
            if tracing is not None:
                await tracing.close()
        finally:
            lag.stop()
            await self._tasks.close(timeout_s=_FAREWELL_S)
            self._say_samples()
            with contextlib.suppress(ChannelLost):
                self._pulse()
            await self._end.close(timeout_s=_FAREWELL_S)
        return 0

    def _apply(self, settings: Settings, *, generation: int) -> None:
        # What can fail comes first.
        self._engine.apply(settings, generation=generation)
        self._server.configure(settings.server)

    def _with_departure(self, act: Callable[[Departure], None]) -> None:
        if self._departure is None:
            self._early.append(act)
        else:
            act(self._departure)

    def _signalled(self, number: signal.Signals) -> None:
        """Somebody wants this process to end, or all of them."""
        if not self._end.connected:
            self._with_departure(lambda departure: departure.signalled(number))
        elif number == signal.SIGTERM:
            # Supervisors send it to every process of a service at once: the parent has a moment to say that all of them end, and
            # how. What a terminal sends to all of them is the parent's alone.
            asyncio.get_running_loop().call_later(_ORDER_S, self._with_departure, self._end_alone)

    def _end_alone(self, departure: Departure) -> None:
        """No order has come, so it was this worker that was meant; the parent replaces it."""
        if departure.drain.stage == "serving":
            # Those who connect wait for the replacement, which is better than to be refused.
            self._server.leave()
            departure.ordered("ending", 0.0)

    def _idle(self) -> None:
        with contextlib.suppress(ChannelLost):
            self._pulse()
            self._end.send({"k": "idle"})

    def _task_failed(self, name: str, error: Exception) -> None:
        self._tell(Notice(level="error", event="task failed", facts={"task": name, "error": error}))

    # --- to the parent ------------------------------------------------------------------------------

    async def _pulses(self) -> None:
        while self._end.connected:
            with contextlib.suppress(ChannelLost):
                self._pulse()
            self._pulses_since_samples += 1
            if self._pulses_since_samples >= _PULSES_PER_SAMPLES:
                self._say_samples()
            await asyncio.sleep(PULSE_S)

    def _pulse(self) -> None:
        message: dict[str, Any] = {"k": "pulse", "sessions": self._engine.sessions}
        if (departure := self._departure) is not None:
            message |= {"by_themselves": departure.by_themselves, "ended": departure.ended}
        self._end.send(message)

    def _say_samples(self) -> None:
        self._pulses_since_samples = 0
        with contextlib.suppress(ChannelLost, BadFrame):
            self._end.send({"k": "samples", "data": self._packed()})

    def _packed(self) -> merge.Packed:
        # Of reloads there is one for all workers, which the parent counts.
        return [family for family in merge.pack(self._metrics.collect()) if family[0] != f"{PREFIX}{RELOADS}"]

    async def _ask_metrics(self, accept: str) -> MetricsPage:
        answer = await self._end.ask("metrics", timeout_s=_GATHER_TIMEOUT_S, accept=accept)
        body, content_type = answer.get("body"), answer.get("type")
        if not isinstance(body, str) or not isinstance(content_type, str):
            raise ChannelLost("found no page in the parent's answer")
        return body.encode(), content_type

    async def _ask_operators(self, name: str, args: Args) -> Document:
        """``router.admin.contract.Ask``; the parent puts the same questions that come at the same time only once."""
        answer = await self._end.ask(name, timeout_s=_GATHER_TIMEOUT_S, args=args)
        document = answer.get("document")
        if not isinstance(document, dict):
            raise ChannelLost("found no document in the parent's answer")
        return document

    async def _spend(self, nonce: str) -> bool:
        """``router.web.Spend``: any worker may get the ticket that another one gave."""
        answer = await self._end.ask("ticket", timeout_s=_GATHER_TIMEOUT_S, nonce=nonce)
        return answer.get("first") is True

    # --- from the parent (``channel.Hearer``) -------------------------------------------------------

    def told_to(self, what: str, number: int, args: Args) -> None:
        """Say what this process knows, or do what an operator wants."""
        data: Any = None
        try:
            if what == "overrides":
                self._server.desk.restore(args["overrides"])
                return
            if self._generations is not None and self._generations.told(what, number, args):
                return
            if what == "metrics":
                data = self._packed()
                self._pulses_since_samples = 0
            elif what in QUESTIONS or what in ACTS:
                data = self._server.desk.told(what, args)
            self._end.send({"k": "told", "id": number, "data": data})
        except ChannelLost:  # nobody to tell
            return
        except Exception as error:  # the parent waits for everybody
            self._tell(Notice(level="error", event="question not answered", facts={"what": what, "error": error}))
            with contextlib.suppress(ChannelLost):
                self._end.send({"k": "told", "id": number, "data": None})

    def ordered(self, message: Mapping[str, Any]) -> None:
        """Follow the parent's clock."""
        stage, left_s, at_once = message.get("stage"), message.get("left_s"), message.get("at_once")
        if stage in ("grace", "refusing", "leaving", "ending") and isinstance(left_s, int | float):
            self._with_departure(lambda departure: departure.ordered(stage, left_s, at_once=at_once is True))

    def parent_gone(self) -> None:
        """Go on alone, to the end of the last session."""
        self._with_departure(self._go_on_alone)

    def _go_on_alone(self, departure: Departure) -> None:
        if departure.drain.stage == "ending":
            return
        facts = {"sessions": self._engine.sessions, "meanwhile": "no new sessions here, those that run go on"}
        self._tell(Notice(level="error", event="parent process is gone", facts=facts))
        self._server.retire()
        departure.orphaned()


class _Together(Generic[T]):
    """Asks once for all who want to know at the same time: a flood of scrapes is one question after the other.

    Who comes while an answer is on its way waits for the next, since that one may be older than what he knows.

    Args:
        ask: gets the answer.
        tasks: owner of the asking, which goes on when one of those who wait has left.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], tasks: Tasks) -> None:
        self._ask = ask
        self._tasks = tasks
        self._asking = False
        # Of those who have come since the last question; only set while there are such.
        self._next: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Return the answer to a question asked from now on.

        Raises:
            ChannelLost: the process ends.
            Exception: what ``ask`` raises.
        """
        if self._tasks.closed:
            raise ChannelLost("this process ends")
        answer = self._next
        if answer is None:
            answer = self._next = asyncio.get_running_loop().create_future()
            if not self._asking:
                self._asking = True
                self._tasks.spawn(self._ask_all(), name="question to the parent")
        # One that leaves must not take the answer away from the others.
        return await asyncio.shield(answer)

    async def _ask_all(self) -> None:
        answer: asyncio.Future[T] | None = None
        try:
            while (answer := self._next) is not None:
                self._next = None
                try:
                    answer.set_result(await self._ask())
                except Exception as error:
                    answer.set_exception(error)
        finally:
            self._asking = False
            for left in (answer, self._next):
                if left is not None and not left.done():
                    left.set_exception(ChannelLost("this process ends"))
