"""PROXY headers on ``listen``: whose word counts, whom the log names, and who is cut."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from router.events import Notice, SessionRecord, SessionRefused
from router.listener.proxyprotocol import MOST_V2_BYTES
from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.processes import router_process, written
from tests.helpers.proxy_headers import SIGNATURE, version_1, version_2
from tests.helpers.raw import SESSION_CREATED, RawPeer, on_both_loops, raw_upstream, upgrade_request
from tests.helpers.raw import connect as connect_raw
from tests.helpers.running import RunningRouter, config_of, running_router
from tests.helpers.secure import HandTls, client_context, put, secure_client
from tests.helpers.tls import Authority

KEY = "sk-client-0123456789abcdef"
CLIENT = "203.0.113.9"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Issues the router's certificates; clients trust it."""
    return Authority(tmp_path_factory.mktemp("authority"))


def proxied(*targets: Simulator | str, trusted: tuple[str, ...] = ("127.0.0.0/8",), **general: Any) -> dict[str, Any]:
    """A configuration with PROXY headers."""
    needed = {"master_key": KEY, "proxy_protocol": True, "trusted_proxies": list(trusted)}
    return config_of(*targets, general={**needed, **general})


def asking(port: int, headers: Mapping[str, str] | None = None, *, key: str = KEY, path: str = "/v1/realtime") -> bytes:
    """An upgrade request with a key."""
    more = "".join(f"{name}: {value}\r\n" for name, value in {"Authorization": f"Bearer {key}", **(headers or {})}.items())
    request = upgrade_request(port)
    return request.replace(b"/v1/realtime", path.encode(), 1)[:-2] + more.encode() + b"\r\n"


async def open_session(
    port: int, header: bytes, headers: Mapping[str, str] | None = None, *, context: Any = None
) -> RawPeer:
    """Open a session behind a PROXY header."""
    peer = await secure_client(port, context, before=header, request=asking(port, headers))
    assert peer.head.startswith(b"HTTP/1.1 101 "), peer.head
    return peer


def complaints(router: RunningRouter) -> list[str]:
    """Why connections were sent away."""
    return [str(notice.facts["reason"]) for notice in router.of(Notice) if notice.event == "connection refused"]


# --- whom the router speaks with -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "forwarded", "trusted", "client"),
    [
        pytest.param(version_1(CLIENT, 5), None, (), CLIENT, id="version-1"),
        pytest.param(version_1("2001:db8::7", 5), None, (), "2001:db8::7", id="version-1-ipv6"),
        pytest.param(version_2(CLIENT, 5), None, (), CLIENT, id="version-2"),
        pytest.param(version_2("2001:db8::7", 5, tlvs=bytes(500)), None, (), "2001:db8::7", id="version-2-ipv6-tlvs"),
        pytest.param(version_2("::ffff:203.0.113.9", 5), None, (), CLIENT, id="mapped"),
        # The header wins over what a client may have written.
        pytest.param(version_1(CLIENT, 5), "198.51.100.1", (), CLIENT, id="spoofed"),
        # A proxy before the proxy: the header names it, and it names the client.
        pytest.param(version_1("10.0.0.1", 5), CLIENT, ("10.0.0.0/8",), CLIENT, id="chain"),
        pytest.param(version_1("10.0.0.1", 5), f"198.51.100.1, {CLIENT}, 10.0.0.2", ("10.0.0.0/8",), CLIENT, id="chain-spoofed"),
        # A proxy that speaks for itself, or does not know for whom: nobody vouches for what the request says.
        pytest.param(version_2(None, 0, command=0), CLIENT, (), "127.0.0.1", id="local"),
        pytest.param(version_2(CLIENT, 5, command=0), CLIENT, (), "127.0.0.1", id="local-with-address"),
        pytest.param(version_2(None, 0), CLIENT, (), "127.0.0.1", id="unspecified"),
        pytest.param(b"PROXY UNKNOWN\r\n", CLIENT, (), "127.0.0.1", id="unknown"),
    ],
)
@on_both_loops
async def test_the_client_is_whom_the_header_names(
    header: bytes, forwarded: str | None, trusted: tuple[str, ...], client: str
) -> None:
    """In the record of the session, and X-Forwarded-For counts only behind a header that names a trusted proxy."""
    async with (
        raw_upstream() as server,
        running_router(proxied(server.api_base, trusted=("127.0.0.1", *trusted))) as router,
    ):
        headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
        peer = await open_session(router.port, header, headers)
        assert await peer.message() == SESSION_CREATED
        upstream = await server.accept()
        await peer.text(b'{"type":"hello"}')
        assert await upstream.message() == b'{"type":"hello"}'
        peer.abandon()
        assert (await router.until(SessionRecord)).client == client
        await router.until_true(lambda: router.server._limits.open == 0)


