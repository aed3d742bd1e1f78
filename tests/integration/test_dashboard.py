"""The dashboard over HTTP: its page and files, login and logout, what a cookie may do, tickets and the playground's sessions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from router.dashboard.files import static_files
from router.dashboard.login import COOKIE, Logins
from router.events import Notice, SessionRecord
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.processes import router_process, written
from tests.helpers.running import RunningRouter, config_of, run_turn, running_router

MASTER = "sk-master-0123456789abcdef"
KEYED = {"master_key": MASTER}


class Visitor:
    """A browser, as far as HTTP goes: it keeps the cookie and sends what the page sends."""

    def __init__(self, router: RunningRouter, http: aiohttp.ClientSession, base: str | None = None) -> None:
        self.base = base if base is not None else router.http
        self.http = http
        self.cookie = ""
        self.csrf = ""

    async def ask(self, path: str, *, method: str = "GET", json: Any = None, **headers: str) -> aiohttp.ClientResponse:
        """Make a request of the page; a header of the page's own may be changed, an empty one is left out."""
        sent = {"Origin": self.base, "Sec-Fetch-Site": "same-origin", "x-router-csrf": self.csrf}
        if self.cookie:
            sent["Cookie"] = f"{COOKIE}={self.cookie}"
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        sent = {name: value for name, value in sent.items() if value}
        answer = await self.http.request(method, self.base + path, json=json, headers=sent, allow_redirects=False)
        await answer.read()
        return answer

    async def login(self, key: str = MASTER, **headers: str) -> aiohttp.ClientResponse:
        """Log in; keep the cookie and its token."""
        answer = await self.ask("/dashboard/login", method="POST", json={"key": key}, **headers)
        if answer.status == 200:
            self.cookie = answer.cookies[COOKIE].value
            self.csrf = (await answer.json())["csrf"]
        return answer

    async def ticket(self) -> str:
        """A fresh ticket."""
        answer = await self.ask("/dashboard/tickets", method="POST", json={})
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["ticket"])

    def play(self, ticket: str, *, model: str = "voice", origin: str | None = None, cookie: str | None = None) -> Any:
        """A session of the playground."""
        cookie = self.cookie if cookie is None else cookie
        headers = {"Cookie": f"{COOKIE}={cookie}", "User-Agent": "Mozilla/5.0"}
        return connect_websocket(
            f"ws{self.base.removeprefix('http')}/dashboard/realtime?model={model}",
            origin=self.base if origin is None else origin,  # type: ignore[arg-type]  # any text is tried
            subprotocols=[Subprotocol("realtime"), Subprotocol(f"router-ticket.{ticket}")],
            additional_headers=headers,
            proxy=None,
            ping_interval=None,
        )


