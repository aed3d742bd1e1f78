"""Seconds that a failing first deployment adds to a session's start: p50, p95 and worst of 100 sessions for each fault.

The time is a client's, from the beginning of its handshake to its first event. What is added is measured against the median of
a control run without the fault, right before and at the same concurrency. Router, client and simulators share one process. The
last rows are sessions with five dead deployments before the one that works, in whole seconds of waiting.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

from router.process import run
from router.simulator import Simulator
from tests.helpers.running import RunningRouter, config_of, next_type, running_router

SESSIONS = 100
STAGGER_S = 1.5
# What a fault may add (the stagger itself aside), by whether it shows or is silent.
LOUD_LIMIT_S, SILENT_LIMIT_S = 0.3, 0.5
LOUD = (
    "refuse",
    "refuse,reset=true",
    "status=503",
    "status=429,retry_after=0.001",
    "error_event=server_error",
    "close_after_events=0",
    "reset_after_events=0",
    "garbage=frame",
    "garbage=json",
    "garbage=http",
)
SILENT = ("hang_before_101", "hang_after_101", "slow_first_event=60")
DEAD = {
    "mixed": ("refuse", "hang_before_101", "hang_after_101", "error_event=server_error", "hang_before_101"),
    "all hang before": ("hang_before_101",) * 5,
    "all hang after": ("hang_after_101",) * 5,
}


async def start_s(router: RunningRouter) -> float:
    """Open a session; return the seconds to its first event."""
    started = time.perf_counter()
    async with router.connect() as ws:
        await next_type(ws)
        return time.perf_counter() - started


async def starts_s(router: RunningRouter, count: int, concurrency: int) -> list[float]:
    """Open ``count`` sessions, so many at a time; return each one's seconds, sorted."""
    times: list[float] = []
    while len(times) < count:
        times += await asyncio.gather(*(start_s(router) for _ in range(concurrency)))
    return sorted(times)


async def measure(fault: str, concurrency: int) -> tuple[float, list[float]]:
    """Return the control run's median, and what the fault added to each session."""
    async with Simulator(name="first") as first, Simulator(name="second") as second:
        # No breaker in the way: each session meets the fault.
        config = config_of(first, second, router={"allowed_fails": 10_000, "stagger_s": STAGGER_S})
        async with running_router(config, record=False) as router:
            await starts_s(router, concurrency, concurrency)  # warm
            control_s = statistics.median(await starts_s(router, SESSIONS, concurrency))
            first.set_fault(fault)
            return control_s, [seconds - control_s for seconds in await starts_s(router, SESSIONS, concurrency)]


async def measure_dead(faults: Sequence[str]) -> float:
    """Return the seconds of one session whose first five deployments are dead, with the router's default times."""
    dead = [Simulator(name=f"dead{number}", faults=[fault]) for number, fault in enumerate(faults)]
    alive = Simulator(name="alive")
    for simulator in (*dead, alive):
        await simulator.start()
    try:
        async with running_router(config_of(*dead, alive), record=False) as router:
            return await start_s(router)
    finally:
        for simulator in (*dead, alive):
            await simulator.stop()


async def table() -> int:
    """Print all rows; return a process's exit status."""
    print(f"{'seconds added by':30}{'control':>9}{'p50':>9}{'p95':>9}{'worst':>9}{'limit':>8}")
    within = True
    for fault in (*LOUD, *SILENT):
        silent = fault in SILENT
        control_s, added_s = await measure(fault, 25 if silent else 5)
        limit_s = STAGGER_S + SILENT_LIMIT_S if silent else LOUD_LIMIT_S
        p95_s = added_s[int(len(added_s) * 0.95)]
        ok = added_s[-1] <= limit_s
        within &= ok
        row = f"{fault:30}{control_s:9.3f}{statistics.median(added_s):9.3f}{p95_s:9.3f}{added_s[-1]:9.3f}{limit_s:8.1f}"
        print(row + ("" if ok else "  beyond"), flush=True)
    print(f"{'five dead, one alive':30}{'':27}{'seconds':>9}{'limit':>8}")
    for name, faults in DEAD.items():
        seconds = await measure_dead(faults)
        within &= seconds <= 8
        print(f"{name:30}{'':27}{seconds:9.3f}{8.0:8.1f}", flush=True)
    return 0 if within else 1


def main() -> None:
    """Measure on the event loop that the router uses."""
    raise SystemExit(run(table))


if __name__ == "__main__":
    main()
