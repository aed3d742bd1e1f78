"""The URL of a Redis or Valkey server → where it is and who asks. Pure.

    redis://[USER[:PASSWORD]@]HOST[:6379][/DB]                              one server
    redis+sentinel://[USER[:PASSWORD]@]HOST[:26379][,HOST…]/SERVICE[/DB]    whichever server these sentinels call the master
    redis+cluster://[USER[:PASSWORD]@]HOST[:6379][,HOST…]                   a cluster, by some of its nodes
    unix://[USER[:PASSWORD]@]/PATH[?db=DB]                                  one server on this host, by its socket

``rediss`` in the place of ``redis`` means TLS, ``valkey`` and ``valkeys`` mean the same two. ``?db=DB`` is another way to write
``/DB``. User and password are of the server, not of the sentinels.

A parser of our own, since those of the client libraries pass over what they do not understand (a parameter, a path that is no
number), know neither sentinels nor clusters, and quote the URL in their exceptions. This one takes nothing that it has no use
for, and no message of it repeats any part of the URL: what is malformed may be a password, and then so may be its neighbours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from router.config.settings import FleetSettings, Secret

#: Port of a server or a node of a cluster, and port of a sentinel.
PORT: Final = 6379
SENTINEL_PORT: Final = 26379
#: Servers count their databases with a signed 32-bit integer.
HIGHEST_DB: Final = 2**31 - 1

_LONGEST: Final = 4096
_MOST_NODES: Final = 64
# Of ``sockaddr_un.sun_path`` on Linux, without the zero at its end.
_LONGEST_SOCKET_PATH: Final = 107

_EXPECTED: Final = "a URL such as redis://HOST:6379/0, rediss:// for TLS, redis+sentinel://, redis+cluster:// or unix:///PATH"
_PERCENT: Final = "in a user or password write %2F for /, %3F for ?, %23 for #, %40 for @, %25 for %"

_Kind = Literal["single", "sentinel", "cluster"]
_SUFFIXES: Final[Mapping[str, _Kind]] = {"": "single", "+sentinel": "sentinel", "+cluster": "cluster"}
# Scheme → what it leads to, and whether by TLS.
_SCHEMES: Final[Mapping[str, tuple[_Kind, bool]]] = {
    f"{name}{suffix}": (kind, tls)
    for name, tls in {"redis": False, "rediss": True, "valkey": False, "valkeys": True}.items()
    for suffix, kind in _SUFFIXES.items()
}
# Parameters that client libraries take, and where what they say belongs here.
_PARAMETERS: Final[Mapping[str, str]] = {
    "username": "redis_username is the place for it",
    "password": "redis_password is the place for it",
    "ssl_ca_certs": "redis_ca_file is the counterpart",
    "ssl_certfile": "redis_client_cert is the counterpart",
    "ssl_keyfile": "redis_client_key is the counterpart",
    "ssl_cert_reqs": "certificates are always verified",
    "ssl_check_hostname": "certificates are always verified",
    "service_name": "the service is the URL's path",
}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# As Sentinel's own configuration allows it.
_SERVICE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class UnfitUrl(ValueError):
    """The URL cannot be used.

    Attributes:
        found: what is wrong, in words that hold nothing of the URL.
        expected: what would have been right.
        hint: another way out, may be empty.
    """

    def __init__(self, found: str, expected: str = _EXPECTED, hint: str = "") -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.found = found
        self.expected = expected
        self.hint = hint


def parse(url: str) -> FleetSettings:
    """Read a URL.

    Returns:
        Settings with the server's place, database and user; all else has its default.

    Raises:
        UnfitUrl: with the first thing that is wrong.
    """
    if len(url) > _LONGEST:
        raise UnfitUrl(f"a URL of {len(url)} characters", f"at most {_LONGEST}")
    if not all("!" <= char <= "~" for char in url):
        raise UnfitUrl("a space, a control or a non-ASCII character", f"{_EXPECTED} (others as %XX)")
    # The usual ways to ask for a variable, of which none works inside a text; the server would be sent it as the password.
    if any(sign in url for sign in ("os.environ", "${", "{{")):
        raise UnfitUrl(
            "a variable within a URL", "the whole URL as os.environ/NAME, or redis_password: os.environ/NAME beside it"
        )
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise UnfitUrl("no scheme", hint="write redis:// before HOST:PORT")
    if "#" in rest:
        raise UnfitUrl("a '#'", "a URL without a fragment", _PERCENT)
    place, _, query = rest.partition("?")
    authority, slash, path = place.partition("/")
    userinfo, at, hosts = authority.rpartition("@")
    # A password with one of these characters would be cut in two, and its second half taken for something else.
    if "@" in path or "@" in query or "@" in userinfo:
        raise UnfitUrl("an '@' beyond that between password and host", "at most one '@'", _PERCENT)
    username, password = _credentials(userinfo) if at else (None, None)
    in_query = _query(query)
    if scheme.lower() == "unix":
        if hosts:
            raise UnfitUrl("a host in the URL of a socket", "unix:///PATH, with three slashes")
        return FleetSettings(path=_socket(slash + path), db=in_query or 0, username=username, password=password)
    if scheme.lower() not in _SCHEMES:
        raise UnfitUrl("an unknown scheme")
    kind, tls = _SCHEMES[scheme.lower()]
    service, path = _service(path) if kind == "sentinel" else ("", path)
    return FleetSettings(
        kind=kind,
        nodes=_nodes(hosts, kind),
        service=service,
        db=_database(path, in_query, kind),
        username=username,
        password=password,
        tls=tls,
    )


def host(text: str) -> str:
    """Return a host as it is dialled: a name, an IPv4 address, or an IPv6 address without brackets.

    Raises:
        UnfitUrl: it is none of these.
    """
    found = _host(text)
    if found is None:
        raise UnfitUrl("no host", "the name of a host or an IP address", "scheme and port do not belong to it")
    return found


# --- parts ---------------------------------------------------------------------------------------


def _credentials(userinfo: str) -> tuple[str | None, Secret | None]:
    user, colon, password = userinfo.partition(":")
    if colon and not password:
        raise UnfitUrl("an empty password", "a password after the ':'", "without one leave the ':' out")
    if not user and not password:
        raise UnfitUrl("nothing before the '@'", "USER:PASSWORD@ or :PASSWORD@", "without them leave the '@' out")
    return _decoded(user, "user") or None, Secret(_decoded(password, "password")) if password else None


def _decoded(text: str, what: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise UnfitUrl(f"a '%' in the {what} that two hex digits do not follow", "%XX", _PERCENT)
    try:
        decoded = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        # ``from None``: the exception holds the bytes.
        raise UnfitUrl(f"%XX in the {what} that are not UTF-8", "UTF-8, byte by byte") from None
    if _CONTROL.search(decoded):
        raise UnfitUrl(f"a control character in the {what}", "printable characters")
    return decoded


def _query(query: str) -> int | None:
    """Return the database that the query names; nothing else may stand there."""
    db: int | None = None
    for pair in query.split("&") if query else ():
        name, _, value = pair.partition("=")
        if name in _PARAMETERS:
            raise UnfitUrl(f"the parameter {name}", "no parameter but db", _PARAMETERS[name])
        if name != "db":
            raise UnfitUrl("an unknown parameter after the '?'", "no parameter but db", _PERCENT)
        if db is not None:
            raise UnfitUrl("the parameter db twice", "one database")
        db = _number(value)
    return db


def _database(path: str, in_query: int | None, kind: _Kind) -> int:
    if path and in_query is not None:
        raise UnfitUrl("a database in the path and the parameter db", "one of the two")
    db = _number(path) if path else in_query or 0
    if db and kind == "cluster":
        raise UnfitUrl("a database other than 0", "none: the keys of a cluster are all in database 0")
    return db


def _number(text: str) -> int:
    # Ten digits: ``int`` refuses very long ones with an exception of its own.
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > HIGHEST_DB:
        raise UnfitUrl("a database that is no number", f"a whole number from 0 to {HIGHEST_DB}")
    return int(text)


def _service(path: str) -> tuple[str, str]:
    """Split the path of a sentinel's URL into the master's name and the rest."""
    service, _, rest = path.partition("/")
    if not service:
        raise UnfitUrl("no name of a master", "redis+sentinel://HOST:26379/SERVICE", "it is what the sentinels monitor it as")
    if not _SERVICE.fullmatch(service):
        raise UnfitUrl("a malformed name of a master", "1 to 128 letters, digits, dots, dashes and underscores")
    return service, rest


def _socket(path: str) -> str:
    decoded = _decoded(path, "path")
    if not decoded.strip("/") or decoded.endswith("/"):
        raise UnfitUrl("no path of a socket", "unix:///PATH, with three slashes")
    if len(decoded.encode()) > _LONGEST_SOCKET_PATH:
        raise UnfitUrl(f"a path of {len(decoded.encode())} bytes", f"at most {_LONGEST_SOCKET_PATH}, as sockets need it")
    return decoded


def _nodes(hosts: str, kind: _Kind) -> tuple[tuple[str, int], ...]:
    texts = hosts.split(",")
    if kind == "single" and len(texts) > 1:
        raise UnfitUrl(f"{len(texts)} hosts", "one host", "several are written with redis+sentinel:// or redis+cluster://")
    if len(texts) > _MOST_NODES:
        raise UnfitUrl(f"{len(texts)} hosts", f"at most {_MOST_NODES}")
    nodes = tuple(_node(text, SENTINEL_PORT if kind == "sentinel" else PORT) for text in texts)
    if len({(name.lower(), port) for name, port in nodes}) < len(nodes):
        raise UnfitUrl("a host and port twice", "each once")
    return nodes


def _node(text: str, default: int) -> tuple[str, int]:
    if text.count(":") > 1 and not text.startswith("["):
        raise UnfitUrl("more than one ':' in HOST:PORT", "HOST:PORT", "an IPv6 address stands in brackets")
    match = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(:(.*))?", text)
    if match is not None and not match[1]:
        raise UnfitUrl("no host")
    name = _host(match[1]) if match is not None else None
    if match is None or name is None:
        raise UnfitUrl("a malformed host", "the name of a host, an IPv4 address, or an IPv6 address in brackets")
    if match[2] is None:
        return name, default
    if not re.fullmatch(r"[0-9]{1,5}", match[3]) or not 1 <= int(match[3]) <= 65535:
        raise UnfitUrl("a port that is no number from 1 to 65535", "HOST:PORT")
    return name, int(match[3])


def _host(text: str) -> str | None:
    """Return the host without brackets; ``None`` when it is none."""
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1] if _is_ipv6(text[1:-1]) else None
    return text if _is_name(text) or _is_ipv6(text) else None


def _is_ipv6(text: str) -> bool:
    try:
        # An address with a scope (%eth0) means something on one host only.
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def _is_name(text: str) -> bool:
    if len(text) > 253:
        return False
    # Names of hosts do not end in digits alone (RFC 1123 §2.1), so such a one is an IPv4 address or a slip in one.
    labels = text.removesuffix(".").split(".")
    if labels[-1].isdigit():
        return _is_ipv4(text)
    return all(_LABEL.fullmatch(label) for label in labels)


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
