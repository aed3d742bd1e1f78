"""Why a session went where it went: the last choices of a process, kept as references and put into words on demand. Pure.

Every choice of every session is noted, on the path of its set-up, so a note is a handful of references and numbers: what a
candidate held at that moment is read, and no text is made. Who asks for it later pays for the words.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

#: Choices that are remembered; those of the last minutes of a busy process.
REMEMBERED: Final = 500
#: Of one choice, candidates and deployments passed over that are remembered, each.
MOST_NAMED: Final = 64

# Reasons that are the session's own; the others are words of ``Deployment.refusal``.
TRIED: Final = ("tried in this pass", "")
LASTING: Final = ("failed in this session for a reason that does not pass", "")
FAILED_BEFORE: Final = ("failed in this session, others come first", "")

# Why nothing, or what, was chosen where no strategy was asked.
ONLY_ONE: Final = "only one eligible"
FAIL_OPEN: Final = "fail open"
NOTHING: Final = "nothing eligible"
NO_DIALS_LEFT: Final = "max_attempts reached"
NO_BUDGET: Final = "retry budget used up"


class Target(Protocol):
    """What is remembered of a deployment."""

    @property
    def id(self) -> str:
        """Stable across reloads."""

    @property
    def weight(self) -> float:
        """As it stands."""

    sessions: int


class Decision(NamedTuple):
    """One choice.

    Attributes:
        at: a reading of the process's clock.
        session: for whom.
        group: where the session started.
        in_group: whose deployments were looked at last: that of the chosen one; empty when nothing was.
        order: of the chosen one; ``None`` when nothing was.
        number: of the pass, from 0.
        attempt: which dial of the session this is about, from 1.
        candidates: those the strategy could take, with sessions and weight at that moment.
        passed_over: those looked at before and among them that could not be taken, with the reason in two parts.
        chosen: ``None``: nothing.
        why: the name of the strategy, or one of the words above.
        by_strategy: ``why`` is a strategy's name.
        more: candidates and passed over beyond ``MOST_NAMED``, which are not here.
    """

    at: float
    session: str
    group: str
    in_group: str
    order: int | None
    number: int
    attempt: int
    candidates: Sequence[tuple[Target, int, float]]
    passed_over: Sequence[tuple[Target, tuple[str, str]]]
    chosen: Target | None
    why: str
    by_strategy: bool
    more: int


class Decisions:
    """The last choices, newest last.

    Args:
        remembered: how many.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._ring: deque[Decision] = deque(maxlen=remembered)

    def __len__(self) -> int:
        return len(self._ring)

    def note(
        self,
        *,
        at: float,
        session: str,
        group: str,
        number: int,
        attempt: int,
        candidates: Sequence[Target],
        passed_over: Sequence[tuple[Target, tuple[str, str]]],
        chosen: Target | None,
        why: str,
        in_group: str = "",
        order: int | None = None,
        by_strategy: bool = False,
    ) -> None:
        """Remember a choice; the arguments are those of ``Decision``."""
        more = max(0, len(candidates) - MOST_NAMED) + max(0, len(passed_over) - MOST_NAMED)
        self._ring.append(
            Decision(
                at,
                session,
                group,
                in_group,
                order,
                number,
                attempt,
                [(item, item.sessions, item.weight) for item in candidates[:MOST_NAMED]],
                passed_over[:MOST_NAMED],
                chosen,
                why,
                by_strategy,
                more,
            )
        )

    def newest_first(self) -> Iterator[Decision]:
        """Every one that is remembered."""
        return reversed(self._ring)


def select(
    decisions: Iterable[Decision], *, group: str | None = None, deployment: str | None = None, session: str | None = None
) -> Iterator[Decision]:
    """Yield those that are about a group, a deployment (chosen, candidate or passed over), a session."""
    for decision in decisions:
        if session is not None and decision.session != session:
            continue
        if group is not None and group not in (decision.group, decision.in_group):
            continue
        if deployment is not None and not _names(decision, deployment):
            continue
        yield decision


def _names(decision: Decision, id: str) -> bool:
    if decision.chosen is not None and decision.chosen.id == id:
        return True
    return any(item.id == id for item, *_ in decision.candidates) or any(item.id == id for item, _ in decision.passed_over)


def described(decision: Decision, *, epoch_s: float) -> dict[str, Any]:
    """Return a choice as the admin API tells it.

    Args:
        decision: the choice.
        epoch_s: epoch seconds at the clock's zero.
    """
    return {
        "at": epoch_s + decision.at,
        "session": decision.session,
        "group": decision.group,
        "in_group": decision.in_group or None,
        "order": decision.order,
        "pass": decision.number,
        "attempt": decision.attempt,
        "candidates": [{"id": item.id, "sessions": sessions, "weight": weight} for item, sessions, weight in decision.candidates],
        "passed_over": [{"id": item.id, "reason": worded(*reason)} for item, reason in decision.passed_over],
        "chosen": None if decision.chosen is None else decision.chosen.id,
        "why": f"strategy {decision.why}" if decision.by_strategy else decision.why,
        "left_out": decision.more,
    }


def worded(word: str, reason: str) -> str:
    """Put the two parts of a reason together."""
    return f"{word}: {reason}" if reason else word
