"""Usage: headroom first, then the least used by weight, and no rush to what has not reported yet."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from strategies.base import Call, Elsewhere, Freshness
from strategies.testing import FakeCandidate, fleet
from strategies.usage import Usage

CALL = Call(group="voice")


def _new(seed: int = 1) -> Usage:
    return Usage(Usage.Options(), rng=random.Random(seed))


def _chosen(candidates: Sequence[FakeCandidate], count: int = 40) -> set[str]:
    strategy = _new()
    return {strategy.choose(candidates, CALL).id for _ in range(count)}


def test_the_most_headroom_wins_whatever_else_is_used() -> None:
    """No limit is all headroom; tokens and sessions only decide between equals."""
    tight, roomy, unlimited = candidates = fleet(1, 1, 1)
    tight.headroom, roomy.headroom = 0.2, 0.7
    roomy.minute_tokens, roomy.sessions = 90_000, 30
    tight.minute_tokens, tight.sessions = 30_000, 10
    unlimited.minute_tokens, unlimited.sessions = 300_000, 100
    assert _chosen(candidates) == {"d2"}
    assert _chosen(candidates[:2]) == {"d1"}


def test_equal_headroom_is_decided_by_tokens_then_starts_then_sessions() -> None:
    """Each by weight, and each only where the one before is equal; a hair of headroom is equal."""
    one, other = candidates = fleet(2, 1)
    one.headroom, other.headroom = 0.505, 0.509
    one.minute_tokens, other.minute_tokens = 1900, 1000
    assert _chosen(candidates) == {"d0"}
    one.minute_tokens = 2100
    assert _chosen(candidates) == {"d1"}
    one.minute_tokens = other.minute_tokens = 0
    one.minute_starts, other.minute_starts = 7, 4
    assert _chosen(candidates) == {"d0"}
    one.weight, one.minute_starts, other.sessions = 1, 4, 1
    assert _chosen(candidates) == {"d0"}
    one.sessions = 1
    assert _chosen(candidates) == {"d0", "d1"}


def test_sessions_elsewhere_decide_the_last_tie() -> None:
    """The fleet's load and not this process's."""
    one, other = candidates = fleet(1, 1)
    one.sessions = 3
    one.elsewhere = Elsewhere(freshness=Freshness.FRESH, members=1, sessions=1)
    other.elsewhere = Elsewhere(freshness=Freshness.FRESH, members=1, sessions=9)
    assert _chosen(candidates) == {"d0"}


def _burst(candidates: Sequence[FakeCandidate], count: int) -> Counter[str]:
    """Start sessions faster than any of them reports a token."""
    strategy, got = _new(), Counter[str]()
    for _ in range(count):
        choice = strategy.choose(candidates, CALL)
        choice.sessions += 1
        choice.minute_starts += 1
        got[choice.id] += 1
    return got


def test_a_burst_does_not_all_go_where_the_numbers_stood_best() -> None:
    """Two of the same size, one used a tenth and one a fifth: the fuller one does not wait for tokens to be reported."""
    one, other = candidates = fleet(1, 1)
    one.headroom, one.sessions, one.minute_tokens = 0.9, 10, 10_000
    other.headroom, other.sessions, other.minute_tokens = 0.8, 20, 20_000
    assert _burst(candidates, 40)["d1"] >= 4
    _burst(candidates, 60)
    assert max(one.sessions, other.sessions) <= 1.35 * (one.sessions + other.sessions) / 2


def test_a_burst_respects_sizes() -> None:
    """A limit ten times as high takes ten times the burst, as its own use of it says, with no weight set."""
    big, small = candidates = fleet(1, 1)
    big.headroom, big.sessions, big.minute_tokens = 0.5, 100, 100_000
    small.headroom, small.sessions, small.minute_tokens = 0.5, 10, 10_000
    got = _burst(candidates, 60)
    assert got["d0"] == pytest.approx(60 * 10 / 11, abs=6)


def test_a_newcomer_that_has_reported_nothing_is_not_flooded() -> None:
    """It is preferred, as idle as it is, until it holds what the others do."""
    candidates = fleet(1, 1, 1)
    for old in candidates[:2]:
        old.headroom, old.sessions, old.minute_tokens = 0.5, 20, 20_000
    candidates[2].headroom = 1.0
    got = _burst(candidates, 50)
    assert got["d2"] == pytest.approx(30, abs=4)


def test_without_limits_a_burst_is_spread() -> None:
    """Tokens stand still, sessions do not."""
    candidates = fleet(1, 1, 1, 1)
    for candidate, tokens in zip(candidates, (5000, 5100, 5200, 5300), strict=True):
        candidate.sessions, candidate.minute_tokens = 10, tokens
    got = _burst(candidates, 200)
    assert all(45 <= count <= 55 for count in got.values())


def test_with_nothing_reported_at_all_starts_go_by_weight() -> None:
    """Providers that report no usage are balanced by what was started."""
    got = _burst(fleet(3, 1), 400)
    assert got == {"d0": 300, "d1": 100}


@pytest.mark.parametrize("headroom", [math.nan, -1.0, 0.0, -math.inf])
def test_headroom_that_is_no_number_counts_as_none(headroom: float) -> None:
    """It is the last to be chosen, and is chosen when it is all there is."""
    one, other = candidates = fleet(1, 1)
    one.headroom, other.headroom = headroom, 0.1
    assert _chosen(candidates) == {"d1"}
    assert _chosen([one]) == {"d0"}


def test_nonsense_raises_nothing() -> None:
    """Numbers that no deployment can have, in every combination."""
    numbers = (math.nan, math.inf, -math.inf, -1, 0, 1e-300, 1e300, 10**400)
    for tokens in numbers:
        for sessions in numbers:
            candidates = fleet(1, 1)
            candidates[0].minute_tokens, candidates[0].sessions = tokens, sessions  # type: ignore[assignment]  # wrong on purpose
            candidates[1].minute_starts, candidates[1].headroom = tokens, 1e-300  # type: ignore[assignment]  # wrong on purpose
            candidates[1].elsewhere = Elsewhere(freshness=Freshness.FRESH, sessions=sessions)  # type: ignore[arg-type]  # wrong on purpose
            assert _new().choose(candidates, CALL) in candidates
