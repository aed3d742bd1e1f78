"""The breaker under any order of attempts, outcomes and time, beside what must hold whatever happens."""

from __future__ import annotations

import random

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from router.breaker import SLOW_START_FLOOR, Breaker, BreakerState, Ticket
from router.config.settings import BreakerSettings
from tests.helpers.clock import ManualClock

SETTINGS = BreakerSettings(
    allowed_fails=3,
    cooldown_s=10.0,
    max_cooldown_s=35.0,
    jitter=0.2,
    authentication_cooldown_s=50.0,
    slow_start_s=5.0,
)


class BreakerMachine(RuleBasedStateMachine):
    """Attempts begin, become ready, fail, or are given up, in any order; time passes in between."""

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = Breaker(SETTINGS, clock=self.clock, rng=random.Random(0))
        self.open: list[Ticket] = []  # attempts that have not ended
        self.longest_s = 0.0  # any ejection so far

    @precondition(lambda self: self.breaker.admits())
    @rule(target=attempts)
    def begin(self) -> Ticket:
        """An attempt is let in."""
        probing = self.breaker.state is BreakerState.PROBING
        ticket = self.breaker.begin()
        assert ticket.probe == probing
        assert not (probing and self.breaker.admits()), "a second attempt would be let in beside the probing one"
        self.open.append(ticket)
        return ticket

    @precondition(lambda self: not self.breaker.admits())
    @rule(target=attempts)
    def begin_open(self) -> Ticket:
        """An attempt fails open: it begins although the breaker does not admit."""
        ticket = self.breaker.begin()
        assert not ticket.probe
        self.open.append(ticket)
        return ticket

    @rule(target=attempts, ticket=attempts)
    def becomes_ready(self, ticket: Ticket) -> object:
        """An attempt's upstream is ready; its session goes on."""
        if not self._is_open(ticket):
            return multiple()
        before = self.breaker.state
        changed = self.breaker.ready(ticket)
        if changed is None:
            assert self.breaker.state is before
            return multiple()
        assert before is not BreakerState.ADMITTING and self.breaker.state is BreakerState.ADMITTING
        self._forget(ticket)
        self.open.append(changed)
        return changed

    @rule(ticket=attempts, authentication=st.booleans())
    def fails(self, ticket: Ticket, authentication: bool) -> None:
        """An attempt fails, or its session ends early."""
        if not self._is_open(ticket):
            return
        self._forget(ticket)
        before, failures = self.breaker.state, self.breaker.failures
        ejection = self.breaker.fail(ticket, reason="timeout", authentication=authentication)
        if ejection is None:
            assert self.breaker.state is before
            assert self.breaker.failures <= failures + 1
            return
        assert self.breaker.state is BreakerState.EJECTED
        assert authentication or ticket.probe or failures + 1 >= SETTINGS.allowed_fails
        longest = SETTINGS.authentication_cooldown_s if authentication else SETTINGS.max_cooldown_s
        assert SETTINGS.cooldown_s * 0.8 <= ejection.seconds <= longest * 1.2
        self.longest_s = max(self.longest_s, ejection.seconds)

    @rule(ticket=attempts)
    def is_given_up(self, ticket: Ticket) -> None:
        """Its client left."""
        if self._is_open(ticket):
            self._forget(ticket)
            before = self.breaker.state, self.breaker.failures
            self.breaker.abandon(ticket)
            assert (self.breaker.state, self.breaker.failures) == before

    @rule()
    def credit(self) -> None:
        """A session lived long enough."""
        before = self.breaker.state
        self.breaker.credit()
        assert self.breaker.state is before
        assert before is not BreakerState.ADMITTING or self.breaker.failures == 0

    @rule(seconds=st.floats(min_value=0.0, max_value=80.0))
    def time_passes(self, seconds: float) -> None:
        """Time alone changes nothing but ``ejected`` to ``probing``."""
        before = self.breaker.state
        self.clock.advance(seconds)
        after = self.breaker.state
        assert after is before or (before is BreakerState.EJECTED and after is BreakerState.PROBING)

    @rule()
    def reset(self) -> None:
        """An operator resets it."""
        self.breaker.reset()
        assert self.breaker.admits() and self.breaker.failures == 0

    @invariant()
    def is_consistent(self) -> None:
        """What is told belongs together."""
        breaker = self.breaker
        state = breaker.state
        assert 0 <= breaker.failures < SETTINGS.allowed_fails
        assert (breaker.reason == "") == (state is BreakerState.ADMITTING)
        assert (breaker.remaining_s() > 0) == (state is BreakerState.EJECTED)
        assert SLOW_START_FLOOR <= breaker.ramp() <= 1.0
        if state is BreakerState.EJECTED:
            assert not breaker.admits()
        if state is BreakerState.ADMITTING:
            assert breaker.admits()

    @invariant()
    def always_comes_back(self) -> None:
        """No history shuts a deployment out for longer than the longest ejection."""
        assert self.breaker.remaining_s() <= self.longest_s + 1e-6  # of rounding

    def teardown(self) -> None:
        """When all attempts have ended and time has passed, a session can always begin."""
        for ticket in self.open:
            self.breaker.abandon(ticket)
        self.clock.advance(self.breaker.remaining_s() + 0.001)
        assert self.breaker.admits()

    # By identity: two attempts of one epoch are equal.

    def _is_open(self, ticket: Ticket) -> bool:
        return any(other is ticket for other in self.open)

    def _forget(self, ticket: Ticket) -> None:
        self.open = [other for other in self.open if other is not ticket]


TestBreaker = BreakerMachine.TestCase
