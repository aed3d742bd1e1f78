"""The PROXY protocol as real proxies speak it: nginx version 1, HAProxy, Caddy and Envoy version 2, TLS ended there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.helpers.ports import free_port
from tests.helpers.proxies import (
    NO_EDITS,
    PROXIES,
    PROXY_PROTOCOL,
    Backends,
    Command,
    Site,
    backends,
    complaint,
    nginx_stream,
    running,
)
from tests.helpers.redis_servers import handled
from tests.helpers.running import MODEL, UPGRADE
from tests.helpers.tls import HOST, Authority
from tests.integration.test_behind_proxies import CLIENT, KEY, Front, greeted, session_of, turn
from tests.integration.test_clients import REPLY, SPOKEN

KINDS = ["nginx", *sorted(PROXY_PROTOCOL)]
EACH = pytest.mark.parametrize("kind", KINDS)
PATIENCE_S = 20.0
_SIGNATURE_2 = b"\r\n\r\n\x00\r\nQUIT\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """What the proxies' certificates are issued by."""
    return Authority(tmp_path_factory.mktemp("authority"))


def command(kind: str, site: Site) -> Command:
    """A proxy that sends PROXY headers."""
    return nginx_stream(site) if kind == "nginx" else PROXIES[kind](site, PROXY_PROTOCOL.get(kind, NO_EDITS))


@asynccontextmanager
async def front(kind: str, ports: tuple[int, int], authority: Authority, folder: Path) -> AsyncIterator[Front]:
    """A proxy in front of two ports, until the block ends."""
    place = folder / kind
    place.mkdir()
    with running(command(kind, Site(folder=place, port=free_port(), routers=ports, pair=authority.issue()))) as program:
        await program.accepting()
        yield Front(program, authority)
        program.check_alive()


@EACH
def test_the_proxy_itself_finds_nothing_wrong(kind: str, authority: Authority, tmp_path: Path) -> None:
    """Its own check takes the sample with the change that the documentation names."""
    site = Site(folder=tmp_path, port=free_port(), routers=(free_port(), free_port()), pair=authority.issue())
    assert complaint(command(kind, site)) == ""


@EACH
async def test_the_proxy_sends_the_header(kind: str, authority: Authority, tmp_path: Path) -> None:
    """What arrives begins with a PROXY header that names the client, before the request: so the change does what it says."""
    heads: asyncio.Queue[bytes] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = b""
        try:
            while b"HTTP/1.1\r\n" not in received and (data := await reader.read(4096)):
                received += data
            if b"/v1/realtime" in received:
                heads.put_nowait(received)
            # To a health check, too.
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async with handled(accept) as port, front(kind, (port, port), authority, tmp_path) as proxy:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", proxy.program.port, ssl=proxy.tls, server_hostname=HOST, local_addr=(CLIENT, 0)
        )
        request = f"GET /v1/realtime HTTP/1.1\r\nHost: {HOST}:{proxy.program.port}\r\n\r\n"
        writer.write(request.encode())
        async with asyncio.timeout(PATIENCE_S):
            head = await heads.get()
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if kind == "nginx":
        assert head.startswith(f"PROXY TCP4 {CLIENT} ".encode())
    else:
        # Version 2, the command PROXY, TCP over IPv4, and the source's address.
        assert head.startswith(_SIGNATURE_2 + b"\x21\x11")
        assert head[16:20] == bytes(int(part) for part in CLIENT.split("."))


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    """Two routers that expect the header, and their providers."""
    with backends(tmp_path_factory.mktemp("backends"), key=KEY, reply=REPLY, general={"proxy_protocol": True}) as made:
        yield made


@EACH
async def test_sessions_with_the_clients_real_address(
    kind: str, behind: Backends, authority: Authority, tmp_path: Path
) -> None:
    """Turns work, and the record has the address that the header names, not what ``X-Forwarded-For`` made up."""
    await behind.accepting()
    async with front(kind, behind.ports, authority, tmp_path) as proxy:
        for headers in ({}, {"X-Forwarded-For": "198.51.100.7"}):
            async with proxy.connect(local_addr=(CLIENT, 0), headers=headers) as ws:
                await greeted(ws)
                assert await turn(ws) == SPOKEN
                await ws.close(4001)
            record = await behind.record(session_of(ws))
            assert (record["client"], record["client_code"]) == (CLIENT, 4001)


async def test_without_the_header_there_is_no_session(behind: Backends) -> None:
    """A connection that begins with a request is closed, whoever it is of."""
    await behind.accepting()
    request = [f"GET /v1/realtime?model={MODEL} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}"]
    request += [f"{name}: {value}" for name, value in UPGRADE.items()]
    reader, writer = await asyncio.open_connection("127.0.0.1", behind.ports[0])
    answer = b""
    try:
        writer.write("\r\n".join([*request, "", ""]).encode())
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                while b"\r\n" not in answer and (data := await reader.read(4096)):
                    answer += data
    finally:
        writer.transport.abort()
    assert b" 101 " not in answer
