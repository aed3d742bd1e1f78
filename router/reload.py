"""Hot reload: SIGHUP, a change of the file, or the admin API has the configuration read again while sessions run.

The file is read and checked in a thread; what comes of it is put in force in one step on the event loop, or not at all. Sessions
that run keep what they began with. Nothing that fails here ends anything: the generation in force stays, and the log, the metrics
and ``describe`` say why.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from router import logs, watch
from router.config import Loaded
from router.config.loader import is_loopback, load_text, read_text
from router.config.settings import ListenSettings, Settings
from router.errors import ConfigError, Problem
from router.events import Notice, Observers, Reloaded
from router.generations import Change, History, change_of, effective, exposed
from router.tasks import Tasks

# While a file is read, the thread that does it gives way to the event loop this often; Python's default of 5 ms would be heard.
_SWITCH_S: Final = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a configuration comes from, to be read again in the same way.

    Attributes:
        path: the file.
        seen: what the file held before it was read for the first time, so that no later change is missed.
        host, port: of the command line; they win over the file's.
        inherited: see ``generations.exposed``.
    """

    path: str
    seen: watch.Marks
    host: str | None = None
    port: int | None = None
    inherited: tuple[ListenSettings, ...] = ()

    @classmethod
    def of(cls, path: str, *, host: str | None = None, port: int | None = None) -> Source:
        """Return the source of a configuration that is about to be read."""
        return cls(path=path, seen=watch.marks_of([os.path.abspath(path)]), host=host, port=port)

    def files(self, secrets: Sequence[str]) -> tuple[str, ...]:
        """Return the absolute names of the files that make the configuration: its own first, then those with secrets."""
        return (os.path.abspath(self.path), *secrets)

    def read(self) -> str:
        """Return what is in the file.

        Raises:
            ConfigError: it cannot be read.
        """
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.stat(self.path).st_mode):
                # The shell's <(command): nobody writes into it any more, and a read would wait for ever.
                found = "a pipe, which can be read once"
                raise ConfigError([Problem(file=self.path, line=None, path="(file)", found=found, expected="a file")])
        return read_text(self.path)

    def check(self, text: str, *, remembered: Mapping[str, str] | None = None) -> Loaded:
        """Check what was in the file.

        Args:
            text: that.
            remembered: see ``load_text``.

        Raises:
            ConfigError: it cannot be used.
        """
        return load_text(text, path=self.path, host=self.host, port=self.port, remembered=remembered)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a process starts with, and where it comes from."""

    source: Source
    loaded: Loaded


class Apply(Protocol):
    """Puts a generation in force."""

    def __call__(self, settings: Settings, *, generation: int) -> object:
        """Do so in one step.

        Raises:
            Exception: it cannot; nothing has changed then.
        """


def history_of(origin: Origin) -> History:
    """Return the history of a process that starts with a configuration."""
    loaded = origin.loaded
    watching = loaded.settings.server.watch
    return History(file=origin.source.path, loaded_at=time.time(), watching=watching, warnings=loaded.warnings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A generation that was read and can be in force in this process.

    Attributes:
        settings: to be in force.
        restart_needed: keys of the file whose values are not in these settings.
        change: what it changes.
        warnings: what was said of it.
        files, secrets: see ``Loaded``.
    """

    settings: Settings
    restart_needed: tuple[str, ...]
    change: Change
    warnings: tuple[Problem, ...]
    files: tuple[str, ...]
    secrets: Mapping[str, str] = field(repr=False)


def prepare(source: Source, text: str, running: Settings, *, remembered: Mapping[str, str] | None = None) -> Prepared:
    """Check a configuration and see what of it a running process can have. Takes long; not for an event loop.

    Args:
        source: where it is from.
        text: what the file holds.
        running: in force in the process.
        remembered: see ``load_text``.

    Raises:
        ConfigError: it cannot be in force; with all its problems.
    """
    try:
        loaded = source.check(text, remembered=remembered)
    except ConfigError:
        raise
    except Exception as error:  # a third party's strategy is imported
        raise ConfigError([unexpected(source, error)]) from error
    wanted = effective(running, loaded.settings)
    if problems := exposed(wanted.settings, is_loopback=is_loopback, file=source.path, inherited=source.inherited):
        raise ConfigError(problems, warnings=loaded.warnings, files=loaded.files)
    return Prepared(
        settings=wanted.settings,
        restart_needed=wanted.restart_needed,
        change=change_of(running, wanted.settings),
        warnings=loaded.warnings,
        files=loaded.files,
        secrets=loaded.secrets,
    )


async def prepare_in_thread(
    source: Source, text: str, running: Settings, *, remembered: Mapping[str, str] | None = None
) -> Prepared:
    """Do what ``prepare`` does beside the event loop, which hardly feels it."""
    with _giving_way():
        return await asyncio.to_thread(prepare, source, text, running, remembered=remembered)


def put_in_force(prepared: Prepared, *, generation: int, apply: Apply, running: Settings) -> None:
    """Put a generation in force in this process.

    Raises:
        Exception: what ``apply`` raises; the one in force stays.
    """
    # Before anything can be said of the new keys.
    logs.register_secrets(logs.secrets_of(prepared.settings))
    apply(prepared.settings, generation=generation)
    if prepared.settings.server.log_level != running.server.log_level:
        logs.set_level(prepared.settings.server.log_level)


