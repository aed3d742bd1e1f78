"""The breaker: when a deployment is ejected, for how long, and how it comes back."""

from __future__ import annotations

import random

import pytest

from router.breaker import SLOW_START_FLOOR, Breaker, BreakerState, Ejection
from router.config.settings import BreakerSettings
from tests.helpers.clock import ManualClock

EXACT = BreakerSettings(jitter=0.0)


def make(settings: BreakerSettings = EXACT, *, seed: int = 1) -> tuple[Breaker, ManualClock]:
    """Return a breaker on a clock that moves by hand."""
    clock = ManualClock()
    return Breaker(settings, clock=clock, rng=random.Random(seed)), clock


def fail(breaker: Breaker, times: int = 1, *, reason: str = "timeout", authentication: bool = False) -> Ejection | None:
    """Let attempts begin and fail, one after the other; return the last one's ejection."""
    ejection = None
    for _ in range(times):
        ejection = breaker.fail(breaker.begin(), reason=reason, authentication=authentication)
    return ejection


def eject(breaker: Breaker) -> Ejection:
    """Let as many attempts fail as eject."""
    ejection = fail(breaker, breaker.settings.allowed_fails)
    assert ejection is not None
    return ejection


def readmit(breaker: Breaker, clock: ManualClock) -> None:
    """Let the ejection pass and the probing session become ready."""
    clock.advance(breaker.remaining_s())
    assert breaker.ready(breaker.begin()) is not None


def test_only_the_third_failure_in_a_row_ejects() -> None:
    """Below the threshold a deployment goes on taking sessions."""
    breaker, _ = make()
    assert fail(breaker, 2) is None
    assert breaker.admits() and breaker.failures == 2
    ejection = fail(breaker)
    assert ejection == Ejection(30.0, "timeout", 1)
    assert breaker.state is BreakerState.EJECTED and not breaker.admits()
    assert breaker.reason == "timeout" and breaker.remaining_s() == 30.0


def test_a_credited_session_forgets_the_failures() -> None:
    """Failures count in a row: a session that lived long enough ends the row."""
    breaker, _ = make()
    fail(breaker, 2)
    breaker.credit()
    assert fail(breaker, 2) is None
    assert fail(breaker) is not None


def test_being_ready_alone_forgets_nothing() -> None:
    """An upstream that greets and then drops every session is ejected too, although each of them was ready."""
    breaker, _ = make()
    ejections = []
    for _ in range(3):
        ticket = breaker.begin()
        assert breaker.ready(ticket) is None
        ejections.append(breaker.fail(ticket, reason="early_close"))
    assert [ejection is not None for ejection in ejections] == [False, False, True]


def test_ejections_in_a_row_grow_up_to_the_cap() -> None:
    """The n-th ejection lasts n times as long, never longer than ``max_cooldown_s``."""
    breaker, clock = make()
    seconds = [eject(breaker).seconds]
    for _ in range(12):
        clock.advance(breaker.remaining_s())
        ejection = fail(breaker)  # the probing session fails: one is enough
        assert ejection is not None
        seconds.append(ejection.seconds)
    assert seconds == [min(300.0, 30.0 * number) for number in range(1, 14)]


def test_the_jitter_keeps_its_share_and_spreads() -> None:
    """Replicas do not probe in step: each length is within ± 20 % and they differ."""
    lengths = [eject(make(BreakerSettings(jitter=0.2), seed=seed)[0]).seconds for seed in range(200)]
    assert all(24.0 <= length <= 36.0 for length in lengths)
    assert min(lengths) < 25.0 and max(lengths) > 35.0


def test_one_session_probes() -> None:
    """After its time an ejected deployment is tried with one session, and with no second one beside it."""
    breaker, clock = make()
    eject(breaker)
    clock.advance(29.9)
    assert not breaker.admits()
    clock.advance(0.2)
    assert breaker.state is BreakerState.PROBING and breaker.admits()
    probe = breaker.begin()
    assert probe.probe and not breaker.admits()
    breaker.abandon(probe)
    assert breaker.admits(), "a probe that was given up must not keep the place for ever"


