"""Sends at the right microsecond: uvloop's own timers have whole milliseconds, which would gather the sessions' events."""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import time
from collections.abc import Callable
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_TFD_CLOEXEC_NONBLOCK: Final = os.O_CLOEXEC | os.O_NONBLOCK
_TFD_TIMER_ABSTIME: Final = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Pacer:
    """Calls what is due, on the running event loop, to about ten microseconds.

    Attributes:
        late_ns: by how much each call came late; large values say that the load was more than this process can carry.
    """

    def __init__(self) -> None:
        self.late_ns: list[int] = []
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_CLOEXEC_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._heap: list[tuple[int, int, Callable[[], bool], int]] = []
        self._order = 0
        self._spec = _Itimerspec()
        asyncio.get_running_loop().add_reader(self._fd, self._expired)

    def every(self, interval_ns: int, first_ns: int, call: Callable[[], bool]) -> None:
        """Call every ``interval_ns`` from ``first_ns`` (of ``time.perf_counter_ns``) on, until it returns ``False``."""
        self._order += 1
        heapq.heappush(self._heap, (first_ns, self._order, call, interval_ns))
        self._arm()

    def close(self) -> None:
        """Call nothing any more."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._heap.clear()

    def _arm(self) -> None:
        if not self._heap:
            return
        # An absolute time that has passed fires at once; 0 would switch the timer off, but no clock stands there.
        value = self._spec.value
        value.seconds, value.nanoseconds = divmod(self._heap[0][0], 1_000_000_000)
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            # Armed anew since it fired.
            return
        heap = self._heap
        now = time.perf_counter_ns()
        while heap and heap[0][0] <= now:
            due, order, call, interval = heap[0]
            self.late_ns.append(now - due)
            if call():
                heapq.heapreplace(heap, (due + interval, order, call, interval))
            else:
                heapq.heappop(heap)
            now = time.perf_counter_ns()
        self._arm()
