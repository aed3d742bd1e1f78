"""TLS on ``listen``: sessions as in clear, certificates that are replaced under them, and connections that never shake hands."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import ssl
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from websockets.asyncio.client import ClientConnection, connect

from router.app import Surface
from router.events import Event, Notice, SessionRecord
from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from router.tlstransport import TlsTransport
from router.web import client_of, json_response, scheme_of
from tests.helpers.parts import NODE_DIR, require
from tests.helpers.processes import router_process, run, written
from tests.helpers.raw import CLOSE, SESSION_CREATED, TEXT, encode, on_both_loops, raw_upstream, upgrade_request
from tests.helpers.raw import connect as connect_raw
from tests.helpers.running import (
    MODEL,
    PATIENCE_S,
    RunningRouter,
    config_of,
    next_type,
    run_turn,
    running_router,
)
from tests.helpers.secure import HandTls, client_context, put, secure_client
from tests.helpers.tls import TLS_1_2, TLS_1_3, Authority, no_collector, transports
from tests.integration.test_backpressure import BUFFER_BOUND, MIB, RECEIVE_BUFFER, buffered, flooding, relay_of, stuck

KEY = "sk-client-0123456789abcdef"
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux spreads connections over SO_REUSEPORT")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Issues the router's certificates; clients trust it."""
    return Authority(tmp_path_factory.mktemp("authority"))


def secured(authority: Authority, folder: Path, *targets: Simulator | str, **general: Any) -> dict[str, Any]:
    """A configuration with TLS."""
    return config_of(*targets, general={"tls": dict(put(authority.issue(), folder)), **general})


def open_session(port: int, authority: Authority, **more: Any) -> Any:
    """A connection of the ``websockets`` package."""
    return connect(
        f"wss://localhost:{port}/v1/realtime?model={MODEL}",
        ssl=client_context(authority),
        host="127.0.0.1",
        proxy=None,
        compression=None,
        ping_interval=None,
        max_size=64 * MIB,
        open_timeout=PATIENCE_S,
        **more,
    )


def complaints(router: RunningRouter) -> list[tuple[str, str]]:
    """Whom the door sent away: reason and detail."""
    return [
        (str(notice.facts["reason"]), str(notice.facts["detail"]))
        for notice in router.of(Notice)
        if notice.event == "connection refused"
    ]


# --- sessions ------------------------------------------------------------------------------------


@on_both_loops
async def test_a_session_of_websockets(authority: Authority, tmp_path: Path) -> None:
    """A turn over ``wss``, with an orderly end; the transport is the project's own, as towards upstreams."""
    async with Simulator() as sim, running_router(secured(authority, tmp_path, sim)) as router:
        async with open_session(router.port, authority) as ws:
            assert await next_type(ws) == "session.created"
            assert type(relay_of(router.engine)._client.transport) is TlsTransport
            assert "response.output_audio.delta" in await run_turn(ws)
        record = await router.record_of(ws)
        assert (record.who, record.client_code, record.client, record.turns) == ("client", 1000, "127.0.0.1", 1)


async def test_a_turn_from_a_shell(authority: Authority, tmp_path: Path) -> None:
    """``talk`` says what is wrong with a certificate that nobody signed whom the system knows, and takes it by --ca-file."""
    async with Simulator() as sim, running_router(secured(authority, tmp_path, sim)) as router:
        arguments = ("talk", "--model", MODEL, "--url", f"wss://127.0.0.1:{router.port}/v1/realtime", "Hello")
        code, out, err = await run(*arguments)
        assert (code, out) == (1, "") and "its certificate is not trusted" in err and "--ca-file" in err
        code, out, err = await run(*arguments, "--ca-file", str(authority.ca_file))
        assert (code, err) == (0, "") and "completed after" in out
        code, _, err = await run(*arguments, "--ca-file", str(tmp_path / "none.pem"))
        assert code == 2 and "--ca-file: No such file or directory" in err


