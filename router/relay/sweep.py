"""One clock for all sessions of a process.

A timer a session would cost more than the session itself does while it is idle; one pass a second over all of them costs about a
microsecond each. What is checked: pings, dead peers, readers that take nothing, time limits (``Relay.tick``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

INTERVAL_S: Final = 0.5


class Swept(Protocol):
    """Something with a clock to look at."""

    def tick(self, now: float) -> None:
        """Look at the clock; ``now`` is monotonic seconds. What it raises is reported and hurts no other member."""


class Sweep:
    """Calls ``tick`` of every member twice a second, as long as there are members.

    Args:
        clock: monotonic seconds.
        interval_s: seconds between passes.
    """

    def __init__(self, *, clock: Callable[[], float], interval_s: float = INTERVAL_S) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._members: dict[Swept, None] = {}
        self._handle: asyncio.TimerHandle | None = None  # only set while there are members

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: Swept) -> None:
        """Begin to tick ``member``."""
        self._members[member] = None
        if self._handle is None:
            self._schedule()

    def discard(self, member: Swept) -> None:
        """Stop ticking ``member``; nothing happens when it is not one."""
        self._members.pop(member, None)
        if not self._members and self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(self._interval_s, self._pass)

    def _pass(self) -> None:
        now = self._clock()
        # A tick may end a session, which leaves the set.
        for member in list(self._members):
            try:
                member.tick(now)
            except Exception as error:  # one session's fault must not stop the clock of all others
                context = {"message": "a session's clock failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)
        if self._members:
            self._schedule()
        else:
            self._handle = None
