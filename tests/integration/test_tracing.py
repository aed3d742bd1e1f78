"""Traces of a running router, as a collector receives them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.collector import Collector, collector
from tests.helpers.processes import PATIENCE_S, RouterProcess, environment, router_process, run, written
from tests.helpers.processes import ROOT as SOURCE
from tests.helpers.running import MODEL, UPSTREAM_KEY, closed_port, config_of, next_type, run_turn

TRACED = {"tracing": True}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
ROOT = f"realtime {MODEL}"


@pytest.fixture
async def traces() -> AsyncIterator[Collector]:
    """A collector."""
    async with collector() as received:
        yield received


def joined(router: RouterProcess, model: str = MODEL, **headers: str) -> Any:
    """A connection of a client."""
    return connect(router.url(model), additional_headers=headers, proxy=None, compression=None, open_timeout=PATIENCE_S)


async def a_session(router: RouterProcess, *, turn: bool = False, **headers: str) -> str:
    """Run a session from its begin to its end and return its id."""
    async with joined(router, **headers) as ws:
        assert await next_type(ws) == "session.created"
        if turn:
            assert "response.output_audio.delta" in await run_turn(ws)
        return id_of(ws)


def children_of(pid: int) -> list[int]:
    """A process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def maps_of(pid: int) -> str:
    """Which libraries a process has loaded."""
    return Path(f"/proc/{pid}/maps").read_text()


def id_of(ws: ClientConnection) -> str:
    """The session's id."""
    assert ws.response is not None
    return ws.response.headers["x-router-session"]


async def test_a_session_is_one_trace(simulator: SimulatorFactory, traces: Collector, tmp_path: Path) -> None:
    """A session with a fallback and a turn is a span with an attempt that failed, one that was ready, and the turn."""
    bad = await simulator(name="bad", faults=["status=503"])
    good = await simulator(name="good")
    config = written(tmp_path, config_of(bad, good, general=TRACED))
    before_ns = time.time_ns()
    async with router_process(config, environ=traces.environ()) as router:
        session = await a_session(router, turn=True)
        root = await traces.until(ROOT)
        await traces.until_true(lambda: len(traces.children(root)) == 3)
        assert await router.end(signal.SIGTERM) == 0
    assert (root.kind, root.parent, root.error) == ("SERVER", "", False)
    assert root["session"] == session
    assert (root["http.response.status_code"], root["network.protocol.name"]) == (101, "websocket")
    assert (root["group"], root["gen_ai.request.model"], root["deployment"]) == (MODEL, MODEL, "good")
    assert (root["gen_ai.provider.name"], root["gen_ai.response.model"]) == ("openai", "upstream-model")
    assert (root["principal"], root["end.who"], root["end.cause"], root["end.phase"]) == ("anonymous", "client", "close", "idle")
    assert (root["client.close_code"], root["upstream.close_code"]) == (1000, 1000)
    assert (root["turns"], root["attempts"], root["config.generation"]) == (1, 2, 1)
    assert root["usage.total"] > 0 and root["client.bytes"] > 0 and root["upstream.events"] > 0
    ready_ns, ready = root.events["ready"]
    assert ready == {
        "realtime_router.deployment": "good",
        "realtime_router.attempts": 2,
        "realtime_router.fallback": True,
    }

    refused, dialled, turn = traces.children(root)
    assert (refused.name, refused.kind, refused.error) == (f"dial {MODEL}", "CLIENT", True)
    assert (refused["deployment"], refused["attempt.outcome"], refused["error.type"]) == ("bad", "refused", "refused")
    assert "503" in refused.message
    assert (dialled["deployment"], dialled["attempt.outcome"], dialled.error) == ("good", "ready", False)
    assert (dialled["gen_ai.provider.name"], dialled["gen_ai.request.model"]) == ("openai", "upstream-model")
    assert (turn.name, turn.kind, turn.error) == ("chat upstream-model", "CLIENT", False)
    assert (turn["turn.status"], turn["gen_ai.conversation.id"]) == ("completed", session)
    assert turn["gen_ai.usage.output_tokens"] == root["usage.output"]

    assert {span.trace for span in (refused, dialled, turn)} == {root.trace}
    # Of one clock: nothing is outside of what it belongs to.
    assert before_ns <= root.start_ns <= refused.start_ns <= refused.end_ns <= dialled.start_ns <= dialled.end_ns <= ready_ns
    assert ready_ns <= turn.start_ns <= turn.end_ns <= root.end_ns <= time.time_ns()
    assert root.resource["service.name"] == "realtime-router" and root.resource["service.instance.id"]
    assert UPSTREAM_KEY.encode() not in traces.bodies