async def test_a_session_of_node(simulator: SimulatorFactory, authority: Authority, tmp_path: Path) -> None:
    """The ``ws`` package, which checks certificate and name as Node.js does."""
    node = require("node")
    async with running_router(secured(authority, tmp_path, await simulator(), master_key=KEY)) as router:
        process = await asyncio.create_subprocess_exec(
            node,
            "client.mjs",
            f"wss://127.0.0.1:{router.port}/v1/realtime?model={MODEL}",
            KEY,
            cwd=NODE_DIR,
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(authority.ca_file)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 4 * PATIENCE_S)
        assert process.returncode == 0, err.decode()
        seen = json.loads(out)
        assert (seen["status"], seen["error"], seen["closeCode"]) == ("completed", None, 1000)
        assert seen["audioBytes"] > 0


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@on_both_loops
async def test_a_message_of_20_mib_both_ways(version: ssl.TLSVersion, authority: Authority, tmp_path: Path) -> None:
    """Byte for byte, in either version."""
    context = client_context(authority)
    context.minimum_version = context.maximum_version = version
    rng = random.Random(5)
    down, up = (rng.randbytes(15 * MIB).hex()[: 20 * MIB].encode() for _ in range(2))
    async with raw_upstream() as server, running_router(secured(authority, tmp_path, server.api_base)) as router:
        client = await secure_client(router.port, context, limit=4 * MIB)
        assert client.writer.get_extra_info("ssl_object").version() == ("TLSv1.2" if version == TLS_1_2 else "TLSv1.3")
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        for sender, receiver, payload in ((client, upstream, up), (upstream, client, down)):
            sending = asyncio.create_task(sender.text(payload))
            assert await receiver.message() == payload
            await sending
        client.abandon()


@on_both_loops
async def test_what_comes_with_the_request_is_not_lost(authority: Authority, tmp_path: Path) -> None:
    """Frames behind the upgrade, in the same record, are relayed first; those behind them in the order they came."""
    async with raw_upstream() as server, running_router(secured(authority, tmp_path, server.api_base)) as router:
        early = encode(TEXT, b'{"type":"one"}', masked=True) + encode(TEXT, b'{"type":"two"}', masked=True)
        client = await secure_client(router.port, client_context(authority), early=early)
        upstream = await server.accept()
        await client.text(b'{"type":"three"}')
        assert [await upstream.message() for _ in range(3)] == [b'{"type":"one"}', b'{"type":"two"}', b'{"type":"three"}']
        client.abandon()


@pytest.mark.parametrize("piece", [1, 7])
@on_both_loops
async def test_a_handshake_byte_by_byte(piece: int, authority: Authority, tmp_path: Path) -> None:
    """However the records are cut, on the way to the handshake and behind it."""
    async with raw_upstream() as server, running_router(secured(authority, tmp_path, server.api_base)) as router:
        client = HandTls(await connect_raw(router.port), client_context(authority))
        await client.shake_hands(piece=piece)
        out = client.sealed(upgrade_request(router.port) + encode(TEXT, b'{"type":"one"}', masked=True))
        for start in range(0, len(out), piece):
            await client.peer.send(out[start : start + piece])
        assert b" 101 " in await client.read_until(b"\r\n\r\n")
        upstream = await server.accept()
        assert await upstream.message() == b'{"type":"one"}'
        client.peer.abandon()


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close_notify", "FIN", "both", "RST"])
@on_both_loops
async def test_a_client_that_goes_ends_its_session(how: str, authority: Authority, tmp_path: Path) -> None:
    """Whether it says so in TLS, in TCP or not at all: the upstream is told, and nothing is left."""
    async with raw_upstream() as server, running_router(secured(authority, tmp_path, server.api_base)) as router:
        client = HandTls(await connect_raw(router.port), client_context(authority))
        await client.shake_hands()
        await client.peer.send(client.sealed(upgrade_request(router.port)))
        await client.read_until(b"\r\n\r\n")
        upstream = await server.accept()
        await client.peer.send(client.sealed(encode(TEXT, b'{"type":"last"}', masked=True)))
        if how in ("close_notify", "both"):
            await client.peer.send(client.goodbye())
        if how in ("FIN", "both"):
            client.peer.half_close()
        # What it said before it went counts.
        assert await upstream.message() == b'{"type":"last"}'
        if how == "RST":
            client.peer.reset()
        await upstream.closed()
        upstream.abandon()
        record = await router.until(SessionRecord)
        assert (record.who, record.client_code) == ("client", 1006)
        client.peer.abandon()


