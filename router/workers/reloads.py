"""How all workers take a new generation of the configuration: each prepares it, and all put it in force, or none.

The parent reads the file, so that every worker checks the same text; a worker checks it in a thread beside its event loop, and
the parent, which others wait for, does no long work. What one worker refuses is in force nowhere. A worker that does not answer
is waited for no longer than ``PREPARE_S`` and told later what is in force; one that is forked later begins with it.

The file is looked at a few times a second instead of watched by the system: a watcher has a thread of its own, and the parent
must have none, because it forks (``parent``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from router import watch
from router.errors import ConfigError, Problem
from router.events import Observers, Reloaded
from router.generations import problem_of
from router.reload import Origin, history_of
from router.workers.channel import Message

#: Between two looks at the files.
LOOK_S: Final = 0.2
#: Longest wait for workers to check a configuration.
PREPARE_S: Final = 15.0
#: Longest wait for workers to say that they have put it in force, so that whoever is told so can rely on it.
COMMIT_S: Final = 2.0

W = TypeVar("W")


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """What a worker that is forked from now on has to begin with.

    Attributes:
        text: what the file held.
        generation: its number.
        secrets: what the files held that it names, see ``Loaded``. Those may have changed since, or be gone for a moment.
    """

    text: str
    generation: int
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(slots=True, kw_only=True, eq=False)
class _Reading(Generic[W]):
    """A configuration that the workers look at."""

    number: int
    text: str
    trigger: str
    deadline: float
    waiting: set[W]
    prepared: dict[W, Mapping[str, Any]] = field(default_factory=dict)
    refused: Mapping[str, Any] | None = None
    event: Reloaded | None = None  # only set once it is in force, and workers are about to say so


class Reloads(Generic[W]):
    """The parent's side: one reload after the other.

    Args:
        origin: what is in force at the start.
        workers: those that serve.
        send: tells a worker something.
        accepted: is given what the workers say of a generation that is in force from now on.
        tell: observers in the parent.
        clock: monotonic seconds.

    Attributes:
        newest: what is in force; ``None``: what was loaded at the start.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        workers: Callable[[], Collection[W]],
        send: Callable[[W, Message], None],
        accepted: Callable[[Mapping[str, Any]], None],
        tell: Observers,
        clock: Callable[[], float],
    ) -> None:
        source, loaded = origin.source, origin.loaded
        self.newest: Newest | None = None
        self.counts: dict[tuple[str, str], int] = {("success", "start"): 1}  # reloads, by result and trigger
        self._source = source
        self._workers = workers
        self._send = send
        self._on_accepted = accepted
        self._tell = tell
        self._clock = clock
        self._history = history_of(origin)
        self._watching = loaded.settings.server.watch
        self._files = source.files(loaded.files)
        self._seen: watch.Marks = {**watch.marks_of(loaded.files), **source.seen}
        self._looks: watch.Looks = ()  # so that the first look compares what the files hold
        self._settling_since: float | None = None  # only set while a file changes
        self._look_at = clock() + LOOK_S
        self._wanted: list[tuple[str, Callable[[Mapping[str, Any]], None] | None]] = []
        self._asking: list[Callable[[Mapping[str, Any]], None]] = []  # who waits for what is under way
        self._reading: _Reading[W] | None = None
        self._number = 0
        self._has: dict[W, int] = {}  # generation that a worker has, as far as it was told

    def describe(self) -> Mapping[str, Any]:
        """Return what is known of the generations, as the admin API shows it."""
        return self._history.describe()

    @property
    def generation(self) -> int:
        """Number of the one in force."""
        return self._history.generation

    def request(self, trigger: str, answer: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        """Have the configuration read again.

        Args:
            trigger: what wants it.
            answer: is given what ``describe`` says then.
        """
        self._wanted.append((trigger, answer))

    def due_at(self) -> float:
        """Return when ``step`` has something to do by itself."""
        if self._wanted and self._reading is None:
            return self._clock()
        return self._look_at if self._reading is None else min(self._look_at, self._reading.deadline)

    def step(self) -> None:
        """Go on, as far as it goes now."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._look(now)
        reading = self._reading
        if reading is not None and (not reading.waiting or now >= reading.deadline):
            self._decide(reading)
        if self._reading is None and self._wanted:
            self._begin()

    # --- workers ------------------------------------------------------------------------------------

    def forked(self, worker: W) -> None:
        """A worker begins with what is in force."""
        self._has[worker] = self.generation

    def serves(self, worker: W) -> None:
        """A worker can be told things; one that was forked before the last reload is told of it."""
        if self.newest is not None and self._has.get(worker, 0) < self.generation:
            self._send_newest(worker)

    def gone(self, worker: W) -> None:
        """A worker has ended."""
        self._has.pop(worker, None)
        if self._reading is not None:
            self._reading.waiting.discard(worker)
            self._reading.prepared.pop(worker, None)

    def heard(self, worker: W, number: int, data: Mapping[str, Any]) -> None:
        """A worker has looked at a configuration."""
        reading = self._reading
        if reading is None or reading.number != number or worker not in reading.waiting:
            return  # too late
        reading.waiting.discard(worker)
        if reading.event is not None:
            return
        if data.get("errors"):
            reading.refused = data
            # The others' answers would change nothing.
            reading.waiting.clear()
        else:
            reading.prepared[worker] = data

    def _send_newest(self, worker: W) -> None:
        assert self.newest is not None
        self._has[worker] = self.generation
        newest = self.newest
        args = {"text": newest.text, "generation": newest.generation, "secrets": newest.secrets}
        self._send(worker, {"k": "tell", "id": 0, "what": "load", "args": args})

    # --- one reload ---------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """See whether a file has changed, and wait until it has stopped to."""
        looks = watch.looks(self._files)
        changing = looks != self._looks
        self._looks = looks
        if changing and self._settling_since is None:
            self._settling_since = now
        if self._settling_since is None or not self._watching:
            return
        if changing or watch.vanished(self._files, looks, self._seen):
            # One that never stops to change is read as it is.
            if now - self._settling_since < watch.MOST_UNSETTLED_S:
                return
        self._settling_since = None
        if watch.marks_of(self._files) != self._seen:
            self._wanted.append(("file", None))

    def _follow_files(self, files: tuple[str, ...]) -> None:
        """Look at these files from now on."""
        if files != self._files:
            self._files, self._looks = files, watch.looks(files)
            self._seen = {**watch.marks_of(files), files[0]: self._seen[files[0]]}

    def _begin(self) -> None:
        trigger = self._wanted[0][0]
        self._asking = [answer for _, answer in self._wanted if answer is not None]
        self._wanted.clear()
        self._seen = watch.marks_of(self._files)
        try:
            text = self._source.read()
        except ConfigError as error:
            self._refused(trigger, error.problems, error.warnings)
            return
        self._number += 1
        workers = list(self._workers())
        self._reading = reading = _Reading(
            number=self._number, text=text, trigger=trigger, deadline=self._clock() + PREPARE_S, waiting=set(workers)
        )
        for worker in workers:
            self._send(worker, {"k": "tell", "id": reading.number, "what": "prepare", "args": {"text": text}})

    def _decide(self, reading: _Reading[W]) -> None:
        if reading.event is not None:
            self._reading = None
            self._end(reading.event)
            return
        if reading.refused is not None:
            problems = tuple(problem_of(document) for document in reading.refused["errors"])
            warnings = tuple(problem_of(document) for document in reading.refused["warnings"])
            # What is missing in them may come.
            self._follow_files((*self._files, *(file for file in reading.refused["files"] if file not in self._files)))
            self._refused(reading.trigger, problems, warnings, told=reading)
        elif not reading.prepared:
            found = "no worker that could look at it in time"
            problem = Problem(file=self._source.path, line=None, path="", found=found, expected="one that can")
            self._refused(reading.trigger, (problem,), (), told=reading)
        else:
            self._accepted(reading)

    def _accepted(self, reading: _Reading[W]) -> None:
        facts = next(iter(reading.prepared.values()))
        now = time.time()
        history = self._history
        self._watching = bool(facts["watch"])
        history.accepted(
            trigger=reading.trigger,
            at=now,
            warnings=tuple(problem_of(document) for document in facts["warnings"]),
            restart_needed=tuple(facts["restart_needed"]),
            watching=self._watching,
        )
        self.newest = Newest(text=reading.text, generation=history.generation, secrets=facts["secrets"])
        self._on_accepted(facts)
        args = {"number": reading.number, "generation": history.generation, "at": now}
        for worker in self._workers():
            if worker in reading.prepared:
                self._has[worker] = history.generation
                self._send(worker, {"k": "tell", "id": 0, "what": "commit", "args": args})
            else:
                self._send_newest(worker)
        self._follow_files(self._source.files(tuple(facts["files"])))
        reading.event = Reloaded(
            trigger=reading.trigger,
            generation=history.generation,
            at=now,
            warnings=tuple(history.warnings),
            restart_needed=tuple(history.restart_needed),
            added=tuple(facts["added"]),
            changed=tuple(facts["changed"]),
            removed=tuple(facts["removed"]),
        )
        reading.waiting = set(reading.prepared)
        reading.deadline = self._clock() + COMMIT_S

    def _refused(
        self,
        trigger: str,
        errors: Sequence[Problem],
        warnings: Sequence[Problem],
        *,
        told: _Reading[W] | None = None,
    ) -> None:
        self._reading = None
        at = time.time()
        self._history.refused(trigger=trigger, at=at, errors=tuple(errors), warnings=tuple(warnings))
        number = 0 if told is None else told.number
        for worker in self._workers():
            self._send(worker, {"k": "tell", "id": 0, "what": "refuse", "args": {"number": number}})
        self._end(
            Reloaded(
                trigger=trigger, generation=self.generation, at=at, errors=tuple(errors), warnings=tuple(warnings)
            )
        )

    def _end(self, event: Reloaded) -> None:
        key = ("failure" if event.errors else "success", event.trigger)
        self.counts[key] = self.counts.get(key, 0) + 1
        self._tell(event)
        answers, self._asking = self._asking, []
        for answer in answers:
            answer(self.describe())
