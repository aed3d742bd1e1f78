"""Dials by TLS, through aiohttp as the router makes them: errors, resumption, proxies, and a session of a whole process."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from router.config.settings import DeploymentSettings
from router.errors import ConnectFailed, ErrorEvent, HandshakeRejected, UpstreamClosed, UpstreamError, UpstreamTimeout
from router.providers import Forward
from router.simulator import Simulator
from router.tlstransport import TlsTransport
from router.upstream import Dialer, Upstream
from tests.helpers.processes import router_process, written
from tests.helpers.raw import CLOSE, SESSION_CREATED, TEXT, RawPeer, RawUpstream, encode, raw_client
from tests.helpers.running import config_of, next_type, until
from tests.helpers.tls import (
    OWN_LOOPS,
    PATIENCE_S,
    ROUTER_LOOPS,
    TLS_1_2,
    TLS_1_3,
    Authority,
    Forger,
    Listening,
    TlsPeer,
    forging_context,
    listening,
    on_router_loops,
    reset,
    run_on,
)
from tests.unit.providers.helpers import deployment

GREETING = encode(TEXT, SESSION_CREATED, masked=False)
REFUSAL = encode(TEXT, b'{"type":"error","error":{"type":"invalid_request_error","code":"invalid_api_key"}}', masked=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for the tests of this module."""
    return Authority(tmp_path_factory.mktemp("authority"))


def accepted(head: bytes) -> bytes:
    """The 101 for a request (RFC 6455 §4.2.2)."""
    key = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
    assert key is not None
    accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest())
    fields = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept
    return b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\n\r\n"


def upstream(kind: type[TlsPeer], answer: Callable[[Any, bytes], None]) -> type[TlsPeer]:
    """A server that answers the request, with its peer and the request's head at hand."""

    # mypy knows no class whose base is a parameter.
    class Answering(kind):  # type: ignore[valid-type, misc]
        answered = False

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.answered and b"\r\n\r\n" in self.received:
                self.answered = True
                answer(self, bytes(self.received))

    return Answering


def greets(peer: TlsPeer, head: bytes) -> None:
    """As a provider does it."""
    peer.write(accepted(head) + GREETING)


Greeter = upstream(TlsPeer, greets)


def settings_of(server: Listening, authority: Authority, **changes: Any) -> DeploymentSettings:
    """A deployment on a server."""
    base = f"https://127.0.0.1:{server.port}/v1"
    return deployment("openai", **{"api_base": base, "ca_file": str(authority.ca_file), **changes})


@asynccontextmanager
async def dialling() -> AsyncIterator[Callable[[DeploymentSettings], Coroutine[Any, Any, Upstream]]]:
    """Dials of one dialer, which are cut at the end."""
    made: list[Upstream] = []
    dialer = Dialer(environ={}, on_error=lambda *_: None)

    async def dial(settings: DeploymentSettings) -> Upstream:
        made.append(await dialer.dial(settings, Forward(), max_message_bytes=1 << 20))
        return made[-1]

    try:
        yield dial
    finally:
        for one in made:
            one.abort()
        # The dialer's own end waits for theirs.
        await dialer.close()


# --- errors -------------------------------------------------------------------------------------


def says_nothing(peer: TlsPeer, head: bytes) -> None:
    """Reads the request, and that is all."""


def refuses(peer: TlsPeer, head: bytes) -> None:
    """HTTP."""
    peer.write(b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}")


def speaks_nonsense(peer: TlsPeer, head: bytes) -> None:
    """No HTTP."""
    peer.write(b"220 mail.example ESMTP\r\n\r\n")


def tells_an_error(peer: TlsPeer, head: bytes) -> None:
    """The 101, then an event."""
    peer.write(accepted(head) + REFUSAL)


def is_silent(peer: TlsPeer, head: bytes) -> None:
    """The 101, then nothing."""
    peer.write(accepted(head))


def leaves(peer: TlsPeer, head: bytes) -> None:
    """Ends in an orderly way."""
    peer.write(b"", notify=True)
    peer.transport.close()


def is_gone(peer: TlsPeer, head: bytes) -> None:
    """FIN alone."""
    peer.transport.close()


def resets(peer: TlsPeer, head: bytes) -> None:
    """RST."""
    peer.reset()


def leaves_after_the_upgrade(peer: TlsPeer, head: bytes) -> None:
    """The 101, then the end."""
    peer.write(accepted(head), notify=True)
    peer.transport.close()


def closes_after_the_upgrade(peer: TlsPeer, head: bytes) -> None:
    """The 101 and a CLOSE, then the end of TLS."""
    peer.write(accepted(head) + encode(CLOSE, b"\x0b\xb8no", masked=False), notify=True)