async def test_a_spoken_turn_tells_its_first_audio(simulator: SimulatorFactory, traces: Collector, tmp_path: Path) -> None:
    """The turn begins where the user's speech ended, and the first audio is an event in it."""
    config = written(tmp_path, config_of(await simulator(name="good"), general=TRACED))
    async with router_process(config, environ=traces.environ()) as router, joined(router) as ws:
        assert await next_type(ws) == "session.created"
        await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": "A" * 9600}))
        await ws.send('{"type":"input_audio_buffer.commit"}')
        await ws.send('{"type":"response.create"}')
        while await next_type(ws) != "response.done":
            pass
        # While the session goes on.
        turn = await traces.until("chat upstream-model")
        assert traces.named(ROOT) == []
    at_ns, _ = turn.events["first_audio"]
    assert turn.start_ns < at_ns <= turn.end_ns
    assert (at_ns - turn.start_ns) / 1e9 == pytest.approx(turn["first_audio_s"], abs=1e-6)


async def test_a_turn_that_its_session_did_not_survive_is_unfinished(
    simulator: SimulatorFactory, traces: Collector, tmp_path: Path
) -> None:
    """The answer under way when the client hangs up is in the trace, as an error, and with the session's id."""
    config = written(tmp_path, config_of(await simulator(name="good", pace="realtime"), general=TRACED))
    async with router_process(config, environ=traces.environ()) as router:
        async with joined(router) as ws:
            assert await next_type(ws) == "session.created"
            await ws.send('{"type":"response.create"}')
            while await next_type(ws) != "response.created":
                pass
        root = await traces.until(ROOT)
        turn = await traces.until("chat upstream-model")
    assert (turn["turn.status"], turn.error, turn.parent) == ("unfinished", True, root.id)
    assert root["end.phase"] == "turn"


async def test_a_clients_trace_goes_on(simulator: SimulatorFactory, traces: Collector, tmp_path: Path) -> None:
    """A sampled traceparent is the session's parent, one that is not sampled makes no spans, an illegal one is none at all."""
    config = written(tmp_path, config_of(await simulator(name="good"), general=TRACED))
    async with router_process(config, environ=traces.environ()) as router:
        first = await a_session(router, traceparent=SAMPLED, tracestate="vendor=value")
        unseen = await a_session(router, traceparent=f"00-{TRACE}-{PARENT}-00")
        illegal = await a_session(router, traceparent="00-nonsense", tracestate="vendor=value")
        await traces.until(ROOT, 2)
        assert await router.end(signal.SIGTERM) == 0
        assert router.lines("tracing trouble") == []
    roots = {root["session"]: root for root in traces.named(ROOT)}
    assert roots.keys() == {first, illegal} and unseen not in roots
    assert (roots[first].trace, roots[first].parent, roots[first].state) == (TRACE, PARENT, "vendor=value")
    assert roots[illegal].trace != TRACE and roots[illegal].parent == roots[illegal].state == ""
    assert {child.trace for child in traces.children(roots[first])} == {TRACE}


