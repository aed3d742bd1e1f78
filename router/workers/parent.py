"""The parent of several workers: forks them, replaces those that die, answers what they ask, ends them.

Plain synchronous code over ``selectors``, without event loop and threads: a fork copies one thread and nothing that another one
held, so it is safe at any time. The parent serves no connection and holds every listening socket (``sockets``).

A worker that dies is replaced in its slot: at once when it had lived ``SETTLED_S``, else after a back-off. One that fails before
all have served for the first time ends the whole start, for the next would fail likewise. One from which nothing is heard for
``SILENT_TICKS``, or that leaves too much unread, is killed: its event loop hangs, so its sessions are as good as dead, and its
share of new connections would wait for ever. The silence is counted in the parent's own seconds awake, so that a host that slept
kills nobody.

A parent that dies itself takes nobody along: its workers read the end of their channels (``worker``).
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Final, NoReturn

import orjson
from prometheus_client.process_collector import ProcessCollector

from router import logs
from router.admin import merge as views
from router.admin.contract import ACTS, QUESTIONS, Args
from router.admin.overrides import Overrides, configured_of
from router.config.settings import DrainSettings, ListenTlsSettings, Settings
from router.dashboard.login import Spent
from router.drain import PROGRESS_S, Drain, Stage
from router.events import Notice, Observers
from router.fleet import picture
from router.fleet.board import Board
from router.fleet.exchange import Wanted
from router.handover import HandoverFailed
from router.listener.certificate import Certificate
from router.metrics import PREFIX, RELOADS, RELOADS_TEXT, RESTARTS, RESTARTS_TEXT, Page
from router.process import GC_THRESHOLDS, cannot_start, facts_of, hangup, say, url_of
from router.reload import Origin
from router.succession import NOTHING, Inheritance, Succession
from router.systemd import notify
from router.workers import merge
from router.workers.channel import MOST_UNREAD_BYTES, BadFrame, Message, ParentEnd, Stuck
from router.workers.reloads import Reloads
from router.workers.sockets import address_of
from router.workers.worker import Place, work

#: A worker that lived this long is replaced at once ...
SETTLED_S: Final = 10.0
#: ... and others after this, doubled with each of them in a row.
FIRST_DELAY_S: Final = 0.1
MOST_DELAY_S: Final = 2.0
#: Longest wait for workers to say what only all of them know.
GATHER_S: Final = 1.0
#: Seconds without a word after which a worker is stuck; it speaks once a second.
SILENT_TICKS: Final = 30
#: Workers have time limits of their own for their end; the sum of those is below this, and this below the 10 s that are promised.
KILL_AFTER_S: Final = 9.0
#: The same for an end at once.
KILL_AT_ONCE_AFTER_S: Final = 6.0
_TICK_S: Final = 1.0
# Work that can wait is done in slices of this length: hard limits of the fleet wait for 50 ms at most.
_SLICE_S: Final = 0.005
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_METRICS: Final = "metrics"
_CONFIG: Final = "config"
_RELOAD: Final = "reload"
# Questions to all that may be under way at a time; nobody has so many different ones.
_MOST_GATHERINGS: Final = 64
# A name of a place or a deployment is no longer than this.
_LONGEST_NAME: Final = 700


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """A process that serves, or is about to."""

    number: int  # of its slot
    pid: int
    member: str  # its name on the board
    end: ParentEnd
    born_at: float
    watched: int = 0  # what the selector looks at, of its channel
    serving: bool = False  # it has said that it accepts connections
    sessions: int = 0  # as it said last
    by_themselves: int = 0  # sessions that ended while it drained, as it said last ...
    ended_by_it: int = 0  # ... and those that it ended
    idle: bool = False  # it drains, and nobody is left
    silent: int = 0  # ticks since it said anything
    samples: merge.Packed = ()  # its metrics, as it said last
    # Numbers of what it was asked and has not answered yet, with the questions' keys (``Gathering``).
    owes: dict[int, str] = field(default_factory=dict)
    told: int = 0  # version of the overrides that it knows
    confused: bool = False  # it has said something senseless, which is told once


@dataclass(slots=True, kw_only=True)
class Slot:
    """A worker's place: its number, its sockets, and who is there."""

    number: int
    sockets: list[socket.socket]
    worker: Worker | None = None
    due_at: float = math.inf  # when the next one is to be forked; only finite while there is none
    died_at: float | None = None  # only set until a replacement serves
    early_deaths: int = 0  # in a row


