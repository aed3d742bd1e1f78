"""Active probing: a dead deployment is found before a client finds it, and a mended one comes back without a client's time."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from router.events import Admitted, Ejected, Probed
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.running import config_of, deployment_of, dialled, next_type, running_router

CHECK: dict[str, Any] = {"interval_s": 1, "timeout_s": 0.5}


async def test_off_by_default(simulator: SimulatorFactory) -> None:
    """Every probe is a session that the provider may bill: none is opened unless it is configured."""
    sim = await simulator()
    async with running_router(config_of(sim)) as router:
        assert not any("health check" in name for name in router.engine.tasks.names)
        assert sim.stats.connections == 0


async def test_a_probe_opens_a_session_and_closes_it(simulator: SimulatorFactory) -> None:
    """Its first good event is what counts; it is closed with 1000, holds no place, and makes no session record."""
    sim = await simulator(name="first")
    async with running_router(config_of(sim, health_check=CHECK)) as router:
        probed = await router.until(Probed)
        assert (probed.deployment, probed.outcome) == ("first", "ready") and probed.seconds > 0
        await sim.stats.wait_until(lambda stats: stats.close_codes[1000] == 1)
        assert router.leases == 0 and not router.records and not router.attempts
        assert router.deployment("first").ready_s is not None
        seen = sim.stats.last_request
        assert seen is not None and seen.headers["Authorization"].startswith("Bearer ")


async def test_probes_are_at_least_the_interval_apart(simulator: SimulatorFactory) -> None:
    """They cost money: jitter only ever lengthens the time between them, from one's end to the next one's beginning."""
    sim = await simulator(name="first")
    async with running_router(config_of(sim, health_check={"interval_s": 1, "timeout_s": 0.5})) as router:
        loop = asyncio.get_running_loop()
        told: list[float] = []
        # At the moment it is told, from which the wait begins: what else the loop is busy with makes no difference.
        router.engine.tell.add(lambda event: told.append(loop.time()) if isinstance(event, Probed) else None)
        await router.until(Probed, 3)
        assert all(later - earlier >= 0.99 for earlier, later in pairwise(told))
        assert len(sim.stats.requests) == 3


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [("status=503", "refused"), ("hang_after_101", "timeout"), ("hang_before_101", "timeout"), ("refuse", "unreachable")],
)
async def test_a_dead_deployment_is_found_out_and_comes_back(simulator: SimulatorFactory, fault: str, outcome: str) -> None:
    """Failed probes eject it before any client; a good one readmits it although its time is not over."""
    first, second = await simulator(name="first", faults=[fault]), await simulator(name="second")
    check = {"interval_s": 1, "timeout_s": 0.3}
    config = config_of(deployment_of(first, health_check=check), second, router={"allowed_fails": 1})
    async with running_router(config) as router:
        assert (await router.until(Probed)).outcome == outcome
        assert (await router.until(Ejected)).deployment == "first"
        assert dialled(await router.session()) == ["second"]
        first.clear_faults()
        assert (await router.until(Admitted)).deployment == "first"
        assert dialled(await router.session()) == ["first"]


async def test_a_refused_key_is_found_by_a_probe(simulator: SimulatorFactory) -> None:
    """With its alarm, before a client meets it."""
    sim = await simulator(name="first", api_keys=["sk-other"])
    async with running_router(config_of(sim, health_check=CHECK)) as router:
        assert (await router.until(Probed)).outcome == "authentication"
        assert [alarm.deployment for alarm in router.alarms] == ["first"]


async def test_a_probe_takes_no_sessions_place(simulator: SimulatorFactory) -> None:
    """A full deployment is not probed: its running sessions prove it, and the provider might refuse one more."""
    sim = await simulator(name="first")
    config = config_of(deployment_of(sim, max_sessions=1, health_check={"interval_s": 1, "timeout_s": 0.5}))
    async with running_router(config) as router, router.connect() as ws:
        assert await next_type(ws) == "session.created"
        before = len(router.of(Probed))
        await asyncio.sleep(1.3)  # time enough for a probe, which is what must not happen
        assert len(router.of(Probed)) == before and len(sim.stats.requests) == before + 1


async def test_probing_ends_with_the_router(simulator: SimulatorFactory) -> None:
    """A probe under way does not keep the process, nor its place."""
    sim = await simulator(name="first", faults=["hang_after_101"])
    async with running_router(config_of(sim, health_check={"interval_s": 1, "timeout_s": 30}, ready_timeout_s=30)) as router:
        await sim.stats.wait_until(lambda stats: stats.active == 1)
        assert router.leases == 1
