"""Credits: what each candidate is due minus what it got, in turns. The state of ``round-robin`` and ``shared-round-robin``."""

from __future__ import annotations

import random
from collections.abc import Sequence

from strategies.base import C

# Deployments that left are remembered until this many others are known besides the present candidates: they may only be
# ejected, and one that returns should go on where it was.
_REMEMBERED = 256
# Newcomers start within this of zero. It breaks ties the same way for as long as the instance lives, so that replicas
# which start together do not all begin with the first deployment of the file; and it outweighs rounding errors.
_TIE_BREAK = 1e-6


class Credits:
    """Smooth weighted turns over whatever set of candidates comes; ``round_robin`` tells why it adds up.

    Args:
        rng: breaks the ties between newcomers.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        # Deployment id → credit, around zero, where newcomers start. Ordered by last appearance, the oldest first.
        self._credits: dict[str, float] = {}

    def take_turn(self, candidates: Sequence[C], weights: Sequence[float]) -> C:
        """Credit every candidate with its share of one turn, and return and charge the one that is due most.

        Args:
            candidates: at least one.
            weights: theirs, in the same order, all positive and finite.
        """
        total = sum(weights)
        best = candidates[0]
        best_credit = float("-inf")
        for candidate, weight in zip(candidates, weights, strict=True):
            credit = self._take(candidate.id) + weight / total
            self._credits[candidate.id] = credit
            if credit > best_credit:
                best, best_credit = candidate, credit
        self._credits[best.id] -= 1.0
        self._forget(len(self._credits) - len(candidates) - _REMEMBERED)
        return best

    def charge(self, turns: Sequence[tuple[str, float, float]], *, bound: float) -> None:
        """Take account of turns that somebody else gave.

        Args:
            turns: deployment's id, its weight, and the turns that it was given. Each is charged what it was given and credited
                with its share, by weight, of all of them together.
            bound: a credit does not leave ± this many turns by that.
        """
        weight_of_all = sum(weight for _, weight, _ in turns)
        given = sum(got for _, _, got in turns)
        for deployment, weight, got in turns:
            credit = self._take(deployment)
            change = given * (weight / weight_of_all) - got
            # What its own turns made of it, with very many candidates, is no business of the bound.
            self._credits[deployment] = min(max(credit + change, min(credit, -bound)), max(credit, bound))

    def _take(self, deployment: str) -> float:
        """Remove and return a credit, so that putting it back makes it the most recent."""
        credit = self._credits.pop(deployment, None)
        return self._rng.random() * _TIE_BREAK if credit is None else credit

    def _forget(self, surplus: int) -> None:
        """Drop the credits that were not seen for longest.

        The balance they take along shifts the others against the zero at which newcomers start, by a turn or so and not for
        long: who starts too high is charged the sooner.
        """
        for deployment in [deployment for deployment, _ in zip(self._credits, range(surplus), strict=False)]:
            del self._credits[deployment]