async def test_the_sampler_is_the_environments(simulator: SimulatorFactory, traces: Collector, tmp_path: Path) -> None:
    """A sampler that is not parent-based does not listen to what clients say."""
    config = written(tmp_path, config_of(await simulator(name="good"), general=TRACED))
    environ = traces.environ(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0", OTEL_SERVICE_NAME="mine")
    async with router_process(config, environ=environ) as router:
        await a_session(router, traceparent=SAMPLED)
        assert await router.end(signal.SIGTERM) == 0
    assert traces.spans == []


async def test_clients_traces_can_be_left_alone(simulator: SimulatorFactory, traces: Collector, tmp_path: Path) -> None:
    """Without the propagator a session is a trace of its own, whatever its client says."""
    config = written(tmp_path, config_of(await simulator(name="good"), general=TRACED))
    async with router_process(config, environ=traces.environ(OTEL_PROPAGATORS="none")) as router:
        await a_session(router, traceparent=f"00-{TRACE}-{PARENT}-00")
        root = await traces.until(ROOT)
    assert root.parent == "" and root.trace != TRACE


@pytest.mark.parametrize("allowed", [False, True])
async def test_no_trace_goes_upstream_unless_allowed(
    allowed: bool, simulator: SimulatorFactory, traces: Collector, tmp_path: Path
) -> None:
    """A provider gets neither the client's trace nor the router's; one that is allowed the header gets the client's."""
    upstream = await simulator(name="good")
    keys = {"forward_headers": ["traceparent", "tracestate"]} if allowed else {}
    config = written(tmp_path, config_of(upstream, router=keys, general=TRACED))
    async with router_process(config, environ=traces.environ()) as router:
        await a_session(router, traceparent=SAMPLED, tracestate="vendor=value")
    (request,) = upstream.stats.requests
    sent = {name.lower(): value for name, value in request.headers.items()}
    assert "authorization" in sent
    assert [sent.get(name) for name in ("traceparent", "tracestate")] == ([SAMPLED, "vendor=value"] if allowed else [None, None])


async def test_a_refusal_is_a_span(simulator: SimulatorFactory, traces: Collector, tmp_path: Path) -> None:
    """A request that gets no session has a span with its status and code, in the client's trace; its key is not in it."""
    key = "rr-0123456789abcdef0123456789abcdef"
    config = written(tmp_path, config_of(await simulator(name="good"), general={**TRACED, "master_key": key}))
    async with router_process(config, environ=traces.environ()) as router:
        for model, given in ((MODEL, "sk-" + "f" * 40), ("sk-secretsecretsecret", key)):
            with pytest.raises(InvalidStatus):
                await joined(router, model, Authorization=f"Bearer {given}", traceparent=SAMPLED)
        await traces.until("realtime", 2)
    unknown_key, unknown_model = traces.named("realtime")
    assert (unknown_key["http.response.status_code"], unknown_key["end.cause"]) == (401, "invalid_api_key")
    assert (unknown_model["http.response.status_code"], unknown_model["end.cause"]) == (404, "model_not_found")
    assert (unknown_model["principal"], unknown_model["gen_ai.request.model"]) == ("master", "***")
    assert [span.trace for span in (unknown_key, unknown_model)] == [TRACE, TRACE]
    # A server's span is no error when the request was.
    assert not unknown_key.error and not unknown_model.error
    for secret in (key, "sk-" + "f" * 40, "sk-secret"):
        assert secret.encode() not in traces.bodies


async def test_a_session_that_nobody_serves_is_an_error(traces: Collector, tmp_path: Path) -> None:
    """A 503 is a session's span with its failed attempts, and says what was passed over."""
    async with closed_port() as base:
        config = written(tmp_path, config_of(base, router={"num_retries": 0}, general=TRACED))
        async with router_process(config, environ=traces.environ()) as router:
            with pytest.raises(InvalidStatus):
                await joined(router)
            root = await traces.until(ROOT)
            await traces.until_true(lambda: bool(traces.children(root)))
    assert (root.error, root["http.response.status_code"], root["end.phase"]) == (True, 503, "waiting")
    assert root["error.type"] == root["end.cause"] == "no_deployment_available"
    (attempt,) = traces.children(root)
    assert (attempt["attempt.outcome"], attempt.error) == ("unreachable", True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux spreads connections over SO_REUSEPORT")
async def test_every_worker_sends_its_own(simulator: SimulatorFactory, traces: Collector, tmp_path: Path) -> None:
    """Spans of two workers arrive, of each its last ones too; the parent has not even loaded what makes them."""
    config = written(tmp_path, config_of(await simulator(name="good"), general={**TRACED, "workers": 2}))
    # Nothing is sent before the end, unless a batch is full.
    async with router_process(config, environ=traces.environ(OTEL_BSP_SCHEDULE_DELAY="3600000")) as router:
        sessions = {await a_session(router) for _ in range(24)}
        parent, *served = (maps_of(pid) for pid in (router.pid, *children_of(router.pid)))
        threads = os.listdir(f"/proc/{router.pid}/task")
        assert await router.end(signal.SIGTERM) == 0
    assert {root["session"] for root in traces.named(ROOT)} == sessions
    assert {root.resource["realtime_router.worker"] for root in traces.named(ROOT)} == {0, 1}
    assert len({root.resource["service.instance.id"] for root in traces.named(ROOT)}) == 2
    # protobuf's is a library of its own, and would be mapped.
    assert "google/_upb" not in parent and len(threads) == 1
    assert len(served) == 2 and all("google/_upb" in maps for maps in served)


async def test_a_collector_that_hangs_does_not_delay_the_end(
    simulator: SimulatorFactory, traces: Collector, tmp_path: Path
) -> None:
    """The last spans are given up soon, which the log tells, and the exit code is that of an orderly end."""
    traces.hangs = True
    config = written(tmp_path, config_of(await simulator(name="good"), general=TRACED))
    # The exporter itself would wait for minutes.
    async with router_process(config, environ=traces.environ(OTEL_EXPORTER_OTLP_TIMEOUT="600")) as router:
        await a_session(router)
        await traces.until_true(lambda: traces.requests > 0)
        # ``end`` has a bound of its own that is far below the exporter's.
        assert await router.end(signal.SIGTERM) == 0
        assert len(router.lines("last spans not sent")) == 1
        assert {line["event"] for line in router.lines()[-2:]} == {"stopped", "last spans not sent"}


@pytest.mark.parametrize("away", ["nobody listens", "it refuses"])
async def test_a_collector_that_is_away_costs_a_line(
    away: str, simulator: SimulatorFactory, traces: Collector, tmp_path: Path
) -> None:
    """Sessions are served, the log has one line about it and no traceback, and the header's secret is not in it."""
    traces.status = 400
    config = written(tmp_path, config_of(await simulator(name="good"), general=TRACED))
    async with closed_port() as base:
        more = {"OTEL_EXPORTER_OTLP_HEADERS": "x-token=hunter2hunter2,broken header hunter3hunter3"}
        if away == "nobody listens":
            more["OTEL_EXPORTER_OTLP_ENDPOINT"] = base
            # It gives up at once instead of trying again.
            more["OTEL_EXPORTER_OTLP_TIMEOUT"] = "0.5"
        async with router_process(config, environ=traces.environ(**more)) as router:
            await a_session(router, turn=True)
            await router.logged("tracing trouble", 2)
            for _ in range(3):
                await a_session(router)
            assert await router.end(signal.SIGTERM) == 0
    first, second = router.lines("tracing trouble")
    # The first one is about the variable, told at the start.
    assert "eader" in first["message"] and "export" in second["message"]
    assert len(router.lines("session ended")) == 4
    # Nor has a library a line of its own.
    assert [line for line in router.lines() if "logger" in line] == []
    for unwanted in (b"Traceback", b"hunter2", b"hunter3", b"exception"):
        assert unwanted not in router.err


@pytest.mark.parametrize(
    ("variables", "event", "fact"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "tracing is off", "OTEL_SDK_DISABLED"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "tracing is off", "OTEL_TRACES_EXPORTER"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "tracing not started", "max_queue_size"),
        ({"OTEL_SPAN_EVENT_COUNT_LIMIT": "many"}, "tracing not started", "OTEL_SPAN_EVENT_COUNT_LIMIT"),
    ],
)
async def test_variables_cost_no_more_than_the_spans(
    variables: dict[str, str], event: str, fact: str, simulator: SimulatorFactory, traces: Collector, tmp_path: Path
) -> None:
    """Where a variable switches spans off, or is wrong, the log says so, and sessions are served."""
    config = written(tmp_path, config_of(await simulator(name="good"), general=TRACED))
    async with router_process(config, environ=traces.environ(**variables)) as router:
        await a_session(router, turn=True)
        assert await router.end(signal.SIGTERM) == 0
        assert fact in router.lines(event)[0]["reason"]
        assert b"Traceback" not in router.err
    assert traces.requests == 0


async def test_what_is_not_there_is_said(simulator: SimulatorFactory, traces: Collector, tmp_path: Path) -> None:
    """A variable that asks for another protocol is told with what was found and expected; spans go out all the same."""
    config = written(tmp_path, config_of(await simulator(name="good"), general=TRACED))
    environ = traces.environ(OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_SERVICE_NAME="mine", OTEL_RESOURCE_ATTRIBUTES="a.b=c")
    async with router_process(config, environ=environ) as router:
        await a_session(router)
        root = await traces.until(ROOT)
        (line,) = router.lines("tracing")
    assert (line["level"], line["found"], line["expected"]) == ("warning", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "http/protobuf")
    assert (root.resource["service.name"], root.resource["a.b"]) == ("mine", "c")


async def test_off_loads_nothing(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """A router that does not trace has neither imported OpenTelemetry nor looked for it."""
    config = written(tmp_path, config_of(await simulator(name="good")))
    script = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print([m for m in sys.modules if 'opentelemetry' in m or m == 'router.tracing']))\n"
        f"sys.argv = ['realtime-router', '--config', {str(config)!r}, '--port', '0']\n"
        "runpy.run_module('router', run_name='__main__')\n"
    )
    starter = tmp_path / "starter.py"
    starter.write_text(script)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        starter,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    router = RouterProcess(process)
    try:
        await router.started()
        await a_session(router, turn=True, traceparent=SAMPLED)
        assert await router.end(signal.SIGTERM) == 0
    finally:
        await router.kill()
    assert router.out.decode().splitlines()[-1] == "[]"


