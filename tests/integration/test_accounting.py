"""One record a session in every way in which one can end, and what it holds, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from router.events import FirstAudio, SessionRecord, SessionStarted, Traffic, UsageRecorded
from router.simulator.pytest_plugin import SimulatorFactory
from router.usage import Usage, response_usage
from tests.helpers.raw import (
    CLOSE,
    PING,
    PONG,
    SESSION_CREATED,
    TEXT,
    RawPeer,
    close_frame,
    connect,
    encode,
    on_both_loops,
    raw_client,
    raw_upstream,
    upgrade_request,
)
from tests.helpers.running import RunningRouter, closed_port, config_of, next_event, run_turn, running_router

# --- the ways in which a session ends -----------------------------------------------------------


@dataclass(slots=True)
class Scene:
    """A running session."""

    router: RunningRouter
    client: RawPeer
    upstream: RawPeer


Act = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Way:
    """How a session ends, and what its record must say.

    Attributes:
        act: makes it end.
        who, cause, client_code, upstream_code: of the record.
        reason: the upstream's, of the record.
        settings: of the router.
    """

    act: Act
    who: str
    cause: str
    client_code: int
    upstream_code: int
    reason: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


async def client_closes(scene: Scene) -> None:
    await scene.client.close(1000, "bye")
    await scene.upstream.closed()
    await scene.upstream.close(1000)


async def client_closes_without_code(scene: Scene) -> None:
    await scene.client.close(None)
    await scene.upstream.closed()
    await scene.upstream.close(None)


async def client_closes_and_goes(scene: Scene) -> None:
    await scene.client.close(1001)
    scene.client.hang_up()
    await scene.upstream.closed()
    await scene.upstream.close(1001)


async def upstream_closes(scene: Scene) -> None:
    await scene.upstream.close(1001, "Your session hit the maximum duration of 60 minutes.")
    await scene.client.closed()
    await scene.client.close(1001)


async def upstream_closes_and_goes(scene: Scene) -> None:
    await scene.upstream.close(4000, "x")
    scene.upstream.hang_up()
    await scene.client.closed()
    await scene.client.close(4000)


async def client_is_reset(scene: Scene) -> None:
    scene.client.reset()
    await scene.upstream.closed()


async def client_hangs_up(scene: Scene) -> None:
    scene.client.hang_up()
    await scene.upstream.closed()


async def upstream_is_reset(scene: Scene) -> None:
    scene.upstream.reset()
    await scene.client.closed()


async def upstream_hangs_up(scene: Scene) -> None:
    scene.upstream.hang_up()
    await scene.client.closed()


async def upstream_is_lost_in_mid_frame(scene: Scene) -> None:
    await scene.upstream.send(encode(TEXT, b'{"type":"x.y","z":"' + b"z" * 500, masked=False)[:-5])
    scene.upstream.reset()
    await scene.client.gone()


async def client_offends(scene: Scene) -> None:
    await scene.client.send(b"\xf1\x80")
    await scene.client.closed()
    await scene.upstream.closed()


async def client_says_too_much(scene: Scene) -> None:
    await scene.client.send(encode(TEXT, length=20_001, masked=True))
    await scene.client.closed()
    await scene.upstream.closed()


async def upstream_offends(scene: Scene) -> None:
    await scene.upstream.send(b"\xf1\x00")
    await scene.client.closed()
    await scene.upstream.closed()


async def other_lives(living: RawPeer) -> None:
    """Answer PINGs up to the CLOSE."""
    while (frame := await living.frame()).opcode != CLOSE:
        if frame.opcode == PING:
            await living.send_frame(PONG, frame.payload)


async def client_dies(scene: Scene) -> None:
    await other_lives(scene.upstream)


async def upstream_dies(scene: Scene) -> None:
    await other_lives(scene.client)


async def time_passes(scene: Scene) -> None:
    await scene.client.closed()
    await scene.upstream.closed()


async def process_ends(scene: Scene) -> None:
    ending = asyncio.create_task(scene.router.engine.end_all(code=1001, reason="router shutting down", timeout_s=15))
    await scene.client.closed()
    await scene.upstream.closed()
    scene.client.hang_up()
    scene.upstream.hang_up()
    await ending


DEATH = {"ping_interval_s": 0.1, "ping_timeout_s": 0.8}
WAYS: dict[str, Way] = {
    "client closes": Way(client_closes, "client", "close", 1000, 1000),
    "client closes without a code": Way(client_closes_without_code, "client", "close", 1005, 1005),
    "client closes and goes": Way(client_closes_and_goes, "client", "close", 1001, 1001),
    "upstream closes": Way(
        upstream_closes, "upstream", "close", 1001, 1001, "Your session hit the maximum duration of 60 minutes."
    ),
    "upstream closes and goes": Way(upstream_closes_and_goes, "upstream", "close", 4000, 4000, "x"),
    "client is reset": Way(client_is_reset, "client", "lost", 1006, 1001),
    "client hangs up": Way(client_hangs_up, "client", "lost", 1006, 1001),
    "upstream is reset": Way(upstream_is_reset, "upstream", "lost", 1011, 1006),
    "upstream hangs up": Way(upstream_hangs_up, "upstream", "lost", 1011, 1006),
    "upstream is lost in mid-frame": Way(upstream_is_lost_in_mid_frame, "upstream", "lost", 1006, 1006),
    "client offends": Way(client_offends, "client", "protocol", 1002, 1001),
    "client says too much": Way(client_says_too_much, "client", "protocol", 1009, 1001, settings={"max_message_bytes": 20_000}),
    "upstream offends": Way(upstream_offends, "upstream", "protocol", 1011, 1002),
    "client dies": Way(client_dies, "client", "dead", 1006, 1001, settings=DEATH),
    "upstream dies": Way(upstream_dies, "upstream", "dead", 1011, 1006, settings=DEATH),
    "idle": Way(time_passes, "router", "idle_timeout", 1001, 1001, settings={"idle_timeout_s": 0.3}),
    "too long": Way(time_passes, "router", "max_session", 1001, 1001, settings={"max_session_s": 0.3}),
    "process ends": Way(process_ends, "router", "shutdown", 1001, 1001),
}


@pytest.mark.parametrize("phase", ["idle", "turn"])
@pytest.mark.parametrize("name", WAYS)
@on_both_loops
async def test_every_end_has_exactly_one_record(name: str, phase: str) -> None:
    """Who ended it, why, in which phase, both close codes; one record, and one lease less."""
    way = WAYS[name]
    async with raw_upstream() as server, running_router(config_of(server.api_base, router=way.settings)) as router:
        router.engine.sweep._interval_s = 0.02
        client = await raw_client(router.port)
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        if phase == "turn":
            await upstream.text(b'{"type":"response.created","response":{"id":"resp_1"}}')
            assert b"response.created" in await client.message()
        assert router.leases == 1
        await way.act(Scene(router, client, upstream))
        client.abandon()
        upstream.abandon()
        await router.idle()
        (record,) = router.records
        assert (record.who, record.cause, record.phase) == (way.who, way.cause, phase)
        assert (record.client_code, record.upstream_code) == (way.client_code, way.upstream_code)
        assert (record.upstream_reason, record.status, record.deployment) == (way.reason, 101, "d0")
        assert [attempt.outcome for attempt in record.attempts] == ["ready"]
        assert record.ready_s is not None
        assert 0 < record.ready_s <= record.seconds
        assert [started.session for started in router.of(SessionStarted)] == [record.session]


@on_both_loops
async def test_nothing_is_found() -> None:
    """The record of a session that never was: phase ``waiting``, no close codes, the status that the client got."""
    async with (
        closed_port() as dead,
        running_router(config_of(dead, router={"num_retries": 0})) as router,
    ):
        answer = await router.refused()
        assert answer.status == 503
        (record,) = router.records
        assert (record.who, record.cause, record.phase, record.status) == ("router", "no_deployment_available", "waiting", 503)
        assert (record.client_code, record.upstream_code, record.deployment, record.ready_s) == (None, None, "", None)
        assert [attempt.outcome for attempt in record.attempts] == ["unreachable"]


@on_both_loops
async def test_a_client_that_leaves_while_it_waits() -> None:
    """The client ended it while waiting; the record comes when it leaves, not when the dial would have ended."""
    async with raw_upstream(greeting=b"") as server, running_router(config_of(server.api_base)) as router:
        client = await connect(router.port)
        await client.send(upgrade_request(router.port))
        upstream = await server.accept()
        client.reset()
        await upstream.gone()
        await router.idle()
        (record,) = router.records
        assert (record.who, record.cause, record.phase, record.status) == ("client", "lost", "waiting", 499)
        assert [attempt.outcome for attempt in record.attempts] == ["client_gone"]
        upstream.abandon()


@on_both_loops
async def test_a_process_that_ends_while_a_client_waits() -> None:
    """The router ended it, not the client, which is told 503 at once; its dial is cut and blames nobody."""
    async with raw_upstream(greeting=b"") as server:
        config = config_of(server.api_base, ready_timeout_s=20, router={"total_timeout_s": 30})
        async with running_router(config) as router:
            client = await connect(router.port)
            await client.send(upgrade_request(router.port))
            upstream = await server.accept()
            await router.engine.end_all(code=1001, reason="router shutting down", timeout_s=15)
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
            # Too late: nobody takes it any more.
            upstream.writer.write(encode(TEXT, SESSION_CREATED, masked=False))
            await upstream.gone()
            await router.idle()
            (record,) = router.records
            assert (record.who, record.cause, record.phase, record.status) == ("router", "shutdown", "waiting", 503)
            assert [attempt.outcome for attempt in record.attempts] == ["client_gone"]
            assert router.deployment("d0").breaker.failures == 0
            upstream.abandon()


# --- what a record holds ------------------------------------------------------------------------


@on_both_loops
async def test_bytes_and_events_are_exact() -> None:
    """Frame heads, controls and what came before the join included; traffic by type adds up to the same messages."""
    up = [
        encode(TEXT, b'{"type":"response.create"}', masked=True),
        encode(TEXT, b'{"type":"made.up"}', masked=True),
        encode(PING, b"abc", masked=True),
        close_frame(1000, masked=True),
    ]
    down = [
        encode(TEXT, SESSION_CREATED, masked=False),
        encode(2, b"\0" * 1000, masked=False),
        encode(TEXT, b'{"type":"response.created"}', masked=False),
        close_frame(1000, masked=False),
    ]
    async with raw_upstream(greeting=down[0]) as server, running_router(config_of(server.api_base)) as router:
        client = await raw_client(router.port, early=up[0])
        upstream = await server.accept()
        for frame in down[1:3]:
            await upstream.send(frame)
        for _ in range(3):
            await client.message()
        for frame in up[1:]:
            await client.send(frame)
        assert await upstream.closed() == (1000, b"")
        await upstream.send(down[3])
        await client.gone()
        client.abandon()
        upstream.abandon()
        record = await router.until(SessionRecord)
        assert (record.client_bytes, record.upstream_bytes) == (sum(map(len, up)), sum(map(len, down)))
        assert (record.client_events, record.upstream_events) == (2, 3)
        counts: Counter[tuple[str, str]] = Counter()
        for traffic in router.of(Traffic):
            counts.update({key: number for key, (number, _) in traffic.counts.items()})
        assert counts == {
            ("client", "response.create"): 1,
            ("client", "other"): 1,
            ("upstream", "session.created"): 1,
            ("upstream", "binary"): 1,
            ("upstream", "response.created"): 1,
        }


SILENCE = base64.b64encode(b"\0" * 48_000).decode()
NO_TURN_DETECTION: dict[str, dict[str, Any]] = {
    "openai": {"type": "realtime", "audio": {"input": {"turn_detection": None}}},
    "azure": {"type": "realtime", "audio": {"input": {"turn_detection": None}}},
    "openai-beta": {"turn_detection": None},
    "xai": {"turn_detection": None},
}


@pytest.mark.parametrize("dialect", sorted(NO_TURN_DETECTION))
async def test_a_spoken_turn_is_timed_and_billed_once(dialect: str, simulator: SimulatorFactory) -> None:
    """Append, commit, answer: the record's usage is the provider's own, told once, with a time to the first audio."""
    sim = await simulator(dialect=dialect, usage="response", reply="Yes, of course.")
    async with running_router(config_of(sim)) as router:
        async with router.connect() as ws:
            await ws.send(json.dumps({"type": "session.update", "session": NO_TURN_DETECTION[dialect]}))
            await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": SILENCE}))
            await ws.send('{"type":"input_audio_buffer.commit"}')
            await ws.send('{"type":"response.create"}')
            while (event := await next_event(ws))["type"] != "response.done":
                assert event["type"] != "error", event
        record = await router.until(SessionRecord)
        expected = response_usage(event["response"]["usage"])
        assert expected.output_audio > 0
        assert record.usage == expected
        assert [bill.usage for bill in router.of(UsageRecorded)] == [expected]
        assert record.turns == 1
        assert record.first_audio_s is not None
        assert [audio.seconds for audio in router.of(FirstAudio)] == [record.first_audio_s]
        assert 0 < record.first_audio_s < record.seconds


@pytest.mark.parametrize("where", ["response", "beside", "none"])
async def test_usage_is_found_wherever_the_provider_puts_it(where: str, simulator: SimulatorFactory) -> None:
    """In the response, beside it, or nowhere (PROTOCOL §4)."""
    sim = await simulator(dialect="xai", usage=where)
    async with running_router(config_of(sim)) as router:
        async with router.connect() as ws:
            while (await next_event(ws))["type"] != "session.created":
                pass
            for _ in range(2):
                await run_turn(ws)
        record = await router.until(SessionRecord)
        assert record.turns == 2
        assert len(router.of(UsageRecorded)) == (0 if where == "none" else 2)
        assert bool(record.usage) == (where != "none")
        assert record.usage == sum((bill.usage for bill in router.of(UsageRecorded)), Usage())


async def test_a_repeated_bill_on_the_wire_is_one_bill() -> None:
    """The client gets every repeat untouched, and the books count one."""
    bill = (
        b'{"type":"response.done","event_id":"e","response":{"id":"resp_1","status":"completed",'
        b'"usage":{"total_tokens":7,"input_tokens":4,"output_tokens":3}}}'
    )
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        client = await raw_client(router.port)
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        for _ in range(4):
            await upstream.text(bill)
            assert await client.message() == bill
        client.abandon()
        upstream.abandon()
        record = await router.until(SessionRecord)
        assert record.usage == Usage(total=7, input=4, output=3)
        assert len(router.of(UsageRecorded)) == record.turns == 1
