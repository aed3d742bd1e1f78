"""When a deployment is to be left alone: the cool-down after rate limiting, and windows that count sessions and tokens.

Both are pure: the clock is handed in. Both are fed with numbers from outside (a Retry-After header, token counts in a
provider's event), so every number is taken as hostile: not a number, negative, infinite, absurdly large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

#: Seconds of cool-down when the provider does not say how long.
DEFAULT_COOL_DOWN_S: Final = 5.0
#: Longest cool-down. A provider that asks for an hour is asked again every minute: its limit may have been raised, and one
#: wrong header must not cost an hour of capacity.
MAX_COOL_DOWN_S: Final = 60.0

# Resolution of a window. More buckets forget sooner and cost more memory; 60 keep what has expired at most 1/60 too long.
_BUCKETS: Final = 60
# Most that one call may add. Far beyond any count of tokens, and sums of it stay exact and printable.
_MAX_AMOUNT: Final = 2**53


class CoolDown:
    """A deployment's pause after it answered that it is rate limited. This is no outage: nothing is blamed."""

    __slots__ = ("_clock", "reason", "until")

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start inactive.

        Args:
            clock: monotonic seconds.
        """
        self._clock = clock
        #: Reading of the clock at which it ends; in the past (or minus infinity) when none is running.
        self.until = -math.inf
        #: Why the last one was started; empty before the first.
        self.reason = ""

    def start(self, seconds: float | None = None, *, reason: str = "rate_limited") -> float:
        """Start a pause; one that is running is never shortened, because sessions may finish their dials out of order.

        Args:
            seconds: what the provider asked for, capped at ``MAX_COOL_DOWN_S``. ``None``, zero, a negative number (a date
                in the past) and what is no number mean ``DEFAULT_COOL_DOWN_S``: who just refused is not asked at once.
            reason: word for logs and metrics, from a fixed set.

        Returns:
            Seconds until it ends.
        """
        now = self._clock()
        # Written so that NaN, which compares false, takes the default.
        pause_s = min(seconds, MAX_COOL_DOWN_S) if seconds is not None and seconds > 0.0 else DEFAULT_COOL_DOWN_S
        if now + pause_s > self.until:
            self.until = now + pause_s
            self.reason = reason
        return self.remaining_s(now)

    def clear(self) -> None:
        """End it now, as after a success or by an operator."""
        self.until = -math.inf

    def remaining_s(self, now: float | None = None) -> float:
        """Return the seconds until it ends, 0 when none is running.

        Args:
            now: a reading of the clock taken already; ``None`` takes one.
        """
        return max(0.0, self.until - (self._clock() if now is None else now))

    @property
    def active(self) -> bool:
        """The deployment is to be left alone."""
        return self.remaining_s() > 0.0

    def __repr__(self) -> str:
        return f"CoolDown(remaining_s={self.remaining_s():g}, reason={self.reason!r})"


class SlidingWindow:
    """A count over the last ``window_s`` seconds with a limit: sessions started a minute, tokens a minute.

    A ring of buckets, so that memory does not grow with the traffic. An amount counts until the whole of its bucket is older than
    the window: at most 1/60 of the window too long and never too short, so that the limit holds in every window of that
    length, wherever it begins.
    """

    __slots__ = ("_buckets", "_clock", "_current", "_limit", "_total", "_width_s", "_window_s", "added")

    def __init__(self, limit: int | None, window_s: float = 60.0, *, clock: Callable[[], float]) -> None:
        """Start empty.

        Args:
            limit: most that ``used`` may reach by amounts that had room; ``None`` is no limit (it still counts).
            window_s: length in seconds.
            clock: monotonic seconds.

        Raises:
            ValueError: the limit is negative, or the window is not positive and finite.
        """
        if not 0.0 < window_s < math.inf:
            raise ValueError(f"window_s: found {window_s!r}, expected more than 0 and finite")
        self._limit = _checked(limit)
        self._window_s = window_s
        self._width_s = window_s / _BUCKETS
        self._clock = clock
        # One bucket more than the window holds: the current one is only begun.
        self._buckets = [0] * (_BUCKETS + 1)
        self._total = 0
        #: All that was ever counted, less what was taken back.
        self.added = 0
        # Number of the bucket being filled, counted from the clock's zero; its place in the ring is the remainder.
        self._current = self._number()

    @property
    def limit(self) -> int | None:
        """The limit; setting it (a reload does) keeps what was counted."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self._limit = _checked(limit)

    def add(self, n: float = 1) -> None:
        """Count ``n``, whether or not there is room: tokens are known only when they are spent.

        What is no number or not positive counts as nothing; a fraction counts as a whole; the most is 2**53.
        """
        self._advance()
        amount = _amount(n)
        self._buckets[self._current % len(self._buckets)] += amount
        self._total += amount
        self.added += amount

    def take_back(self) -> None:
        """Undo one ``add()`` of this moment: what it counted did not happen after all."""
        for number in (self._current, self._current - 1):  # it may have been the moment before a bucket's end
            place = number % len(self._buckets)
            if self._buckets[place]:
                self._buckets[place] -= 1
                self._total -= 1
                self.added -= 1
                return

    def used(self) -> int:
        """Return the count of the last ``window_s`` seconds."""
        self._advance()
        return self._total

    def has_room(self, n: float = 1) -> bool:
        """Return whether ``n`` more stay within the limit."""
        return self._limit is None or self.used() + _amount(n) <= self._limit

    def room_in_s(self, n: float = 1) -> float:
        """Return the seconds until ``n`` more will stay within the limit if nothing is added: 0 when they do now.

        Infinite when ``n`` alone is above the limit.
        """
        if self._limit is None or self.has_room(n):
            return 0.0
        excess = self._total + _amount(n) - self._limit
        if excess > self._total:
            return math.inf
        freed = 0
        size = len(self._buckets)
        for number in range(self._current - _BUCKETS, self._current + 1):
            freed += self._buckets[number % size]
            if freed >= excess:
                # That bucket counts until the one that takes its place in the ring begins. A microsecond more, since
                # rounding may put that moment a trifle before its beginning.
                return max((number + size) * self._width_s - self._clock(), 0.0) + 1e-6
        raise AssertionError("the buckets add up to less than their total")

    def _number(self) -> int:
        return math.floor(self._clock() / self._width_s)

    def _advance(self) -> None:
        """Empty the buckets that left the window. A clock that goes back changes nothing."""
        number = self._number()
        size = len(self._buckets)
        for step in range(min(number - self._current, size)):
            place = (self._current + 1 + step) % size
            self._total -= self._buckets[place]
            self._buckets[place] = 0
        self._current = max(self._current, number)

    def __repr__(self) -> str:
        return f"SlidingWindow(used={self._total}, limit={self._limit}, window_s={self._window_s:g})"


def _checked(limit: int | None) -> int | None:
    if limit is not None and limit < 0:
        raise ValueError(f"limit: found {limit!r}, expected 0 or more, or none for no limit")
    return limit


def _amount(n: float) -> int:
    if not n > 0:  # NaN as well
        return 0
    return _MAX_AMOUNT if n >= _MAX_AMOUNT else math.ceil(n)
