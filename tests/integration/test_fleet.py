"""A fleet of replicas over a real server: balance, crashes, hard limits, and a server that dies, freezes or lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from signal import SIGKILL
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect

from router.events import FleetBeat, Notice
from router.fleet.board import PLACE_TTL_S, SHARE_TTL_S
from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.parts import require
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
from tests.helpers.redis_servers import until as until_async
from tests.helpers.running import MODEL, RunningRouter, config_of, deployment_of, next_type, run_turn, running_router, until

# How many clients shake hands at a time. More would only wait in each other's way.
AT_ONCE = 50
# By how much a look at what has happened may be late.
LATE_S = 2.0


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """One server, for what lies with the router and not with the server."""
    async with redis_server(require("valkey"), tmp_path) as running:
        yield running


def fleet_config(server: RedisServer, *targets: Any, strategy: str = "shared-least-connections", **params: Any) -> dict[str, Any]:
    """A configuration whose replicas share their state through ``server``."""
    settings = {"routing_strategy": strategy, "redis": f"redis://127.0.0.1:{server.port}"}
    return config_of(*targets, router=settings, **params)


@asynccontextmanager
async def replicas(config: dict[str, Any], count: int) -> AsyncIterator[list[RunningRouter]]:
    """Run replicas in this process until the block ends; they know each other."""
    async with AsyncExitStack() as stack:
        routers = [await stack.enter_async_context(running_router(config, seed=seed)) for seed in range(count)]
        await acquainted(routers, count)
        yield routers


async def acquainted(routers: Sequence[RunningRouter], members: int) -> None:
    """Wait until each has a fresh picture of all others."""
    for router in routers:
        await until(partial(_knows, router, members - 1), every_s=0.02)


def _knows(router: RunningRouter, others: int) -> bool:
    fleet = router.engine.fleet
    return fleet is not None and fleet.mode == "fresh" and fleet.picture.members == others


@asynccontextmanager
async def clients() -> AsyncIterator[Callable[[Callable[[], Any], int], Awaitable[list[ClientConnection]]]]:
    """Open sessions that stay until the block ends."""
    opened: list[ClientConnection] = []
    room = asyncio.Semaphore(AT_ONCE)

    async def one(dial: Callable[[], Any]) -> ClientConnection:
        async with room:
            ws: ClientConnection = await dial()
            opened.append(ws)
            assert await next_type(ws) == "session.created"
            return ws

    async def many(dial: Callable[[], Any], count: int) -> list[ClientConnection]:
        return await asyncio.gather(*(one(dial) for _ in range(count)))

    try:
        yield many
    finally:
        for ws in opened:
            ws.transport.abort()
        await asyncio.gather(*(ws.wait_closed() for ws in opened))


def excess(sims: Sequence[Simulator], weights: Sequence[float]) -> float:
    """By what share the fullest deployment is above its part of all sessions."""
    sessions = sum(sim.stats.active for sim in sims)
    return max(sim.stats.active / (sessions * weight / sum(weights)) - 1 for sim, weight in zip(sims, weights, strict=True))


# --- balance -------------------------------------------------------------------------------------


async def test_three_replicas_balance_as_one(server: RedisServer, simulator: SimulatorFactory) -> None:
    """A burst of 400 sessions through one of three replicas, then 400 evenly: no deployment is over 5 % above the mean."""
    sims = [await simulator() for _ in range(4)]
    async with replicas(fleet_config(server, *sims), 3) as routers, clients() as open_many:
        await open_many(routers[0].connect, 400)
        assert sum(sim.stats.active for sim in sims) == 400
        assert excess(sims, [1, 1, 1, 1]) <= 0.05
        for router in (*routers, *routers):
            await open_many(router.connect, 66)
        assert sum(sim.stats.active for sim in sims) == 796
        assert excess(sims, [1, 1, 1, 1]) <= 0.05


@pytest.mark.parametrize("strategy", ["shared-least-connections", "shared-round-robin"])
async def test_weights_hold_for_the_fleet(valkey: RedisServer, simulator: SimulatorFactory, strategy: str) -> None:
    """Weights 3:1 come out within 5 %, whichever replica the sessions come through."""
    sims = [await simulator() for _ in range(4)]
    weights = [3, 1, 3, 1]
    entries = [deployment_of(sim, id=f"d{index}", weight=weights[index]) for index, sim in enumerate(sims)]
    async with replicas(fleet_config(valkey, *entries, strategy=strategy), 3) as routers, clients() as open_many:
        await open_many(routers[0].connect, 400)
        for router in routers:
            await open_many(router.connect, 80)
        assert excess(sims, weights) <= 0.05


async def test_a_replica_with_nothing_of_its_own_sees_what_others_hold(valkey: RedisServer, simulator: SimulatorFactory) -> None:
    """One replica holds all sessions of one deployment; another one fills the gap, with restraint, within a few beats."""
    sims = [await simulator() for _ in range(2)]
    config = fleet_config(valkey, *sims)
    async with replicas(config, 2) as (first, second), clients() as open_many:
        first.engine.pool.groups[MODEL].deployments[1].cool_down.start(60)
        await open_many(first.connect, 20)
        assert [sim.stats.active for sim in sims] == [20, 0]
        seen = second.engine.pool.groups[MODEL].deployments[0]
        await until(lambda: seen.elsewhere.sessions == 20, every_s=0.02)
        await open_many(second.connect, 10)
        assert [sim.stats.active for sim in sims] == [20, 10]
        view = (await second.request("/admin/deployments")).json
        assert (view["fleet"]["mode"], view["fleet"]["members"]) == ("fresh", 2)
        shown = view["groups"][0]["deployments"]
        assert [(one["sessions"], one["sessions_elsewhere"]) for one in shown] == [(0, 20), (10, 0)]
        # It counts on the other replica to do the same until it hears that it did not.
        for _ in range(2):
            await second.until(FleetBeat, len(second.of(FleetBeat)) + 1)
            await open_many(second.connect, 10)
        assert excess(sims, [1, 1]) <= 0.05


# --- limits --------------------------------------------------------------------------------------


async def test_limits_a_minute_hold_for_the_fleet(valkey: RedisServer, simulator: SimulatorFactory) -> None:
    """What one replica has started counts for the other; the room that both see is shared out between two beats."""
    limited, other = await simulator(), await simulator()
    entries = [deployment_of(limited, id="d0", rpm=12), deployment_of(other, id="d1", order=1)]
    async with replicas(fleet_config(valkey, *entries), 2) as (first, second):
        await asyncio.gather(*(first.session() for _ in range(10)))
        assert limited.stats.sessions_opened == 6, "half of twelve"
        seen = second.engine.pool.groups[MODEL].deployments[0]
        await until(lambda: seen.minute_starts == 6, every_s=0.02)
        await asyncio.gather(*(second.session() for _ in range(10)))
        assert limited.stats.sessions_opened == 9, "half of the six that are left"
        for _ in range(3):
            for router in (first, second):
                await router.until(FleetBeat, len(router.of(FleetBeat)) + 1)
                await asyncio.gather(*(router.session() for _ in range(4)))
        assert 11 <= limited.stats.sessions_opened <= 13
        assert limited.stats.sessions_opened + other.stats.sessions_opened == 44


async def test_a_key_has_its_sessions_once_in_the_fleet(valkey: RedisServer, simulator: SimulatorFactory) -> None:
    """``max_sessions`` of a virtual key counts sessions at all replicas."""
    key = "sk-of-a-team-0123456789"
    config = fleet_config(valkey, await simulator())
    config["general_settings"] = {
        "keys": [{"name": "team", "sha256": f"sha256:{sha256(key.encode()).hexdigest()}", "max_sessions": 3}]
    }
    async with replicas(config, 2) as (first, second), clients() as open_many:
        await open_many(partial(first.connect, key=key), 2)
        await until(lambda: second.engine._picture.sessions_of_key("team") == 2, every_s=0.02)
        await open_many(partial(second.connect, key=key), 1)
        answer = await second.request("/v1/realtime?model=voice", upgrade=True, key=key)
        assert answer.status == 429


# --- crashes -------------------------------------------------------------------------------------


async def sees(router: RouterProcess) -> dict[str, int]:
    """What a replica's metrics say of sessions elsewhere, by deployment."""
    async with aiohttp.ClientSession() as client, client.get(f"{router.http}/metrics") as response:
        lines = (await response.text()).splitlines()
    name = "realtime_router_deployment_sessions_elsewhere{"
    return {line.split('deployment="')[1].split('"')[0]: int(float(line.split()[-1])) for line in lines if line.startswith(name)}


