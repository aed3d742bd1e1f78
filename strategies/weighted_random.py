"""Weighted random: a draw by weight, independent of everything before.

The simplest strategy that needs no agreement between replicas: any number of them together distribute by weight as well as
one does. It ignores how full a deployment is. LiteLLM calls it ``simple-shuffle``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from strategies.base import C, Call, Promise
from strategies.measures import draw
from strategies.registry import register


@register("weighted-random", aliases=("simple-shuffle",))
class WeightedRandom:
    """Each candidate with a probability in proportion to its weight."""

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.FAIR, Promise.PROPORTIONAL})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """It has none."""

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return a random candidate."""
        return draw(candidates, self._rng)