@asynccontextmanager
async def visitor(router: RunningRouter, base: str | None = None) -> AsyncIterator[Visitor]:
    """Somebody with a browser."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield Visitor(router, http, base)


async def refusal(connection: Any) -> tuple[str, int | None, str]:
    """The code of the error event that a refused session gets, and the close code and reason."""
    async with connection as ws:
        event = await ws.recv()
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
    received = closed.value.rcvd
    found = re.search(r'"code":\s*"([^"]+)"', event)
    assert found is not None and received is not None
    return found[1], received.code, received.reason


# --- the page ------------------------------------------------------------------------------------


async def test_the_page_and_all_its_files(simulator: SimulatorFactory) -> None:
    """Everything is served from here with a strict policy; nothing in the page is written inline or comes from elsewhere."""
    async with running_router(config_of(await simulator(), general=KEYED)) as router, visitor(router) as page:
        answer = await page.ask("/")
        html = await answer.text()
        assert (answer.status, answer.content_type) == (200, "text/html")
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        for kind in ("script-src", "style-src", "connect-src"):
            assert policy[kind] == "'self'"
        assert policy["img-src"] == "'self' data:"
        assert policy["frame-ancestors"] == "'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "microphone=(self)" in answer.headers["Permissions-Policy"]
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=|https?:|(?:src|href)=\"/", html)
        linked = re.findall(r'(?:src|href)="(dashboard/[^"]+)"', html)
        assert len(linked) == 4
        for path in linked:
            found = await page.ask(f"/{path}")
            assert found.status == 200 and "immutable" in found.headers["Cache-Control"]


async def test_files_are_revalidated_and_no_other_path_is_served(simulator: SimulatorFactory) -> None:
    """A known tag gets 304; another version's address gets today's file, not to be kept; what is no file is not found."""
    version = static_files().version
    async with running_router(config_of(await simulator(), general=KEYED)) as router, visitor(router) as page:
        first = await page.ask(f"/dashboard/{version}/app.js")
        assert first.content_type == "text/javascript"
        again = await page.ask(f"/dashboard/{version}/app.js", If_None_Match=f'"x", W/{first.headers["ETag"]}')
        assert (again.status, await again.read()) == (304, b"")
        other = await page.ask("/dashboard/0123456789abcdef/app.js")
        assert other.status == 200 and other.headers["Cache-Control"] == "no-cache"
        document = await page.ask("/")
        assert (await page.ask("/", If_None_Match=document.headers["ETag"])).status == 304
        for path in ("login.py", "../login.py", "%2e%2e/login.py", "index.html", "vendor", "vendor/", ""):
            assert (await page.ask(f"/dashboard/{version}/{path}")).status == 404, path


def test_every_import_and_file_of_the_page_exists() -> None:
    """A module that is named and missing would show an empty page; an address from elsewhere would be refused."""
    files = static_files()
    for path, file in files.by_path.items():
        if not path.endswith(".js") or path.startswith("vendor/"):
            continue
        text = file.body.decode()
        for name in re.findall(r'from "([^"]+)"|URL\("(\./[^"]+)"', text):
            named = next(filter(None, name))
            assert named.startswith("./") and named.removeprefix("./") in files.by_path, (path, named)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", text), path
        assert not re.search(r"https?://(?!www\.w3\.org)", text), path


async def test_without_the_dashboard_nothing_of_it_is_served(simulator: SimulatorFactory) -> None:
    """``dashboard: false`` leaves the admin API."""
    general = {**KEYED, "dashboard": False}
    async with running_router(config_of(await simulator(), general=general)) as router:
        for path in ("/", "/dashboard/login", "/dashboard/realtime"):
            assert (await router.request(path)).status == 404
        assert (await router.request("/admin/deployments", key=MASTER)).status == 200


# --- login ---------------------------------------------------------------------------------------


async def test_a_login_opens_the_admin_api_and_a_logout_ends_it(simulator: SimulatorFactory) -> None:
    """The cookie is HttpOnly and SameSite=Strict, works with its token alone, and is forgotten at the logout."""
    async with running_router(config_of(await simulator(), general=KEYED)) as router, visitor(router) as page:
        assert (await (await page.ask("/dashboard/login")).json())["logged_in"] is False
        assert (await page.ask("/admin/deployments")).status == 401
        answer = await page.login()
        cookie = answer.cookies[COOKIE]
        assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["secure"]) == (True, "Strict", "/", "")
        assert answer.headers["Cache-Control"] == "no-store"
        state = await (await page.ask("/dashboard/login")).json()
        assert state["logged_in"] and state["csrf"] == page.csrf and state["login"] == "key"
        assert (await page.ask("/admin/deployments")).status == 200
        assert (await page.ask("/admin/deployments", x_router_csrf="")).status == 403
        assert (await page.ask("/admin/deployments", Sec_Fetch_Site="same-site")).status == 403
        gone = await page.ask("/dashboard/logout", method="POST", json={})
        assert (gone.cookies[COOKIE].value, gone.cookies[COOKIE]["max-age"]) == ("", "0")
        assert [notice.event for notice in router.of(Notice) if "dashboard" in notice.event] == ["dashboard login"]


@pytest.mark.parametrize("key", ["", "sk-wrong", MASTER + "x", "é\U0001f600", "x" * 10_000])
async def test_a_wrong_key_gets_no_cookie(simulator: SimulatorFactory, key: str) -> None:
    """It is refused and told to the log, without the key."""
    async with running_router(config_of(await simulator(), general=KEYED)) as router, visitor(router) as page:
        answer = await page.login(key)
        assert answer.status == 401 and "Set-Cookie" not in answer.headers
        (notice,) = [notice for notice in router.of(Notice) if notice.event == "dashboard login refused"]
        assert dict(notice.facts) == {"client": "127.0.0.1"}


async def test_a_virtual_key_is_no_login(simulator: SimulatorFactory) -> None:
    """Whoever may open sessions may not operate the router."""
    from router.auth import new_key

    key, digest = new_key()
    general = {**KEYED, "keys": [{"name": "team", "sha256": digest}]}
    async with running_router(config_of(await simulator(), general=general)) as router, visitor(router) as page:
        assert (await page.login(key)).status == 401


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Sec_Fetch_Site": "cross-site"}, b'{"key": "x"}', 403),
        ({"Sec_Fetch_Site": "", "Origin": "http://evil.example"}, b'{"key": "x"}', 403),
        ({"Content_Type": "text/plain"}, b'{"key": "x"}', 400),
        ({}, b"", 400),
        ({}, b"[]", 400),
        ({}, b'{"key": 1}', 400),
        ({}, b"\xff", 400),
        ({}, b'{"key": "' + b"x" * 20_000 + b'"}', 400),
        ({}, b"[" * 15_000, 400),
    ],
)
async def test_what_is_no_login_is_refused(
    simulator: SimulatorFactory, headers: dict[str, str], body: bytes, status: int
) -> None:
    """Other origins, other types and whatever is no JSON with a key."""
    async with running_router(config_of(await simulator(), general=KEYED)) as router, visitor(router) as page:
        sent = {"Origin": page.base, "Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        sent = {name: value for name, value in sent.items() if value}
        async with page.http.post(f"{page.base}/dashboard/login", data=body, headers=sent) as answer:
            assert answer.status == status, await answer.text()
            assert "Set-Cookie" not in answer.headers


async def test_guessing_is_slowed_down(simulator: SimulatorFactory) -> None:
    """After ten wrong keys even the right one has to wait, and the answer says how long."""
    async with running_router(config_of(await simulator(), general=KEYED)) as router, visitor(router) as page:
        for _ in range(10):
            assert (await page.login("wrong")).status == 401
        answer = await page.login()
        assert answer.status == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 300


async def test_guessing_by_many_connections_at_once_is_slowed_down(simulator: SimulatorFactory) -> None:
    """Who opens all connections before the first guess and writes the keys last gets no more guesses than who waits for answers.

    The failures were once counted before a key had come, and not again.
    """
    async with running_router(config_of(await simulator(), general=KEYED)) as router:
        connections = []
        for number in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            body = b'{"key": "guess-%d"}' % number
            head = b"Host: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d" % len(body)
            writer.write(b"POST /dashboard/login HTTP/1.1\r\n%b\r\n\r\n" % head)
            # Each handler runs, and waits for its body.
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            connections.append((reader, writer, body))
        for _, writer, body in connections:
            writer.write(body)
        statuses = [int((await reader.readline()).split()[1]) for reader, *_ in connections]
        for _, writer, _ in connections:
            writer.close()
    assert (statuses.count(401), statuses.count(429)) == (10, 10)


async def test_behind_a_proxy_the_cookie_is_secure(simulator: SimulatorFactory) -> None:
    """A trusted proxy says that the browser speaks https; its client's address is the one that is slowed down."""
    general = {**KEYED, "trusted_proxies": ["127.0.0.1"]}
    async with running_router(config_of(await simulator(), general=general)) as router, visitor(router) as page:
        answer = await page.login(X_Forwarded_Proto="https", X_Forwarded_For="198.51.100.7")
        assert answer.cookies[COOKIE]["secure"] is True
        await page.login("wrong", X_Forwarded_For="198.51.100.7")
        facts = [dict(notice.facts) for notice in router.of(Notice) if notice.event == "dashboard login refused"]
        assert facts == [{"client": "198.51.100.7"}]


