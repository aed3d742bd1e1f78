"""A worker's side of a reload (``reloads`` is the parent's): it prepares what the parent sends, and applies it at its word."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from router.admin.contract import Args, Document
from router.admin.overrides import configured_of
from router.config.settings import Settings
from router.errors import ConfigError
from router.events import Notice, Observers
from router.generations import problem_document
from router.metrics import Metrics
from router.reload import Apply, Prepared, Source, prepare_in_thread, put_in_force, unexpected
from router.tasks import Tasks
from router.workers.channel import BadFrame, ChannelLost, Message, WorkerEnd
from router.workers.reloads import PREPARE_S

# Above the time that a reload may take: one that is under way, and the next.
_RELOAD_TIMEOUT_S: Final = 2 * PREPARE_S + 5.0
_ASK_TIMEOUT_S: Final = 3.0


class Generations:
    """What a worker does when its parent speaks of the configuration.

    Args:
        source: of the configuration.
        settings: in force.
        generation: their number.
        apply: puts a generation in force in this process.
        send: tells the parent something; raises ``ChannelLost`` when there is none.
        metrics: show which generation is in force; the parent counts reloads.
        tasks: owner of what takes time.
        tell: observers.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        *,
        generation: int,
        apply: Apply,
        send: Callable[[Message], None],
        metrics: Metrics,
        tasks: Tasks,
        tell: Observers,
    ) -> None:
        self._source = source
        self._settings = settings
        self._generation = generation
        self._apply = apply
        self._send = send
        self._metrics = metrics
        self._tasks = tasks
        self._tell = tell
        self._prepared: tuple[int, Prepared] | None = None  # only set between ``prepare`` and the parent's decision
        self._working = asyncio.Lock()

    def told(self, what: str, number: int, args: Args) -> bool:
        """Follow the parent; return whether it was about the configuration."""
        if what == "prepare":
            self._tasks.spawn(self._prepare(number, args["text"]), name="prepare the configuration")
        elif what == "commit":
            self._commit(args)
        elif what == "refuse":
            self._prepared = None
            self._metrics.config_refused()
        elif what == "load":
            self._tasks.spawn(self._load(args["text"], args["generation"], args["secrets"]), name="load the configuration")
        else:
            return False
        return True

    async def _prepare(self, number: int, text: str) -> None:
        async with self._working:
            data: dict[str, Any]
            try:
                prepared = await prepare_in_thread(self._source, text, self._settings)
            except ConfigError as error:
                data = {
                    "errors": [problem_document(problem) for problem in error.problems],
                    "warnings": [problem_document(problem) for problem in error.warnings],
                    "files": list(error.files),
                }
            else:
                self._prepared = (number, prepared)
                data = _facts(prepared)
            # Without a parent there is nobody to say what becomes of it.
            with contextlib.suppress(ChannelLost, BadFrame):
                self._send({"k": "prepared", "id": number, "data": data})

    def _commit(self, args: Args) -> None:
        if self._prepared is None or self._prepared[0] != args["number"]:
            return
        prepared, self._prepared = self._prepared[1], None
        self._put(prepared, generation=args["generation"])
        with contextlib.suppress(ChannelLost, BadFrame):
            self._send({"k": "prepared", "id": args["number"], "data": {}})

    async def _load(self, text: str, generation: int, secrets: Mapping[str, str]) -> None:
        async with self._working:
            if generation <= self._generation:
                return
            try:
                prepared = await prepare_in_thread(self._source, text, self._settings, remembered=secrets)
            except ConfigError as error:
                # The other workers have it: a file that they read, of a strategy for example, may have gone since.
                self._cannot(generation, error)
                return
            self._put(prepared, generation=generation)

    def _put(self, prepared: Prepared, *, generation: int) -> None:
        try:
            put_in_force(prepared, generation=generation, apply=self._apply, running=self._settings)
        except Exception as error:
            self._cannot(generation, ConfigError([unexpected(self._source, error)]))
            return
        self._settings, self._generation = prepared.settings, generation
        self._metrics.config_in_force(generation, epoch_s=time.time(), restart_needed=bool(prepared.restart_needed))

    def _cannot(self, generation: int, error: ConfigError) -> None:
        self._metrics.config_refused()
        for problem in error.problems:
            facts = {"generation": generation, "in_force": self._generation, "problem": str(problem)}
            self._tell(Notice(level="error", event="configuration not applied", facts=facts))


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What the parent has to know of a generation."""
    server, change = prepared.settings.server, prepared.change
    return {
        "warnings": [problem_document(problem) for problem in prepared.warnings],
        "restart_needed": list(prepared.restart_needed),
        "added": list(change.added),
        "changed": list(change.changed),
        "removed": list(change.removed),
        "files": list(prepared.files),
        "watch": server.watch,
        "log_level": server.log_level,
        "drain": asdict(server.drain),
        "tls": None if server.tls is None else asdict(server.tls),
        "secrets": dict(prepared.secrets),
        "configured": configured_of(prepared.settings),
    }


class ParentConfiguration:
    """The configuration as the parent knows it (``router.admin.contract.Configuration``).

    Args:
        end: leads to the parent.
    """

    def __init__(self, end: WorkerEnd) -> None:
        self._end = end

    async def describe(self) -> Document:
        """Return what is known of the generations.

        Raises:
            OSError: the parent is gone, or does not answer in time.
        """
        return await self._ask("config", timeout_s=_ASK_TIMEOUT_S)

    async def reload(self, trigger: str) -> Document:
        """Have all workers read the file again; return what is known then.

        Raises:
            OSError: as for ``describe``.
        """
        return await self._ask("reload", timeout_s=_RELOAD_TIMEOUT_S)

    async def _ask(self, what: str, *, timeout_s: float) -> Document:
        document = (await self._end.ask(what, timeout_s=timeout_s)).get("document")
        if not isinstance(document, Mapping):
            raise ChannelLost("found no document in the parent's answer")
        return document
