"""Fastest: the lowest expected wait, from measured times and load together.

cost = latency × (sessions + 1) ÷ weight, compared between two candidates drawn by weight, as in Finagle's and tower's
peak-EWMA balancers. Latency is the time to ready plus the time to first audio, both kept by the deployment as averages that
jump up at once and fade while it is idle (``router/load.py``). Multiplying by the load keeps the fastest deployment from
being buried: one that is half as fast gets half as much, not nothing.

Nothing is learned of a deployment that gets no session. Three things see to it that every one is tried:
an unmeasured time counts as the best one measured among the candidates (optimism under uncertainty; the load term bounds
what that costs), a share ``exploration`` of the choices is a plain draw by weight, and the averages fade towards zero while
a deployment is idle, so that one which was slow is measured again. LiteLLM's name for it: ``latency-based-routing``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from strategies.base import C, Call, Candidate, Promise
from strategies.measures import draw, draw_two, seconds, weight_of
from strategies.registry import register

# Below this differences are noise of the network, and an average that faded to nothing says nothing: load decides.
_LEAST_LATENCY_S = 1e-3


def _ready(candidate: Candidate) -> float | None:
    return seconds(candidate.ready_s)


def _first_audio(candidate: Candidate) -> float | None:
    return seconds(candidate.first_audio_s)


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
        return first if self._cost(first, candidates) <= self._cost(second, candidates) else second

    def _cost(self, candidate: Candidate, candidates: Sequence[Candidate]) -> float:
        latency_s = sum(_time(part, candidate, candidates) for part in self._parts)
        return max(latency_s, _LEAST_LATENCY_S) * (max(candidate.sessions, 0) + 1) / weight_of(candidate)


def _time(part: _Part, candidate: Candidate, candidates: Sequence[Candidate]) -> float:
    """One part of the latency in seconds; what was not measured is taken to be as good as the best of all."""
    measured = part(candidate)
    if measured is not None:
        return measured
    return min((time for time in map(part, candidates) if time is not None), default=0.0)
