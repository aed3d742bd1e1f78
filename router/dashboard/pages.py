"""The dashboard's routes: the page and its files, login and logout, tickets, and the playground's sessions.

    GET  /                             the page
    GET  /dashboard/VERSION/FILE       its files
    GET  /dashboard/login              whether a login is needed and whether there is one, with its token
    POST /dashboard/login              {"key": …} → the cookie
    POST /dashboard/logout             ends it, in this browser
    POST /dashboard/tickets            a ticket for one session
    GET  /dashboard/realtime           WebSocket; the ticket among its subprotocols

A session of the playground is one like any other, with another way to say whose it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Protocol

import orjson
from aiohttp import web

from router import handshake
from router._version import __version__
from router.app import Identify, Spend, client_of, json_response, peer_address, request_head, scheme_of
from router.auth import Authenticator, Principal
from router.config.settings import Secret, ServerSettings
from router.dashboard.files import StaticFile, static_files
from router.dashboard.login import (
    DASHBOARD,
    LOGIN_S,
    TICKET_S,
    Logins,
    Spent,
    Throttle,
    check_ticket,
    cookie_of,
    principal_of,
    require_own_page,
    set_cookie,
)
from router.errors import AuthenticationFailed, BadHandshake, PermissionDenied, TooManyLogins
from router.events import Notice, Observers

_MOST_LOGIN_BYTES: Final = 16 * 1024
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Whatever would turn text into markup or script is refused by the browser, and not by good habits alone.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_PAGE_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Content-Security-Policy": _POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), display-capture=(), usb=(), payment=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)
_IMMUTABLE: Final = "public, max-age=31536000, immutable"


class Serve(Protocol):
    """How a session is served; see ``app.Surface.serve``."""

    async def __call__(
        self, request: web.Request, head: handshake.RequestHead, server: ServerSettings, identify: Identify
    ) -> web.StreamResponse:
        """Serve it, or refuse it in a form that the client can read."""
        ...


class Dashboard:
    """The handlers.

    Args:
        server: returns the settings of the generation that is in force.
        serve: serves the playground's sessions.
        tell: observers.
        spend: see ``app.Spend``; ``None``: this process alone gives out and takes tickets.
        clock: monotonic seconds.
        wall_clock: epoch seconds.
    """

    def __init__(
        self,
        server: Callable[[], ServerSettings],
        *,
        serve: Serve,
        tell: Observers,
        spend: Spend | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._server_of = server
        self._serve = serve
        self._tell = tell
        self._spent = Spent(clock=clock)
        self._spend: Spend = spend if spend is not None else self._spend_here
        self._throttle = Throttle(clock=clock)
        self._wall_clock = wall_clock
        self._files = static_files()

    def routes(self) -> list[web.RouteDef]:
        """The routes, without the path prefix."""
        return [
            web.get("/", self.page),
            web.get("/dashboard/login", self.state),
            web.post("/dashboard/login", self.login),
            web.post("/dashboard/logout", self.logout),
            web.post("/dashboard/tickets", self.ticket),
            web.get("/dashboard/realtime", self.play),
            web.get("/dashboard/{version:[0-9a-f]{16}}/{path:.+}", self.file),
        ]

    # --- the page -----------------------------------------------------------------------------------

    async def page(self, request: web.Request) -> web.StreamResponse:
        """The document; it holds nothing that only an operator may know."""
        self._head(request)
        return self._answer(request, self._files.page, cache="no-cache")

    async def file(self, request: web.Request) -> web.StreamResponse:
        """One of its files."""
        self._head(request)
        found = self._files.by_path.get(request.match_info["path"])
        if found is None:
            raise web.HTTPNotFound
        # While replicas of two versions are behind one address, a file may be asked of the other one.
        current = request.match_info["version"] == self._files.version
        return self._answer(request, found, cache=_IMMUTABLE if current else "no-cache")

    def _answer(self, request: web.Request, file: StaticFile, *, cache: str) -> web.Response:
        headers = {**_PAGE_HEADERS, "Cache-Control": cache, "ETag": file.etag}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
        if file.etag in known:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, headers={**headers, "Content-Type": file.content_type})

    # --- login --------------------------------------------------------------------------------------

    async def state(self, request: web.Request) -> web.StreamResponse:
        """What the page has to know before anything else."""
        head, server = self._head(request)
        require_own_page(head)
        return json_response(self._state(server, cookie_of(head, server, now_s=self._wall_clock())))

    def _state(self, server: ServerSettings, cookie: str | None) -> dict[str, Any]:
        return {
            # ``impossible``: only virtual keys are configured, and none of them may see this.
            "login": "none" if server.keyless else "impossible" if server.master_key is None else "key",
            "logged_in": cookie is not None,
            "csrf": None if cookie is None else Logins(server.master_key).token(cookie),
            "expires_at": None if not cookie else float(cookie.partition(".")[0]),
            "version": __version__,
        }

    async def login(self, request: web.Request) -> web.StreamResponse:
        """Take the master key, give the cookie."""
        head, server = self._head(request)
        require_own_page(head)
        client = client_of(request, server)
        self._require_patience(client)
        key = await self._key(request, server)
        # Others of this address may have failed while the key was on its way.
        self._require_patience(client)
        if server.master_key is None:
            raise PermissionDenied("A login needs general_settings.master_key, which is not set.")
        try:
            is_master = Authenticator(server, wall_clock=self._wall_clock).authenticate([key]).is_master
        except AuthenticationFailed:
            is_master = False
        if not is_master:
            self._throttle.failed(client)
            self._tell(Notice(level="warning", event="dashboard login refused", facts={"client": client}))
            raise AuthenticationFailed("This is not the master key.")
        now_s = self._wall_clock()
        cookie = Logins(server.master_key).cookie(now_s=now_s)
        self._tell(Notice(level="info", event="dashboard login", facts={"client": client}))
        header = self._cookie_header(request, head, server, cookie, LOGIN_S)
        return json_response(self._state(server, cookie), headers={"Set-Cookie": header})

    def _require_patience(self, client: str) -> None:
        wait_s = self._throttle.wait_s(client)
        if wait_s > 0:
            raise TooManyLogins(retry_after_s=wait_s)

    async def _key(self, request: web.Request, server: ServerSettings) -> Secret:
        if request.content_type != "application/json" or (request.content_length or 0) > _MOST_LOGIN_BYTES:
            raise BadHandshake('A login is JSON: {"key": "…"}.')
        try:
            async with asyncio.timeout(server.handshake_timeout_s):
                document = orjson.loads(await request.read())
        except (orjson.JSONDecodeError, TimeoutError):
            document = None
        key = document.get("key") if isinstance(document, dict) else None
        if not isinstance(key, str):
            raise BadHandshake('A login is JSON: {"key": "…"}.')
        return Secret(key)

    async def logout(self, request: web.Request) -> web.StreamResponse:
        """Make the browser forget the cookie."""
        head, server = self._head(request)
        require_own_page(head)
        principal_of(head, server, now_s=self._wall_clock())
        return json_response({"logged_in": False}, headers={"Set-Cookie": self._cookie_header(request, head, server, "", 0)})

    def _cookie_header(
        self, request: web.Request, head: handshake.RequestHead, server: ServerSettings, value: str, max_age_s: int
    ) -> str:
        # The prefix is there unless a proxy took it off, or the operator came around the proxy.
        prefix = server.root_path if head.path.startswith(f"{server.root_path}/") else ""
        secure = scheme_of(request, server) == "https"
        return set_cookie(value, path=f"{prefix}/", secure=secure, max_age_s=max_age_s)

    # --- the playground -----------------------------------------------------------------------------

    async def ticket(self, request: web.Request) -> web.StreamResponse:
        """Give a ticket to whoever is logged in."""
        head, server = self._head(request)
        now_s = self._wall_clock()
        if principal_of(head, server, now_s=now_s) is None and not server.keyless:
            raise AuthenticationFailed("A ticket needs a login at the dashboard.")
        origin = head.value("origin")
        if origin is None:
            raise BadHandshake("A ticket is bound to a page's origin, and this request names none.")
        cookie = cookie_of(head, server, now_s=now_s)
        ticket = Logins(server.master_key).ticket(cookie or "", origin, now_s=now_s)
        return json_response({"ticket": ticket, "expires_in_s": TICKET_S})

    async def play(self, request: web.Request) -> web.StreamResponse:
        """A session of the playground."""
        head = request_head(request)
        own = self._server_of()

        async def by_ticket(upgrade: handshake.Upgrade) -> Principal:
            nonce = check_ticket(head, own, now_s=self._wall_clock())
            try:
                fresh = await self._spend(nonce)
            except OSError as error:
                self._tell(Notice(level="warning", event="other workers not asked", facts={"what": "ticket", "error": error}))
                fresh = False
            if not fresh:
                raise AuthenticationFailed("The ticket was used before.")
            return Principal(name=DASHBOARD)

        # The ticket says which origin may connect, whatever pages sessions with a key may come from; its page reads no status.
        rules = replace(own, allowed_origins=("*",), handshake_errors="close")
        return await self._serve(request, replace(head, path=handshake.ROUTES[0]), rules, by_ticket)

    async def _spend_here(self, nonce: str) -> bool:
        return self._spent.first(nonce)

    # ------------------------------------------------------------------------------------------------

    def _head(self, request: web.Request) -> tuple[handshake.RequestHead, ServerSettings]:
        head, server = request_head(request), self._server_of()
        if server.keyless:
            handshake.check_keyless(head, peer=peer_address(request))
        return head, server