@on_both_loops
async def test_an_upstream_that_closes_is_passed_on(authority: Authority, tmp_path: Path) -> None:
    """Its last words, its code, and then ``close_notify``: a client can tell an end from a cut."""
    async with raw_upstream() as server, running_router(secured(authority, tmp_path, server.api_base)) as router:
        client = HandTls(await connect_raw(router.port), client_context(authority))
        await client.shake_hands()
        await client.peer.send(client.sealed(upgrade_request(router.port)))
        seen = await client.read_until(b"session.created")
        upstream = await server.accept()
        await upstream.text(b'{"type":"last"}')
        await upstream.close(1012, "restart")
        while b"restart" not in seen:
            seen += await client.read()
        assert b'{"type":"last"}' in seen
        await client.peer.send(client.sealed(encode(CLOSE, (1012).to_bytes(2, "big"), masked=True)))
        while await client.read():
            pass
        client.peer.abandon()
        upstream.abandon()


@pytest.mark.parametrize("direction", ["down", "up"])
@on_both_loops
async def test_a_reader_that_takes_nothing_stops_its_writer(direction: str, authority: Authority, tmp_path: Path) -> None:
    """Back-pressure goes through TLS: buffers stay within their bound, and when the reader wakes up nothing is missing."""
    text = b'{"type":"response.output_audio.delta","delta":"' + b"x" * 3000 + b'"}'
    async with (
        raw_upstream(receive_buffer=RECEIVE_BUFFER) as server,
        running_router(secured(authority, tmp_path, server.api_base)) as router,
    ):
        client = await secure_client(router.port, client_context(authority), receive_buffer=RECEIVE_BUFFER)
        upstream = await server.accept()
        assert await client.message() == SESSION_CREATED
        relay = relay_of(router.engine)
        writer, reader = (upstream, client) if direction == "down" else (client, upstream)
        async with flooding(writer, encode(TEXT, text, masked=writer.masks) * 16) as sent:
            await stuck(router, relay, sent)
            await reader.text(b"still here")
            assert await writer.message() == b"still here"
            stood_at = sent[0]
            while sent[0] < stood_at + 2 * MIB:
                assert await reader.message() == text
                assert buffered(relay) <= BUFFER_BOUND
        client.abandon()


# --- certificates --------------------------------------------------------------------------------