def dial(router: RouterProcess) -> Callable[[], Any]:
    """A client of a replica."""
    return partial(connect, router.url(MODEL), proxy=None, compression=None)


async def test_the_counts_and_places_of_a_killed_replica_end(
    valkey: RedisServer, simulator: SimulatorFactory, tmp_path: Path
) -> None:
    """Three replicas and 300 clients at once at a hard limit of 50: never more than that. Then the one with most is killed."""
    limited, other = await simulator(), await simulator()
    entries = [deployment_of(limited, id="limited", max_sessions=50), deployment_of(other, id="other", order=1)]
    config = written(tmp_path, fleet_config(valkey, *entries))
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        starting = [stack.enter_async_context(router_process(config)) for _ in range(3)]
        routers = [await each for each in starting]
        open_many = await stack.enter_async_context(clients())
        await asyncio.gather(*(open_many(dial(router), 100) for router in routers))
        assert limited.stats.active == 50
        assert limited.stats.peak == 50
        assert other.stats.active == 250

        await until_async(partial(_each_sees, routers, 200))
        held = [await sees(router) for router in routers]
        assert sum(seen["limited"] for seen in held) == 100
        # Who holds most sees least of it elsewhere.
        victim = min(range(3), key=lambda index: held[index]["limited"])
        places = 50 - held[victim]["limited"]
        witness = routers[(victim + 1) % 3]
        own = 50 - held[(victim + 1) % 3]["limited"]
        routers[victim].signal(SIGKILL)
        killed = loop.time()
        await until_async(partial(_sees_on, witness, "limited", 50 - places - own))
        # One entry's life and one beat; what a look takes on a busy machine is this test's own affair.
        assert loop.time() - killed < SHARE_TTL_S + 1.0 + LATE_S
        assert limited.stats.active == 50 - places

        # Until its places end, the room is nobody's; then it is everybody's again.
        while limited.stats.active == 50 - places:
            assert loop.time() - killed < PLACE_TTL_S + 1.0 + LATE_S
            await open_many(dial(witness), 1)
            await asyncio.sleep(0.1)
        await open_many(dial(witness), places)
        assert limited.stats.active == 50
        assert limited.stats.peak == 50


