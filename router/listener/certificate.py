"""The certificate of ``listen``: PEM files → a server's context, made anew when the files change.

Certificates live for weeks and are replaced under the same names, by programs that write one file after the other. So the files
are looked at when connections come, at most once a second; while what is found cannot be used, the certificate before goes on
serving, and the log says once why. Connections that run keep the context that they began with.

The context hands out session tickets, whose keys are its own. Processes that are forked with it share them, and a client may
resume at any of them.
"""

from __future__ import annotations

import os
import ssl
import stat
import time
from collections.abc import Callable
from typing import Final

from router.config.settings import ListenTlsSettings
from router.events import Event, Notice
from router.tls import Stamp, stamp_of

#: Seconds between two looks at the files.
LOOK_AGAIN_S: Final = 1.0
# Chains and keys are some KiB; a wrong file may be anything.
_MOST_BYTES: Final = 1024 * 1024
# OpenSSL's words for a key that is not the certificate's; the last one when it is of another kind.
_MISMATCH: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
_PLACE: Final = "general_settings.tls"


class UnfitCertificate(OSError):
    """The files cannot be used. An ``OSError``, for whoever starts to listen it is one like an address that cannot be had.

    Attributes:
        key: of the configuration: ``cert_file`` or ``key_file``.
        found, expected: for messages.
    """

    def __init__(self, key: str, found: str, expected: str) -> None:
        super().__init__(f"{_PLACE}.{key}: found {found}, expected {expected}")
        self.key = key
        self.found = found
        self.expected = expected


def server_context(tls: ListenTlsSettings) -> ssl.SSLContext:
    """Read the files and return a context for connections that clients open.

    Raises:
        UnfitCertificate: a file is missing, cannot be read, is no PEM, or the key is another one's.
    """
    certificate = _read("cert_file", tls.cert_file, "a readable file with a certificate in PEM")
    if b"-----BEGIN CERTIFICATE-----" not in certificate:
        raise UnfitCertificate("cert_file", f"no certificate in {tls.cert_file!r}", "one in PEM")
    key = certificate
    where, file = "cert_file", tls.cert_file
    if tls.key_file is not None:
        where, file = "key_file", tls.key_file
        key = _read("key_file", file, "a readable file with a key in PEM")
    if b"PRIVATE KEY-----" not in key:
        also = "" if tls.key_file is not None else ", or key_file: FILE"
        raise UnfitCertificate(where, f"no key in {file!r}", f"one in PEM, not encrypted{also}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A WebSocket is opened by HTTP/1.1.
    context.set_alpn_protocols(["http/1.1"])
    # A handshake in the middle of a session costs the server much and the client nothing.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, password=_no_password)
    except _Encrypted:
        raise UnfitCertificate(where, f"an encrypted key in {file!r}", "one that is not encrypted") from None
    except ssl.SSLError as error:
        if error.reason in _MISMATCH:
            raise UnfitCertificate(where, f"a key in {file!r} that is another certificate's", "the certificate's own") from None
        # OpenSSL does not say which of the files it means.
        if not _is_readable(certificate):
            where, file = "cert_file", tls.cert_file
        reason = (error.reason or "unusable content").lower().replace("_", " ")
        raise UnfitCertificate(where, f"{file!r} that cannot be used ({reason})", "a certificate and its key in PEM") from None
    except (OSError, ValueError) as error:  # replaced at this very moment
        raise UnfitCertificate(where, f"{file!r} that cannot be used ({error})", "a certificate and its key in PEM") from None
    return context


def _read(key: str, file: str, expected: str) -> bytes:
    try:
        # To open a pipe is to wait for whoever writes to it.
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise UnfitCertificate(key, f"{file!r} that is no regular file", expected)
        with open(file, "rb") as opened:
            return opened.read(_MOST_BYTES)
    except UnfitCertificate:
        raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnfitCertificate(key, f"{file!r} that cannot be read ({why.lower()})", expected) from None


def _is_readable(certificate: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificate.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        return False
    return True


class _Encrypted(ValueError):
    """The key asks for a password."""


def _no_password() -> str:
    # Without a callback OpenSSL asks on the terminal, and the whole process waits for an answer.
    raise _Encrypted


class Certificate:
    """The context for new connections, as the files are now.

    Args:
        tell: gets what there is to log.
        known: another one, what it has read is taken over.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        tell: Callable[[Event], None],
        *,
        known: Certificate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._asked: ListenTlsSettings | None = None  # at the last look
        self._look_at = 0.0
        self._context: ssl.SSLContext | None = None  # in force
        self._of: tuple[ListenTlsSettings, tuple[Stamp, ...]] | None = None  # what it was made of
        self._complaint = ""  # of the last look; empty: it found nothing to complain of
        if known is not None:
            self._asked, self._context, self._of = known._asked, known._context, known._of
            self._look_at, self._complaint = known._look_at, known._complaint

    def context(self, tls: ListenTlsSettings) -> ssl.SSLContext:
        """Return the context for a connection that has just come.

        Args:
            tls: of the generation in force.

        Raises:
            UnfitCertificate: the files cannot be used, and never could.
        """
        now = self._clock()
        if self._context is not None and tls == self._asked and now < self._look_at:
            return self._context
        self._asked = tls
        self._look_at = now + LOOK_AGAIN_S
        # Before they are read: what is written meanwhile is seen at the next look.
        of = (tls, (stamp_of(tls.cert_file), stamp_of(tls.key_file)))
        if self._context is not None and of == self._of:
            self._complaint = ""
            return self._context
        try:
            context = server_context(tls)
        except UnfitCertificate as error:
            if self._context is None:
                raise
            self._complain(str(error))
            return self._context
        if self._context is not None:
            self._tell(Notice(level="info", event="certificate read again", facts={"file": tls.cert_file}))
        self._context, self._of, self._complaint = context, of, ""
        return context

    def _complain(self, problem: str) -> None:
        if problem != self._complaint:
            self._complaint = problem
            facts = {"problem": problem, "meanwhile": "the certificate before goes on serving"}
            self._tell(Notice(level="error", event="certificate not read", facts=facts))