async def test_a_router_without_keys_needs_no_login_and_serves_its_own_page_alone(simulator: SimulatorFactory) -> None:
    """Any page could ask localhost: only what comes from the own page, or from no page, is answered."""
    async with running_router(config_of(await simulator())) as router, visitor(router) as page:
        state = await (await page.ask("/dashboard/login")).json()
        assert (state["login"], state["logged_in"]) == ("none", True)
        assert (await page.ask("/admin/deployments")).status == 200
        assert (await router.request("/admin/deployments")).status == 200
        for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "", "Origin": "http://evil.example"}):
            assert (await page.ask("/admin/deployments", **headers)).status == 403
            assert (await page.ask("/dashboard/tickets", method="POST", json={}, **headers)).status == 403
        for headers in ({"Host": "router.example"}, {"X_Forwarded_For": "198.51.100.7"}):
            assert (await page.ask("/", **headers)).status == 403


async def test_a_router_with_virtual_keys_alone_says_why_nobody_can_log_in(simulator: SimulatorFactory) -> None:
    """There is no key that would open it."""
    from router.auth import new_key

    general = {"keys": [{"name": "team", "sha256": new_key()[1]}]}
    async with running_router(config_of(await simulator(), general=general)) as router, visitor(router) as page:
        assert (await (await page.ask("/dashboard/login")).json())["login"] == "impossible"
        answer = await page.login("anything")
        assert answer.status == 403 and "master_key" in await answer.text()


# --- the playground ------------------------------------------------------------------------------


@pytest.mark.parametrize("general", [KEYED, {}], ids=["keyed", "keyless"])
async def test_a_session_of_the_playground(simulator: SimulatorFactory, general: dict[str, Any]) -> None:
    """It runs like any other, in the name of the dashboard, with no key of anybody's in sight of the provider."""
    sim = await simulator()
    async with running_router(config_of(sim, general=general)) as router, visitor(router) as page:
        if general:
            await page.login()
        async with page.play(await page.ticket()) as ws:
            assert ws.subprotocol == "realtime"
            assert '"session.created"' in await ws.recv()
            assert "response.output_audio.delta" in await run_turn(ws)
        record = await router.until(SessionRecord)
        assert (record.principal, record.group, record.who) == ("dashboard", "voice", "client")
        dial = sim.stats.last_request
        assert dial is not None and dial.protocols == ()
        assert not {name.lower() for name in dial.headers} & {"cookie", "origin"}


