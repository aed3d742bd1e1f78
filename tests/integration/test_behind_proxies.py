"""Behind nginx, HAProxy, Caddy and Envoy, each started from its sample in ``deploy/``: TLS ends there, two routers are behind.

The routers and their providers are processes that all tests of this file share; what a test wants to know of a session stands in
the record that its router wrote.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from router.config.settings import DrainSettings
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.parts import require
from tests.helpers.ports import free_port
from tests.helpers.proxies import (
    NO_EDITS,
    PREFIX_PASSED_ON,
    PREFIX_STRIPPED,
    PROXIES,
    SECOND_PROXY,
    SHORT_TIMEOUTS,
    Backends,
    Edits,
    Program,
    Site,
    backends,
    complaint,
    running,
)
from tests.helpers.running import MODEL, UPGRADE, config_of, running_router
from tests.helpers.tls import HOST, Authority
from tests.integration.test_clients import REPLY, SPOKEN, SPOKEN_SHA256, browser, node, sdk_turn, site

KEY = "rr-client-0123456789abcdefghijklmnop"
MIB = 1024 * 1024
PATIENCE_S = 30.0
# A client's address that is not the proxy's: all of 127/8 is this machine.
CLIENT = "127.0.0.9"
# Of a proxy in front of the proxy.
SECOND = "127.0.0.8"
EACH = pytest.mark.parametrize("kind", sorted(PROXIES))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxies have no say."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """What the proxies' certificates are issued by."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    """Two routers and their providers."""
    general = {"allowed_origins": ["*"], "trusted_proxies": ["127.0.0.1", SECOND]}
    with backends(tmp_path_factory.mktemp("backends"), key=KEY, reply=REPLY, general=general) as made:
        yield made


class Front:
    """A proxy that runs, and how to reach what is behind it.

    Attributes:
        program: the proxy.
        tls: a client's context that trusts its certificate.
    """

    def __init__(self, program: Program, authority: Authority) -> None:
        self.program = program
        self.tls = ssl.create_default_context(cafile=str(authority.ca_file))

    def url(self, model: str = MODEL, *, prefix: str = "") -> str:
        """Of a session."""
        return f"wss://{HOST}:{self.program.port}{prefix}/v1/realtime?model={model}"

    def connect(
        self, model: str = MODEL, *, key: str = KEY, prefix: str = "", headers: Mapping[str, str] | None = None, **how: Any
    ) -> connect_websocket:
        """A connection of the ``websockets`` library."""
        # By address: the name may mean ::1 first.
        how = {"host": "127.0.0.1", "port": self.program.port, "ping_interval": None, **how}
        return connect_websocket(
            self.url(model, prefix=prefix),
            additional_headers={"Authorization": f"Bearer {key}", **(headers or {})},
            ssl=self.tls,
            server_hostname=HOST,
            proxy=None,
            compression=None,
            max_size=64 * MIB,
            open_timeout=PATIENCE_S,
            **how,
        )

    async def refused(self, model: str, *, key: str | None = KEY) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        """Ask for a session that is refused; return status, headers and the ``error`` object."""
        return await ask(f"https://{HOST}:{self.program.port}/v1/realtime?model={model}", key=key, tls=self.tls)


async def ask(
    url: str, *, key: str | None, tls: ssl.SSLContext | None = None, upgrade: bool = True
) -> tuple[int, Mapping[str, str], dict[str, Any]]:
    """Make a request and return status, headers and the ``error`` object."""
    headers = {**(UPGRADE if upgrade else {}), **({} if key is None else {"Authorization": f"Bearer {key}"})}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session,
        session.get(url, headers=headers, ssl=tls if tls is not None else True) as answer,
    ):
        return answer.status, answer.headers, json.loads(await answer.read())["error"]


@asynccontextmanager
async def front(
    kind: str, ports: tuple[int, int], authority: Authority, folder: Path, *, edits: Edits = NO_EDITS
) -> AsyncIterator[Front]:
    """A proxy in front of two routers, until the block ends. It accepts connections and its health checks found both ready."""
    place = folder / kind
    place.mkdir()
    command = PROXIES[kind](Site(folder=place, port=free_port(), routers=ports, pair=authority.issue()), edits)
    with running(command) as program:
        await program.accepting()
        yield Front(program, authority)
        program.check_alive()


@pytest.fixture
async def proxy(kind: str, behind: Backends, authority: Authority, tmp_path: Path) -> AsyncIterator[Front]:
    """A proxy from its sample, in front of the shared routers."""
    await behind.accepting()
    async with front(kind, behind.ports, authority, tmp_path) as made:
        yield made


