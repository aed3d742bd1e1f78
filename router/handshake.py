"""The upgrade request → ``Upgrade``: what the client wants, who it says it is, and how it must be answered. No I/O.

Order of the checks in ``parse``: a legal WebSocket upgrade (RFC 6455 §4.2.1) → may this request come here at all (a keyless
router's rules, the origin) → the query. Everything wrong ends in a ``ClientError`` whose text the client may read; what the
client sent stands in it shortened and escaped, and no credential ever does.

Credentials are taken out of the headers, the query and the subprotocols here and travel as ``Secret``, in a field of their
own; what is left may be shown to a strategy and, where it is on the allow-list, to an upstream.
"""

from __future__ import annotations

import binascii
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from router.auth import Principal
from router.config.settings import GroupSettings, Secret, ServerSettings
from router.errors import BadHandshake, ClientError, PermissionDenied, UpgradeRequired
from router.providers.base import Forward
from router.providers.headers import is_handshake_header
from strategies.base import Call

# Where sessions are served; a slash at the end is tolerated. SDKs build each of these from some base URL.
ROUTES: tuple[str, ...] = ("/v1/realtime", "/realtime", "/openai/v1/realtime", "/openai/realtime")

# To be sent with every 426 (RFC 9110 §15.5.22, RFC 6455 §4.4).
UPGRADE_REQUIRED_HEADERS: Mapping[str, str] = MappingProxyType(
    {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
)

Intent = Literal["realtime", "transcription"]

SUBPROTOCOL = "realtime"
_KEY_SUBPROTOCOLS = ("openai-insecure-api-key.", "xai-client-secret.")
_MAX_SUBPROTOCOLS = 32

_MAX_MODEL_CHARS = 256
_MAX_QUERY_CHARS = 8192
_MAX_QUERY_FIELDS = 64
_MAX_HOPS = 64
_SHOWN_CHARS = 80
# Of a value that travels upstream: longer ones make upstreams refuse the whole dial.
_MAX_FORWARDED_CHARS = 512

_QUERY_KEYS = ("api-key", "api_key")
# Beyond the router's own keys: parameters by which other servers take one. A strategy has no business with them.
_QUERY_CREDENTIALS = frozenset({*_QUERY_KEYS, "access_token", "apikey", "client_secret", "key", "password", "token"})
# The provider sets these, the router has consumed them, or they belong to the client's own account.
_QUERY_NEVER_FORWARDED = frozenset({*_QUERY_KEYS, "call_id", "deployment", "model"})
_QUERY_FORWARDED = frozenset({"conversation_id", "intent"})

_HEADER_KEYS = ("api-key", "x-api-key")
_HEADER_CREDENTIALS = frozenset(
    {
        *_HEADER_KEYS,
        "authorization",
        "cookie",
        "cookie2",
        "ocp-apim-subscription-key",
        "proxy-authorization",
        "x-access-token",
        "x-amz-security-token",
        "x-auth-token",
        "x-goog-api-key",
    }
)
# Another account's identifiers would contradict the deployment's key; the beta header kills a GA session.
_HEADER_NEVER_FORWARDED = frozenset({"host", "openai-beta", "openai-organization", "openai-project", "set-cookie"})
_HEADER_FORWARDED = frozenset({"openai-safety-identifier"})

# More than one of these, and two readers of the request may disagree about it.
_SINGLE = (
    "host",
    "origin",
    "authorization",
    "api-key",
    "x-api-key",
    "content-length",
    "sec-websocket-key",
    "sec-websocket-version",
)

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_PROXY_TRACES = frozenset({"forwarded", "via", "x-real-ip"})


# --- values --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """A request line and its headers, as they arrived.

    Attributes:
        method: such as ``GET``.
        path: without the query.
        query: raw, without the question mark. Not in the ``repr``: it may hold a key.
        headers: pairs in order, repeated names as repeated pairs. Not in the ``repr``.
        version: of HTTP, major and minor.
    """

    method: str
    path: str
    query: str = field(default="", repr=False)
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    version: tuple[int, int] = (1, 1)
    # Name in lower case → values, stripped. Two dozen of them are asked for in each request.
    _by_name: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value in self.headers:
            self._by_name.setdefault(name.lower(), []).append(value.strip())

    def values(self, name: str) -> Sequence[str]:
        """Return the values of all headers of this name (in lower case), stripped, in order."""
        return self._by_name.get(name, ())

    def value(self, name: str) -> str | None:
        """Return the first value of a header (name in lower case)."""
        values = self._by_name.get(name)
        return values[0] if values else None

    def items(self, name: str) -> list[str]:
        """Return the elements of a comma-separated list header, over all its occurrences (RFC 9110 §5.6.1)."""
        return [item for value in self.values(name) for part in value.split(",") if (item := part.strip())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """How a client is told that it gets no session.

    Attributes:
        by_close: accept the upgrade, send one ``error`` event and close; otherwise answer with an HTTP status.
        subprotocol: to be answered when accepting. It may be the client's key: never log it.
    """

    by_close: bool
    subprotocol: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """A legal request for a session.

    Attributes:
        path: which of ``ROUTES``.
        model: the group's public name or an alias of it, not resolved yet.
        intent: ``None`` when the client named none.
        client: address of the client, behind trusted proxies the one they report.
        browser: its program cannot read an HTTP status (DESIGN §3.1), as far as can be told.
        origin: the page that opens the socket, if any.
        credentials: everything that may be the router's key, the most telling place first.
        subprotocol: to be answered with the 101, ``None``: none. It may be the client's key: never log it.
        headers: names in lower case, without credentials, cookies and the handshake's own; repeated ones joined by commas.
        query: first value of each parameter, without credentials.
    """

    path: str
    model: str
    intent: Intent | None
    client: str
    browser: bool
    origin: str | None
    credentials: tuple[Secret, ...]
    subprotocol: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    # Parameters that look like credentials and are none of the router's own: an operator may list one in ``forward_query``.
    other_query: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)


# --- the whole -----------------------------------------------------------------------------------


def parse(request: RequestHead, server: ServerSettings, *, peer: str) -> Upgrade:
    """Check an upgrade request and take it apart.

    Args:
        request: as it arrived.
        server: default model, origins, trusted proxies, and whether there are keys.
        peer: address at the other end of the TCP connection.

    Raises:
        UpgradeRequired: no WebSocket upgrade, or not of version 13; answer with ``UPGRADE_REQUIRED_HEADERS``.
        BadHandshake: a malformed upgrade or query.
        PermissionDenied: the origin or, without keys, the way the request came is not allowed.
    """
    check_upgrade(request)
    if server.keyless:
        check_keyless(request, peer=peer)
    check_origin(request, server)

    parameters = _parameters(request.query)
    intent = _intent(parameters)
    model = _model(parameters, default=server.default_model, intent=intent)
    path = without_prefix(request.path, server.root_path).rstrip("/")
    if path not in ROUTES:
        raise BadHandshake(f"No sessions are served at {_shown(request.path)}. Connect to /v1/realtime?model=NAME.")

    origin = request.value("origin")
    query = {name: values[0] for name, values in parameters.items() if name not in _QUERY_CREDENTIALS}
    others = {name: values[0] for name, values in parameters.items() if name in _QUERY_CREDENTIALS and name not in _QUERY_KEYS}
    return Upgrade(
        path=path,
        model=model,
        intent=intent,
        client=client_address(peer, request.headers, server.trusted_proxies),
        browser=is_browser(request),
        origin=None if origin is None else _clean(origin),
        credentials=_credentials(request, parameters),
        subprotocol=answer_subprotocol(request),
        headers=MappingProxyType(_plain_headers(request)),
        query=MappingProxyType(query),
        other_query=MappingProxyType(others),
    )


def credentials(request: RequestHead) -> tuple[Secret, ...]:
    """Return everything in a request that may be the router's key, for the endpoints that are no WebSocket.

    Raises:
        BadHandshake: the query cannot be read.
    """
    return _credentials(request, _parameters(request.query))


def refusal(request: RequestHead, server: ServerSettings) -> Refusal:
    """Tell how to refuse a request, at whatever point it failed.

    A browser's script sees neither status nor body of a failed upgrade, so it is accepted only to be told. An upgrade that is
    not legal cannot be accepted, whoever sent it.
    """
    if server.handshake_errors == "http":
        return Refusal(by_close=False)
    if server.handshake_errors == "auto" and not is_browser(request):
        return Refusal(by_close=False)
    try:
        check_upgrade(request)
    except ClientError:
        return Refusal(by_close=False)
    return Refusal(by_close=True, subprotocol=answer_subprotocol(request))


# --- the upgrade ---------------------------------------------------------------------------------


def check_upgrade(request: RequestHead) -> None:
    """Do nothing when this is a legal WebSocket upgrade.

    Raises:
        UpgradeRequired: it is none, or one of another version.
        BadHandshake: it breaks RFC 6455 §4.2.1 or HTTP.

    Source: RFC 6455 §4.2.1; RFC 9112 §3.2 (one Host) and §6 (no body that could be read as frames).
    """
    if request.method != "GET":
        raise BadHandshake(f"A WebSocket is opened by a GET request, not by {_shown(request.method)}.")
    wants_websocket = "websocket" in (item.lower() for item in request.items("upgrade"))
    if not wants_websocket:
        if request.values("sec-websocket-key"):
            raise UpgradeRequired(
                "The request has WebSocket headers and no 'Upgrade: websocket'. A proxy in between may have removed it: "
                "it must speak HTTP/1.1 and pass Upgrade and Connection on."
            )
        raise UpgradeRequired(
            "This is a WebSocket endpoint: connect with a WebSocket client, such as ws://HOST/v1/realtime?model=NAME."
        )
    if request.version < (1, 1):
        raise BadHandshake(
            "A WebSocket needs HTTP/1.1 and this request is HTTP/1.0. A proxy in between may have rewritten it "
            "(nginx: proxy_http_version 1.1)."
        )
    if "upgrade" not in (item.lower() for item in request.items("connection")):
        raise BadHandshake(
            "The request has no 'Connection: Upgrade'. A proxy in between may have replaced it: it must pass Upgrade and "
            "Connection on."
        )
    for name in _SINGLE:
        if len(request.values(name)) > 1:
            raise BadHandshake(f"The header '{name}' may occur once only.")
    # Not for CR, LF and NUL alone (RFC 9110 §5.5): a forwarded header that no upstream can be sent would look like their fault.
    if _CONTROL.search(" ".join([value for _, value in request.headers])):
        raise BadHandshake("A header has a control character in its value.")
    if not request.value("host"):
        raise BadHandshake("The header 'Host' is missing.")
    if request.value("content-length") not in (None, "0") or request.values("transfer-encoding"):
        raise BadHandshake("A WebSocket upgrade has no body: Content-Length and Transfer-Encoding are not allowed.")
    version = request.value("sec-websocket-version")
    if version != "13":
        found = "none" if version is None else _shown(version)
        raise UpgradeRequired(f"The header 'Sec-WebSocket-Version' must be 13, found {found}.")
    if not _is_websocket_key(request.value("sec-websocket-key")):
        raise BadHandshake("The header 'Sec-WebSocket-Key' must be 16 bytes in base64 (RFC 6455 section 4.1).")


def is_browser(request: RequestHead) -> bool:
    """Whether the program that connects is a page's script, as far as can be told.

    ``Origin`` alone does not tell, some programs send it too; with a browser's ``User-Agent`` it does. A key among the
    subprotocols does as well: only who cannot set headers puts it there.
    """
    if any(_is_key_subprotocol(item) for item in _subprotocols(request)):
        return True
    return request.value("origin") is not None and (request.value("user-agent") or "").startswith("Mozilla/")


def answer_subprotocol(request: RequestHead) -> str | None:
    """Return the subprotocol of the 101: ``realtime`` when it was offered, otherwise nothing, with one exception.

    Browsers, ``ws`` and Node give up when they offered subprotocols and none is chosen, and xAI's guide has them offer a single
    one, ``xai-client-secret.TOKEN``. Such a client gets back its own key, the only answer that it accepts; that tells it to
    nobody who did not see the request. A client that offers something else altogether speaks another protocol and may know.
    """
    offered = _subprotocols(request)
    if SUBPROTOCOL in offered:
        return SUBPROTOCOL
    return next((item for item in offered if _is_key_subprotocol(item)), None)


# --- who may connect -----------------------------------------------------------------------------


def client_address(peer: str, headers: Sequence[tuple[str, str]], trusted_proxies: Sequence[str]) -> str:
    """Return the address of the client.

    ``X-Forwarded-For`` is read from its end, where the nearest proxy has written, and only as far as trusted proxies wrote it.
    ``Forwarded`` (RFC 7239) is not read: proxies write one of the two and pass the other on as the client wrote it.

    Args:
        peer: address at the other end of the TCP connection, or of whom its PROXY header speaks.
        headers: of the request.
        trusted_proxies: addresses and networks whose word counts.

    Returns:
        The first address that is no trusted proxy's; the last trusted one before an entry that is no address; the farthest
        when all are trusted. IPv4 inside IPv6 is written as IPv4.
    """
    address = _address(peer)
    if address is None:
        return peer[:_SHOWN_CHARS]
    networks = _networks(tuple(trusted_proxies))
    if not networks:
        return str(address)
    chain = ",".join(value for name, value in headers if name.lower() == "x-forwarded-for")
    hops = [hop.strip() for hop in chain.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]] if chain.strip() else []
    while hops and _is_in(address, networks):
        hop = _address_of_hop(hops.pop())
        if hop is None:
            break
        address = hop
    return str(address)


def is_trusted(peer: str, trusted_proxies: Sequence[str]) -> bool:
    """Whether a peer's word counts about whom it speaks for.

    Args:
        peer: its address.
        trusted_proxies: addresses and networks whose word does.
    """
    address = _address(peer)
    return address is not None and _is_in(address, _networks(tuple(trusted_proxies)))


def client_scheme(
    peer: str, headers: Sequence[tuple[str, str]], trusted_proxies: Sequence[str], *, tls: bool
) -> Literal["http", "https"]:
    """Return by what the client came: a page's cookie, for instance, may travel by ``https`` only.

    Args:
        peer: as for ``client_address``.
        headers: of the request.
        trusted_proxies: addresses and networks whose ``X-Forwarded-Proto`` counts.
        tls: the connection to the router itself is encrypted.

    Returns:
        Of several values the last, which the nearest proxy has written. ``wss`` is ``https``.
    """
    if tls:
        return "https"
    if not is_trusted(peer, trusted_proxies):
        return "http"
    told = ",".join(value for name, value in headers if name.lower() == "x-forwarded-proto")
    return "https" if told.rpartition(",")[2].strip().lower() in ("https", "wss") else "http"


def without_prefix(path: str, root_path: str) -> str:
    """Return a path without ``root_path``, where it begins with that."""
    return path[len(root_path) :] if root_path and path.startswith(root_path + "/") else path


def check_origin(request: RequestHead, server: ServerSettings) -> None:
    """Do nothing when the page that connects, if any, may do so.

    Raises:
        PermissionDenied: it may not.
    """
    if origin_allowed(request.value("origin"), request.value("host"), server.allowed_origins):
        return
    raise PermissionDenied(
        f"Pages from the origin {_shown(request.value('origin') or '')} may not connect. Allowed are pages from the router's own "
        "host, or those named in general_settings.allowed_origins."
    )


def origin_allowed(origin: str | None, host: str | None, allowed_origins: Sequence[str]) -> bool:
    """Whether a page may connect. A request without ``Origin`` comes from no page.

    Args:
        origin: the header's value.
        host: the ``Host`` header's value.
        allowed_origins: ``"*"``, ``"null"`` or origins such as ``https://app.example.com``; empty: the router's own host and
            port, by ``http`` or ``https`` (what is in front of the router may end TLS).
    """
    if origin is None or "*" in allowed_origins:
        return True
    if origin == "null":
        # Sandboxed frames and local files: anybody can make one.
        return "null" in allowed_origins
    found = _origin_parts(origin)
    if found is None:
        return False
    if allowed_origins:
        return any(found == _origin_parts(allowed.rstrip("/")) for allowed in allowed_origins)
    scheme, origin_host, origin_port = found
    # A Host without a port means the scheme's usual one, and the scheme is the page's.
    own = _origin_parts(f"{scheme}://{host}") if host and scheme in _USUAL_PORTS else None
    return own is not None and own[1:] == (origin_host, origin_port)


def check_keyless(request: RequestHead, *, peer: str) -> None:
    """Do nothing when a request may use a router that has no keys: it comes from this host and through no proxy.

    ``Host`` is checked against pages whose name was made to resolve to 127.0.0.1; the traces of a proxy, because behind one
    the whole world comes from this host. The peer, because the configuration knows only the addresses that it names: a socket
    that systemd or another router handed in may be open to the world, and ``Host`` is what its sender makes of it.

    Args:
        request: as it arrived.
        peer: address at the other end of the TCP connection.

    Raises:
        PermissionDenied: it may not.
    """
    for name, _ in request.headers:
        lower = name.lower()
        if lower in _PROXY_TRACES or lower.startswith("x-forwarded-"):
            raise PermissionDenied(
                f"The router has no keys and the request came through a proxy (header {_shown(lower)}). "
                "Set general_settings.master_key to use it behind a proxy."
            )
    hosts = request.values("host")
    address = _address(peer)
    if len(hosts) != 1 or not _is_loopback_host(hosts[0]) or address is None or not address.is_loopback:
        raise PermissionDenied(
            "The router has no keys and serves this host only: connect to localhost or 127.0.0.1, or set "
            "general_settings.master_key."
        )


# --- what goes on --------------------------------------------------------------------------------


def forward(upgrade: Upgrade, group: GroupSettings) -> Forward:
    """Return the allow-listed part of a request that travels upstream; see ``allowed_part``."""
    return allowed_part({**upgrade.other_query, **upgrade.query}, upgrade.headers, group)


def allowed_part(query: Mapping[str, str], headers: Mapping[str, str], group: GroupSettings) -> Forward:
    """Return what of a query and of headers (names in lower case) is on a group's allow-list.

    A group may widen the list, but the client's credentials and cookies, another account's identifiers, ``OpenAI-Beta`` and
    what belongs to the connection or the handshake stay here even when they are on it.

    Raises:
        BadHandshake: a value is so long that it would make upstreams refuse the dial.
    """
    parameters, names = _allowed_names(group.forward_query, group.forward_headers)
    forward = Forward(
        query=MappingProxyType({name: value for name, value in query.items() if name in parameters}),
        headers=MappingProxyType({name: headers[name] for name in names if name in headers}),
    )
    for name, value in (*forward.query.items(), *forward.headers.items()):
        if len(value) > _MAX_FORWARDED_CHARS:
            raise BadHandshake(f"The value of {name!r} is longer than {_MAX_FORWARDED_CHARS} characters.")
    return forward


@lru_cache(maxsize=64)
def _allowed_names(query: frozenset[str], headers: frozenset[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names of parameters and headers that travel, given what a group adds."""
    names = (_HEADER_FORWARDED | headers) - _HEADER_NEVER_FORWARDED - _HEADER_CREDENTIALS
    return (
        (_QUERY_FORWARDED | query) - _QUERY_NEVER_FORWARDED,
        tuple(sorted(name for name in names if not name.startswith("sec-") and not is_handshake_header(name))),
    )


def to_call(upgrade: Upgrade, group: GroupSettings, principal: Principal) -> Call:
    """Return what a strategy may know: no credential and no cookie."""
    return Call(group=group.name, principal=principal.name, headers=upgrade.headers, query=upgrade.query)


# --- the query -----------------------------------------------------------------------------------


def _parameters(query: str) -> dict[str, list[str]]:
    if len(query) > _MAX_QUERY_CHARS:
        raise BadHandshake(f"The query is longer than {_MAX_QUERY_CHARS} characters.")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS, errors="replace")
    except ValueError:
        raise BadHandshake(f"The query has more than {_MAX_QUERY_FIELDS} parameters.") from None
    parameters: dict[str, list[str]] = {}
    for name, value in pairs:
        parameters.setdefault(_clean(name), []).append(_clean(value))
    return parameters


