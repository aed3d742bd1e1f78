"""The relay's benchmark: it measures everything with everything verified, and notices a proxy that is not faithful.

A benchmark that would not see a lost event could praise a proxy for losing it. So each kind of unfaithfulness is put into the
plain relay here, and must end the run with exit code 1 and the right words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.relay import peers, report, run
from benchmarks.relay.events import AUDIO, SCRIPTS
from benchmarks.relay.report import Column, Result
from benchmarks.relay.wire import Endpoint, Event, Fault, Verdict, event_id, xor
from tests.helpers.parts import require
from tests.helpers.processes import ROOT, environment

# Only a fault reaches it: the run itself bounds every wait.
PATIENCE_S = 120.0
MEASUREMENTS = {"bursts", "bursts8", "paced", "setup", "memory"}

# A relay that is faithful except in one way, from its fifth event in a direction on.
UNFAITHFUL = '''
import os, sys
import aiohttp
from benchmarks.relay.aiohttp_relay import main

way, toward_client = sys.argv.pop(1), "{direction}" == "down"
others = []


def alter(text, state, from_client):
    if from_client is toward_client:
        return [text]
    state["count"] = state.get("count", 0) + 1
    if way == "mixed":
        others.append(text)
    if state["count"] < 5:
        return [text]
    if way == "silent":
        return []
    if state["count"] > 5 and way != "swapped":
        return [text]
    middle = len(text) // 2
    if way == "lost":
        return []
    if way == "changed":
        return [text[:middle] + ("B" if text[middle] == "A" else "A") + text[middle + 1 :]]
    if way == "cut off":
        return [text[:middle]]
    if way == "duplicated":
        return [text, text]
    if way == "swapped":
        if state["count"] == 5:
            state["held"] = text
            return []
        return [text, state.pop("held")] if "held" in state else [text]
    if way == "retyped":
        return [text.replace(".delta", ".other").replace(".append", ".extend")]
    if way == "mixed":
        return [next((other for other in others if other[:95] != text[:95]), text)]
    if way == "crashed":
        os._exit(3)
    return [text]


if way == "wrong code":
    close = aiohttp.ClientWebSocketResponse.close
    aiohttp.ClientWebSocketResponse.close = lambda self, **_: close(self, code=1001)
main(alter=alter)
'''


async def bench(*options: str) -> tuple[int, str, str]:
    """Run the benchmark as its README says. Returns exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks", *options),
        env=environment(),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_everything_is_measured_and_verified(tmp_path: Path) -> None:
    """A short run with the router and the plain relay has every figure, without and with TLS, and finds nothing wrong."""
    path = tmp_path / "result.json"
    code, out, err = await bench("relay", "--quick", "--peers", "router,aiohttp-uvloop", "--json", str(path))
    assert code == 0, err
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["fault"] is None and document["missing"] == {}
    windows = {(w["tls"], w["measurement"], w["peer"]): w["values"] for w in document["windows"]}
    proxies = ("router", "aiohttp-uvloop")
    assert set(windows) == {
        (tls, measurement, peer)
        for tls in (False, True)
        for measurement in MEASUREMENTS
        for peer in (*proxies, "direct")
        if (measurement, peer) != ("memory", "direct")
    }
    for (_, measurement, peer), values in windows.items():
        if measurement == "memory":
            assert values["kib_per_session"] > 0 and values["base_mib"] > 1
            continue
        assert ("cpu_us" in values) is (peer in proxies)
        assert values["sessions_per_s" if measurement == "setup" else "messages_per_s"] > 0
        # More than a whole core per second cannot be, with one thread.
        assert peer not in proxies or 0 < values["cpu_s"] < 1.5 * values["seconds"]
    for tls in (False, True):
        paced = windows[tls, "paced", "router"]
        # Four sessions with 65 events a second each; a busy machine makes them late, not fewer.
        assert paced["messages"] > 20
        assert 0 < windows[tls, "paced", "direct"]["way_p50_us"] < paced["way_p99_us"]
    assert all("resumed" in windows[True, "setup", peer] for peer in proxies)
    for title in ("bursts, 8 in flight", "real-time pace", "session set-up", "memory"):
        assert len(re.findall(f"^{title}.*(?:no TLS|TLS) upstream", out, re.MULTILINE)) == 2, out
    assert document["versions"]["aiohttp"] and document["options"]["rounds"] == 1


async def test_the_accelerated_router_stands_beside_the_other(tmp_path: Path) -> None:
    """Where the accelerator is built, a table shows the router with and without it, and both must have counted everything."""
    require("accelerator")
    path = tmp_path / "result.json"
    options = ["--quick", "--only", "bursts", "--tls", "off", "--peers", "router,router-accel", "--json", str(path)]
    code, out, err = await bench("relay", *options)
    assert code == 0, err
    assert {line.split()[0] for line in out.splitlines() if line.startswith("router")} == {"router", "router-accel"}
    assert json.loads(path.read_text(encoding="utf-8"))["missing"] == {}