ANSWERS: dict[str, tuple[Callable[[Any, bytes], None], type[Exception]]] = {
    "says nothing": (says_nothing, UpstreamTimeout),
    "refuses": (refuses, HandshakeRejected),
    "speaks nonsense": (speaks_nonsense, HandshakeRejected),
    "tells an error": (tells_an_error, ErrorEvent),
    "is silent": (is_silent, UpstreamTimeout),
    "leaves": (leaves, HandshakeRejected),
    "is gone": (is_gone, HandshakeRejected),
    "resets": (resets, HandshakeRejected),
    "leaves after the upgrade": (leaves_after_the_upgrade, UpstreamClosed),
    "closes after the upgrade": (closes_after_the_upgrade, UpstreamClosed),
}
# Before the request.
SERVERS: dict[str, type[Exception]] = {
    "unknown authority": ConnectFailed,
    "wrong name": ConnectFailed,
    "expired": ConnectFailed,
    "asks for a certificate 1.2": ConnectFailed,
    "asks for a certificate 1.3": HandshakeRejected,
    "no TLS": ConnectFailed,
    "mute": UpstreamTimeout,
    "hangs up": ConnectFailed,
    "resets at once": ConnectFailed,
    "nobody": ConnectFailed,
}


class Plain(asyncio.Protocol):
    """No TLS: answers, ends or resets the connection at the first bytes, or says nothing."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.way == "no TLS":
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        elif self.way == "hangs up":
            self.transport.close()
        elif self.way == "resets at once":
            reset(self.transport)


async def failure_of(authority: Authority, folder: Path, way: str) -> tuple[type[Exception], str]:
    """Dial a server that fails in some way; return what is raised, without what differs from dial to dial."""
    make: Callable[[], asyncio.Protocol]
    if way in ANSWERS:
        kind, tls = upstream(TlsPeer, ANSWERS[way][0]), authority.server_context()
        make = partial(kind, tls)
    elif way in ("no TLS", "mute", "hangs up", "resets at once", "nobody"):
        make = partial(Plain, way)
    else:
        issuer = Authority(folder / "other", "Somebody else") if way == "unknown authority" else authority
        tls = issuer.server_context(
            "elsewhere.example" if way == "wrong name" else "localhost",
            expired=way == "expired",
            asks=way.startswith("asks"),
            version={"1.2": TLS_1_2, "1.3": TLS_1_3}.get(way[-3:]),
        )
        make = partial(Greeter, tls)
    # Each phase has its limit; only the silent ones reach it.
    limits = {"connect_timeout_s": PATIENCE_S, "ready_timeout_s": PATIENCE_S}
    if way in ("mute", "says nothing"):
        limits["connect_timeout_s"] = 0.3
    elif way == "is silent":
        limits["ready_timeout_s"] = 0.1
    name = {"tls_server_name": "localhost"} if way == "wrong name" else {}
    async with dialling() as dial, listening(make) as server:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            if way == "nobody":
                server.port = nobody.getsockname()[1]
            settings = settings_of(server, authority, **limits, **name)
            with pytest.raises(UpstreamError) as raised:
                await dial(settings)
    phase = getattr(raised.value, "phase", "")
    return type(raised.value), f"{phase} {raised.value}".replace(str(server.port), "PORT")


@pytest.mark.parametrize("base", sorted(OWN_LOOPS))
@pytest.mark.parametrize("way", [*ANSWERS, *SERVERS])
def test_errors_are_those_of_the_event_loops_own_tls(authority: Authority, tmp_path: Path, way: str, base: str) -> None:
    """Whatever goes wrong, a dial's error, its phase and its text are the same with the router's TLS and with the base's."""

    async def main() -> tuple[type[Exception], str]:
        return await failure_of(authority, tmp_path, way)

    ours = run_on(ROUTER_LOOPS[base], main)
    own = run_on(OWN_LOOPS[base], main)
    expected = ANSWERS[way][1] if way in ANSWERS else SERVERS[way]
    assert ours[0] is own[0] is expected
    if way == "hangs up":
        # The bases have no words for it.
        assert "connection lost during the TLS handshake" in ours[1]
    else:
        assert ours[1] == own[1]
    if way in ("unknown authority", "wrong name", "expired"):
        assert "certificate not accepted" in ours[1]