def unexpected(source: Source, error: Exception) -> Problem:
    """Return what went wrong where nothing should have, for an operator."""
    found = f"what cannot be put in force ({type(error).__name__})"
    return Problem(file=source.path, line=None, path="", found=found, expected="a configuration that can")


class Reloader:
    """Reads the configuration again, one time after the other. Belongs to one event loop.

    Args:
        origin: what is in force.
        apply: puts a generation in force in this process.
        tell: observers.
    """

    def __init__(self, origin: Origin, *, apply: Apply, tell: Observers) -> None:
        source, loaded = origin.source, origin.loaded
        self._source = source
        self._settings = loaded.settings
        self._apply = apply
        self._tell = tell
        self._history = history_of(origin)
        self._files = source.files(loaded.files)
        # What the files held when they were read last, by whatever trigger.
        self._seen: watch.Marks = {**watch.marks_of(loaded.files), **source.seen}
        self._reading = asyncio.Lock()
        # A reload that has not begun to read: whoever wants one meanwhile wants the same.
        self._next: asyncio.Task[None] | None = None
        self._tasks = Tasks(on_error=self._failed)
        self._watching: asyncio.Task[None] | None = None

    async def describe(self) -> Mapping[str, Any]:
        """Return what is known of the generations, as the admin API shows it."""
        return self._history.describe()

    def start(self) -> None:
        """Begin to watch the file, if it is to be."""
        if self._settings.server.watch and (self._watching is None or self._watching.done()):
            self._watching = self._tasks.spawn(self._watch(), name="watch the configuration")

    def request(self, trigger: str) -> None:
        """Have the configuration read again soon; for signals."""
        self._soon(trigger)

    async def reload(self, trigger: str) -> Mapping[str, Any]:
        """Read the configuration again and put it in force, if it can be. Returns what ``describe`` says then."""
        # Whoever asks may leave; what has begun is brought to its end.
        await asyncio.shield(self._soon(trigger))
        return self._history.describe()

    async def close(self) -> None:
        """Read no more."""
        await self._tasks.close(timeout_s=1.0)

    async def _watch(self) -> None:
        async with contextlib.aclosing(watch.changes(lambda: self._files, on_blind=self._blind)) as changes:
            async for _ in changes:
                if not self._settings.server.watch:
                    return
                if await self._unchanged():
                    continue
                await watch.settled(self._files, seen=self._seen)
                if not await self._unchanged():
                    await asyncio.shield(self._soon("file"))

    async def _unchanged(self) -> bool:
        return await asyncio.to_thread(watch.marks_of, self._files) == self._seen

    def _soon(self, trigger: str) -> asyncio.Task[None]:
        if self._next is None:
            self._next = self._tasks.spawn(self._reload(trigger), name="reload")
        return self._next

    async def _reload(self, trigger: str) -> None:
        async with self._reading:
            self._next = None
            try:
                # Taken before the file is read: what is written meanwhile is seen as another change.
                self._seen = await asyncio.to_thread(watch.marks_of, self._files)
                text = await asyncio.to_thread(self._source.read)
                prepared = await prepare_in_thread(self._source, text, self._settings)
                await self._follow_files(self._source.files(prepared.files))
            except ConfigError as error:
                self._refused(trigger, error.problems, error.warnings)
                # What is missing in them may come.
                await self._follow_files((*self._files, *(file for file in error.files if file not in self._files)))
            except Exception as error:  # a machine without threads or memory left
                self._refused(trigger, (unexpected(self._source, error),), ())
            else:
                self._put_in_force(trigger, prepared)

    async def _follow_files(self, files: tuple[str, ...]) -> None:
        """Have these files watched from now on."""
        if files != self._files:
            seen = await asyncio.to_thread(watch.marks_of, files)
            self._files, self._seen = files, {**seen, files[0]: self._seen[files[0]]}

    def _put_in_force(self, trigger: str, prepared: Prepared) -> None:
        history, settings = self._history, prepared.settings
        try:
            put_in_force(prepared, generation=history.generation + 1, apply=self._apply, running=self._settings)
        except Exception as error:
            self._refused(trigger, (unexpected(self._source, error),), prepared.warnings)
            return
        self._settings = settings
        # It may have been off, and this brought by a signal.
        self.start()
        history.accepted(
            trigger=trigger,
            at=time.time(),
            warnings=prepared.warnings,
            restart_needed=prepared.restart_needed,
            watching=settings.server.watch,
        )
        self._tell(
            Reloaded(
                trigger=trigger,
                generation=history.generation,
                at=history.at,
                warnings=prepared.warnings,
                restart_needed=prepared.restart_needed,
                added=prepared.change.added,
                changed=prepared.change.changed,
                removed=prepared.change.removed,
            )
        )

    def _refused(self, trigger: str, errors: tuple[Problem, ...], warnings: tuple[Problem, ...]) -> None:
        history = self._history
        history.refused(trigger=trigger, at=time.time(), errors=errors, warnings=warnings)
        self._tell(
            Reloaded(trigger=trigger, generation=history.generation, at=history.at, errors=errors, warnings=warnings)
        )

    def _blind(self, error: Exception) -> None:
        facts = {"error": error, "instead": "the file is looked at now and then"}
        self._tell(Notice(level="warning", event="configuration not watched", facts=facts))

    def _failed(self, name: str, error: Exception) -> None:
        self._tell(Notice(level="error", event="task failed", facts={"task": name, "error": error}))


@contextlib.contextmanager
def _giving_way() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