async def _each_sees(routers: Sequence[RouterProcess], sessions: int) -> bool:
    return all([sum((await sees(router)).values()) == sessions for router in routers])


async def _sees_on(router: RouterProcess, deployment: str, sessions: int) -> bool:
    return (await sees(router))[deployment] == sessions


# --- a server in trouble -------------------------------------------------------------------------


# A server without memory is another matter: it lets a script that has begun to write go on, so beats are answered all the same.
TROUBLES = (frozen, restarted, read_only, babbling)


@pytest.mark.parametrize("trouble", TROUBLES, ids=[trouble.__name__ for trouble in TROUBLES])
async def test_a_server_in_trouble_is_not_felt(valkey: RedisServer, simulator: SimulatorFactory, trouble: Any) -> None:
    """Running sessions go on, new ones begin and balance by own counts, the log says so once, and it heals in two beats."""
    sims = [await simulator() for _ in range(4)]
    # One of them has a limit across the fleet, so that sessions do ask the server.
    entries = [deployment_of(sim, id=f"d{index}") for index, sim in enumerate(sims)]
    entries[0]["litellm_params"]["max_sessions"] = 1000
    async with replicas(fleet_config(valkey, *entries), 2) as routers, clients() as open_many:
        running = [ws for router in routers for ws in await open_many(router.connect, 10)]
        assert (await routers[0].request("/admin/deployments")).json["fleet"]["mode"] == "fresh"
        async with trouble(valkey):
            await asyncio.gather(*(told_lost(router) for router in routers))
            for ws in running:
                assert (await run_turn(ws))[-1] == "response.done"
            for router in routers:
                await open_many(router.connect, 60)
            assert excess(sims, [1, 1, 1, 1]) <= 0.10
            assert all(router.engine.fleet is not None and not router.engine.fleet.gate.reachable for router in routers)
        beats = [len([beat for beat in router.of(FleetBeat) if beat.outcome == "answered"]) for router in routers]
        await acquainted(routers, 2)
        for router, before in zip(routers, beats, strict=True):
            row = [beat.outcome for beat in router.of(FleetBeat)]
            answered = row.count("answered") - before
            # One that still knows this replica is enough; of one that does not the second counts. The other replica may take one
            # more to come back.
            assert 1 <= answered <= 4
            lines = [notice.event for notice in router.of(Notice) if notice.event.startswith("fleet")]
            assert lines == ["fleet joined", "fleet: shared state is lost", "fleet: shared state is back"]
        for ws in running:
            assert (await run_turn(ws))[-1] == "response.done"
        assert not [record for router in routers for record in router.records]
        truth = sum(sim.stats.active for sim in sims)
        for router in routers:
            await until(partial(_sees, router, truth), every_s=0.02)


def _sees(router: RunningRouter, sessions: int) -> bool:
    return sum(each.sessions + each.elsewhere.sessions for each in router.engine.pool.deployments) == sessions