def _intent(parameters: Mapping[str, list[str]]) -> Intent | None:
    if "call_id" in parameters:
        raise BadHandshake(
            "The parameter 'call_id' is not supported: the call it names lives at one provider, so there is nothing to route."
        )
    values = parameters.get("intent")
    if values is None:
        return None
    if len(values) > 1:
        raise BadHandshake("The parameter 'intent' may occur once only.")
    if values[0] == "realtime":
        return "realtime"
    if values[0] == "transcription":
        return "transcription"
    raise BadHandshake(f"The parameter 'intent' must be 'realtime' or 'transcription', found {_shown(values[0])}.")


def _model(parameters: Mapping[str, list[str]], *, default: str | None, intent: Intent | None) -> str:
    """Return the model's name: ``model`` of OpenAI's form, ``deployment`` of Azure's, either of them on any path."""
    names: set[str] = set()
    for parameter in ("model", "deployment"):
        values = parameters.get(parameter, [])
        if len(values) > 1:
            raise BadHandshake(f"The parameter '{parameter}' may occur once only.")
        names.update(values)
    if len(names) > 1:
        raise BadHandshake("The parameters 'model' and 'deployment' name two different models.")
    if not names:
        if default is not None:
            return default
        if intent == "transcription":
            raise BadHandshake(
                "No model was named and the router has no default one. With intent=transcription the router needs the model "
                "too, to choose where the session goes: add &model=NAME."
            )
        raise BadHandshake("No model was named and the router has no default one: add ?model=NAME to the URL.")
    model = names.pop()
    if not model.strip():
        raise BadHandshake("The model's name is empty: add ?model=NAME to the URL.")
    if len(model) > _MAX_MODEL_CHARS:
        raise BadHandshake(f"The model's name is longer than {_MAX_MODEL_CHARS} characters.")
    if not model.isprintable():
        raise BadHandshake("The model's name has characters that cannot be printed.")
    return model


