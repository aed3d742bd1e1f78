"""The headers of a dial.

Three sources, each winning over the one before whatever the case of the names: what the provider needs, what the client may
pass on, and the deployment's ``extra_headers``. The handshake's own headers belong to whoever dials and are set by nobody here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from router._version import __version__
from router.errors import ConnectFailed

if TYPE_CHECKING:
    from router.config.settings import DeploymentSettings

USER_AGENT = f"realtime-router/{__version__}"

# RFC 9110 section 7.6.1 and the framing of a message; they concern one connection, not the request.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def is_handshake_header(name: str) -> bool:
    """Whether a header (name in lower case) belongs to the connection or to the WebSocket handshake alone."""
    return name in HOP_BY_HOP or name.startswith("sec-websocket-")


def header_name_problem(name: str) -> str | None:
    """Return what is wrong with a name in ``extra_headers``, or ``None``. For the check of a configuration."""
    if _TOKEN.fullmatch(name) is None:
        return "found a character that is not allowed, expected an HTTP header name such as X-Team"
    if is_handshake_header(name.lower()):
        return "found a header of the connection or the WebSocket handshake, expected one that describes the request"
    return None


def bearer(deployment: DeploymentSettings) -> dict[str, str]:
    """Return ``Authorization: Bearer`` with the deployment's key, nothing when it has none."""
    if deployment.api_key is None:
        return {}
    return {"Authorization": f"Bearer {credential(deployment.api_key.reveal(), source='api_key')}"}


def credential(value: str, *, source: str) -> str:
    """Return a key or token as it may stand in a header; keys read from files often end in a line break.

    Args:
        value: the secret.
        source: the setting it came from, for the message.

    Raises:
        ConnectFailed: it is empty or holds a control character.
    """
    value = value.strip()
    if not value:
        raise ConnectFailed(f"{source}: found an empty value, expected a key")
    if _CONTROL.search(value):
        raise ConnectFailed(f"{source}: found a control character within the value, expected a key on one line")
    return value


def build_headers(
    deployment: DeploymentSettings,
    own: Mapping[str, str],
    forwarded: Mapping[str, str],
    *,
    never: Iterable[str] = (),
    never_forwarded_prefix: str | None = None,
) -> dict[str, str]:
    """Merge the three sources; of names that differ in case only the last one stays.

    Args:
        deployment: for its ``extra_headers``.
        own: what the provider needs.
        forwarded: the client's part, names in lower case.
        never: names in lower case that must not be sent, whoever asked for them.
        never_forwarded_prefix: a client's headers that start with this stay behind.

    Raises:
        ConnectFailed: a name or a value cannot be sent.
    """
    merged: dict[str, tuple[str, str]] = {"user-agent": ("User-Agent", USER_AGENT)}
    for name, value in own.items():
        merged[name.lower()] = (name, value)
    for name, value in forwarded.items():
        if never_forwarded_prefix is None or not name.startswith(never_forwarded_prefix):
            merged[name.lower()] = (name, value)
    for name, secret in deployment.extra_headers.items():
        merged[name.lower()] = (name, secret.reveal().strip())

    refused = frozenset(never)
    headers: dict[str, str] = {}
    for lower, (name, value) in merged.items():
        if lower in refused or is_handshake_header(lower):
            continue
        if _TOKEN.fullmatch(name) is None or _CONTROL.search(value):
            raise ConnectFailed(f"header {name[:64]!a}: found a character that is not allowed in its name or value")
        headers[name] = value
    return headers
