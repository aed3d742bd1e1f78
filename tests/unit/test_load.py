"""The latency average: up at once, down with time, never fooled by a failure or a strange number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.load import MAX_SAMPLE_S, PeakEwma, blend
from tests.helpers.clock import ManualClock

seconds = st.floats(min_value=0.0, max_value=MAX_SAMPLE_S)


def test_a_higher_sample_replaces_the_estimate_at_once() -> None:
    """One slow sample is believed entirely, however recent the estimate."""
    assert blend(0.2, 3.0, 0.0, 10.0) == 3.0


def test_a_lower_sample_pulls_by_the_time_that_passed() -> None:
    """After one decay time the old estimate keeps 1/e of its weight."""
    assert blend(2.0, 1.0, 10.0, 10.0) == pytest.approx(1.0 + math.exp(-1.0))


def test_a_lower_sample_at_the_same_moment_changes_nothing() -> None:
    """Without elapsed time, and with a clock that went back, the peak stays."""
    assert blend(2.0, 1.0, 0.0, 10.0) == 2.0
    assert blend(2.0, 1.0, -5.0, 10.0) == 2.0


@pytest.mark.parametrize("decay_s", [0.0, -1.0, math.nan])
def test_a_decay_that_is_not_positive_is_refused(decay_s: float) -> None:
    """The message says what was found; the class refuses it when it is built, not at the first sample."""
    with pytest.raises(ValueError, match=r"decay_s: found .*, expected more than 0"):
        blend(1.0, 0.5, 1.0, decay_s)
    with pytest.raises(ValueError, match=r"decay_s: found"):
        PeakEwma(decay_s, ManualClock())


@given(estimate=seconds, sample=seconds, elapsed=st.floats(0.0, 1e9), decay=st.floats(1e-3, 1e6))
def test_the_blend_lies_between_estimate_and_sample(estimate: float, sample: float, elapsed: float, decay: float) -> None:
    """The average never leaves the range of what was measured (but for rounding)."""
    result = blend(estimate, sample, elapsed, decay)
    assert min(estimate, sample) - 1e-9 <= result <= max(estimate, sample) + 1e-9


def test_nothing_measured_is_none_and_not_zero() -> None:
    """An unmeasured deployment must not look infinitely fast."""
    ewma = PeakEwma(10.0, ManualClock())
    assert ewma.value is None
    assert ewma.measured is None


def test_a_slow_target_that_is_left_alone_becomes_attractive_again() -> None:
    """The value fades with the decay time, while what was measured stays to be shown."""
    clock = ManualClock()
    ewma = PeakEwma(10.0, clock)
    ewma.observe(4.0)
    assert ewma.value == 4.0
    clock.advance(10.0)
    assert ewma.value == pytest.approx(4.0 / math.e)
    clock.advance(1e6)
    assert ewma.value == 0.0
    assert ewma.measured == 4.0


def test_reading_changes_nothing() -> None:
    """A thousand reads in between leave the next sample's result as it would be without any."""
    clock = ManualClock()
    read, unread = PeakEwma(10.0, clock), PeakEwma(10.0, clock)
    for ewma in (read, unread):
        ewma.observe(4.0)
    for _ in range(1000):
        clock.advance(0.01)
        assert read.value is not None
    for ewma in (read, unread):
        ewma.observe(1.0)
    assert read.measured == unread.measured == pytest.approx(1.0 + 3.0 / math.e)


def test_a_fast_failure_does_not_look_fast() -> None:
    """A target that is penalised after each failure ends up slower than one that answers, although it failed quickly."""
    clock = ManualClock()
    failing, working = PeakEwma(10.0, clock), PeakEwma(10.0, clock)
    for _ in range(20):
        clock.advance(1.0)
        failing.penalise(5.0)
        working.observe(0.3)
    assert (failing.value or 0.0) > (working.value or math.inf)


def test_a_penalty_never_lowers_the_average() -> None:
    """A target that is slower than the penalty keeps its own number."""
    ewma = PeakEwma(10.0, ManualClock())
    ewma.observe(9.0)
    ewma.penalise(5.0)
    assert ewma.value == 9.0


def test_a_recovered_target_is_believed_within_a_few_decay_times() -> None:
    """After a penalty, good samples bring the average down to what they say."""
    clock = ManualClock()
    ewma = PeakEwma(10.0, clock)
    ewma.penalise(30.0)
    for _ in range(50):
        clock.advance(2.0)
        ewma.observe(0.3)
    assert ewma.value == pytest.approx(0.3, rel=0.01)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(("observe", "penalise")), st.floats(), st.floats(min_value=-1e3, max_value=1e9)), max_size=30
    )
)
def test_no_number_makes_the_average_unusable(steps: list[tuple[str, float, float]]) -> None:
    """Not-a-number, infinities, negative samples and a clock that jumps: the value stays None or within bounds."""
    clock = ManualClock()
    ewma = PeakEwma(10.0, clock)
    for method, sample, gap in steps:
        getattr(ewma, method)(sample)
        clock.advance(gap)
        assert ewma.value is None or 0.0 <= ewma.value <= MAX_SAMPLE_S


def test_a_sample_that_is_no_number_is_ignored() -> None:
    """It leaves the deployment as unmeasured as it was."""
    ewma = PeakEwma(10.0, ManualClock())
    ewma.observe(math.nan)
    ewma.penalise(math.nan)
    assert ewma.value is None


def test_a_clock_that_went_back_for_a_moment_does_not_age_the_estimate() -> None:
    """A sample taken at an earlier reading must not let the peak decay twice."""
    clock = ManualClock(100.0)
    ewma = PeakEwma(10.0, clock)
    ewma.observe(2.0)
    clock.advance(-50.0)
    ewma.observe(1.0)
    clock.advance(50.0)
    assert ewma.value == 2.0


def test_a_penalty_is_no_measurement() -> None:
    """A failure keeps sessions away; what is shown stays what the last good session took."""
    clock = ManualClock()
    ewma = PeakEwma(10.0, clock)
    ewma.penalise(5.0)
    assert (ewma.value, ewma.measured) == (5.0, None)
    clock.advance(1000.0)
    ewma.observe(0.3)
    ewma.penalise(5.0)
    assert ewma.value == 5.0 and ewma.measured == pytest.approx(0.3)


def test_the_repr_is_for_people() -> None:
    """It tells the measurement and the decay time."""
    ewma = PeakEwma(10.0, ManualClock())
    ewma.observe(0.5)
    assert repr(ewma) == "PeakEwma(measured=0.5, decay_s=10)"