async def shown(port: int, context: ssl.SSLContext) -> str:
    """Open a connection and return for whom the certificate is."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="127.0.0.1")
    try:
        return str(writer.get_extra_info("peercert")["subject"][0][0][1])
    finally:
        writer.transport.abort()


async def until_shown(port: int, context: ssl.SSLContext, name: str) -> None:
    """Wait until new connections are shown another certificate."""
    async with asyncio.timeout(PATIENCE_S):
        while await shown(port, context) != name:  # noqa: ASYNC110 (nobody tells when the files are looked at)
            await asyncio.sleep(0.05)


async def test_a_certificate_is_replaced_under_a_running_session(
    simulator: SimulatorFactory, authority: Authority, tmp_path: Path
) -> None:
    """New connections are shown the new one, the session goes on; one that is broken changes nothing and is told once."""
    context = client_context(authority)
    config = secured(authority, tmp_path, await simulator())
    async with running_router(config, expect_faults=True) as router, open_session(router.port, authority) as ws:
        assert await next_type(ws) == "session.created"
        assert await shown(router.port, context) == "localhost"
        put(authority.issue("second.example"), tmp_path)
        await until_shown(router.port, context, "second.example")
        assert "response.done" in await run_turn(ws)

        # A key without its certificate yet.
        (tmp_path / "server.key").write_bytes(authority.issue().key.read_bytes())

        def told() -> list[str]:
            return [str(notice.facts["problem"]) for notice in router.of(Notice) if notice.event == "certificate not read"]

        async with asyncio.timeout(PATIENCE_S):
            while not told():
                assert await shown(router.port, context) == "second.example"
                await asyncio.sleep(0.05)
        for _ in range(3):
            assert await shown(router.port, context) == "second.example"
        (problem,) = told()
        assert "general_settings.tls.key_file: found" in problem and "expected the certificate's own" in problem

        put(authority.issue("third.example"), tmp_path)
        await until_shown(router.port, context, "third.example")
        assert "response.done" in await run_turn(ws)
        events = [notice.event for notice in router.of(Notice) if notice.event.startswith("certificate")]
        assert events == ["certificate read again", "certificate not read", "certificate read again"]


@LINUX
async def test_workers_share_a_certificate_and_the_keys_of_its_tickets(
    simulator: SimulatorFactory, authority: Authority, tmp_path: Path
) -> None:
    """Each worker serves TLS on its own socket, and a client resumes at any of them, those forked later included."""
    config = secured(authority, tmp_path, await simulator(), workers=2, log_level="debug")
    context = client_context(authority)
    context.maximum_version = TLS_1_2  # its ticket is there when the handshake ends
    async with router_process(written(tmp_path, config)) as router, AsyncExitStack() as stack:
        assert router.base.startswith("wss://127.0.0.1:")
        port = int(router.base.split(":")[2].split("/")[0])
        sessions: dict[int, ClientConnection] = {}
        for count in range(1, 41):
            ws = await stack.enter_async_context(open_session(port, authority))
            assert await next_type(ws) == "session.created"
            sessions[(await router.logged("session ready", count))["worker"]] = ws
            if len(sessions) == 2:
                break
        assert set(sessions) == {0, 1}
        for ws in sessions.values():
            assert "response.done" in await run_turn(ws)

        session: ssl.SSLSession | None = None
        for _ in range(20):
            hand = HandTls(await connect_raw(port), context)
            if session is not None:
                hand.ssl.session = session
            await hand.shake_hands()
            assert hand.ssl.session_reused is (session is not None)
            session = session or hand.ssl.session
            hand.peer.abandon()


@LINUX
@pytest.mark.parametrize("reloaded", [False, True])
async def test_a_worker_that_is_replaced_has_the_certificate_whatever_became_of_its_files(
    simulator: SimulatorFactory, authority: Authority, tmp_path: Path, reloaded: bool
) -> None:
    """It is forked with what its parent has read, after a reload too: a broken file costs nobody a worker."""
    config = secured(authority, tmp_path, await simulator(), workers=2)
    context = client_context(authority)
    async with router_process(written(tmp_path, config)) as router:
        port = int(router.base.split(":")[2].split("/")[0])
        listening = await router.logged("listening")
        if reloaded:
            router.signal(signal.SIGHUP)
            await router.logged("configuration applied")
        (tmp_path / "server.key").write_bytes(b"broken")
        async with asyncio.timeout(PATIENCE_S):
            while not router.lines("certificate not read"):
                assert await shown(port, context) == "localhost"
                await asyncio.sleep(0.05)
        os.kill(listening["workers"][0], signal.SIGKILL)
        await router.logged("worker replaced")
        # That the new one gets none of so many happens once in 2^30 runs.
        for _ in range(30):
            assert await shown(port, context) == "localhost"
        # The parent looked as well, before it forked.
        told = [line["problem"] for line in router.lines("certificate not read") if "worker" not in line]
        assert len(told) == 1 and "general_settings.tls.key_file: found no key" in told[0]


@pytest.mark.parametrize("workers", [1, 2] if sys.platform.startswith("linux") else [1])
@pytest.mark.parametrize("command", ["check", "serve"])
async def test_a_missing_certificate_is_an_error_of_the_configuration(
    authority: Authority, tmp_path: Path, command: str, workers: int
) -> None:
    """By line and place, before anything is listened on."""
    config = secured(authority, tmp_path, "http://127.0.0.1:1/v1", workers=workers)
    (tmp_path / "server.key").unlink()
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config, indent=1), encoding="utf-8")
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if '"key_file"' in text)
    code, out, err = await (run("check", file) if command == "check" else run("--config", file, "--port", "0"))
    assert code != 0
    text = out + err
    assert f"config.yaml:{line}: general_settings.tls.key_file: found" in text and "no such file" in text, text
    assert "Traceback" not in text and "listening" not in text


# --- who is sent away ----------------------------------------------------------------------------


def half_a_hello(context: ssl.SSLContext) -> bytes:
    """A handshake that has begun."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, False, "localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()[:100]


