"""How late the event loop is: the one number that tells that something blocks it, or that the process has too little CPU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

# Four samples a second find a block of a quarter second for sure, and cost nothing that could be measured.
DEFAULT_INTERVAL_S: Final = 0.25


class LoopLag:
    """Samples by how much a timer of the running event loop fires late.

    A callback that blocks for a second delays one timer by up to a second and is seen as one sample of that size, not as many:
    the next timer is set only when the last one has fired.

    Args:
        observe: told of each sample in seconds, 0 or more. It is called on the event loop and must not raise.
        interval_s: seconds between two samples.
        clock: monotonic seconds. Not the loop's own: uvloop's is cached and has a resolution of milliseconds.

    Raises:
        ValueError: the interval is not positive.
    """

    def __init__(
        self,
        observe: Callable[[float], None],
        *,
        interval_s: float = DEFAULT_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not interval_s > 0.0:
            raise ValueError(f"interval_s: found {interval_s!r}, expected more than 0")
        self._observe = observe
        self._interval_s = interval_s
        self._clock = clock
        # Only set while it runs.
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = 0.0  # by ``clock``

    def start(self) -> None:
        """Begin; nothing happens when it runs already.

        Raises:
            RuntimeError: no event loop is running.
        """
        if self._timer is None:
            self._loop = asyncio.get_running_loop()
            self._set()

    def stop(self) -> None:
        """End; nothing happens when it does not run."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop = None

    def _set(self) -> None:
        assert self._loop is not None
        self._due = self._clock() + self._interval_s
        self._timer = self._loop.call_later(self._interval_s, self._fired)

    def _fired(self) -> None:
        # uvloop counts a timer's delay from the beginning of the turn that set it, so it may fire a little early.
        self._observe(max(0.0, self._clock() - self._due))
        # Whoever was told may have stopped it.
        if self._timer is not None:
            self._set()