def test_each_router_is_told_its_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one without stays without where the accelerator is installed; the one with it insists, or is not measured."""
    place = peers.Place(folder=tmp_path, port=1, upstream_port=2, client_key="c", upstream_key="u", ca_file=None)
    monkeypatch.setattr(peers, "ACCEL", tmp_path / "built")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert peers.RECIPES["router"](place).environ == {"REALTIME_ROUTER_ACCEL": "0"}
    with pytest.raises(peers.Unavailable, match=r"neither installed .* nor built"):
        peers.RECIPES["router-accel"](place)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert peers.RECIPES["router-accel"](place).environ == {"REALTIME_ROUTER_ACCEL": "1"}
    # What is built is newer than what is installed.
    (tmp_path / "realtime_router_accel.py").touch()
    monkeypatch.setattr(peers, "ACCEL", tmp_path)
    environ = peers.RECIPES["router-accel"](place).environ
    assert environ == {"REALTIME_ROUTER_ACCEL": "1", "PYTHONPATH": f"{ROOT}:{tmp_path}"}


@pytest.mark.parametrize(
    ("way", "direction", "words"),
    [
        ("lost", "down", "client, .* found event .*: lost or out of order"),
        ("lost", "up", "provider, .* found event .*: lost or out of order"),
        ("silent", "up", r"lost: \d+ events up, 0 down"),
        ("changed", "down", "client, .*: changed"),
        ("changed", "up", "provider, .*: changed"),
        ("cut off", "down", "client, .*: changed"),
        ("duplicated", "down", "client, .*: duplicated or out of order"),
        ("swapped", "up", "provider, .*: lost or out of order"),
        ("retyped", "down", "client, .*: wrong type"),
        ("mixed", "down", "client, .* of another session"),
        ("crashed", "down", "lost without CLOSE"),
        ("wrong code", "up", "found CLOSE 1001, expected 1000"),
    ],
)
async def test_an_unfaithful_proxy_fails_the_run(way: str, direction: str, words: str, tmp_path: Path) -> None:
    """A proxy that loses, changes, doubles, mixes or reorders events, or ends sessions otherwise than told, gives exit code 1."""
    script = tmp_path / "unfaithful.py"
    script.write_text(UNFAITHFUL.replace("{direction}", direction), encoding="utf-8")
    command = shlex.join([sys.executable, str(script), way])
    command += " --port {port} --upstream {scheme}://127.0.0.1:{upstream_port}"
    command += " --client-key {client_key} --upstream-key {upstream_key}"
    path = tmp_path / "result.json"
    options = ["--quick", "--only", "paced", "--seconds", "2", "--tls", "off", "--patience", "5", "--peers", "none"]
    code, out, err = await bench("relay", *options, "--extra", f"bad={command}", "--json", str(path))
    assert code == 1, out + err
    assert re.search(f"^FAULT: bad, paced, no TLS upstream: .*{words}", err, re.MULTILINE), err
    # No figure of a proxy that cheats is shown.
    assert "CPU" not in out
    assert json.loads(path.read_text(encoding="utf-8"))["fault"] is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["relay", "--peers", "squid"], "--peers: found squid, expected some of router"),
        (["relay", "--only", "bursts,lunch"], "--only: found lunch"),
        (["relay", "--rounds", "0"], "--rounds: found 0"),
        (["relay", "--extra", "router=x"], "--extra: found 'router=x'"),
        (["relay", "choice", "--rounds", "1"], "found options after 2 names"),
        (["nothing"], "found nothing, expected some of"),
    ],
)
async def test_options_that_name_nothing_are_refused(options: list[str], words: str) -> None:
    """Exit code 2 and what was expected; nothing is measured."""
    code, _, err = await bench(*options)
    assert code == 2
    assert words in err


async def test_a_signal_ends_the_proxies_too() -> None:
    """Whoever stops a run, by SIGTERM here, leaves no proxy behind."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks", "relay", "--quick", "--rounds", "1000", "--peers", "router,aiohttp-uvloop", "--tls", "off"),
        env=environment(),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    proxies: list[psutil.Process] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(proxies) < 2:
                await asyncio.sleep(0.05)
                proxies = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 128 + signal.SIGTERM
        assert [proxy.pid for proxy in proxies if proxy.is_running()] == []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for proxy in proxies:
            with contextlib.suppress(psutil.NoSuchProcess):
                proxy.kill()


