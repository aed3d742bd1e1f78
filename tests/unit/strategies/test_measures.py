"""Numbers made safe, and the weighted draws."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from strategies.base import NOWHERE, Elsewhere, Freshness
from strategies.measures import (
    MAX_COUNT,
    MAX_LATENCY_S,
    MAX_WEIGHT,
    MIN_WEIGHT,
    caution_of,
    count,
    draw,
    draw_two,
    fleet_sessions,
    freshness_of,
    least,
    load_of,
    seconds,
    weight_of,
)
from strategies.testing import FakeCandidate, fleet


@pytest.mark.parametrize(
    ("weight", "usable"),
    [(2.5, 2.5), (0.0, MIN_WEIGHT), (-1.0, MIN_WEIGHT), (math.nan, MIN_WEIGHT), (math.inf, MAX_WEIGHT), (1e300, MAX_WEIGHT)],
)
def test_a_weight_is_always_positive_and_finite(weight: float, usable: float) -> None:
    """What breaks the contract is brought back into it."""
    assert weight_of(FakeCandidate(id="d", weight=weight)) == usable


@pytest.mark.parametrize(
    ("measured", "usable"),
    [(None, None), (math.nan, None), (-1.0, 0.0), (0.25, 0.25), (math.inf, MAX_LATENCY_S)],
)
def test_a_latency_is_usable_or_missing(measured: float | None, usable: float | None) -> None:
    """Not a number is "not measured", infinite is "very slow"."""
    assert seconds(measured) == usable


def test_load_is_sessions_by_weight() -> None:
    """A count that went below zero is an idle deployment."""
    assert load_of(FakeCandidate(id="d", sessions=6, weight=4.0)) == 1.5
    assert load_of(FakeCandidate(id="d", sessions=-3)) == 0.0


@pytest.mark.parametrize(
    ("number", "usable"),
    [(7, 7.0), (0, 0.0), (-3, 0.0), (math.nan, 0.0), (math.inf, MAX_COUNT), (10**400, MAX_COUNT), (-(10**400), 0.0)],
)
def test_a_count_is_never_negative_and_stays_exact(number: float, usable: float) -> None:
    """Another process may say anything, numbers too large for a float included."""
    assert count(number) == usable


def _view(freshness: Freshness = Freshness.FRESH, **fields: int) -> Elsewhere:
    return Elsewhere(freshness=freshness, **fields)


@pytest.mark.parametrize("freshness", [Freshness.FRESH, Freshness.AGEING])
def test_the_fleets_sessions_are_own_and_others(freshness: Freshness) -> None:
    """As long as the picture is trusted at all; nonsense in it counts as nothing."""
    one, other = candidates = fleet(1, 1)
    one.sessions, other.sessions = 3, 5
    one.elsewhere, other.elsewhere = _view(freshness, sessions=10), _view(freshness, sessions=-4)
    assert fleet_sessions(candidates) == [13, 5]


def test_one_candidate_without_the_others_numbers_makes_all_count_alone() -> None:
    """A picture that grew too old between two looks must not make the second candidate look empty beside the first."""
    one, other = candidates = fleet(1, 1)
    one.sessions, other.sessions = 3, 5
    one.elsewhere = _view(sessions=1000)
    assert freshness_of([candidate.elsewhere for candidate in candidates]) is Freshness.LOCAL
    assert fleet_sessions(candidates) == [3, 5]


def test_trust_is_that_of_the_least_trusted() -> None:
    """In any order."""
    fresh, ageing = _view(), _view(Freshness.AGEING)
    assert freshness_of([fresh, fresh]) is Freshness.FRESH
    assert freshness_of([fresh, ageing]) is freshness_of([ageing, fresh]) is Freshness.AGEING
    assert freshness_of([fresh, NOWHERE, ageing]) is freshness_of([ageing, NOWHERE]) is Freshness.LOCAL


@pytest.mark.parametrize(
    ("members", "ejected", "caution"),
    [(4, 0, 1.0), (4, 2, 2.5), (4, 4, 4.0), (4, 400, 4.0), (0, 3, 1.0), (-1, 3, 1.0), (4, -3, 1.0), (1, 10**400, 4.0)],
)
def test_caution_grows_with_the_share_that_ejected_it(members: int, ejected: int, caution: float) -> None:
    """Up to four; more ejections than processes are no more than all, and without processes there is no hint."""
    assert caution_of(_view(members=members, ejected=ejected)) == caution


def test_the_lowest_score_wins_and_equal_ones_are_drawn_by_weight() -> None:
    """Equal but for rounding is equal."""
    candidates, rng = fleet(1, 3, 100), random.Random(4)
    assert least(candidates, [2.0, 1.0, 3.0], rng) is candidates[1]
    got = Counter(least(candidates, [1.0, math.nextafter(1.0, 2.0), 3.0], rng).id for _ in range(4000))
    assert set(got) == {"d0", "d1"}
    assert got["d1"] / 4000 == pytest.approx(0.75, abs=0.035)


def test_a_single_candidate_costs_no_randomness() -> None:
    """The generator is left alone, so that a group with one deployment does not disturb a reproduction."""
    rng = random.Random(1)
    state = rng.getstate()
    [only] = candidates = fleet(3)
    assert draw(candidates, rng) is only
    assert draw_two(candidates, rng) == (only, only)
    assert rng.getstate() == state


def test_draws_go_by_weight() -> None:
    """Chi-square of 20000 draws stays below the 99.9 % quantile of three degrees of freedom."""
    candidates, rng = fleet(5, 3, 1, 1), random.Random(2)
    got = Counter(draw(candidates, rng).id for _ in range(20_000))
    assert sum((got[c.id] - 2000 * c.weight) ** 2 / (2000 * c.weight) for c in candidates) < 16.27


def test_two_draws_are_different_and_by_weight() -> None:
    """Never twice the same; the second is by weight among the rest (5 sigma around the exact probability)."""
    candidates, rng = fleet(2, 1, 1), random.Random(3)
    pairs = Counter(tuple(c.id for c in draw_two(candidates, rng)) for _ in range(20_000))
    assert all(first != second for first, second in pairs)
    exact = {("d0", "d1"): 1 / 4, ("d0", "d2"): 1 / 4, ("d1", "d0"): 1 / 6, ("d1", "d2"): 1 / 12}
    for pair, probability in exact.items():
        assert abs(pairs[pair] - 20_000 * probability) < 5 * math.sqrt(20_000 * probability * (1 - probability))


def test_rounding_at_the_end_of_the_range_still_draws() -> None:
    """A generator that returns the largest number below one takes the last candidate, not an exception."""

    class Highest(random.Random):
        def random(self) -> float:
            return math.nextafter(1.0, 0.0)

    candidates = fleet(0.1, 0.2, 1e-6)
    assert draw(candidates, Highest()) in candidates
    assert len({c.id for c in draw_two(candidates, Highest())}) == 2