# --- resumption ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("ready", ["first_event", "handshake"])
@on_router_loops
async def test_dials_resume(authority: Authority, ready: Any, version: ssl.TLSVersion) -> None:
    """The second dial of a deployment resumes the first one's session, also where a 101 is all that is waited for."""
    tls = authority.server_context(version=version)
    kind = upstream(TlsPeer, greets if ready == "first_event" else is_silent)
    async with listening(lambda: kind(tls)) as server, listening(lambda: kind(tls)) as other, dialling() as dial:
        settings = settings_of(server, authority, ready=ready)
        for _ in range(3):
            assert isinstance((await dial(settings)).leg.transport, TlsTransport)
        assert [peer.ssl.session_reused for peer in server.peers] == [False, True, True]
        # Each of these is another server, though it would take the session.
        await dial(settings_of(other, authority, ready=ready))
        await dial(settings_of(server, authority, ready=ready, tls_server_name="localhost"))
        assert not other.peers[0].ssl.session_reused and not server.peers[-1].ssl.session_reused


@on_router_loops
async def test_dials_at_the_same_time(authority: Authority) -> None:
    """A crowd of them shares one session, and keeps its addresses apart."""
    one, two = authority.server_context(), authority.server_context()
    async with listening(lambda: Greeter(one)) as first, listening(lambda: Greeter(two)) as second, dialling() as dial:
        both = [settings_of(server, authority) for server in (first, second)]
        for settings in both:
            await dial(settings)
        await asyncio.gather(*(dial(settings) for _ in range(20) for settings in both))
        for server in (first, second):
            assert [peer.ssl.session_reused for peer in server.peers] == [False] + [True] * 20


class Tunnel(asyncio.Protocol):
    """A proxy that knows CONNECT, and leads where it is asked to."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.transport: Any = None
        self._outer = TlsPeer(context) if context is not None else None
        self._onward: Any = None
        self._head = b""
        self._waiting = bytearray()
        self.asked: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self._outer is not None:
            self._outer.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._onward is not None:
            self._onward.abort()

    def data_received(self, data: bytes) -> None:
        if self._outer is not None:
            self._outer.data_received(data)
            data = bytes(self._outer.received)
            self._outer.received.clear()
        if self.asked:
            if self._onward is not None:
                self._onward.write(data)
            else:
                self._waiting += data
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            self.asked.append(self._head)
            tunnels.add(asyncio.create_task(self._connect(int(self._head.split()[1].rpartition(b":")[2]))))

    async def _connect(self, port: int) -> None:
        back = self

        class Back(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                back.say(data)

            def connection_lost(self, exc: BaseException | None) -> None:
                back.transport.abort()

        self._onward, _ = await asyncio.get_running_loop().create_connection(Back, "127.0.0.1", port)
        self.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._onward.write(bytes(self._waiting))

    def say(self, data: bytes) -> None:
        """Towards the client."""
        (self.transport if self._outer is None else self._outer).write(data)


tunnels: set[asyncio.Task[None]] = set()


@pytest.mark.parametrize("scheme", ["http", "https"])
@on_router_loops
async def test_dials_through_a_proxy(authority: Authority, scheme: str) -> None:
    """Behind CONNECT, with a proxy that is dialled by TLS as well: it works, by TLS of the router's own, and resumes.

    A proxy by ``https://`` could not be used at all: the event loop's TLS would not begin inside of the router's.
    """
    tls, outer = authority.server_context(), authority.server_context()
    async with (
        listening(lambda: Greeter(tls)) as server,
        listening(lambda: Tunnel(outer if scheme == "https" else None)) as proxy,
        dialling() as dial,
    ):
        settings = settings_of(server, authority, proxy=f"{scheme}://127.0.0.1:{proxy.port}")
        made = [await dial(settings) for _ in range(3)]
        assert all(isinstance(one.leg.transport, TlsTransport) for one in made)
        assert [one.backlog for one in made] == [[GREETING]] * 3
        assert [peer.ssl.session_reused for peer in server.peers] == [False, True, True]
        assert all(peer.asked[0].startswith(b"CONNECT 127.0.0.1:%d " % server.port) for peer in proxy.peers)
        # Both ways, through all of it.
        made[-1].leg.write(made[-1].leg.frame(TEXT, b"x" * 50_000))
        await until(lambda: len(server.peers[-1].received) > 50_000)
    tunnels.clear()


@on_router_loops
async def test_a_certificate_behind_a_proxy(authority: Authority) -> None:
    """Its error is that of a direct dial."""
    tls = authority.server_context("elsewhere.example")
    async with (
        listening(lambda: Greeter(tls)) as server,
        listening(lambda: Tunnel(None)) as proxy,
        dialling() as dial,
    ):
        settings = settings_of(
            server, authority, proxy=f"http://127.0.0.1:{proxy.port}", tls_server_name="localhost"
        )
        with pytest.raises(ConnectFailed, match="certificate not accepted"):
            await dial(settings)
        await until(lambda: server.peers[0].gone or server.peers[0].eof)
    tunnels.clear()


# --- the router as a process --------------------------------------------------------------------


class TlsUpstream(RawUpstream):
    """A server for a router to dial by TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(GREETING, None)
        self._context = context

    @property
    def api_base(self) -> str:
        return f"https://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]


