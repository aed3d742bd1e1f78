"""TLS of the router's own over real sockets: bytes, back-pressure, ends of every kind, and what a server may send in between."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import ssl
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from router import tlstransport
from router.tls import ResumingContext
from router.tlstransport import PIECE_BYTES, TlsTransport
from tests.helpers.parts import require
from tests.helpers.processes import ROOT
from tests.helpers.running import until
from tests.helpers.tls import (
    PATIENCE_S,
    TLS_1_2,
    TLS_1_3,
    Authority,
    Forger,
    Recorder,
    TlsPeer,
    buffered_little,
    dial,
    forging_context,
    listening,
    no_collector,
    on_router_loops,
    reset,
    shim,
    transports,
)

VERSIONS = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
MIB = 1024 * 1024
# Around the ends of pieces and of records.
SIZES = [0, 1, 8191, 8192, 8193, 16383, 16384, 16385, 100_000]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for the tests of this module."""
    return Authority(tmp_path_factory.mktemp("authority"))


def one_byte(rng: random.Random) -> int:
    """Segments of a byte."""
    return 1


def any_size(rng: random.Random) -> int:
    """Segments of all lengths, most of them short."""
    return min(40_000, 1 + int(rng.paretovariate(0.5)))


async def came(data: bytearray, size: int) -> None:
    """Wait until so many bytes have come."""
    await until(lambda: len(data) >= size)


async def freed() -> None:
    """Wait until no transport lives; the collector is off meanwhile."""
    await until(lambda: not transports())


# --- bytes --------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize(
    ("cut", "sizes"),
    [(one_byte, [0, 1, 2, 700, 3000]), (any_size, [*SIZES, 5 * MIB])],
    ids=["by bytes", "at random"],
)
@on_router_loops
async def test_bytes_arrive_as_they_were_sent(
    authority: Authority, version: ssl.TLSVersion, cut: Callable[[random.Random], int], sizes: list[int]
) -> None:
    """Whatever the sizes of writes, and wherever the stream of records is cut, the same bytes arrive both ways."""
    rng = random.Random(5)
    context = authority.server_context(version=version)
    sizes = [*sizes, *rng.sample(sizes, 3)]
    up, down = ([rng.randbytes(size) for size in sizes] for _ in range(2))
    async with listening(lambda: TlsPeer(context)) as server, shim(server.port, lambda: cut(rng)) as port:
        transport, client = await dial(port, authority.client_context())
        (peer,) = server.peers
        assert transport.get_extra_info("ssl_object").version() == {TLS_1_2: "TLSv1.2", TLS_1_3: "TLSv1.3"}[version]
        await until(lambda: peer.shaken)
        for mine, its in zip(up, down, strict=True):
            transport.write(mine)
            if its:
                peer.write(its)
            await asyncio.sleep(0)
        await until(lambda: len(peer.received) >= sum(sizes) and len(client.data) >= sum(sizes))
        assert peer.received == b"".join(up)
        assert client.data == b"".join(down)
        transport.close()
        await client.gone()


