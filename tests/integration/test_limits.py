"""Limits: those of deployments, of providers that say so, of keys, and of the process itself."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from email.utils import formatdate
from time import time
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from router.events import CooledDown
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.running import (
    BROWSER,
    RunningRouter,
    config_of,
    deployment_of,
    dialled,
    next_event,
    next_type,
    outcomes,
    run_turn,
    running_router,
)

TEAM = "rr-team-0123456789abcdef"


async def open_sessions(router: RunningRouter, stack: AsyncExitStack, count: int, **options: Any) -> list[ClientConnection]:
    """Open sessions that stay open until ``stack`` ends."""
    opened = []
    for _ in range(count):
        ws = await stack.enter_async_context(router.connect(**options))
        assert await next_type(ws) == "session.created"
        opened.append(ws)
    return opened


# --- max_sessions of a deployment ------------------------------------------------------------------


async def test_one_of_two_at_its_limit(simulator: SimulatorFactory) -> None:
    """A full deployment is not dialled; the next one serves, and the first does again when a place is free."""
    first, second = await simulator(name="first"), await simulator(name="second")
    async with running_router(config_of(deployment_of(first, max_sessions=2), second)) as router, AsyncExitStack() as stack:
        opened = await open_sessions(router, stack, 3)
        assert (router.deployment("first").sessions, router.deployment("second").sessions) == (2, 1)
        await opened[0].close()
        await router.until_true(lambda: router.deployment("first").sessions == 1)
        await open_sessions(router, stack, 1)
        assert (router.deployment("first").sessions, router.deployment("second").sessions) == (2, 1)
        assert first.stats.peak == 2


async def test_a_burst_never_exceeds_a_limit(simulator: SimulatorFactory) -> None:
    """The place is taken before anything waits: 30 sessions at once on 5 + 25 places fill both exactly."""
    first, second = await simulator(name="first", faults=["slow_first_event=0.2"]), await simulator(name="second")
    config = config_of(deployment_of(first, max_sessions=5), deployment_of(second, max_sessions=25))
    async with running_router(config) as router, AsyncExitStack() as stack:
        sessions = await asyncio.gather(*(stack.enter_async_context(router.connect()) for _ in range(30)))
        assert {await next_type(ws) for ws in sessions} == {"session.created"}
        assert (first.stats.peak, second.stats.peak) == (5, 25)
        answer = await router.refused()
        assert answer.status == 429 and answer.retry_after_s >= 1


async def test_both_full_is_a_429_in_both_forms(simulator: SimulatorFactory) -> None:
    """Nothing is dialled for it; a browser is told to try later."""
    sims = [await simulator(name=name) for name in ("first", "second")]
    async with running_router(config_of(*sims, max_sessions=1)) as router, AsyncExitStack() as stack:
        opened = await open_sessions(router, stack, 2)
        answer = await router.refused()
        assert (answer.status, answer.error["type"], answer.error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert 1 <= answer.retry_after_s <= 60
        async with router.connect(headers={**BROWSER, "Origin": router.http}) as ws:
            assert (await next_event(ws))["error"]["code"] == "rate_limit_exceeded"
            await ws.wait_closed()
        assert ws.close_code == 1013
        assert [record.status for record in router.records] == [429, 429] and not any(r.attempts for r in router.records)
        assert "response.done" in await run_turn(opened[0]), "the running sessions go on"


async def test_full_before_fallback_groups(simulator: SimulatorFactory) -> None:
    """A full group spills over to the groups it falls back to."""
    first, second = await simulator(name="first"), await simulator(name="second")
    entries = [deployment_of(first, max_sessions=1), deployment_of(second, model="other")]
    config = config_of(*entries, router={"fallbacks": [{"voice": ["other"]}]})
    async with running_router(config) as router, AsyncExitStack() as stack:
        await open_sessions(router, stack, 2)
        assert (router.deployment("first").sessions, router.deployment("second").sessions) == (1, 1)


async def test_rpm_bounds_starts(simulator: SimulatorFactory) -> None:
    """Sessions that have ended count for a minute; then the Retry-After says how long."""
    first, second = await simulator(name="first"), await simulator(name="second")
    async with running_router(config_of(first, second, rpm=2)) as router:
        served = [(await router.session()).deployment for _ in range(4)]
        assert served == ["first", "first", "second", "second"]
        answer = await router.refused()
        assert answer.status == 429 and 30 <= answer.retry_after_s <= 60


async def test_tpm_bounds_tokens(simulator: SimulatorFactory) -> None:
    """The first turn's usage is more than the limit, so the next session goes elsewhere."""
    first, second = await simulator(name="first"), await simulator(name="second")
    async with running_router(config_of(deployment_of(first, tpm=5), second)) as router:
        assert (await router.session(turn=True)).deployment == "first"
        assert (await router.session()).deployment == "second"


