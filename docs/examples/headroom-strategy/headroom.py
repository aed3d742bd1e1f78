"""A strategy for Realtime Router that lives outside of it: the deployment with the most free places.

Where deployments are bought in very different sizes, "fewest sessions" and "most room" differ: one of 100 places with
40 taken has 60 free, one of 20 with 5 taken has 15. This strategy takes the first one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from strategies.base import C, Call, Candidate


class MostHeadroom:
    """The candidate with the most free places, ties at random."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """Options of ``most-headroom``.

        Attributes:
            places: what a deployment without ``max_sessions`` is taken to hold.
        """

        places: int = 100

        def __post_init__(self) -> None:
            if self.places < 1:
                raise ValueError(f"places: found {self.places}, expected 1 or more")

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._places = options.places
        self._rng = rng

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return one of ``candidates``, which is never empty."""
        most = max(self._free(candidate) for candidate in candidates)
        return self._rng.choice([candidate for candidate in candidates if self._free(candidate) == most])

    def _free(self, candidate: Candidate) -> int:
        places = self._places if candidate.max_sessions is None else candidate.max_sessions
        return places - candidate.sessions
