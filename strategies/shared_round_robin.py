"""Shared round-robin: smooth weighted round-robin in which the turns that other processes give count as well.

The credits are those of ``round-robin``. What is added: the sessions that others have started on a candidate since the last
choice are charged to it, and all of them together credit every candidate with its share by weight.

Why credits and not the lowest sum of all starts ÷ weight, which says the same in fewer words: such a sum begins with the
process, so that a new deployment gets everything until it has caught up with years, one that was ejected for an hour as well,
a process that leaves takes its starts along, and one that loses the others for a moment compares its own hundred with their
millions. Here only differences count. What falls, or comes with another number of processes, is where the next difference
begins; so is a deployment that was not among the candidates last time. When nobody can be heard, the own turns go on from
where they were.

Each process charges only its part of what the others did, one of as many parts as there are processes: all see the same gap,
and if each closed it, it would be closed that many times, and open on the other side at the next beat, wider. The part also
makes it safe to look at numbers that are several seconds old, so that their age makes no difference here.

A credit stays within eight turns of zero by what others do. That is more than rounding and beats ever make of it; what reaches
it is a deployment that others cannot use, or use alone. As long as that lasts, this process leans towards it or away
from it; when it is over, there are at most eight turns to make up, and not an hour's.

An ejection in other processes is a hint: it divides the weight by up to four, here as there, so that the deployment gets fewer
turns while it stands and is owed none when it is gone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final

from strategies.base import C, Call, Candidate, Elsewhere, Freshness, Promise
from strategies.credits import Credits
from strategies.measures import caution_of, count, freshness_of, weight_of
from strategies.registry import register

# Turns.
_BOUND: Final = 8.0
_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


@register("shared-round-robin")
class SharedRoundRobin:
    """Smooth weighted round-robin over the choices of the whole fleet."""

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.FAIR, Promise.PROPORTIONAL})
    shared: ClassVar[bool] = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """It has none."""

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._credits = Credits(rng)
        # The others' starts on each candidate of the last choice, and how many others there were then.
        self._seen = _NOTHING
        self._members = 0.0

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the candidate that is due most, by the turns of all processes."""
        views = [candidate.elsewhere for candidate in candidates]
        weights = [weight_of(candidate) for candidate in candidates]
        if freshness_of(views) is Freshness.LOCAL:
            self._seen = _NOTHING
        else:
            weights = [weight / caution_of(view) for weight, view in zip(weights, views, strict=True)]
            self._charge(candidates, views, weights)
        return self._credits.take_turn(candidates, weights)

    def _charge(self, candidates: Sequence[Candidate], views: Sequence[Elsewhere], weights: Sequence[float]) -> None:
        starts = {candidate.id: count(view.starts) for candidate, view in zip(candidates, views, strict=True)}
        members = count(views[0].members)
        grown = [
            (candidate.id, weight, starts[candidate.id] - self._seen[candidate.id])
            for candidate, weight in zip(candidates, weights, strict=True)
            if candidate.id in self._seen
        ]
        # Somebody came or left: what changed by that was not started since.
        steady = members == self._members and all(growth >= 0.0 for _, _, growth in grown)
        self._seen, self._members = starts, members
        if steady and any(growth for _, _, growth in grown):
            part = 1.0 / (members + 1.0)
            self._credits.charge([(deployment, weight, growth * part) for deployment, weight, growth in grown], bound=_BOUND)
