"""Power of two choices: draw two by weight, take the better one.

Nearly as even as comparing all (the fullest of n is O(log log n) above the mean), and it does not herd: when several replicas
decide on numbers that are a moment old, comparing all sends every one of them to the same deployment, a random pair does not.
Hence it counts the sessions of the whole fleet as long as they are at most 10 s old, and this process's own without them.
The time to ready is this process's own measurement.
Source: M. Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 12 (2001); tower
``balance/p2c``; Envoy's ``LEAST_REQUEST``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from strategies.base import C, Call, Promise
from strategies.measures import draw_two, fleet_sessions, seconds, weight_of
from strategies.registry import register

# Two instant answers still differ by their load.
_LEAST_LATENCY_S = 1e-3


@register("p2c")
class PowerOfTwo:
    """The better one of two candidates drawn by weight."""

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.FAIR, Promise.PROPORTIONAL})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """Options of ``p2c``.

        Attributes:
            cost: what is compared. ``sessions``: (sessions + 1) ÷ weight. ``latency``: that times the time to ready, as in
                Finagle, so that a deployment twice as slow gets half; where one of the two was not measured yet,
                sessions alone decide.
        """

        cost: Literal["sessions", "latency"] = "sessions"

        def __post_init__(self) -> None:
            if self.cost not in ("sessions", "latency"):
                raise ValueError(f"cost: found {self.cost!r}, expected 'sessions' or 'latency'")

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._by_latency = options.cost == "latency"
        self._rng = rng

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the cheaper one of two; the first drawn, which is the likelier by weight, when they are equal."""
        first, second = draw_two(candidates, self._rng)
        first_sessions, second_sessions = fleet_sessions((first, second))
        # Load after taking one more session: idle candidates of different weight and latency stay comparable.
        first_cost = (first_sessions + 1) / weight_of(first)
        second_cost = (second_sessions + 1) / weight_of(second)
        first_s, second_s = seconds(first.ready_s), seconds(second.ready_s)
        if self._by_latency and first_s is not None and second_s is not None:
            first_cost *= max(first_s, _LEAST_LATENCY_S)
            second_cost *= max(second_s, _LEAST_LATENCY_S)
        return first if first_cost <= second_cost else second