@pytest.mark.parametrize("said", ["nothing", "half of a hello", "no request"])
@on_both_loops
async def test_a_handshake_that_never_ends_is_cut(said: str, authority: Authority, tmp_path: Path) -> None:
    """After ``handshake_timeout_s``, and its descriptor counts for as long as it is open and no longer."""
    context = client_context(authority)
    config = secured(authority, tmp_path, "http://127.0.0.1:1/v1", handshake_timeout_s=0.3)
    async with running_router(config) as router:
        peer = await connect_raw(router.port)
        if said == "half of a hello":
            await peer.send(half_a_hello(context))
        if said == "no request":
            await HandTls(peer, context).shake_hands()
        await router.until_true(lambda: router.server._limits.open == 1)
        await peer.gone()
        await router.until_true(lambda: router.server._limits.open == 0)
        expected = [("TLS handshake", "found no end of it in time")] if said == "half of a hello" else []
        assert complaints(router) == expected
        peer.abandon()


@on_both_loops
async def test_connections_on_their_way_in_count_against_the_descriptors(authority: Authority, tmp_path: Path) -> None:
    """Whoever would take the last descriptors from running sessions is cut at once, before TLS costs anything."""
    async with Simulator() as sim, running_router(secured(authority, tmp_path, sim)) as router:
        limits = router.server._limits
        limits._most = 4
        async with open_session(router.port, authority) as ws:
            assert await next_type(ws) == "session.created"
            # The session has two.
            waiting = [await connect_raw(router.port) for _ in range(2)]
            await router.until_true(lambda: limits.open == 3)
            beyond = await connect_raw(router.port)
            assert await beyond.gone() == b""
            assert limits.open == 3
            for peer in waiting:
                peer.abandon()
            await router.until_true(lambda: limits.open == 1)
            assert "response.done" in await run_turn(ws)
        await router.until_true(lambda: limits.open == 0)


def old_version(context: ssl.SSLContext) -> None:
    """TLS 1.1, with what a client of that age needs."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@on_both_loops
async def test_an_old_version_is_refused(authority: Authority, tmp_path: Path) -> None:
    """TLS 1.1 gets an alert, and the log says why."""
    context = client_context(authority)
    old_version(context)
    async with running_router(secured(authority, tmp_path, "http://127.0.0.1:1/v1")) as router:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await secure_client(router.port, context)
        await router.until_true(lambda: bool(complaints(router)))
        assert complaints(router) == [("TLS handshake", "unsupported protocol")]
        await router.until_true(lambda: router.server._limits.open == 0)


@pytest.mark.parametrize("alert", [True, False])
@on_both_loops
async def test_a_client_that_does_not_trust_us_is_told_of_once(alert: bool, authority: Authority, tmp_path: Path) -> None:
    """An operator's usual mistake, whether the client says why it goes or not; of a flood the first one stands in the log."""
    async with running_router(secured(authority, tmp_path, "http://127.0.0.1:1/v1")) as router:
        for _ in range(5):
            client = HandTls(await connect_raw(router.port), ssl.create_default_context())
            with pytest.raises(ssl.SSLCertVerificationError):
                await client.shake_hands()
            if alert:
                await client.peer.send(client.sealed())
            client.peer.hang_up()
        await router.until_true(lambda: bool(complaints(router)) and router.server._limits.open == 0)
        detail = "tlsv1 alert unknown ca" if alert else "found the end of the connection in its middle"
        assert complaints(router) == [("TLS handshake", detail)]


