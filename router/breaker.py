"""One deployment's circuit breaker.

    admitting ── allowed_fails failures in a row, or one refused key ──→ ejected ── its time is over ──→ probing
        ↑                                                                   ↑                              │
        └───────────────── ready, with a slow start ────────────────────────┼────────── one session ───────┘
                                                                            └── failed: ejected for longer

An ejection lasts ``cooldown_s`` times the number of ejections in a row, at most ``max_cooldown_s``, ± jitter so that replicas
do not probe in step; a calm ``max_cooldown_s`` after a readmission forgets the row. A ready session is credited only when it
has outlived ``early_close_s``, so that an upstream which greets and then drops every session is ejected too.

An attempt carries the epoch it began in. Evidence from before the last change of state says nothing about the state after it:
dials that hang when a deployment is ejected may fail minutes later, and must not eject it again.

Shape learned from linkerd2-proxy's ``breaker/consecutive_failures.rs`` and Envoy's outlier detection. Pure: no asyncio, and the
clock and the generator are handed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from router.config.settings import BreakerSettings

# Weight of a readmitted deployment at the first moment of its slow start, as a share of its full weight.
SLOW_START_FLOOR: Final = 0.1


class BreakerState(StrEnum):
    """Whether a deployment takes sessions."""

    ADMITTING = "admitting"
    EJECTED = "ejected"
    PROBING = "probing"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What an attempt was let in as."""

    epoch: int
    probe: bool


@dataclass(frozen=True, slots=True)
class Ejection:
    """A change to ``ejected``, for whoever reports it."""

    seconds: float
    reason: str
    in_a_row: int


class Breaker:
    """Decides from the outcomes of attempts whether more of them make sense.

    Args:
        settings: thresholds and times.
        clock: monotonic seconds.
        rng: for the jitter.
    """

    def __init__(self, settings: BreakerSettings, *, clock: Callable[[], float], rng: random.Random) -> None:
        self.settings = settings
        self._clock = clock
        self._rng = rng
        self._epoch = 0
        self._failures = 0  # consecutive, uncredited
        self._in_a_row = 0  # ejections without a calm time between them
        self._ejected_until: float | None = None  # ``None`` while admitting
        self._ejected_at = 0.0
        self._reason = ""  # of the last ejection
        self._admitted_at: float | None = None  # only set after a readmission, for the slow start
        self._probe: Ticket | None = None  # the one attempt that is let in while probing

    @property
    def state(self) -> BreakerState:
        """The state now; time alone turns ``ejected`` into ``probing``."""
        if self._ejected_until is None:
            return BreakerState.ADMITTING
        return BreakerState.EJECTED if self._clock() < self._ejected_until else BreakerState.PROBING

    @property
    def reason(self) -> str:
        """Why it was last ejected; empty while admitting."""
        return self._reason if self._ejected_until is not None else ""

    @property
    def ejected_at(self) -> float:
        """When it was last ejected, monotonic seconds; only of use while not admitting."""
        return self._ejected_at

    @property
    def failures(self) -> int:
        """Failures in a row so far."""
        return self._failures

    def remaining_s(self) -> float:
        """Seconds until an ejected deployment is probed; 0 otherwise."""
        return 0.0 if self._ejected_until is None else max(0.0, self._ejected_until - self._clock())

    def admits(self) -> bool:
        """Whether an attempt may begin now."""
        state = self.state
        return state is BreakerState.ADMITTING or (state is BreakerState.PROBING and self._probe is None)

    def ramp(self) -> float:
        """Share of its weight that a deployment gets: 1, or less for a while after a readmission."""
        if self._admitted_at is None:
            return 1.0
        slow_start_s = self.settings.slow_start_s
        elapsed_s = self._clock() - self._admitted_at
        if elapsed_s >= slow_start_s:
            return 1.0
        return max(SLOW_START_FLOOR, elapsed_s / slow_start_s)

    def begin(self) -> Ticket:
        """An attempt begins: one that ``admits`` let in, or one that fails open on an ejected deployment."""
        probe = self.state is BreakerState.PROBING and self._probe is None
        ticket = Ticket(self._epoch, probe)
        if probe:
            self._probe = ticket
        return ticket

    def ready(self, ticket: Ticket) -> Ticket | None:
        """The attempt's upstream is ready.

        Returns: the attempt's ticket from now on if that readmitted the deployment, else ``None``.
        """
        self._leave_probe(ticket)
        if self._ejected_until is None or ticket.epoch != self._epoch:
            return None
        self._epoch += 1
        self._ejected_until = None
        self._admitted_at = self._clock()
        # Not trusted yet: one early end is enough to eject again.
        self._failures = max(0, self.settings.allowed_fails - 1)
        return Ticket(self._epoch, probe=False)

    def credit(self) -> None:
        """A session outlived ``early_close_s``, or ended well before it."""
        if self._ejected_until is None:
            self._failures = 0

    def abandon(self, ticket: Ticket) -> None:
        """The attempt was given up for reasons that are not the deployment's."""
        self._leave_probe(ticket)

    def fail(self, ticket: Ticket, *, reason: str, authentication: bool = False) -> Ejection | None:
        """The attempt failed, or its session ended early. Returns the ejection if that was one too many."""
        self._leave_probe(ticket)
        if ticket.epoch != self._epoch:
            return None
        if self._ejected_until is not None and not ticket.probe and not authentication:
            # An attempt that failed open; the deployment is out anyway, and will be probed at its time.
            return None
        self._failures += 1
        if not authentication and not ticket.probe and self._failures < self.settings.allowed_fails:
            return None
        return self._eject(reason, authentication=authentication)

    def reset(self) -> None:
        """Forget everything, as if the deployment had just been configured."""
        self._epoch += 1
        self._failures = self._in_a_row = 0
        self._ejected_until = self._admitted_at = self._probe = None

    def _leave_probe(self, ticket: Ticket) -> None:
        if self._probe is ticket:
            self._probe = None

    def _eject(self, reason: str, *, authentication: bool) -> Ejection:
        now = self._clock()
        settings = self.settings
        if self._admitted_at is not None and now - self._admitted_at > settings.max_cooldown_s and self._ejected_until is None:
            self._in_a_row = 0
        self._in_a_row += 1
        seconds = min(settings.max_cooldown_s, settings.cooldown_s * self._in_a_row)
        if authentication:
            seconds = max(seconds, settings.authentication_cooldown_s)
        seconds *= 1 + settings.jitter * (2 * self._rng.random() - 1)
        self._epoch += 1
        self._failures = 0
        self._ejected_at = now
        self._ejected_until = now + seconds
        self._admitted_at = None
        self._reason = reason
        return Ejection(seconds, reason, self._in_a_row)