# --- the headers ---------------------------------------------------------------------------------


def _credentials(request: RequestHead, parameters: Mapping[str, list[str]]) -> tuple[Secret, ...]:
    found: list[str] = []
    for value in request.values("authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            found.append(token.strip())
    for name in _HEADER_KEYS:
        found.extend(request.values(name))
    for item in _subprotocols(request):
        found.extend(item.removeprefix(prefix) for prefix in _KEY_SUBPROTOCOLS if item.startswith(prefix))
    # Azure's form for browsers, and what OpenAI-compatible servers take.
    for name in _QUERY_KEYS:
        found.extend(parameters.get(name, []))
    # An SDK may put one key in two places; each is checked once.
    return tuple(Secret(value) for value in dict.fromkeys(found) if value)


def _plain_headers(request: RequestHead) -> dict[str, str]:
    """Return what is neither a credential nor a matter of this connection alone."""
    # Headers that the client's own connection names end with it (RFC 9110 §7.6.1).
    nominated = {item.lower() for item in request.items("connection")}
    headers: dict[str, str] = {}
    for name, value in request.headers:
        lower = _clean(name.lower())
        if lower in _HEADER_CREDENTIALS or lower in nominated or is_handshake_header(lower):
            continue
        value = _clean(value.strip())
        headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
    return headers


def _subprotocols(request: RequestHead) -> list[str]:
    return request.items("sec-websocket-protocol")[:_MAX_SUBPROTOCOLS]


def _is_key_subprotocol(item: str) -> bool:
    return item.startswith(_KEY_SUBPROTOCOLS)


def _is_websocket_key(value: str | None) -> bool:
    if value is None or len(value) != 24 or not value.isascii():
        return False
    try:
        return len(binascii.a2b_base64(value, strict_mode=True)) == 16
    except binascii.Error:
        return False


# --- addresses and hosts -------------------------------------------------------------------------

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# 45 of IPv6 with IPv4 inside, and a zone.
_MAX_ADDRESS_CHARS = 96

_USUAL_PORTS: Mapping[str, int] = MappingProxyType({"http": 80, "https": 443})


@lru_cache(maxsize=8)
def _networks(trusted_proxies: tuple[str, ...]) -> tuple[_Network, ...]:
    # The configuration's check has refused what is no network; an entry that got past it trusts nobody.
    networks: list[_Network] = []
    for entry in trusted_proxies:
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            continue
    return tuple(networks)


def _is_in(address: _Address, networks: Sequence[_Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _address(text: str) -> _Address | None:
    return _parsed_address(text) if len(text) <= _MAX_ADDRESS_CHARS else None


@lru_cache(maxsize=1024)
def _parsed_address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _address_of_hop(hop: str) -> _Address | None:
    """Parse one element of ``X-Forwarded-For``; some proxies add the port, and brackets around IPv6."""
    if hop.startswith("["):
        inside, bracket, rest = hop[1:].partition("]")
        return _address(inside) if bracket and (not rest or rest.startswith(":")) else None
    if hop.count(":") == 1:
        hop = hop.partition(":")[0]
    return _address(hop)


def _origin_parts(origin: str) -> tuple[str, str, int | None] | None:
    """Split a serialised origin (RFC 6454 §6.2) into scheme, host and port, the usual port filled in; ``None``: it is none."""
    if len(origin) > _MAX_QUERY_CHARS or any(character <= " " for character in origin):
        return None
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not parts.scheme or not host or "@" in parts.netloc or "?" in origin or "#" in origin or parts.path:
        return None
    scheme = parts.scheme.lower()
    return scheme, host.lower(), _USUAL_PORTS.get(scheme) if port is None else port


def _is_loopback_host(host: str) -> bool:
    parts = _origin_parts(f"http://{host}")
    if parts is None:
        return False
    if parts[1] == "localhost":
        return True
    address = _address(parts[1])
    return address is not None and address.is_loopback


# --- text ----------------------------------------------------------------------------------------


def _clean(value: str) -> str:
    """Return text that has a UTF-8 form: header bytes that are not UTF-8 arrive as unpaired surrogates."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _shown(value: str) -> str:
    """Return something the client sent as it may stand in a message: short, escaped, in quotes."""
    return f"{value!a}" if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]!a}…"
