"""``root_path``: everything is served under a proxy's prefix, and without it for whoever does not come through the proxy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.processes import router_process, written
from tests.helpers.running import BROWSER, MODEL, PATIENCE_S, config_of, next_type, run_turn, running_router

HEALTH = ("/health/live", "/health/ready", "/health/liveliness", "/health/readiness")
PATHS = (*HEALTH, "/metrics", "/v1/models", "/admin/deployments")


@pytest.mark.parametrize("prefix", ["", "/voice", "/a/b.c"])
@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/realtime/", "/realtime", "/openai/v1/realtime", "/openai/realtime"])
async def test_sessions_under_the_prefix(simulator: SimulatorFactory, prefix: str, path: str) -> None:
    """Each of the paths that clients build, with it and without it."""
    config = config_of(await simulator(), general={"root_path": prefix or "/"})
    async with running_router(config) as router:
        for at in dict.fromkeys((prefix + path, path)):
            async with router.connect(path=at) as ws:
                assert await next_type(ws) == "session.created"
            assert (await router.record_of(ws)).status == 101


async def test_everything_else_under_the_prefix(simulator: SimulatorFactory) -> None:
    """Pages of clients and of operators; a prefix that is another, or comes twice, is no path."""
    async with running_router(config_of(await simulator(), general={"root_path": "/voice/"})) as router:
        for path in PATHS:
            for prefix in ("/voice", ""):
                assert (await router.request(prefix + path)).status == 200, prefix + path
        for path in ("/voic/health/live", "/voicehealth/live", "/voice/voice/health/live", "/VOICE/health/live", "/VOICE"):
            assert (await router.request(path)).status == 404, path


async def test_the_dashboard_is_found_without_the_last_slash(simulator: SimulatorFactory) -> None:
    """Its page's addresses are relative, so a browser is sent to the one with it; relatively, whatever stands before."""
    async with running_router(config_of(await simulator(), general={"root_path": "/a/b.c"})) as router:
        for asked, told in (("/a/b.c", "b.c/"), ("/a/b.c?x=%20", "b.c/?x=%20")):
            answer = await router.request(asked)
            assert (answer.status, answer.headers["Location"]) == (308, told)
        assert (await router.request("/a/b.c/")).status == 200
    async with running_router(config_of(await simulator(), general={"root_path": "/voice", "dashboard": False})) as router:
        assert (await router.request("/voice")).status == 404


async def test_the_operators_address_has_the_prefix_too(simulator: SimulatorFactory) -> None:
    """A proxy may pass both on."""
    general = {"root_path": "/voice", "ops_listen": "127.0.0.1:0"}
    async with running_router(config_of(await simulator(), general=general)) as router:
        listen, ops = router.port, router.server.addresses[-1][1]
        for path, port, status in (("/metrics", ops, 200), ("/health/ready", ops, 200), ("/v1/models", ops, 404)):
            for prefix in ("/voice", ""):
                # The address is the only thing that ``request`` takes from here.
                router.server.addresses[0] = ("127.0.0.1", port)
                assert (await router.request(prefix + path)).status == status, prefix + path
        router.server.addresses[0] = ("127.0.0.1", listen)
        assert (await router.request("/voice/metrics")).status == 404


async def test_the_handshakes_checks_are_the_same_under_it(simulator: SimulatorFactory) -> None:
    """Key, model, upgrade, origin and the keyless rules, each with its status."""
    key = "sk-client-0123456789abcdef"
    async with running_router(config_of(await simulator(), general={"root_path": "/voice", "master_key": key})) as router:
        path = f"/voice/v1/realtime?model={MODEL}"
        assert (await router.request(path, upgrade=True)).status == 401
        assert (await router.request(path, key=key)).status == 426
        assert (await router.request("/voice/v1/realtime?model=nobody", key=key, upgrade=True)).status == 404
        assert (await router.request("/voice/v1/realtime", key=key, upgrade=True)).status == 400
        headers = {**BROWSER, "Origin": "https://evil.example"}
        async with router.connect(key=key, path="/voice/v1/realtime", headers=headers) as ws:
            assert await next_type(ws) == "error"
            await ws.wait_closed()
            assert ws.close_code == 1008
    async with running_router(config_of(await simulator(), general={"root_path": "/voice"})) as router:
        for path in ("/voice/v1/models", f"/voice/v1/realtime?model={MODEL}"):
            answer = await router.request(path, headers={"X-Forwarded-For": "203.0.113.9"}, upgrade="realtime" in path)
            assert answer.status == 403


@pytest.mark.parametrize("workers", [1, 2] if sys.platform.startswith("linux") else [1])
async def test_the_address_that_is_printed_has_the_prefix(simulator: SimulatorFactory, tmp_path: Path, workers: int) -> None:
    """It works as it stands, with several processes as well."""
    config = config_of(await simulator(), general={"root_path": "/voice", "workers": workers})
    async with router_process(written(tmp_path, config)) as router:
        assert router.base.startswith("ws://127.0.0.1:") and router.base.endswith("/voice/v1/realtime")
        async with connect(router.url(MODEL), proxy=None, open_timeout=PATIENCE_S) as ws:
            assert await next_type(ws) == "session.created"
            assert "response.done" in await run_turn(ws)