async def turn(ws: ClientConnection) -> bytes:
    """Hold a turn on a session that was greeted; return its sound."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say something."}]}
    await ws.send(json.dumps({"type": "conversation.item.create", "item": item}))
    await ws.send(json.dumps({"type": "response.create"}))
    sound = bytearray()
    async with asyncio.timeout(PATIENCE_S):
        async for message in ws:
            event = json.loads(message)
            assert event["type"] != "error", event
            if event["type"] == "response.output_audio.delta":
                sound += base64.b64decode(event["delta"])
            if event["type"] == "response.done":
                assert event["response"]["status"] == "completed"
                return bytes(sound)
    raise AssertionError("the session ended in the middle of the turn")


async def greeted(ws: ClientConnection) -> None:
    """Wait for the provider's first event."""
    async with asyncio.timeout(PATIENCE_S):
        assert json.loads(await ws.recv())["type"] == "session.created"


async def close_of(ws: ClientConnection) -> tuple[int, str]:
    """Read to the end; return the close code and reason that the other side sent."""
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await ws.recv()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


def session_of(ws: ClientConnection) -> str:
    """The router's id of a session."""
    assert ws.response is not None
    return ws.response.headers["x-router-session"]


# --- the sample itself ---------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("edits", [{}, PREFIX_STRIPPED, PREFIX_PASSED_ON], ids=["as it is", "prefix taken", "prefix passed on"])
def test_the_proxy_itself_finds_nothing_wrong(
    kind: str, edits: Mapping[str, Edits], authority: Authority, tmp_path: Path
) -> None:
    """``nginx -t``, ``haproxy -c``, ``caddy validate`` and ``envoy --mode validate`` take the sample, and the changes to it."""
    made = Site(folder=tmp_path, port=free_port(), routers=(free_port(), free_port()), pair=authority.issue())
    assert complaint(PROXIES[kind](made, edits.get(kind, NO_EDITS))) == ""


@EACH
def test_the_check_of_a_sample_can_fail(kind: str, authority: Authority, tmp_path: Path) -> None:
    """A sample with an unknown word in it is refused by the same check."""
    word = {"nginx": "least_conn;", "haproxy": "balance leastconn", "caddy": "lb_policy least_conn", "envoy": "lb_policy:"}[kind]
    made = Site(folder=tmp_path, port=free_port(), routers=(free_port(), free_port()), pair=authority.issue())
    assert complaint(PROXIES[kind](made, {word: f"frobnicate_{word}"})) != ""


# --- clients -------------------------------------------------------------------------------------


