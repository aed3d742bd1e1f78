"""What aiohttp has read behind a handshake is not lost, and what it held is given back: fails when aiohttp changes its ways.

``take_client`` and ``take_upstream`` use ``set_parser``, ``request.protocol`` and ``Connection.protocol``, which aiohttp does not
document. Everything here goes over real sockets.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random

import pytest
from aiohttp import web

from router.events import SessionRecord
from router.relay.takeover import take_client
from tests.helpers.raw import (
    SESSION_CREATED,
    TEXT,
    close_frame,
    connect,
    encode,
    fragments,
    on_both_loops,
    raw_client,
    raw_upstream,
    upgrade_request,
)
from tests.helpers.running import PATIENCE_S, config_of, running_router

GREETING = encode(TEXT, SESSION_CREATED, masked=False)


@pytest.mark.parametrize("size", [10, 5_000, 60_000, 300_000])
@on_both_loops
async def test_bytes_behind_the_upgrade_request_reach_the_upstream(size: int) -> None:
    """PROTOCOL §1.4: some clients speak before they are answered; nothing of it is lost, be it more than aiohttp keeps."""
    texts = [b'{"type":"input_audio_buffer.append","audio":"' + os.urandom(size // 8).hex().encode() + b'"}' for _ in range(4)]
    early = b"".join(encode(TEXT, text, masked=True) for text in texts)
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        opening = asyncio.create_task(raw_client(router.port, early=early))
        upstream = await server.accept()
        assert [await upstream.message() for _ in texts] == texts
        client = await opening
        assert await client.message() == SESSION_CREATED
        # Reading goes on, though aiohttp had paused it.
        await client.text(b"later")
        assert await upstream.message() == b"later"
        client.abandon()
        upstream.abandon()


@on_both_loops
async def test_a_request_that_comes_in_pieces_with_half_a_frame_behind_it() -> None:
    """The border between HTTP and WebSocket may be anywhere in a segment, and the first frame may be cut by it."""
    frame = encode(TEXT, b'{"type":"response.create"}', masked=True)
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        request = upgrade_request(router.port)
        whole = request + frame
        for cut in (1, len(request) - 3, len(request) - 1, len(request), len(request) + 1, len(request) + 7, len(whole) - 1):
            client = await connect(router.port)
            await client.send(whole[:cut])
            if cut >= len(request):
                upstream = await server.accept()
                await client.reader.readuntil(b"\r\n\r\n")
                await client.send(whole[cut:])
            else:
                await asyncio.sleep(0)
                await client.send(whole[cut:])
                upstream = await server.accept()
                await client.reader.readuntil(b"\r\n\r\n")
            assert await upstream.message() == b'{"type":"response.create"}'
            assert await client.message() == SESSION_CREATED
            client.abandon()
            upstream.abandon()


@pytest.mark.parametrize("size", [10, 5_000, 60_000, 200_000, 1_000_000])
@on_both_loops
async def test_bytes_behind_the_101_reach_the_client(size: int) -> None:
    """An upstream's first events come in the same segment as its 101; they may be long, and fragmented."""
    texts = [b'{"type":"conversation.item.added","x":"' + os.urandom(size // 8).hex().encode() + b'"}' for _ in range(4)]
    greeting = GREETING + b"".join(b"".join(fragments(text, [7], masked=False)) for text in texts)
    async with raw_upstream(greeting=greeting) as server, running_router(config_of(server.api_base)) as router:
        client = await raw_client(router.port)
        upstream = await server.accept()
        assert [await client.message() for _ in range(5)] == [SESSION_CREATED, *texts]
        await upstream.text(b"later")
        assert await client.message() == b"later"
        client.abandon()
        upstream.abandon()


@on_both_loops
async def test_an_early_close_of_the_client_is_relayed() -> None:
    """A client that sends an event and its CLOSE behind the request gets its session, its answer and its end."""
    early = encode(TEXT, b"hello", masked=True) + close_frame(4000, "changed my mind", masked=True)
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        client = await raw_client(router.port, early=early)
        upstream = await server.accept()
        assert await upstream.message() == b"hello"
        assert await upstream.closed() == (4000, b"changed my mind")
        await upstream.close(4000)
        upstream.hang_up()
        ended = await client.end()
        assert (ended.code, ended.messages) == (4000, [SESSION_CREATED])
        client.hang_up()
        record = await router.until(SessionRecord)
        assert (record.who, record.cause, record.client_code, record.upstream_code) == ("client", "close", 4000, 4000)


@on_both_loops
async def test_an_illegal_early_frame_is_the_clients_fault() -> None:
    """Bytes behind the request are checked like any others: 1002 for the client, nobody blamed."""
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        client = await raw_client(router.port, early=encode(TEXT, b"x", masked=False))
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        assert (await client.closed())[0] == 1002
        assert await upstream.closed() == (1001, b"")
        client.hang_up()
        upstream.hang_up()
        record = await router.until(SessionRecord)
        assert (record.who, record.cause) == ("client", "protocol")
        assert router.deployment("d0").breaker.failures == 0


@on_both_loops
async def test_an_upstream_that_leaves_behind_its_first_event_is_told_as_lost() -> None:
    """The connection ended while the router did not read it: the session begins, and ends with 1011."""
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        opening = asyncio.create_task(raw_client(router.port))
        upstream = await server.accept()
        upstream.hang_up()
        client = await opening
        assert await client.message() == SESSION_CREATED
        assert (await client.closed())[0] == 1011
        client.hang_up()
        record = await router.until(SessionRecord)
        assert (record.who, record.cause) == ("upstream", "lost")


@on_both_loops
async def test_a_client_that_flees_at_any_moment_leaves_nothing_behind() -> None:
    """Reset or FIN at random moments around the 101: each session has one record, and every lease is given back."""
    rng = random.Random(5)
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        count = 60
        for index in range(count):
            client = await connect(router.port)
            await client.send(upgrade_request(router.port) + encode(TEXT, b"x", masked=True))
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            if index % 3 == 0:
                await client.reader.read(1)
            (client.reset if index % 2 else client.hang_up)()
            while server.peers:
                server.peers.pop().abandon()
        await router.idle()
        while server.peers:
            server.peers.pop().abandon()
        # A request that was reset before it was read is no session.
        assert 0 < len(router.records) <= count
        ids = [record.session for record in router.records]
        assert len(set(ids)) == len(ids)
        assert {(record.who, record.cause) for record in router.records} <= {
            ("client", "lost"),
            ("upstream", "lost"),
        }


@on_both_loops
async def test_a_session_outlives_the_time_for_its_handshake() -> None:
    """The server's own timer for idle connections has no say in one that was taken over."""
    async with raw_upstream() as server:
        config = config_of(server.api_base, general={"handshake_timeout_s": 0.5})
        async with running_router(config) as router:
            client = await raw_client(router.port)
            upstream = await server.accept()
            assert await client.message() == SESSION_CREATED
            (relay,) = router.engine.relays.values()
            await router.until_true(lambda: relay.summary().seconds > 1.2)
            await client.text(b"still here")
            assert await upstream.message() == b"still here"
            client.abandon()
            upstream.abandon()


async def test_a_handler_ends_and_its_request_is_collected() -> None:
    """aiohttp is told of the end when the leg is released: its request and handler do not outlive the session."""
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        for _ in range(3):
            client = await raw_client(router.port)
            upstream = await server.accept()
            await client.close(1000)
            await upstream.closed()
            await upstream.close(1000)
            upstream.hang_up()
            await client.gone()
            client.hang_up()
        await router.idle()
        (runner,) = router.server._runners
        assert runner.server is not None
        await router.until_true(lambda: not runner.server.connections)  # type: ignore[union-attr]

        def requests() -> int:
            gc.collect()
            return sum(isinstance(item, web.Request) for item in gc.get_objects())

        await router.until_true(lambda: requests() == 0)


async def test_a_client_that_has_left_cannot_be_taken() -> None:
    """A connection that closed during the handshake is an error there and then, not a session without a client."""
    raised: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=101, headers={"Upgrade": "websocket", "Connection": "Upgrade"})
        await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        try:
            take_client(request)
        except ConnectionResetError as error:
            raised.set_result(type(error))
        return response

    app = web.Application()
    app.router.add_get("/v1/realtime", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        client = await connect(runner.addresses[0][1])
        await client.send(upgrade_request(runner.addresses[0][1]))
        async with asyncio.timeout(PATIENCE_S):
            assert await raised is ConnectionResetError
        client.abandon()
    finally:
        await runner.cleanup()
