"""Numbers of a candidate, made safe to calculate with, and the weighted draws that several strategies share.

The contract says that a weight is positive and a latency finite. A measurement that went wrong (a clock that jumped, a
third party's candidate) must still not turn ``choose`` into an exception in the middle of somebody's call: every comparison
goes through these functions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from strategies.base import C, Candidate

# Far outside of what makes sense, near enough for sums and quotients of them to stay finite and above zero.
MIN_WEIGHT = 1e-9
MAX_WEIGHT = 1e9
# A longer wait is "never" for a voice session; it keeps an infinite measurement comparable with another one.
MAX_LATENCY_S = 3600.0


def weight_of(candidate: Candidate) -> float:
    """Return the weight within ``MIN_WEIGHT`` .. ``MAX_WEIGHT``; one that is no number counts as the least."""
    weight = candidate.weight
    if not weight > MIN_WEIGHT:  # NaN compares false, so it ends here as well
        return MIN_WEIGHT
    return min(weight, MAX_WEIGHT)


def load_of(candidate: Candidate) -> float:
    """Return sessions per unit of weight: what a strategy that balances keeps level."""
    return max(candidate.sessions, 0) / weight_of(candidate)


def seconds(measured: float | None) -> float | None:
    """Return a latency within 0 .. ``MAX_LATENCY_S`` seconds, or ``None`` when nothing usable was measured."""
    if measured is None or math.isnan(measured):
        return None
    return min(max(measured, 0.0), MAX_LATENCY_S)


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