# --- a provider that says so -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    ["status=429,retry_after=1.2", "status=429,retry_after=1.2,code=rate_limit_exceeded"],
    ids=["bare", "with a body"],
)
async def test_a_429_cools_down_and_comes_back(simulator: SimulatorFactory, fault: str) -> None:
    """The session goes on with the next one; for as long as was asked nobody dials the first; then it serves again."""
    first, second = await simulator(name="first", faults=[f"{fault},next=1"]), await simulator(name="second")
    async with running_router(config_of(first, second)) as router:
        assert outcomes(await router.session()) == ["rate_limited", "ready"]
        assert [event.deployment for event in router.cool_downs] == ["first"]
        assert router.cool_downs[0].seconds == pytest.approx(1.2, abs=0.01)
        assert router.deployment("first").state == "cooling_down"
        assert dialled(await router.session()) == ["second"] and len(first.stats.requests) == 1
        assert not router.ejections and router.deployment("first").breaker.failures == 0
        await router.until_true(lambda: router.deployment("first").state == "admitting")
        assert dialled(await router.session()) == ["first"]


@pytest.mark.parametrize(
    ("retry_after", "low", "high"),
    [("7", 7, 7), (None, 5, 5), ("100000", 60, 60), ("0", 5, 5), ("date", 25, 30), ("soon", 5, 5)],
)
async def test_retry_after_is_honoured_within_reason(
    simulator: SimulatorFactory, retry_after: str | None, low: float, high: float
) -> None:
    """Seconds or a date, at most a minute, five seconds when it does not say; the client hears the same."""
    sim = await simulator()
    written = formatdate(time() + 30, usegmt=True) if retry_after == "date" else retry_after
    sim.set_fault("status", status=429, retry_after=written)
    async with running_router(config_of(sim)) as router:
        answer = await router.refused()
        assert answer.status == 429 and low - 1 <= answer.retry_after_s <= high
        assert low - 0.1 <= router.cool_downs[0].seconds <= high
        again = await router.refused()
        assert again.status == 429 and len(sim.stats.requests) == 1, "it is left alone meanwhile"


async def test_a_rate_limit_event_cools_down(simulator: SimulatorFactory) -> None:
    """A 101 and then ``rate_limit_exceeded`` is a limit too, no outage."""
    first = await simulator(name="first", faults=["error_event=rate_limit_exceeded,type=requests"])
    async with running_router(config_of(first, await simulator(name="second"))) as router:
        assert outcomes(await router.session()) == ["rate_limited", "ready"]
        assert router.cool_downs[0].seconds == 5.0 and not router.ejections


async def test_a_dial_that_was_under_way_does_not_end_a_cool_down(simulator: SimulatorFactory) -> None:
    """At its limit a provider accepts some and refuses some: an older dial's success must not undo the Retry-After.

    It did, and under load, where some dial is always under way, the cool-down never lasted.
    """
    first, second = await simulator(name="first", faults=["slow_first_event=1,next=1"]), await simulator(name="second")
    async with running_router(config_of(first, second, router={"stagger_s": 5})) as router:
        slow = asyncio.create_task(router.session())
        await first.stats.wait_until(lambda stats: len(stats.requests) == 1)
        first.set_fault("status=429,retry_after=30")
        assert outcomes(await router.session()) == ["rate_limited", "ready"]
        assert (await slow).deployment == "first"
        assert router.deployment("first").state == "cooling_down"
        assert dialled(await router.session()) == ["second"]


async def test_a_limit_that_a_running_session_is_told_counts_for_new_ones(simulator: SimulatorFactory) -> None:
    """A failed turn with ``rate_limit_exceeded``: the session is not touched, new ones go elsewhere for a while."""
    first = await simulator(name="first", faults=["fail_turn=rate_limit_exceeded,type=requests,next=1"])
    async with running_router(config_of(first, await simulator(name="second"))) as router:
        async with router.connect() as ws:
            assert await next_type(ws) == "session.created"
            assert "response.done" in await run_turn(ws)
            await router.until(CooledDown)
            assert (await router.session()).deployment == "second"
            assert "response.done" in await run_turn(ws)


