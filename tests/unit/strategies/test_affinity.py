"""Affinity: where the key comes from, where it leads, and when it yields."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from strategies.affinity import Affinity
from strategies.base import Call
from strategies.testing import fleet

# Team 0 to 23, over four deployments of which the last weighs two.
PINNED = "131310333333220333211311"


def _new(**options: object) -> Affinity:
    return Affinity(Affinity.Options(**options), rng=random.Random(1))  # type: ignore[arg-type]  # names are the test's


def test_the_mapping_never_changes() -> None:
    """Pinned: another Python, another machine or a later version must not send running customers elsewhere."""
    candidates = fleet(1, 1, 1, 2)
    strategy = _new(load_factor=None)
    chosen = [strategy.choose(candidates, Call(group="voice", principal=f"team-{number}")).id[1] for number in range(24)]
    assert "".join(chosen) == PINNED


def test_the_principal_is_the_key_by_default() -> None:
    """One team stays together, whatever else its requests hold."""
    candidates = fleet(*[1.0] * 10)
    strategy = _new()
    calls = [Call(group="voice", principal="team-a", headers={"x-room": str(number)}) for number in range(50)]
    assert len({strategy.choose(candidates, call).id for call in calls}) == 1


@pytest.mark.parametrize(
    ("options", "same", "absent"),
    [
        ({"by": "header", "name": "X-Room"}, Call(group="v", headers={"x-room": "7"}), Call(group="v", query={"x-room": "7"})),
        ({"by": "query", "name": "Room"}, Call(group="v", query={"Room": "7"}), Call(group="v", query={"room": "7"})),
        ({"by": "key"}, Call(group="v", principal="team-a"), Call(group="v", principal="anonymous")),
        (
            {"by": "header", "name": "x-room"},
            Call(group="v", headers={"x-room": " 7"}),
            Call(group="v", headers={"x-room": "  "}),
        ),
    ],
)
def test_a_call_without_the_key_goes_by_least_connections(options: dict[str, object], same: Call, absent: Call) -> None:
    """With it: always one place. Without it (missing, blank, nobody's): the emptiest, ties at random."""
    candidates = fleet(*[1.0] * 8)
    strategy = _new(**options)
    assert len({strategy.choose(candidates, same).id for _ in range(50)}) == 1
    assert len({strategy.choose(candidates, absent).id for _ in range(200)}) == 8
    for candidate in candidates[1:]:
        candidate.sessions = 1
    assert strategy.choose(candidates, absent) is candidates[0]


def test_an_overfull_deployment_is_passed_over_and_returned_to() -> None:
    """The next best one takes over, the same for all overflowing sessions of the key, and the first again when it has room."""
    candidates = fleet(*[1.0] * 4)
    strategy = _new(load_factor=1.5)
    call = Call(group="voice", principal="team-a")
    home = strategy.choose(candidates, call)
    for candidate in candidates:
        candidate.sessions = 10
    home.sessions = 30
    second = {strategy.choose(candidates, call).id for _ in range(20)}
    assert len(second) == 1
    assert home.id not in second
    home.sessions = 12
    assert strategy.choose(candidates, call) is home


def test_without_a_bound_one_key_may_fill_one_deployment() -> None:
    """That is what ``load_factor: null`` asks for."""
    candidates = fleet(*[1.0] * 4)
    strategy = _new(load_factor=None)
    call = Call(group="voice", principal="team-a")
    for _ in range(500):
        strategy.choose(candidates, call).sessions += 1
    assert sorted(candidate.sessions for candidate in candidates) == [0, 0, 0, 500]


def test_a_weight_that_changes_moves_only_what_it_must() -> None:
    """Half the weight gives keys away and takes none."""
    candidates = fleet(1, 1, 1)
    strategy = _new(load_factor=None)
    calls = [Call(group="voice", principal=f"team-{number}") for number in range(500)]
    before = [strategy.choose(candidates, call).id for call in calls]
    candidates[0].weight = 0.5
    after = [strategy.choose(candidates, call).id for call in calls]
    moved = Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)
    assert moved
    assert {old for old, _ in moved} == {"d0"}


def test_neighbouring_strings_do_not_run_together() -> None:
    """Key ``ab`` with id ``c`` and key ``a`` with id ``bc`` are different pairs, hence independent of each other."""
    one, two = fleet(1, 1)
    one.id, two.id = "0", "10"
    pairs: Counter[str] = Counter()
    strategy = _new(load_factor=None)
    for number in range(400):
        pairs[strategy.choose([one, two], Call(group="voice", principal=f"{number}1")).id] += 1
    assert 140 < pairs["0"] < 260


@pytest.mark.parametrize("key", ["\udcff\ud800", "\x00", "ü€😀", "x" * 100_000])
def test_any_string_can_be_a_key(key: str) -> None:
    """Bytes that are not UTF-8 arrive as lone surrogates and must not end a call."""
    candidates = fleet(1, 1, 1)
    strategy = _new(by="header", name="x-room")
    assert strategy.choose(candidates, Call(group="voice", headers={"x-room": key})) in candidates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "cookie"}, "by: found 'cookie', expected 'key', 'header' or 'query'"),
        ({"by": "header"}, "name: found None, expected name to say which header to hash"),
        ({"by": "query", "name": "  "}, "name: found '  ', expected name to say which query to hash"),
        ({"name": "x-room"}, "name: found 'x-room', expected none with by: key"),
        ({"load_factor": 0.9}, "load_factor: found 0.9, expected 1 to 1000"),
        ({"load_factor": float("nan")}, "load_factor: found nan, expected 1 to 1000"),
        ({"load_factor": float("inf")}, "load_factor: found inf, expected 1 to 1000"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    """The message names the option, what was found and what was expected."""
    with pytest.raises(ValueError, match=message):
        _new(**options)
