"""From an ``api_base`` as people write it to the URL of a dial.

People paste what their other tools take: with ``https`` or ``wss``, with or without ``/v1``, a whole endpoint with its query. All
of these mean the same server here. A message never repeats an ``api_base``: its query may hold a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_plus, urlsplit

from router.errors import ConnectFailed

_SCHEMES: Mapping[str, str] = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
ENDPOINT = "/realtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A checked ``api_base``.

    Attributes:
        scheme: ``ws`` or ``wss``.
        authority: host, and port where one was given.
        path: without a slash at its end; empty when there was none.
        query: as written, without the question mark.
    """

    scheme: str
    authority: str
    path: str
    query: str = field(repr=False)


def api_base_problem(api_base: str) -> str | None:
    """Return what is wrong with an ``api_base`` as "found …, expected …", or ``None`` when it can be dialled."""
    # ``urlsplit`` drops tabs and line breaks silently; a URL with one was not meant.
    if not api_base.isascii() or any(character <= " " or character == "\x7f" for character in api_base):
        return "found a space, a control or a non-ASCII character, expected a URL such as wss://HOST/v1 (others as %XX)"
    try:
        parts = urlsplit(api_base)
        port = parts.port
    except ValueError:
        return "found a host or port that cannot be read, expected a URL such as wss://HOST:8000/v1"
    if parts.scheme.lower() not in _SCHEMES:
        return "found no known scheme, expected a URL that starts with wss://, https://, ws:// or http://"
    if not parts.hostname:
        return "found no host, expected a URL such as wss://HOST/v1"
    if port == 0:
        return "found port 0, expected 1 to 65535"
    if parts.username is not None or parts.password is not None:
        return "found a user or password before the host, expected none (use api_key or extra_headers)"
    if parts.fragment:
        return "found a fragment ('#…'), expected none (RFC 6455 section 3)"
    return None


def split_base(api_base: str) -> Base:
    """Parse an ``api_base``; ``http`` becomes ``ws`` and ``https`` ``wss``.

    Raises:
        ConnectFailed: it cannot be dialled.
    """
    api_base = api_base.strip()
    problem = api_base_problem(api_base)
    if problem is not None:
        raise ConnectFailed(f"api_base: {problem}")
    parts = urlsplit(api_base)
    return Base(scheme=_SCHEMES[parts.scheme.lower()], authority=parts.netloc, path=parts.path.rstrip("/"), query=parts.query)


def with_endpoint(path: str, *, when_empty: str = ENDPOINT) -> str:
    """Append ``/realtime`` to a base's path unless it is there already.

    Args:
        path: without a slash at its end.
        when_empty: the whole path for a base that has none.
    """
    if not path:
        return when_empty
    return path if path.endswith(ENDPOINT) else path + ENDPOINT


def build_url(
    base: Base, path: str, *, computed: Sequence[tuple[str, str]], forwarded: Mapping[str, str], extra: Mapping[str, str]
) -> str:
    """Put a dial's URL together, each parameter at most once unless the base repeats it.

    The operator's word wins: ``extra`` (from ``extra_query``) over the base's own query, that over what the provider computes,
    and that over what the client sent.
    """
    kept = [pair for pair in base.query.split("&") if pair and _name(pair) not in extra]
    taken = {_name(pair) for pair in kept} | extra.keys()
    pairs = list(kept)
    for name, value in (*computed, *forwarded.items()):
        if name in taken:
            continue
        taken.add(name)
        pairs.append(_pair(name, value))
    pairs.extend(_pair(name, value) for name, value in extra.items())
    query = "&".join(pairs)
    return f"{base.scheme}://{base.authority}{path}" + (f"?{query}" if query else "")


def base_parameter(base: Base, name: str) -> str | None:
    """Return the first value that the base's own query gives to ``name``."""
    for pair in base.query.split("&"):
        if pair and _name(pair) == name:
            return unquote_plus(pair.partition("=")[2])
    return None


def _name(pair: str) -> str:
    return unquote_plus(pair.partition("=")[0])


def _pair(name: str, value: str) -> str:
    # ':' and '/' are legal in a query (RFC 3986 section 3.4) and URL libraries restore them, so escaping them would only make
    # the URL that is logged differ from the one that is sent. Unpaired surrogates have no UTF-8 form.
    return f"{quote(name, safe='', errors='replace')}={quote(value, safe=':/', errors='replace')}"
