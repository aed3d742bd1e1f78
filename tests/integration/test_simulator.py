"""The simulator from the wire: real sockets, real client libraries, every fault verb."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest
import websockets
from websockets.asyncio.client import connect

from router.simulator import FaultError, Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.unit.simulator.host import silence, tone
from tests.unit.simulator.openai_events import check_beta, check_ga

KEY = "sk-the-only-key"
ASK = [
    {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    },
    {"type": "response.create"},
]
HEAD = (
    "GET /v1/realtime?model=m HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def ws_url(sim: Simulator, query: str = "model=m") -> str:
    """The address of a session."""
    return f"{sim.api_base.replace('http', 'ws', 1)}/realtime?{query}"


async def events_until(ws: Any, kind: str) -> list[dict[str, Any]]:
    """Read events up to the first of a type."""
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while not events or events[-1]["type"] != kind:
            events.append(json.loads(await ws.recv()))
    return events


async def turn(ws: Any) -> list[dict[str, Any]]:
    """Ask in text and read the whole answer."""
    for event in ASK:
        await ws.send(json.dumps(event))
    return await events_until(ws, "response.done")


@asynccontextmanager
async def raw(sim: Simulator, *, head: str = HEAD) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection on which a handshake was sent and nothing was read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
    try:
        writer.write(head.encode())
        yield reader, writer
    finally:
        writer.close()


async def ends(reader: asyncio.StreamReader) -> str:
    """How a connection ends, after everything that it still carries."""
    try:
        async with asyncio.timeout(5):
            await reader.read()
    except ConnectionResetError:
        return "reset"
    return "end"


# --- whole turns through client libraries ---


@pytest.mark.parametrize(
    ("dialect", "path", "check"),
    [
        ("openai", "/v1/realtime?model=m", check_ga),
        ("openai-beta", "/v1/realtime?model=m", check_beta),
        ("azure", "/openai/v1/realtime?model=m", check_ga),
        ("azure", "/openai/realtime?api-version=2025-04-01-preview&deployment=m", check_beta),
        ("xai", "/v1/realtime?model=m", None),
        ("xai", "/v1/realtime", None),
    ],
)
async def test_a_turn_in_every_dialect(simulator: SimulatorFactory, dialect: str, path: str, check: Any) -> None:
    """A spoken turn completes on each path of each dialect, and each event is one of that dialect."""
    sim = await simulator(dialect=dialect, name="sim-a")
    async with connect(f"ws://127.0.0.1:{sim.port}{path}") as ws:
        assert ws.response is not None
        assert ws.response.headers["x-simulator"] == "sim-a"
        events = await turn(ws)
    assert events[0]["type"] == ("conversation.created" if dialect == "xai" else "session.created")
    assert events[-1]["response"]["status"] == "completed"
    assert "sim-a" in events[-1]["response"]["output"][0]["content"][0]["transcript"]
    if check is not None:
        for event in events:
            check(event)
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    assert sim.stats.sessions_opened == sim.stats.peak == 1
    assert sim.stats.close_codes == {1000: 1}
    assert sim.stats.events_received == {"conversation.item.create": 1, "response.create": 1}
    assert sim.stats.events_sent == len(events)


async def test_openai_sdk_talks_to_it(simulator: SimulatorFactory) -> None:
    """The SDK's realtime client completes a turn."""
    sim = await simulator(api_keys=[KEY])
    async with openai.AsyncOpenAI(api_key=KEY, base_url=sim.api_base) as client:
        base = ws_url(sim).split("/realtime")[0]
        client.websocket_base_url = base
        async with client.realtime.connect(model="gpt-realtime") as connection:
            await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
            await connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
            )
            await connection.response.create()
            said = ""
            async for event in connection:
                if event.type == "response.output_text.delta":
                    said += event.delta
                if event.type == "response.done":
                    break
    assert said == "You said: hello."
    request = sim.stats.last_request
    assert request is not None
    assert request.headers["authorization"] == f"Bearer {KEY}"


async def test_speech_over_the_wire_interrupts_an_answer(simulator: SimulatorFactory) -> None:
    """With pace, an answer is under way long enough for speech to cut it off; the rest of it never comes."""
    sim = await simulator(pace=2, reply="this answer takes quite some time " * 20)
    async with connect(ws_url(sim)) as ws:
        for event in ASK:
            await ws.send(json.dumps(event))
        await events_until(ws, "response.output_audio.delta")
        sound = base64.b64encode(tone(0.3)).decode()
        await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": sound}))
        events = await events_until(ws, "response.done")
        assert events[-1]["response"]["status_details"]["reason"] == "turn_detected"
        sound = base64.b64encode(silence(1)).decode()
        await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": sound}))
        after = await events_until(ws, "response.output_audio.delta")
        assert "input_audio_buffer.speech_stopped" in [event["type"] for event in after]


