"""Peers that mean harm: none of them stops, ejects, starves or blinds anything for others. From the wire, over real sockets."""

from __future__ import annotations

import asyncio
import errno
import gzip
import itertools
import logging
import signal
import socket
import tracemalloc
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohappyeyeballs
import pytest
from aiohttp import web
from aiohttp.http_parser import DeflateBuffer

from router import app
from router.events import SessionRecord
from router.relay import relay as relays
from router.relay import turns
from router.relay.leg import SLICE_BYTES, Leg
from router.relay.takeover import take_client
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.processes import router_process, written
from tests.helpers.raw import (
    CLOSE,
    SESSION_CREATED,
    TEXT,
    RawPeer,
    connect,
    encode,
    on_both_loops,
    raw_client,
    raw_upstream,
    upgrade_request,
)
from tests.helpers.running import (
    PATIENCE_S,
    Answer,
    RunningRouter,
    closed_port,
    config_of,
    deployment_of,
    dialled,
    next_type,
    outcomes,
    raw_server,
    read_head,
    run_turn,
    running_router,
    until,
)

# --- fair turns -----------------------------------------------------------------------------------

# Round trips that another session makes while a flood passes. Without turns it made about one a read of up to 256 KiB, on
# uvloop one for 32 such reads.
ROUND_TRIPS = 40


@pytest.mark.parametrize("side", ["client", "upstream"])
@on_both_loops
async def test_a_flood_of_tiny_frames_leaves_others_their_turns(side: str) -> None:
    """Each frame costs microseconds, and a read holds 40,000 of them: that used to stop every other session for seconds."""
    if side == "client":
        flood = encode(TEXT, b"{}", masked=True, key=bytes(4)) * 100_000
    else:
        flood = encode(TEXT, b"", masked=False) * 200_000
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        flooding, floods = await opened(router, server)
        talking, answers = await opened(router, server)
        sender, taker = (flooding, floods) if side == "client" else (floods, flooding)
        done = asyncio.Event()

        async def pour() -> None:
            await sender.send(flood)

        async def drain() -> bytes:
            taken = bytearray()
            while len(taken) < len(flood):
                taken += await taker.reader.read(256 * 1024)
            done.set()
            return bytes(taken)

        async def talk() -> int:
            trips = 0
            while not done.is_set():
                await talking.text(b'{"type":"ping"}')
                await answers.message()
                await answers.text(b'{"type":"pong"}')
                await talking.message()
                trips += 1
            return trips

        async with asyncio.timeout(2 * PATIENCE_S):
            _, taken, trips = await asyncio.gather(pour(), drain(), talk())
        assert taken == flood
        assert trips >= ROUND_TRIPS
        for peer in (flooding, floods, talking, answers):
            peer.abandon()


# How many flood at the same time, and the round trips that another session makes meanwhile. With a turn of its own for each flood
# it made 9 to 18.
FLOODS, TRIPS_BESIDE_FLOODS = 20, 40


@pytest.mark.parametrize("side", ["client", "upstream"])
@on_both_loops
async def test_many_floods_leave_others_as_much_as_one(side: str) -> None:
    """Each used to have its turn in the same pass of the event loop: what others waited for was as many turns as there were."""
    with pytest.MonkeyPatch.context() as patch:
        # So short that a machine of any speed needs many of them.
        patch.setattr(turns, "TURN_S", 0.000_2)
        frame = encode(TEXT, b"", masked=side == "client", key=bytes(4))
        talk = b'{"type":"conversation.item.create","item":"' + b"x" * 900 + b'"}'
        async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
            talking, answers = await opened(router, server)
            pairs = [await opened(router, server) for _ in range(FLOODS)]
            sent = [
                b"".join(frame * 700 + encode(TEXT, b"%d of %d" % (part, index), masked=side == "client") for part in range(16))
                for index in range(FLOODS)
            ]
            through = 0

            async def pour(sender: RawPeer, flood: bytes) -> None:
                await sender.send(flood)

            async def drain(taker: RawPeer, flood: bytes) -> bytes:
                nonlocal through
                taken = await taker.reader.readexactly(len(flood))
                through += 1
                return taken

            floods = []
            for (client, upstream), flood in zip(pairs, sent, strict=True):
                sender, taker = (client, upstream) if side == "client" else (upstream, client)
                floods += [pour(sender, flood), drain(taker, flood)]
            flooding = asyncio.gather(*floods)
            trips = 0
            async with asyncio.timeout(4 * PATIENCE_S):
                while not through:
                    await talking.text(talk)
                    assert await answers.message() == talk
                    await answers.text(talk)
                    assert await talking.message() == talk
                    trips += 1
                taken = (await flooding)[1::2]
            assert taken == sent
            assert trips >= TRIPS_BESIDE_FLOODS
            for peer in (talking, answers, *itertools.chain(*pairs)):
                peer.abandon()