@pytest.mark.parametrize("header", [version_1(CLIENT, 5), version_2(CLIENT, 5, tlvs=bytes(40))])
@on_both_loops
async def test_a_header_byte_by_byte(header: bytes) -> None:
    """However it is cut, and what comes with its last byte is not lost."""
    async with raw_upstream() as server, running_router(proxied(server.api_base)) as router:
        peer = await connect_raw(router.port)
        for at in range(len(header) - 1):
            await peer.send(header[at : at + 1])
            await asyncio.sleep(0)
        await peer.send(header[-1:] + asking(router.port))
        assert (await peer.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        peer.abandon()
        assert (await router.until(SessionRecord)).client == CLIENT


@pytest.mark.parametrize("piece", [1, 65536])
@on_both_loops
async def test_the_header_comes_before_the_handshake(piece: int, authority: Authority, tmp_path: Path) -> None:
    """In clear, with TLS right behind it in the same write or later."""
    async with (
        raw_upstream() as server,
        running_router(proxied(server.api_base, tls=dict(put(authority.issue(), tmp_path)))) as router,
    ):
        peer = await connect_raw(router.port)
        hand = HandTls(peer, client_context(authority))
        out = version_2(CLIENT, 5) + hand.hello()
        for start in range(0, len(out), piece):
            await peer.send(out[start : start + piece])
        await hand.shake_hands()
        await peer.send(hand.sealed(asking(router.port)))
        assert b" 101 " in await hand.read_until(b"\r\n\r\n")
        peer.abandon()
        assert (await router.until(SessionRecord)).client == CLIENT

        second = await open_session(router.port, version_1("2001:db8::7", 5), context=client_context(authority))
        assert await second.message() == SESSION_CREATED
        second.abandon()
        assert (await router.until(SessionRecord, 2)).client == "2001:db8::7"


@on_both_loops
async def test_refusals_name_the_client_too() -> None:
    """A wrong key, a request that is no legal upgrade, and a path where nothing is: by the address that the header has."""
    async with running_router(proxied("http://127.0.0.1:1/v1")) as router:
        port = router.port
        for request in (
            asking(port, key="wrong"),
            asking(port).replace(b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Key: x"),
            asking(port, path="/v2/nowhere"),
        ):
            peer = await secure_client(port, None, before=version_1(CLIENT, 5), request=request)
            assert peer.head.startswith(b"HTTP/1.1 4")
            peer.abandon()
        await router.until(SessionRefused, 3)
        assert [refused.client for refused in router.refusals] == [CLIENT] * 3


async def test_refusals_name_the_client_behind_trusted_proxies(simulator: SimulatorFactory) -> None:
    """The same without PROXY headers, by X-Forwarded-For."""
    general = {"master_key": KEY, "trusted_proxies": ["127.0.0.1"]}
    async with running_router(config_of(await simulator(), general=general)) as router:
        headers = {"X-Forwarded-For": f"198.51.100.1, {CLIENT}"}
        for path in ("/v1/realtime?model=voice", "/v1/realtime?model=", "/v2/nowhere"):
            await router.request(path, headers=headers, upgrade=True)
        assert [refused.client for refused in router.refusals] == [CLIENT] * 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux spreads connections over SO_REUSEPORT")
async def test_workers_take_the_header_too(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """On sockets that they inherited."""
    config = proxied(await simulator(), workers=2)
    async with router_process(written(tmp_path, config)) as router:
        port = int(router.base.split(":")[2].split("/")[0])
        for number in range(1, 9):
            peer = await open_session(port, version_2(f"192.0.2.{number}", 5))
            await peer.message()
            peer.abandon()
        await router.logged("session ended", 8)
        assert {line["client"] for line in router.lines("session ended")} == {f"192.0.2.{number}" for number in range(1, 9)}


# --- who is cut ----------------------------------------------------------------------------------


@on_both_loops
async def test_only_trusted_proxies_may_say_for_whom_they_speak() -> None:
    """Anybody else is cut before anything of him is read, and the log says whom to trust if he is a proxy."""
    async with running_router(proxied("http://127.0.0.1:1/v1", trusted=("10.0.0.0/8",))) as router:
        peer = await connect_raw(router.port)
        assert await peer.gone() == b""
        peer.abandon()
        await router.until_true(lambda: router.server._limits.open == 0)
        (notice,) = [notice for notice in router.of(Notice) if notice.event == "connection refused"]
        assert (notice.facts["reason"], notice.facts["client"]) == ("untrusted proxy", "127.0.0.1")
        assert "general_settings.trusted_proxies" in str(notice.facts["detail"])


@pytest.mark.parametrize(
    "data",
    [
        asking(1),
        b"\x16\x03\x01\x02\x00",
        b"PROXY TCP4 nobody nobody 1 2\r\n",
        b"PROXY UNKNOWN " + b"x" * 200,
        SIGNATURE + b"\x21\x11" + (MOST_V2_BYTES).to_bytes(2, "big"),
        SIGNATURE + b"\x31\x11\x00\x0c",
        b"\x00" * 100_000,
    ],
)
@on_both_loops
async def test_what_is_no_header_is_cut(data: bytes) -> None:
    """At once, whatever follows, and not answered: a request without a header may come from anywhere."""
    async with running_router(proxied("http://127.0.0.1:1/v1")) as router:
        peer = await connect_raw(router.port)
        peer.writer.write(data)
        assert await peer.gone() == b""
        peer.abandon()
        await router.until_true(lambda: router.server._limits.open == 0)
        assert complaints(router) == ["PROXY header"]


@pytest.mark.parametrize(
    "said", [b"", b"PROXY TCP4 203.0.113.9", SIGNATURE + b"\x21\x11\x10\x00" + bytes(64), version_1(CLIENT, 5)]
)
@on_both_loops
async def test_a_header_that_never_ends_is_cut(said: bytes) -> None:
    """After ``handshake_timeout_s``; so is a request that never comes behind a whole one."""
    async with running_router(proxied("http://127.0.0.1:1/v1", handshake_timeout_s=0.3)) as router:
        peer = await connect_raw(router.port)
        await peer.send(said)
        assert await peer.gone() == b""
        peer.abandon()
        await router.until_true(lambda: router.server._limits.open == 0)
        assert complaints(router) == (["PROXY header"] if said and said != version_1(CLIENT, 5) else [])


async def test_an_address_of_the_operators_own_takes_none(simulator: SimulatorFactory) -> None:
    """Probes and scrapers come to it as they are."""
    async with running_router(proxied(await simulator(), ops_listen="127.0.0.1:0")) as router:
        port = router.server.addresses[-1][1]
        peer = await secure_client(port, None, request=b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert peer.head.startswith(b"HTTP/1.1 200 ")
        peer.abandon()
        checked = await secure_client(
            router.port,
            None,
            before=version_2(None, 0, command=0),
            request=b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        )
        assert checked.head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(await checked.reader.readexactly(15)) == {"status": "ok"}
        checked.abandon()
