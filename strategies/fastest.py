"""Fastest: the lowest expected wait, from measured times and load together.

cost = latency × (sessions + 1) ÷ weight, compared between two candidates drawn by weight, as in Finagle's and tower's
peak-EWMA balancers. Latency is the time to ready plus the time to first audio, both kept by the deployment as averages that
jump up at once and fade while it is idle (``router/load.py``). Multiplying by the load keeps the fastest deployment from
being buried: one that is half as fast gets half as much, not nothing.

Nothing is learned of a deployment that gets no session. Three things see to it that every one is tried:
a time that nobody measured counts as the best one known among the candidates (optimism under uncertainty; the load term bounds
what that costs), a share ``exploration`` of the choices is a plain draw by weight, and the averages fade towards zero while
a deployment is idle, so that one which was slow is measured again. LiteLLM's name for it: ``latency-based-routing``.

Of other processes it uses, while that is at most 10 s old, their sessions, and their mean of a time that this process has not
measured itself. A time of its own comes first: the way from here to a deployment may be another one than theirs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from strategies.base import C, Call, Candidate, Promise
from strategies.measures import draw, draw_two, fleet_sessions, seconds, weight_of
from strategies.registry import register

# Below this differences are noise of the network, and an average that faded to nothing says nothing: load decides.
_LEAST_LATENCY_S = 1e-3


def _ready(candidate: Candidate) -> float | None:
    own = seconds(candidate.ready_s)
    return seconds(candidate.elsewhere.ready_s) if own is None else own


def _first_audio(candidate: Candidate) -> float | None:
    own = seconds(candidate.first_audio_s)
    return seconds(candidate.elsewhere.first_audio_s) if own is None else own


_Part = Callable[[Candidate], float | None]
# The times that add up to the latency, by the option ``measure``.
_PARTS: Mapping[str, tuple[_Part, ...]] = MappingProxyType(
    {"both": (_ready, _first_audio), "ready": (_ready,), "first_audio": (_first_audio,)}
)


@register("fastest", aliases=("latency-based-routing",))
class Fastest:
    """The cheaper one of two by latency and load, with a share of exploration."""

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.FAIR, Promise.PROPORTIONAL})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """Options of ``fastest``.

        Attributes:
            measure: which time counts: ``ready`` (dial to the first good event, once a session), ``first_audio``
                (end of speech to the first audio, every turn), or the sum of ``both``.
            exploration: share of the choices that ignore latency and go by weight, 0 to 1. With 0 a deployment that
                once was slow is tried again only when its average has faded.
        """

        measure: Literal["both", "ready", "first_audio"] = "both"
        exploration: float = 0.05

        def __post_init__(self) -> None:
            if self.measure not in _PARTS:
                raise ValueError(f"measure: found {self.measure!r}, expected 'both', 'ready' or 'first_audio'")
            if not 0.0 <= self.exploration <= 1.0:
                raise ValueError(f"exploration: found {self.exploration!r}, expected a number from 0 to 1")

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._parts = _PARTS[options.measure]
        self._exploration = options.exploration
        self._rng = rng

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the cheaper one of two, or now and then any."""
        if self._rng.random() < self._exploration:
            return draw(candidates, self._rng)
        first, second = draw_two(candidates, self._rng)
        first_cost = second_cost = 0.0
        for part in self._parts:
            first_s, second_s = _times(part, first, second, candidates)
            first_cost += first_s
            second_cost += second_s
        first_sessions, second_sessions = fleet_sessions((first, second))
        first_cost = max(first_cost, _LEAST_LATENCY_S) * (first_sessions + 1) / weight_of(first)
        second_cost = max(second_cost, _LEAST_LATENCY_S) * (second_sessions + 1) / weight_of(second)
        return first if first_cost <= second_cost else second


def _times(part: _Part, first: Candidate, second: Candidate, candidates: Sequence[Candidate]) -> tuple[float, float]:
    """One part of the latency of two, in seconds; what nobody measured is taken to be as good as the best of all."""
    first_s, second_s = part(first), part(second)
    if first_s is not None and second_s is not None:
        return first_s, second_s
    best = min((time for time in map(part, candidates) if time is not None), default=0.0)
    return best if first_s is None else first_s, best if second_s is None else second_s