async def opened(router: RunningRouter, server: Any) -> tuple[RawPeer, RawPeer]:
    """A session: its client, which has read the greeting, and its upstream."""
    client = await raw_client(router.port)
    upstream = await server.accept()
    assert await client.message() == SESSION_CREATED
    return client, upstream


# --- what a client forwards -----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["query", "header"])
async def test_a_forwarded_value_that_is_too_long_is_refused_before_any_dial(simulator: SimulatorFactory, place: str) -> None:
    """Upstreams answer such a dial with 414 or 431, which looked like their fault; 512 characters still travel."""
    sim = await simulator()

    async def ask(value: str) -> Answer:
        if place == "query":
            return await router.refused(conversation_id=value)
        return await router.refused(headers={"OpenAI-Safety-Identifier": value})

    async with running_router(config_of(sim)) as router:
        answer = await ask("a" * 513)
        assert (answer.status, answer.error["code"]) == (400, "invalid_request")
        assert "longer than 512 characters" in answer.error["message"]
        assert "aaaa" not in answer.error["message"]
        assert not sim.stats.requests
        assert [refusal.status for refusal in router.refusals] == [400]
        assert (await ask("a" * 512)).status == 101
        await sim.stats.wait_until(lambda stats: len(stats.requests) == 1)
        await router.idle()


async def test_a_value_that_only_a_fallback_group_forwards_leaves_no_lease(simulator: SimulatorFactory) -> None:
    """It is refused when that group's turn comes; the lease that was taken for the dial before the look was never given back."""
    failing, working = await simulator(faults=["status=503"]), await simulator()
    config = config_of(
        deployment_of(failing, id="first"),
        deployment_of(working, id="spare", model="spare"),
        router={"num_retries": 0},
        groups={"voice": {"fallbacks": ["spare"]}, "spare": {"forward_query": ["trace"]}},
    )
    async with running_router(config) as router:
        assert (await router.refused(trace="t" * 600)).status == 400
        assert not working.stats.requests
        assert router.deployment("spare").sessions == 0
        assert (await router.session()).deployment == "spare"


ANSWERS = {
    "400": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "403": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "414": b"HTTP/1.1 414 URI Too Long\r\nContent-Length: 0\r\n\r\n",
    "431": b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\r\n",
    "event": encode(
        TEXT,
        b'{"type":"error","error":{"type":"invalid_request_error","code":"model_not_found","param":"conversation_id"}}',
        masked=False,
    ),
    "close": encode(CLOSE, b"\x0f\xa4invalid_request_error.conversation_not_found", masked=False),
}