async def test_a_server_without_memory_is_not_felt(server: RedisServer, simulator: SimulatorFactory) -> None:
    """Whether such a server answers or refuses, sessions begin, go on and balance, and it is known again two beats after."""
    sims = [await simulator() for _ in range(4)]
    async with replicas(fleet_config(server, *sims, max_sessions=1000), 2) as routers, clients() as open_many:
        running = [ws for router in routers for ws in await open_many(router.connect, 10)]
        async with out_of_memory(server):
            for router in routers:
                await router.until(FleetBeat, len(router.of(FleetBeat)) + 3)
                await open_many(router.connect, 60)
            for ws in running:
                assert (await run_turn(ws))[-1] == "response.done"
            assert excess(sims, [1, 1, 1, 1]) <= 0.10
        await acquainted(routers, 2)
        assert len([notice for router in routers for notice in router.of(Notice)]) <= 6
        assert not [record for router in routers for record in router.records]


async def told_lost(router: RunningRouter, *, joined: bool = True) -> None:
    """Wait until the log says that the server is lost."""
    lost = await router.until(Notice, where=lambda notice: notice.event.startswith("fleet: shared state"))
    assert lost.level == "warning"
    assert lost.event == f"fleet: shared state {'is lost' if joined else 'cannot be reached'}"
    assert "127.0.0.1:" in lost.facts["server"] and lost.facts["error"]


async def test_a_router_starts_without_its_server(valkey: RedisServer, simulator: SimulatorFactory) -> None:
    """A server that is away at the start is no reason not to serve; it is found when it comes."""
    await valkey.kill()
    async with running_router(fleet_config(valkey, await simulator())) as router:
        await router.session()
        await told_lost(router, joined=False)
        await valkey.start()
        await acquainted([router], 1)
        await router.session()


async def test_places_are_refused_while_the_server_is_away_where_that_is_asked_for(
    valkey: RedisServer, simulator: SimulatorFactory
) -> None:
    """``on_redis_loss: closed``: nothing is granted on a deployment with a hard limit; the next deployment serves."""
    limited, other = await simulator(), await simulator()
    entries = [deployment_of(limited, id="d0", max_sessions=5), deployment_of(other, id="d1", order=1)]
    config = fleet_config(valkey, *entries)
    config["router_settings"]["on_redis_loss"] = "closed"
    async with replicas(config, 1) as (router,):
        await router.session()
        assert limited.stats.sessions_opened == 1
        await valkey.kill()
        for _ in range(10):
            await router.session()
        assert limited.stats.sessions_opened == 1
        assert other.stats.sessions_opened == 10
        assert router.records[-1].status == 101


# --- load ----------------------------------------------------------------------------------------


async def test_one_round_trip_a_second_whatever_the_rate_of_sessions(valkey: RedisServer, simulator: SimulatorFactory) -> None:
    """With 20 deployments, idle and busy: as many calls as beats, and as many beats as seconds."""
    sim = await simulator()
    entries = [deployment_of(sim, id=f"d{index}") for index in range(20)]
    async with replicas(fleet_config(valkey, *entries), 1) as (router,):
        loop = asyncio.get_running_loop()

        async def calls() -> int:
            commands = await valkey.commands()
            return commands.get("evalsha", 0) + commands.get("eval", 0)

        rates = []
        for sessions_at_once in (0, 20):
            before, beats, started = await calls(), len(router.of(FleetBeat)), loop.time()
            while loop.time() - started < 3.0:
                await asyncio.gather(*(router.session() for _ in range(sessions_at_once)))
                await asyncio.sleep(0.05)
            elapsed = loop.time() - started
            made = await calls() - before
            assert made <= len(router.of(FleetBeat)) - beats + 1
            rates.append(made - elapsed)
        # A beat more or less at the edges of what was measured, and 4 % of jitter.
        assert max(rates) <= 2
        stats = await valkey.commands()
        assert not stats.keys() & {"incr", "incrby", "decr", "decrby", "hincrby", "get", "set", "publish", "subscribe"}


async def test_nothing_outlives_the_fleet(server: RedisServer, simulator: SimulatorFactory) -> None:
    """Every key has an end, and those who leave in order take their entries along."""
    sim = await simulator()
    async with replicas(fleet_config(server, sim, max_sessions=10), 2) as routers, clients() as open_many:
        await open_many(routers[0].connect, 5)
        await until_async(partial(_has, server, "places"))
        ttls = await server.ttls()
        assert len(ttls) == 3
        assert all(0 < left <= 15_000 for left in ttls.values())
    await until_async(partial(_lacks, server, "members"))
    assert not [key for key in await server.ttls() if "places" not in key]


async def _has(server: RedisServer, word: str) -> bool:
    return any(word in key for key in await server.ttls())


async def _lacks(server: RedisServer, word: str) -> bool:
    return not await _has(server, word)
