"""The router's event loop: which connections get TLS of its own, and what is looked up without a thread."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import ssl
import subprocess
import sys
from typing import Any

import pytest

from router.eventloop import new_event_loop
from router.tlstransport import TlsTransport
from tests.helpers.parts import require
from tests.helpers.processes import ROOT
from tests.helpers.running import until
from tests.helpers.tls import PATIENCE_S, Authority, Recorder, TlsPeer, dial, listening, on_router_loops


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for the tests of this module."""
    return Authority(tmp_path_factory.mktemp("authority"))


def test_the_base() -> None:
    """uvloop where it is installed, as the lock files have it."""
    require("uvloop")
    import uvloop

    loop = new_event_loop()
    try:
        assert isinstance(loop, uvloop.Loop)
    finally:
        loop.close()


def test_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a platform for which uvloop is not made the loop is asyncio's, with the same changes."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    spec = importlib.util.find_spec("router.eventloop")
    assert spec is not None and spec.loader is not None
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    loop = anew.new_event_loop()
    try:
        assert isinstance(loop, asyncio.SelectorEventLoop)
        assert type(loop).create_connection is not asyncio.SelectorEventLoop.create_connection
    finally:
        loop.close()


@on_router_loops
async def test_whose_tls(authority: Authority) -> None:
    """A dial's context means TLS of the router's own; any other context, ``True`` and no TLS mean the base's."""
    tls = authority.server_context()
    loop = asyncio.get_running_loop()
    plain = ssl.create_default_context(cafile=str(authority.ca_file))
    async with listening(lambda: TlsPeer(tls)) as server:
        for context, own in ((authority.client_context(), True), (plain, False)):
            transport, client = await dial(server.port, context)
            assert isinstance(transport, TlsTransport) is own
            transport.abort()
            await client.gone()
        transport, client = await loop.create_connection(Recorder, "127.0.0.1", server.port)
        assert transport.get_extra_info("ssl_object") is None
        transport.abort()
        await client.gone()
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(Recorder, "127.0.0.1", server.port, ssl=True)


@on_router_loops
async def test_nobody_listens(authority: Authority) -> None:
    """A connection that is refused fails as without TLS, and its protocol hears nothing."""
    told: list[Recorder] = []

    def protocol() -> Recorder:
        told.append(Recorder())
        return told[-1]

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().create_connection(
                protocol, *holder.getsockname(), ssl=authority.client_context(), server_hostname="localhost"
            )
    assert [one.told for one in told] == [[]]


@on_router_loops
async def test_options_of_a_dial(authority: Authority) -> None:
    """A local address is the base's business; limits of TLS are accepted, for the dial has its own."""
    tls = authority.server_context()
    async with listening(lambda: TlsPeer(tls)) as server:
        transport, client = await asyncio.get_running_loop().create_connection(
            Recorder,
            "127.0.0.1",
            server.port,
            ssl=authority.client_context(),
            server_hostname="localhost",
            local_addr=("127.0.0.1", 0),
            ssl_handshake_timeout=1.0,
            ssl_shutdown_timeout=1.0,
        )
        assert client.told == ["made"]
        assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
        transport.abort()
        await client.gone()


# --- TLS that begins later ----------------------------------------------------------------------


@pytest.mark.parametrize("below", ["plain", "TLS"])
@on_router_loops
async def test_tls_that_begins_later(authority: Authority, below: str) -> None:
    """``start_tls`` with a dial's context: over a plain connection, and inside of TLS, which a proxy by ``https://`` means.

    The base's refused a transport that is the router's own, and every dial through such a proxy failed.
    """
    inner, outer = authority.server_context(), authority.server_context()
    loop = asyncio.get_running_loop()

    class Tunnel(TlsPeer):
        """A proxy's end: hands what it decrypts to the server inside."""

        def __init__(self) -> None:
            super().__init__(outer)
            self.inside = TlsPeer(inner)
            # It has the methods of a transport that the server inside uses.
            self.inside.connection_made(self)  # type: ignore[arg-type]

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.received:
                self.inside.data_received(bytes(self.received))
                self.received.clear()

        def write(self, data: bytes, *, notify: bool = False) -> None:
            if data:
                super().write(data)

    async with listening(Tunnel if below == "TLS" else lambda: TlsPeer(inner)) as server:
        first: dict[str, Any] = {"ssl": authority.client_context(), "server_hostname": "localhost"} if below == "TLS" else {}
        transport, before = await loop.create_connection(Recorder, "127.0.0.1", server.port, **first)
        after = Recorder()
        upper = await loop.start_tls(transport, after, authority.client_context(), server_hostname="localhost")
        assert isinstance(upper, TlsTransport)
        # Whoever asked tells the protocol, as asyncio has it.
        assert after.told == []
        after.connection_made(upper)
        peer = server.peers[0].inside if below == "TLS" else server.peers[0]
        await until(lambda: peer.shaken)
        upper.write(b"up" * 50_000)
        peer.write(b"down" * 50_000)
        await until(lambda: len(peer.received) == 100_000 and len(after.data) == 200_000)
        assert peer.received == b"up" * 50_000 and after.data == b"down" * 50_000
        upper.close()
        await after.gone()
        assert after.told == ["made", "data", "lost"]
        assert before.told == ["made"]
        await until(lambda: peer.notified)


