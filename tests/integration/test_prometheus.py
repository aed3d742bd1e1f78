"""A real Prometheus scrapes running routers: every query under grafana/ has something to show, and an outage makes alerts fire.

Three routers, each as an operator starts it: ``a`` (one process) and ``b`` (two workers) share a Redis and are one job; ``alone``
is a job of its own without a fleet. Their providers are simulators that this test breaks.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.parts import require
from tests.helpers.processes import RouterProcess, router_process, written
from tests.helpers.prometheus import GRAFANA, RULES, Prometheus, Rule, parse, prometheus, rules, shortened
from tests.helpers.redis_servers import RedisServer, redis_server
from tests.helpers.running import PATIENCE_S, config_of, deployment_of, next_event

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has several workers")

# The rules' minutes are seconds here, so a scrape has to come more often than once a second.
FASTER = 60
SCRAPE = "500ms"
# Sessions that a process holds at most.
MOST = 40
# 200 ms of silence at 24 kHz: a turn is committed by hand, so nothing listens for a voice.
SILENCE = base64.b64encode(bytes(9600)).decode()
# Long enough that a second answer finds a part of it cached.
INSTRUCTIONS = "Be as brief as a good voice agent is. " * 40
BOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


# --- the scene ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Scene:
    """What runs.

    Attributes:
        routers: by name, which is their ``instance`` label.
        sims: providers by the name of their deployment.
        redis: what ``a`` and ``b`` share.
        server: scrapes the routers and evaluates the rules, their times shortened.
    """

    routers: Mapping[str, RouterProcess]
    sims: Mapping[str, Simulator]
    redis: RedisServer
    server: Prometheus

    async def session(self, router: str, group: str, *, turns: int = 1, transcribe: str | None = None) -> None:
        """Run a session with turns by voice, whatever its end."""
        url = self.routers[router].url(group)
        with contextlib.suppress(ConnectionClosed, InvalidStatus):
            async with asyncio.timeout(PATIENCE_S), connect(url, proxy=None, compression=None, ping_interval=None) as ws:
                assert (await next_event(ws))["type"] == "session.created"
                await _configure(ws, transcribe)
                for _ in range(turns):
                    await _speak(ws, transcribed=transcribe is not None)

    async def idle(self, router: str) -> None:
        """Run a session that does nothing until the router ends it."""
        async with asyncio.timeout(PATIENCE_S), connect(self.routers[router].url("short"), proxy=None) as ws:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await ws.recv()

    async def load(self) -> None:
        """Some sessions of every kind on every router."""
        for router in self.routers:
            await asyncio.gather(
                self.session(router, "voice", turns=2, transcribe="whisper-1"),
                self.session(router, "voice", turns=2, transcribe="gpt-4o-transcribe"),
                self.session(router, "voice"),
                self.session(router, "chat"),
                self.session(router, "chat"),
                self.session(router, "dead"),
                self.session(router, "no-such-group"),
                self.idle(router),
            )


async def _configure(ws: ClientConnection, transcribe: str | None) -> None:
    heard: dict[str, Any] = {"turn_detection": None}
    if transcribe is not None:
        heard["transcription"] = {"model": transcribe}
    session = {"type": "realtime", "audio": {"input": heard}, "instructions": INSTRUCTIONS}
    await ws.send(json.dumps({"type": "session.update", "session": session}))
    # The provider's answer is an error event, which ends nothing.
    await ws.send('{"type":"no.such.event"}')


async def _speak(ws: ClientConnection, *, transcribed: bool) -> None:
    """Say something, and wait for the whole answer."""
    await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": SILENCE}))
    await ws.send('{"type":"input_audio_buffer.commit"}')
    await ws.send('{"type":"response.create"}')
    awaited = {"response.done"} | ({"conversation.item.input_audio_transcription.completed"} if transcribed else set())
    while awaited:
        awaited.discard((await next_event(ws))["type"])


@asynccontextmanager
async def scene_of(simulator: SimulatorFactory, folder: Path) -> AsyncIterator[Scene]:
    """Start everything; it ends with the block."""
    program, redis_program = require("prometheus"), require("redis-7.0")
    names = ("good", "flaky", "cutting", "limited", "refusing", "dead", "short", "small")
    sims = {name: await simulator(name=name) for name in names}
    sims["flaky"].set_fault("status=503,every=3")
    sims["cutting"].set_fault("close_after_events=4,every=4")
    sims["limited"].set_fault("status=429,retry_after=1,every=2")
    sims["refusing"].set_fault("error_event=invalid_api_key")
    sims["dead"].set_fault("status=503")
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server(redis_program, folder))
        where = f"redis://127.0.0.1:{redis.port}/0"
        shapes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "a": ({"redis": where}, {}),
            "b": ({"redis": where}, {"workers": 2}),
            "alone": ({}, {}),
        }
        routers: dict[str, RouterProcess] = {}
        for name, (router, general) in shapes.items():
            path = written(folder, _config(sims, router, general), name=f"{name}.yaml")
            routers[name] = await stack.enter_async_context(router_process(path))
        for short in RULES:
            (folder / short.name).write_text(shortened(short.read_text(encoding="utf-8"), FASTER), encoding="utf-8")
        server = await stack.enter_async_context(prometheus(program, folder, _scrapes(routers, folder)))
        yield Scene(routers, sims, redis, server)


def _config(sims: Mapping[str, Simulator], router: Mapping[str, Any], general: Mapping[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {"max_sessions": 50, "rpm": 10_000, "tpm": 10_000_000}
    return config_of(
        deployment_of(sims["good"], **limits, health_check={"interval_s": 1, "timeout_s": 1}),
        deployment_of(sims["flaky"], **limits),
        deployment_of(sims["cutting"]),
        deployment_of(sims["limited"], model="chat"),
        deployment_of(sims["refusing"], model="chat"),
        deployment_of(sims["dead"], model="dead"),
        deployment_of(sims["short"], model="short"),
        deployment_of(sims["small"], model="small", max_sessions=4),
        # Ejections end soon, so that there are some to be seen, and readmissions too.
        router={**router, "routing_strategy": "weighted-random", "cooldown_time": 1, "total_timeout_s": 2},
        general={**general, "max_sessions": MOST},
        groups={"chat": {"fallbacks": ["voice"]}, "short": {"idle_timeout_s": 1}},
    )


def _scrapes(routers: Mapping[str, RouterProcess], folder: Path) -> dict[str, Any]:
    jobs = {"realtime-router": ("a", "b"), "realtime-router-alone": ("alone",)}
    return {
        "global": {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE},
        "rule_files": [str(folder / path.name) for path in RULES],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [routers[name].http.removeprefix("http://")], "labels": {"instance": name}} for name in names
                ],
            }
            for job, names in jobs.items()
        ],
    }


@pytest.fixture
async def scene(simulator: SimulatorFactory, tmp_path: Path) -> AsyncIterator[Scene]:
    """Routers, their providers, and a Prometheus that has seen them all."""
    async with scene_of(simulator, tmp_path) as scene:

        async def seen() -> bool:
            return len(await scene.server.query("up == 1")) == len(scene.routers)

        await scene.server.until(seen, "all routers are scraped")
        yield scene


# --- every query --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class View:
    """What a reader chose on top of a dashboard.

    Attributes:
        job, instance: as Grafana fills them in.
        empty: title of each panel that has nothing to show in this run, and why.
    """

    job: str
    instance: str
    empty: Mapping[str, str]


# Depends on what else happens: nothing is wrong with either.
PERHAPS = {"Configuration accepted": "no file is read again in this run"}
NO_FLEET = dict.fromkeys(
    (
        "fleet: Members",
        "fleet: Knowledge",
        "fleet: Replicas, Members",
        "fleet: Replicas, Picture's age",
        "fleet: What the others hold, as heard",
        "fleet: Members, as seen by each replica",
        "fleet: Age of the picture",
        "fleet: Beats that failed",
        "fleet: A beat's time, p99",
    ),
    "the router has no fleet",
)
VIEWS = {
    "all": View(job="(realtime-router|realtime-router-alone)", instance=".+", empty={}),
    "one process of a fleet": View(job="realtime-router", instance="a", empty={}),
    "two workers of a fleet": View(
        job="realtime-router",
        instance="b",
        empty={"fleet: What the others hold, as heard": "workers do not export what the others hold"},
    ),
    "one process alone": View(job="realtime-router-alone", instance="alone", empty=NO_FLEET),
}


@dataclass(frozen=True, slots=True)
class Panel:
    """A query of a dashboard with its variables filled in.

    Attributes:
        where: dashboard, title of the panel, and of a table the column.
        title: ``where`` without the column.
        expr: PromQL.
        instant: it asks for now.
    """

    where: str
    title: str
    expr: str
    instant: bool


def panels_of(view: View) -> list[Panel]:
    """Every query of every dashboard as a view fills it in."""
    found: list[Panel] = []
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            columns = [override["matcher"]["options"] for override in panel.get("fieldConfig", {}).get("overrides", ())]
            for index, target in enumerate(panel.get("targets", ())):
                title = f"{name}: {panel['title']}"
                where = f"{title}, {columns[index]}" if panel["type"] == "table" and len(panel["targets"]) > 1 else title
                found.append(Panel(where, title, filled(target["expr"], view), target["instant"]))
        for annotation in board["annotations"]["list"]:
            found.append(Panel(f"{name}: {annotation['name']}", name, filled(annotation["target"]["expr"], view), False))
    return found


def filled(expr: str, view: View) -> str:
    """Put in what Grafana puts in."""
    values = {"$__rate_interval": "10s", "$__range": "5m", "$job": view.job, "$instance": view.instance}
    for name, value in {**values, "$group": ".+", "$deployment": ".+"}.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


async def shows(server: Prometheus, panel: Panel) -> bool:
    """Whether a query returns a number."""
    if panel.instant:
        return bool(await server.query(panel.expr))
    return bool(await server.query_range(panel.expr, seconds=60))


async def unproven(server: Prometheus, expr: str) -> list[str]:
    """Return what a query names and no series of this run has: names, and labels that it compares, groups or joins by."""
    used = parse(expr)
    missing: list[str] = []
    known = {"limit"} if "label_replace" in expr else set()
    for selector in used.selectors:
        labels = await server.labels_of(selector.name)
        known |= labels
        if not labels:
            missing.append(selector.name)
            continue
        missing += [f"{selector.name}{{{matcher.label}}}" for matcher in selector.matchers if matcher.label not in labels]
    return missing + ([] if missing else sorted(used.labels - known))


async def test_every_query_has_something_to_show(scene: Scene) -> None:
    """Each panel, variable and rule, for all routers together and for each kind of them alone, but for a list that says why not.

    What is on the list asks for series and labels that are there; what only lacks an alarm is proven the same way.
    """
    server = scene.server
    # Rates need a counter that rises between two scrapes after its first.
    await scene.load()
    began = time.monotonic()
    rounds = 1
    wanted = {panel.where: panel for panel in panels_of(VIEWS["all"])}
    while time.monotonic() - began < 12 or rounds < 4:
        await scene.load()
        rounds += 1
    lacking: dict[str, str] = {}
    surprising: dict[str, str] = {}

    async def look() -> bool:
        lacking.clear()
        surprising.clear()
        for name, view in VIEWS.items():
            for panel in panels_of(view):
                if panel.where.partition(": ")[2] in PERHAPS:
                    assert await unproven(server, panel.expr) == [], panel
                elif not await shows(server, panel):
                    if panel.where not in view.empty:
                        lacking[f"{name}: {panel.where}"] = panel.expr
                elif panel.where in view.empty:
                    surprising[f"{name}: {panel.where}"] = panel.expr
        if lacking:
            await scene.load()
        return not lacking

    with contextlib.suppress(AssertionError):
        await server.until(look, "every panel has something to show")
    assert lacking == {}
    assert surprising == {}, "these have something to show after all: take them off the list"
    # What is empty for one kind of router is proven by the others, whose series have its names and labels.
    for panel in wanted.values():
        if panel.where.partition(": ")[2] not in PERHAPS:
            assert await unproven(server, panel.expr) == [], panel.where
    await _variables(server)
    for rule in rules():
        await _rule(server, rule)


async def _variables(server: Prometheus) -> None:
    for name, view in VIEWS.items():
        for board in BOARDS.values():
            for variable in board["templating"]["list"]:
                if variable["type"] != "query":
                    continue
                match, _, label = filled(variable["query"], view).removeprefix("label_values(").removesuffix(")").rpartition(", ")
                found = await server.label_values(label, match)
                assert found, f"{name}: {variable['name']}"
                if name == "all" and variable["name"] == "instance":
                    assert found == ["a", "alone", "b"]
                if variable["name"] == "group":
                    assert found == ["chat", "dead", "short", "small", "voice"]


# These need an hour's history, of which the shortened rules leave a minute more than this run has.
NEED_HISTORY = {"RealtimeRouterReadyTimeRising"}


async def _rule(server: Prometheus, rule: Rule) -> None:
    """A recording rule records; of an alert, every series that it looks at is there."""
    if rule.alert is None:
        assert await server.query(f"last_over_time({rule.name}[1m])"), rule.name
    else:
        # Prometheus takes the expression, and what it names is there.
        await server.query(rule.expr)
        assert await unproven(server, rule.expr) == [], rule.name


# --- alerts -------------------------------------------------------------------------------------


async def firing(server: Prometheus, name: str, **labels: str) -> bool:
    """Whether an alert fires that has these labels."""
    return any(
        alert["labels"]["alertname"] == f"RealtimeRouter{name}" and labels.items() <= alert["labels"].items()
        for alert in await server.alerts()
    )


async def test_an_outage_makes_alerts_fire_and_its_end_ends_them(scene: Scene) -> None:
    """A healthy start fires nothing; each thing that breaks fires what is meant for it; what is mended falls silent."""
    server = scene.server
    for sim in scene.sims.values():
        sim.clear_faults()

    async def fires(name: str, *, load: Sequence[tuple[str, str]] = (), **labels: str) -> None:
        async def look() -> bool:
            await asyncio.gather(*(scene.session(router, group, turns=0) for router, group in load))
            return await firing(server, name, **labels)

        await server.until(look, f"{name} {labels} fires")

    async def silent(name: str, *, load: Sequence[tuple[str, str]] = (), **labels: str) -> None:
        async def look() -> bool:
            await asyncio.gather(*(scene.session(router, group, turns=0) for router, group in load))
            return not await firing(server, name, **labels)

        await server.until(look, f"{name} {labels} falls silent")

    everywhere = [(router, "dead") for router in scene.routers]
    # 1. Nothing is wrong. (But for what a busy machine may do: timers and beats that are late, and a first scrape that is.)
    await silent("Absent")
    for _ in range(3):
        await asyncio.gather(*(scene.session(router, group) for router in scene.routers for group in ("voice", "dead")))
    calm = {alert["labels"]["alertname"] for alert in await server.alerts()}
    assert calm <= {"RealtimeRouterEventLoopLag", "RealtimeRouterFleetBeatsFail"}

    # 2. The only deployment of a group is down, everywhere.
    scene.sims["dead"].set_fault("status=503")
    await fires("GroupWithoutDeployment", job="realtime-router", group="dead", load=everywhere)
    await fires("SessionsNotServed", job="realtime-router", group="dead", load=everywhere)
    await fires("DeploymentDown", job="realtime-router-alone", deployment="dead", load=everywhere)
    await fires("EjectionRate", deployment="dead", load=everywhere)
    assert not await firing(server, "GroupWithoutDeployment", group="voice")
    scene.sims["dead"].clear_faults()
    await silent("GroupWithoutDeployment", group="dead", load=everywhere)

    # 3. A key is refused; a provider limits; another one drops running sessions.
    scene.sims["refusing"].set_fault("error_event=invalid_api_key")
    await fires("ConfigAlarm", deployment="refusing", load=[("a", "chat")])
    scene.sims["limited"].set_fault("status=429,retry_after=1")
    await fires("RateLimited", deployment="limited", load=[("a", "chat"), ("b", "chat"), ("alone", "chat")])

    # 4. Running sessions are ended by the router, for they were idle too long.
    async def idle() -> bool:
        await asyncio.gather(*(scene.idle("a") for _ in range(3)))
        return await firing(server, "EndsSessions", group="short")

    await server.until(idle, "EndsSessions fires")

    # 5. A deployment is full.
    async with AsyncExitStack() as held:
        for _ in range(4):
            ws = await held.enter_async_context(connect(scene.routers["alone"].url("small"), proxy=None, ping_interval=None))
            assert (await next_event(ws))["type"] == "session.created"
        await fires("NearLimit", job="realtime-router-alone", deployment="small", limit="sessions")
        assert not await firing(server, "NearLimit", job="realtime-router")

    # 6. A process is full; then the provider drops what runs.
    async with AsyncExitStack() as held:
        for _ in range(MOST):
            await held.enter_async_context(connect(scene.routers["alone"].url("voice"), proxy=None, ping_interval=None))
        await fires("Overloaded", instance="alone", load=[("alone", "voice")])

    async def dropped() -> bool:
        # Who drops sessions so soon is ejected in between.
        with contextlib.suppress(InvalidStatus):
            async with AsyncExitStack() as held:
                for _ in range(3):
                    await held.enter_async_context(connect(scene.routers["alone"].url("short"), proxy=None))
                scene.sims["short"].close_sessions(1011)
        return await firing(server, "UpstreamEndsSessions", job="realtime-router-alone", group="short")

    await server.until(dropped, "UpstreamEndsSessions fires")

    # 7. A worker dies.
    async with aiohttp.ClientSession(trust_env=False) as http, http.get(f"{scene.routers['b'].http}/admin/deployments") as answer:
        [worker, _] = (await answer.json())["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    await fires("WorkerRestarts", instance="b")

    # 8. Redis is gone.
    await scene.redis.kill()
    for name in ("a", "b"):
        await fires("FleetLost", instance=name)
        await fires("FleetBeatsFail", instance=name)
    assert not await firing(server, "FleetLost", instance="alone")
    await scene.redis.start()
    await silent("FleetLost", job="realtime-router")

    # 9. A replica is gone.
    assert not await firing(server, "TargetDown")
    await scene.routers["alone"].kill()
    await fires("TargetDown", job="realtime-router-alone", instance="alone")
    assert not await firing(server, "Absent")
    for name in ("a", "b"):
        await scene.routers[name].kill()
    await fires("Absent")
