"""The certificate of ``listen``: what is refused and how it is said, and what becomes of files that change."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from router.config.settings import ListenTlsSettings
from router.events import Event, Notice
from router.listener.certificate import LOOK_AGAIN_S, Certificate, UnfitCertificate, server_context
from tests.helpers.clock import ManualClock
from tests.helpers.tls import Authority, Pair


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Issues all certificates here."""
    return Authority(tmp_path_factory.mktemp("authority"))


def copied(pair: Pair, folder: Path) -> ListenTlsSettings:
    """Put a certificate and its key where a router looks for them."""
    for source, name in ((pair.certificate, "server.pem"), (pair.key, "server.key")):
        # As tools do it: a new file takes the place of the old one.
        new = folder / f"{name}.new"
        new.write_bytes(source.read_bytes())
        new.replace(folder / name)
    return ListenTlsSettings(cert_file=str(folder / "server.pem"), key_file=str(folder / "server.key"))


def name_of(context: ssl.SSLContext, authority: Authority) -> str:
    """The host that a context's certificate is for, as a client sees it."""
    client = ssl.create_default_context(cafile=str(authority.ca_file))
    client.check_hostname = False
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), context.wrap_bio(to_server, to_client, server_side=True))
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate: Any = ends[0].getpeercert()
    return str(certificate["subject"][0][0][1])


# --- one look ------------------------------------------------------------------------------------


def test_a_context_for_clients(authority: Authority, tmp_path: Path) -> None:
    """TLS 1.2 at least, and no handshake in the middle of a session; the key may stand in the certificate's file."""
    tls = copied(authority.issue("one.example"), tmp_path)
    context = server_context(tls)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert name_of(context, authority) == "one.example"
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "server.key").read_bytes() + (tmp_path / "server.pem").read_bytes())
    assert name_of(server_context(ListenTlsSettings(cert_file=str(both))), authority) == "one.example"


def test_only_http_1_1_is_agreed_on(authority: Authority, tmp_path: Path) -> None:
    """A client that offers HTTP/2 first is not given it."""
    context = server_context(copied(authority.issue(), tmp_path))
    client = authority.client_context()
    client.set_alpn_protocols(["h2", "http/1.1"])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server, False, "localhost"), context.wrap_bio(to_server, to_client, server_side=True))
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].selected_alpn_protocol() == ends[1].selected_alpn_protocol() == "http/1.1"