@pytest.mark.parametrize("failure", ["certificate", "lost", "cancelled"])
@on_router_loops
async def test_tls_that_fails_later(authority: Authority, failure: str) -> None:
    """What ends the handshake is raised, and the connection below it is ended."""
    loop = asyncio.get_running_loop()
    tls = authority.server_context("elsewhere.example")
    async with listening(lambda: TlsPeer(tls)) as server:
        transport, _ = await loop.create_connection(Recorder, "127.0.0.1", server.port)
        await until(lambda: len(server.peers) == 1)
        (peer,) = server.peers
        context = authority.client_context()
        starting: asyncio.Task[Any] = asyncio.create_task(
            loop.start_tls(transport, Recorder(), context, server_hostname="localhost")
        )
        if failure == "lost":
            transport.abort()
            with pytest.raises(ConnectionResetError):
                await starting
        elif failure == "cancelled":
            await asyncio.sleep(0)  # the task begins, and waits for the server
            starting.cancel()
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.wait([starting])
            assert starting.cancelled()
        else:
            with pytest.raises(ssl.SSLCertVerificationError, match="match"):
                await starting
        await until(lambda: peer.eof or peer.gone)
        assert transport.is_closing()


@on_router_loops
async def test_tls_of_others_that_begins_later(authority: Authority) -> None:
    """Any other context gets the base's ``start_tls``."""
    loop = asyncio.get_running_loop()
    tls = authority.server_context()
    async with listening(lambda: TlsPeer(tls)) as server:
        transport, _ = await loop.create_connection(Recorder, "127.0.0.1", server.port)
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        upper = await loop.start_tls(transport, Recorder(), context, server_hostname="localhost")
        assert upper is not None and not isinstance(upper, TlsTransport)
        upper.abort()
        await until(lambda: server.peers[0].eof or server.peers[0].gone)


# --- addresses ----------------------------------------------------------------------------------


@on_router_loops
async def test_addresses_are_streams() -> None:
    """What is looked up without a type of socket is looked up for streams; one that is named stays."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo("127.0.0.1", 443)
    assert [(entry[1], entry[4]) for entry in found] == [(socket.SOCK_STREAM, ("127.0.0.1", 443))]
    found = await loop.getaddrinfo("127.0.0.1", 443, type=socket.SOCK_DGRAM)
    assert {entry[1] for entry in found} == {socket.SOCK_DGRAM}


_THREADS = """
import asyncio, socket, sys
from pathlib import Path
import uvloop
from router.eventloop import loop_class

async def main():
    with socket.socket() as listener, socket.socket() as sock:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
        print(len(list(Path("/proc/self/task").iterdir())))

base = uvloop.Loop
with asyncio.Runner(loop_factory=base if sys.argv[1] == "own" else loop_class(base)) as runner:
    runner.run(main())
"""


def test_an_address_is_looked_up_without_a_thread() -> None:
    """Connecting a socket to what is an address already starts no thread; uvloop's own starts four, as the control shows."""
    require("procfs")
    require("uvloop")

    def threads(whose: str) -> int:
        return int(subprocess.run([sys.executable, "-c", _THREADS, whose], cwd=ROOT, capture_output=True, check=True).stdout)

    assert threads("own") > 1
    assert threads("router") == 1
