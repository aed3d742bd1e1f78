"""Who is logged in to the dashboard, and what a page may do in their name. No I/O.

Nothing is stored: cookie, token and ticket are signed with a key that is derived from the master key, so they hold in every
worker and replica that has the same master key, and a new master key ends all logins.

    cookie   EXPIRES.NONCE.MAC            twelve hours, HttpOnly and SameSite=Strict
    token    MAC of the cookie            the header ``x-router-csrf`` of every request that relies on the cookie
    ticket   EXPIRES.NONCE.MAC            one minute; signed together with the cookie and the origin it was made for

A router without keys has nothing to sign with and serves this host only: its tickets are signed with a constant, and what keeps
other pages out is their origin, which a browser always names.
"""

from __future__ import annotations

import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from ipaddress import IPv6Address, ip_address
from typing import Final

from router.auth import MASTER, Principal
from router.config.settings import Secret, ServerSettings
from router.errors import AuthenticationFailed, PermissionDenied
from router.handshake import RequestHead, origin_allowed

COOKIE: Final = "realtime-router"
CSRF_HEADER: Final = "x-router-csrf"
TICKET_PREFIX: Final = "router-ticket."
#: Whose sessions those of the playground are, in logs and metrics.
DASHBOARD: Final = "dashboard"
LOGIN_S: Final = 12 * 3600
TICKET_S: Final = 60

# Names what is derived, and the version of what is signed: a change of it ends all logins.
_PURPOSE: Final = b"realtime-router dashboard 1"
_KEYLESS: Final = b"a router without keys has no secret"
_SIGNED: Final = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})", re.ASCII)
_LONGEST_COOKIE: Final = 8192
# Tickets of one minute that are remembered; only who is logged in gets any.
_MOST_SPENT: Final = 10_000
_MOST_ADDRESSES: Final = 4096


class Logins:
    """Makes and checks what is signed.

    Args:
        master_key: what the signing key is derived from; ``None``: see the module.
    """

    def __init__(self, master_key: Secret | None) -> None:
        secret = _KEYLESS if master_key is None else master_key.reveal().encode("utf-8", "surrogatepass")
        self._key = hmac.digest(secret, _PURPOSE, sha256)

    def cookie(self, *, now_s: float) -> str:
        """Return a new login's cookie; ``now_s`` in epoch seconds."""
        return self._signed("login", now_s + LOGIN_S)

    def valid(self, cookie: str, *, now_s: float) -> bool:
        """Whether a cookie was made here and has not expired."""
        return self._check("login", cookie, now_s=now_s) is not None

    def token(self, cookie: str) -> str:
        """Return the token that belongs to a cookie; empty: that of nobody."""
        return self._mac("csrf", cookie)

    def ticket(self, cookie: str, origin: str, *, now_s: float) -> str:
        """Return a ticket for one session of the playground.

        Args:
            cookie: of the login; empty: none is needed.
            origin: of the page that will open the session.
            now_s: epoch seconds.
        """
        return self._signed("ticket", now_s + TICKET_S, cookie, origin)

    def redeem(self, ticket: str, cookie: str, origin: str, *, now_s: float) -> str | None:
        """Return a ticket's nonce, for whoever makes sure that it is used once.

        ``None``: it was not made for this login and origin, or is too old.
        """
        return self._check("ticket", ticket, cookie, origin, now_s=now_s)

    def _signed(self, kind: str, expires_s: float, *bound: str) -> str:
        expires = str(int(expires_s))
        nonce = secrets.token_urlsafe(16)
        return f"{expires}.{nonce}.{self._mac(kind, expires, nonce, *bound)}"

    def _check(self, kind: str, value: str, *bound: str, now_s: float) -> str | None:
        match = _SIGNED.fullmatch(value)
        if match is None:
            return None
        expires, nonce, mac = match.groups()
        if not hmac.compare_digest(mac, self._mac(kind, expires, nonce, *bound)) or now_s >= int(expires):
            return None
        return nonce

    def _mac(self, *parts: str) -> str:
        # Lengths keep the parts apart: no two lists of parts make the same text.
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return urlsafe_b64encode(hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), sha256)).decode().rstrip("=")


# --- requests ------------------------------------------------------------------------------------


def cookie_of(head: RequestHead, server: ServerSettings, *, now_s: float) -> str | None:
    """Return the cookie of whoever is logged in; ``None``: nobody is. A router without keys needs no login: empty."""
    if server.keyless:
        return ""
    if server.master_key is None:
        return None
    logins = Logins(server.master_key)
    return next((value for value in _cookies(head) if logins.valid(value, now_s=now_s)), None)


def _cookies(head: RequestHead) -> Sequence[str]:
    """Every cookie of the name: one of another path or port on the same host may come beside the own one."""
    found: list[str] = []
    for header in head.values("cookie"):
        if len(header) > _LONGEST_COOKIE:
            continue
        for part in header.split(";"):
            name, _, value = part.strip().partition("=")
            if name == COOKIE:
                found.append(value)
    return found


def from_own_page(head: RequestHead) -> bool:
    """Whether no foreign page makes this request: it comes from the dashboard's own origin, or from no page at all.

    ``Sec-Fetch-Site`` is the browser's own word and holds behind a proxy that rewrites ``Host`` too; where it is missing (plain
    HTTP to another host, WebSockets), ``Origin`` must be the router's own host.
    """
    sites = head.values("sec-fetch-site")
    if sites:
        # none: typed by the user, which no page can feign.
        return list(sites) in (["same-origin"], ["none"])
    origins = head.values("origin")
    return len(origins) <= 1 and origin_allowed(head.value("origin"), head.value("host"), ())


