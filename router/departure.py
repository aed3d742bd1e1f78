"""One process on its way from serving to its end: what ``router.drain`` decides is done here, inside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from collections.abc import Callable
from typing import Any, Final

from router.app import Server
from router.drain import PROGRESS_S, QUIET_S, STOP_TIMEOUT_S, Drain, Stage
from router.engine import Engine
from router.events import Event, Notice, Observers, SessionRecord
from router.systemd import notify

# Nothing tells when a connection without a session has gone.
_LOOK_S: Final = 0.25
# A connection that was accepted just before may not be known yet.
_SETTLE_S: Final = 0.5


class Departure:
    """Takes a server through the stages of its end.

    Args:
        server: carries the surface.
        engine: serves the sessions.
        tell: observers; it adds itself.
        kept: see ``Drain.signalled``.
        follows: somebody else keeps the clock and tells operators how far it is (``ordered``).
        on_draining: called once when it begins.
        on_idle: called once in each stage when nobody is left; for one that follows.

    Attributes:
        drain: the stages. Whoever changes something there calls ``look`` afterwards.
        by_themselves, ended: sessions that have ended since it began, by who ended them: themselves, or this process.
    """

    def __init__(
        self,
        server: Server,
        engine: Engine,
        tell: Observers,
        *,
        kept: bool = False,
        follows: bool = False,
        on_draining: Callable[[], None] | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self.drain = Drain(engine.clock)
        self.by_themselves = 0
        self.ended = 0
        self._server = server
        self._engine = engine
        self._tell = tell
        self._kept = kept
        self._follows = follows
        self._on_draining = on_draining
        self._on_idle = on_idle
        self._changed = asyncio.Event()
        self._stage: Stage = "serving"  # whose effects are in force
        self._idle_told: Stage = "serving"  # the last one of which it was
        self._running = False  # before that nobody can know this router
        self._why: dict[str, Any] = {}  # of the drain, for the log
        self._left_at = math.inf  # only finite from ``leaving`` on
        self._progress_at = math.inf  # only finite while it drains
        tell.add(self._count)

    # --- what may happen, at any time --------------------------------------------------------------

    def signalled(self, number: signal.Signals) -> None:
        """SIGTERM or SIGINT came."""
        self._why.setdefault("signal", number.name)
        # Nobody who presses Ctrl-C waits for load balancers.
        grace = number == signal.SIGTERM and self._running
        self.drain.signalled(self._engine.settings.server.drain, grace=grace, kept=self._kept)
        if self.drain.signals == 2:
            self._tell(Notice(level="warning", event="ending at once", facts={"signal": number.name}))
        self.look()

    def hung_up(self) -> None:
        """The terminal is gone, and this process belongs to it."""
        self.drain.end_at_once()
        self.look()

    def handed_over(self, pid: int) -> None:
        """A successor accepts the connections from now on."""
        self._why["successor"] = pid
        self.drain.handed_over(self._engine.settings.server.drain)
        if self._stage == "ending":
            # There is no stage left in which that would be done.
            self._server.leave()
        self.look()

    def ordered(self, stage: Stage, left_s: float, *, at_once: bool = False) -> None:
        """See ``Drain.ordered``."""
        self.drain.ordered(stage, left_s, at_once=at_once)
        self.look()

    def orphaned(self) -> None:
        """Keep the clock itself from now on; without any limit, unless one has been set before."""
        self._follows = False
        self.drain.orphaned()
        self.look()

    def look(self) -> None:
        """Have ``run`` look again."""
        self._changed.set()

    def _count(self, event: Event) -> None:
        if type(event) is not SessionRecord or self._stage == "serving":
            return
        if event.who == "router" and event.cause == "shutdown":
            self.ended += 1
        else:
            self.by_themselves += 1
        # It is counted among the running ones until this turn of the loop is over, and nobody looks before.
        self._changed.set()

    # --- the way -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Return once nothing is left to wait for; the server still runs, and ``stop`` is next."""
        self._running = True
        while True:
            self._changed.clear()
            # Whether anybody is left depends on the stage, so that comes first.
            self._enter(self.drain.look(idle=False))
            idle = self._idle()
            stage = self.drain.look(idle=idle and not self._follows)
            self._enter(stage)
            if stage == "ending":
                return
            if idle and self._on_idle is not None and self._idle_told != stage and stage in ("refusing", "leaving"):
                self._idle_told = stage
                self._on_idle()
            self._say_progress()
            await self._wait()

    async def stop(self) -> None:
        """End what still runs, and the server."""
        engine, drain = self._engine, self.drain
        code = engine.settings.server.drain.code
        self._tell(Notice(level="info", event="stopping", facts={"sessions": engine.sessions}))
        if not drain.at_once:
            await engine.end_quietly(
                code=code, reason="router shutting down", timeout_s=QUIET_S, hurry=lambda: drain.at_once
            )
        await self._server.stop(code=code, timeout_s=STOP_TIMEOUT_S)
        self._tell(Notice(level="info", event="stopped", facts={"by_themselves": self.by_themselves, "ended": self.ended}))

    def _idle(self) -> bool:
        if self._engine.sessions:
            return False
        if self._stage != "leaving":
            return True
        # Who has connected before the addresses were left may ask for a session yet; whoever asks for nothing is gone by then.
        left_s = self._engine.clock() - self._left_at
        waits_s = self._engine.settings.server.handshake_timeout_s + _SETTLE_S
        return left_s >= (waits_s if self._server.connections else _SETTLE_S)

    async def _wait(self) -> None:
        now = self._engine.clock()
        wakes_at = min(self.drain.wakes_at, self._progress_at)
        if self._stage == "leaving":
            wakes_at = min(wakes_at, now + _LOOK_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if wakes_at == math.inf else max(0.0, wakes_at - now)):
                await self._changed.wait()

    def _enter(self, stage: Stage) -> None:
        if stage == self._stage:
            return
        before, self._stage = self._stage, stage
        engine = self._engine
        engine.draining = True
        engine.retry_after_s = self.drain.retry_after_s
        if before == "serving" and stage != "ending":
            self._say_draining(stage)
        if stage == "refusing":
            engine.stopping = True
            self._say("new sessions are refused")
        elif stage == "leaving":
            self._left_at = engine.clock()
            self._server.leave()
            if before != "serving":
                self._say("addresses left")

    def _say_draining(self, stage: Stage) -> None:
        self._progress_at = self._engine.clock() + PROGRESS_S
        if self._on_draining is not None:
            self._on_draining()
        if not self._follows and not self.drain.successor:
            notify("STOPPING=1")
        settings = self._engine.settings.server.drain
        grace_s = settings.grace_s if stage == "grace" else 0.0
        self._say("draining", **self._why, grace_s=grace_s, timeout_s=settings.timeout_s)

    def _say_progress(self) -> None:
        now = self._engine.clock()
        # What a refused client is told shrinks with what is left.
        self._engine.retry_after_s = self.drain.retry_after_s
        if now >= self._progress_at:
            self._progress_at = now + PROGRESS_S
            left_s = round(self.drain.left_s, 1)
            self._say("still draining", left_s=left_s, by_themselves=self.by_themselves, stage=self._stage)

    def _say(self, event: str, **facts: Any) -> None:
        if not self._follows:
            self._tell(Notice(level="info", event=event, facts={"sessions": self._engine.sessions, **facts}))