async def test_pace_is_the_clock_of_the_answer(simulator: SimulatorFactory) -> None:
    """At a pace an answer takes at least its length divided by it; without, nothing like it."""
    sound_s = {}
    took_s = {}
    for pace in ("fast", 10):
        sim = await simulator(pace=pace, reply="one two three four five six seven eight")
        async with connect(ws_url(sim)) as ws:
            await events_until(ws, "session.created")
            began = time.monotonic()
            events = await turn(ws)
            took_s[pace] = time.monotonic() - began
        sound = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
        sound_s[pace] = len(sound) / 48_000
    assert sound_s["fast"] == sound_s[10] > 1
    assert took_s[10] >= (sound_s[10] - 0.1) / 10
    assert took_s["fast"] < took_s[10]


# --- keys, paths, models ---


@pytest.mark.parametrize(
    ("dialect", "headers", "protocols"),
    [
        ("openai", {"Authorization": f"Bearer {KEY}"}, None),
        ("openai", {}, ["realtime", f"openai-insecure-api-key.{KEY}"]),
        ("azure", {"api-key": KEY}, None),
        ("azure", {"Authorization": f"Bearer {KEY}"}, None),
        ("xai", {}, [f"xai-client-secret.{KEY}"]),
    ],
)
async def test_a_good_key_is_found_where_clients_put_it(
    simulator: SimulatorFactory, dialect: str, headers: dict[str, str], protocols: list[str] | None, caplog: Any
) -> None:
    """Each of the places works; ``realtime`` is selected when offered and nothing else; no key is logged."""
    sim = await simulator(dialect=dialect, api_keys=[KEY])
    base = "/openai/v1" if dialect == "azure" else "/v1"
    url = f"{sim.url}{base}/realtime?model=m"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=headers, protocols=protocols or []) as ws:
        first = await ws.receive_json()
        assert first["type"] in ("session.created", "conversation.created")
        assert ws.protocol == ("realtime" if protocols and "realtime" in protocols else None)
    assert KEY not in caplog.text
    assert KEY not in repr(sim.stats)
    assert KEY not in json.dumps(sim.stats.told())


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk-wrong"}, {"api-key": KEY}])
async def test_a_bad_key_is_an_error_event_and_close_3000(simulator: SimulatorFactory, headers: dict[str, str]) -> None:
    """As the real one: a 101, ``invalid_api_key``, 3000; OpenAI reads no ``api-key`` header."""
    sim = await simulator(api_keys=[KEY])
    async with connect(ws_url(sim), additional_headers=headers) as ws:
        event = json.loads(await ws.recv())
        check_ga(event)
        assert event["error"]["code"] == "invalid_api_key"
        with pytest.raises(websockets.ConnectionClosed):
            await ws.recv()
        assert (ws.close_code, ws.close_reason) == (3000, "invalid_request_error.invalid_api_key")
    assert sim.stats.sessions_refused == 1
    assert sim.stats.sessions_opened == 0


async def test_a_bad_key_can_be_an_http_401(simulator: SimulatorFactory) -> None:
    """``bad_key="http"`` answers before the upgrade, with OpenAI's error body."""
    sim = await simulator(api_keys=[KEY], bad_key="http")
    async with aiohttp.ClientSession() as session, session.get(ws_url(sim).replace("ws", "http", 1), headers=UPGRADE) as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["code"] == "invalid_api_key"
    assert sim.stats.upgrades_refused == 1


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@pytest.mark.parametrize(
    ("headers", "protocols"), [({"OpenAI-Beta": "realtime=v1"}, None), ({}, ["realtime", "openai-beta.realtime-v1"])]
)
async def test_the_retired_beta_ends_a_ga_session(simulator: SimulatorFactory, headers: dict[str, str], protocols: Any) -> None:
    """The GA dialect refuses the beta header and its subprotocol: 101, error, 4000."""
    sim = await simulator()
    async with connect(ws_url(sim), additional_headers=headers, subprotocols=protocols) as ws:
        assert json.loads(await ws.recv())["error"]["code"] == "beta_api_shape_disabled"
        with pytest.raises(websockets.ConnectionClosed):
            await ws.recv()
        assert (ws.close_code, ws.close_reason) == (4000, "invalid_request_error.beta_api_shape_disabled")


async def test_other_dialects_take_the_beta_header(simulator: SimulatorFactory) -> None:
    """Only GA refuses it."""
    for dialect in ("openai-beta", "xai"):
        sim = await simulator(dialect=dialect)
        async with connect(ws_url(sim), additional_headers={"OpenAI-Beta": "realtime=v1"}) as ws:
            assert json.loads(await ws.recv())["type"] != "error"


