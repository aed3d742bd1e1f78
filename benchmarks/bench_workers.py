"""Several workers: CPU of a relayed message with one worker and with two, connects of each, and how soon one is replaced.

Both routers run all the time, pinned to one core, the load on another, and are measured one after the other at the same load
in each round; their own processes' CPU counts, the parent's included. The targets are a ratio of at most 1.15, between 160 and
240 of 400 connects for each of two workers, and 2 s from a worker's SIGKILL until its replacement accepts. Linux only: the
figures come from ``/proc``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.relay import peers
from benchmarks.relay.cpu import Cores, tree
from benchmarks.relay.load import Load
from benchmarks.relay.peers import Command, Place, Proxy, Unavailable
from benchmarks.relay.upstream import Provider
from benchmarks.relay.windows import Plan, Subject, Windows
from benchmarks.relay.wire import Fault, Verdict
from router.process import run
from tests.helpers.ports import free_port

WORKERS: Final = (1, 2)
MEASUREMENTS: Final = ("paced", "bursts")
CONNECTS: Final = 400
# Four times the standard deviation of a fair coin's 400 throws.
LEAST, MOST = 160, 240
MOST_RATIO: Final = 1.15
MOST_REPLACEMENT_S: Final = 2.0
# Longest wait for a line of the log.
PATIENCE_S: Final = 20.0


def router(place: Place, *, workers: int) -> Command:
    """The router without the accelerator, as the ``relay`` measurement starts it, with so many workers."""
    command = peers.router(place)
    path = place.folder / "router.yaml"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["general_settings"]["workers"] = workers
    path.write_text(json.dumps(config), encoding="utf-8")
    return command


class Subjects:
    """A provider, and a router for each number of workers.

    Args:
        folder: for their files.
        options: the command line's.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._cores = Cores.here()
        self._verdict = Verdict()
        self._rng = random.Random(options.seed)
        self._keys = secrets.token_hex(32), secrets.token_hex(32)
        self._provider = Provider(key=self._keys[1], verdict=self._verdict)
        self._sessions = options.sessions
        self._served = 0  # sessions that each router has served
        self._proxies: dict[int, Proxy] = {}
        self._loads: dict[int, Load] = {}
        plan = Plan(seconds=options.seconds, warmup_s=options.warmup, sessions=options.sessions, memory_sessions=1, settle_s=0)
        self._windows = Windows(self._provider, plan, cores=self._cores, verdict=self._verdict)

    async def start(self) -> None:
        """Start everything; return when all workers accept."""
        os.sched_setaffinity(0, {self._cores.load})
        for workers in WORKERS:
            place = Place(
                folder=self._folder / str(workers),
                port=free_port(),
                upstream_port=await self._provider.listen(None),
                client_key=self._keys[0],
                upstream_key=self._keys[1],
                ca_file=None,
            )
            name = f"{workers} worker{'s' * (workers != 1)}"
            proxy = peers.spawn(name, partial(router, workers=workers), place, core=self._cores.proxy)
            self._proxies[workers] = proxy
            self._loads[workers] = Load(
                self._provider,
                port=place.port,
                key=self._keys[0],
                tls=None,
                verdict=self._verdict,
                rng=self._rng,
                patience_s=PATIENCE_S,
            )
            await self.logged(workers, "listening")

    async def stop(self) -> None:
        """End everything."""
        for proxy in self._proxies.values():
            proxy.stop()
        await self._provider.close()

    def lines(self, workers: int, event: str) -> list[dict[str, Any]]:
        """The lines of a router's log that tell of an event."""
        text = (self._folder / str(workers) / "output.log").read_text(encoding="utf-8")
        # The first line is the URL; the last may be half of one.
        found = [json.loads(line) for line in text.rpartition("\n")[0].splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    async def logged(self, workers: int, event: str, count: int = 1) -> dict[str, Any]:
        """Wait for the ``count``-th line of an event.

        Raises: Unavailable: the router has ended, or does not say it in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while len(found := self.lines(workers, event)) < count:
            if (complaint := self._proxies[workers].complaint) is not None:
                raise Unavailable(complaint)
            if time.monotonic() > deadline:
                raise Unavailable(f"no line {event!r} in the log after {PATIENCE_S:g} s")
            await asyncio.sleep(0.01)
        return found[count - 1]

    async def measure(self, measurement: str) -> dict[int, dict[str, float]]:
        """Measure all routers, one after the other in random order."""
        order = list(WORKERS)
        self._rng.shuffle(order)
        values = {}
        for workers in order:
            proxy = self._proxies[workers]
            subject = Subject(name=proxy.name, pids=tree(proxy.pid), upstream_port=proxy.upstream_port, load=self._loads[workers])
            values[workers] = await self._windows.measure(measurement, subject)
        self._served += self._sessions
        return values

    async def shares(self) -> list[int]:
        """Connect so many times to two workers; return how many sessions each of them served."""
        before = self._served
        # Some of them may not stand there yet.
        await self.logged(2, "session ended", before)
        for _ in range(CONNECTS):
            session = await self._loads[2].dial("setup")
            await session.ended
        await self.logged(2, "session ended", before + CONNECTS)
        served = Counter(line["worker"] for line in self.lines(2, "session ended")[before:])
        return [served[number] for number in range(2)]

    async def replacement_s(self, kills: int) -> list[float]:
        """Kill a worker so many times; return the seconds each time until its replacement has said that it accepts."""
        listening = await self.logged(2, "listening")
        pid = listening["workers"][0]
        times_s = []
        for number in range(1, kills + 1):
            killed_at = time.time()
            os.kill(pid, signal.SIGKILL)
            line = await self.logged(2, "worker replaced", number)
            times_s.append(datetime.fromisoformat(line["timestamp"]).timestamp() - killed_at)
            pid = line["pid"]
        return times_s


async def table(options: argparse.Namespace) -> int:
    """Print all figures; return a process's exit status."""
    with tempfile.TemporaryDirectory(prefix="workers-bench-") as folder:
        subjects = Subjects(Path(folder), options)
        try:
            await subjects.start()
            return await measured(subjects, options)
        except (Fault, Unavailable) as fault:
            print(f"FAULT: {fault}", file=sys.stderr)
            return 1
        finally:
            await subjects.stop()


async def measured(subjects: Subjects, options: argparse.Namespace) -> int:
    """Measure and print; return a process's exit status."""
    within = True
    print(f"{'CPU µs of a message':24}{'1 worker':>12}{'2 workers':>12}{'ratio':>8}{'least':>8}{'most':>8}{'asked':>8}")
    for measurement in MEASUREMENTS:
        rounds = [await subjects.measure(measurement) for _ in range(options.rounds)]
        one, two = (statistics.median(values[workers]["cpu_us"] for values in rounds) for workers in WORKERS)
        # Within each round, for what else the machine does changes from one to the next.
        ratios = [values[2]["cpu_us"] / values[1]["cpu_us"] for values in rounds]
        ratio = statistics.median(ratios)
        within &= ratio <= MOST_RATIO
        row = f"{measurement:24}{one:12.2f}{two:12.2f}{ratio:8.3f}{min(ratios):8.3f}{max(ratios):8.3f}{MOST_RATIO:8.2f}"
        print(row + ("" if ratio <= MOST_RATIO else "  beyond"), flush=True)
    shares = await subjects.shares()
    fair = all(LEAST <= share <= MOST for share in shares)
    print(f"{f'of {CONNECTS} connects':24}{shares[0]:12}{shares[1]:12}{'':16}{f'{LEAST}–{MOST}':>16}{'' if fair else '  beyond'}")
    times_s = await subjects.replacement_s(options.kills)
    quick = max(times_s) <= MOST_REPLACEMENT_S
    print(f"{'seconds to replacement':24}{'median':>12}{'most':>12}")
    print(
        f"{'':24}{statistics.median(times_s):12.3f}{max(times_s):12.3f}"
        f"{'':16}{MOST_REPLACEMENT_S:8.1f}{'' if quick else '  beyond'}"
    )
    return 0 if within and fair and quick else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks workers", description="One worker beside two.")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a window; default 2")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds before each window; default 0.5")
    # With few, most of what a message at real-time pace costs is that its process wakes up for it alone.
    parser.add_argument("--sessions", type=int, default=150, help="default 150")
    # Each death in a row, of workers that do not live ten seconds, waits longer; the third one 0.4 s.
    parser.add_argument("--kills", type=int, default=3, help="default 3")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the windows; default 1")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works; the figures mean nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.warmup, options.sessions, options.kills = 1, 0.4, 0.1, 8, 1
    for name in ("rounds", "seconds", "warmup", "sessions", "kills"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name}: found {getattr(options, name)}, expected more than 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure on the event loop that the router uses. Returns the exit status."""
    if not sys.platform.startswith("linux"):
        print(f"found {sys.platform}, expected linux: what a process costs is read from /proc", file=sys.stderr)
        return 2
    options = parse(arguments)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return run(partial(table, options))


if __name__ == "__main__":
    raise SystemExit(main())
