"""Least connections: the candidate with the fewest sessions per unit of weight. The default.

Voice sessions last minutes and differ in length by orders of magnitude, so that counting starts (round-robin) drifts away
from an even load and counting what is open does not. A dial under way counts as a session, hence a burst of arrivals spreads
before the first of them is ready. Ties are drawn by weight and not taken in order: many replicas, each of which knows only
its own sessions, would otherwise all send their first sessions to the same deployment. LiteLLM calls it ``least-busy``.

Looks at this process's own sessions and nothing of other processes; ``shared-least-connections`` looks at all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from strategies.base import C, Call, Promise
from strategies.measures import least, load_of
from strategies.registry import register


@register("least-connections", aliases=("least-busy",))
class LeastConnections:
    """The lowest sessions ÷ weight, ties at random by weight."""

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.FAIR, Promise.PROPORTIONAL})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """It has none."""

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the least loaded candidate."""
        return least(candidates, [load_of(candidate) for candidate in candidates], self._rng)
