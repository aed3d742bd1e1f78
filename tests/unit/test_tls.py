"""TLS contexts: what is checked, what is shared, and what is said when a file cannot be used."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from router.errors import ConnectFailed
from router.tls import TlsContexts
from tests.unit.providers.helpers import deployment


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
