"""What the strategies of a single process do with given candidates: least-connections, p2c, fastest, first, weighted-random."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from strategies.affinity import Affinity
from strategies.base import Call, Elsewhere, Freshness, Strategy, options_of
from strategies.fastest import Fastest
from strategies.first import First
from strategies.least_connections import LeastConnections
from strategies.p2c import PowerOfTwo
from strategies.round_robin import RoundRobin
from strategies.testing import FakeCandidate, fleet
from strategies.weighted_random import WeightedRandom

CALL = Call(group="voice")


def _shares(strategy: object, candidates: list[FakeCandidate], count: int = 4000) -> dict[str, float]:
    """Choose again and again from the same situation; return each candidate's share."""
    got = Counter(strategy.choose(candidates, CALL).id for _ in range(count))  # type: ignore[attr-defined]  # any strategy
    return {candidate.id: got[candidate.id] / count for candidate in candidates}


def test_least_connections_takes_the_lowest_load() -> None:
    """Sessions count by weight: 6 of 4 is more than 1 of 1, and an idle one beats both."""
    strategy = LeastConnections(LeastConnections.Options(), rng=random.Random(1))
    big, small, idle = candidates = fleet(4, 1, 0.01)
    big.sessions, small.sessions = 6, 1
    assert strategy.choose(candidates[:2], CALL) is small
    assert strategy.choose(candidates, CALL) is idle


def test_least_connections_breaks_ties_by_weight() -> None:
    """Idle deployments get first sessions in proportion to their weight, not in the order of the file."""
    shares = _shares(LeastConnections(LeastConnections.Options(), rng=random.Random(2)), fleet(1, 3))
    assert shares["d1"] == pytest.approx(0.75, abs=0.035)


def test_least_connections_sees_a_tie_through_rounding() -> None:
    """21 ÷ 0.7 and 30 ÷ 1 differ in the last digit and are level all the same."""
    one, other = candidates = fleet(0.7, 1)
    one.sessions, other.sessions = 21, 30
    assert one.sessions / one.weight != other.sessions / other.weight
    assert min(_shares(LeastConnections(LeastConnections.Options(), rng=random.Random(3)), candidates).values()) > 0.1


def test_weighted_random_ignores_the_load() -> None:
    """A full deployment is drawn as often as an idle one."""
    candidates = fleet(1, 1)
    candidates[0].sessions = 500
    shares = _shares(WeightedRandom(WeightedRandom.Options(), rng=random.Random(4)), candidates)
    assert shares["d0"] == pytest.approx(0.5, abs=0.04)


def test_p2c_takes_the_less_loaded_of_two() -> None:
    """With two candidates it is exact; the fullest of many is never chosen, because the other one drawn is better."""
    strategy = PowerOfTwo(PowerOfTwo.Options(), rng=random.Random(5))
    candidates = fleet(1, 1, 1, 1)
    for sessions, candidate in enumerate(candidates):
        candidate.sessions = sessions
    assert _shares(strategy, candidates[:2])["d0"] == 1.0
    shares = _shares(strategy, candidates)
    assert shares["d3"] == 0.0
    assert shares["d0"] == pytest.approx(0.5, abs=0.04)  # 3 of the 6 pairs hold it


def test_p2c_by_sessions_ignores_latency() -> None:
    """The default compares sessions alone, however slow the emptier one is; equal ones go to the first drawn, by weight."""
    strategy = PowerOfTwo(PowerOfTwo.Options(), rng=random.Random(12))
    slow, fast = candidates = fleet(1, 1)
    slow.ready_s, fast.ready_s, fast.sessions = 5.0, 0.1, 1
    assert _shares(strategy, candidates)["d0"] == 1.0
    fast.sessions = 0
    assert _shares(strategy, candidates)["d0"] == pytest.approx(0.5, abs=0.04)


def test_p2c_by_latency_takes_the_faster_of_equally_loaded() -> None:
    """A deployment ten times as slow has to be ten times as empty."""
    strategy = PowerOfTwo(PowerOfTwo.Options(cost="latency"), rng=random.Random(6))
    fast, slow = candidates = fleet(1, 1)
    fast.ready_s, slow.ready_s = 0.2, 2.0
    assert _shares(strategy, candidates)["d0"] == 1.0
    fast.sessions = 8
    assert _shares(strategy, candidates)["d0"] == 1.0
    fast.sessions = 10
    assert _shares(strategy, candidates)["d0"] == 0.0