@EACH
async def test_websockets_and_the_openai_sdk(
    kind: str, proxy: Front, behind: Backends, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's ``websockets`` and ``AsyncOpenAI`` hold a turn each, and every byte of the sound arrives."""
    async with proxy.connect() as ws:
        await greeted(ws)
        assert await turn(ws) == SPOKEN
    record = await behind.record(session_of(ws))
    assert (record["who"], record["client_code"], record["turns"]) == ("client", 1000, 1)

    # The SDK makes its own context, of what OpenSSL trusts.
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    async with AsyncOpenAI(api_key=KEY, websocket_base_url=proxy.url().partition("/realtime")[0]) as client:
        assert await sdk_turn(client) == SPOKEN


@EACH
async def test_node(kind: str, proxy: Front, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ``ws`` package of Node.js holds the same turn, and reads why it is refused."""
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(authority.ca_file))
    # The name's first address may be IPv6's, where no proxy of these tests listens.
    monkeypatch.setenv("NODE_OPTIONS", "--dns-result-order=ipv4first")
    seen = json.loads(await node("client.mjs", proxy.url(), KEY))
    assert (seen["error"], seen["status"], seen["closeCode"]) == (None, "completed", 1000)
    assert (seen["audioBytes"], seen["sha256"]) == (len(SPOKEN), SPOKEN_SHA256)
    refused = json.loads(await node("client.mjs", proxy.url(), "wrong"))
    assert (refused["httpStatus"], refused["error"]["code"]) == (401, "invalid_api_key")


@EACH
async def test_a_page_in_chromium(kind: str, proxy: Front, tmp_path: Path) -> None:
    """A page holds a turn with its key among the subprotocols; one with a wrong key reads why, and gets 1008."""
    require("chromium")
    protocols = ["realtime", "openai-insecure-api-key."]
    async with site() as page:
        cases = [
            {"name": name, "url": proxy.url(), "protocols": [protocols[0], protocols[1] + key]}
            for name, key in (("right", KEY), ("wrong", "wrong"))
        ]
        async with browser(page.url(cases), tmp_path, "ignore-certificate-errors"), asyncio.timeout(PATIENCE_S):
            right, wrong = await page.outcome
    assert (right["protocol"], right["error"], right["status"]) == ("realtime", None, "completed")
    assert (right["audioBytes"], right["sha256"], right["code"]) == (len(SPOKEN), SPOKEN_SHA256, 1000)
    assert (wrong["types"], wrong["code"], wrong["reason"], wrong["clean"]) == (["error"], 1008, "invalid_api_key", True)


# --- what is said --------------------------------------------------------------------------------


@EACH
async def test_messages_of_20_mib_both_ways(kind: str, proxy: Front) -> None:
    """The largest message that a provider accepts passes whole in both directions, as text and as binary."""
    audio = base64.b64encode(os.urandom(15 * MIB)).decode()
    text = f'{{"type":"input_audio_buffer.append","audio":"{audio}"}}'
    data = os.urandom(20 * MIB)
    assert len(text) > 20 * MIB
    async with proxy.connect("echo") as ws, asyncio.timeout(2 * PATIENCE_S):
        for message in (text, data):
            await ws.send(message)
            assert await ws.recv() == message


@EACH
async def test_close_codes_pass_both_ways(kind: str, proxy: Front, behind: Backends) -> None:
    """The client's code and reason reach the router and the provider, and the provider's reach the client."""
    async with proxy.connect() as ws:
        await greeted(ws)
        await ws.close(4001, "the client's own")
    record = await behind.record(session_of(ws))
    assert (record["who"], record["client_code"], record["upstream_code"]) == ("client", 4001, 4001)

    fault = {"verb": "close_after_events", "events": 1, "code": 4002, "reason": "the provider's own", "next": 1}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"http://127.0.0.1:{behind.voice.port}/_sim/faults", json=fault) as answer:
            assert answer.status == 200
    async with proxy.connect() as ws:
        assert await close_of(ws) == (4002, "the provider's own")


@EACH
async def test_refusals_pass_unchanged(kind: str, proxy: Front, behind: Backends) -> None:
    """What the router answers in the place of a session arrives as it does without a proxy: status, JSON, headers that matter."""
    direct = f"http://127.0.0.1:{behind.ports[0]}/v1/realtime?model="
    cases = ((401, MODEL, "wrong"), (401, MODEL, None), (404, "nobody", KEY), (429, "limited", KEY), (503, "down", KEY))
    for status, model, key in cases:
        expected = await ask(f"{direct}{model}", key=key)
        found = await proxy.refused(model, key=key)
        assert (found[0], expected[0]) == (status, status)
        assert found[2] == expected[2]
        for name in ("Content-Type", "WWW-Authenticate", "Cache-Control"):
            assert found[1].get(name) == expected[1].get(name), name
        assert ("Retry-After" in found[1]) == ("Retry-After" in expected[1])
        assert found[1]["x-router-session"]
    with pytest.raises(InvalidStatus) as refused:
        async with proxy.connect("nobody"):
            pass
    assert json.loads(refused.value.response.body)["error"]["code"] == "model_not_found"


# --- who it is -----------------------------------------------------------------------------------


@EACH
async def test_the_client_is_who_the_proxy_says(kind: str, proxy: Front, behind: Backends) -> None:
    """The record has the client's real address, whatever ``X-Forwarded-For`` it made up."""
    spoofed = {"X-Forwarded-For": "198.51.100.7, 127.0.0.1", "X-Real-IP": "198.51.100.7", "Forwarded": "for=198.51.100.7"}
    for headers in ({}, spoofed):
        async with proxy.connect(headers=headers, local_addr=(CLIENT, 0)) as ws:
            await greeted(ws)
        assert (await behind.record(session_of(ws)))["client"] == CLIENT


@EACH
async def test_the_client_of_a_proxy_in_front_of_the_proxy(
    kind: str, behind: Backends, authority: Authority, tmp_path: Path
) -> None:
    """With both trusted, the record has the address that the first of them saw, and not what stood before it."""
    await behind.accepting()
    chain = {"X-Forwarded-For": "198.51.100.7, 203.0.113.5"}
    async with front(kind, behind.ports, authority, tmp_path, edits=SECOND_PROXY[kind]) as proxy:
        async with proxy.connect(headers=chain, local_addr=(SECOND, 0)) as ws:
            await greeted(ws)
        assert (await behind.record(session_of(ws)))["client"] == "203.0.113.5"


async def test_who_is_no_proxy_is_not_believed(behind: Backends) -> None:
    """One that reaches the router past the proxy is recorded by its own address, whatever it claims."""
    await behind.accepting()
    async with connect_websocket(
        f"ws://127.0.0.1:{behind.ports[0]}/v1/realtime?model={MODEL}",
        additional_headers={"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "198.51.100.7"},
        local_addr=(CLIENT, 0),
        proxy=None,
    ) as ws:
        await greeted(ws)
    assert (await behind.record(session_of(ws)))["client"] == CLIENT


async def sessions_of(port: int) -> int:
    """Sessions that a router has."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        async with session.get(f"http://127.0.0.1:{port}/admin/deployments") as answer:
            groups = (await answer.json())["groups"]
    return sum(deployment["sessions"] for group in groups for deployment in group["deployments"])


async def sessions_on_each(ports: tuple[int, int]) -> tuple[int, int]:
    """Sessions that two routers have."""
    first, second = ports
    return await sessions_of(first), await sessions_of(second)


async def here(first: int, second: int) -> tuple[int, int]:
    """The same of two routers in this process."""
    return first, second


async def held_on_both(proxy: Front, counts: Callable[[], Awaitable[tuple[int, int]]]) -> list[ClientConnection]:
    """Open sessions until each router has one; return them.

    The second one does it, unless the machine is so busy that a health check came too late, or the proxy draws lots (Envoy).
    """
    held: list[ClientConnection] = []
    async with asyncio.timeout(PATIENCE_S):
        while not all(await counts()):
            held.append(await proxy.connect())
            await greeted(held[-1])
            if len(held) > 4:
                await asyncio.sleep(0.1)
    return held


# --- two of them ---------------------------------------------------------------------------------


@EACH
async def test_sessions_are_spread_and_a_router_that_died_is_not_noticed(
    kind: str, authority: Authority, tmp_path: Path
) -> None:
    """Both routers get sessions, and when one of them is gone every new session works at once."""
    with backends(tmp_path, key=KEY, reply=REPLY) as made:
        await made.accepting()
        async with front(kind, made.ports, authority, tmp_path) as proxy:
            held = await held_on_both(proxy, lambda: sessions_on_each(made.ports))
            made.routers[0].kill()
            for _ in range(6):
                async with proxy.connect() as ws:
                    await greeted(ws)
            for ws in held:
                await ws.close()


@pytest.mark.parametrize("kind", ["caddy", "envoy", "haproxy"])
async def test_a_router_that_is_not_ready_gets_no_new_session(
    kind: str, authority: Authority, tmp_path: Path, simulator: SimulatorFactory
) -> None:
    """Active checks see the 503 of ``/health/ready``: new sessions go to the other router, the running one goes on."""
    sim = await simulator(reply=REPLY)
    config = config_of(sim, general={"master_key": KEY, "trusted_proxies": ["127.0.0.1"]})
    async with running_router(config) as leaving, running_router(config) as staying:
        async with front(kind, (leaving.port, staying.port), authority, tmp_path) as proxy:
            held = await held_on_both(proxy, lambda: here(leaving.engine.sessions, staying.engine.sessions))
            before = leaving.engine.sessions

            leaving.engine.stopping = True
            # It refuses whoever comes before the proxy has noticed; once it has, nobody comes any more.
            in_a_row = 0
            async with asyncio.timeout(PATIENCE_S):
                while in_a_row < 8:
                    seen = len(leaving.refusals)
                    try:
                        async with proxy.connect() as ws:
                            await greeted(ws)
                    except InvalidStatus as error:
                        assert error.response.status_code == 503
                    in_a_row = in_a_row + 1 if len(leaving.refusals) == seen else 0
            assert leaving.engine.sessions == before
            for ws in held:
                assert await turn(ws) == SPOKEN
                await ws.close()


async def test_nginx_asks_the_other_router(authority: Authority, tmp_path: Path, simulator: SimulatorFactory) -> None:
    """Nginx has no active checks: a 503 of a router that drains never reaches a client while the other one takes the session."""
    sim = await simulator(reply=REPLY)
    config = config_of(sim, general={"master_key": KEY, "trusted_proxies": ["127.0.0.1"]})
    async with running_router(config) as leaving, running_router(config) as staying:
        async with front("nginx", (leaving.port, staying.port), authority, tmp_path) as proxy:
            leaving.engine.stopping = True
            for _ in range(8):
                async with proxy.connect() as ws:
                    await greeted(ws)
            assert leaving.refusals and not leaving.records
            await staying.idle()
            assert len(staying.records) == 8


# Remove the mark when SIGTERM lets running sessions go on.
@EACH
async def test_a_router_that_is_asked_to_end_is_not_noticed(kind: str, authority: Authority, tmp_path: Path) -> None:
    """From SIGTERM until after the grace every new session is served, the running ones go on, and the process ends with 0."""
    default = DrainSettings()
    drain = {"grace_s": default.grace_s, "timeout_s": default.timeout_s}
    with backends(tmp_path, key=KEY, reply=REPLY, general={"drain": drain}) as made:
        await made.accepting()
        leaving, _ = made.routers
        async with front(kind, made.ports, authority, tmp_path) as proxy:
            held = await held_on_both(proxy, lambda: sessions_on_each(made.ports))
            leaving.ask_to_end()
            since_refusing = 0
            async with asyncio.timeout(PATIENCE_S):
                while since_refusing < 10:
                    async with proxy.connect() as ws:
                        await greeted(ws)
                    # During the grace it still looks for a deployment.
                    error = (await ask(f"http://127.0.0.1:{leaving.port}/v1/realtime?model=down", key=KEY))[2]
                    assert error["code"] in ("no_deployment_available", "router_shutting_down")
                    since_refusing += error["code"] == "router_shutting_down"
            leaving.check_alive()
            for ws in held:
                assert await turn(ws) == SPOKEN
                await ws.close()
            assert await leaving.ended() == 0


# --- silence -------------------------------------------------------------------------------------

async def test_pings_keep_an_idle_session(authority: Authority, tmp_path: Path) -> None:
    """With time-outs of 3 s in the proxies and pings each second, a session that says nothing for 8 s works afterwards.

    Without pings a proxy that has such a time-out ends it: so it was the pings. All proxies at once, for the time.
    """
    intervals = {"pings": {"ping_interval_s": 1, "ping_timeout_s": 60}, "none": {"ping_interval_s": 3600, "ping_timeout_s": 7200}}
    async with AsyncExitStack() as stack:
        behind = {}
        for name, interval in intervals.items():
            (tmp_path / name).mkdir()
            behind[name] = stack.enter_context(backends(tmp_path / name, key=KEY, reply=REPLY, router=interval))

        async def session(name: str, kind: str) -> ClientConnection:
            edits = SHORT_TIMEOUTS[kind]
            proxy = await stack.enter_async_context(front(kind, behind[name].ports, authority, tmp_path / name, edits=edits))
            ws = await stack.enter_async_context(proxy.connect())
            await greeted(ws)
            return ws

        for made in behind.values():
            await made.accepting()
        # First those that need no pings to get so far.
        kept = {kind: await session("pings", kind) for kind in PROXIES}
        cut = {kind: await session("none", kind) for kind in PROXIES}
        # Whether time alone ends them is what is asked.
        await asyncio.sleep(8)
        for kind, ws in kept.items():
            assert await turn(ws) == SPOKEN, kind
        for kind, ws in cut.items():
            if SHORT_TIMEOUTS[kind]:
                with pytest.raises(ConnectionClosed):
                    await turn(ws)
            else:
                assert await turn(ws) == SPOKEN, kind


# --- under a prefix ------------------------------------------------------------------------------


@EACH
async def test_a_prefix_that_the_proxy_takes_away(kind: str, behind: Backends, authority: Authority, tmp_path: Path) -> None:
    """``/voice/v1/realtime`` outside is ``/v1/realtime`` inside, by the change that the documentation names."""
    await behind.accepting()
    async with front(kind, behind.ports, authority, tmp_path, edits=PREFIX_STRIPPED[kind]) as proxy:
        async with proxy.connect(prefix="/voice") as ws:
            await greeted(ws)
            assert await turn(ws) == SPOKEN


# What is missing here is the router's side: remove the mark when it serves under general_settings.root_path.
@EACH
async def test_a_prefix_that_the_proxy_passes_on(kind: str, authority: Authority, tmp_path: Path) -> None:
    """``/voice/v1/realtime`` outside is the same inside, where the router's paths begin with it; health checks know that."""
    with backends(tmp_path, key=KEY, reply=REPLY, general={"root_path": "/voice"}) as made:
        await made.accepting()
        async with front(kind, made.ports, authority, tmp_path, edits=PREFIX_PASSED_ON[kind]) as proxy:
            async with proxy.connect(prefix="/voice") as ws:
                await greeted(ws)
                assert await turn(ws) == SPOKEN
            # Long enough for two failed checks, had they asked the wrong path.
            await asyncio.sleep(3)
            async with proxy.connect(prefix="/voice") as ws:
                await greeted(ws)
