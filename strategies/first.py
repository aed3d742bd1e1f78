"""First: fill the deployments in the order of the file.

The first one takes every session until it is at ``max_sessions``, ejected or cooling down; then the next one does. For paid
capacity that should be used up before anything else is touched. Without ``max_sessions`` the first deployment takes all,
and the others are a hot standby. Weights have no meaning here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from strategies.base import C, Call
from strategies.registry import register


@register("first")
class First:
    """The candidate that comes first in the configuration; the router leaves out those that are full."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """It has none."""

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        """Nothing is kept: the order is the file's."""

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the first of the file; the id decides between equal positions, whatever order the candidates come in."""
        return min(candidates, key=lambda candidate: (candidate.position, candidate.id))
