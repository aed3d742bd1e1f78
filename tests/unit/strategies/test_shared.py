"""The strategies of a fleet: what they do with the numbers of other processes, fresh, ageing, gone, and wrong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from strategies.base import NOWHERE, Call, Elsewhere, Freshness, Strategy
from strategies.round_robin import RoundRobin
from strategies.shared_least_connections import SharedLeastConnections
from strategies.shared_round_robin import SharedRoundRobin
from strategies.testing import FakeCandidate, fleet

CALL = Call(group="voice")


def _least(seed: int = 1) -> SharedLeastConnections:
    return SharedLeastConnections(SharedLeastConnections.Options(), rng=random.Random(seed))


def _turns(seed: int = 1) -> SharedRoundRobin:
    return SharedRoundRobin(SharedRoundRobin.Options(), rng=random.Random(seed))


def _tell(
    candidates: Sequence[FakeCandidate], *, freshness: Freshness = Freshness.FRESH, members: int = 3, **each: Sequence[int]
) -> None:
    """Let all candidates show a picture: a sequence for each field, an entry for each candidate."""
    for index, candidate in enumerate(candidates):
        candidate.elsewhere = Elsewhere(
            freshness=freshness, members=members, **{name: values[index] for name, values in each.items()}
        )


def _open(strategy: Strategy, candidates: Sequence[FakeCandidate], count: int, *, beats: bool = False) -> Counter[str]:
    """Open sessions that stay, with a beat before each if told so, at which nothing is new; return how many each got."""
    got: Counter[str] = Counter()
    for _ in range(count):
        for candidate in candidates if beats else ():
            candidate.elsewhere = replace(candidate.elsewhere)
        choice = strategy.choose(candidates, CALL)
        choice.sessions += 1
        got[choice.id] += 1
    return got


# --- shared-least-connections --------------------------------------------------------------------


def test_sessions_of_all_processes_count() -> None:
    """What this process has fewest of is not what the fleet has fewest of; its own next sessions count at once."""
    candidates = fleet(1, 1, 1)
    candidates[1].sessions = 5
    _tell(candidates, sessions=(20, 10, 30))
    assert _open(_least(), candidates, 5 + 10, beats=True) == {"d1": 10, "d0": 5}


@pytest.mark.parametrize("processes", [2, 5, 20])
def test_a_gap_is_filled_once_and_not_by_every_process(processes: int) -> None:
    """All see the same deployment 100 below the others, and in the same interval each opens more than its part of that."""
    got: Counter[str] = Counter()
    for seed in range(processes):
        candidates = fleet(1, 1, 1)
        _tell(candidates, members=processes - 1, sessions=(0, 100, 100))
        got += _open(_least(seed), candidates, 400 // processes)
    assert got["d0"] == pytest.approx(200, abs=processes)
    assert got["d1"] == pytest.approx(100, abs=processes)


def test_what_was_opened_before_the_picture_came_counts_once() -> None:
    """With each beat the others have said what they did; only what this process did since stands for theirs as well."""
    strategy, candidates = _least(), fleet(1, 1)
    _tell(candidates, members=3, sessions=(0, 40))
    assert _open(strategy, candidates, 10) == {"d0": 10}
    _tell(candidates, members=3, sessions=(30, 40))
    assert _open(strategy, candidates, 20) == {"d0": 10, "d1": 10}


def test_a_picture_that_ages_is_still_the_same_one() -> None:
    """Two seconds without a beat: what this process has done since is not forgotten."""
    strategy, candidates = _least(), fleet(1, 1)
    _tell(candidates, members=3, sessions=(0, 40))
    _open(strategy, candidates, 9)
    _tell(candidates, members=3, sessions=(0, 40), freshness=Freshness.AGEING)
    got = _open(strategy, candidates, 9)
    assert got["d1"] >= 3


def test_weights_come_out_within_five_percent() -> None:
    """3 to 1 over a few hundred sessions, in three processes that hear of each other now and then."""
    worlds = [fleet(3, 1) for _ in range(3)]
    strategies = [_least(seed) for seed in range(3)]
    for step in range(300):
        if step % 20 == 0:
            for world in worlds:
                others = [other for other in worlds if other is not world]
                _tell(world, members=2, sessions=[sum(other[index].sessions for other in others) for index in range(2)])
        _open(strategies[step % 3], worlds[step % 3], 1)
    heavy = sum(world[0].sessions for world in worlds)
    assert heavy == pytest.approx(225, rel=0.05)


@pytest.mark.parametrize("told", [True, False], ids=["told", "alone"])
def test_a_process_with_few_sessions_favours_neither_heavy_nor_light(told: bool) -> None:
    """Many processes with three sessions each: together they come out by weight all the same."""
    heavy = 0
    for seed in range(400):
        candidates = fleet(3, 1)
        if told:
            _tell(candidates, sessions=(0, 0))
        heavy += _open(_least(seed), candidates, 1 + seed % 6)["d0"]
    in_all = sum(1 + seed % 6 for seed in range(400))
    assert heavy / in_all == pytest.approx(0.75, rel=0.05)


def test_an_ageing_picture_is_compared_in_pairs() -> None:
    """The second best of four gets its share as well, so that processes with the same old numbers do not all meet."""
    candidates = fleet(1, 1, 1, 1)
    _tell(candidates, freshness=Freshness.AGEING, sessions=(0, 10, 20, 30))
    got = Counter(_least(seed).choose(candidates, CALL).id for seed in range(4000))
    assert got["d0"] / 4000 == pytest.approx(1 / 2, abs=0.04)
    assert got["d1"] / 4000 == pytest.approx(1 / 3, abs=0.04)
    assert got["d3"] == 0


def test_without_a_picture_own_counts_decide() -> None:
    """What is left of an old picture beside ``LOCAL`` is nothing."""
    candidates = fleet(1, 1)
    candidates[0].sessions = 2
    assert _open(_least(), candidates, 1) == {"d1": 1}


def test_a_picture_that_ages_between_two_looks_is_left_out() -> None:
    """One candidate shows the fleet and the other one does not: compared are the own counts of both."""
    candidates = fleet(1, 1)
    candidates[0].sessions = 3
    _tell(candidates[1:], sessions=(1000,))
    assert _open(_least(), candidates, 3) == {"d1": 3}


def test_a_picture_that_goes_while_it_is_looked_at_does_no_harm() -> None:
    """Each look at a candidate may show something else; the choice is made all the same."""

    class Flickering(FakeCandidate):
        @property
        def elsewhere(self) -> Elsewhere:
            return world.choice(
                (NOWHERE, Elsewhere(freshness=Freshness.AGEING, sessions=7), Elsewhere(freshness=Freshness.FRESH))
            )

        @elsewhere.setter
        def elsewhere(self, value: Elsewhere) -> None:
            """The base's ``__init__`` sets it."""

    world = random.Random(3)
    candidates = [Flickering(id=f"d{index}") for index in range(4)]
    for strategy in (_least(), _turns()):
        assert all(count > 0 for count in _open(strategy, candidates, 400).values())