async def test_unknown_models_are_refused(simulator: SimulatorFactory) -> None:
    """OpenAI and xAI by an event and 4000, Azure by HTTP 404."""
    for dialect in ("openai", "xai"):
        sim = await simulator(dialect=dialect, models=["m"])
        async with connect(ws_url(sim)) as ws:
            assert json.loads(await ws.recv())["type"] != "error"
        async with connect(ws_url(sim, "model=other")) as ws:
            assert json.loads(await ws.recv())["error"]["code"] == "model_not_found"
            with pytest.raises(websockets.ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 4000
    sim = await simulator(dialect="azure", models=["m"])
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with connect(f"ws://127.0.0.1:{sim.port}/openai/v1/realtime?model=other"):
            pass
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    ("dialect", "path", "status"),
    [
        ("openai", "/v1/other", 404),
        ("openai", "/v1/realtime", 400),
        ("openai", "/v1/realtime?model=m&call_id=c", 400),
        ("openai", "/v1/realtime?model=m&intent=transcription", 400),
        ("openai", "/v1/realtime?intent=flying", 400),
        ("azure", "/v1/realtime?model=m", 404),
        ("azure", "/openai/realtime?deployment=m", 400),
        ("azure", "/openai/realtime?api-version=1", 400),
        ("openai", "/openai/v1/realtime", 400),
    ],
)
async def test_wrong_requests_get_an_http_status(simulator: SimulatorFactory, dialect: str, path: str, status: int) -> None:
    """What asks for no session is refused with a status and a JSON error."""
    sim = await simulator(dialect=dialect)
    async with aiohttp.ClientSession() as session, session.get(f"{sim.url}{path}", headers=UPGRADE) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["message"]


async def test_a_plain_request_is_told_to_upgrade(simulator: SimulatorFactory) -> None:
    """A GET without upgrade gets 426 and what it should have asked for."""
    sim = await simulator()
    async with aiohttp.ClientSession() as session, session.get(ws_url(sim).replace("ws", "http", 1)) as answer:
        assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")


async def test_own_path_and_last_request(simulator: SimulatorFactory) -> None:
    """A configured path is served instead of the dialect's, and what a client sent is kept raw for tests, masked for HTTP."""
    sim = await simulator(path="/api-ws/realtime")
    url = f"ws://127.0.0.1:{sim.port}/api-ws/realtime?model=m&token=secret-token"
    async with connect(url, additional_headers={"X-Key": "secret-header"}, subprotocols=["x.secret-proto"]) as ws:  # type: ignore[list-item]  # a str is what the library's NewType is
        await ws.recv()
    request = sim.stats.last_request
    assert request is not None
    assert request.path == "/api-ws/realtime"
    assert request.query == {"model": "m", "token": "secret-token"}
    assert request.headers["x-key"] == "secret-header"
    assert request.protocols == ("x.secret-proto",)
    async with aiohttp.ClientSession() as session, session.get(f"{sim.url}/_sim/stats") as answer:
        told = await answer.text()
    assert "secret" not in told
    assert json.loads(told)["last_request"]["query"]["model"] == "m"
    assert "secret" not in repr(request)


async def test_transcription_intent(simulator: SimulatorFactory) -> None:
    """``intent=transcription`` without a model opens a transcription session."""
    sim = await simulator()
    async with connect(ws_url(sim, "intent=transcription")) as ws:
        assert json.loads(await ws.recv())["session"]["type"] == "transcription"


async def test_xai_resumes_under_the_given_conversation_id(simulator: SimulatorFactory) -> None:
    """The id of the query is the conversation's."""
    sim = await simulator(dialect="xai")
    async with connect(ws_url(sim, "conversation_id=conv_before")) as ws:
        assert json.loads(await ws.recv())["conversation"]["id"] == "conv_before"


async def test_xai_pings_when_asked(simulator: SimulatorFactory) -> None:
    """Application-level pings come between events."""
    sim = await simulator(dialect="xai", ping_interval_s=0.01)
    async with connect(ws_url(sim)) as ws:
        await events_until(ws, "ping")


async def test_max_sessions_gives_429(simulator: SimulatorFactory) -> None:
    """Beyond its limit the provider is rate limited; a place that is free again is given."""
    sim = await simulator(max_sessions=1)
    async with connect(ws_url(sim)):
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with connect(ws_url(sim)):
                pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["Retry-After"] == "1"
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    async with connect(ws_url(sim)) as ws:
        await ws.recv()


