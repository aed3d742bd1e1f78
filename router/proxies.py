"""Which HTTP proxy a dial goes through, if any. No I/O.

A deployment's own ``proxy`` wins. Else the environment decides as it does for curl and Python: ``HTTPS_PROXY`` for ``wss``,
``HTTP_PROXY`` for ``ws``, ``ALL_PROXY`` for both, ``NO_PROXY`` for exceptions; the lower-case spelling wins, and set but empty
it means no proxy. Dials to this host never use the environment's proxy (as in Go's ``ProxyFromEnvironment``): its loopback is
another machine.
"""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from router.config.settings import DeploymentSettings, Secret
from router.errors import ConnectFailed

_DEFAULT_PORTS: Mapping[str, int] = {"ws": 80, "wss": 443}
_NO_PORT = -1  # what cannot be read as a port equals none
_VARIABLES: Mapping[str, tuple[str, str]] = {"ws": ("HTTP_PROXY", "ALL_PROXY"), "wss": ("HTTPS_PROXY", "ALL_PROXY")}


def proxy_for(url: str, deployment: DeploymentSettings, environ: Mapping[str, str]) -> str | None:
    """Return the proxy for a dial.

    Args:
        url: the ``ws://`` or ``wss://`` URL to dial.
        deployment: its ``proxy`` wins; ``none`` or an empty one means to dial directly whatever the environment says.
        environ: the environment's variables.

    Returns:
        The proxy's ``http://`` or ``https://`` URL, or ``None``. A user and password before the host stay in it: dial with what
        ``split_userinfo`` makes of it, as HTTP libraries print the URL they were given in their exceptions.

    Raises:
        ConnectFailed: the proxy is of another kind. To dial around a proxy that somebody has set would be worse than to fail.
    """
    if deployment.proxy is not None:
        explicit = deployment.proxy.strip()
        return None if explicit.lower() in ("", "none") else _checked(explicit, source="proxy")

    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 443)
    if _is_loopback(host) or _is_exempt(host, port, _variable(environ, "NO_PROXY")[1]):
        return None
    for name in _VARIABLES.get(parts.scheme, ()):
        source, value = _variable(environ, name)
        if value is None:
            continue
        return _checked(value, source=source) if value else None
    return None


def proxy_problem(proxy: str) -> str | None:
    """Return what is wrong with a ``proxy`` as "found …, expected …", or ``None``. For the check of a configuration."""
    stripped = proxy.strip()
    return None if stripped.lower() in ("", "none") else _problem(stripped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy's address and, apart from it, what to say to it.

    Attributes:
        url: scheme, host and port; may be logged.
        authorization: value of ``Proxy-Authorization``; ``None``: the proxy asks for nothing. It belongs to the ``CONNECT`` of a
            ``wss`` dial and to the request itself of a ``ws`` one (in aiohttp ``proxy_headers`` and ``headers``).
    """

    url: str
    authorization: Secret | None = None


def split_userinfo(proxy: str) -> Proxy:
    """Take the user and password out of a URL that ``proxy_for`` returned."""
    parts = urlsplit(proxy)
    userinfo, at, address = parts.netloc.rpartition("@")
    url = f"{parts.scheme}://{address}"
    if not at:
        return Proxy(url=url)
    user, _, password = userinfo.partition(":")
    # RFC 7617; in the URL both are escaped, as either may hold what divides them from the host.
    login = f"{unquote(user)}:{unquote(password)}".encode()
    return Proxy(url=url, authorization=Secret(f"Basic {b64encode(login).decode('ascii')}"))


def _variable(environ: Mapping[str, str], name: str) -> tuple[str, str | None]:
    """Return the spelling that is set and its value."""
    for spelling in (name.lower(), name):
        if spelling in environ:
            return spelling, environ[spelling].strip()
    return name, None


def _checked(proxy: str, *, source: str) -> str:
    problem = _problem(proxy)
    if problem is not None:
        raise ConnectFailed(f"{source}: {problem}")
    return _with_scheme(proxy)


def _problem(proxy: str) -> str | None:
    try:
        parts = urlsplit(_with_scheme(proxy))
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "found a host or port that cannot be read, expected a URL such as http://PROXY:3128"
    # A scheme holds no secret, unlike the rest; what stands before "://" in a mistyped URL might.
    if parts.scheme.startswith("socks"):
        return "found a SOCKS proxy, expected an http:// or https:// one (or 'none')"
    if parts.scheme not in ("http", "https"):
        return "found another scheme, expected http:// or https:// (or 'none')"
    if not host or any(character <= " " for character in proxy):
        return "found no usable host, expected a URL such as http://PROXY:3128"
    return None


def _with_scheme(proxy: str) -> str:
    # ``PROXY:3128`` is how many write it; curl takes it as http too.
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _is_exempt(host: str, port: int, no_proxy: str | None) -> bool:
    """Whether ``NO_PROXY`` names the host: itself, a domain above it, a network it is in, each with or without a port."""
    if not no_proxy:
        return False
    name = host.lower()
    address = _address(host)
    return any(_matches(entry, name, address, port) for entry in no_proxy.replace(",", " ").split())


def _matches(entry: str, name: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    if entry == "*":
        return True
    pattern, entry_port = _split_port(entry.lower())
    if entry_port is not None and entry_port != port:
        return False
    if address is not None:
        try:
            return address in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    # ``example.com``, ``.example.com`` and ``*.example.com`` all mean the domain and what is below it, as for curl.
    domain = pattern.removeprefix("*").removeprefix(".").rstrip(".")
    return bool(domain) and (name == domain or name.endswith("." + domain))


def _split_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("["):
        pattern, _, rest = entry[1:].partition("]")
        port = rest.removeprefix(":")
    elif entry.count(":") == 1:
        pattern, _, port = entry.partition(":")
    else:
        return entry, None  # a name, an IPv4 address or network, or a bare IPv6 address
    if not port:
        return pattern, None
    return pattern, int(port) if port.isdecimal() and len(port) <= 5 else _NO_PORT


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if isinstance(mapped, ipaddress.IPv4Address) else address
