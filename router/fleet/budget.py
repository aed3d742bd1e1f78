"""A time limit that counts a peer's silence, not this process's own lateness.

``asyncio.timeout`` on a loop that was busy for longer than the limit ends a wait whose answer has been lying in the socket
all the time: uvloop runs timers before it reads. A burst of new sessions would then look like a server that is gone, and
hard limits would open just when they matter. So a timer that fires late gives the wait its time again, twice at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

# A timer this share of its length too late was held up by the loop.
_LATE: Final = 0.2
# Longest wait, in lengths of the limit.
_MOST_TIMES: Final = 3
# What lay in the socket when the timer fired is read, parsed and handed to the one that waits within so many turns of the loop.
_LAST_TURNS: Final = 8


@asynccontextmanager
async def budget(seconds: float) -> AsyncIterator[None]:
    """Bound the block by ``seconds`` in which the event loop was free to hear an answer.

    Raises:
        TimeoutError: nothing came in that time, or in some three times as long whatever the loop did.
    """
    async with asyncio.timeout(None) as limit:
        timer = _Timer(limit, seconds)
        try:
            yield
        finally:
            timer.cancel()


class _Timer:
    """Ends a limit when its time is up."""

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._seconds = seconds
        self._times = 0
        self._turns = 0
        self._start()

    def cancel(self) -> None:
        """The block is over."""
        self._handle.cancel()

    def _start(self) -> None:
        self._times += 1
        self._due = self._loop.time() + self._seconds
        self._handle: asyncio.Handle = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        if now - self._due > self._seconds * _LATE and self._times < _MOST_TIMES:
            self._start()
        else:
            self._last_turns()

    def _last_turns(self) -> None:
        if self._turns == _LAST_TURNS:
            self._limit.reschedule(self._loop.time())
            return
        self._turns += 1
        self._handle = self._loop.call_soon(self._last_turns)
