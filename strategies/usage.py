"""Usage: the candidate with the most headroom below its limits a minute.

Headroom is the share that is left of the tightest of a deployment's limits: its rpm, its tpm, what the provider reported. It
is the whole fleet's where processes tell each other, and so are the starts and tokens of the last minute. Of several
candidates with the same headroom (within 2 %), and of those without any limit, the one with the fewest tokens per unit of
weight is taken, then the fewest starts, then the fewest sessions in the fleet; what is still equal is drawn by weight.

Tokens are reported at the end of a response, and a session that has just begun has reported none: in a burst the numbers stand
still, and everything would go to the deployment that looked best before it. So what is not reported yet is added: of sessions
that started within the minute half is taken to be in the numbers, all of them are missing where nothing was reported, and a
missing session is expected to use what the candidates' sessions use on average. Headroom shrinks in the proportion in which a
deployment's tokens grow by that; where it has none, by what a session costs the others, per unit of weight. In steady traffic
this changes little, and nothing about the order. Sessions are those of the fleet while their picture is at most 10 s old.
LiteLLM's names for this strategy: ``usage-based-routing``, ``usage-based-routing-v2``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from strategies.base import C, Call, Candidate, Promise
from strategies.measures import MAX_COUNT, count, draw, fleet_sessions, weight_of
from strategies.registry import register

# Headroom is compared in so many steps: finer differences are noise of the moment at which the minute is cut.
_STEPS: Final = 50

# What is compared, in this order, the lowest best: used steps of the limit, tokens, starts and sessions, each per unit of weight.
_Rank = tuple[int, float, float, float]


@register("usage", aliases=("usage-based-routing", "usage-based-routing-v2"))
class Usage:
    """The most headroom; without limits, the fewest tokens and starts of the last minute by weight."""

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.FAIR, Promise.PROPORTIONAL})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """It has none."""

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the candidate with the most headroom that is to be expected."""
        if len(candidates) == 1:
            return candidates[0]
        ranks = _ranks(candidates)
        best = min(ranks)
        return draw([candidate for candidate, rank in zip(candidates, ranks, strict=True) if rank == best], self._rng)


def _ranks(candidates: Sequence[Candidate]) -> list[_Rank]:
    weights = [weight_of(candidate) for candidate in candidates]
    held = fleet_sessions(candidates)
    starts = [count(candidate.minute_starts) for candidate in candidates]
    tokens = [math.floor(count(candidate.minute_tokens)) for candidate in candidates]
    used = [_used(candidate.headroom) for candidate in candidates]
    reported = [_reported(*numbers) for numbers in zip(held, starts, tokens, strict=True)]
    missing = [max(sessions - known, 0.0) for sessions, known in zip(held, reported, strict=True)]
    # Of one session: tokens a minute, and the share of a limit that they are, of a deployment of weight 1.
    known = sum(reported)
    tokens_each = sum(tokens) / known if known else 0.0
    used_each = sum(share * weight for share, weight in zip(used, weights, strict=True)) / known if known else 0.0
    ranks: list[_Rank] = []
    for index, weight in enumerate(weights):
        expected = tokens[index] + tokens_each * missing[index]
        grown = used[index] * (expected / tokens[index]) if tokens[index] else used[index] + used_each * missing[index] / weight
        ranks.append(
            (
                # Above 1 is more than there is, and still comparable.
                int(min(grown, MAX_COUNT) * _STEPS),
                expected / weight,
                starts[index] / weight,
                # A half more, as in ``shared_least_connections``: idle ones come out by weight as well.
                (held[index] + 0.5) / weight,
            )
        )
    return ranks


def _reported(sessions: float, starts: float, tokens: float) -> float:
    """Return how many sessions the tokens of the last minute are of, each counted by its part of the minute."""
    if not tokens:
        return 0.0
    # Of those that started within it half, on average, when they came evenly; where more have started than are open, those that
    # have ended were in it as well. At least one, since somebody reported.
    return max(sessions - starts / 2, starts / 2, 1.0)


def _used(headroom: float | None) -> float:
    """Return the share of a limit that is used, 0 to 1; all of it where the headroom is no number."""
    if headroom is None:
        return 0.0
    return 1.0 - min(headroom, 1.0) if headroom > 0.0 else 1.0
