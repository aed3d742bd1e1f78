"""TLS peers for the router's own transport: an authority made for the test, and servers that may end, stall or lie as they like.

A ``TlsPeer`` is the server's end, with OpenSSL and without the event loop's TLS, so that it can tell ``close_notify`` from the
end of the stream. A ``Forger`` encrypts its records itself: key updates, split messages, records that were tampered with.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import inspect
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from router.eventloop import loop_class
from router.tls import ResumingContext, resuming_context
from router.tlstransport import TlsTransport

# Far beyond what anything here takes; only a fault reaches it.
PATIENCE_S: Final = 15.0
HOST: Final = "localhost"
TLS_1_2: Final = ssl.TLSVersion.TLSv1_2
TLS_1_3: Final = ssl.TLSVersion.TLSv1_3

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
# The router's loop on either base: uvloop is not made for every platform.
ROUTER_LOOPS: Final[dict[str, LoopFactory]] = {
    "asyncio": loop_class(asyncio.SelectorEventLoop),
    "uvloop": loop_class(uvloop.Loop),
}
# The bases as they are, with TLS of their own.
OWN_LOOPS: Final[dict[str, LoopFactory]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

T = TypeVar("T")


def run_on(factory: LoopFactory, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to its end on a loop of its own; what the loop has to complain about, or a task that is left, fails the test."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        result = await main()
        left = asyncio.all_tasks() - {cast(asyncio.Task[Any], asyncio.current_task())}
        assert not left, f"tasks are left: {left}"
        # Connections end by a callback or two.
        for _ in range(5):
            await asyncio.sleep(0)
        return result

    with asyncio.Runner(loop_factory=factory) as runner:
        result = runner.run(watched())
        # "exception was never retrieved" is said when the future goes.
        gc.collect()
    assert not complaints, complaints
    return result


def on_router_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test on the router's loop, on either base. It may take fixtures that are not asynchronous."""

    def run(loop: str, **given: Any) -> None:
        run_on(ROUTER_LOOPS[loop], lambda: test(**given))

    # Not ``functools.wraps``: pytest would take it for asynchronous, and see no parameter ``loop``.
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    loop = inspect.Parameter("loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([loop, *inspect.signature(test).parameters.values()])  # type: ignore[attr-defined]
    for mark in getattr(test, "pytestmark", []):
        run = pytest.mark.__getattr__(mark.name)(*mark.args, **mark.kwargs)(run)
    return cast(Callable[..., None], pytest.mark.parametrize("loop", sorted(ROUTER_LOOPS))(run))


def reset(transport: asyncio.Transport) -> None:
    """End a connection by RST."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def transports() -> list[TlsTransport]:
    """Those that live; a test that looks at them keeps the collector still meanwhile (``no_collector``)."""
    return [thing for thing in gc.get_objects() if type(thing) is TlsTransport]


@contextlib.contextmanager
def no_collector() -> Any:
    """What is in a circle stays, and can be found."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# --- certificates -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, files in PEM."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates.

    Args:
        folder: for its files.
        name: its subject.

    Attributes:
        ca_file: its own certificate, in PEM.
    """

    def __init__(self, folder: Path, name: str = "Test authority") -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._count = 0
        own = self._builder(self._name, self._key.public_key(), expired=False)
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        own = own.add_extension(_usage(signs_certificates=True), critical=True)
        own = own.add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str = HOST, *, expired: bool = False) -> Pair:
        """Make a certificate for a host, or a client.

        Args:
            name: its subject and its one DNS name; the loopback's address is in it as well.
            expired: yesterday.
        """
        self._count += 1
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key(), expired=expired)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        pair = Pair(self._folder / f"{self._count}.pem", self._folder / f"{self._count}.key")
        pair.certificate.write_bytes(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def server_context(
        self, name: str = HOST, *, version: ssl.TLSVersion | None = None, expired: bool = False, asks: bool = False
    ) -> ssl.SSLContext:
        """A server's context with a new certificate, and new keys for its tickets.

        Args:
            name: the host's.
            version: the only one; TLS 1.2 and 1.3 unless given.
            expired: its certificate.
            asks: for a client's certificate of this authority.
        """
        pair = self.issue(name, expired=expired)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        context.set_alpn_protocols(["http/1.1"])
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca_file)
        return context

    def client_context(self, **how: Any) -> ResumingContext:
        """The router's kind of context, which trusts this authority; ``how`` is ``resuming_context``'s."""
        context = resuming_context(**how)
        context.load_verify_locations(self.ca_file)
        return context

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, expired: bool) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * day)
            .not_valid_after(now - day if expired else now + day)
        )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# --- the client's end ---------------------------------------------------------------------------


class Recorder(asyncio.Protocol):
    """What a transport tells its protocol, in order.

    Attributes:
        told: ``made``, ``data``, ``eof``, ``pause``, ``resume``, ``lost``; consecutive ``data`` once.
        data: that came.
        lost_by: what ``connection_lost`` was given.
        on_pause: called by ``pause_writing``.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.data = bytearray()
        self.lost_by: BaseException | None = None
        self.on_pause: Callable[[], None] | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        if self.told[-1] != "data":
            self.told.append("data")

    def eof_received(self) -> None:
        self.told.append("eof")

    def pause_writing(self) -> None:
        self.told.append("pause")
        if self.on_pause is not None:
            self.on_pause()

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.told.append("lost")
        self.lost_by = exc
        self.lost.set()

    async def gone(self) -> None:
        """Wait for the connection's end."""
        async with asyncio.timeout(PATIENCE_S):
            await self.lost.wait()


async def dial(
    port: int, context: ssl.SSLContext, *, name: str = HOST, sock: socket.socket | None = None
) -> tuple[asyncio.Transport, Recorder]:
    """Connect to the loopback by TLS, as the running loop does it."""
    where: dict[str, Any] = {"host": "127.0.0.1", "port": port}
    if sock is not None:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        where = {"sock": sock}
    async with asyncio.timeout(PATIENCE_S):
        transport, recorder = await asyncio.get_running_loop().create_connection(
            Recorder, ssl=context, server_hostname=name, **where
        )
    return transport, recorder


def buffered_little() -> socket.socket:
    """A socket for ``dial`` whose sending the kernel buffers little of."""
    sock = socket.socket(proto=socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sock.setblocking(False)
    return sock


# --- the server's end ---------------------------------------------------------------------------


class TlsPeer(asyncio.Protocol):
    """A server's end of a connection, by OpenSSL over the plain transport.

    Attributes:
        received: what the client sent.
        notified: its ``close_notify`` came.
        eof: its direction of the TCP connection ended.
        gone: the connection is.
        error: of OpenSSL, which ended the connection.
        shaken: the handshake is done.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.received = bytearray()
        self.notified = self.eof = self.gone = self.shaken = False
        self.error: ssl.SSLError | None = None
        self.transport: Any = None
        self.begin(context)

    def begin(self, context: ssl.SSLContext) -> None:
        """Begin the handshake, or begin it anew before the first byte was looked at."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        try:
            if not self.shaken:
                self.ssl.do_handshake()
                self.shaken = True
            while part := self.ssl.read(64 * 1024):
                self.received += part
            self.notified = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # after ours
            self.notified = True
        except ssl.SSLError as error:
            self.error = error
        self.flush()

    def eof_received(self) -> bool:
        self.eof = True
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        self.gone = True

    def flush(self) -> None:
        """Send what OpenSSL has to say."""
        self.transport.write(self._outgoing.read())

    def write(self, data: bytes, *, notify: bool = False) -> None:
        """Send, and say ``close_notify`` in the same write."""
        self.ssl.write(data)
        if notify:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.ssl.unwrap()
        self.flush()

    def reset(self) -> None:
        """End the connection by RST."""
        reset(self.transport)


class Forger(TlsPeer):
    """A TLS 1.3 server that encrypts what it sends after the handshake itself (RFC 8446 §5.2, §7).

    Its context: ``forging_context``. OpenSSL goes on reading what the client sends; nothing is sent by it any more.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context)
        self._secret = b""
        self._sequence = 0
        self._keylog = Path(context.keylog_filename)

    def flush(self) -> None:
        """Send OpenSSL's part of the handshake; nothing of it later, for it knows nothing of the keys in use."""
        if not self._secret:
            super().flush()
        if self.shaken and not self._secret:
            assert self.ssl.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
            lines = [line.split() for line in self._keylog.read_text().splitlines()]
            self._secret = bytes.fromhex(next(line[2] for line in reversed(lines) if line[0] == "SERVER_TRAFFIC_SECRET_0"))

    def write(self, data: bytes, *, notify: bool = False) -> None:
        """Send, in one record each."""
        self.transport.write(self.seal(23, data) + (self.seal(21, b"\1\0") if notify else b""))

    def seal(self, kind: int, content: bytes) -> bytes:
        """Encrypt a record.

        Args:
            kind: 21 alert, 22 handshake, 23 data.
            content: at most 16 KiB.
        """
        key, iv = self._expand(b"key", 32), self._expand(b"iv", 12)
        nonce = bytes(a ^ b for a, b in zip(iv, self._sequence.to_bytes(12, "big"), strict=True))
        self._sequence += 1
        head = b"\x17\3\3" + (len(content) + 17).to_bytes(2, "big")
        return head + AESGCM(key).encrypt(nonce, content + bytes([kind]), head)

    def key_update(self, *, asks: bool) -> bytes:
        """A record that announces new keys, which are used from then on (RFC 8446 §4.6.3)."""
        record = self.seal(22, b"\x18\0\0\1" + bytes([asks]))
        self._secret, self._sequence = self._expand(b"traffic upd", 48), 0
        return record

    def ticket(self, size: int = 300) -> bytes:
        """A ``NewSessionTicket``, to be sealed whole or in parts (RFC 8446 §4.6.1)."""
        body = struct.pack(">II", 7200, 1) + b"\1\0" + struct.pack(">H", size) + bytes(size) + b"\0\0"
        return b"\4" + len(body).to_bytes(3, "big") + body

    def _expand(self, label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack(">H", size) + bytes([len(label)]) + label + b"\0"
        return HKDFExpand(hashes.SHA384(), size, info).derive(self._secret)


def forging_context(authority: Authority, folder: Path) -> ssl.SSLContext:
    """For ``Forger``: TLS 1.3, no tickets of OpenSSL's own, secrets in a file."""
    context = authority.server_context(version=TLS_1_3)
    context.num_tickets = 0
    context.keylog_filename = str(folder / "secrets")
    return context


class Listening:
    """A server and the connections that it accepted.

    Attributes:
        port: on the loopback.
        peers: oldest first.
    """

    def __init__(self) -> None:
        self.port = 0
        self.peers: list[Any] = []


@asynccontextmanager
async def listening(
    make: Callable[[], asyncio.Protocol], *, receive_buffer: int | None = None
) -> AsyncIterator[Listening]:
    """Listen on the loopback until the block ends; what is open then is cut.

    Args:
        make: the protocol of a connection.
        receive_buffer: SO_RCVBUF.
    """
    server = Listening()

    def accept() -> asyncio.Protocol:
        peer = make()
        server.peers.append(peer)
        return peer

    # asyncio switches Nagle's algorithm off only where the socket says what it speaks.
    sock = socket.socket(proto=socket.IPPROTO_TCP)
    if receive_buffer is not None:
        # Inherited by what is accepted.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.bind(("127.0.0.1", 0))
    listener = await asyncio.get_running_loop().create_server(accept, sock=sock)
    server.port = sock.getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for peer in server.peers:
            if peer.transport is not None:
                peer.transport.abort()
        await listener.wait_closed()


# --- between the two ----------------------------------------------------------------------------


@asynccontextmanager
async def shim(port: int, cut: Callable[[], int]) -> AsyncIterator[int]:
    """A port that leads to another one, and cuts the streams into segments.

    Args:
        port: where it leads, on the loopback.
        cut: how long the next segment is.
    """
    pumps: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(64 * 1024):
                at = 0
                while at < len(data):
                    size = cut()
                    writer.write(data[at : at + size])
                    at += size
                    await writer.drain()
                    # A turn for whoever reads them, so that they do not become one again.
                    await asyncio.sleep(0)
            if writer.can_write_eof():
                writer.write_eof()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", port)
        for one in (writer, onward):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            writers.append(one)
        pumps.update(asyncio.create_task(pump(*way)) for way in ((reader, onward), (onward_reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        if pumps:
            await asyncio.wait(pumps)
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()