@on_both_loops
async def test_plain_http_is_told_to_use_tls(authority: Authority, tmp_path: Path) -> None:
    """``ws://`` in the place of ``wss://`` gets an answer that says so."""
    async with running_router(secured(authority, tmp_path, "http://127.0.0.1:1/v1")) as router:
        peer = await connect_raw(router.port)
        await peer.send(upgrade_request(router.port))
        head, _, body = (await peer.gone()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["code"] == "tls_required" and b"wss://" in body
        assert [reason for reason, _ in complaints(router)] == ["plain HTTP"]
        await router.until_true(lambda: router.server._limits.open == 0)


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\xff\xff" + bytes(300), b"\x16" * 70_000, b"\x16\x03\x01\x00\x05hello"])
@on_both_loops
async def test_garbage_for_a_handshake_is_cut(garbage: bytes, authority: Authority, tmp_path: Path) -> None:
    """Nothing of it reaches the application, and nothing is left."""
    async with running_router(secured(authority, tmp_path, "http://127.0.0.1:1/v1", handshake_timeout_s=0.5)) as router:
        peer = await connect_raw(router.port)
        await peer.send(garbage)
        await peer.gone()
        await router.until_true(lambda: router.server._limits.open == 0)
        peer.abandon()


@on_both_loops
async def test_the_end_of_the_router_cuts_those_on_their_way_in(authority: Authority, tmp_path: Path) -> None:
    """Nobody is left hanging in the door."""
    context = client_context(authority)
    peers = []
    async with running_router(secured(authority, tmp_path, "http://127.0.0.1:1/v1")) as router:
        for first in (b"", half_a_hello(context)):
            peers.append(await connect_raw(router.port))
            await peers[-1].send(first)
        await router.until_true(lambda: router.server._limits.open == 2)
    for peer in peers:
        assert await peer.gone() == b""
        peer.abandon()


# --- the rest of the surface ---------------------------------------------------------------------


async def test_everything_else_is_served_by_tls_too(
    simulator: SimulatorFactory, authority: Authority, tmp_path: Path
) -> None:
    """Health, models and metrics over one kept connection; an address of the operators' own stays plain."""
    context = client_context(authority)
    config = secured(authority, tmp_path, await simulator(), ops_listen="127.0.0.1:0")
    async with running_router(config) as router, aiohttp.ClientSession() as http:
        for path, status in (("/health/ready", 200), ("/v1/models", 200), ("/metrics", 404)):
            async with http.get(f"https://localhost:{router.port}{path}", ssl=context) as response:
                assert response.status == status, path
                assert response.version == aiohttp.HttpVersion11
                await response.read()
        async with http.get(f"http://127.0.0.1:{router.server.addresses[-1][1]}/metrics") as response:
            assert response.status == 200
            assert b"realtime_router_" in await response.read()


@pytest.mark.parametrize(
    "headers",
    [{"X-Forwarded-For": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}, {"Via": "1.1 p"}, {"Host": "rebound.example.com"}],
)
async def test_a_keyless_router_keeps_its_rules(
    simulator: SimulatorFactory, authority: Authority, tmp_path: Path, headers: dict[str, str]
) -> None:
    """TLS opens no door to a router without keys: this host only, and through no proxy."""
    config = secured(authority, tmp_path, await simulator())
    async with running_router(config) as router, aiohttp.ClientSession() as http:
        for path in ("/v1/models", "/metrics"):
            url = f"https://localhost:{router.port}{path}"
            async with http.get(url, ssl=client_context(authority), headers=headers) as response:
                assert response.status == 403


async def test_a_page_from_the_own_host_may_connect(simulator: SimulatorFactory, authority: Authority, tmp_path: Path) -> None:
    """By ``https``, on the router's own port; another one is told by a close."""
    async with running_router(secured(authority, tmp_path, await simulator())) as router:
        agent = {"user_agent_header": "Mozilla/5.0"}
        async with open_session(router.port, authority, origin=f"https://localhost:{router.port}", **agent) as ws:
            assert await next_type(ws) == "session.created"
        async with open_session(router.port, authority, origin="https://localhost:1", **agent) as ws:
            assert await next_type(ws) == "error"
            await ws.wait_closed()
            assert ws.close_code == 1008


async def test_by_what_a_client_came_is_known(
    simulator: SimulatorFactory, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By TLS of the router's own, or as a trusted proxy says; on a plain address nobody else's word makes it ``https``."""

    async def live(self: Surface, request: web.Request) -> web.StreamResponse:
        return json_response([scheme_of(request, self._server), client_of(request, self._server)])

    monkeypatch.setattr(Surface, "live", live)
    sim = await simulator()
    told = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    async with running_router(secured(authority, tmp_path, sim)) as router, aiohttp.ClientSession() as http:
        async with http.get(f"https://localhost:{router.port}/health/live", ssl=client_context(authority)) as response:
            assert await response.json() == ["https", "127.0.0.1"]
    for trusted, expected in (([], ["http", "127.0.0.1"]), (["127.0.0.1"], ["https", "203.0.113.9"])):
        general = {"master_key": KEY, "trusted_proxies": trusted}
        async with running_router(config_of(sim, general=general)) as router:
            assert (await router.request("/health/live", headers=told)).json == expected
            assert (await router.request("/health/live")).json == ["http", "127.0.0.1"]


@on_both_loops
async def test_nothing_of_a_connection_is_left_for_the_collector(authority: Authority, tmp_path: Path) -> None:
    """Whether it became a session, failed, was late or left: what has no circle is gone with its connection."""
    context = client_context(authority)
    config = secured(authority, tmp_path, "http://127.0.0.1:1/v1", handshake_timeout_s=0.3)
    async with running_router(config) as router:
        limits = router.server._limits
        with no_collector():
            for way in ("request", "failed", "late", "left") * 3:
                hand = HandTls(await connect_raw(router.port), context)
                if way == "request":
                    await hand.shake_hands()
                    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    await hand.peer.send(hand.sealed(request))
                    assert b" 200 " in await hand.read_until(b"\r\n\r\n")
                elif way == "failed":
                    await hand.peer.send(hand.hello() + b"\x16" * 50)
                else:
                    await hand.peer.send(hand.hello()[:50])
                if way != "left":
                    await hand.peer.gone()
                hand.peer.abandon()
            await router.until_true(lambda: limits.open == 0)
            await router.until_true(lambda: not [one for one in transports() if one.get_extra_info("ssl_object").server_side])
        assert not router.server._doors or not router.server._doors.open


# --- the log -------------------------------------------------------------------------------------


def test_complaints_are_told_seldom_and_counted() -> None:
    """The first of each reason at once; what is kept back is counted in the next line."""
    from router.listener.door import COMPLAIN_EVERY_S, Complaints
    from tests.helpers.clock import ManualClock

    clock, told = ManualClock(), list[Event]()
    complain: Callable[[str, str, str], None] = Complaints(told.append, clock=clock)
    for _ in range(1000):
        complain("TLS handshake", "192.0.2.1", "x")
    complain("PROXY header", "192.0.2.1", "y")
    clock.advance(COMPLAIN_EVERY_S)
    complain("TLS handshake", "192.0.2.2", "z")
    facts = [dict(event.facts) for event in told if isinstance(event, Notice)]
    assert facts == [
        {"reason": "TLS handshake", "client": "192.0.2.1", "detail": "x"},
        {"reason": "PROXY header", "client": "192.0.2.1", "detail": "y"},
        {"reason": "TLS handshake", "client": "192.0.2.2", "detail": "z", "more": 999},
    ]
