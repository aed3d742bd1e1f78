"""Background tasks with an owner: the only place of the product that starts one.

The event loop keeps only a weak reference to a task, so one that nobody holds may vanish in mid-flight, and the exception of
one that nobody awaits surfaces when it is collected, if ever. ``Tasks`` names each task, holds it until it ends, reports what
it did not expect at the moment it happens, and ends all of them in order. Learned from mitmproxy's ``utils/asyncio_utils.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# Told the task's name and what it raised. It is called on the event loop and must not raise.
ErrorReport = Callable[[str, Exception], None]


class Tasks:
    """A set of tasks that begin, fail and end under one owner.

    Not a ``asyncio.TaskGroup``: there a failure cancels the siblings, here one session's failure must not touch another's.

    Args:
        on_error: told of every exception that a task ended with and that its ``spawn`` did not list as expected.
    """

    def __init__(self, *, on_error: ErrorReport) -> None:
        self._on_error = on_error
        # Only tasks that have not ended; a done callback takes them out.
        self._running: set[asyncio.Task[Any]] = set()
        # Set by the first ``close``, never unset.
        self._closed = False

    def __len__(self) -> int:
        """Tasks that have not ended."""
        return len(self._running)

    @property
    def closed(self) -> bool:
        """Whether it takes no more tasks."""
        return self._closed

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks that have not ended, sorted."""
        return tuple(sorted(task.get_name() for task in self._running))

    def spawn(
        self, coro: Coroutine[Any, Any, T], *, name: str, expected: tuple[type[Exception], ...] = ()
    ) -> asyncio.Task[T]:
        """Start a task and keep it until it ends.

        Args:
            coro: what to run. It is closed unrun when the owner takes no more tasks.
            name: for debuggers and reports. It is logged, so it holds no secret.
            expected: exceptions that whoever awaits the task deals with; they are not reported.

        Returns:
            The task, for those who want its result or want to cancel it. Nobody needs to hold it.

        Raises:
            RuntimeError: ``close`` was called before, or no event loop is running.
        """
        if self._closed:
            # Without this, Python would warn of a coroutine that was never awaited, far from here.
            coro.close()
            raise RuntimeError(f"task {name!r} not started: its owner is closed")
        try:
            task = asyncio.create_task(coro, name=name)
        except RuntimeError:
            coro.close()
            raise
        self._running.add(task)
        task.add_done_callback(lambda done: self._ended(done, expected))
        return task

    async def close(self, *, timeout_s: float) -> tuple[str, ...]:
        """Cancel every task and wait until they have ended. From the first call on no task starts.

        A task that calls this itself is neither cancelled nor waited for.

        Args:
            timeout_s: longest wait in seconds. A task gets one cancellation: whoever swallows it goes on, and is named.

        Returns:
            Names of the tasks that had not ended in time, sorted; the owner holds them until they do.
        """
        self._closed = True
        pending = self._running - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        if pending:
            _, pending = await asyncio.wait(pending, timeout=timeout_s)
        return tuple(sorted(task.get_name() for task in pending))

    def _ended(self, task: asyncio.Task[Any], expected: tuple[type[Exception], ...]) -> None:
        self._running.discard(task)
        if task.cancelled():
            return
        # Asking for it also marks it as retrieved: asyncio does not print it a second time.
        error = task.exception()
        if not isinstance(error, Exception):
            # None, or a SystemExit or KeyboardInterrupt, which asyncio lets through to whoever runs the loop.
            return
        if isinstance(error, expected):
            return
        self._on_error(task.get_name(), error)