def test_p2c_by_latency_goes_by_sessions_until_both_are_measured() -> None:
    """One measurement alone says nothing about the other."""
    strategy = PowerOfTwo(PowerOfTwo.Options(cost="latency"), rng=random.Random(7))
    measured, unmeasured = candidates = fleet(1, 1)
    measured.ready_s, unmeasured.sessions = 3.0, 1
    assert _shares(strategy, candidates)["d0"] == 1.0


def test_p2c_refuses_another_cost() -> None:
    """The message says what was found and what was expected."""
    with pytest.raises(ValueError, match="cost: found 'money', expected 'sessions' or 'latency'"):
        PowerOfTwo.Options(cost="money")  # type: ignore[arg-type]  # wrong on purpose


def _fastest(**options: object) -> Fastest:
    return Fastest(Fastest.Options(**options), rng=random.Random(8))  # type: ignore[arg-type]  # names are the test's


def test_fastest_takes_the_faster_and_explores_the_rest() -> None:
    """All but half of the exploration (the draw by weight hits both) goes to the fast one."""
    fast, slow = candidates = fleet(1, 1)
    fast.ready_s, slow.ready_s = 0.2, 0.9
    assert _shares(_fastest(exploration=0.2), candidates)["d1"] == pytest.approx(0.1, abs=0.025)
    assert _shares(_fastest(exploration=0.0), candidates)["d1"] == 0.0


def test_fastest_adds_both_times_unless_told_otherwise() -> None:
    """Quick to connect and slow to speak loses by the sum, and wins by ``ready`` alone."""
    quick, slow = candidates = fleet(1, 1)
    quick.ready_s, quick.first_audio_s = 0.1, 2.0
    slow.ready_s, slow.first_audio_s = 0.6, 0.4
    expected = {"both": "d1", "first_audio": "d1", "ready": "d0"}
    for measure, winner in expected.items():
        assert _shares(_fastest(measure=measure, exploration=0.0), candidates)[winner] == 1.0


def test_fastest_does_not_bury_the_fastest() -> None:
    """While sessions come and go, a deployment three times as slow holds about a third as many."""
    fast, slow = candidates = fleet(1, 1)
    fast.ready_s, slow.ready_s = 0.2, 0.6
    strategy, world = _fastest(exploration=0.0), random.Random(9)
    for step in range(4000):
        if step >= 400:
            world.choices(candidates, [candidate.sessions for candidate in candidates])[0].sessions -= 1
        strategy.choose(candidates, CALL).sessions += 1
    assert fast.sessions / slow.sessions == pytest.approx(3.0, rel=0.1)


def test_fastest_tries_what_was_not_measured() -> None:
    """An unmeasured time counts as the best, so that an idle newcomer wins against a busy deployment."""
    busy, new, slow = candidates = fleet(1, 1, 1)
    busy.ready_s, busy.sessions, slow.ready_s = 0.2, 3, 2.0
    assert _shares(_fastest(exploration=0.0), candidates)["d1"] == pytest.approx(2 / 3, abs=0.04)
    new.sessions = 3
    assert _shares(_fastest(exploration=0.0), [busy, new])["d1"] > 0.3


def test_fastest_goes_by_load_while_nothing_is_measured() -> None:
    """A fresh process spreads its first sessions, and so does one with measurements that faded to nothing."""
    for faded in (None, 1e-9, 0.0):
        full, idle = candidates = fleet(1, 1)
        full.sessions = 5
        full.ready_s = idle.ready_s = faded
        assert _shares(_fastest(exploration=0.0), candidates)["d1"] == 1.0


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_fastest_refuses_a_share_that_is_none(share: float) -> None:
    """The message says what was found and what was expected."""
    with pytest.raises(ValueError, match=r"exploration: found .*, expected a number from 0 to 1"):
        Fastest.Options(exploration=share)
    with pytest.raises(ValueError, match="measure: found 'price', expected 'both', 'ready' or 'first_audio'"):
        Fastest.Options(measure="price")  # type: ignore[arg-type]  # wrong on purpose


