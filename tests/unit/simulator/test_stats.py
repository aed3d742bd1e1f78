"""Counting, waiting for a state, and rate limits."""

from __future__ import annotations

import asyncio
import json

import pytest

from router.simulator.stats import RateMeter, SeenRequest, Stats


def test_requests_are_told_without_their_secrets() -> None:
    """Only values that cannot hold a key are told, and ``repr`` shows none at all."""
    request = SeenRequest(
        path="/v1/realtime",
        query={"model": "m", "api-key": "S3CRET"},
        query_string="model=m&api-key=S3CRET",
        headers={"Authorization": "Bearer S3CRET", "User-Agent": "ua", "X-Own": "S3CRET"},
        protocols=("realtime", "openai-insecure-api-key.S3CRET"),
    )
    stats = Stats()
    stats.requests.append(request)
    told = json.dumps(stats.told())
    assert "S3CRET" not in told + repr(stats) + repr(request)
    assert json.loads(told)["last_request"] == {
        "path": "/v1/realtime",
        "query": {"model": "m", "api-key": "***"},
        "headers": {"authorization": "***", "user-agent": "ua", "x-own": "***"},
        "protocols": ["realtime", "openai-insecure-api-key.***"],
    }


async def test_waiting_for_a_state() -> None:
    """A waiter wakes at a change, at once when the state holds, and gives up in time."""
    stats = Stats()
    await stats.wait_until(lambda seen: seen.active == 0)
    waiting = asyncio.create_task(stats.wait_until(lambda seen: seen.active == 2))
    for _ in range(2):
        await asyncio.sleep(0)
        assert not waiting.done()
        stats.active += 1
        stats.changed()
    await waiting
    with pytest.raises(TimeoutError):
        await stats.wait_until(lambda seen: seen.active == 3, timeout_s=0.01)
    stats.changed()


def test_rate_limits_are_spent_and_refilled() -> None:
    """What is used comes back steadily within a minute, and the rest is never below zero."""
    now_s = 100.0
    meter = RateMeter(clock=lambda: now_s, requests=60, tokens=6_000)
    meter.spend(1_500)
    by_name = {limit["name"]: limit for limit in meter.written()}
    assert by_name["requests"] == {"name": "requests", "limit": 60, "remaining": 59, "reset_seconds": 1.0}
    assert by_name["tokens"] == {"name": "tokens", "limit": 6_000, "remaining": 4_500, "reset_seconds": 15.0}
    now_s += 10
    assert {limit["name"]: limit["remaining"] for limit in meter.written()} == {"requests": 60, "tokens": 5_500}
    meter.spend(100_000)
    assert {limit["name"]: limit["remaining"] for limit in meter.written()}["tokens"] == 0
