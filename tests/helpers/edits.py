"""A configuration that is edited again and again while calls run, and what that does to them."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.calls import Calls, calls, simulator_process
from tests.helpers.processes import PATIENCE_S, RouterProcess, router_process
from tests.helpers.running import MODEL, deployment_of

# Broken in different ways: no YAML, a wrong key, a wrong value, nothing in it, half of it.
_BROKEN = ("model_list: [", "", "general_settings: {lissen: 1}\n", "model_list: 7\n", "\tx")
# Calls that do not go through the router, to compare with.
_CONTROLS = 10


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        harmed: calls through the router that ended or heard something else.
        gap_s: longest gap of a call through the router; control_gap_s: of one without, in the same time.
        followed_s: from each valid edit until new sessions follow it.
        valid, broken: edits made.
        metrics: samples of the router at the end, by name and labels.
        heard: frames that came back through the router.
    """

    harmed: list[str] = field(default_factory=list)
    gap_s: float = 0.0
    control_gap_s: float = 0.0
    followed_s: list[float] = field(default_factory=list)
    valid: int = 0
    broken: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    heard: int = 0

    @property
    def summary(self) -> str:
        """For people."""
        followed = sorted(self.followed_s)
        return (
            f"{self.valid} valid and {self.broken} broken edits; {self.heard} frames heard; gap {self.gap_s * 1000:.0f} ms "
            f"through the router, {self.control_gap_s * 1000:.0f} ms without; followed after {statistics.median(followed):.2f} s "
            f"(median), {followed[-1]:.2f} s (most)"
        )


def config_text(bases: list[str], number: int, rng: random.Random, *, general: dict[str, Any] | None = None) -> str:
    """Return the configuration of an edit: deployments come and go and change their weights; the first one stays.

    An alias of the edit's number tells which configuration is in force.
    """
    count = 1 + rng.randrange(4)
    entries = []
    for index in range(count):
        params: dict[str, Any] = {"ready": "handshake", "weight": 1 + rng.randrange(9)}
        if rng.random() < 0.3:
            params["max_sessions"] = 500 + number
        base = bases[index % len(bases)]
        entries.append(deployment_of(base, id=f"echo{index}", provider="openai_compatible", **params))
    return json.dumps(
        {
            "model_list": entries,
            "router_settings": {"model_group_alias": {f"edit-{number}": MODEL}, "allowed_fails": 1 + rng.randrange(5)},
            **({"general_settings": general} if general else {}),
        },
        indent=1,
    )


@asynccontextmanager
async def under_load(
    folder: Path, sessions: int, *, general: dict[str, Any] | None = None
) -> AsyncIterator[tuple[RouterProcess, Calls, Calls, list[str], Path]]:
    """Run a router with calls through it, and some without it; gives both, the providers' bases, and the file."""
    async with simulator_process("--dialect", "echo") as first, simulator_process("--dialect", "echo") as second:
        bases = [first, second]
        path = folder / "config.yaml"
        path.write_text(config_text(bases, 0, random.Random(0), general=general), encoding="utf-8")
        async with router_process(path) as router:
            direct = f"ws{first.removeprefix('http')}/realtime?model=x"
            async with (
                calls(direct, _CONTROLS, may_end=True) as control,
                calls(router.url(MODEL), sessions, may_end=True) as through,
            ):
                yield router, through, control, bases, path


async def edit(folder: Path, *, sessions: int, edits: int, seed: int = 1, general: dict[str, Any] | None = None) -> Outcome:
    """Edit a router's configuration under load.

    Args:
        folder: for the file.
        sessions: calls through the router.
        edits: how many, broken ones among them.
        seed: of what is edited.
        general: more of ``general_settings``.
    """
    rng = random.Random(seed)
    outcome = Outcome()
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        under_load(folder, sessions, general=general) as (router, through, control, bases, path),
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        through.forget_gaps()
        control.forget_gaps()
        for number in range(1, edits + 1):
            if number % 5 == 0:
                _write(path, rng.choice(_BROKEN), rng)
                outcome.broken += 1
                await router.logged("configuration refused", outcome.broken)
                continue
            _write(path, config_text(bases, number, rng, general=general), rng)
            outcome.valid += 1
            outcome.followed_s.append(await _followed(http, router, f"edit-{number}"))
        outcome.gap_s, outcome.control_gap_s = through.gap_s, control.gap_s
        outcome.harmed = [*through.harmed, *(f"ended with {call.code}" for call in through.ended)]
        async with http.get(f"{router.http}/metrics") as response:
            page = await response.text()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                outcome.metrics[f"{sample.name.removeprefix('realtime_router_')}{{{labels}}}"] = sample.value
        outcome.heard = through.heard
    outcome.harmed += through.harmed
    return outcome


def _write(path: Path, text: str, rng: random.Random) -> None:
    """Write as some editors do, or as the others."""
    if rng.random() < 0.5:
        path.write_text(text, encoding="utf-8")
        return
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


async def _followed(http: aiohttp.ClientSession, router: RouterProcess, alias: str) -> float:
    """Wait until the router goes by a configuration with this alias; return the seconds that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with http.get(f"{router.http}/v1/models") as response:
                names = [model["id"] for model in (await response.json())["data"]]
            if alias in names:
                return loop.time() - began
            await asyncio.sleep(0.01)