async def test_a_ticket_serves_once_its_login_and_the_own_page(simulator: SimulatorFactory) -> None:
    """A used or forged one, another page's, another login's or none at all gets an error event and 1008."""
    async with running_router(config_of(await simulator(), general=KEYED)) as router, visitor(router) as page:
        await page.login()
        used = await page.ticket()
        async with page.play(used) as ws:
            await ws.recv()
        other = Logins(router.loaded.settings.server.master_key).cookie(now_s=1e9)
        for connection in (
            page.play(used),
            page.play("x"),
            page.play(await page.ticket(), cookie=other),
            page.play(await page.ticket(), origin="http://evil.example"),
        ):
            assert await refusal(connection) == ("invalid_api_key", 1008, "invalid_api_key")
        assert await refusal(page.play(await page.ticket(), model="nobody")) == ("model_not_found", 1008, "model_not_found")


async def test_a_ticket_needs_a_login(simulator: SimulatorFactory) -> None:
    """Without the cookie there is none, and without an origin neither; the master key itself needs none."""
    async with running_router(config_of(await simulator(), general=KEYED)) as router, visitor(router) as page:
        assert (await page.ask("/dashboard/tickets", method="POST", json={})).status == 401
        await page.login()
        assert (await page.ask("/dashboard/tickets", method="POST", json={}, Origin="")).status == 400
        assert (await page.ask("/dashboard/tickets", method="POST", json={}, x_router_csrf="x")).status == 403


async def test_the_playground_follows_its_own_origin_and_not_the_clients(simulator: SimulatorFactory) -> None:
    """``allowed_origins`` names the pages of clients; the dashboard's own works beside them, on the operators' address too."""
    general = {**KEYED, "allowed_origins": ["https://app.example"], "handshake_errors": "http"}
    general["ops_listen"] = "127.0.0.1:0"
    async with running_router(config_of(await simulator(), general=general)) as router:
        base = "http://{}:{}".format(*router.server.addresses[-1])
        assert (await router.request("/")).status == 404
        async with visitor(router, base) as page:
            await page.login()
            async with page.play(await page.ticket()) as ws:
                assert '"session.created"' in await ws.recv()
            assert (await refusal(page.play("x")))[1] == 1008
        await router.until(SessionRecord)


async def test_a_ticket_serves_once_in_all_workers(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """Whichever worker gave it and whichever takes it: of many that come with the same ticket one gets a session."""
    config = config_of(await simulator(), general={**KEYED, "workers": 2})
    async with router_process(written(tmp_path, config)) as router, aiohttp.ClientSession() as http:
        page = Visitor(cast(RunningRouter, router), http, router.http)
        await page.login()
        ticket = await page.ticket()

        async def first_event() -> str:
            async with page.play(ticket) as ws:
                return str(await ws.recv())

        def workers() -> set[int]:
            return {line["worker"] for name in ("session ended", "request refused") for line in router.lines(name)}

        events = await asyncio.gather(*(first_event() for _ in range(12)))
        assert sum('"session.created"' in event for event in events) == 1
        assert sum('"invalid_api_key"' in event for event in events) == 11
        async with asyncio.timeout(20):
            while len(workers()) < 2:
                # Which worker gets a connection is the kernel's choice.
                assert '"invalid_api_key"' in await first_event()
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_new_master_key_ends_the_login(simulator: SimulatorFactory, tmp_path: Path, workers: int) -> None:
    """A login outlives a restart with the same key; from a reload with another one on neither cookie nor login works."""
    config = config_of(await simulator(), general={**KEYED, "workers": workers, "watch": False})
    file = written(tmp_path, config)
    # A worker whose parent was killed waits for connections that are kept alive.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), connector=connector) as http:
        async with router_process(file) as first:
            page = Visitor(cast(RunningRouter, first), http, first.http)
            await page.login()
        async with router_process(file) as second:
            page.base = second.http
            assert (await page.ask("/admin/deployments")).status == 200
            config["general_settings"]["master_key"] = MASTER + "-rotated"
            written(tmp_path, config)
            answer = await page.ask("/admin/reload", method="POST", json={})
            assert answer.status == 200, await answer.text()
            assert (await page.ask("/admin/deployments")).status == 401
            assert (await page.ask("/dashboard/tickets", method="POST", json={})).status == 401
            assert (await (await page.ask("/dashboard/login")).json())["logged_in"] is False
            assert (await page.login()).status == 401
            assert (await page.login(MASTER + "-rotated")).status == 200
            assert (await page.ask("/admin/deployments")).status == 200
