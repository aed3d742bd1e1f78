"""For authors of strategies: a deployment to choose, and a check that a class keeps the contract. No test framework needed.

In a test of a strategy of one's own::

    verify(MostHeadroom)
    verify(MostHeadroom, options=MostHeadroom.Options(places=5))

An ``AssertionError`` says which rule it broke.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strategies.base import NOWHERE, Call, Elsewhere, Freshness, Strategy, options_of
from strategies.registry import check


@dataclass(slots=True, kw_only=True)
class FakeCandidate:
    """A deployment that can be set at will; ``strategies.base.Candidate`` tells what the fields mean."""

    id: str
    position: int = 0
    weight: float = 1.0
    sessions: int = 0
    max_sessions: int | None = None
    ready_s: float | None = None
    first_audio_s: float | None = None
    elsewhere: Elsewhere = NOWHERE
    minute_starts: int = 0
    minute_tokens: int = 0
    headroom: float | None = None


def fleet(*weights: float) -> list[FakeCandidate]:
    """Return idle candidates ``d0``, ``d1``, … with these weights, in the order of a file."""
    return [FakeCandidate(id=f"d{index}", position=index, weight=weight) for index, weight in enumerate(weights)]


def verify(strategy: type[Any], *, options: object = None, seed: int = 0, rounds: int = 300) -> None:
    """Drive a strategy through random situations, ugly ones among them.

    Args:
        strategy: the class.
        options: an instance of its ``Options``; ``None`` takes the defaults.
        seed: of the situations and of the strategy's generator.
        rounds: number of choices.

    Raises:
        InvalidStrategy: the class does not have the form of a strategy.
        AssertionError: ``choose`` raised, returned something that is not one of the candidates, changed the sequence it
            was given, or chose differently when the same seed was used again.
    """
    checked = check(strategy.__name__, strategy)
    chosen = _play(checked, options, seed, rounds)
    assert chosen == _play(checked, options, seed, rounds), (
        f"{strategy.__qualname__}: the same seed gave other choices; all randomness has to come from the rng it is given"
    )


def _play(cls: type[Strategy], options: object, seed: int, rounds: int) -> list[str]:
    """Return the ids chosen in a reproducible series of situations."""
    world = random.Random(f"world {seed}")
    strategy = cls(options_of(cls)() if options is None else options, rng=random.Random(f"strategy {seed}"))
    known = [_random_candidate(world, index) for index in range(20)]
    chosen: list[str] = []
    for number in range(rounds):
        if number % 10 == 0:
            # A beat was heard, a process came or left, the picture aged: all candidates see it at once.
            freshness = world.choice(list(Freshness))
            members = world.choice((0, 1, 7, 1000))
            for candidate in known:
                candidate.elsewhere = _random_view(world, freshness, members)
        candidates: Sequence[FakeCandidate] = world.sample(known, world.randint(1, len(known)))
        before = copy.copy(candidates)
        call = Call(group="group", principal=f"key{world.randrange(5)}", headers={"x-room": str(world.randrange(9))})
        try:
            choice = strategy.choose(candidates, call)
        except Exception as exc:
            raise AssertionError(f"{cls.__qualname__}: choice {number} of {len(candidates)} candidates raised {exc!r}") from exc
        assert any(choice is candidate for candidate in candidates), (
            f"{cls.__qualname__}: choice {number} returned {choice!r}, expected one of the candidates it was given"
        )
        assert candidates == before, f"{cls.__qualname__}: choice {number} changed the sequence of candidates"
        choice.sessions += 1
        choice.minute_starts += 1
        chosen.append(choice.id)
        if world.random() < 0.5:
            leaver = world.choice(known)
            leaver.sessions = max(0, leaver.sessions - 1)
    return chosen


def _random_candidate(world: random.Random, index: int) -> FakeCandidate:
    times = (None, 0.0, 0.2, 5.0, float("inf"), float("nan"))
    return FakeCandidate(
        id=f"d{index}",
        position=index,
        weight=10.0 ** world.uniform(-6, 6),
        sessions=world.choice((0, 0, 1, 50, 100_000)),
        max_sessions=world.choice((None, 200_000)),
        ready_s=world.choice(times),
        first_audio_s=world.choice(times),
        minute_starts=world.choice((0, 3, 10**6)),
        minute_tokens=world.choice((0, 900, 10**12)),
        headroom=world.choice((None, None, 0.0, 0.4, 1.0, float("nan"))),
    )


def _random_view(world: random.Random, freshness: Freshness, members: int) -> Elsewhere:
    if freshness is Freshness.LOCAL:
        return NOWHERE
    times = (None, 0.0, 0.3, float("inf"), float("nan"))
    return Elsewhere(
        freshness=freshness,
        members=members,
        sessions=world.choice((0, 0, 40, 10**9)),
        starts=world.choice((0, 500, 10**9, 2**50)),
        ejected=world.choice((0, 0, 1, members)),
        ready_s=world.choice(times),
        first_audio_s=world.choice(times),
    )