def test_an_ejection_elsewhere_raises_the_score_and_no_more() -> None:
    """All others have ejected it: it still fills to a quarter of the level; half of them: to four tenths."""
    for ejected, level in ((3, 0.25), (0, 1.0)):
        candidates = fleet(1, 1, 1, 1)
        _tell(candidates, sessions=(0, 0, 0, 0), ejected=(ejected, 0, 0, 0))
        _open(_least(), candidates, 1300)
        assert candidates[0].sessions / candidates[1].sessions == pytest.approx(level, rel=0.05)
    candidates = fleet(1, 1)
    _tell(candidates, members=2, sessions=(0, 0), ejected=(1, 0))
    _open(_least(), candidates, 1400)
    assert candidates[0].sessions / candidates[1].sessions == pytest.approx(0.4, rel=0.05)


def test_an_idle_deployment_with_a_hint_is_not_the_first_choice() -> None:
    """The hint works on nothing as well: with all idle, it comes last, and it comes."""
    candidates = fleet(1, 1, 1)
    _tell(candidates, sessions=(0, 0, 0), ejected=(3, 0, 0))
    first = _open(_least(), candidates, 2)
    assert first == {"d1": 1, "d2": 1}
    assert _open(_least(), candidates, 6)["d0"] >= 1


def test_a_deployment_that_only_others_avoid_is_not_flooded() -> None:
    """What others left looks idle beside what they share; from here it is filled to a quarter of that and not to all of it."""
    candidates = fleet(1, 1, 1)
    _tell(candidates, sessions=(0, 100, 100), ejected=(3, 0, 0))
    assert _open(_least(), candidates, 60, beats=True)["d0"] == pytest.approx(115 / 4, abs=1)


# --- shared-round-robin --------------------------------------------------------------------------


def test_alone_it_is_round_robin() -> None:
    """Nobody is heard: turn by turn the same choices as the strategy whose credits it uses."""
    alone = RoundRobin(RoundRobin.Options(), rng=random.Random(5))
    strategy, candidates = _turns(5), fleet(5, 2, 1)
    assert [strategy.choose(candidates, CALL).id for _ in range(80)] == [alone.choose(candidates, CALL).id for _ in range(80)]


def _others(strategy: SharedRoundRobin, candidates: Sequence[FakeCandidate], starts: Sequence[int], members: int = 1) -> str:
    _tell(candidates, members=members, starts=starts)
    return strategy.choose(candidates, CALL).id


def test_what_others_start_is_not_started_here() -> None:
    """With one other process half of what it did is this one's to level: its four more mean two turns fewer here."""
    strategy, candidates = _turns(), fleet(1, 1)
    _others(strategy, candidates, (100, 100))
    _others(strategy, candidates, (100, 100))
    got = Counter([_others(strategy, candidates, (108, 100)) for _ in range(8)])
    assert got == {"d0": 2, "d1": 6}


