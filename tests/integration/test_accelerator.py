"""The router says which form of the fast path it runs on, and a session is the same, and counted the same, on both."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import aiohttp
import pytest
from websockets.asyncio.client import connect

from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.parts import require
from tests.helpers.processes import router_process, written
from tests.helpers.running import config_of, next_type, run_turn

DELTA = "response.output_audio.delta"


@pytest.mark.parametrize(("wish", "form"), [("0", "pure"), ("1", "accelerated")])
async def test_the_log_says_which_form_relays(simulator: SimulatorFactory, tmp_path: Path, wish: str, form: str) -> None:
    """An operator reads it in the line that says where the router listens; every event of a turn is passed and counted."""
    if wish == "1":
        require("accelerator")
    sim = await simulator()
    async with router_process(written(tmp_path, config_of(sim)), environ={"REALTIME_ROUTER_ACCEL": wish}) as router:
        async with connect(router.url("voice"), max_size=None) as ws:
            types = [await next_type(ws), *await run_turn(ws)]
        record = await router.logged("session ended")
        async with aiohttp.ClientSession() as client, client.get(f"{router.http}/metrics") as response:
            metrics = await response.text()
        assert await router.end(signal.SIGTERM) == 0
    assert [line["relay"] for line in router.lines("listening")] == [form]
    # The greeting's events come before the turn's; some of them may be on their way when it ends.
    assert record["upstream_events"] >= len(types)
    counted = re.findall(rf'^realtime_router_events_total\{{.*type="{DELTA}".*\}} (\S+)$', metrics, re.MULTILINE)
    assert sum(map(float, counted)) == types.count(DELTA) > 3
