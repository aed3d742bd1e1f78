"""Numbers of a candidate, made safe to calculate with, and the weighted draws that several strategies share.

The contract says that a weight is positive and a latency finite. A measurement that went wrong (a clock that jumped, another
process that says nonsense, a third party's candidate) must still not turn ``choose`` into an exception in the middle of
somebody's call: every comparison goes through these functions.

Numbers of the whole fleet are made for all candidates of a comparison together, never for one alone: the picture of the
others may grow too old between two looks at it, and a candidate without it would look empty beside one with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

from strategies.base import C, Candidate, Elsewhere, Freshness

# Far outside of what makes sense, near enough for sums and quotients of them to stay finite and above zero.
MIN_WEIGHT = 1e-9
MAX_WEIGHT = 1e9
# A longer wait is "never" for a voice session; it keeps an infinite measurement comparable with another one.
MAX_LATENCY_S = 3600.0
# More than any count here can be; what is computed from it stays exact.
MAX_COUNT = 2.0**50
# Scores are quotients of floats: 21 ÷ 0.7 and 30 ÷ 1 are a tie, although rounding separates them.
_SAME = 1.0 + 1e-9
# What all others have ejected counts as so many times as full, beyond itself.
_CAUTION = 3.0


def weight_of(candidate: Candidate) -> float:
    """Return the weight within ``MIN_WEIGHT`` .. ``MAX_WEIGHT``; one that is no number counts as the least."""
    weight = candidate.weight
    if not weight > MIN_WEIGHT:  # NaN compares false, so it ends here as well
        return MIN_WEIGHT
    return min(weight, MAX_WEIGHT)


def count(number: float) -> float:
    """Return a number of things within 0 .. ``MAX_COUNT``; what is no number counts as none."""
    if not number > 0:  # NaN compares false, so it ends here as well
        return 0.0
    return float(min(number, MAX_COUNT))


def load_of(candidate: Candidate) -> float:
    """Return this process's sessions per unit of weight."""
    return count(candidate.sessions) / weight_of(candidate)


def freshness_of(views: Iterable[Elsewhere]) -> Freshness:
    """Return how far all of these can be trusted together: as far as the one that can be trusted least."""
    freshness = Freshness.FRESH
    for view in views:
        if view.freshness is Freshness.LOCAL:
            return Freshness.LOCAL
        if view.freshness is Freshness.AGEING:
            freshness = Freshness.AGEING
    return freshness


def fleet_sessions(candidates: Sequence[Candidate]) -> list[float]:
    """Return each candidate's sessions in the whole fleet; this process's alone where one of them lacks the others'."""
    views = [candidate.elsewhere for candidate in candidates]
    if freshness_of(views) is Freshness.LOCAL:
        return [count(candidate.sessions) for candidate in candidates]
    return [count(candidate.sessions) + count(view.sessions) for candidate, view in zip(candidates, views, strict=True)]


def caution_of(view: Elsewhere) -> float:
    """Return 1 to 4, by the share of the other processes that have ejected a deployment.

    Dividing its weight by this leaves it a quarter of its share when all others have: little enough to be careful, enough for
    this process to find out by itself, since the trouble may lie between the others and it.
    """
    members = count(view.members)
    return 1.0 + _CAUTION * min(count(view.ejected) / members, 1.0) if members else 1.0


def seconds(measured: float | None) -> float | None:
    """Return a latency within 0 .. ``MAX_LATENCY_S`` seconds, or ``None`` when nothing usable was measured."""
    if measured is None or measured != measured:  # only NaN differs from itself
        return None
    return float(min(max(measured, 0.0), MAX_LATENCY_S))


def least(candidates: Sequence[C], scores: Sequence[float], rng: random.Random) -> C:
    """Return the candidate with the lowest score; several that have it are drawn by weight.

    Args:
        candidates: at least one.
        scores: theirs, in the same order; none negative, none NaN.
        rng: source of randomness.
    """
    limit = min(scores) * _SAME
    return draw([candidate for candidate, score in zip(candidates, scores, strict=True) if score <= limit], rng)


def draw(candidates: Sequence[C], rng: random.Random) -> C:
    """Draw one candidate with a probability in proportion to its weight.

    Args:
        candidates: at least one. A single one is returned without touching ``rng``.
        rng: source of randomness.
    """
    if len(candidates) == 1:
        return candidates[0]
    return candidates[_draw_index([weight_of(candidate) for candidate in candidates], rng)]


def draw_two(candidates: Sequence[C], rng: random.Random) -> tuple[C, C]:
    """Draw two different candidates by weight, without replacement; a single one is returned twice.

    Drawing by weight and not uniformly matters with unequal weights: among 50 candidates one with half of the whole weight
    would be looked at in only 2 of 50 uniform draws, and could never get its half.
    """
    if len(candidates) == 1:
        return candidates[0], candidates[0]
    weights = [weight_of(candidate) for candidate in candidates]
    first = _draw_index(weights, rng)
    others = [index for index in range(len(candidates)) if index != first]
    second = others[_draw_index([weights[index] for index in others], rng)]
    return candidates[first], candidates[second]


def _draw_index(weights: Sequence[float], rng: random.Random) -> int:
    rest = rng.random() * math.fsum(weights)
    for index, weight in enumerate(weights):
        rest -= weight
        if rest < 0.0:
            return index
    # Rounding may leave a crumb after the last subtraction; it belongs to the last one.
    return len(weights) - 1