def test_even_turns_elsewhere_change_nothing() -> None:
    """However many: a burst of 6000 through another process leaves the order of the own turns as it was."""
    strategy, candidates = _turns(), fleet(1, 1, 1)
    turns = [_others(strategy, candidates, (number * 2000,) * 3) for number in range(9)]
    assert turns == turns[:3] * 3
    assert len(set(turns[:3])) == 3


def test_the_first_sight_is_only_remembered() -> None:
    """A process that starts does not make up for what others did before, and a new deployment is not flooded."""
    strategy, candidates = _turns(), fleet(1, 1, 1)
    got = Counter([_others(strategy, candidates, (10**6, 10**6, 0)) for _ in range(30)])
    assert got == {"d0": 10, "d1": 10, "d2": 10}
    candidates.append(FakeCandidate(id="new", position=3))
    got = Counter([_others(strategy, candidates, (10**6, 10**6, 0, 0)) for _ in range(40)])
    assert all(9 <= got[candidate.id] <= 11 for candidate in candidates)


@pytest.mark.parametrize("members", [1, 2])
def test_a_process_that_leaves_or_comes_makes_no_jump(members: int) -> None:
    """Its starts go or come all at once, and are no starts of this second; seen by the number of processes, or by the fall."""
    strategy, candidates = _turns(), fleet(1, 1)
    for _ in range(4):
        _others(strategy, candidates, (900, 500), members=2)
    gone = [_others(strategy, candidates, (400, 500), members=members) for _ in range(10)]
    assert Counter(gone) == {"d0": 5, "d1": 5}
    back = [_others(strategy, candidates, (900, 500), members=3) for _ in range(10)]
    assert Counter(back) == {"d0": 5, "d1": 5}


def test_losing_the_others_for_a_while_leaves_no_debt() -> None:
    """Own turns go on in their order, and what the others did meanwhile is not charged afterwards."""
    strategy, candidates = _turns(), fleet(1, 1)
    turns = [_others(strategy, candidates, (50, 50)) for _ in range(4)]
    for candidate in candidates:
        candidate.elsewhere = NOWHERE
    turns += [strategy.choose(candidates, CALL).id for _ in range(4)]
    turns += [_others(strategy, candidates, (50, 500)) for _ in range(4)]
    assert turns == turns[:2] * 6


def test_being_left_out_is_not_charged_for() -> None:
    """While it was ejected here, others went on using it: it comes back with the turns it left with."""
    strategy, candidates = _turns(), fleet(1, 1, 1)
    _others(strategy, candidates, (0, 0, 0))
    for number in range(60):
        _others(strategy, candidates[:2], (number, number))
    got = Counter([_others(strategy, candidates, (60, 60, 60)) for _ in range(9)])
    assert all(2 <= got[candidate.id] <= 4 for candidate in candidates)


def test_a_deployment_that_others_cannot_reach_is_not_flooded_afterwards() -> None:
    """This process leans towards it as long as that lasts; when it is over, there are eight turns to make up and no more."""
    strategy, candidates = _turns(), fleet(1, 1, 1)
    for number in range(300):
        _others(strategy, candidates, (0, number * 50, number * 50), members=3)
    after = Counter([_others(strategy, candidates, (number * 50, 20_000, 20_000), members=3) for number in range(1)])
    after += Counter([_others(strategy, candidates, (50, 20_000, 20_000), members=3) for _ in range(90)])
    assert 30 <= after["d0"] <= 30 + 8 + 3


def test_a_hint_divides_the_turns_and_leaves_no_debt() -> None:
    """Ejected by all others: a quarter of the weight; when they readmit it, its whole share and not more."""
    strategy, candidates = _turns(), fleet(1, 1)
    _tell(candidates, members=1, starts=(0, 0), ejected=(1, 0))
    assert _open(strategy, candidates, 50)["d0"] == pytest.approx(10, abs=1)
    _tell(candidates, members=1, starts=(0, 0), ejected=(0, 0))
    assert _open(strategy, candidates, 50)["d0"] == pytest.approx(25, abs=1)


@pytest.mark.parametrize("processes", [2, 8, 24])
def test_a_fleet_does_not_swing_around_its_mean(processes: int) -> None:
    """All see the same gap at each beat: each closes its part of it. (With all of it, 24 processes went thousands apart.)"""
    worlds = [fleet(1, 1, 1, 1) for _ in range(processes)]
    strategies = [_turns(seed) for seed in range(processes)]
    starts = [[0] * 4 for _ in range(processes)]
    for _ in range(60):
        totals = [sum(own[index] for own in starts) for index in range(4)]
        for world, own in zip(worlds, starts, strict=True):
            _tell(world, members=processes - 1, starts=[total - mine for total, mine in zip(totals, own, strict=True)])
        for world, own, strategy in zip(worlds, starts, strategies, strict=True):
            for _ in range(13):
                own[strategy.choose(world, CALL).position] += 1
    totals = [sum(own[index] for own in starts) for index in range(4)]
    assert max(totals) - sum(totals) / 4 <= processes
