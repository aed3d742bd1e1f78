"""TLS contexts: what is checked, what is shared, what is said when a file cannot be used, and which sessions are resumed."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from router.errors import ConnectFailed
from router.tls import VERIFIED_FOR_S, ResumingContext, TlsContexts, dialling, remember_session
from tests.helpers.clock import ManualClock
from tests.helpers.running import until
from tests.helpers.tls import (
    OWN_LOOPS,
    TLS_1_2,
    TLS_1_3,
    Authority,
    Listening,
    TlsPeer,
    dial,
    listening,
    on_router_loops,
    run_on,
)
from tests.unit.providers.helpers import deployment

VERSIONS = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])


def write_pair(folder: Path, name: str, *, password: bytes | None = None) -> tuple[str, str]:
    """Write a self-signed authority's certificate and its key, and return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    cert_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return str(cert_path), str(key_path)


def context_of(**settings: object) -> ssl.SSLContext:
    """Return the context of a deployment with these settings, from contexts of its own."""
    context = TlsContexts().ssl_context(deployment("openai", **settings))
    assert context is not None
    return context


def test_the_peer_is_always_checked() -> None:
    """A certificate is required, it must name the host, and nothing older than TLS 1.2 is spoken."""
    context = context_of()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("api_base", "tls"),
    [
        (None, True),
        ("https://h", True),
        ("wss://h", True),
        ("http://h", False),
        ("ws://h", False),
        (" HTTP://h", False),
        ("WSS://h", True),
    ],
)
def test_without_tls(api_base: str | None, tls: bool) -> None:
    """A base without TLS needs no context."""
    assert (TlsContexts().ssl_context(deployment("openai", api_base=api_base)) is not None) is tls


def test_equal_settings_share_one(tmp_path: Path) -> None:
    """Deployments share a context when authority and client certificate are the same, and only then."""
    ca, _ = write_pair(tmp_path, "ca")
    contexts = TlsContexts()
    plain = contexts.ssl_context(deployment("openai", id="a"))
    assert plain is contexts.ssl_context(deployment("xai", id="b", tls_server_name="other"))
    private = contexts.ssl_context(deployment("openai", ca_file=ca))
    assert private is not plain
    assert private is contexts.ssl_context(deployment("openai", ca_file=ca))


def test_a_private_authority_takes_the_place_of_the_systems(tmp_path: Path) -> None:
    """With a CA file nobody else is trusted."""
    ca, _ = write_pair(tmp_path, "ca")
    subjects = [certificate["subject"] for certificate in context_of(ca_file=ca).get_ca_certs()]
    assert subjects == [((("commonName", "ca"),),)]


def test_a_client_certificate(tmp_path: Path) -> None:
    """A certificate works with its key in another file, and with both in one."""
    cert, key = write_pair(tmp_path, "client")
    both = tmp_path / "both.pem"
    both.write_bytes(Path(cert).read_bytes() + Path(key).read_bytes())
    context_of(client_cert=cert, client_key=key)
    context_of(client_cert=str(both))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Each message names the setting, the file, what was found and what is expected; no prompt waits on the terminal."""
    cert, key = write_pair(tmp_path, "a")
    _, other_key = write_pair(tmp_path, "b")
    _, locked = write_pair(tmp_path, "locked", password=b"hunter2")
    missing, junk = str(tmp_path / "missing"), tmp_path / "junk"
    junk.write_text("no certificate")
    cases: list[tuple[dict[str, object], str]] = [
        ({"ca_file": missing}, r"ca_file .*missing.*no such file.*expected"),
        ({"ca_file": str(junk)}, r"ca_file .*junk.*found .*expected"),
        ({"ca_file": key}, r"ca_file .*found .*expected"),
        ({"ca_file": str(tmp_path)}, r"ca_file .*found .*expected"),
        ({"ca_file": "a\0b"}, r"ca_file .*found .*expected"),
        ({"client_cert": missing}, r"client_cert .*missing.*no such file.*expected"),
        ({"client_cert": cert}, r"client_cert .*found .*expected"),
        ({"client_cert": cert, "client_key": other_key}, r"client_key .*mismatch.*expected"),
        ({"client_cert": cert, "client_key": locked}, r"client_key .*encrypted.*expected"),
    ]
    for settings, words in cases:
        with pytest.raises(ConnectFailed, match=words):
            context_of(**settings)


def test_files_that_change(tmp_path: Path) -> None:
    """A renewed certificate is used at the next dial, and one that does not fit yet leaves the old one serving."""
    cert, key = write_pair(tmp_path, "client")
    contexts = TlsContexts()
    settings = deployment("openai", client_cert=cert, client_key=key)
    first = contexts.ssl_context(settings)
    (tmp_path / "new").mkdir()
    new_cert, new_key = write_pair(tmp_path / "new", "client")
    os.replace(new_cert, cert)
    assert contexts.ssl_context(settings) is first
    os.replace(new_key, key)
    second = contexts.ssl_context(settings)
    assert second is not first
    assert contexts.ssl_context(settings) is second


# --- resumption ---------------------------------------------------------------------------------


async def session(server: Listening, context: ResumingContext, *, name: str = "localhost", address: str = "one") -> bool:
    """Connect as a dial does, read a little, let the session be remembered, and end it; return whether it was resumed.

    Raises: ssl.SSLError: the certificate was looked at, and not accepted.
    """
    dialling(address, 443)
    transport, client = await dial(server.port, context, name=name)
    peer = server.peers[-1]
    await until(lambda: peer.shaken)
    peer.write(b"x")
    await until(lambda: client.data == b"x")
    connection = transport.get_extra_info("ssl_object")
    remember_session(connection)
    transport.abort()
    await client.gone()
    # Both ends agree.
    assert connection.session_reused == peer.ssl.session_reused
    return bool(connection.session_reused)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for the tests of this module."""
    return Authority(tmp_path_factory.mktemp("authority"))


