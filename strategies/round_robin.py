"""Smooth weighted round-robin: every candidate in its turn, heavy ones more often, never in a burst.

Each choice credits every candidate with its share of it (weight ÷ sum of weights), takes the one with the highest credit
and charges that one 1. Weights 5, 1, 1 give ``a a b a c a a`` and not ``a a a a a b c``. This is nginx's algorithm
(``ngx_http_upstream_round_robin.c``) with one difference: nginx credits the weight and charges the sum of weights. With a
constant set of candidates both choose the same. Here the set changes from one session to the next (a deployment was tried
already, is ejected, is full), and then only shares add up: a credit is exactly "what it was due minus what it got", so that
being left out of a choice neither earns nor costs anything, and the greedy rule keeps every credit bounded
(R. Fagin and J. H. Williams, "A fair carpool scheduling algorithm", IBM J. Res. Dev. 27 (1983)).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from strategies.base import C, Call, Promise
from strategies.measures import weight_of
from strategies.registry import register

# Deployments that left are remembered until this many others are known besides the present candidates: they may only be
# ejected, and one that returns should go on where it was.
_REMEMBERED = 256
# Newcomers start within this of zero. It breaks ties the same way for as long as the instance lives, so that replicas
# which start together do not all begin with the first deployment of the file; and it outweighs rounding errors.
_TIE_BREAK = 1e-6


@register("round-robin")
class RoundRobin:
    """Smooth weighted round-robin over whatever set of candidates comes."""

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.FAIR, Promise.PROPORTIONAL})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """It has none."""

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._rng = rng
        # Deployment id → what it was due minus what it got, hence around zero, where newcomers start. Ordered by last
        # appearance, the oldest first.
        self._credits: dict[str, float] = {}

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the candidate that is due most."""
        weights = [weight_of(candidate) for candidate in candidates]
        total = sum(weights)
        best = candidates[0]
        best_credit = float("-inf")
        for candidate, weight in zip(candidates, weights, strict=True):
            credit = self._take(candidate.id) + weight / total
            self._credits[candidate.id] = credit
            if credit > best_credit:
                best, best_credit = candidate, credit
        self._credits[best.id] -= 1.0
        self._forget(len(self._credits) - len(candidates) - _REMEMBERED)
        return best

    def _take(self, deployment: str) -> float:
        """Remove and return a credit, so that putting it back makes it the most recent."""
        credit = self._credits.pop(deployment, None)
        return self._rng.random() * _TIE_BREAK if credit is None else credit

    def _forget(self, surplus: int) -> None:
        """Drop the credits that were not seen for longest.

        The balance they take along shifts the others against the zero at which newcomers start, by a turn or so and not for
        long: who starts too high is charged the sooner.
        """
        for deployment in [deployment for deployment, _ in zip(self._credits, range(surplus), strict=False)]:
            del self._credits[deployment]