@on_router_loops
async def test_every_kind_of_buffer_can_be_written(authority: Authority) -> None:
    """Transports take what bytes, a bytearray or a view holds, and keep none of it."""
    context = authority.server_context()
    async with listening(lambda: TlsPeer(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        buffer = bytearray(b"b" * 20_000)
        transport.write(b"a" * 3)
        transport.write(buffer)
        transport.write(memoryview(b"c" * 9_000))
        transport.writelines([b"d", b"e"])
        buffer[:] = b"x" * len(buffer)
        await until(lambda: server.peers[0].received == b"aaa" + b"b" * 20_000 + b"c" * 9_000 + b"de")
        transport.abort()
        await client.gone()


@VERSIONS
@on_router_loops
async def test_writing_to_a_server_that_does_not_read(authority: Authority, version: ssl.TLSVersion) -> None:
    """Back-pressure is told once, at the mark that was set; what is buffered is counted, and all of it arrives."""
    context = authority.server_context(version=version)
    piece = os.urandom(50_000)
    async with listening(lambda: TlsPeer(context), receive_buffer=8192) as server:
        transport, client = await dial(server.port, authority.client_context(), sock=buffered_little())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        peer.transport.pause_reading()
        transport.set_write_buffer_limits(high=64 * 1024)
        assert transport.get_write_buffer_limits()[1] == 64 * 1024
        written = 0
        while "pause" not in client.told:
            transport.write(piece)
            written += 1
            await asyncio.sleep(0)
            assert written < 200
        assert client.told == ["made", "pause"]
        # Encrypted bytes: a little more than they were.
        assert 64 * 1024 < transport.get_write_buffer_size() <= 64 * 1024 + len(piece) * 1.01
        transport.write(piece * 20)
        assert transport.get_write_buffer_size() > len(piece) * 20
        peer.transport.resume_reading()
        await until(lambda: len(peer.received) >= (written + 20) * len(piece))
        assert peer.received == piece * (written + 20)
        await until(lambda: "resume" in client.told)
        assert client.told == ["made", "pause", "resume"]
        assert transport.get_write_buffer_size() == 0
        transport.close()
        await client.gone()


@on_router_loops
async def test_what_is_written_while_writing_stays_behind(authority: Authority) -> None:
    """A protocol that writes from ``pause_writing`` gets its bytes behind those that filled the buffer.

    A large write went down piece by piece, and the one from ``pause_writing`` came to lie between two of them.
    """
    context = authority.server_context()
    async with listening(lambda: TlsPeer(context), receive_buffer=8192) as server:
        transport, client = await dial(server.port, authority.client_context(), sock=buffered_little())
        client.on_pause = lambda: transport.write(b"!")
        transport.write(b"a" * 2 * MIB)
        await until(lambda: len(server.peers[0].received) > 2 * MIB)
        assert client.told == ["made", "pause", "resume"]
        assert server.peers[0].received == b"a" * 2 * MIB + b"!"
        transport.abort()
        await client.gone()


@VERSIONS
@on_router_loops
async def test_reading_that_is_paused(authority: Authority, version: ssl.TLSVersion) -> None:
    """After ``pause_reading`` nothing is handed on, the server is held up, and ``resume_reading`` brings the rest."""
    context = authority.server_context(version=version)
    sent = os.urandom(8 * MIB)
    async with listening(lambda: TlsPeer(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        peer.write(b"first")
        await until(lambda: client.data == b"first")
        assert transport.is_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        peer.write(sent)
        # More than the kernel takes: the rest stays with the server.
        assert peer.transport.get_write_buffer_size() > 0
        left: list[int] = []

        def still() -> bool:
            left.append(peer.transport.get_write_buffer_size())
            return left[-40:] == [left[-1]] * 40

        await until(still, every_s=0.005)
        assert left[-1] > 0
        assert client.data == b"first"
        transport.resume_reading()
        await until(lambda: len(client.data) >= len(sent) + 5)
        assert client.data == b"first" + sent
        transport.abort()
        await client.gone()


# --- handshakes that fail -----------------------------------------------------------------------


def plain_answer() -> asyncio.Protocol:
    """A server that speaks HTTP where TLS is expected."""

    class Plain(asyncio.Protocol):
        transport: Any = None

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    return Plain()


class Mute(asyncio.Protocol):
    """A server that answers nothing, or ends the connection in some way as soon as it is spoken to."""

    def __init__(self, end: str = "") -> None:
        self.end = end
        self.gone = False
        self.spoken_to = asyncio.Event()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.spoken_to.set()
        if self.end == "reset":
            reset(self.transport)
        elif self.end == "FIN":
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.gone = True


FAILURES: dict[str, tuple[type[Exception], str]] = {
    "unknown authority": (ssl.SSLCertVerificationError, "unable to get local issuer"),
    "wrong name": (ssl.SSLCertVerificationError, "match"),
    "expired": (ssl.SSLCertVerificationError, "expired"),
    "no TLS": (ssl.SSLError, "WRONG_VERSION_NUMBER|wrong version number|RECORD_LAYER"),
    "too old": (ssl.SSLError, "(?i)alert.protocol.version"),
    "FIN": (ConnectionResetError, "handshake"),
    "reset": (ConnectionResetError, "reset"),
}


@pytest.mark.parametrize("failure", sorted(FAILURES))
@on_router_loops
async def test_a_handshake_that_fails(authority: Authority, tmp_path: Path, failure: str) -> None:
    """Each failure is raised as it is, once; the protocol hears nothing, and no socket and no transport is left behind."""
    other = Authority(tmp_path / "other", "Somebody else")
    context = authority.client_context()
    make: Callable[[], asyncio.Protocol]
    if failure == "no TLS":
        make = plain_answer
    elif failure in ("FIN", "reset"):
        make = partial(Mute, failure)
    else:
        name = "elsewhere.example" if failure == "wrong name" else "localhost"
        tls = (other if failure == "unknown authority" else authority).server_context(
            name, expired=failure == "expired", version=TLS_1_2 if failure == "too old" else None
        )
        if failure == "too old":
            context.minimum_version = TLS_1_3
        make = partial(TlsPeer, tls)
    kind, words = FAILURES[failure]
    heard: list[Recorder] = []

    def protocol() -> Recorder:
        heard.append(Recorder())
        return heard[-1]

    async with listening(make) as server:
        with no_collector():
            with pytest.raises(kind, match=words) as raised:
                await asyncio.get_running_loop().create_connection(
                    protocol, "127.0.0.1", server.port, ssl=context, server_hostname="localhost"
                )
            assert type(raised.value) is kind
            del raised
            (peer,) = server.peers
            if isinstance(peer, TlsPeer) and failure != "too old":  # there the server says why
                # It is told why (RFC 8446 §6.2), and does not just see the connection end.
                await until(lambda: peer.error is not None or peer.gone)
                assert peer.error is not None and "ALERT" in str(peer.error).upper().replace(" ", "_")
                await until(lambda: peer.eof or peer.gone)
            await freed()
        assert [one.told for one in heard] == [[]]


@pytest.mark.parametrize("end", ["cancelled", "time"])
@on_router_loops
async def test_a_server_that_never_answers(authority: Authority, end: str) -> None:
    """A dial that is given up in the handshake ends its connection and leaves nothing behind."""
    async with listening(Mute) as server:
        with no_collector():
            dialling = asyncio.create_task(dial(server.port, authority.client_context()))
            await until(lambda: len(server.peers) == 1)
            await server.peers[0].spoken_to.wait()
            if end == "cancelled":
                dialling.cancel()
                await asyncio.wait([dialling])
                assert dialling.cancelled()
            else:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await dialling
            del dialling
            await until(lambda: server.peers[0].gone)
            await freed()


@on_router_loops
async def test_a_context_that_can_speak_nothing(authority: Authority) -> None:
    """A handshake that fails at its first step, inside of ``connection_made``, fails like any other."""
    context = authority.client_context()
    context.minimum_version, context.maximum_version = TLS_1_3, TLS_1_2
    async with listening(Mute) as server:
        with pytest.raises(ssl.SSLError, match=r"(?i)no.protocols"):
            await dial(server.port, context)
        await until(lambda: server.peers[0].gone)


@pytest.mark.parametrize("name", ["", ".example"])
@on_router_loops
async def test_a_host_name_that_cannot_be_one(authority: Authority, name: str) -> None:
    """Without a name nothing would be checked: the dial's address takes its place, or nothing is connected."""
    context = authority.server_context()
    async with listening(lambda: TlsPeer(context)) as server:
        if name:
            with pytest.raises(ValueError):
                await dial(server.port, authority.client_context(), name=name)
            assert not server.peers
        else:
            transport, client = await dial(server.port, authority.client_context(), name=name)
            assert transport.get_extra_info("ssl_object").server_hostname == "127.0.0.1"
            transport.abort()
            await client.gone()


@on_router_loops
async def test_a_client_certificate_that_is_missing(authority: Authority) -> None:
    """In TLS 1.3 a server says so after the handshake: the connection is lost by that alert, and not without a reason."""
    context = authority.server_context(version=TLS_1_3, asks=True)
    async with listening(lambda: TlsPeer(context)) as server:
        _, client = await dial(server.port, authority.client_context())
        await client.gone()
        assert client.told == ["made", "lost"]
        assert isinstance(client.lost_by, ssl.SSLError)
        assert client.lost_by.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"


# --- ends ---------------------------------------------------------------------------------------


@VERSIONS
@on_router_loops
async def test_close_notify(authority: Authority, version: ssl.TLSVersion) -> None:
    """What came before it, in the same read even, is handed on first; the server gets one in return."""
    context = authority.server_context(version=version)
    last = os.urandom(30_000)
    async with listening(lambda: TlsPeer(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        peer.write(last, notify=True)
        await client.gone()
        assert client.told == ["made", "data", "eof", "lost"]
        assert client.data == last
        assert client.lost_by is None
        await until(lambda: peer.eof)
        assert peer.notified
        assert transport.is_closing()


@on_router_loops
async def test_what_follows_close_notify_is_nothing(authority: Authority, tmp_path: Path) -> None:
    """Data behind it, or a second one, in the same read: the end is told once, and no data after it."""
    context = forging_context(authority, tmp_path)
    async with listening(lambda: Forger(context)) as server:
        _, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        notify = [peer.seal(23, b"good"), peer.seal(21, b"\1\0"), peer.seal(21, b"\1\0"), peer.seal(23, b"bad" * 4000)]
        peer.transport.write(b"".join(notify))
        await client.gone()
        assert client.data == b"good"
        assert client.told == ["made", "data", "eof", "lost"]


@VERSIONS
@on_router_loops
async def test_an_end_without_close_notify(authority: Authority, version: ssl.TLSVersion) -> None:
    """FIN alone is an end as well: told once, behind what came, and what is written then is dropped in silence."""
    context = authority.server_context(version=version)
    async with listening(lambda: TlsPeer(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        peer.write(b"last")
        peer.transport.write_eof()
        await client.gone()
        assert client.told == ["made", "data", "eof", "lost"]
        assert client.data == b"last"
        assert client.lost_by is None
        for _ in range(10):
            transport.write(b"too late")
        transport.close()
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        assert transport.is_closing()
        await asyncio.sleep(0)
        assert client.told[-1] == "lost" and client.told.count("lost") == 1


@on_router_loops
async def test_a_reset(authority: Authority) -> None:
    """RST is told with its exception."""
    context = authority.server_context()
    async with listening(lambda: TlsPeer(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        peer.write(b"good")
        await until(lambda: client.data == b"good")
        peer.reset()
        await client.gone()
        assert client.told == ["made", "data", "lost"]
        assert isinstance(client.lost_by, ConnectionResetError)
        transport.write(b"too late")


@pytest.mark.parametrize("size", [10, 16_000])
@on_router_loops
async def test_a_record_that_was_tampered_with(authority: Authority, tmp_path: Path, size: int) -> None:
    """What stood before it, in the same read even, is good; nothing behind it is, and the loss is no orderly end.

    The loss had no exception, as if the server had closed the connection.
    """
    context = forging_context(authority, tmp_path)
    good, bad = os.urandom(size), bytearray()
    async with listening(lambda: Forger(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        first, second, third = (peer.seal(23, data) for data in (good, b"x" * size, b"y" * size))
        bad += second
        bad[-20] ^= 1
        peer.transport.write(first + bad + third)
        await client.gone()
        assert client.told == ["made", "data", "lost"]
        assert client.data == good
        assert isinstance(client.lost_by, ssl.SSLError)
        assert "BAD_RECORD_MAC" in str(client.lost_by)
        await until(lambda: peer.error is not None)
        assert "BAD_RECORD_MAC" in str(peer.error).upper().replace(" ", "_")
        transport.write(b"too late")


@on_router_loops
async def test_a_fatal_alert(authority: Authority, tmp_path: Path) -> None:
    """An alert in the middle of a session is its end, behind the data before it."""
    context = forging_context(authority, tmp_path)
    async with listening(lambda: Forger(context)) as server:
        _, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        peer.transport.write(peer.seal(23, b"good") + peer.seal(21, bytes([2, 80])))
        await client.gone()
        assert client.data == b"good"
        assert isinstance(client.lost_by, ssl.SSLError)
        assert client.lost_by.reason == "TLSV1_ALERT_INTERNAL_ERROR"


@VERSIONS
@on_router_loops
async def test_our_own_end(authority: Authority, version: ssl.TLSVersion) -> None:
    """With megabytes in the buffer ``close`` sends them all, then ``close_notify``, then ends; what comes later is dropped."""
    context = authority.server_context(version=version)
    sent = os.urandom(4 * MIB)
    async with listening(lambda: TlsPeer(context), receive_buffer=8192) as server:
        transport, client = await dial(server.port, authority.client_context(), sock=buffered_little())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        if version is TLS_1_3:
            # What the kernel has and nobody read makes a RST of any close.
            tls = transport.get_extra_info("ssl_object")
            await until(lambda: tls.session is not None and tls.session.has_ticket)
        peer.transport.pause_reading()
        transport.write(sent)
        assert transport.get_write_buffer_size() > MIB
        transport.close()
        transport.close()
        transport.write(b"too late")
        assert transport.is_closing() and not client.lost.is_set()
        peer.transport.resume_reading()
        await client.gone()
        await until(lambda: peer.eof)
        assert peer.received == sent
        assert peer.notified
        assert client.told == ["made", "pause", "resume", "lost"]
        assert client.lost_by is None


@on_router_loops
async def test_nothing_is_handed_on_after_our_end(authority: Authority) -> None:
    """A server that speaks on after our ``close`` is not heard, and does not delay it."""
    context = authority.server_context()
    async with listening(lambda: TlsPeer(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        peer.write(b"unheard")
        transport.close()
        await client.gone()
        assert client.told == ["made", "lost"]
        assert not client.data


@on_router_loops
async def test_abort(authority: Authority) -> None:
    """``abort`` loses what is buffered, and tells the loss once, later and not from inside of the call."""
    context = authority.server_context()
    async with listening(lambda: TlsPeer(context), receive_buffer=8192) as server:
        transport, client = await dial(server.port, authority.client_context(), sock=buffered_little())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        peer.transport.pause_reading()
        transport.write(bytes(4 * MIB))
        transport.abort()
        transport.abort()
        transport.close()
        assert "lost" not in client.told
        await client.gone()
        assert client.told.count("lost") == 1
        peer.transport.resume_reading()
        await until(lambda: peer.eof or peer.gone)
        assert len(peer.received) < 4 * MIB and not peer.notified


@pytest.mark.parametrize("end", ["close", "abort", "close_notify", "FIN", "reset", "tampered"])
@on_router_loops
async def test_nothing_of_a_connection_waits_for_the_collector(authority: Authority, tmp_path: Path, end: str) -> None:
    """After its end a transport is free when its last user lets it go: the router's collector runs seldom."""
    context = forging_context(authority, tmp_path)
    async with listening(lambda: Forger(context)) as server:
        with no_collector():
            transport, client = await dial(server.port, authority.client_context())
            # As a leg does it, which holds its transport.
            client.transport = transport  # type: ignore[attr-defined]
            gone = weakref.ref(transport.get_extra_info("ssl_object"))
            (peer,) = server.peers
            await until(lambda: peer.shaken)
            if end in ("close", "abort"):
                getattr(transport, end)()
            elif end == "close_notify":
                peer.write(b"", notify=True)
            elif end == "FIN":
                peer.transport.write_eof()
            elif end == "reset":
                peer.reset()
            else:
                peer.transport.write(bytes([23, 3, 3, 0, 40]) + bytes(40))
            await client.gone()
            assert len(transports()) == 1
            del transport, client
            await freed()
            assert gone() is None


# --- in the middle of a session -----------------------------------------------------------------


@on_router_loops
async def test_tickets(authority: Authority) -> None:
    """Those of TLS 1.3 come behind the handshake, and hand nothing on; data in the same read is."""
    context = authority.server_context(version=TLS_1_3)
    async with listening(lambda: TlsPeer(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        tls = transport.get_extra_info("ssl_object")
        await until(lambda: tls.session is not None and tls.session.has_ticket)
        assert client.told == ["made"]
        transport.abort()
        await client.gone()


@pytest.mark.parametrize("asks", [False, True], ids=["its own", "both"])
@on_router_loops
async def test_new_keys(authority: Authority, tmp_path: Path, asks: bool) -> None:
    """A server may change its keys at any time, and ask for ours to change: both directions go on, in order."""
    context = forging_context(authority, tmp_path)
    async with listening(lambda: Forger(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        for turn in range(3):
            before, after = bytes([turn]) * 9000, bytes([turn + 10]) * 9000
            peer.transport.write(peer.seal(23, before) + peer.key_update(asks=asks) + peer.seal(23, after))
            await came(client.data, 18_000 * (turn + 1))
            assert client.data[-18000:] == before + after
            transport.write(before)
            await came(peer.received, 9_000 * (turn + 1))
            assert peer.received[-9000:] == before
        # Alone in a read, it is no data.
        peer.transport.write(peer.key_update(asks=asks))
        peer.write(b"end")
        await until(lambda: client.data.endswith(b"end"))
        assert len(client.data) == 3 * 18000 + 3 and client.told == ["made", "data"]
        transport.close()
        await until(lambda: peer.notified)


@on_router_loops
async def test_a_message_between_records_holds_writing_up(authority: Authority, tmp_path: Path) -> None:
    """A ticket that is longer than a record: OpenSSL writes nothing before it has all of it, so what is written waits, in order.

    What waited was not counted and paused nobody: a server that never sends the rest could let a client's audio pile up here.
    """
    context = forging_context(authority, tmp_path)
    async with listening(lambda: Forger(context)) as server:
        transport, client = await dial(server.port, authority.client_context())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        ticket = peer.ticket()
        peer.transport.write(peer.seal(23, b"before") + peer.seal(22, ticket[:100]))
        await until(lambda: client.data == b"before")
        written = [b"", b"1" * 5, b"2" * (3 * PIECE_BYTES + 1), b"3"]
        for data in written:
            transport.write(data)
        expected = b"".join(written)
        assert client.told[-1] == "pause" and client.told.count("pause") == 1
        assert transport.get_write_buffer_size() == len(expected)
        assert not peer.received
        peer.transport.write(peer.seal(22, ticket[100:]) + peer.seal(23, b" after"))
        await until(lambda: client.data == b"before after" and len(peer.received) >= len(expected))
        assert peer.received == expected
        assert [word for word in client.told if word in ("pause", "resume")] == ["pause", "resume"]
        assert transport.get_write_buffer_size() == 0
        # In the middle of another one the connection may end.
        peer.transport.write(peer.seal(22, ticket[:100]) + peer.seal(23, b""))
        transport.write(b"lost")
        transport.close()
        await client.gone()


@on_router_loops
async def test_answers_that_nobody_reads(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that asks for new keys again and again, and reads none of the answers, is cut off when too many wait for it.

    Each request of 27 bytes is answered by as many, which no back-pressure stopped.
    """
    monkeypatch.setattr(tlstransport, "ANSWERS_BYTES", 128 * 1024)
    context = forging_context(authority, tmp_path)
    async with listening(lambda: Forger(context), receive_buffer=4096) as server:
        transport, client = await dial(server.port, authority.client_context(), sock=buffered_little())
        (peer,) = server.peers
        await until(lambda: peer.shaken)
        peer.transport.pause_reading()
        most = 0
        for _ in range(400):
            peer.transport.write(b"".join(peer.key_update(asks=True) for _ in range(50)))
            await asyncio.sleep(0)
            most = max(most, transport.get_write_buffer_size())
            if client.lost.is_set():
                break
        await client.gone()
        assert isinstance(client.lost_by, ssl.SSLError)
        assert "asks for answers" in str(client.lost_by)
        assert 64 * 1024 < most < 256 * 1024


@on_router_loops
async def test_another_handshake_is_refused(authority: Authority) -> None:
    """TLS 1.2 knows requests for one in the middle of a session: they are declined; there is no such state of the transport."""
    program = require("openssl")
    pair = authority.issue()
    server = await asyncio.create_subprocess_exec(
        *(program, "s_server", "-accept", "127.0.0.1:0", "-tls1_2", "-naccept", "1"),
        *("-cert", str(pair.certificate), "-key", str(pair.key)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert server.stdin is not None and server.stdout is not None
    said = bytearray()

    async def printed(words: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while words not in said:
                assert server.stdout is not None
                chunk = await server.stdout.read(4096)
                assert chunk, bytes(said)
                said.extend(chunk)

    try:
        await printed(b"ACCEPT 127.0.0.1:")
        await printed(b"\n")
        port = re.search(rb"ACCEPT 127.0.0.1:(\d+)\n", said)
        assert port is not None
        transport, client = await dial(int(port[1]), authority.client_context())
        # A command of its own: ask for another handshake.
        server.stdin.write(b"r\n")
        await printed(b"no renegotiation")
        # OpenSSL's server does not put up with that.
        await client.gone()
        assert isinstance(client.lost_by, ssl.SSLError)
        assert transport.is_closing()
    finally:
        if server.returncode is None:
            server.kill()
        await server.communicate()


# --- being a transport --------------------------------------------------------------------------


@on_router_loops
async def test_what_it_tells_of_itself(authority: Authority) -> None:
    """The names that asyncio's TLS transports know, and those of the socket below."""
    context = authority.client_context()
    server_context = authority.server_context()
    async with listening(lambda: TlsPeer(server_context)) as server:
        transport, client = await dial(server.port, context)
        assert isinstance(transport, TlsTransport)
        tell = transport.get_extra_info
        assert isinstance(tell("ssl_object"), ssl.SSLObject)
        assert tell("ssl_object").selected_alpn_protocol() is None
        assert tell("sslcontext") is context
        assert tell("peercert")["subject"] == ((("commonName", "localhost"),),)
        assert tell("cipher")[1] == "TLSv1.3"
        assert tell("peername") == ("127.0.0.1", server.port)
        assert tell("socket").getpeername() == ("127.0.0.1", server.port)
        assert tell("nonsense", "default") == "default"
        assert transport.get_protocol() is client
        assert not transport.can_write_eof()
        other = Recorder()
        other.told.append("")
        transport.set_protocol(other)
        await until(lambda: server.peers[0].shaken)
        server.peers[0].write(b"for the other")
        await until(lambda: other.data == b"for the other")
        transport.abort()
        await other.gone()
        assert client.told == ["made"]


@on_router_loops
async def test_a_protocol_that_fails(authority: Authority) -> None:
    """An exception in ``data_received`` ends the connection as on any transport: reported to the loop, told as its loss."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    context = authority.server_context()

    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("no")

    async with listening(lambda: TlsPeer(context)) as server:
        _, client = await asyncio.get_running_loop().create_connection(
            Failing, "127.0.0.1", server.port, ssl=authority.client_context(), server_hostname="localhost"
        )
        await until(lambda: server.peers[0].shaken)
        server.peers[0].write(b"x")
        await client.gone()
        assert isinstance(client.lost_by, RuntimeError)
        assert len(complaints) == 1


# --- memory -------------------------------------------------------------------------------------

_CONNECTIONS = 60
_MEMORY = """
import asyncio, gc, sys
from pathlib import Path
from router.tls import resuming_context
from tests.helpers.tls import OWN_LOOPS, ROUTER_LOOPS

def memory():
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

class Reader(asyncio.Protocol):
    def __init__(self):
        self.left, self.done = 65536, asyncio.Event()
    def data_received(self, data):
        self.left -= len(data)
        if not self.left:
            self.done.set()

async def main(port, ca_file, count):
    context = resuming_context()
    context.load_verify_locations(ca_file)
    kept = []
    async def one():
        made = await asyncio.get_running_loop().create_connection(
            Reader, "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        await made[1].done.wait()
        kept.append(made)
    for _ in range(3):
        await one()
    before = memory()
    for _ in range(count):
        await one()
    print((memory() - before) / count)
    for transport, _ in kept:
        transport.abort()

kind, base, port, ca_file, count = sys.argv[1:]
with asyncio.Runner(loop_factory=(ROUTER_LOOPS if kind == "router" else OWN_LOOPS)[base]) as runner:
    runner.run(main(int(port), ca_file, int(count)))
"""


@on_router_loops
async def test_a_connection_that_waits_holds_little(authority: Authority) -> None:
    """Connections that have read 64 KiB once keep no buffers of that; the event loops' own TLS does, as the control shows."""
    require("procfs")
    context = authority.server_context()
    base = "uvloop" if "uvloop" in type(asyncio.get_running_loop()).__mro__[1].__module__ else "asyncio"

    class Generous(TlsPeer):
        def data_received(self, data: bytes) -> None:
            was, _ = self.shaken, super().data_received(data)
            if self.shaken and not was:
                self.write(bytes(65536))

    async def measured(kind: str) -> float:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _MEMORY, kind, base, str(server.port), str(authority.ca_file), str(_CONNECTIONS)),
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 4 * PATIENCE_S)
        assert process.returncode == 0
        return float(out)

    async with listening(lambda: Generous(context)) as server:
        ours, own = await measured("router"), await measured("own")
    assert ours < 60, f"{ours:.0f} KiB each"
    assert own > ours + 30, f"the loop's own: {own:.0f} KiB each, ours: {ours:.0f}"


def test_the_context_is_collectable(authority: Authority) -> None:
    """A context that is not used any more goes, with the sessions that it knew."""
    context = authority.client_context()
    gone = weakref.ref(context)
    assert isinstance(context, ResumingContext)
    del context
    gc.collect()
    assert gone() is None