def test_first_fills_in_the_order_of_the_file() -> None:
    """The position decides, not the order of the candidates, the weight or the load."""
    strategy = First(First.Options(), rng=random.Random(10))
    one, two, three = fleet(0.001, 5, 5)
    one.sessions = 900
    assert strategy.choose([three, one, two], CALL) is one
    assert strategy.choose([three, two], CALL) is two


# --- what they use of other processes ------------------------------------------------------------


def _told(candidates: list[FakeCandidate], freshness: Freshness, *sessions: int) -> None:
    for candidate, held in zip(candidates, sessions, strict=True):
        candidate.elsewhere = Elsewhere(freshness=freshness, members=3, sessions=held, starts=held)


@pytest.mark.parametrize("freshness", [Freshness.FRESH, Freshness.AGEING])
def test_p2c_and_fastest_count_the_whole_fleet(freshness: Freshness) -> None:
    """Here one holds less and everywhere it holds more: it loses."""
    candidates = fleet(1, 1)
    candidates[1].sessions = 5
    _told(candidates, freshness, 20, 10)
    for strategy in (PowerOfTwo(PowerOfTwo.Options(), rng=random.Random(11)), _fastest(exploration=0.0)):
        assert _shares(strategy, candidates)["d1"] == 1.0


def test_affinitys_bound_counts_the_whole_fleet() -> None:
    """A key's own deployment that others have filled is passed over, although it holds nothing here."""
    candidates = fleet(1, 1, 1)
    call = Call(group="voice", principal="team-a")
    strategy = Affinity(Affinity.Options(), rng=random.Random(12))
    home = strategy.choose(candidates, call)
    _told(candidates, Freshness.AGEING, *(30 if candidate is home else 10 for candidate in candidates))
    assert strategy.choose(candidates, call) is not home
    _told(candidates, Freshness.FRESH, 10, 10, 10)
    assert strategy.choose(candidates, call) is home


@pytest.mark.parametrize("cls", [LeastConnections, RoundRobin, WeightedRandom, First])
def test_a_plain_name_looks_at_this_process_alone(cls: type[Strategy]) -> None:
    """With the same seed the choices are the same, whatever the others hold."""
    alone, told = fleet(1, 1, 1), fleet(1, 1, 1)
    _told(told, Freshness.FRESH, 0, 1000, 50)
    strategies = [cls(options_of(cls)(), rng=random.Random(13)) for _ in range(2)]
    for _ in range(60):
        choices = [strategy.choose(candidates, CALL) for strategy, candidates in zip(strategies, (alone, told), strict=True)]
        assert choices[0].id == choices[1].id
        for choice in choices:
            choice.sessions += 1


def test_fastest_believes_others_before_it_guesses() -> None:
    """A time that only others measured counts; one of its own comes before theirs."""
    fast, slow = candidates = fleet(1, 1)
    fast.ready_s = 0.3
    assert _shares(_fastest(exploration=0.0), candidates)["d1"] == pytest.approx(0.5, abs=0.04)
    slow.elsewhere = Elsewhere(freshness=Freshness.FRESH, members=1, ready_s=2.0)
    fast.elsewhere = Elsewhere(freshness=Freshness.FRESH, members=1, ready_s=9.0)
    assert _shares(_fastest(exploration=0.0), candidates)["d1"] == 0.0
    slow.ready_s = 0.1
    assert _shares(_fastest(exploration=0.0), candidates)["d1"] == 1.0


def test_fastest_guesses_by_the_best_that_anybody_measured() -> None:
    """What nobody measured is as good as the best one known, and no better: with one session more it loses."""
    known, unknown = candidates = fleet(1, 1)
    known.elsewhere = Elsewhere(freshness=Freshness.FRESH, members=1, ready_s=0.4, first_audio_s=0.8)
    unknown.elsewhere = Elsewhere(freshness=Freshness.FRESH, members=1)
    unknown.sessions = 1
    assert _shares(_fastest(exploration=0.0), candidates)["d0"] == 1.0