@pytest.mark.parametrize("how", ANSWERS)
async def test_what_one_client_forwards_ejects_nobody(simulator: SimulatorFactory, how: str) -> None:
    """Somebody else's conversation is refused by every deployment: three such requests used to eject all of them for all."""
    sim = await simulator()
    host, _, port = sim.api_base.removeprefix("http://").removesuffix("/v1").partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        if b"conversation_id=forged" in head and not ANSWERS[how].startswith(b"HTTP"):
            writer.write(switching(head) + ANSWERS[how])
        elif b"conversation_id=forged" in head:
            writer.write(ANSWERS[how])
        else:
            await proxied(host, int(port), head, reader, writer)
        await writer.drain()
        await reader.read()

    async with raw_server(serve) as front, running_router(config_of(front, front, router={"num_retries": 0})) as router:
        for _ in range(5):
            assert (await router.refused(conversation_id="forged")).status in (400, 503)
        assert not router.ejections
        assert not router.alarms
        assert [deployment.breaker.failures for deployment in router.engine.pool.deployments] == [0, 0]
        record = await router.session(turn=True)
        assert (record.status, outcomes(record)) == (101, ["ready"])


def switching(head: bytes) -> bytes:
    """The 101 to an upgrade request."""
    import base64
    import hashlib

    key = next(line.partition(b":")[2].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"


async def proxied(host: str, port: int, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let a connection whose head was read go on to another address, to its end."""
    inner_reader, inner_writer = await asyncio.open_connection(host, port)
    inner_writer.write(head)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
        except ConnectionError:
            pass
        sink.close()

    await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))


# --- descriptors ----------------------------------------------------------------------------------


async def test_idle_connections_beyond_the_room_are_cut(simulator: SimulatorFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each idle connection holds a descriptor: without a count, a thousand of them left none for anybody's next dial."""
    monkeypatch.setattr(app, "raise_descriptor_limit", lambda: app._RESERVED_DESCRIPTORS + 12)
    sim = await simulator()
    async with running_router(config_of(sim)) as router, AsyncExitStack() as stack:
        running = await stack.enter_async_context(router.connect())
        assert await next_type(running) == "session.created"
        idle = [await connect(router.port) for _ in range(30)]
        for peer in idle:
            stack.callback(peer.abandon)
        # The session has two of the twelve.
        await until(lambda: sum(peer.reader.at_eof() or peer.reader.exception() is not None for peer in idle) == 20, every_s=0.01)
        assert (await run_turn(running))[-1] == "response.done"
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, OSError)):
            await raw_client(router.port)
        for peer in idle:
            peer.hang_up()
        await router.until_true(lambda: router.server._limits.open == 1)
        assert (await router.session(turn=True)).status == 101
        assert router.engine.max_sessions == 6
    assert router.server._limits.open == 0


