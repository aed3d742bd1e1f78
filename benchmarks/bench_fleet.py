"""How evenly the processes of a fleet fill their deployments: excess of the fullest one over its share by weight, in percent.

A simulation by events, without a network and without waiting: the strategies, the picture and the board are the product's, only
what would be between them is missing. Each process has its own counts, hears of the others at its own moments, one beat an
interval, and everything between two beats is what it does not know. Sessions arrive at random (Poisson) and last lognormal times,
90 s in the median and 180 s on average. Nothing is measured in time, so that the same seed prints the same figures everywhere.

    python -m benchmarks fleet [--seed N] [--quick]

Two columns are controls. ``own + others`` compares all candidates by its own live count and the others' last picture, and
nothing more; ``stale global`` compares what all have published, its own share included, as a counter that is read back from a
shared store would. ``p2c`` sees the fleet, ``least-connections`` its own process alone.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import strategies
from router.fleet.board import Board
from router.fleet.picture import Picture, Vector, vector
from strategies.base import Call, Elsewhere, Strategy

SEED: Final = 20
CALL: Final = Call(group="voice")
#: The controls, beside names of the product.
LIVE: Final = "own + others"
STALE: Final = "stale global"
SUBJECTS: Final = ("shared-least-connections", "shared-round-robin", "p2c", "least-connections", LIVE, STALE)
#: Parameters of the logarithm of a session's length in seconds: the median is e^MU.
SIGMA: Final = math.sqrt(2 * math.log(2))
MU: Final = math.log(90.0)
MEAN_S: Final = math.exp(MU + SIGMA**2 / 2)
#: Share of the arrivals that one process gets; the others divide the rest evenly.
SKEW: Final = 0.7


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A deployment as one process sees it."""

    id: str
    position: int
    weight: float
    picture: Picture
    sessions: int = 0
    starts: int = 0
    #: Its own sessions as the last picture has them.
    published: int = 0
    max_sessions: int | None = None
    ready_s: float | None = None
    first_audio_s: float | None = None
    minute_starts: int = 0
    minute_tokens: int = 0
    headroom: float | None = None

    @property
    def elsewhere(self) -> Elsewhere:
        """What the others hold of it, by the product's own picture."""
        return self.picture.of(self.id)


