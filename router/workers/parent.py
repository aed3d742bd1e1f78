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
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any, Final, NoReturn

from prometheus_client.process_collector import ProcessCollector

from router import logs
from router.admin.contract import ACTS, QUESTIONS
from router.admin.overrides import configured_of
from router.config.settings import DrainSettings, ListenTlsSettings, Settings
from router.dashboard.login import Spent
from router.drain import PROGRESS_S, Drain, Stage
from router.events import Notice, Observers
from router.fleet import picture
from router.fleet.board import Board
from router.handover import HandoverFailed
from router.listener.certificate import Certificate
from router.metrics import PREFIX, RELOADS, RELOADS_TEXT, RESTARTS, RESTARTS_TEXT
from router.process import GC_THRESHOLDS, cannot_start, facts_of, hangup, say, url_of
from router.reload import Origin
from router.succession import NOTHING, Inheritance, Succession
from router.systemd import notify
from router.workers import merge
from router.workers.channel import MOST_UNREAD_BYTES, BadFrame, Message, ParentEnd, Stuck
from router.workers.gathering import METRICS, Gatherings
from router.workers.messages import Nonsense, list_of, name_from, natural_of, object_of, places_of, text_of, wanted_of
from router.workers.reloads import Reloads
from router.workers.slots import SETTLED_S, Slot, Worker, cause_of, delay_s
from router.workers.sockets import address_of
from router.workers.worker import Place, work

#: Seconds without a word after which a worker is stuck; it speaks once a second.
SILENT_TICKS: Final = 30
#: Workers have time limits of their own for their end; the sum of those is below this, and this below the 10 s that are promised.
KILL_AFTER_S: Final = 9.0
#: The same for an end at once.
KILL_AT_ONCE_AFTER_S: Final = 6.0
_TICK_S: Final = 1.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_CONFIG: Final = "config"
_RELOAD: Final = "reload"



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
        self._process = ProcessCollector(registry=None)
        self._spent = Spent(clock=clock)  # tickets of the dashboard
        # What the generation in force says of the end and of the certificate; of all else the parent needs next to nothing.
        self._drain_settings = settings.server.drain
        self._tls = settings.server.tls
        self._origin = origin
        self._reloads = self._reloads_of(origin)
        self._gatherings = Gatherings(
            workers=self._workers,
            send=self._send,
            accepting=lambda: self._stage == "serving",
            own_samples=self._own_samples,
            configured=configured_of(settings),
            tell=tell,
            clock=clock,
        )
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
        if self._reloads is not None and self._reloading:
            self._reloads.step()
        if now >= self._kill_at:
            self._kill_at = math.inf
            self._kill_all()
        self._gatherings.step()

    def _wait_s(self) -> float:
        due = [self._next_tick, self._kill_at, self._drain.wakes_at, *(slot.due_at for slot in self._slots)]
        due.append(self._gatherings.due_at())
        if self._reloads is not None and self._reloading:
            due.append(self._reloads.due_at())
        return max(0.0, min(due) - self._clock())

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
            number=slot.number, pid=pid, member=member, end=end, born_at=self._clock(), told=self._gatherings.overrides.version
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
                overrides=self._gatherings.words(),
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
        self._gatherings.gone(worker)
        self._by_themselves += worker.by_themselves
        self._ended_by_us += worker.ended_by_it
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
            self._gatherings.told(worker, natural_of(message, "id"), message.get("data"))
        elif kind == "pulse":
            worker.sessions = natural_of(message, "sessions")
            if "ended" in message:
                worker.by_themselves, worker.ended_by_it = natural_of(message, "by_themselves"), natural_of(message, "ended")
        elif kind == "idle":
            worker.idle = True
        elif kind == "prepared":
            if self._reloads is not None:
                self._reloads.heard(worker, natural_of(message, "id"), object_of(message, "data"))
        elif kind == "samples":
            worker.samples = list_of(message, "data")
        elif kind == "ready":
            self._ready(worker)
        else:
            expected = "ask, told, prepared, pulse, idle, samples or ready"
            raise Nonsense(f"found a message of kind {str(kind)[:40]!r}, expected {expected}")

    def _ready(self, worker: Worker) -> None:
        if worker.serving:
            return
        worker.serving = True
        self._gatherings.serves(worker)
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
        number, what = natural_of(message, "id"), message.get("what")
        if what == METRICS:
            self._gatherings.metrics(worker, number, text_of(message, "accept"))
            return
        if what == _CONFIG and self._reloads is not None:
            self._send(worker, {"k": "answer", "id": number, "document": self._reloads.describe()})
            return
        if what == _RELOAD and self._reloads is not None:
            self._reloads.request("api", partial(self._answer_reload, worker, number))
            return
        if isinstance(what, str) and (what in QUESTIONS or what in ACTS):
            self._gatherings.operators(worker, number, what, object_of(message, "args"))
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
        self._gatherings.configure(facts["configured"])

    def _answer_reload(self, worker: Worker, number: int, document: Mapping[str, Any]) -> None:
        self._send(worker, {"k": "answer", "id": number, "document": document})

    # --- the board ----------------------------------------------------------------------------------

    def _beat(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        share = picture.decode(text_of(message, "share").encode())
        heard = self._board.beat(worker.member, share, places_of(message, "renew", worker.member), now_s=self._clock())
        facts = {"now_s": heard.now_s, "known": heard.known, "members": heard.members}
        return {**facts, "totals": picture.encode(heard.totals).decode()}

    def _acquire(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        return {"granted": self._board.acquire(wanted_of(message, "wanted", worker.member), now_s=self._clock())}

    def _release(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        self._board.release(places_of(message, "places", worker.member))
        return {}

    def _leave(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        self._board.remove(worker.member)
        return {}

    def _ticket(self, worker: Worker, message: Message) -> Mapping[str, Any]:
        return {"first": self._spent.first(name_from(message.get("nonce")))}


    def _own_samples(self) -> merge.Packed:
        """What the parent adds: its own process, which is one of the router's, and what only it counts."""
        packed = merge.pack(self._process.collect())
        packed += merge.counter(f"{PREFIX}{RESTARTS}", RESTARTS_TEXT, [({}, self._restarts)])
        if self._reloads is not None:
            counts = [({"result": result, "trigger": trigger}, n) for (result, trigger), n in self._reloads.counts.items()]
            packed += merge.counter(f"{PREFIX}{RELOADS}", RELOADS_TEXT, counts)
        return packed


def _noted(number: int, frame: FrameType | None) -> None:
    """A signal's handler in Python: what matters has been written to the wake-up socket."""
