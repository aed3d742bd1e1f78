"""The stages in which a router ends, and when each is over. Pure: told of signals and of the time, it says where things stand.

    serving ── signal ──> grace ── grace_s ──> refusing ── timeout_s, or nobody is left ──> ending
       │                    └───────────┬───────────┘                                         │
       └── handed over, or SIGTERM      │ handed over                                         └ a second signal comes here
           with sockets of systemd's ───┴──> leaving ── timeout_s, or nobody is left ──> ending   from anywhere, ``at_once``

*grace*: not ready any more, and everybody is served; load balancers need a moment to notice. *refusing*: the address answers new
sessions with 503, the running ones go on. *leaving*: somebody else accepts the connections now or soon, so there is nobody to
refuse: who is connected is served. *ending*: what still runs is ended, each session at a quiet moment when there is one.

All of it takes no longer than ``grace_s`` + ``timeout_s`` + 10 s, which is what a supervisor has to wait before it kills.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

from router.config.settings import DrainSettings

Stage = Literal["serving", "grace", "refusing", "leaving", "ending"]

#: Longest wait for a quiet moment of a session that has to end.
QUIET_S: Final = 3.0
#: How long sessions get to answer the CLOSE when the process ends.
STOP_TIMEOUT_S: Final = 1.0
#: How often a running drain says how far it is.
PROGRESS_S: Final = 10.0
#: A refused client should come back within this: another replica is there at once, a restarted one soon.
MOST_RETRY_AFTER_S: Final = 5.0
# Of an order: no drain is configured for longer.
_LONGEST_S: Final = 10 * 86_400.0


class Drain:
    """The way of one router from serving to its end.

    Args:
        clock: monotonic seconds.

    Attributes:
        stage: where it is.
        at_once: there is no wait for a quiet moment; only set together with ``ending``.
        signals: that asked for an end so far.
        successor: another process has the listening sockets.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.stage: Stage = "serving"
        self.at_once = False
        self.signals = 0
        self.successor = False
        self._clock = clock
        self._grace_ends = math.inf  # only finite in ``grace``
        self._ends = math.inf  # when running sessions are ended; only finite from ``grace`` on

    @property
    def wakes_at(self) -> float:
        """When ``look`` has something new to say although nothing happens; ``inf``: never."""
        return {"grace": self._grace_ends, "refusing": self._ends, "leaving": self._ends}.get(self.stage, math.inf)

    @property
    def left_s(self) -> float:
        """Seconds that running sessions may go on at most; ``inf`` while nothing asks for an end."""
        return max(0.0, self._ends - self._clock())

    @property
    def retry_after_s(self) -> float:
        """What a refused client is told to wait."""
        return max(1.0, min(MOST_RETRY_AFTER_S, self.left_s))

    def signalled(self, settings: DrainSettings, *, grace: bool, kept: bool = False) -> None:
        """Somebody wants an end: the first time in good order, the second time at once.

        Args:
            settings: the times.
            grace: load balancers have to notice first (SIGTERM, and not Ctrl-C).
            kept: the listening sockets outlive this process, and whoever waits in them is served by the next one.
        """
        self.signals += 1
        if self.signals > 1:
            self.end_at_once()
        elif kept or self.stage != "serving":
            self._leave(settings)
        else:
            now = self._clock()
            self._grace_ends = now + (settings.grace_s if grace else 0.0)
            self._ends = self._grace_ends + settings.timeout_s
            self.stage = "grace"

    def orphaned(self) -> None:
        """Whoever kept the clock is gone; so is the one who would have served those that wait in the sockets."""
        if self.stage != "ending":
            self.stage = "leaving"

    def handed_over(self, settings: DrainSettings) -> None:
        """A successor accepts the connections from now on."""
        self.successor = True
        self._leave(settings)

    def ordered(self, stage: Stage, left_s: float, *, at_once: bool = False) -> None:
        """Go to a stage because somebody else keeps the clock. A stage that lies behind is not gone back to.

        Args:
            stage: not ``serving``.
            left_s: until running sessions are ended, should no further order come.
            at_once: see ``at_once``.
        """
        if _ORDER[stage] < _ORDER[self.stage]:
            return
        self.stage = stage
        self.at_once = self.at_once or at_once
        self._grace_ends = math.inf
        self._ends = self._clock() + min(left_s, _LONGEST_S)

    def end_at_once(self) -> None:
        """Wait for nothing any more."""
        self.stage = "ending"
        self.at_once = True

    def look(self, *, idle: bool) -> Stage:
        """Return the stage that it is now.

        Args:
            idle: no session is left, nor anybody who may still begin one.
        """
        now = self._clock()
        if self.stage == "grace" and now >= self._grace_ends:
            self.stage = "refusing"
        if self.stage in ("refusing", "leaving") and (idle or now >= self._ends):
            self.stage = "ending"
        return self.stage

    def _leave(self, settings: DrainSettings) -> None:
        if self.stage == "ending":
            return
        # One that drains already has no more time than it had.
        self._ends = min(self._ends, self._clock() + settings.timeout_s)
        self.stage = "leaving"


_ORDER: Final[dict[Stage, int]] = {"serving": 0, "grace": 1, "refusing": 2, "leaving": 3, "ending": 4}