def without_certificate(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    os.unlink(tls.cert_file)
    return tls


def without_key(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    return replace(tls, key_file=tls.cert_file + ".none")


def a_folder(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    return replace(tls, cert_file=os.path.dirname(tls.cert_file))


def a_pipe(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    os.mkfifo(tls.cert_file + ".pipe")
    return replace(tls, key_file=tls.cert_file + ".pipe")


def a_key_alone(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    return ListenTlsSettings(cert_file=str(tls.key_file))


def a_certificate_alone(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    return replace(tls, key_file=None)


def swapped(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    return ListenTlsSettings(cert_file=str(tls.key_file), key_file=tls.cert_file)


def anothers_key(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    return replace(tls, key_file=str(authority.issue().key))


def another_kind_of_key(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    return replace(tls, key_file=_rsa_key(tls, serialization.NoEncryption()))


def an_encrypted_key(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    return replace(tls, key_file=_rsa_key(tls, serialization.BestAvailableEncryption(b"password")))


def _rsa_key(tls: ListenTlsSettings, how: serialization.KeySerializationEncryption) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = Path(tls.cert_file + ".rsa")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
    return str(path)


def a_cut_certificate(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    path = Path(tls.cert_file)
    path.write_bytes(path.read_bytes()[:-120])
    return tls


def an_empty_file(tls: ListenTlsSettings, authority: Authority) -> ListenTlsSettings:
    Path(tls.cert_file).write_bytes(b"")
    return tls


UNFIT: list[tuple[Callable[[ListenTlsSettings, Authority], ListenTlsSettings], str, str]] = [
    (without_certificate, "cert_file", "no such file"),
    (without_key, "key_file", "no such file"),
    (a_folder, "cert_file", "no regular file"),
    (a_pipe, "key_file", "no regular file"),
    (a_key_alone, "cert_file", "no certificate in"),
    (a_certificate_alone, "cert_file", "no key in"),
    (swapped, "cert_file", "no certificate in"),
    (anothers_key, "key_file", "another certificate's"),
    (another_kind_of_key, "key_file", "another certificate's"),
    (an_encrypted_key, "key_file", "an encrypted key"),
    (a_cut_certificate, "cert_file", "cannot be used"),
    (an_empty_file, "cert_file", "no certificate in"),
]


@pytest.mark.parametrize(("spoil", "key", "found"), UNFIT)
def test_unfit_files_are_told_by_place_found_and_expected(
    authority: Authority,
    tmp_path: Path,
    spoil: Callable[[ListenTlsSettings, Authority], ListenTlsSettings],
    key: str,
    found: str,
) -> None:
    """Each way to be wrong names the setting, the file and what was expected; nothing of a key is in it."""
    tls = spoil(copied(authority.issue(), tmp_path), authority)
    with pytest.raises(UnfitCertificate) as caught:
        server_context(tls)
    text = str(caught.value)
    assert caught.value.key == key and found in text, text
    assert text.startswith(f"general_settings.tls.{key}: found ") and ", expected " in text
    assert "BEGIN" not in text and "password" not in text


# --- files that change ---------------------------------------------------------------------------


class Watched:
    """A certificate with its clock, and what it told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.told: list[Notice] = []
        self.certificate = Certificate(self._take, clock=self.clock)

    def _take(self, event: Event) -> None:
        assert isinstance(event, Notice)
        self.told.append(event)

    def later(self, tls: ListenTlsSettings) -> ssl.SSLContext:
        """The context for a connection that comes when the files are looked at again."""
        self.clock.advance(LOOK_AGAIN_S)
        return self.certificate.context(tls)


def test_a_new_certificate_is_shown_to_new_connections(authority: Authority, tmp_path: Path) -> None:
    """Files are looked at no more than once a second; unchanged ones keep the context, and with it the keys of its tickets."""
    watched = Watched()
    tls = copied(authority.issue("one.example"), tmp_path)
    first = watched.certificate.context(tls)
    assert watched.later(tls) is first
    copied(authority.issue("two.example"), tmp_path)
    assert watched.certificate.context(tls) is first
    second = watched.later(tls)
    assert [name_of(first, authority), name_of(second, authority)] == ["one.example", "two.example"]
    assert [notice.event for notice in watched.told] == ["certificate read again"]


def test_a_broken_new_certificate_keeps_the_old_one_and_says_so_once(authority: Authority, tmp_path: Path) -> None:
    """However often connections come, one line tells; another problem gets another line, and a good file ends it."""
    watched = Watched()
    tls = copied(authority.issue("one.example"), tmp_path)
    first = watched.certificate.context(tls)
    # A tool that writes the certificate first: for a while the key is the old one.
    second = authority.issue("two.example")
    Path(tls.cert_file).write_bytes(second.certificate.read_bytes())
    for _ in range(5):
        assert watched.later(tls) is first
    assert [notice.event for notice in watched.told] == ["certificate not read"]
    problem = watched.told[0].facts["problem"]
    assert "general_settings.tls.key_file: found " in problem and "expected the certificate's own" in problem
    Path(str(tls.key_file)).unlink()
    for _ in range(5):
        assert watched.later(tls) is first
    assert len(watched.told) == 2 and "no such file" in watched.told[1].facts["problem"]
    copied(second, tmp_path)
    assert name_of(watched.later(tls), authority) == "two.example"
    assert [notice.event for notice in watched.told[2:]] == ["certificate read again"]


def test_files_that_are_the_old_ones_again_are_no_change(authority: Authority, tmp_path: Path) -> None:
    """A rename there and back costs no tickets, and the same problem later is told again."""
    watched = Watched()
    tls = copied(authority.issue(), tmp_path)
    first = watched.certificate.context(tls)
    for _ in range(2):
        os.rename(tls.cert_file, tls.cert_file + ".away")
        assert watched.later(tls) is first
        os.rename(tls.cert_file + ".away", tls.cert_file)
        assert watched.later(tls) is first
    assert [notice.event for notice in watched.told] == ["certificate not read"] * 2


def test_other_names_are_looked_at_at_once(authority: Authority, tmp_path: Path) -> None:
    """A new generation of the configuration may name other files; unfit ones are not read for each connection."""
    watched = Watched()
    tls = copied(authority.issue("one.example"), tmp_path)
    first = watched.certificate.context(tls)
    other = authority.issue("two.example")
    named = ListenTlsSettings(cert_file=str(other.certificate), key_file=str(other.key))
    assert name_of(watched.certificate.context(named), authority) == "two.example"
    missing = replace(tls, cert_file=tls.cert_file + ".none")
    for _ in range(3):
        assert name_of(watched.certificate.context(missing), authority) == "two.example"
    Path(missing.cert_file).write_bytes(Path(tls.cert_file).read_bytes())
    assert name_of(watched.certificate.context(missing), authority) == "two.example"
    renewed = watched.later(missing)
    assert renewed is not first and name_of(renewed, authority) == "one.example"


def test_without_any_certificate_there_is_no_context(tmp_path: Path) -> None:
    """At the start there is none before to go on with."""
    watched = Watched()
    tls = ListenTlsSettings(cert_file=str(tmp_path / "none.pem"))
    for _ in range(2):
        with pytest.raises(UnfitCertificate):
            watched.certificate.context(tls)
    assert not watched.told


def test_what_another_one_has_read_is_taken_over(authority: Authority, tmp_path: Path) -> None:
    """A process that was forked goes on with the context that it was born with, even if the files are gone meanwhile."""
    watched = Watched()
    tls = copied(authority.issue(), tmp_path)
    first = watched.certificate.context(tls)
    told: list[Event] = []
    heir = Certificate(told.append, known=watched.certificate, clock=watched.clock)
    os.unlink(tls.cert_file)
    assert heir.context(tls) is first
    watched.clock.advance(LOOK_AGAIN_S)
    assert heir.context(tls) is first
    assert len(told) == 1 and not watched.told
