"""What a beat costs: CPU time of the process that beats and of the server, and the time on the wire, by deployments and members.

Each member publishes ``D`` busy deployments and hears the sum of the others, over a real server on the loopback. Beside it stands
a bare PING over redis-py's own client in the same run, since that is what one round trip costs here at all; ratios are to that.
A process beats once a second, so microseconds here are millionths of one core.

    python -m benchmarks beat [--beats 300] [--server PATH]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bench_outage import server_program
from router.config.settings import Settings
from router.events import Observers
from router.fleet.beat import Fleet
from router.fleet.picture import Picture
from router.fleet.redis_link import RedisExchange
from router.pool import Pool
from router.process import run
from router.tasks import Tasks
from tests.helpers.redis_servers import RedisServer, redis_server
from tests.helpers.running import config_of, deployment_of, load_config

SIZES = ((5, 2), (20, 2), (20, 10), (20, 50), (100, 10))


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one round trip, microseconds."""

    own: float
    server: float
    wall: float


async def server_cpu_s(server: RedisServer) -> float:
    """User and system CPU of the server so far."""
    info = await server.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def cost(server: RedisServer, call: Callable[[int], Awaitable[object]], times: int) -> Cost:
    """Measure ``times`` calls one after the other."""
    for number in range(10):
        await call(number)
    theirs, mine = await server_cpu_s(server), time.process_time()
    walls = []
    for number in range(times):
        started = time.perf_counter()
        await call(number)
        walls.append(time.perf_counter() - started)
    own = time.process_time() - mine
    theirs = await server_cpu_s(server) - theirs
    return Cost(own / times * 1e6, theirs / times * 1e6, statistics.median(walls) * 1e6)


class Members:
    """Processes of a fleet, as far as beating goes, all with every deployment busy."""

    def __init__(self, server: RedisServer, deployments: int, members: int) -> None:
        entries = [deployment_of("http://127.0.0.1:9/v1", id=f"deployment-{index}", rpm=10_000) for index in range(deployments)]
        settings = load_config(config_of(*entries)).settings
        self._tasks = Tasks(on_error=print)
        self.fleets = [self._member(server, settings, number) for number in range(members)]

    def _member(self, server: RedisServer, settings: Settings, number: int) -> Fleet:
        rng = random.Random(number)
        picture = Picture(time.monotonic)
        tell = Observers()
        pool = Pool(settings, clock=time.monotonic, rng=rng, tell=tell, picture=picture)
        for deployment in pool.deployments:
            for _ in range(rng.randrange(1, 200)):
                deployment.ready(deployment.lease(), rng.random())
            deployment.tokens.add(rng.randrange(1, 10**6))
            deployment.first_audio(rng.random())
        member = f"{rng.getrandbits(64):016x}"
        return Fleet(
            RedisExchange(server.settings(), member=member),
            where="the server",
            member=member,
            deployments=lambda: pool.deployments,
            keys=dict,
            picture=picture,
            on_loss="open",
            tasks=self._tasks,
            tell=tell,
            clock=time.monotonic,
            rng=rng,
        )

    async def beat(self, number: int) -> None:
        """One of them beats, in turn."""
        if not await self.fleets[number % len(self.fleets)].beat():
            raise RuntimeError("a beat was not answered")

    async def close(self) -> None:
        """End all."""
        for fleet in self.fleets:
            await fleet.leave()
            await fleet.close()


async def table(options: argparse.Namespace) -> int:
    """Print all rows; return a process's exit status."""
    import redis.asyncio as redis

    with TemporaryDirectory(prefix="beat-") as folder:
        async with redis_server(server_program(options.server), Path(folder)) as server:
            print(f"{'µs a round trip':26}{'own CPU':>9}{'x PING':>8}{'server CPU':>12}{'x PING':>8}{'wall p50':>10}")
            client = redis.Redis(host="127.0.0.1", port=server.port)

            async def ping(number: int) -> None:
                await client.ping()

            bare = await cost(server, ping, options.beats)
            await client.aclose()
            print(f"{'PING':26}{bare.own:9.0f}{1:8.1f}{bare.server:12.0f}{1:8.1f}{bare.wall:10.0f}", flush=True)
            for deployments, members in SIZES:
                fleet = Members(server, deployments, members)
                for number in range(members):
                    await fleet.beat(number)
                found = await cost(server, fleet.beat, options.beats)
                await fleet.close()
                name = f"{deployments} deployments, {members} members"
                print(
                    f"{name:26}{found.own:9.0f}{found.own / bare.own:8.1f}"
                    f"{found.server:12.0f}{found.server / max(bare.server, 1):8.1f}{found.wall:10.0f}",
                    flush=True,
                )
    return 0


def main() -> None:
    """Measure on the event loop that the router uses."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks beat")
    parser.add_argument("--beats", type=int, default=300, help="round trips a row")
    parser.add_argument("--server", help="path of a redis-server or valkey-server")
    raise SystemExit(run(partial(table, parser.parse_args(sys.argv[1:]))))


if __name__ == "__main__":
    main()
