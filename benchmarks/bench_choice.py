"""CPU time of one choice, in microseconds, of every built-in strategy over 2, 20 and 100 deployments."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import strategies
from strategies.base import NOWHERE, Call, Elsewhere

SIZES = (2, 20, 100)
# Enough for the clock's resolution, few enough for all of it to end within seconds; the best of the rounds counts, because
# whatever else the machine does only ever adds.
CHOICES = 2_000
ROUNDS = 5


@dataclass(slots=True, kw_only=True)
class Deployment:
    """A candidate with plain attributes, the cheapest that the contract allows."""

    id: str
    position: int
    weight: float
    sessions: int
    max_sessions: int | None
    ready_s: float | None
    first_audio_s: float | None
    elsewhere: Elsewhere
    minute_starts: int
    minute_tokens: int
    headroom: float | None


def fleet(size: int) -> list[Deployment]:
    """Return ``size`` deployments of different weight, load and speed; the same ones every time."""
    rng = random.Random(size)
    return [
        Deployment(
            id=f"deployment-{position}",
            position=position,
            weight=rng.choice((0.5, 1.0, 2.0)),
            sessions=rng.randrange(50),
            max_sessions=100,
            ready_s=rng.uniform(0.1, 0.5),
            first_audio_s=rng.uniform(0.3, 0.9),
            elsewhere=NOWHERE,
            minute_starts=rng.randrange(20),
            minute_tokens=rng.randrange(50_000),
            headroom=rng.random(),
        )
        for position in range(size)
    ]


def measure(name: str, size: int) -> float:
    """Return microseconds of CPU time of one choice of the strategy ``name`` among ``size`` deployments."""
    cls = strategies.get(name)
    strategy = cls(strategies.options_of(cls)(), rng=random.Random(0))
    candidates = fleet(size)
    calls = [Call(group="voice", principal=f"key-{number}") for number in range(CHOICES)]
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for call in calls:
            strategy.choose(candidates, call)
        best = min(best, time.process_time() - started)
    return best / CHOICES * 1e6


def main() -> None:
    """Print a table: a row a strategy, a column a size."""
    print(f"{'µs of CPU a choice':24}" + "".join(f"{size:>8}" for size in SIZES))
    for name in strategies.known_names():
        print(f"{name:24}" + "".join(f"{measure(name, size):8.1f}" for size in SIZES), flush=True)


if __name__ == "__main__":
    main()