async def test_a_provider_at_its_own_session_limit(simulator: SimulatorFactory) -> None:
    """Its 429 spills sessions over; the ones it has run on."""
    first, second = await simulator(name="first", max_sessions=2), await simulator(name="second")
    async with running_router(config_of(first, second)) as router, AsyncExitStack() as stack:
        opened = await open_sessions(router, stack, 6)
        assert (first.stats.active, second.stats.active) == (2, 4)
        assert "response.done" in await run_turn(opened[0])


# --- a key's and the process's limits --------------------------------------------------------------------


async def test_a_keys_own_limit(simulator: SimulatorFactory) -> None:
    """``max_sessions`` of a virtual key: 429 for that key alone, until one of its sessions ends."""
    keys = [
        {"name": "team", "sha256": "sha256:" + hashlib.sha256(TEAM.encode()).hexdigest(), "max_sessions": 2},
        {"name": "rest", "sha256": "sha256:" + hashlib.sha256(b"rr-rest-0123456789").hexdigest()},
    ]
    config = config_of(await simulator(), general={"keys": keys})
    async with running_router(config) as router, AsyncExitStack() as stack:
        opened = await open_sessions(router, stack, 2, key=TEAM)
        answer = await router.refused(headers={"Authorization": f"Bearer {TEAM}"})
        assert answer.status == 429 and answer.error["code"] == "rate_limit_exceeded" and answer.retry_after_s >= 1
        # Not "all deployments": whoever reads it has the key's own sessions to look at.
        assert "This API key" in answer.error["message"] and "deployments" not in answer.error["message"]
        assert (await router.session(key="rr-rest-0123456789")).principal == "rest"
        await opened[0].close()
        await router.until_true(lambda: router.engine.sessions == 1)
        assert (await router.session(key=TEAM)).principal == "team"


async def test_a_keys_places_come_back_from_failed_searches(simulator: SimulatorFactory) -> None:
    """Refused sessions hold no place afterwards, however many there were."""
    keys = [{"name": "team", "sha256": "sha256:" + hashlib.sha256(TEAM.encode()).hexdigest(), "max_sessions": 1}]
    sim = await simulator(faults=["status=503"])
    config = config_of(sim, router={"num_retries": 0, "allowed_fails": 10_000}, general={"keys": keys})
    async with running_router(config) as router:
        for _ in range(5):
            assert (await router.refused(headers={"Authorization": f"Bearer {TEAM}"})).status == 503
        sim.clear_faults()
        assert (await router.session(key=TEAM)).status == 101


async def test_the_process_is_full(simulator: SimulatorFactory) -> None:
    """``max_sessions`` of the process: 503 before descriptors run out, in both forms, and nothing is dialled."""
    sim = await simulator()
    async with running_router(config_of(sim, general={"max_sessions": 2})) as router, AsyncExitStack() as stack:
        opened = await open_sessions(router, stack, 2)
        answer = await router.refused()
        assert (answer.status, answer.error["code"], answer.retry_after_s) == (503, "router_overloaded", 5)
        async with router.connect(headers={**BROWSER, "Origin": router.http}) as ws:
            assert (await next_event(ws))["error"]["code"] == "router_overloaded"
            await ws.wait_closed()
        assert ws.close_code == 1013 and len(sim.stats.requests) == 2
        assert (await router.request("/health/live")).status == 200
        await opened[0].close()
        await router.until_true(lambda: router.engine.sessions == 1)
        assert (await router.session()).status == 101


async def test_too_many_searches_at_once(simulator: SimulatorFactory) -> None:
    """``max_pending`` bounds the sessions that look for an upstream, not those that have one."""
    slow = await simulator(faults=["slow_first_event=1"])
    async with running_router(config_of(slow, general={"max_pending": 3})) as router:
        waiting = [asyncio.create_task(router.session()) for _ in range(3)]
        await slow.stats.wait_until(lambda stats: len(stats.requests) == 3)
        answer = await router.refused()
        assert (answer.status, answer.error["code"]) == (503, "router_overloaded")
        assert {record.status for record in await asyncio.gather(*waiting)} == {101}
        assert [refusal.code for refusal in router.refusals] == ["router_overloaded"]
        slow.clear_faults()
        async with AsyncExitStack() as stack:
            await open_sessions(router, stack, 5)