async def joined(base: str, server: RawUpstream) -> tuple[RawPeer, RawPeer]:
    """A session of a router: its client, which has read the greeting, and its upstream."""
    client = await raw_client(int(base.rpartition(":")[2].partition("/")[0]))
    peer = await server.accept()
    assert await client.message() == SESSION_CREATED
    return client, peer


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
async def test_a_session_of_a_process(authority: Authority, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """Audio in both directions at once, of all sizes, through a router as it is started: byte for byte the same."""
    server = TlsUpstream(authority.server_context(version=version))
    await server.start()
    sizes = [1, 500, 4000, 8100, 16300, 26_000, 100_000, 700, 2_000_000, 3]
    down = [b'{"type":"response.output_audio.delta","delta":"%s"}' % (b"d" * size) for size in sizes]
    up = [b'{"type":"input_audio_buffer.append","audio":"%s"}' % (b"u" * size) for size in sizes]
    config = config_of(server.api_base, ca_file=str(authority.ca_file))
    try:
        async with router_process(written(tmp_path, config)) as router:
            for _ in range(2):
                client, peer = await joined(router.base, server)

                async def send(sender: RawPeer, messages: list[bytes]) -> None:
                    for message in messages:
                        await sender.text(message)

                async def receive(receiver: RawPeer, messages: list[bytes]) -> None:
                    for message in messages:
                        assert await receiver.message() == message

                await asyncio.gather(send(client, up), send(peer, down), receive(client, down), receive(peer, up))
                await client.close(1000, "bye")
                assert await peer.closed() == (1000, b"bye")
                await peer.close(1000, "bye")
                assert await client.closed() == (1000, b"bye")
                client.hang_up()
                peer.abandon()
            await router.logged("session ended", 2)
            reused = [one.writer.get_extra_info("ssl_object").session_reused for one in server.peers]
            assert reused == [False, True]
            assert not router.lines("event loop")
    finally:
        await server.stop()


@pytest.mark.parametrize("ends", ["tampered", "close_notify", "FIN", "reset"])
async def test_ends_of_a_process_session(authority: Authority, tmp_path: Path, ends: str) -> None:
    """An upstream that ends without a CLOSE: the client has everything that came before, then 1011."""
    context = forging_context(authority, tmp_path)
    kind = upstream(Forger, greets)
    last = b'{"type":"response.output_audio.delta","delta":"%s"}' % (b"d" * 9000)
    async with listening(lambda: kind(context)) as server:
        config = config_of(f"https://127.0.0.1:{server.port}/v1", ca_file=str(authority.ca_file))
        async with router_process(written(tmp_path, config)) as router:
            client = await raw_client(int(router.http.rpartition(":")[2]))
            assert await client.message() == SESSION_CREATED
            (peer,) = server.peers
            record = peer.seal(23, encode(TEXT, last, masked=False))
            if ends == "tampered":
                bad = bytearray(peer.seal(23, encode(TEXT, b'{"type":"bad"}', masked=False)))
                bad[-1] ^= 1
                peer.transport.write(record + bad)
            else:
                peer.transport.write(record)
                if ends == "close_notify":
                    peer.transport.write(peer.seal(21, b"\1\0"))
                elif ends == "FIN":
                    peer.transport.write_eof()
                else:
                    assert await client.message() == last
                    peer.reset()
            if ends != "reset":
                assert await client.message() == last
            assert (await client.closed())[0] == 1011
            client.abandon()
            ended = await router.logged("session ended")
            assert ended["who"] == "upstream"
            assert not router.lines("event loop")


async def test_a_simulator_by_tls(authority: Authority, tmp_path: Path, simulator: Any) -> None:
    """A whole turn with the simulator behind a router's process, which dials it by TLS."""
    sim: Simulator = await simulator(ssl_context=authority.server_context())
    config = config_of(sim, ca_file=str(authority.ca_file))
    async with router_process(written(tmp_path, config)) as router:
        async with asyncio.timeout(PATIENCE_S), connect(router.url("voice"), proxy=None, compression=None) as ws:
            assert await next_type(ws) == "session.created"
            await ws.send(json.dumps({"type": "response.create"}))
            types: list[str] = []
            while not types or types[-1] != "response.done":
                types.append(await next_type(ws))
        assert "response.output_audio.delta" in types
        await router.logged("session ended")
