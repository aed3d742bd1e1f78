"""Why a session went where it went: what is remembered of a choice, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from router import decisions
from router.decisions import MOST_NAMED, Decisions, described, select, worded


@dataclass
class Target:
    """A deployment."""

    id: str
    sessions: int = 0
    weight: float = 1.0


def note(ring: Decisions, *candidates: Target, at: float = 1.0, chosen: Target | None = None, **facts: Any) -> None:
    """Remember a choice among candidates."""
    made: dict[str, Any] = {"session": "rs_1", "group": "g", "number": 0, "attempt": 1, "passed_over": (), "why": "first"}
    ring.note(at=at, candidates=candidates, chosen=chosen, **{**made, **facts})


def test_what_a_candidate_held_is_what_it_held_then() -> None:
    """Live state goes on; the note is of the moment of the choice, in epoch seconds."""
    ring, first, second = Decisions(), Target("a", 2, 0.5), Target("b")
    note(ring, first, second, chosen=second, in_group="g", order=1, by_strategy=True, at=5.0)
    first.sessions = second.sessions = 99
    (decision,) = ring.newest_first()
    assert described(decision, epoch_s=1000.0) == {
        "at": 1005.0,
        "session": "rs_1",
        "group": "g",
        "in_group": "g",
        "order": 1,
        "pass": 0,
        "attempt": 1,
        "candidates": [{"id": "a", "sessions": 2, "weight": 0.5}, {"id": "b", "sessions": 0, "weight": 1.0}],
        "passed_over": [],
        "chosen": "b",
        "why": "strategy first",
        "left_out": 0,
    }


def test_the_ring_is_bounded_and_the_newest_come_first() -> None:
    """The oldest go, and one choice among a thousand names a few of them and counts the rest."""
    ring = Decisions(3)
    for number in range(5):
        note(ring, at=float(number))
    assert len(ring) == 3 and [decision.at for decision in ring.newest_first()] == [4.0, 3.0, 2.0]
    many = [Target(str(number)) for number in range(MOST_NAMED + 10)]
    note(ring, *many, passed_over=[(target, decisions.TRIED) for target in many])
    told = described(next(ring.newest_first()), epoch_s=0.0)
    assert (len(told["candidates"]), len(told["passed_over"]), told["left_out"]) == (MOST_NAMED, MOST_NAMED, 20)


def test_what_it_is_about() -> None:
    """A deployment is found as chosen, as candidate and as passed over; a group as the session's and as the chosen one's."""
    ring, one, other, out = Decisions(), Target("one"), Target("other"), Target("out")
    note(ring, one, other, chosen=one, in_group="spare", passed_over=[(out, ("ejected", "timeout"))])
    note(ring, session="rs_2", group="h", why=decisions.NOTHING)

    def found(**about: str) -> list[str]:
        return [decision.session for decision in select(ring.newest_first(), **about)]

    assert found() == ["rs_2", "rs_1"]
    assert found(deployment="one") == found(deployment="other") == found(deployment="out") == found(group="spare") == ["rs_1"]
    assert found(session="rs_2") == found(group="h") == ["rs_2"]
    assert found(deployment="x") == found(group="g", session="rs_2") == []


def test_reasons_in_words() -> None:
    """A breaker's reason stands behind its state; the other reasons are one word, or the session's own."""
    assert worded("ejected", "timeout") == "ejected: timeout" and worded("full", "") == "full"
    assert worded(*decisions.TRIED) == "tried in this pass"
