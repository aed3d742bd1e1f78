"""Smooth weighted round-robin: every candidate in its turn, heavy ones more often, never in a burst.

Each choice credits every candidate with its share of it (weight ÷ sum of weights), takes the one with the highest credit
and charges that one 1. Weights 5, 1, 1 give ``a a b a c a a`` and not ``a a a a a b c``. This is nginx's algorithm
(``ngx_http_upstream_round_robin.c``) with one difference: nginx credits the weight and charges the sum of weights. With a
constant set of candidates both choose the same. Here the set changes from one session to the next (a deployment was tried
already, is ejected, is full), and then only shares add up: a credit is exactly "what it was due minus what it got", so that
being left out of a choice neither earns nor costs anything, and the greedy rule keeps every credit bounded
(R. Fagin and J. H. Williams, "A fair carpool scheduling algorithm", IBM J. Res. Dev. 27 (1983)).

Looks at this process's own choices and the weights, nothing of other processes; ``shared-round-robin`` counts theirs as well.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from strategies.base import C, Call, Promise
from strategies.credits import Credits
from strategies.measures import weight_of
from strategies.registry import register


@register("round-robin")
class RoundRobin:
    """Smooth weighted round-robin over whatever set of candidates comes."""

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.FAIR, Promise.PROPORTIONAL})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """It has none."""

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._credits = Credits(rng)

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the candidate that is due most."""
        return self._credits.take_turn(candidates, [weight_of(candidate) for candidate in candidates])
