"""TLS towards the upstreams: one context for each combination of authority and client certificate.

A context costs some 20 ms to make (it reads all of the system's authorities) and is where session resumption lives, so
deployments with equal settings share one. The certificate and the host name are always checked; there is no switch for it.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from router.config.settings import DeploymentSettings
from router.errors import ConnectFailed


@dataclass(frozen=True, slots=True)
class _Key:
    ca_file: str | None
    client_cert: str | None
    client_key: str | None


# What tells that a file was replaced or rewritten: device, inode, modification time in ns, size. None: it cannot be read.
_Stamp = tuple[int, int, int, int] | None


class TlsContexts:
    """The contexts of one dialer.

    Files that change are read again at the next dial, as certificates are short-lived and replaced under the same name. While
    the new ones cannot be used (a certificate without its key yet), the context made before goes on serving.
    """

    def __init__(self) -> None:
        self._contexts: dict[_Key, tuple[tuple[_Stamp, ...], ssl.SSLContext]] = {}

    def ssl_context(self, deployment: DeploymentSettings) -> ssl.SSLContext | None:
        """Return the context for a deployment's dials.

        Returns:
            ``None`` when its ``api_base`` asks for a connection without TLS (``ws://`` or ``http://``).

        Raises:
            ConnectFailed: a file cannot be read or does not fit; the message names the setting and the file.
        """
        if deployment.api_base is not None and deployment.api_base.strip().lower().startswith(("ws:", "http:")):
            return None
        key = _Key(deployment.ca_file, deployment.client_cert, deployment.client_key)
        stamps = tuple(_stamp(path) for path in (key.ca_file, key.client_cert, key.client_key))
        known = self._contexts.get(key)
        if known is not None and known[0] == stamps:
            return known[1]
        try:
            context = _build(key)
        except ConnectFailed:
            if known is None:
                raise
            # The old stamps stay, so that the next dial looks again.
            return known[1]
        self._contexts[key] = (stamps, context)
        return context


def _build(key: _Key) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=key.ca_file)
    except (OSError, ValueError) as exc:
        raise ConnectFailed(f"ca_file {key.ca_file!r}: {_reason(exc, 'PEM certificates')}") from exc
    if key.ca_file is not None and not context.get_ca_certs():
        raise ConnectFailed(f"ca_file {key.ca_file!r}: found no certificate authority, expected PEM certificates of one")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A WebSocket is opened by HTTP/1.1; without this a server may settle on HTTP/2 and answer nothing we understand.
    context.set_alpn_protocols(["http/1.1"])
    if key.client_cert is None:
        return context
    try:
        context.load_cert_chain(key.client_cert, key.client_key, password=_no_password)
    except (OSError, ValueError) as exc:
        files = f"client_cert {key.client_cert!r}"
        if key.client_key is not None:
            files += f" with client_key {key.client_key!r}"
        raise ConnectFailed(f"{files}: {_reason(exc, 'a PEM certificate and its unencrypted key')}") from exc
    return context


def _no_password() -> str:
    # Without a callback OpenSSL asks on the terminal, and the whole process waits for an answer.
    raise ValueError("the key is encrypted")


def _reason(exc: OSError | ValueError, expected: str) -> str:
    # SSLError is an OSError whose errno is OpenSSL's own number.
    if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError) and exc.strerror:
        return f"found {exc.strerror.lower()}, expected a readable file with {expected}"
    if isinstance(exc, ssl.SSLError):
        return f"found {(exc.reason or 'unusable content').replace('_', ' ').lower()}, expected {expected}"
    return f"found {exc}, expected {expected}"


def _stamp(path: str | None) -> _Stamp:
    if path is None:
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
