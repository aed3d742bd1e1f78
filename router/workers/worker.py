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
from router.app import MetricsPage, Server
from router.config.settings import Settings
from router.engine import Engine
from router.events import Event, Notice, Observers, SessionRecord
from router.lag import LoopLag
from router.listener.certificate import Certificate
from router.metrics import Metrics
from router.process import STOP_TIMEOUT_S, assemble, drop_unread, loop_error, run, settle
from router.tasks import Tasks
from router.workers import merge
from router.workers.channel import BadFrame, ChannelLost, WorkerEnd
from router.workers.exchange import ParentExchange

#: How often a worker says that it lives ...
PULSE_S: Final = 1.0
#: ... and once in so many times what it has counted, so that a crash loses little of it.
_PULSES_PER_SAMPLES: Final = 10
# Above the time that the parent takes to ask everybody.
_GATHER_TIMEOUT_S: Final = 3.0
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
    """

    number: int
    member: str
    channel: socket.socket
    clients: Sequence[socket.socket]
    operators: Sequence[socket.socket]
    certificate: Certificate | None = None


def work(settings: Settings, place: Place) -> int:
    """Serve until a signal, or until the parent is gone and the last session has ended. Returns the exit code.

    Args:
        settings: the generation.
        place: of this worker; everything in it is the worker's to close.
    """
    server = settings.server
    logs.configure(server.log_format, server.log_level, worker=place.number)
    observer = logs.LogObserver()
    tell = Observers([observer])
    code = run(lambda: _Worker(settings, place, tell).serve())
    observer.flush()
    drop_unread(sys.stderr)
    return code


class _Worker:
    """Inside the event loop."""

    def __init__(self, settings: Settings, place: Place, tell: Observers) -> None:
        self._settings = settings
        self._place = place
        self._tell = tell
        self._tasks = Tasks(on_error=self._task_failed)
        self._stop = asyncio.Event()
        self._parent_gone = asyncio.Event()
        # Whenever a session ends, and when the process is asked to end: the wait for the last session looks again.
        self._look = asyncio.Event()
        self._pulses_since_samples = 0  # the parent was told of, whether it asked or not
        # All set by ``serve`` before anybody can ask for them.
        self._end: WorkerEnd
        self._engine: Engine
        self._metrics: Metrics
        self._server: Server

    async def serve(self) -> int:
        """See ``work``."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopped)
        # The parent says what it does with SIGHUP, once for all.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        loop.set_exception_handler(lambda _, context: loop_error(self._tell, context))
        self._end = await WorkerEnd.open(self._place.channel, self)
        # With a server, the workers of one router are members of the fleet like any other.
        exchange = ParentExchange(self._end) if self._settings.fleet is None else None
        self._engine, self._metrics = assemble(self._settings, self._tell, exchange=exchange, member=self._place.member)
        self._tell.add(self._look_again)
        pages = {accept: _Together(partial(self._ask_metrics, accept), self._tasks) for accept in ("", _OPENMETRICS)}
        self._server = Server(
            self._engine,
            # There are two formats, and a client's own words need not travel.
            render_metrics=lambda accept: pages[_OPENMETRICS if _OPENMETRICS in accept else ""](),
            gather_deployments=_Together(self._ask_deployments, self._tasks),
            sockets=(self._place.clients, self._place.operators),
            certificate=self._place.certificate,
        )
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
            await self._until_the_end()
            self._tell(Notice(level="info", event="stopping", facts={"sessions": self._engine.sessions}))
            await self._server.stop(timeout_s=STOP_TIMEOUT_S)
            self._tell(Notice(level="info", event="stopped"))
        finally:
            lag.stop()
            await self._tasks.close(timeout_s=_FAREWELL_S)
            self._say_samples()
            await self._end.close(timeout_s=_FAREWELL_S)
        return 0

    async def _until_the_end(self) -> None:
        """Return when the process is asked to end, or when the parent is gone and so is the last session."""
        while not self._stop.is_set() and not self._parent_gone.is_set():
            await self._looked()
        if self._stop.is_set():
            return
        facts = {"sessions": self._engine.sessions, "meanwhile": "no new sessions here, those that run go on"}
        self._tell(Notice(level="error", event="parent process is gone", facts=facts))
        self._server.retire()
        while self._engine.sessions and not self._stop.is_set():
            await self._looked()

    async def _looked(self) -> None:
        self._look.clear()
        await self._look.wait()

    def _stopped(self) -> None:
        self._stop.set()
        self._look.set()

    def _look_again(self, event: Event) -> None:
        if type(event) is SessionRecord:
            # It is counted no more when this turn of the loop is over, and nobody looks before.
            self._look.set()

    def _task_failed(self, name: str, error: Exception) -> None:
        self._tell(Notice(level="error", event="task failed", facts={"task": name, "error": error}))

    # --- to the parent ------------------------------------------------------------------------------

    async def _pulses(self) -> None:
        while self._end.connected:
            with contextlib.suppress(ChannelLost):
                self._end.send({"k": "pulse", "sessions": self._engine.sessions})
            self._pulses_since_samples += 1
            if self._pulses_since_samples >= _PULSES_PER_SAMPLES:
                self._say_samples()
            await asyncio.sleep(PULSE_S)

    def _say_samples(self) -> None:
        self._pulses_since_samples = 0
        with contextlib.suppress(ChannelLost, BadFrame):
            self._end.send({"k": "samples", "data": merge.pack(self._metrics.collect())})

    async def _ask_metrics(self, accept: str) -> MetricsPage:
        answer = await self._end.ask("metrics", timeout_s=_GATHER_TIMEOUT_S, accept=accept)
        body, content_type = answer.get("body"), answer.get("type")
        if not isinstance(body, str) or not isinstance(content_type, str):
            raise ChannelLost("found no page in the parent's answer")
        return body.encode(), content_type

    async def _ask_deployments(self) -> Mapping[str, Any]:
        answer = await self._end.ask("deployments", timeout_s=_GATHER_TIMEOUT_S)
        document = answer.get("document")
        if not isinstance(document, dict):
            raise ChannelLost("found no document in the parent's answer")
        return document

    # --- from the parent (``channel.Hearer``) -------------------------------------------------------

    def told_to(self, what: str, number: int) -> None:
        """Say what this process knows."""
        data: Any = None
        try:
            if what == "metrics":
                data = merge.pack(self._metrics.collect())
                self._pulses_since_samples = 0
            elif what == "deployments":
                data = self._server.describe()
            self._end.send({"k": "told", "id": number, "data": data})
        except ChannelLost:  # nobody to tell
            return
        except Exception as error:  # the parent waits for everybody
            self._tell(Notice(level="error", event="question not answered", facts={"what": what, "error": error}))
            with contextlib.suppress(ChannelLost):
                self._end.send({"k": "told", "id": number, "data": None})

    def parent_gone(self) -> None:
        """Go on alone, to the end of the last session."""
        self._parent_gone.set()
        self._look.set()


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
