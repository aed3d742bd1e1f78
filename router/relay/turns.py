"""Turns: what the legs of an event loop may spend, all together, on reads that take long.

A read of 256 KiB may hold 131,072 frames, which is seconds of work, and any number of sessions may send such reads. If each leg
had a bound of its own, all of them would have their share in the same pass of the event loop. So there is one budget:

1. A read that is quickly handed over costs nothing and waits for nothing, which is every read of a session that does not flood.
2. What takes longer is charged. Once ``TURN_S`` is used up every leg has to wait whose read is not tiny; its reading is paused.
3. ``PAUSE_S`` later, when other sockets and timers have had their turn, the legs that wait share the next ``TURN_S``, one small
   piece of work each, round and round. Those whose last read was quick go first. Of the others, the known floods, at least one
   comes in each round, so that nobody is kept out for ever.

A leg knows which it is: a flood is one that took long twice in a row. It waits for its turn with whatever it reads next, and is
no flood any more when that was quick. To be taken for one means to wait behind all of them, so the second time CPU time is
measured: on a busy machine any read may take long, because another process had its turn in the middle of it.

No sockets: the clocks and the event loop's ``call_later`` may be others.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakKeyDictionary

# How long all legs together may keep the event loop, and how long it is everybody else's after that, in seconds. A round trip
# through the router waits for a handful of them.
TURN_S: Final = 0.005
PAUSE_S: Final = 0.001
# How long one leg goes on while others wait as well, in seconds; a single piece of its work may take longer.
SHARE_S: Final = 0.001


class Waiting(Protocol):
    """A leg that waits for its turn."""

    def turn(self, share_s: float) -> None:
        """Do one piece of work, and more until ``share_s`` is over. May wait again."""


class Timer(Protocol):
    """What ``call_later`` returns."""

    def cancel(self) -> None:
        """It need not come any more."""


class Turns:
    """The budget of one event loop, and the legs that wait for it.

    Args:
        clock: monotonic seconds.
        cpu_clock: seconds of CPU time of this thread.
        call_later: the event loop's; ``None``: that of the loop that runs then.

    Attributes:
        clock, cpu_clock: those to measure with what a read takes; the second one costs ten times as much.
    """

    __slots__ = ("_call_later", "_floods", "_in_round", "_others", "_spent_s", "_timer", "clock", "cpu_clock")

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        self.clock = clock
        self.cpu_clock = cpu_clock
        # Not a loop's own by default: whoever keeps this by its loop must not keep the loop by this.
        self._call_later = call_later or _call_later
        self._spent_s = 0.0  # of ``TURN_S``, since the timer came last
        # In the order of their turns. Ordered dictionaries: the first one, and any, leaves in constant time.
        self._others: OrderedDict[Waiting, None] = OrderedDict()
        self._floods: OrderedDict[Waiting, None] = OrderedDict()
        self._timer: Timer | None = None  # only set while a leg waits, or something has been spent
        self._in_round = False

    def __len__(self) -> int:
        return len(self._others) + len(self._floods)

    @property
    def left_s(self) -> float:
        """What is left of the budget; nothing, or less than nothing, when it is used up."""
        return TURN_S - self._spent_s

    def charge(self, seconds: float) -> None:
        """Take from the budget what a read took that did not wait for its turn."""
        self._spent_s += seconds
        self._pause()

    def wait(self, leg: Waiting, *, flood: bool) -> None:
        """Put ``leg`` at the end of its queue; one that waits already keeps its place."""
        if leg in self._others or leg in self._floods:
            return
        (self._floods if flood else self._others)[leg] = None
        if self._timer is None and not self._in_round:
            self._pause()

    def discard(self, leg: Waiting) -> None:
        """Take ``leg`` out of the queue; nothing happens when it does not wait."""
        self._others.pop(leg, None)
        self._floods.pop(leg, None)
        if not self and not self._spent_s and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pause(self) -> None:
        """Everybody else's turn begins now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._call_later(PAUSE_S, self._round)

    def _round(self) -> None:
        """Give turns until the budget is used up or nobody waits."""
        self._timer = None
        self._spent_s = 0.0
        if not self:
            return
        self._in_round = True
        started = now = self.clock()
        try:
            while self._others and now - started < TURN_S:
                self._others.popitem(last=False)[0].turn(SHARE_S)
                now = self.clock()
            first = True
            while self._floods and (first or now - started < TURN_S):
                self._floods.popitem(last=False)[0].turn(SHARE_S)
                now = self.clock()
                first = False
        finally:
            self._in_round = False
            self._spent_s = now - started
            self._pause()


def _call_later(delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay_s, callback)


# The one thing that all sessions of an event loop share, of whichever router they are: its time. Entries go with their loops.
_BY_LOOP: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, Turns]] = WeakKeyDictionary()


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """Return the turns of an event loop, always the same ones."""
    turns = _BY_LOOP.get(loop)
    if turns is None:
        turns = _BY_LOOP[loop] = Turns()
    return turns
