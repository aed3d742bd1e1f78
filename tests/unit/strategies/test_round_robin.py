"""Smooth weighted round-robin."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from strategies.base import Call
from strategies.round_robin import RoundRobin
from strategies.testing import FakeCandidate, fleet

CALL = Call(group="voice")


def _new(seed: int = 1) -> RoundRobin:
    return RoundRobin(RoundRobin.Options(), rng=random.Random(seed))


def test_equal_weights_take_turns() -> None:
    """The same order round after round, each exactly once in it."""
    strategy, candidates = _new(), fleet(1, 1, 1)
    rounds = [[strategy.choose(candidates, CALL).id for _ in range(3)] for _ in range(5)]
    assert set(rounds[0]) == {"d0", "d1", "d2"}
    assert rounds == [rounds[0]] * 5


def test_replicas_do_not_all_begin_with_the_same_deployment() -> None:
    """Twenty fresh processes begin at every place of the file, or the first deployment would get a wave at each deploy."""
    assert {_new(seed).choose(fleet(1, 1, 1), CALL).id for seed in range(20)} == {"d0", "d1", "d2"}


def test_heavy_ones_do_not_come_in_bursts() -> None:
    """nginx's own example, 5 1 1: never three times in a row across any boundary, and 5 of every 7."""
    strategy, candidates = _new(), fleet(5, 1, 1)
    chosen = "".join(strategy.choose(candidates, CALL).id[1] for _ in range(70))
    assert chosen[:7] in ("0010200", "0020100")
    assert chosen == chosen[:7] * 10


@pytest.mark.parametrize("weights", [(5, 1, 1), (7, 4, 2), (10, 3), (1, 2, 3, 4, 5), (0.3, 0.5, 0.11)])
def test_it_chooses_as_nginx_does(weights: tuple[float, ...]) -> None:
    """Every choice is one that nginx's peer selection could make: highest current weight, less the total afterwards."""
    strategy, candidates = _new(), fleet(*weights)
    current = dict.fromkeys((candidate.id for candidate in candidates), 0.0)
    for _ in range(500):
        for candidate in candidates:
            current[candidate.id] += candidate.weight
        chosen = strategy.choose(candidates, CALL).id
        assert current[chosen] >= max(current.values()) - 1e-4 * sum(weights)
        current[chosen] -= sum(weights)


def test_being_left_out_neither_earns_nor_costs() -> None:
    """A deployment that was ejected for a thousand sessions takes its turns when it is back, with no burst to catch up."""
    strategy, candidates = _new(), fleet(1, 1, 1)
    for _ in range(10):
        strategy.choose(candidates, CALL)
    for _ in range(1000):
        strategy.choose(candidates[:2], CALL)
    got = Counter(strategy.choose(candidates, CALL).id for _ in range(9))
    assert all(2 <= got[candidate.id] <= 4 for candidate in candidates)


def test_a_changed_weight_counts_from_the_next_choice() -> None:
    """A slow-start ramp moves the shares along, without debts from before."""
    strategy, candidates = _new(), fleet(1, 1)
    for _ in range(100):
        strategy.choose(candidates, CALL)
    candidates[1].weight = 0.25
    got = Counter(strategy.choose(candidates, CALL).id for _ in range(100))
    assert 19 <= got["d1"] <= 21


@pytest.mark.parametrize("lasting", [1, 2, 9])
def test_passing_deployments_neither_win_nor_lose_against_those_that_stay(lasting: int) -> None:
    """With a new deployment at every choice, long after the first were forgotten, shares are still what is due."""
    strategy, candidates = _new(), fleet(*[1.0] * lasting)
    chosen = [strategy.choose([*candidates, FakeCandidate(id=f"passing-{step}")], CALL).id for step in range(6000)]
    late = Counter(id_ if id_.startswith("d") else "passing" for id_ in chosen[3000:])
    due = 3000 / (lasting + 1)
    assert len(late) == lasting + 1
    assert all(0.95 * due <= count <= 1.05 * due for count in late.values())


def test_a_mass_exit_leaves_no_debt_behind() -> None:
    """After hundreds of deployments were dropped and forgotten, those that stay and a newcomer take equal turns at once."""
    strategy, everybody = _new(), fleet(*[1.0] * 600)
    for _ in range(900):
        strategy.choose(everybody, CALL)
    for _ in range(5):
        strategy.choose(everybody[:2], CALL)
    got = Counter(strategy.choose([*everybody[:2], FakeCandidate(id="new")], CALL).id for _ in range(30))
    assert all(8 <= got[id_] <= 12 for id_ in ("d0", "d1", "new"))