async def test_a_session_ends_at_its_cap(simulator: SimulatorFactory) -> None:
    """``session_expired``, then 1001; ``expires_at`` told so from the start."""
    sim = await simulator(session_cap_s=0.2)
    async with connect(ws_url(sim)) as ws:
        created = json.loads(await ws.recv())
        assert abs(created["session"]["expires_at"] - time.time()) < 5
        assert json.loads(await ws.recv())["error"]["code"] == "session_expired"
        with pytest.raises(websockets.ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1001


# --- reading clients ---


async def test_client_close_codes_are_seen_and_echoed(simulator: SimulatorFactory) -> None:
    """The client's code comes back and is counted; a connection that just ends counts as 1006."""
    sim = await simulator()
    async with connect(ws_url(sim)) as ws:
        await ws.recv()
        await ws.close(4321, "done")
        assert ws.close_code == 4321
    async with raw(sim) as (reader, _):
        await reader.readuntil(b"session.created")
    await sim.stats.wait_until(lambda stats: sum(stats.close_codes.values()) == 2)
    assert sim.stats.close_codes == {4321: 1, 1006: 1}


@pytest.mark.parametrize("garbage", [b"\x00" * 64, b"\xff" * 64, os.urandom(200), b"\x81\xfe\xff\xff", b"\x88\x81aaaa"])
async def test_garbage_frames_end_one_connection_and_nothing_else(
    simulator: SimulatorFactory, garbage: bytes, caplog: Any
) -> None:
    """A client that sends no WebSocket is cut off; nothing is logged and other sessions go on."""
    sim = await simulator()
    async with connect(ws_url(sim)) as good:
        async with raw(sim) as (reader, writer):
            await reader.readuntil(b"session.created")
            writer.write(garbage)
            writer.write_eof()
            await ends(reader)
        await sim.stats.wait_until(lambda stats: stats.active == 1)
        assert (await turn(good))[-1]["type"] == "response.done"
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_garbage_instead_of_http_is_cut_off_silently(simulator: SimulatorFactory, caplog: Any) -> None:
    """Bytes that are no request give no traceback."""
    sim = await simulator()
    for head in ("\x00\x01\x02\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n"):
        async with raw(sim, head=head) as (reader, writer):
            writer.write_eof()
            await ends(reader)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_large_messages_are_taken_up_to_the_limit(simulator: SimulatorFactory) -> None:
    """An append of 15 MiB of audio is fine; a message above 32 MiB is closed with 1009."""
    sim = await simulator()
    async with connect(ws_url(sim), max_size=None) as ws:
        await ws.recv()
        sound = base64.b64encode(bytes(15 * 1024 * 1024)).decode()
        await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": sound}))
        await ws.send(json.dumps({"type": "input_audio_buffer.clear"}))
        assert json.loads(await ws.recv())["type"] == "input_audio_buffer.cleared"
        with pytest.raises(websockets.ConnectionClosed):
            await ws.send("x" * (33 * 1024 * 1024))
            await ws.recv()
        assert ws.close_code == 1009


async def test_a_client_that_does_not_read_is_not_read_either(simulator: SimulatorFactory) -> None:
    """Answers to a flood are bounded: the simulator stops reading, so the flood itself comes to a halt."""
    sim = await simulator()
    flood = b'{"type":"conversation.item.retrieve","item_id":"%s"}' % (b"x" * 60)
    frame = b"\x81\x80\x00\x00\x00\x00"[:1] + bytes((0x80 | len(flood),)) + b"\x00" * 4 + flood
    async with raw(sim) as (reader, writer):
        await reader.readuntil(b"session.created")
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 400 * 1024 * 1024:
                writer.write(frame * 2000)
                sent += len(frame) * 2000
                async with asyncio.timeout(1.0):
                    await writer.drain()
        taken = sim.stats.bytes_received
        assert taken < sent, "more was taken than a bounded buffer explains"
        writer.transport.abort()
    await sim.stats.wait_until(lambda stats: stats.active == 0)


async def test_echo_returns_messages_untouched_and_says_nothing_first(simulator: SimulatorFactory) -> None:
    """Text, binary, empty, fragmented and large messages come back as they were; pings are answered."""
    sim = await simulator(dialect="echo")
    async with connect(f"ws://127.0.0.1:{sim.port}/any/path", max_size=None) as ws:
        for message in ("text ü", b"\x00\xff", "", b"", "x" * 70_000, os.urandom(3_000_000)):
            await ws.send(message)
            assert await ws.recv() == message
        await ws.send(["in ", "three ", "parts"])
        assert await ws.recv() == "in three parts"
        await (await ws.ping())


async def test_many_sessions_at_once(simulator: SimulatorFactory) -> None:
    """Two hundred sessions have a turn at the same time, and nothing is left of them."""
    sim = await simulator()

    async def one() -> int:
        async with connect(ws_url(sim)) as ws:
            return len(await turn(ws))

    counts = await asyncio.gather(*(one() for _ in range(200)))
    assert len(set(counts)) == 1
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    assert sim.stats.sessions_opened == 200
    assert not sim.stats.failures


async def test_received_messages_are_kept_when_asked(simulator: SimulatorFactory) -> None:
    """``keep_received`` keeps the last messages as they came."""
    sim = await simulator(keep_received=1)
    async with connect(ws_url(sim)) as ws:
        await turn(ws)
    assert list(sim.stats.received) == [json.dumps(ASK[1]).encode()]


# --- faults ---


async def opens(sim: Simulator) -> str:
    """Try a session: ``ok``, or what happened instead."""
    try:
        async with asyncio.timeout(5), connect(ws_url(sim)) as ws:
            event = json.loads(await ws.recv())
            return "ok" if event["type"] == "session.created" else event["error"]["code"]
    except websockets.InvalidStatus as error:
        return str(error.response.status_code)
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionResetError, websockets.InvalidMessage):
        return "reset"
    except websockets.ConnectionClosed as error:
        return f"closed {error.rcvd.code if error.rcvd else 1006}"


