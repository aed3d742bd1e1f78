"""Cool-downs and windows: how long a deployment is left alone, and how much it may still take."""

from __future__ import annotations

import copy
import math
import sys
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.limits import DEFAULT_COOL_DOWN_S, MAX_COOL_DOWN_S, CoolDown, SlidingWindow
from tests.helpers.clock import ManualClock


def test_a_cool_down_ends_when_its_time_is_over() -> None:
    """It is active from the start until the moment it said, and not a moment longer."""
    clock = ManualClock()
    pause = CoolDown(clock)
    assert (pause.active, pause.reason, pause.remaining_s()) == (False, "", 0.0)
    assert pause.start(10.0, reason="status_429") == 10.0
    assert (pause.active, pause.reason) == (True, "status_429")
    assert pause.remaining_s(clock.now + 4.0) == 6.0
    clock.advance(10.0)
    assert (pause.active, pause.remaining_s()) == (False, 0.0)


@pytest.mark.parametrize("asked", [None, 0.0, -3.0, math.nan, -math.inf])
def test_without_a_usable_number_the_default_holds(asked: float | None) -> None:
    """No Retry-After, a date in the past and nonsense must not let the next session dial at once."""
    assert CoolDown(ManualClock()).start(asked) == DEFAULT_COOL_DOWN_S


@pytest.mark.parametrize("asked", [60.5, 3600.0, 1e308, math.inf])
def test_a_long_one_is_capped(asked: float) -> None:
    """A wrong header costs a minute of capacity, not an hour."""
    assert CoolDown(ManualClock()).start(asked) == MAX_COOL_DOWN_S


def test_a_running_one_is_never_shortened() -> None:
    """The second of two refusals that overtook each other keeps the longer pause and its reason."""
    clock = ManualClock()
    pause = CoolDown(clock)
    pause.start(30.0, reason="status_429")
    clock.advance(1.0)
    assert pause.start(2.0, reason="error_event") == 29.0
    assert pause.reason == "status_429"
    assert pause.start(40.0, reason="error_event") == 40.0
    assert pause.reason == "error_event"


def test_it_can_be_ended_early() -> None:
    """An operator's clear holds at once, and the next start is not measured against the old one."""
    pause = CoolDown(ManualClock())
    pause.start(50.0)
    pause.clear()
    assert not pause.active
    assert pause.start(1.0) == 1.0
    assert repr(pause) == "CoolDown(remaining_s=1, reason='rate_limited')"


def test_a_window_counts_and_forgets() -> None:
    """An amount counts for the whole window and is gone one bucket after it."""
    clock = ManualClock()
    window = SlidingWindow(10, clock=clock)
    window.add(4)
    clock.advance(30.0)
    window.add(5)
    assert (window.used(), window.has_room(), window.has_room(2)) == (9, True, False)
    clock.advance(29.9)
    assert window.used() == 9
    clock.advance(1.2)
    assert window.used() == 5
    clock.advance(1e9)
    assert window.used() == 0


def test_room_comes_back_when_enough_has_left() -> None:
    """The wait is that for the oldest amounts whose leaving makes room, and afterwards there is room."""
    clock = ManualClock()
    window = SlidingWindow(10, clock=clock)
    window.add(4)
    clock.advance(20.0)
    window.add(6)
    assert window.room_in_s(4) == pytest.approx(41.0)
    assert window.room_in_s(5) == pytest.approx(61.0)
    clock.advance(window.room_in_s(4))
    assert window.has_room(4)
    assert not window.has_room(5)
    assert window.room_in_s(4) == 0.0


@pytest.mark.parametrize(("start", "window_s"), [(9732.5, 7.3), (1772.1, 7.3), (4316.6, 7.3), (0.1, 1.0)])
def test_who_waits_as_told_has_room_despite_rounding(start: float, window_s: float) -> None:
    """A bucket's end, calculated, may lie a trifle before its end by the clock; the answer is never that much too early."""
    clock = ManualClock(start)
    window = SlidingWindow(1, window_s, clock=clock)
    window.add(1)
    clock.advance(window.room_in_s())
    assert window.has_room()


def test_more_than_the_limit_never_fits() -> None:
    """Waiting is of no use then, and the answer says so."""
    window = SlidingWindow(10, clock=ManualClock())
    assert window.room_in_s(11) == math.inf
    assert SlidingWindow(0, clock=ManualClock()).room_in_s() == math.inf


