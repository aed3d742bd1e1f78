"""What a process and its children have cost, from ``/proc``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_PROC: Final = Path("/proc")
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time of a process tree so far.

    Attributes:
        tasks: seconds of each thread that lives, from schedstat, in nanoseconds' resolution.
        user_s: seconds in user mode, threads that have ended included, in ticks' resolution (10 ms as a rule).
        system_s: the same in the kernel.
    """

    tasks: dict[int, float]
    user_s: float
    system_s: float

    def since(self, before: Usage) -> tuple[float, float]:
        """Return CPU seconds since ``before``, and the share of them in user mode."""
        user, system = self.user_s - before.user_s, self.system_s - before.system_s
        share = user / (user + system) if user + system > 0 else 0.0
        if not self.tasks or before.tasks.keys() - self.tasks.keys():
            # A thread has ended, and its exact time with it; or the kernel has no schedstat.
            return user + system, share
        return sum(self.tasks.values()) - sum(before.tasks.values()), share


def tree(pid: int) -> list[int]:
    """A process and all its descendants. It looks at every process there is, so not while others wait for an answer."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def usage(pids: Sequence[int]) -> Usage:
    """CPU time of these processes, so far."""
    tasks: dict[int, float] = {}
    user = system = 0.0
    for member in pids:
        for task in (_PROC / str(member) / "task").iterdir():
            try:
                tasks[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
            except FileNotFoundError:
                continue
        # The name in parentheses may hold spaces: utime and stime are the 14th and 15th field of the whole.
        fields = (_PROC / str(member) / "stat").read_text().rpartition(")")[2].split()
        user += int(fields[11]) * _TICK_S
        system += int(fields[12]) * _TICK_S
    return Usage(tasks, user, system)


def pss_bytes(pids: Sequence[int]) -> int:
    """Memory of these processes: their own pages, and their share of those they share."""
    total = 0
    for member in pids:
        for line in (_PROC / str(member) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def core_busy_s(core: int) -> float:
    """Seconds that a core has been busy since boot, whoever used it; time that the host took away counts as well."""
    for line in (_PROC / "stat").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name == f"cpu{core}":
            user, nice, system, _idle, _wait, irq, softirq, steal = (int(field) for field in rest.split()[:8])
            return (user + nice + system + irq + softirq + steal) * _TICK_S
    raise ValueError(f"core {core}: not in {_PROC / 'stat'}")


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core the proxies run on, and which the load; the same one where there is only one."""

    proxy: int
    load: int

    @classmethod
    def here(cls) -> Cores:
        """Take the first two that this process may use."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[1] if len(allowed) > 1 else allowed[0])