@dataclass(slots=True, kw_only=True, eq=False)
class Gathering:
    """A question to all workers, or an act of all, that one or more of them have asked for.

    ``key`` is the same for the same question, so that those who ask it at the same time share the answer; every act has one of
    its own, for their order counts.
    """

    key: str
    what: str
    args: Args
    number: int
    deadline: float
    askers: list[tuple[Worker, int, str]]  # who, its question's number, and what it accepts
    waiting: set[Worker] = field(default_factory=set)
    heard: dict[Worker, Any] = field(default_factory=dict)


class Nonsense(ValueError):
    """A worker's message that cannot be followed."""


def delay_s(lived_s: float, early_deaths: int) -> float:
    """Return the seconds until a worker that died is replaced.

    Args:
        lived_s: how long it lived.
        early_deaths: how many before it, in a row, in the same slot, had not lived ``SETTLED_S``.
    """
    if lived_s >= SETTLED_S:
        return 0.0
    # Beyond this power the bound holds anyway.
    return min(MOST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(early_deaths, 16))


def cause_of(status: int) -> dict[str, Any]:
    """Return how a process ended, for the log: the name of a signal, or its exit code (``os.waitstatus_to_exitcode``)."""
    if status >= 0:
        return {"code": status}
    try:
        return {"signal": signal.Signals(-status).name}
    except ValueError:
        return {"signal": f"signal {-status}"}