@VERSIONS
@on_router_loops
async def test_the_second_connection_resumes(authority: Authority, version: ssl.TLSVersion) -> None:
    """Only the first one of an address, a host name and a context has a full handshake."""
    tls, context = authority.server_context(version=version), authority.client_context()
    async with listening(lambda: TlsPeer(tls)) as server:
        assert [await session(server, context) for _ in range(4)] == [False, True, True, True]
        # The same server all along, which would take the session: whose it is decides.
        assert not await session(server, context, address="two")
        assert not await session(server, context, name="127.0.0.1")
        assert not await session(server, authority.client_context())
        assert await session(server, context, address="two")
        assert await session(server, context, name="127.0.0.1")


@pytest.mark.parametrize("loop", sorted(OWN_LOOPS))
def test_resumption_is_the_contexts_own(authority: Authority, loop: str) -> None:
    """The event loops' own TLS, which a program that brings its loop has, resumes as well."""

    async def main() -> list[bool]:
        tls, context = authority.server_context(), authority.client_context()
        async with listening(lambda: TlsPeer(tls)) as server:
            return [await session(server, context) for _ in range(3)]

    assert run_on(OWN_LOOPS[loop], main) == [False, True, True]


@VERSIONS
@on_router_loops
async def test_the_certificate_is_looked_at_again(authority: Authority, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """However often a session is renewed, an hour after the certificate was looked at it is again, and may be refused then."""
    clock = ManualClock()
    tls, context = authority.server_context(version=version), authority.client_context(clock=clock)
    async with listening(lambda: TlsPeer(tls)) as server:
        assert not await session(server, context)
        pair = Authority(tmp_path / "other", "Somebody else").issue()
        # The tickets' keys stay: the server goes on taking them.
        tls.load_cert_chain(pair.certificate, pair.key)
        for _ in range(5):
            clock.advance(VERIFIED_FOR_S / 5 - 1)
            assert await session(server, context)
        clock.advance(5)
        with pytest.raises(ssl.SSLCertVerificationError):
            await session(server, context)
        # A failure is not forgotten into success either.
        with pytest.raises(ssl.SSLCertVerificationError):
            await session(server, context)
        trusted = authority.issue()
        tls.load_cert_chain(trusted.certificate, trusted.key)
        assert not await session(server, context)
        assert await session(server, context)


@on_router_loops
async def test_a_look_counts_for_its_own_line_of_sessions(authority: Authority, tmp_path: Path) -> None:
    """A connection that resumed before another one's certificate was looked at does not share in that look.

    Whichever was told of last took the time of the last look, and so a session could outlive its hour.
    """
    clock = ManualClock()
    tls, context = authority.server_context(version=TLS_1_3), authority.client_context(clock=clock)
    async with listening(lambda: TlsPeer(tls)) as server:
        assert not await session(server, context)
        clock.advance(VERIFIED_FOR_S - 1)
        dialling("one", 443)
        slow, client = await dial(server.port, context)
        late = slow.get_extra_info("ssl_object")
        assert late.session_reused
        clock.advance(2)
        assert not await session(server, context)
        await until(lambda: late.session.has_ticket)
        # Due for renewal, so that the slow one's session takes the place of the newer one.
        clock.advance(VERIFIED_FOR_S * 0.6)
        remember_session(late)
        slow.abort()
        await client.gone()
        assert not await session(server, context)


@VERSIONS
@on_router_loops
async def test_a_server_that_starts_anew(authority: Authority, version: ssl.TLSVersion) -> None:
    """With other keys for its tickets it refuses once; its new ones are taken from then on."""
    current, context = authority.server_context(version=version), authority.client_context()
    async with listening(lambda: TlsPeer(current)) as server:
        for _ in range(3):
            assert [await session(server, context) for _ in range(3)] == [False, True, True]
            current = authority.server_context(version=version)


def offered_ticket(hello: bytes) -> bytes | None:
    """The ticket that a ClientHello offers (RFC 8446 §4.2.11)."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at] + 2
    while at < len(hello):
        kind, size = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
        at += 4
        if kind == 41:
            return hello[at + 4 : at + 4 + int.from_bytes(hello[at + 2 : at + 4], "big")]
        at += size
    return None


@on_router_loops
async def test_a_server_that_takes_a_ticket_only_once(authority: Authority) -> None:
    """Its refusals teach to keep each newest ticket: they become rarer and rarer.

    They came at every fifth connection, for ever.
    """
    current, taken = authority.server_context(version=TLS_1_3), set[bytes]()

    class Once(TlsPeer):
        def data_received(self, data: bytes) -> None:
            nonlocal current
            ticket = offered_ticket(data) if data[0] == 22 and data[5] == 1 else None
            if ticket in taken:
                # What was given out so far is void, this one included.
                current = authority.server_context(version=TLS_1_3)
                self.begin(current)
            elif ticket is not None:
                taken.add(ticket)
            super().data_received(data)

    context = authority.client_context()
    async with listening(lambda: Once(current)) as server:
        resumed = [await session(server, context) for _ in range(70)]
    refused = [index for index, was in enumerate(resumed) if not was]
    # The first connection, then the ones that taught.
    assert refused[0] == 0 and 2 <= len(refused) <= 6
    gaps = [late - early for early, late in itertools.pairwise(refused[1:])]
    assert gaps == sorted(gaps) and gaps[-1] > 10


@on_router_loops
async def test_a_look_is_no_refusal(authority: Authority) -> None:
    """A full handshake that was our own wish does not count against a server: its session is still kept for half an hour.

    Each hour's look counted as a refusal, so that after some days every connection had its session copied.
    """
    clock = ManualClock()
    tls, context = authority.server_context(version=TLS_1_3), authority.client_context(clock=clock)
    async with listening(lambda: TlsPeer(tls)) as server:
        for _ in range(5):
            assert not await session(server, context)
            kept = context._known["one:443", "localhost"].session
            assert await session(server, context)
            assert context._known["one:443", "localhost"].session is kept
            clock.advance(VERIFIED_FOR_S)


@on_router_loops
async def test_a_server_without_tickets(authority: Authority) -> None:
    """Without one there is nothing to remember, and every connection has its full handshake."""
    tls, context = authority.server_context(version=TLS_1_3), authority.client_context()
    tls.num_tickets = 0
    async with listening(lambda: TlsPeer(tls)) as server:
        assert [await session(server, context) for _ in range(3)] == [False, False, False]
        assert not context._known


def test_files_that_change_take_their_sessions_along(tmp_path: Path) -> None:
    """After another authority file nothing is resumed: the certificate is looked at with the new one."""
    first, second = Authority(tmp_path / "first"), Authority(tmp_path / "second")
    contexts, path = TlsContexts(), tmp_path / "ca.pem"
    path.write_bytes(first.ca_file.read_bytes())
    settings = deployment("openai", ca_file=str(path))

    async def main() -> None:
        tls = first.server_context()
        async with listening(lambda: TlsPeer(tls)) as server:
            old = contexts.ssl_context(settings)
            assert isinstance(old, ResumingContext)
            assert [await session(server, old) for _ in range(2)] == [False, True]
            path.write_bytes(second.ca_file.read_bytes() + b"\n")
            new = contexts.ssl_context(settings)
            assert isinstance(new, ResumingContext) and new is not old
            with pytest.raises(ssl.SSLCertVerificationError):
                await session(server, new)

    asyncio.run(main())
