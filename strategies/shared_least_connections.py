"""Shared least connections: the candidate with the fewest sessions of the whole fleet per unit of weight.

What this process holds it knows at once, what the others hold it knows as they last said it. By the age of that:

    at most 2 s    all candidates are compared
    at most 10 s   the better one of two that are drawn by weight: the others act on numbers as old as these, and all of them
                   would meet on the same deployment
    older, none    this process's own sessions alone, which is least connections

A picture that is trusted for too long is worse than none: it shows an idle deployment for as long as it is believed in.

All processes see the same gap at each beat, and if each of them filled it, it would be filled as many times as there are
processes: the deployment that was lowest is the highest at the next beat, by more than it was low. So a session that this
process has started since the picture came stands for one of each process: the others, who look at the same numbers, will have
done the same. A gap is then filled once by all together, and a burst through one process alone is spread as evenly as before.

The score is (sessions + ½) ÷ weight, which fills by Webster's method: it comes out by weight without favour for heavy or light
ones, also when every process has only a few sessions, and an idle deployment has a score that a hint can raise. With plain
sessions ÷ weight the first session of each process would go to a light deployment as soon as to a heavy one, with one more than
the sessions always to the heaviest. Ties are drawn by weight.

An ejection in other processes is a hint and raises the score, up to four times when all have ejected it: the deployment then
keeps a quarter of its share from here, and this process ejects it on its own evidence or not at all. Without the hint it would
get more than ever: what others avoid looks idle.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final

from strategies.base import C, Call, Candidate, Elsewhere, Freshness, Promise
from strategies.measures import caution_of, count, draw_two, freshness_of, least, weight_of
from strategies.registry import register

_NOTHING: Final[Mapping[str, Elsewhere]] = MappingProxyType({})


@register("shared-least-connections", aliases=("redis-least-connections",))
class SharedLeastConnections:
    """The lowest (sessions in the fleet + ½) ÷ weight, ties at random by weight."""

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.FAIR, Promise.PROPORTIONAL})
    shared: ClassVar[bool] = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """It has none."""

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._rng = rng
        # What the candidates of the last choice showed, and the choices made since the picture came that this is of.
        self._seen: Mapping[str, Elsewhere] = _NOTHING
        self._since: dict[str, int] = {}

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the least loaded candidate, or the less loaded one of two while the picture of the others is ageing."""
        views = {candidate.id: candidate.elsewhere for candidate in candidates}
        if not self._is_the_same_picture(views):
            self._since = {}
        self._seen = views
        compared: Sequence[C] = candidates
        if freshness_of(views.values()) is Freshness.AGEING:
            compared = draw_two(candidates, self._rng)
        choice = least(compared, self._scores(compared), self._rng)
        self._since[choice.id] = self._since.get(choice.id, 0) + 1
        return choice

    def _is_the_same_picture(self, views: Mapping[str, Elsewhere]) -> bool:
        """Return whether nothing was heard since the last choice: a new picture has new objects, and so has one that aged."""
        for deployment, view in views.items():
            before = self._seen.get(deployment)
            if before is not None and view.freshness is not Freshness.LOCAL:
                aged = before.freshness is Freshness.FRESH and view.freshness is Freshness.AGEING
                return view is before or aged
        return False

    def _scores(self, candidates: Sequence[Candidate]) -> list[float]:
        views = [self._seen[candidate.id] for candidate in candidates]
        if freshness_of(views) is Freshness.LOCAL:
            return [(count(candidate.sessions) + 0.5) / weight_of(candidate) for candidate in candidates]
        scores = []
        for candidate, view in zip(candidates, views, strict=True):
            likewise = count(view.members) * self._since.get(candidate.id, 0)
            held = count(candidate.sessions) + count(view.sessions) + likewise
            scores.append((held + 0.5) / weight_of(candidate) * caution_of(view))
        return scores