async def test_a_router_that_does_not_count_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the router costs includes its accounting, so a router whose metrics miss an event is not the one to measure."""
    page = 'realtime_router_events_total{direction="client",type="input_audio_buffer.append"} 41.0\n'

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=page)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    monkeypatch.setattr(run, "COUNTED_TIMEOUT_S", 0.2)
    async with TestServer(app) as server:
        bench = run.Bench(run.parse(["--quick"]), tmp_path)
        assert server.port is not None
        for name in ("router", "router-accel"):
            await bench.check_counts(name, server.port, 41)
            with pytest.raises(Fault, match="count 41 events of audio, 42 were sent"):
                await bench.check_counts(name, server.port, 42)
        # Of the others nothing is asked.
        await bench.check_counts("haproxy", server.port, 42)


def test_a_frame_is_recognised_whatever_its_mask() -> None:
    """A proxy may send a client's event on under the client's mask key or under one of its own."""
    script = SCRIPTS["echo"]
    event = script.up(7)
    assert event.key is not None
    frame = event.frame(3, 7)
    digits = event_id(3, 7)
    assert event.is_frame(frame, 0, 8, len(frame), digits)
    payload = xor(frame[8:], event.key)
    assert json.loads(payload)["type"] == "input_audio_buffer.append"
    assert event.is_payload(payload, digits)
    for place in range(len(frame)):
        changed = bytes([*frame[:place], frame[place] ^ 1, *frame[place + 1 :]])
        assert not event.is_frame(changed, 0, 8, len(frame), digits)
    assert not event.is_frame(frame, 0, 8, len(frame), event_id(3, 8))


def test_events_are_as_large_as_the_real_ones() -> None:
    """20 ms of audio up, 100 ms of it down, all of it valid JSON with valid base64."""
    sizes = {event.type: event.size for event in (*SCRIPTS["echo"].ups, *SCRIPTS["echo"].downs)}
    assert 1300 < sizes["input_audio_buffer.append"] < 1400
    assert 6400 < sizes["response.output_audio.delta"] < 6800
    assert 150 < sizes["response.output_audio_transcript.delta"] < 350
    for script in SCRIPTS.values():
        for event in (script.hello, *script.ups, *script.downs):
            assert json.loads(event.prefix + event_id(1, 2) + event.suffix)["type"] == event.type


class _Collecting(Endpoint):
    """An end that keeps what it gets."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(masked=False, verdict=verdict)
        self.open = True
        self.payloads: list[bytes] = []
        self.closes: list[int] = []

    @property
    def label(self) -> str:
        return "collecting"

    def head(self, head: bytes) -> None:
        raise AssertionError("it begins open, so no head comes")

    def event(self, data: bytes, at: int, start: int, end: int) -> None:
        self.payloads.append(data[start:end])

    def closing(self, code: int) -> None:
        self.closes.append(code)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000, 65536])
async def test_frames_are_read_however_they_are_cut(piece: int) -> None:
    """The load's own parser: short and long frames, a fragmented one, a PONG between, a CLOSE, in pieces of any size."""
    long = Event('{"type":"a","event_id":"{id}","x":"' + "x" * 70_000 + '"}')
    stream = b"".join(
        [
            AUDIO[0].frame(1, 2),
            b"\x01\x03abc" + b"\x8a\x00" + b"\x00\x01d" + b"\x80\x02ef",
            long.frame(1, 3),
            b"\x88\x02\x03\xe8",
        ]
    )
    end = _Collecting(Verdict())
    for start in range(0, len(stream), piece):
        end.data_received(stream[start : start + piece])
    assert AUDIO[0].is_payload(end.payloads[0], event_id(1, 2))
    assert end.payloads[1] == b"abcdef"
    assert long.is_payload(end.payloads[2], event_id(1, 3))
    assert end.closes == [1000] and len(end.payloads) == 3
    end.verdict.check()


def test_ratios_are_taken_within_each_round() -> None:
    """The median of the rounds' ratios, not the ratio of the medians: a round in which the machine was slow counts once."""

    def row(number: int, peer: str, cost: float, way: float) -> Result:
        return Result(number, False, "paced", peer, {"cpu_us": cost, "way_p50_us": way})

    pairs = [(10.0, 11.0), (20.0, 22.0), (10.0, 30.0)]
    results = [row(n, "haproxy", base, 50.0) for n, (base, _) in enumerate(pairs)]
    results += [row(n, "router", own, 40.0 + n) for n, (_, own) in enumerate(pairs)]
    results += [row(n, "direct", 0.0, 30.0 - n) for n in range(len(pairs))]
    rows: Any = report.select(results, tls=False, measurement="paced")
    ratio = report.spread(rows, "router", Column("", "cpu_us", "ratio"))
    added = report.spread(rows, "router", Column("", "way_p50_us", "added"))
    assert ratio is not None and ratio.median == pytest.approx(1.1) and ratio.q3 == pytest.approx(2.05)
    assert added is not None and added.median == pytest.approx(12.0)
    # A window that is missing in one round takes that round out, and nothing else.
    del rows["haproxy"][0]
    ratio = report.spread(rows, "router", Column("", "cpu_us", "ratio"))
    assert ratio is not None and ratio.rounds == 2