class Parent:
    """Runs the workers.

    Args:
        settings: the generation; ``server.workers`` says how many.
        tell: observers in this process, and the workers' own.
        origin: where the settings come from, so that they can be read again; ``None``: they cannot.
        inheritance: listening sockets that are there already.
        work: what a worker does in its process; it returns the exit code.
        clock: monotonic seconds.
        silent_ticks: see ``SILENT_TICKS``.
        kill_after_s: see ``KILL_AFTER_S``.
        most_unread_bytes: see ``channel.MOST_UNREAD_BYTES``.
    """

    def __init__(
        self,
        settings: Settings,
        tell: Observers,
        *,
        origin: Origin | None = None,
        inheritance: Inheritance = NOTHING,
        work: Callable[[Settings, Place], int] = work,
        clock: Callable[[], float] = time.monotonic,
        silent_ticks: int = SILENT_TICKS,
        kill_after_s: float = KILL_AFTER_S,
        most_unread_bytes: int = MOST_UNREAD_BYTES,
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._work = work
        self._clock = clock
        self._silent_ticks = silent_ticks
        self._kill_after_s = kill_after_s
        self._most_unread_bytes = most_unread_bytes
        self._board = Board()
        # Read before each fork: workers share the keys of its session tickets, and a client may resume at any of them.
        self._certificate = Certificate(tell)
        self._slots: list[Slot] = []
        self._clients = 0  # how many of a slot's sockets are for clients; the others are for operators
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._next_tick = clock() + _TICK_S
        self._listening = False  # all have served once
        self._inheritance = inheritance
        self._succession: Succession  # set by ``_open``
        self._drain = Drain(clock)
        self._stage: Stage = "serving"  # that the workers were told of
        self._why: dict[str, Any] = {}  # of the drain, for the log
        self._progress_at = math.inf  # only finite while it drains
        self._by_themselves = 0  # sessions of workers that are gone, see ``Worker``
        self._ended_by_us = 0
        self._code: int | None = None  # only set once the end has begun
        self._kill_at = math.inf
        self._restarts = 0
        # Counters of those that are gone, as one process' metrics.
        self._gone: merge.Packed = ()
        self._process = ProcessCollector(registry=None)
        self._gathered = 0
        self._gathering: dict[str, Gathering] = {}
        # Who asked while the same was being gathered: what comes of that may be older than the question.
        self._next_askers: dict[str, list[tuple[Worker, int, str]]] = {}
        self._acts = 0
        self._overrides = Overrides()
        self._spent = Spent(clock=clock)  # tickets of the dashboard
        self._configured = configured_of(settings)
        # What the generation in force says of the end and of the certificate; of all else the parent needs next to nothing.
        self._drain_settings = settings.server.drain
        self._tls = settings.server.tls
        self._origin = origin
        self._reloads = self._reloads_of(origin)
        self._slices: deque[Iterator[None]] = deque()
        self._answers: dict[str, Callable[[Worker, Message], Mapping[str, Any]]] = {
            "beat": self._beat,
            "acquire": self._acquire,
            "release": self._release,
            "leave": self._leave,
            "ticket": self._ticket,
        }

    def run(self) -> int:
        """Serve until a signal ends it, or the start fails. Returns the exit code."""
        try:
            self._open()
        except (HandoverFailed, OSError) as error:
            cannot_start(self._settings, error)
            return 1
        self._catch_signals()
        # What was loaded so far is the same in all processes: a collector that walked it would make each copy it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.enable()
        try:
            for slot in self._slots:
                self._fork(slot)
            while not self._over():
                self._turn()
        finally:
            self._close()
        assert self._code is not None
        facts = {"by_themselves": self._by_themselves, "ended": self._ended_by_us}
        self._tell(Notice(level="info", event="stopped", facts=facts))
        return self._code

    # --- beginning and end --------------------------------------------------------------------------

    def _open(self) -> None:
        self._read_certificate()
        succession = self._succession = Succession(
            self._settings.server,
            self._inheritance,
            workers=self._settings.server.workers,
            watch=self._watch_socket,
            tell=self._tell,
            generation=lambda: 1 if self._reloads is None else self._reloads.generation,
        )
        clients, operators = succession.clients, succession.operators
        self._clients = len(clients[0])
        self._slots = [
            Slot(number=number, sockets=[*own, *more]) for number, (own, more) in enumerate(zip(clients, operators, strict=True))
        ]

    def _read_certificate(self) -> None:
        if self._tls is not None:
            self._certificate.context(self._tls)

    def _catch_signals(self) -> None:
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _noted)

    def _over(self) -> bool:
        return self._code is not None and all(slot.worker is None for slot in self._slots)

    def _advance(self) -> None:
        """See where the drain is, and have the workers follow."""
        drain = self._drain
        # What the workers have said of a stage before does not count.
        self._enter(drain.look(idle=False))
        self._enter(drain.look(idle=all(worker.idle for worker in self._workers())))
        now = self._clock()
        if self._code is None:
            if now >= self._progress_at:
                self._progress_at = now + PROGRESS_S
                gone = self._by_themselves + sum(worker.by_themselves for worker in self._workers())
                self._say("still draining", left_s=round(drain.left_s, 1), by_themselves=gone, stage=self._stage)
        elif drain.at_once and self._kill_at > now + KILL_AT_ONCE_AFTER_S:
            self._kill_at = now + KILL_AT_ONCE_AFTER_S
            self._order()

    def _enter(self, stage: Stage) -> None:
        """Do what begins with a stage, if it begins now."""
        if stage == self._stage:
            return
        before, self._stage = self._stage, stage
        if stage == "ending":
            self._end(0)
            return
        if before == "serving":
            self._say_draining(stage)
        elif stage == "refusing":
            self._say("new sessions are refused")
        else:
            self._say("addresses left")
        for worker in self._workers():
            # Whoever has connected until now may still ask for a session.
            worker.idle = False
        self._order()
        if stage == "leaving":
            # Who waits in them is somebody else's; they must not live on here when that one closes them.
            self._close_listeners()
        if stage == "grace":
            return
        for slot in self._slots:
            slot.due_at = math.inf
            if slot.worker is None:
                self._desert(slot)

    def _say_draining(self, stage: Stage) -> None:
        self._progress_at = self._clock() + PROGRESS_S
        if not self._drain.successor:
            notify("STOPPING=1")
        settings = self._drain_settings
        grace_s = settings.grace_s if stage == "grace" else 0.0
        self._say("draining", **self._why, grace_s=grace_s, timeout_s=settings.timeout_s)

    def _say(self, event: str, **facts: Any) -> None:
        workers = self._workers()
        sessions = sum(worker.sessions for worker in workers)
        self._tell(Notice(level="info", event=event, facts={"workers": len(workers), "sessions": sessions, **facts}))

    def _order(self, *workers: Worker) -> None:
        """Tell these, or all of them, how far the drain is."""
        drain = self._drain
        left_s = drain.left_s if math.isfinite(drain.left_s) else 0.0
        for worker in workers or self._workers():
            self._send(worker, {"k": "order", "stage": drain.stage, "left_s": left_s, "at_once": drain.at_once})

    def _desert(self, slot: Slot) -> None:
        """Nobody will serve there any more: let the kernel give its share of the connections to the others."""
        others = {id(sock) for other in self._slots if other.worker is not None for sock in other.sockets}
        for sock in slot.sockets:
            if id(sock) not in others:
                sock.close()

    def _handed_over(self, pid: int) -> None:
        self._why["successor"] = pid
        self._drain.handed_over(self._drain_settings)
        self._advance()

    def _end(self, code: int) -> None:
        """Have every worker end. The first call decides the exit code."""
        if self._code is not None:
            return
        self._code = code
        if code:
            # The start has failed: there is nobody to be patient with.
            self._drain.end_at_once()
        self._stage = self._drain.stage
        self._say("stopping")
        at_once_s = KILL_AT_ONCE_AFTER_S if self._drain.at_once else math.inf
        self._kill_at = self._clock() + min(self._kill_after_s, at_once_s)
        # A socket that its worker has closed must not live on here and gather connections that nobody will serve.
        self._close_listeners()
        self._order()
        for slot in self._slots:
            slot.due_at = math.inf
            if slot.worker is not None:
                self._signal(slot.worker, signal.SIGTERM)

    def _close_listeners(self) -> None:
        for slot in self._slots:
            for sock in slot.sockets:
                sock.close()

    def _close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._succession.close()
        self._close_listeners()
        for slot in self._slots:
            if slot.worker is not None:  # only after a fault of this program; the worker reads the end of its channel
                slot.worker.end.close()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    # --- one turn -----------------------------------------------------------------------------------

    def _turn(self) -> None:
        for key, mask in self._selector.select(self._wait_s()):
            if key.data is None:
                self._signals()
            elif callable(key.data):
                key.data()
            else:
                self._attend(key.data, mask)
        now = self._clock()
        if now >= self._next_tick:
            self._next_tick = now + _TICK_S
            self._tick()
        self._advance()
        for slot in self._slots:
            if slot.due_at <= now:
                slot.due_at = math.inf
                self._restarts += 1
                self._fork(slot)
        for gathering in list(self._gathering.values()):
            if not gathering.waiting or now >= gathering.deadline:
                self._gathered_all(gathering)
        if self._reloads is not None and self._reloading:
            self._reloads.step()
        if now >= self._kill_at:
            self._kill_at = math.inf
            self._kill_all()
        self._work_a_slice()

    def _wait_s(self) -> float:
        if self._slices:
            return 0.0
        due = [self._next_tick, self._kill_at, self._drain.wakes_at, *(slot.due_at for slot in self._slots)]
        due += [gathering.deadline for gathering in self._gathering.values()]
        if self._reloads is not None and self._reloading:
            due.append(self._reloads.due_at())
        return max(0.0, min(due) - self._clock())

    def _work_a_slice(self) -> None:
        ends = self._clock() + _SLICE_S
        while self._slices and self._clock() < ends:
            try:
                next(self._slices[0])
            except StopIteration:
                self._slices.popleft()
            except Exception as error:  # those who wait for this find out by their time limits; all else goes on
                self._slices.popleft()
                self._tell(Notice(level="error", event="answer not made", facts={"error": error}))

    def _signals(self) -> None:
        try:
            numbers = self._wake_reader.recv(4096)
        except BlockingIOError:
            return
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._asked_to_end(signal.Signals(number))
            elif number == signal.SIGHUP and self._reloads is not None:
                self._reloads.request("signal")
            elif number == signal.SIGHUP:
                hangup(self._tell)
        # Signals that come close together may be seen as one: look at everybody.
        for slot in self._slots:
            if slot.worker is not None:
                self._look_after(slot, slot.worker)

    def _asked_to_end(self, number: signal.Signals) -> None:
        self._why.setdefault("signal", number.name)
        # Before all have served nobody knows this router, and nobody who presses Ctrl-C waits for load balancers.
        grace = number == signal.SIGTERM and self._listening
        self._drain.signalled(self._drain_settings, grace=grace, kept=self._succession.kept)
        if self._drain.signals == 2:
            self._tell(Notice(level="warning", event="ending at once", facts={"signal": number.name}))

    def _watch_socket(self, sock: socket.socket, callback: Callable[[], None] | None) -> None:
        """See ``handover.Watch``."""
        if callback is None:
            self._selector.unregister(sock)
        else:
            self._selector.register(sock, selectors.EVENT_READ, callback)

    def _tick(self) -> None:
        for worker in self._workers():
            worker.silent += 1
            if worker.silent >= self._silent_ticks:
                # Told again every so often, should it be one that cannot even be killed.
                worker.silent = 0
                self._kill(worker, f"nothing heard for {self._silent_ticks} s")
        # A death whose signal was lost would leave a slot empty for ever.
        for slot in self._slots:
            if slot.worker is not None:
                self._look_after(slot, slot.worker)

    def _workers(self) -> list[Worker]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    # --- life and death -----------------------------------------------------------------------------

    def _fork(self, slot: Slot) -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._cannot_fork(slot, error)
            return
        self._read_certificate()
        member = f"{slot.number}-{secrets.token_hex(8)}"
        # What stands in a buffer would be printed by both.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # A signal that the child got between its birth and its own handlers would wake the parent in its place.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            ours.close()
            theirs.close()
            self._cannot_fork(slot, error)
            return
        if pid == 0:
            self._become(slot, member, theirs, ours)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        end = ParentEnd(ours, most_unread_bytes=self._most_unread_bytes)
        slot.worker = Worker(
            number=slot.number, pid=pid, member=member, end=end, born_at=self._clock(), told=self._overrides.version
        )
        self._watch(slot.worker)
        if self._reloads is not None:
            self._reloads.forked(slot.worker)
        if self._stage != "serving":
            self._order(slot.worker)

    def _become(self, slot: Slot, member: str, channel: socket.socket, parents: socket.socket) -> NoReturn:
        """Be a worker, in the child; nothing of the parent's runs here again."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            # Until it has handlers: the parent decides for all what a terminal's signals mean.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._selector.close()
            parents.close()
            self._wake_reader.close()
            self._wake_writer.close()
            self._succession.forget()
            for other in self._slots:
                # The others' channels above all: one that is held here would not tell its worker that the parent is gone.
                if other.worker is not None:
                    other.worker.end.close()
                for sock in other.sockets:
                    # Those that do not go round evenly are everybody's.
                    if not any(sock is mine for mine in slot.sockets):
                        sock.close()
            clients, operators = slot.sockets[: self._clients], slot.sockets[self._clients :]
            place = Place(
                number=slot.number,
                member=member,
                channel=channel,
                clients=clients,
                operators=operators,
                certificate=self._certificate,
                overrides=list(self._overrides.of(self._configured)),
                source=None if self._origin is None else self._origin.source,
                newest=None if self._reloads is None else self._reloads.newest,
            )
            code = self._work(self._settings, place)
        except BaseException:  # nothing may get back into the parent's code
            sys.excepthook(*sys.exc_info())
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    def _cannot_fork(self, slot: Slot, error: OSError) -> None:
        self._tell(Notice(level="error", event="worker not started", facts={"worker": slot.number, "error": error}))
        if not self._listening:
            self._end(1)
            return
        slot.due_at = self._clock() + delay_s(0.0, slot.early_deaths)
        slot.early_deaths += 1

    def _look_after(self, slot: Slot, worker: Worker) -> None:
        """See whether a worker has ended."""
        try:
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has waited for it; how it ended is not known
            pid, status = worker.pid, 0
        if pid != 0:
            self._ended(slot, worker, os.waitstatus_to_exitcode(status))

    def _ended(self, slot: Slot, worker: Worker, status: int) -> None:
        now = self._clock()
        self._last_words(worker)
        worker.end.ended = True
        self._watch(worker)
        worker.end.close()
        slot.worker = None
        if self._reloads is not None:
            self._reloads.gone(worker)
        # After the grace nobody new is served, so nobody new is needed.
        replaced = self._stage in ("serving", "grace")
        if not replaced:
            self._desert(slot)
        self._board.evict(worker.member)
        self._gone = merge.fold([self._gone, worker.samples])
        self._by_themselves += worker.by_themselves
        self._ended_by_us += worker.ended_by_it
        for gathering in self._gathering.values():
            gathering.waiting.discard(worker)
            gathering.heard.pop(worker, None)
        if self._code is not None and status in (0, -signal.SIGTERM):
            return
        lived_s = now - worker.born_at
        facts: dict[str, Any] = {"worker": worker.number, "pid": worker.pid, **cause_of(status)}
        facts |= {"lived_s": round(lived_s, 3), "sessions": worker.sessions}
        # One that was asked to end by somebody else did as it was told.
        level = "warning" if status == 0 else "error"
        self._tell(Notice(level=level, event="worker ended", facts=facts))
        if self._code is not None:
            return
        if not self._listening and not worker.serving and status != 0:
            self._tell(Notice(level="error", event="start failed", facts={"worker": worker.number}))
            self._end(status if status > 0 else 1)
            return
        if not replaced:
            return
        slot.died_at = now
        slot.due_at = now + delay_s(lived_s, slot.early_deaths)
        slot.early_deaths = 0 if lived_s >= SETTLED_S else slot.early_deaths + 1

    def _last_words(self, worker: Worker) -> None:
        with contextlib.suppress(BadFrame):
            for message in worker.end.drain():
                # That it served, too: whether a start has failed must not depend on what the parent saw first.
                if message.get("k") in ("ready", "samples", "pulse", "told"):
                    self._hear(worker, message)

    def _signal(self, worker: Worker, number: signal.Signals) -> None:
        # Not waited for yet, so the id is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, number)

    def _kill(self, worker: Worker, reason: str) -> None:
        facts = {"worker": worker.number, "pid": worker.pid, "reason": reason}
        self._tell(Notice(level="error", event="worker killed", facts=facts))
        self._signal(worker, signal.SIGKILL)

    def _kill_all(self) -> None:
        for worker in self._workers():
            self._kill(worker, f"still there {self._kill_after_s:g} s after it was asked to end")

    # --- what workers say ---------------------------------------------------------------------------

    def _attend(self, worker: Worker, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                worker.end.flush()
            if mask & selectors.EVENT_READ:
                for message in worker.end.receive():
                    self._hear(worker, message)
        except BadFrame as error:
            self._give_up(worker, str(error))
        self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        """Have the selector look at what matters of a worker's channel now."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.end.wants_write else 0)
        if worker.end.ended:
            # It would be readable all the time; the worker's death is told by a signal.
            wanted = 0
        if wanted == worker.watched:
            return
        if not wanted:
            self._selector.unregister(worker.end)
        elif not worker.watched:
            self._selector.register(worker.end, wanted, worker)
        else:
            self._selector.modify(worker.end, wanted, worker)
        worker.watched = wanted

    def _give_up(self, worker: Worker, reason: str) -> None:
        """Hear no more of a worker that cannot be talked to, and end it."""
        worker.end.ended = True
        self._kill(worker, reason)

    def _send(self, worker: Worker, message: Message) -> None:
        if worker.end.ended:
            return
        try:
            worker.end.send(message)
        except Stuck as error:
            self._give_up(worker, str(error))
        self._watch(worker)

    def _hear(self, worker: Worker, message: Message) -> None:
        worker.silent = 0
        try:
            self._follow(worker, message)
        except (Nonsense, picture.NotAShare) as error:
            if not worker.confused:
                worker.confused = True
                facts = {"worker": worker.number, "pid": worker.pid, "error": str(error)}
                self._tell(Notice(level="error", event="worker not understood", facts=facts))
            if message.get("k") == "ask":
                self._send(worker, {"k": "answer", "id": message.get("id"), "error": str(error)})

    def _follow(self, worker: Worker, message: Message) -> None:
        kind = message.get("k")
        if kind == "ask":
            self._asked(worker, message)
        elif kind == "told":
            self._told(worker, _natural(message, "id"), message.get("data"))
        elif kind == "pulse":
            worker.sessions = _natural(message, "sessions")
            if "ended" in message:
                worker.by_themselves, worker.ended_by_it = _natural(message, "by_themselves"), _natural(message, "ended")
        elif kind == "idle":
            worker.idle = True
        elif kind == "prepared":
            if self._reloads is not None:
                self._reloads.heard(worker, _natural(message, "id"), _object(message, "data"))
        elif kind == "samples":
            worker.samples = _list(message, "data")
        elif kind == "ready":
            self._ready(worker)
        else:
            expected = "ask, told, prepared, pulse, idle, samples or ready"
            raise Nonsense(f"found a message of kind {str(kind)[:40]!r}, expected {expected}")

    def _ready(self, worker: Worker) -> None:
        if worker.serving:
            return
        worker.serving = True
        if worker.told != self._overrides.version:
            # Said after it was forked, and before it could be asked.
            overrides = list(self._overrides.of(self._configured))
            self._send(worker, {"k": "tell", "id": 0, "what": "overrides", "args": {"overrides": overrides}})
        if self._reloads is not None:
            self._reloads.serves(worker)
        slot = self._slots[worker.number]
        if slot.died_at is not None:
            seconds = round(self._clock() - slot.died_at, 3)
            slot.died_at = None
            facts = {"worker": worker.number, "pid": worker.pid, "seconds": seconds}
            self._tell(Notice(level="info", event="worker replaced", facts=facts))
        if not self._listening and self._stage == "serving" and all(one.serving for one in self._workers()):
            self._listening = len(self._workers()) == len(self._slots)
            if self._listening:
                self._say_listening()

    def _say_listening(self) -> None:
        self._succession.listening(self._handed_over)
        sockets = self._slots[0].sockets
        url = url_of(address_of(sockets[0]), self._settings.server)
        say(f"realtime-router listening on {url}")
        operations = None if self._settings.server.ops_listen is None else address_of(sockets[-1])
        facts = facts_of(self._settings, url, operations)
        facts["workers"] = [worker.pid for worker in self._workers()]
        self._tell(Notice(level="info", event="listening", facts=facts))

    def _asked(self, worker: Worker, message: Message) -> None:
        number, what = _natural(message, "id"), message.get("what")
        if what == _METRICS:
            accept = message.get("accept", "")
            if not isinstance(accept, str):
                raise Nonsense(f"accept: found {type(accept).__name__}, expected a text")
            self._gather(_METRICS, what, {}, (worker, number, accept))
            return
        if what == _CONFIG and self._reloads is not None:
            self._send(worker, {"k": "answer", "id": number, "document": self._reloads.describe()})
            return
        if what == _RELOAD and self._reloads is not None:
            self._reloads.request("api", partial(self._answer_reload, worker, number))
            return
        if isinstance(what, str) and (what in QUESTIONS or what in ACTS):
            self._asked_by_operator(worker, number, what, _object(message, "args"))
            return
        answer = self._answers.get(what) if isinstance(what, str) else None
        if answer is None:
            raise Nonsense(f"found the question {str(what)[:40]!r}, expected one of {', '.join(sorted(self._answers))}")
        self._send(worker, {"k": "answer", "id": number, **answer(worker, message)})

    # --- the configuration --------------------------------------------------------------------------

    @property
    def _reloading(self) -> bool:
        """Whether a reload makes sense: before all serve there is nobody to ask, and afterwards nobody needs it."""
        return self._listening and self._code is None

    def _reloads_of(self, origin: Origin | None) -> Reloads[Worker] | None:
        if origin is None:
            return None
        return Reloads(
            origin,
            workers=lambda: [worker for worker in self._workers() if worker.serving and not worker.end.ended],
            send=self._send,
            accepted=self._accepted,
            tell=self._tell,
            clock=self._clock,
        )

    def _accepted(self, facts: Mapping[str, Any]) -> None:
        """Another generation is in force."""
        logs.set_level(facts["log_level"])
        self._drain_settings = DrainSettings(**facts["drain"])
        self._tls = None if facts["tls"] is None else ListenTlsSettings(**facts["tls"])
        self._configured = facts["configured"]
        self._overrides.settle(self._configured)

    def _answer_reload(self, worker: Worker, number: int, document: Mapping[str, Any]) -> None:
        self._send(worker, {"k": "answer", "id": number, "document": document})

    # --- the board ----------------------------------------------------------------------------------

    def _beat(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        share = message.get("share")
        if not isinstance(share, str):
            raise Nonsense(f"share: found {type(share).__name__}, expected a text")
        renew = _places(message, "renew", worker.member)
        heard = self._board.beat(worker.member, picture.decode(share.encode()), renew, now_s=self._clock())
        facts = {"now_s": heard.now_s, "known": heard.known, "members": heard.members}
        return {**facts, "totals": picture.encode(heard.totals).decode()}

    def _acquire(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        wanted = [_wanted(item, worker.member) for item in _list(message, "wanted")]
        return {"granted": self._board.acquire(wanted, now_s=self._clock())}

    def _release(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        self._board.release(_places(message, "places", worker.member))
        return {}

    def _leave(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        self._board.remove(worker.member)
        return {}

    def _ticket(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        return {"first": self._spent.first(_name(message.get("nonce")))}

    # --- what only all of them know -----------------------------------------------------------------

    def _asked_by_operator(self, worker: Worker, number: int, what: str, args: Args) -> None:
        if len(self._gathering) >= _MOST_GATHERINGS:
            self._send(worker, {"k": "answer", "id": number, "error": "too many questions at the same time"})
            return
        if what in QUESTIONS:
            key = f"{what} {orjson.dumps(args, option=orjson.OPT_SORT_KEYS).decode()}"
        else:
            self._acts += 1
            key = f"{what} #{self._acts}"
        if what == "set":
            try:
                self._overrides.note(args, self._configured)
            except ValueError as error:
                raise Nonsense(str(error)) from None
        self._gather(key, what, args, (worker, number, ""))

    def _gather(self, key: str, what: str, args: Args, asker: tuple[Worker, int, str]) -> None:
        if key in self._gathering:
            self._next_askers.setdefault(key, []).append(asker)
        else:
            self._begin_gathering(key, what, args, [asker])

    def _begin_gathering(self, key: str, what: str, args: Args, askers: list[tuple[Worker, int, str]]) -> None:
        self._gathered += 1
        under_way = {gathering.number for gathering in self._gathering.values()}
        gathering = Gathering(
            key=key, what=what, args=args, number=self._gathered, deadline=self._clock() + GATHER_S, askers=askers
        )
        self._gathering[key] = gathering
        for worker in self._workers():
            if not worker.serving or worker.end.ended:
                continue
            # One that has not answered the last time is waited for no more. What is to be done it is told nevertheless.
            late = any(number not in under_way for number in worker.owes)
            if late and what not in ACTS:
                continue
            worker.owes[gathering.number] = key
            if not late:
                gathering.waiting.add(worker)
            if what == "set":
                worker.told = self._overrides.version
            self._send(worker, {"k": "tell", "id": gathering.number, "what": what, "args": args})

    def _told(self, worker: Worker, number: int, data: Any) -> None:
        key = worker.owes.pop(number, None)
        if key is None:
            raise Nonsense(f"found an answer to {number}, which was not asked")
        if key == _METRICS and isinstance(data, list):
            worker.samples = data
        gathering = self._gathering.get(key)
        if gathering is not None and gathering.number == number:
            gathering.waiting.discard(worker)
            if data is not None:
                gathering.heard[worker] = data

    def _gathered_all(self, gathering: Gathering) -> None:
        """Put what was heard together, in slices, and go on with those who asked meanwhile."""
        del self._gathering[gathering.key]
        if gathering.what == _METRICS:
            live = [*gathering.heard.values(), self._own_samples()]
            silent = [worker.samples for worker in self._workers() if worker not in gathering.heard]
            self._slices.append(self._answer_metrics(gathering.askers, live, [self._gone, *silent]))
        else:
            self._slices.append(self._answer_operators(gathering))
        if askers := self._next_askers.pop(gathering.key, None):
            self._begin_gathering(gathering.key, gathering.what, gathering.args, askers)

    def _own_samples(self) -> merge.Packed:
        """What the parent adds: its own process, which is one of the router's, and what only it counts."""
        packed = merge.pack(self._process.collect())
        packed += merge.counter(f"{PREFIX}{RESTARTS}", RESTARTS_TEXT, [({}, self._restarts)])
        if self._reloads is not None:
            counts = [({"result": result, "trigger": trigger}, n) for (result, trigger), n in self._reloads.counts.items()]
            packed += merge.counter(f"{PREFIX}{RELOADS}", RELOADS_TEXT, counts)
        return packed

    def _answer_metrics(
        self, askers: list[tuple[Worker, int, str]], live: list[merge.Packed], gone: list[merge.Packed]
    ) -> Iterator[None]:
        pages = {accept: Page(accept) for _, _, accept in askers}
        for metric in merge.merge_in_slices(live, gone):
            yield
            if metric is not None:
                for page in pages.values():
                    yield from page.add_in_slices(metric)
        for worker, number, accept in askers:
            page = pages[accept]
            self._send(worker, {"k": "answer", "id": number, "body": page.body.decode(), "type": page.content_type})

    def _answer_operators(self, gathering: Gathering) -> Iterator[None]:
        documents = {worker.number: (worker.pid, document) for worker, document in gathering.heard.items()}
        workers = self._workers()
        heard = views.Heard(
            documents=documents,
            # One that does not serve yet has nothing to say, and hears of everything when it does.
            silent={worker.number: worker.pid for worker in workers if worker.serving and worker.number not in documents},
            workers=[
                {
                    "worker": one.number,
                    "pid": one.pid,
                    "sessions": one.sessions,
                    "serving": one.serving and self._stage == "serving",
                }
                for one in workers
            ],
        )
        answer: dict[str, Any]
        try:
            answer = {"document": views.merge(gathering.what, gathering.args, heard)}
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            answer = {"error": f"what the workers say does not fit together: {type(error).__name__}"}
        yield
        for worker, number, _ in gathering.askers:
            self._send(worker, {"k": "answer", "id": number, **answer})


def _noted(number: int, frame: FrameType | None) -> None:
    """A signal's handler in Python: what matters has been written to the wake-up socket."""


# --- reading messages ----------------------------------------------------------------------------


def _natural(message: Message, name: str) -> int:
    value = message.get(name)
    if type(value) is not int or value < 0:
        raise Nonsense(f"{name}: found {str(value)[:40]!r}, expected a natural number")
    return value


def _list(message: Message, name: str) -> list[Any]:
    value = message.get(name)
    if not isinstance(value, list):
        raise Nonsense(f"{name}: found {type(value).__name__}, expected a list")
    return value


def _object(message: Message, name: str) -> dict[str, Any]:
    value = message.get(name)
    if not isinstance(value, dict):
        raise Nonsense(f"{name}: found {type(value).__name__}, expected an object")
    return value


def _places(message: Message, name: str, member: str) -> dict[str, list[str]]:
    value = message.get(name)
    if not isinstance(value, dict):
        raise Nonsense(f"{name}: found {type(value).__name__}, expected places by deployment")
    return {_name(deployment): [_place(place, member) for place in _list(value, deployment)] for deployment in value}


def _wanted(item: Any, member: str) -> Wanted:
    if not isinstance(item, list) or len(item) != 3 or type(item[1]) is not int:
        raise Nonsense("wanted: found something else, expected a deployment, a limit and a place")
    return Wanted(deployment=_name(item[0]), limit=item[1], place=_place(item[2], member))


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise Nonsense(f"found a name that is {type(value).__name__}, expected a text of at most {_LONGEST_NAME} characters")
    return value


def _place(value: Any, member: str) -> str:
    # By its beginning a dead worker's place is found.
    if not _name(value).startswith(f"{member}:"):
        raise Nonsense("found a place of another name, expected one that begins with the member's")
    return str(value)