class Control:
    """The lowest of the fleet's counts by weight, ties at random: the candidates' own live ones, or as they were published."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self._live = name == LIVE
        self._rng = rng

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """Return one of the candidates with the fewest sessions by weight, as far as it knows."""
        loads = [((one.sessions if self._live else one.published) + one.elsewhere.sessions) / one.weight for one in candidates]
        return self._rng.choice([one for one, load in zip(candidates, loads, strict=True) if load == min(loads)])


class Chooser:
    """A strategy of the product."""

    def __init__(self, name: str, rng: random.Random) -> None:
        cls = strategies.get(name)
        self._strategy: Strategy = cls(strategies.options_of(cls)(), rng=rng)

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """Return what it chooses."""
        return self._strategy.choose(candidates, CALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One simulation.

    Attributes:
        replicas: processes.
        weights: one deployment each.
        interval_s: seconds between two beats.
        live: sessions that are open at a time, on average, in all processes together.
        skewed: one process gets ``SKEW`` of the arrivals; else all the same.
        delay_s: seconds by which each picture comes late. Without it a picture is as old as its beat.
        lost_s: nothing is heard any more in the last so many seconds.
        trusted: a picture counts as fresh however old it is; else by the product's rules.
        told: processes hear of each other at all.
        run_s: seconds that are simulated, the last ``watched_s`` of which are looked at.
        watched_s: as above; one look a second.
        burst: sessions that arrive at once at the end, within one interval.
        burst_through_one: all of them at one process; else at each in turn.
    """

    replicas: int = 4
    weights: tuple[float, ...] = (1.0,) * 6
    interval_s: float = 1.0
    live: int = 1200
    skewed: bool = True
    delay_s: float = 0.0
    lost_s: float = 0.0
    trusted: bool = False
    told: bool = True
    run_s: float = 120.0
    watched_s: float = 60.0
    burst: int = 0
    burst_through_one: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Excess of the fullest deployment over its share by weight, in percent of that share.

    Attributes:
        mean: over the looks of the watched time.
        worst: the highest of them.
        burst: after the burst; NaN without one.
    """

    mean: float
    worst: float
    burst: float


class Process:
    """One process: its counts, its strategy, its picture."""

    def __init__(self, number: int, subject: str, setting: Setting, world: World, seed: str) -> None:
        self.name = f"process-{number}"
        # A clock that stands still is what makes a picture fresh for ever.
        self.picture = Picture(world.stopped if setting.trusted else world.clock)
        self.candidates = [
            Candidate(id=f"d{position}", position=position, weight=weight, picture=self.picture)
            for position, weight in enumerate(setting.weights)
        ]
        rng = random.Random(f"{seed} {number}")
        self._chooser = Control(subject, rng) if subject in (LIVE, STALE) else Chooser(subject, rng)

    def choose(self) -> Candidate:
        """Open a session; return where."""
        choice = self._chooser.choose(self.candidates)
        choice.sessions += 1
        choice.starts += 1
        return choice

    def share(self) -> dict[str, Vector]:
        """Return what it publishes."""
        return {f"d:{one.id}": vector(sessions=one.sessions, starts=one.starts) for one in self.candidates}


@dataclass(slots=True)
class World:
    """The time of a simulation."""

    now_s: float = 0.0

    def clock(self) -> float:
        """Seconds."""
        return self.now_s

    def stopped(self) -> float:
        """A clock that stands still."""
        return 0.0


# What a beat hears: the others' sum, how many they are, when it was asked for, and this process's own sessions then.
News = tuple[Mapping[str, Vector], int, float, list[int]]


@dataclass(order=True, slots=True)
class Event:
    """Something that happens; ``number`` decides between equal times."""

    at_s: float
    number: int
    kind: str = field(compare=False)
    process: Process | None = field(compare=False, default=None)
    candidate: Candidate | None = field(compare=False, default=None)
    heard: News | None = field(compare=False, default=None)


class Simulation:
    """The events of a setting, in order."""

    def __init__(self, subject: str, setting: Setting, seed: int) -> None:
        self._setting = setting
        self._world = World()
        self._board = Board()
        # The same arrivals and lengths for every subject of a setting; what a strategy draws is its own.
        self._rng = random.Random(f"arrivals {seed} {setting}")
        self._processes = [
            Process(number, subject, setting, self._world, f"{seed} {subject}") for number in range(setting.replicas)
        ]
        others = max(1, setting.replicas - 1)
        self._shares = [SKEW, *[(1 - SKEW) / others] * (setting.replicas - 1)] if setting.skewed else [1.0] * setting.replicas
        self._events: list[Event] = []
        self._numbers = itertools.count()

    def run(self) -> Outcome:
        """Simulate it."""
        self._open_the_first()
        if self._setting.told:
            for process in self._processes:
                self._plan(self._rng.random() * self._setting.interval_s, "beat", process=process)
        self._plan(self._rng.expovariate(self._setting.live / MEAN_S), "arrival")
        looks: list[float] = []
        for look_s in range(int(self._setting.run_s - self._setting.watched_s), int(self._setting.run_s) + 1):
            self._advance(float(look_s))
            looks.append(self._excess())
        return Outcome(mean=statistics.fmean(looks), worst=max(looks), burst=self._burst())

    def _open_the_first(self) -> None:
        """Begin with the sessions of a long time before: by weight, each with what is left of its length."""
        total = sum(self._setting.weights)
        for process, share in zip(self._processes, self._shares, strict=True):
            for candidate in process.candidates:
                candidate.sessions = round(self._setting.live * share / sum(self._shares) * candidate.weight / total)
                candidate.starts = candidate.sessions
                for _ in range(candidate.sessions):
                    # One that is found open is longer than most, and somewhere within its length.
                    length_s = self._rng.lognormvariate(MU + SIGMA**2, SIGMA)
                    self._plan(self._rng.random() * length_s, "end", candidate=candidate)

    def _plan(
        self,
        at_s: float,
        kind: str,
        *,
        process: Process | None = None,
        candidate: Candidate | None = None,
        heard: News | None = None,
    ) -> None:
        event = Event(at_s, next(self._numbers), kind, process=process, candidate=candidate, heard=heard)
        heapq.heappush(self._events, event)

    def _advance(self, until_s: float) -> None:
        while self._events and self._events[0].at_s <= until_s:
            event = heapq.heappop(self._events)
            self._world.now_s = event.at_s
            match event:
                case Event(kind="end", candidate=Candidate() as candidate):
                    candidate.sessions -= 1
                case Event(kind="beat", process=Process() as process):
                    self._beat(process)
                case Event(kind="heard", process=Process() as process, heard=(totals, members, asked_at, published)):
                    process.picture.take(totals, members=members, asked_at=0.0 if self._setting.trusted else asked_at)
                    for candidate, sessions in zip(process.candidates, published, strict=True):
                        candidate.published = sessions
                case Event(kind="arrival"):
                    self._open(self._rng.choices(self._processes, self._shares)[0])
                    self._plan(event.at_s + self._rng.expovariate(self._setting.live / MEAN_S), "arrival")
        self._world.now_s = until_s

    def _open(self, process: Process) -> None:
        candidate = process.choose()
        self._plan(self._world.now_s + self._rng.lognormvariate(MU, SIGMA), "end", candidate=candidate)

    def _beat(self, process: Process) -> None:
        now_s = self._world.now_s
        if now_s > self._setting.run_s - self._setting.lost_s:
            return
        heard = self._board.beat(process.name, process.share(), {}, now_s=now_s)
        published = [candidate.sessions for candidate in process.candidates]
        news = (heard.totals, heard.members, now_s, published)
        self._plan(now_s + self._setting.delay_s, "heard", process=process, heard=news)
        self._plan(now_s + self._setting.interval_s, "beat", process=process)

    def _burst(self) -> float:
        """Let a burst arrive before the next beat; return the excess after it."""
        if not self._setting.burst:
            return math.nan
        for number in range(self._setting.burst):
            self._processes[0 if self._setting.burst_through_one else number % len(self._processes)].choose()
        return self._excess()

    def _excess(self) -> float:
        held = [
            sum(each.candidates[position].sessions for each in self._processes) for position in range(len(self._setting.weights))
        ]
        weights = self._setting.weights
        due = sum(held) / sum(weights)
        fullest = max(sessions / weight for sessions, weight in zip(held, weights, strict=True))
        return 100 * fullest / due - 100


def simulate(subject: str, setting: Setting, *, seed: int = SEED) -> Outcome:
    """Run one simulation.

    Args:
        subject: a strategy's name, or ``LIVE`` or ``STALE``.
        setting: what is simulated.
        seed: of everything random in it.
    """
    return Simulation(subject, setting, seed).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fleet", description="How evenly a fleet fills its deployments.")
    parser.add_argument("--seed", type=int, default=SEED, help="of everything random (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a part of it, on a small fleet: to see that it works")
    options = parser.parse_args(arguments)
    print(f"excess of the fullest deployment over its share, fleet-wide, in percent; seed {options.seed}")
    live = 600 if options.quick else 6000
    _steady(options.seed, quick=options.quick)
    _bursts(options.seed, live=live)
    _ages(options.seed, live=live)
    return 0


def _head(title: str) -> None:
    print(f"\n{title}")
    _row("", SUBJECTS)


def _row(label: str, cells: Sequence[str]) -> None:
    aligned = (f"{cell:>{max(len(name), 13) + 2}}" for name, cell in zip(SUBJECTS, cells, strict=True))
    print(f"{label:36}{''.join(aligned)}", flush=True)


def _watch(label: str, setting: Setting, seed: int) -> None:
    outcomes = [simulate(subject, setting, seed=seed) for subject in SUBJECTS]
    _row(label, [f"{each.mean:.1f} ({each.worst:.1f})" for each in outcomes])


def _steady(seed: int, *, quick: bool) -> None:
    _head("1200 live, 70 % of the arrivals through one process: mean (worst)")
    equal, unequal = (1.0,) * 6, (3.0, 1.0, 3.0, 1.0)
    grid = [(4, 1.0)] if quick else [(2, 1.0), (4, 0.5), (4, 1.0), (4, 2.0), (8, 1.0)]
    for weights, (replicas, interval_s) in itertools.product((equal, unequal), grid):
        setting = Setting(replicas=replicas, weights=weights, interval_s=interval_s)
        _watch(f"{replicas} processes, {interval_s} s, {'6 equal' if weights is equal else '3:1:3:1'}", setting, seed)
    few = Setting(replicas=24, live=120, weights=(1.0,) * 4, skewed=False)
    _watch("24 processes of 5 sessions, 4 equal", few, seed)


def _bursts(seed: int, *, live: int) -> None:
    _head(f"{live} live, 4 processes, 6 deployments, 600 more in one interval: before → after")
    for label, through_one, weights in (
        ("through one process", True, (1.0,) * 6),
        ("through all", False, (1.0,) * 6),
        ("through one, weights 3:1:3:1", True, (3.0, 1.0, 3.0, 1.0)),
    ):
        setting = Setting(live=live, burst=600, burst_through_one=through_one, weights=weights, run_s=60, watched_s=20)
        outcomes = [simulate(subject, setting, seed=seed) for subject in SUBJECTS]
        _row(label, [f"{each.mean:.1f} → {each.burst:.1f}" for each in outcomes])


def _ages(seed: int, *, live: int) -> None:
    _head(f"{live} live, 4 processes, 6 deployments, by the age of the picture: mean (worst)")
    usual = Setting(live=live)
    long = Setting(live=live, run_s=360, watched_s=60, lost_s=300)
    _watch("of the last beat", usual, seed)
    _watch("2 s old when it comes", replace(usual, delay_s=2.0), seed)
    _watch("lost for 10 s", replace(usual, watched_s=10.0, lost_s=10.0), seed)
    _watch("lost for 10 s, still trusted", replace(usual, watched_s=10.0, lost_s=10.0, trusted=True), seed)
    _watch("lost for 300 s", long, seed)
    _watch("lost for 300 s, still trusted", replace(long, trusted=True), seed)
    _watch("own counts only", replace(usual, told=False), seed)


if __name__ == "__main__":
    raise SystemExit(main())