def require_own_page(head: RequestHead) -> None:
    """Do nothing unless a foreign page makes this request.

    Raises:
        PermissionDenied: one does.
    """
    if not from_own_page(head):
        raise PermissionDenied("Only the dashboard's own page may do this.")


def principal_of(head: RequestHead, server: ServerSettings, *, now_s: float) -> Principal | None:
    """Return who makes a request of the admin API by the dashboard's cookie; ``None``: it has no valid one, or none is needed.

    For every method alike: what may only be read is worth as much as what may be done.

    Raises:
        PermissionDenied: the cookie is valid, or the router has no keys, and the page that asks is not the dashboard's.
    """
    cookie = cookie_of(head, server, now_s=now_s)
    if cookie is None:
        return None
    require_own_page(head)
    if server.keyless:
        return None
    token = head.value(CSRF_HEADER) or ""
    expected = Logins(server.master_key).token(cookie)
    if not hmac.compare_digest(token.encode("utf-8", "surrogatepass"), expected.encode()):
        raise PermissionDenied(f"The header '{CSRF_HEADER}' does not belong to this login. Reload the page.")
    return Principal(name=MASTER, is_master=True)


def check_ticket(head: RequestHead, server: ServerSettings, *, now_s: float) -> str:
    """Return the nonce of the ticket among a request's subprotocols.

    Raises:
        PermissionDenied: another origin's page opens the session.
        AuthenticationFailed: there is no valid ticket, or the login it belongs to has ended.
    """
    origin = head.value("origin")
    if origin is None or list(head.values("sec-fetch-site")) not in ([], ["same-origin"]):
        raise PermissionDenied("Only the dashboard's own page may open a session here.")
    cookie = cookie_of(head, server, now_s=now_s)
    tickets = [item for item in head.items("sec-websocket-protocol") if item.startswith(TICKET_PREFIX)]
    if cookie is None or len(tickets) != 1:
        raise AuthenticationFailed("This session needs a login and one ticket of the dashboard.")
    ticket = tickets[0].removeprefix(TICKET_PREFIX)
    # The origin is under the signature: it was checked when the ticket was made.
    redeemed = Logins(server.master_key).redeem(ticket, cookie, origin, now_s=now_s)
    if redeemed is None or (server.keyless and not from_own_page(head)):
        raise AuthenticationFailed("The ticket is not valid any more, or belongs to another login.")
    return redeemed


def set_cookie(value: str, *, path: str, secure: bool, max_age_s: int) -> str:
    """Return the header ``Set-Cookie``.

    Args:
        value: empty with ``max_age_s`` 0: the browser forgets it.
        path: the dashboard's, with a slash at its end.
        secure: the browser sends it by https only.
        max_age_s: how long it is kept.
    """
    cookie: SimpleCookie = SimpleCookie()
    try:
        cookie[COOKIE] = value
        cookie[COOKIE]["path"] = path
    except CookieError as error:  # a path is checked by the configuration, a value is made here
        raise ValueError(str(error)) from None
    cookie[COOKIE]["max-age"] = str(max_age_s)
    cookie[COOKIE]["httponly"] = True
    cookie[COOKIE]["samesite"] = "Strict"
    if secure:
        cookie[COOKIE]["secure"] = True
    return cookie[COOKIE].OutputString()


# --- once, and not too often ---------------------------------------------------------------------


class Spent:
    """Tickets that were used, for as long as they could be used again.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}  # by nonce, in the order of their use

    def first(self, nonce: str) -> bool:
        """Whether a valid ticket is used for the first time; it is used from now on."""
        now = self._clock()
        if nonce in self._until and self._until[nonce] > now:
            return False
        if len(self._until) >= _MOST_SPENT:
            self._until = {one: until for one, until in self._until.items() if until > now}
            if len(self._until) >= _MOST_SPENT:
                return False
        self._until[nonce] = now + TICKET_S
        return True


class Throttle:
    """Slows down who guesses the key: so many failures in a while, and an address waits.

    An address that waits is not even asked for its key, so a right guess cannot be told from a wrong one.

    Args:
        clock: monotonic seconds.
        most: failures that are free.
        window_s: how long a failure counts.
    """

    def __init__(self, *, clock: Callable[[], float], most: int = 10, window_s: float = 300.0) -> None:
        self._clock = clock
        self._most = most
        self._window_s = window_s
        self._failures: OrderedDict[str, list[float]] = OrderedDict()  # the address that failed last at the end

    def wait_s(self, address: str) -> float:
        """Seconds until this address may try again; 0: now."""
        failures = self._recent(_network(address))
        return 0.0 if len(failures) < self._most else failures[-self._most] + self._window_s - self._clock()

    def failed(self, address: str) -> None:
        """A wrong key came from there."""
        network = _network(address)
        self._failures[network] = [*self._recent(network), self._clock()][-self._most :]
        self._failures.move_to_end(network)
        if len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def _recent(self, network: str) -> list[float]:
        oldest = self._clock() - self._window_s
        return [at for at in self._failures.get(network, ()) if at > oldest]


def _network(address: str) -> str:
    """An address, or of IPv6 the network that one customer has."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(IPv6Address(int(parsed) >> 64 << 64)) if isinstance(parsed, IPv6Address) else str(parsed)