@pytest.mark.parametrize("left", ["opentelemetry.py", "opentelemetry/__init__.py"])
async def test_the_extra_is_asked_for_by_name(left: str, tmp_path: Path) -> None:
    """Without the extra the key is an error of the configuration that says what to install."""
    config = written(tmp_path, {"model_list": [], "general_settings": TRACED})
    # It hides the real one: there is nothing in it.
    blocked = tmp_path / "blocked"
    (blocked / left).parent.mkdir(parents=True)
    (blocked / left).touch()
    code, _, err = await run("check", config, environ={"PYTHONPATH": f"{blocked}{os.pathsep}{SOURCE}"})
    assert code == 2
    assert "general_settings.tracing" in err and "pip install 'realtime-router[otel]'" in err


async def test_metrics_are_asked_while_tracing(simulator: SimulatorFactory, traces: Collector, tmp_path: Path) -> None:
    """Turns and traces are no metric, and no observer fails over them."""
    config = written(tmp_path, config_of(await simulator(name="good"), general=TRACED))
    async with router_process(config, environ=traces.environ()) as router:
        await a_session(router, turn=True)
        async with aiohttp.ClientSession() as client, client.get(f"{router.http}/metrics") as answer:
            text = await answer.text()
        assert await router.end(signal.SIGTERM) == 0
        assert [line for line in router.lines() if line["level"] == "error"] == []
    assert 'realtime_router_notices_total{level="error"}' not in text or 'level="error"} 0.0' in text