async def test_refuse_closes_the_port_until_cleared(simulator: SimulatorFactory) -> None:
    """ECONNREFUSED while set, the same port after, and running sessions are untouched."""
    sim = await simulator()
    port = sim.port
    async with connect(ws_url(sim)) as running:
        for _ in range(3):
            sim.set_fault("refuse")
            assert await opens(sim) == "refused"
            sim.clear_faults()
            assert await opens(sim) == "ok"
        assert (await turn(running))[-1]["type"] == "response.done"
    assert sim.port == port


async def test_refuse_set_and_cleared_in_one_breath(simulator: SimulatorFactory) -> None:
    """Changing one's mind before the loop runs leaves the port open, or closed, as last said."""
    sim = await simulator()
    sim.set_fault("refuse")
    sim.clear_faults()
    assert await opens(sim) == "ok"
    sim.set_fault("refuse")
    sim.clear_faults()
    sim.set_fault("refuse")
    assert await opens(sim) == "refused"


async def test_refuse_from_the_start_and_for_a_time(simulator: SimulatorFactory) -> None:
    """A simulator that starts refusing has its port, and opens it by itself."""
    sim = await simulator(faults=["refuse=0.2"])
    assert await opens(sim) == "refused"
    await sim.stats.wait_until(lambda _: not sim.faults)
    assert await opens(sim) == "ok"


async def test_refuse_by_reset(simulator: SimulatorFactory) -> None:
    """The connection is accepted and reset at once."""
    sim = await simulator(faults=["refuse,reset=true,next=2"])
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        assert await ends(reader) == "reset"
        writer.close()
    assert await opens(sim) == "ok"
    assert sim.stats.connections_reset == 2