def test_a_ready_probe_readmits_and_one_early_end_ejects_again() -> None:
    """A readmitted deployment is not trusted yet: its next failure ejects it, for longer."""
    breaker, clock = make()
    eject(breaker)
    clock.advance(30.0)
    ticket = breaker.ready(breaker.begin())
    assert ticket is not None and breaker.state is BreakerState.ADMITTING and breaker.reason == ""
    ejection = breaker.fail(ticket, reason="early_close")
    assert ejection is not None and (ejection.seconds, ejection.in_a_row) == (60.0, 2)


def test_a_readmission_that_lasts_is_trusted_again() -> None:
    """A credited session after the readmission gives back all the failures that are allowed."""
    breaker, clock = make()
    eject(breaker)
    readmit(breaker, clock)
    breaker.credit()
    assert fail(breaker, 2) is None and breaker.admits()


def test_a_calm_time_forgets_the_row_of_ejections() -> None:
    """An ejection long after the last readmission begins with the shortest length."""
    breaker, clock = make()
    eject(breaker)
    readmit(breaker, clock)
    breaker.credit()
    clock.advance(301.0)
    assert eject(breaker).seconds == 30.0


def test_a_refused_key_ejects_at_once_and_for_minutes() -> None:
    """Waiting half a minute does not mend a key: one failure is enough."""
    breaker, _ = make()
    ejection = fail(breaker, reason="authentication", authentication=True)
    assert ejection is not None and ejection.seconds == 300.0
    assert breaker.reason == "authentication"


def test_evidence_from_before_an_ejection_does_not_lengthen_it() -> None:
    """Dials that hung when the deployment was ejected fail later, and must not eject it anew when it is back."""
    breaker, clock = make()
    hanging = [breaker.begin() for _ in range(5)]
    eject(breaker)
    clock.advance(1.0)
    assert [breaker.fail(ticket, reason="timeout") for ticket in hanging] == [None] * 5
    assert breaker.remaining_s() == 29.0
    clock.advance(29.0)
    readmit(breaker, clock)
    assert all(breaker.fail(ticket, reason="timeout") is None for ticket in hanging)
    assert breaker.admits()


def test_ready_from_before_an_ejection_does_not_readmit() -> None:
    """A dial that began before the ejection says nothing about the time after it."""
    breaker, _ = make()
    slow = breaker.begin()
    eject(breaker)
    assert breaker.ready(slow) is None
    assert breaker.state is BreakerState.EJECTED


def test_an_attempt_that_fails_open_can_readmit_and_cannot_lengthen() -> None:
    """With all deployments ejected, sessions try one anyway: success readmits it, failure leaves its time as it is."""
    breaker, clock = make()
    eject(breaker)
    clock.advance(10.0)
    assert fail(breaker, 5) is None
    assert breaker.remaining_s() == 20.0
    assert breaker.ready(breaker.begin()) is not None
    assert breaker.admits()


def test_a_refused_key_lengthens_an_ejection() -> None:
    """A deployment that was out for timeouts and now refuses the key is out for minutes."""
    breaker, _ = make()
    eject(breaker)
    ejection = fail(breaker, reason="authentication", authentication=True)
    assert ejection is not None and ejection.seconds == 300.0 and breaker.reason == "authentication"


def test_the_weight_ramps_up_after_a_readmission() -> None:
    """A slow start: from a tenth to the whole, in proportion to the time; without a readmission there is none."""
    breaker, clock = make()
    assert breaker.ramp() == 1.0
    eject(breaker)
    readmit(breaker, clock)
    assert breaker.ramp() == SLOW_START_FLOOR
    clock.advance(15.0)
    assert breaker.ramp() == pytest.approx(0.5)
    clock.advance(15.0)
    assert breaker.ramp() == 1.0


def test_no_slow_start_means_the_whole_weight_at_once() -> None:
    """``slow_start_s: 0`` divides by nothing."""
    breaker, clock = make(BreakerSettings(jitter=0.0, slow_start_s=0.0))
    eject(breaker)
    readmit(breaker, clock)
    assert breaker.ramp() == 1.0


def test_reset_forgets_everything() -> None:
    """An operator's reset leaves a breaker as new, and evidence from before it does not count."""
    breaker, clock = make()
    before = breaker.begin()
    eject(breaker)
    clock.advance(30.0)
    probe = breaker.begin()
    breaker.reset()
    assert breaker.admits() and breaker.failures == 0 and breaker.ramp() == 1.0
    for ticket in (before, probe):
        assert breaker.fail(ticket, reason="timeout") is None
    assert breaker.failures == 0
    assert eject(breaker).seconds == 30.0