def test_what_was_spent_counts_although_there_was_no_room() -> None:
    """Tokens are known only afterwards: the window goes over its limit and frees itself with time."""
    clock = ManualClock()
    window = SlidingWindow(100, clock=clock)
    window.add(5000)
    assert (window.used(), window.has_room()) == (5000, False)
    clock.advance(window.room_in_s())
    assert window.has_room(100)


def test_without_a_limit_it_only_counts() -> None:
    """There is always room, and the count is still there to be shown."""
    window = SlidingWindow(None, clock=ManualClock())
    window.add(10**9)
    assert (window.has_room(10**12), window.room_in_s(10**12), window.used()) == (True, 0.0, 10**9)


def test_a_new_limit_keeps_what_was_counted() -> None:
    """A reload that lowers the limit holds for the sessions of the minute before."""
    window = SlidingWindow(None, clock=ManualClock())
    window.add(7)
    window.limit = 5
    assert (window.limit, window.used(), window.has_room()) == (5, 7, False)
    with pytest.raises(ValueError, match=r"limit: found -1, expected 0 or more"):
        window.limit = -1


@pytest.mark.parametrize("window_s", [0.0, -1.0, math.nan, math.inf])
def test_a_window_without_a_length_is_refused(window_s: float) -> None:
    """The message says what was found and what was expected."""
    with pytest.raises(ValueError, match=r"window_s: found .*, expected more than 0 and finite"):
        SlidingWindow(1, window_s, clock=ManualClock())


@pytest.mark.parametrize(
    ("amount", "counted"),
    [(math.nan, 0), (-5, 0), (-math.inf, 0), (0, 0), (0.2, 1), (math.inf, 2**53), (10**400, 2**53)],
)
def test_hostile_amounts_are_tamed(amount: float, counted: int) -> None:
    """What a provider reports is not trusted to be a count, and nothing it says lasts longer than the window."""
    clock = ManualClock()
    window = SlidingWindow(10, clock=clock)
    window.add(amount)
    assert window.used() == counted
    clock.advance(61.5)
    assert (window.used(), window.has_room(10)) == (0, True)


def test_a_clock_that_goes_back_loses_nothing() -> None:
    """The count stays, and later amounts do not expire early."""
    clock = ManualClock()
    window = SlidingWindow(10, clock=clock)
    window.add(3)
    clock.advance(-500.0)
    window.add(2)
    assert window.used() == 5
    clock.advance(500.0 + 59.0)
    assert window.used() == 5


def test_memory_does_not_grow_with_the_traffic() -> None:
    """A hundred thousand amounts over an hour leave the object as large as ten do."""
    clock = ManualClock()
    window = SlidingWindow(None, clock=clock)
    window.add(1)
    before = (len(window._buckets), sys.getsizeof(window._buckets))
    for _ in range(100_000):
        window.add(1)
        clock.advance(0.036)
    assert (len(window._buckets), sys.getsizeof(window._buckets)) == before
    assert repr(window).startswith("SlidingWindow(used=")


@given(
    steps=st.lists(st.tuples(st.floats(0.0, 40.0), st.integers(1, 5)), max_size=80),
    limit=st.integers(0, 20),
    window_s=st.sampled_from((1.0, 60.0, 7.3)),
    start=st.floats(0.0, 1e7),
)
def test_the_limit_holds_in_every_window(steps: list[tuple[float, int]], limit: int, window_s: float, start: float) -> None:
    """Against an exact log: admitted amounts never exceed the limit, and nothing is held back beyond one bucket."""
    clock = ManualClock(start)
    window = SlidingWindow(limit, window_s, clock=clock)
    log: deque[tuple[float, int]] = deque()
    for gap, amount in steps:
        clock.advance(gap * window_s / 60.0)
        exact = sum(n for at, n in log if at > clock.now - window_s * (1 - 1e-9))
        longest = sum(n for at, n in log if at >= clock.now - window_s * (1 + 1 / 60 + 1e-6))
        assert exact <= window.used() <= longest
        if window.has_room(amount):
            window.add(amount)
            log.append((clock.now, amount))
            assert exact + amount <= limit
        elif amount <= limit:
            wait = window.room_in_s(amount)
            assert 0.0 < wait <= window_s * (1 + 1 / 60) + 1e-5
            later, waited = copy.deepcopy((clock, window))
            later.advance(wait)
            assert waited.has_room(amount)