async def test_a_dial_without_a_descriptor_is_the_routers_own_trouble(
    simulator: SimulatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE said nothing of the deployment, and yet three of them ejected each one: an overload became an outage."""
    sims = [await simulator(), await simulator()]
    config = config_of(*sims, router={"allowed_fails": 1})
    async with running_router(config) as router:
        impl: Any = aiohappyeyeballs.impl
        real = impl.socket

        def exhausted(*args: Any, **kwargs: Any) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(impl, "socket", SimpleNamespace(**{**vars(real), "socket": exhausted}))
        for _ in range(5):
            # Not by aiohttp, which would be without a socket as well.
            client = await connect(router.port)
            await client.send(upgrade_request(router.port))
            answer = await client.gone()
            client.abandon()
            assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 5\r\n" in answer
            assert b'"code":"router_overloaded"' in answer and b"files" not in answer
        await router.idle()
        assert not router.ejections
        assert not router.faults
        assert [deployment.breaker.failures for deployment in router.engine.pool.deployments] == [0, 0]
        assert {record.cause for record in router.records} == {"router_overloaded"}
        monkeypatch.setattr(impl, "socket", real)
        assert (await router.session()).deployment == "d0"


# --- HTTP -----------------------------------------------------------------------------------------

GET_METRICS = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@on_both_loops
async def test_a_client_that_never_reads_its_answers_is_cut() -> None:
    """It kept its descriptor and 64 KiB and more of answers for ever; one that reads gets all of its own."""
    async with closed_port() as base, running_router(config_of(base, general={"handshake_timeout_s": 0.3})) as router:
        deaf = await connect(router.port, receive_buffer=4096, limit=1024)
        deaf.writer.write(GET_METRICS * 2_000)
        await router.until_true(lambda: router.server._limits.open == 1)
        await router.until_true(lambda: router.server._limits.open == 0)
        # The reset shows when it says something more.
        async with asyncio.timeout(PATIENCE_S):
            while not deaf.writer.transport.is_closing():
                deaf.writer.write(b"x")
                await asyncio.sleep(0.01)
        reading = await connect(router.port, receive_buffer=4096)
        reading.writer.write(GET_METRICS * 20)
        for _ in range(20):
            head = await reading.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            lines = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            await reading.reader.readexactly(int(lines[0].partition(b":")[2]))
        reading.abandon()
        deaf.abandon()


@on_both_loops
async def test_a_connection_that_is_full_when_its_session_begins_is_held_back_and_not_cut() -> None:
    """Answers before the upgrade may have filled the transport, which tells so only once, and told it to aiohttp.

    The relay did not know and went on filling it; and the limit on answers that nobody takes ended the session.
    """
    with pytest.MonkeyPatch.context() as patch:

        def take_full(request: web.Request) -> tuple[Leg, bytes]:
            # As the transport does when the 101 is what fills it.
            request.protocol.pause_writing()
            return take_client(request)

        patch.setattr(app, "take_client", take_full)
        async with raw_upstream() as server:
            config = config_of(server.api_base, general={"handshake_timeout_s": 0.1})
            async with running_router(config) as router:
                client = await raw_client(router.port)
                upstream = await server.accept()
                assert await client.message() == SESSION_CREATED
                relay = next(iter(router.engine.relays.values()))
                assert relay._client.writing_paused
                assert relay._upstream.reading_paused
                ended = asyncio.Event()
                asyncio.get_running_loop().call_later(0.3, ended.set)
                await ended.wait()
                await upstream.text(b"waits for room")
                relay._client.resume_writing()
                assert await client.message() == b"waits for room"
                assert len(router.engine.relays) == 1
                client.abandon()
                upstream.abandon()


BOMB = gzip.compress(bytes(64 * 1024 * 1024), 9)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"POST /v1/realtime?model=voice", 405),
        (b"POST /health/live", 405),
        (b"POST /metrics", 405),
        (b"POST /nowhere", 404),
        (b"GET /v1/realtime?model=voice", 426),
        (b"GET /health/live", 200),
    ],
)
@pytest.mark.parametrize("sent", ["whole", "begun"])
async def test_a_body_is_neither_unpacked_nor_waited_for(
    request_line: bytes, status: int, sent: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 KB of gzip took seconds of CPU and were logged as an error, before any key was asked for."""
    caplog.set_level(logging.INFO)
    unpacked: list[object] = []

    def feed_data(self: DeflateBuffer, *data: object) -> bool:
        unpacked.append(data)
        return False

    monkeypatch.setattr(DeflateBuffer, "feed_data", feed_data)
    async with closed_port() as base, running_router(config_of(base)) as router:
        assert (await router.request("/health/live")).status == 200
        head = request_line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        peer = await connect(router.port)
        tracemalloc.start()
        try:
            await peer.send(head % len(BOMB) + (BOMB if sent == "whole" else BOMB[:1000]))
            answer = await peer.reader.readuntil(b"\r\n\r\n")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert peak < 8 * 1024 * 1024
        assert not unpacked
        if sent == "begun":
            await peer.gone()
        peer.abandon()
        await router.until_true(lambda: router.server._limits.open == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_wrong_path_is_told_without_the_path(simulator: SimulatorFactory) -> None:
    """Whoever set up a client with a wrong address finds it in the log; its path may hold a key, and stays out of it."""
    async with running_router(config_of(await simulator())) as router:
        answer = await router.request("/v1/realtme/sk-in-the-path?api_key=sk-in-the-query", upgrade=True)
        assert answer.status == 404
        (told,) = router.refusals
        assert (told.status, told.code, told.client) == (404, "not_found", "127.0.0.1")
        assert "/v1/realtime?model=NAME" in told.detail
        assert "sk-in" not in repr(told) and "realtme" not in repr(told)
        assert (await router.request("/favicon.ico")).status == 404
        assert len(router.refusals) == 1


# --- JSON that not everybody reads ----------------------------------------------------------------


@on_both_loops
async def test_events_that_only_lenient_readers_take_are_events() -> None:
    """A lone surrogate or a NaN in ``response.done`` used to be a response for free, and in the first event an outage."""
    greeting = encode(TEXT, b'{"type":"session.created","session":{"instructions":"\\ud800"}}', masked=False)
    bills = [
        b'{"type":"response.done","response":{"id":"r1","metadata":{"k":"\\ud800"},"usage":{"total_tokens":500}}}',
        b'{"type":"response.done","response":{"id":"r2","x":NaN,"usage":{"total_tokens":30}}}',
        b'{"type":"response.done","response":{"id":"r3","usage":{"total_tokens":NaN,"input_tokens":Infinity,"output_tokens":4}}}',
    ]
    async with raw_upstream(greeting=greeting) as server, running_router(config_of(server.api_base)) as router:
        client = await raw_client(router.port)
        upstream = await server.accept()
        assert b"\\ud800" in await client.message()
        for bill in bills:
            await upstream.text(bill)
            assert await client.message() == bill
        client.abandon()
        upstream.abandon()
        record = await router.until(SessionRecord)
        assert (record.turns, record.usage.total, record.usage.output) == (3, 534, 4)


# --- first events ---------------------------------------------------------------------------------


@on_both_loops
async def test_a_first_event_of_five_megabytes_is_one() -> None:
    """Its type stands in front, so it need not be held whole; it arrives byte for byte."""
    event = b'{"type":"session.created","session":{"instructions":"' + b"y" * 5_000_000 + b'"}}'
    async with raw_upstream(greeting=encode(TEXT, event, masked=False)) as server:
        async with running_router(config_of(server.api_base)) as router:
            client = await raw_client(router.port)
            assert await client.message() == event
            assert outcomes_of_attempts(router) == ["ready"]
            client.abandon()
            (await server.accept()).abandon()


def outcomes_of_attempts(router: RunningRouter) -> list[str]:
    """Of all attempts that have ended."""
    return [attempt.outcome for attempt in router.attempts]


@pytest.mark.parametrize("start", [b'{"x":"', b'{"type":"error","error":{"message":"'])
async def test_a_first_event_without_an_end_fails_in_bounded_memory(start: bytes) -> None:
    """Without a type in front, or with an error, nobody can wait for its end: the attempt fails before it fills the memory."""
    frame = encode(TEXT, start, masked=False, length=30 * 1024 * 1024)
    taken = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        writer.write(switching(await read_head(reader)) + frame)
        while taken < 30 * 1024 * 1024 - len(start):
            writer.write(b"z" * 64 * 1024)
            await writer.drain()
            taken += 64 * 1024

    async with raw_server(serve) as base, running_router(config_of(base, router={"num_retries": 0})) as router:
        tracemalloc.start()
        try:
            answer = await router.refused()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert answer.status == 503
        assert outcomes_of_attempts(router) == ["protocol"]
        assert peak < 12 * 1024 * 1024
        # What the sockets' buffers hold, and no more.
        assert taken < 20 * 1024 * 1024


@on_both_loops
async def test_nothing_behind_a_breach_is_passed_on() -> None:
    """A long read is handed over in slices: those behind the one with the breach looked like legal events again."""
    good = encode(TEXT, SESSION_CREATED, masked=False)
    breach = encode(TEXT, b"x", masked=True)
    # The next slice begins with a frame.
    first = (good + breach).ljust(SLICE_BYTES, b"\0")
    forged = encode(TEXT, b'{"type":"forged"}', masked=False) * 10_000
    async with raw_upstream(greeting=b"") as server, running_router(config_of(server.api_base)) as router:
        opening = asyncio.create_task(raw_client(router.port))
        upstream = await server.accept()
        await upstream.send(first + forged)
        client = await opening
        assert await client.message() == SESSION_CREATED
        assert (await client.data_frame()).close == (1011, b"upstream connection lost")
        client.abandon()
        record = await router.until(SessionRecord)
        assert (record.who, record.upstream_events) == ("upstream", 1)


# --- the end of the process -----------------------------------------------------------------------


@on_both_loops
async def test_peers_that_never_answer_are_cut_at_the_end() -> None:
    """Their relays used to outlive ``end_all``; the server then cancelled their handlers, which was reported as a fault."""
    with pytest.MonkeyPatch.context() as patch:
        # Of the relays' own time limits none comes to help.
        patch.setattr(relays, "CLOSE_TIMEOUT_S", 1e6)
        async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
            pairs = [await opened(router, server) for _ in range(5)]
            async with asyncio.timeout(PATIENCE_S):
                await router.engine.end_all(code=1001, reason="over", timeout_s=0.05)
            assert router.engine.sessions == 0
            assert not router.engine.relays
            assert len(router.engine.tasks) == 0
            assert [(record.who, record.cause) for record in router.records] == [("router", "shutdown")] * 5
            for client, upstream in pairs:
                assert (await client.closed())[0] == 1001
                assert await client.gone() == b""
                assert (await upstream.closed())[0] == 1001


async def test_a_signal_with_deaf_peers_ends_without_a_fault(tmp_path: Path) -> None:
    """aiohttp's "Unhandled exception" stood in the log of every deploy that had one caller on a bad line."""
    async with raw_upstream() as server, router_process(written(tmp_path, config_of(server.api_base))) as router:
        port = int(router.http.rpartition(":")[2])
        clients = [await raw_client(port) for _ in range(8)]
        assert await router.end(signal.SIGTERM) == 0
        for client in clients:
            client.abandon()
    assert b"Unhandled exception" not in router.err
    assert b"Traceback" not in router.err
    assert not [line for line in router.lines() if line["level"] == "error"]
    assert len(router.lines("session ended")) == 8


# --- what an operator is told ---------------------------------------------------------------------


async def test_deployments_that_were_not_dialled_are_told_with_the_reason(simulator: SimulatorFactory) -> None:
    """A session that nobody served names everything in reach; one that was served does not."""
    sims = [await simulator(faults=["status=503"]), await simulator(), await simulator()]
    config = config_of(
        sims[0], deployment_of(sims[1], id="full", max_sessions=1), sims[2], router={"max_attempts": 1, "num_retries": 0}
    )
    async with running_router(config) as router, AsyncExitStack() as stack:
        sims[0].clear_faults()
        assert (await router.session()).passed_over == ()
        stack.callback(router.deployment("full").lease().release)
        sims[0].set_fault("status=503")
        assert (await router.refused()).status in (429, 503)
        record = router.records[-1]
        assert dialled(record) == ["d0"]
        assert dict(record.passed_over) == {"full": "full", "d2": "not reached"}


async def test_an_attempt_that_still_runs_is_in_the_record(simulator: SimulatorFactory) -> None:
    """A loser of a race that has not ended when the session has: without it the record told of one dial, and there were two."""
    slow, quick = await simulator(faults=["hang_before_101"]), await simulator()
    config = config_of(slow, quick, router={"stagger_s": 0.05}, connect_timeout_s=60)
    async with running_router(config) as router:
        record = await router.session()
        assert dict(zip(dialled(record), outcomes(record), strict=True)) == {"d1": "ready", "d0": "under_way"}
        (pending,) = [attempt for attempt in record.attempts if attempt.outcome == "under_way"]
        assert pending.raced
        assert pending.seconds >= 0.05
        assert [attempt.deployment for attempt in router.attempts] == ["d1"]