async def test_status_with_retry_after_and_body(simulator: SimulatorFactory) -> None:
    """The upgrade gets the status, the header and the body that the fault says, for as many sessions as it says."""
    sim = await simulator(faults=["status=429,retry_after=7,code=rate_limit_exceeded,type=rate_limit_error,next=2"])
    for _ in range(2):
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with connect(ws_url(sim)):
                pass
        answer = refused.value.response
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
        error = json.loads(answer.body or b"")["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert await opens(sim) == "ok"
    assert sim.stats.upgrades_refused == 2


async def test_status_redirects(simulator: SimulatorFactory) -> None:
    """A redirect carries its location and no body."""
    sim = await simulator(faults=["status=302,location=http://127.0.0.1:1/x"])
    async with raw(sim) as (reader, _):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 302")
    assert "Location: http://127.0.0.1:1/x" in head


async def test_hang_before_101(simulator: SimulatorFactory) -> None:
    """The request is never answered; when the client leaves, nothing is left."""
    sim = await simulator(faults=["hang_before_101"])
    async with raw(sim) as (reader, _):
        await sim.stats.wait_until(lambda stats: stats.last_request is not None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
    sim.set_fault("hang_before_101", for_s=0.05)
    assert await opens(sim) == "ok"


async def test_hang_after_101(simulator: SimulatorFactory) -> None:
    """The upgrade succeeds and nothing follows, whatever the client says; its pings are answered and its close is."""
    sim = await simulator(faults=["hang_after_101"])
    async with connect(ws_url(sim)) as ws:
        await ws.send(json.dumps(ASK[1]))
        await (await ws.ping())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await ws.recv()
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    assert sim.stats.close_codes == {1000: 1}
    assert sim.stats.events_sent == 0


async def test_slow_first_event(simulator: SimulatorFactory) -> None:
    """The first event comes late, and what the client sent before it is answered after it."""
    sim = await simulator(faults=["slow_first_event=0.3"])
    async with connect(ws_url(sim)) as ws:
        began = time.monotonic()
        for event in ASK:
            await ws.send(json.dumps(event))
        events = await events_until(ws, "response.done")
    assert time.monotonic() - began >= 0.25
    assert events[0]["type"] == "session.created"


async def test_error_event_then_close(simulator: SimulatorFactory) -> None:
    """An ``error`` instead of the first event, then the close; without a code the socket stays open."""
    sim = await simulator(faults=["error_event=insufficient_quota,type=insufficient_quota,close=4000"])
    async with connect(ws_url(sim)) as ws:
        event = json.loads(await ws.recv())
        check_ga(event)
        assert (event["error"]["code"], event["error"]["type"]) == ("insufficient_quota", "insufficient_quota")
        with pytest.raises(websockets.ConnectionClosed):
            await ws.recv()
        assert (ws.close_code, ws.close_reason) == (4000, "insufficient_quota.insufficient_quota")
    sim.set_fault("error_event", close=None)
    async with connect(ws_url(sim)) as ws:
        assert json.loads(await ws.recv())["type"] == "error"
        await (await ws.ping())


@pytest.mark.parametrize("count", [0, 1, 4])
async def test_close_after_events(simulator: SimulatorFactory, count: int) -> None:
    """Exactly that many events, then the close frame at once."""
    sim = await simulator(faults=[f"close_after_events={count},code=1013,reason=busy"])
    async with connect(ws_url(sim)) as ws:
        if count > 1:
            for event in ASK:
                await ws.send(json.dumps(event))
        got = 0
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                await ws.recv()
                got += 1
        assert (got, ws.close_code, ws.close_reason) == (count, 1013, "busy")


@pytest.mark.parametrize("count", [0, 1])
async def test_reset_after_events(simulator: SimulatorFactory, count: int) -> None:
    """That many events, then a RST instead of an orderly end."""
    sim = await simulator(faults=[f"reset_after_events={count}"])
    async with raw(sim) as (reader, _):
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(5):
                await reader.read()
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    assert sim.stats.events_sent == count


@pytest.mark.parametrize(
    ("fault", "ending"),
    [
        ("garbage", b"\r\n\r\n" + b"\xff\xff" * 32),
        ("garbage=json", b'\r\n\r\n\x81\x15{"type":"session.crea'),
        ("garbage,hex=8181", b"\r\n\r\n\x81\x81"),
        ("garbage=http", b"\x00\xffnot http at all\r\n\r\n"),
    ],
)
async def test_garbage(simulator: SimulatorFactory, fault: str, ending: bytes) -> None:
    """The very bytes arrive, after the 101 or instead of it."""
    sim = await simulator(faults=[fault])
    async with raw(sim) as (reader, _):
        got = b""
        async with asyncio.timeout(5):
            while not got.endswith(ending):
                piece = await reader.read(4096)
                assert piece, f"the connection ended after {got!r}"
                got += piece
        assert got.startswith(b"\x00\xff" if fault == "garbage=http" else b"HTTP/1.1 101")


async def test_garbage_after_events(simulator: SimulatorFactory) -> None:
    """A client that follows RFC 6455 fails the connection at the illegal frame behind a good one."""
    sim = await simulator(faults=["garbage,after_events=1"])
    async with connect(ws_url(sim)) as ws:
        assert json.loads(await ws.recv())["type"] == "session.created"
        with pytest.raises(websockets.ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1002 or ws.close_code == 1006


async def test_stall(simulator: SimulatorFactory) -> None:
    """After so many deltas nothing comes any more and not even pings are answered; the client's leaving is noticed."""
    sim = await simulator(faults=["stall=3"])
    async with raw(sim) as (reader, writer):
        await reader.readuntil(b"session.created")
        for event in ASK:
            writer.write(masked(json.dumps(event).encode()))
        got = b""
        with pytest.raises(TimeoutError):
            while True:
                async with asyncio.timeout(0.3):
                    got += await reader.read(65_536)
        assert got.count(b".delta") == 3
        assert b"response.done" not in got
        writer.write(masked(b"", opcode=9))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        assert sim.stats.active == 1
    await sim.stats.wait_until(lambda stats: stats.active == 0)


def masked(payload: bytes, opcode: int = 1) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    head = bytes((0x80 | opcode, 0x80 | size)) if size < 126 else bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
    return head + bytes(4) + payload


async def test_drop_mid_turn(simulator: SimulatorFactory) -> None:
    """The connection ends in the middle of an answer, without a close frame and without a reset."""
    sim = await simulator(faults=["drop_mid_turn=2,next=1"])
    async with connect(ws_url(sim)) as ws:
        got: list[dict[str, Any]] = []
        for event in ASK:
            await ws.send(json.dumps(event))
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            async with asyncio.timeout(5):
                while True:
                    got.append(json.loads(await ws.recv()))
        assert closed.value.rcvd is None
    kinds = [event["type"] for event in got]
    assert kinds[-1].endswith(".delta")
    assert sum(kind.endswith(".delta") for kind in kinds) == 2
    assert "response.done" not in kinds
    async with connect(ws_url(sim)) as ws:
        assert (await turn(ws))[-1]["type"] == "response.done"


async def test_fail_turn(simulator: SimulatorFactory) -> None:
    """The session works and its answers fail."""
    sim = await simulator(faults=["fail_turn=rate_limit_exceeded"])
    async with connect(ws_url(sim)) as ws:
        done = (await turn(ws))[-1]["response"]
    assert (done["status"], done["status_details"]["error"]["code"]) == ("failed", "rate_limit_exceeded")


async def test_next_every_and_probability(simulator: SimulatorFactory) -> None:
    """Which sessions a fault hits is counted, and repeatable by the seed."""
    sim = await simulator(faults=["status=503,next=1", "status=500,every=3"])
    assert [await opens(sim) for _ in range(7)] == ["503", "ok", "ok", "500", "ok", "ok", "500"]
    runs = []
    for _ in range(2):
        sim = await simulator(seed=4, faults=["status=503,probability=0.5"])
        runs.append([await opens(sim) for _ in range(20)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {"503", "ok"}


async def test_faults_by_http(simulator: SimulatorFactory) -> None:
    """POST sets, GET tells, DELETE clears, and what is wrong is a 400 that says what and changes nothing."""
    sim = await simulator()
    control = f"{sim.url}/_sim/faults"
    async with aiohttp.ClientSession() as session:
        async with session.post(control, json={"verb": "status", "status": 503, "next": 1}) as answer:
            assert answer.status == 200
        assert await opens(sim) == "503"
        async with session.get(control) as answer:
            assert await answer.json() == [{"verb": "status", "status": 503, "next": 1, "hits": 1}]
        for body, words in [
            ({"verb": "status"}, "expected a value"),
            ({"verb": "status", "status": "x"}, "expected an integer"),
            ({"verb": "nope"}, "expected one of"),
            ([{"verb": "stall"}, {"verb": "stall", "after_deltas": -1}], "at least 0"),
            ({"verb": "refuse"}, "expected seconds"),
            (5, "expected an object"),
        ]:
            async with session.post(control, json=body) as answer:
                assert answer.status == 400
                assert words in (await answer.json())["error"]["message"]
        async with session.post(control, data=b"{nope") as answer:
            assert answer.status == 400
        assert len(sim.faults) == 1
        async with session.post(control, json={"verb": "refuse", "for_s": 0.1}) as answer:
            assert answer.status == 200
    assert await opens(sim) == "refused"
    await sim.stats.wait_until(lambda _: len(sim.faults) == 1)
    async with aiohttp.ClientSession() as session, session.delete(control) as answer:
        assert answer.status == 200
    assert not sim.faults


def test_wrong_options_are_refused_at_once() -> None:
    """Dialect, pace, keys and faults are checked before anything listens."""
    for options, words in [
        ({"dialect": "klingon"}, "dialect: found 'klingon'"),
        ({"pace": 0}, "pace: found 0"),
        ({"pace": float("nan")}, "pace"),
        ({"api_keys": "sk-one"}, "api_keys"),
        ({"session_cap_s": 0}, "session_cap_s"),
        ({"ping_interval_s": 0}, "ping_interval_s"),
        ({"name": "two\r\nlines"}, "name"),
        ({"faults": ["status=9"]}, "status"),
    ]:
        with pytest.raises(ValueError, match=words):
            Simulator(**options)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(FaultError):
        Simulator().set_fault("status", status=1000)


# --- life ---


@pytest.mark.parametrize("abrupt", [False, True])
async def test_stop_ends_everything_within_a_second(abrupt: bool) -> None:
    """Idle, answering, hanging and stalled sessions and idle HTTP connections end; no task is left, the port is free."""
    before = asyncio.all_tasks()
    sim = Simulator(pace="realtime", faults=["hang_before_101,next=1", "hang_after_101,next=1"])
    await sim.start()
    async with aiohttp.ClientSession() as session, raw(sim) as (hanging, _):
        await sim.stats.wait_until(lambda stats: len(stats.requests) == 1)
        silent = await connect(ws_url(sim)).__aenter__()
        talking = await connect(ws_url(sim)).__aenter__()
        for event in ASK:
            await talking.send(json.dumps(event))
        await events_until(talking, "response.output_audio.delta")
        async with raw(sim) as (deaf, _), session.get(f"{sim.url}/_sim/stats"):
            await sim.stats.wait_until(lambda stats: stats.active == 3)
            began = time.monotonic()
            await sim.stop(abrupt=abrupt)
            assert time.monotonic() - began < 1
            await ends(deaf)
            await ends(hanging)
        await silent.wait_closed()
        await talking.wait_closed()
        assert talking.close_code == (1006 if abrupt else 1001)
    assert sim.stats.active == 0
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", sim.port)
    await sim.stop()


async def test_stop_does_not_wait_for_a_client_that_does_not_read() -> None:
    """An answer nobody reads ends with the simulator all the same."""
    sim = Simulator(reply="a long answer " * 400)
    await sim.start()
    with socket.create_connection(("127.0.0.1", sim.port)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(HEAD.encode() + b"".join(masked(json.dumps(event).encode()) for event in ASK * 20))
        await sim.stats.wait_until(lambda stats: stats.events_received["response.create"] > 0)
        began = time.monotonic()
        await sim.stop()
        assert time.monotonic() - began < 1
    assert sim.stats.active == 0
    assert not sim.stats.failures


async def test_an_upgrade_that_is_none_is_a_400(simulator: SimulatorFactory) -> None:
    """A wrong WebSocket version or key is refused as HTTP."""
    sim = await simulator()
    url = ws_url(sim).replace("ws", "http", 1)
    async with aiohttp.ClientSession() as session:
        for wrong in ({"Sec-WebSocket-Version": "5"}, {"Sec-WebSocket-Key": "short"}, {"Connection": "close"}):
            async with session.get(url, headers=UPGRADE | wrong) as answer:
                assert answer.status == 400
    assert sim.stats.upgrades_refused == 3


def anonymous_tls(purpose: int) -> ssl.SSLContext:
    """TLS without certificates: the test needs encryption in the way, not identity."""
    context = ssl.SSLContext(purpose)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context


async def test_tls(simulator: SimulatorFactory) -> None:
    """Turns, resets and drops work through TLS as they do without."""
    faults = ["reset_after_events=1,next=1", "drop_mid_turn=1,next=1"]
    sim = await simulator(ssl_context=anonymous_tls(ssl.PROTOCOL_TLS_SERVER), faults=faults)
    assert sim.url.startswith("https://")
    for _ in faults:
        with pytest.raises((websockets.ConnectionClosedError, ConnectionResetError)):
            async with connect(ws_url(sim), ssl=anonymous_tls(ssl.PROTOCOL_TLS_CLIENT)) as ws:
                await turn(ws)
    async with connect(ws_url(sim), ssl=anonymous_tls(ssl.PROTOCOL_TLS_CLIENT)) as ws:
        assert (await turn(ws))[-1]["type"] == "response.done"


async def test_it_can_start_again_on_its_port() -> None:
    """After a stop the same object starts anew, on the port it had."""
    sim = Simulator()
    ports = []
    for _ in range(2):
        async with sim:
            ports.append(sim.port)
            assert await opens(sim) == "ok"
    assert ports[0] == ports[1]


async def test_a_taken_port_is_an_error() -> None:
    """Two simulators cannot have one port; the second says so and leaves nothing behind."""
    async with Simulator() as sim:
        other = Simulator(port=sim.port)
        with pytest.raises(OSError):
            await other.start()
        await other.stop()
        assert await opens(sim) == "ok"


async def test_sessions_can_be_ended_from_outside(simulator: SimulatorFactory) -> None:
    """``close_sessions`` and ``reset_sessions`` end what is open."""
    sim = await simulator()
    async with connect(ws_url(sim)) as ws:
        await ws.recv()
        assert sim.close_sessions(1012, "restart") == 1
        with pytest.raises(websockets.ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1012
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    async with raw(sim) as (reader, _):
        await reader.readuntil(b"session.created")
        assert sim.reset_sessions() == 1
        assert await ends(reader) == "reset"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_serves_until_a_signal(number: signal.Signals) -> None:
    """``simulate`` prints one line with its address, serves with the given faults, and ends well within a second."""
    code = "from router.simulator.command import simulate; simulate()"
    options = ["--port", "0", "--dialect", "xai", "--api-key", KEY, "--fault", "status=503,retry_after=7,next=1"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        line = (await process.stdout.readline()).decode()
        base = line.split()[-1]
        assert base.endswith("/v1")
        url = f"{base.replace('http', 'ws', 1)}/realtime"
        headers = {"Authorization": f"Bearer {KEY}"}
        with pytest.raises(websockets.InvalidStatus):
            async with connect(url, additional_headers=headers):
                pass
        async with connect(url, additional_headers=headers) as ws:
            assert json.loads(await ws.recv())["type"] == "conversation.created"
            began = time.monotonic()
            process.send_signal(number)
            out, err = await process.communicate()
            assert time.monotonic() - began < 2
    assert (process.returncode, out, err) == (0, b"", b"")


async def test_the_command_says_why_it_cannot_start() -> None:
    """A taken port is one line on stderr and a failure, not a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code = "from router.simulator.command import simulate; simulate()"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, "--port", str(taken.getsockname()[1]), stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(20):
            _, err = await process.communicate()
    assert process.returncode == 1
    assert b"cannot listen" in err
    assert b"Traceback" not in err
