"""Nothing secret leaves the router, nothing internal reaches a client: good and failing sessions of every kind, then a search.

Every key is a string that occurs nowhere else. Providers are as indiscreet as they can be: what a refusal says is all that it was
sent. What clients got is compared byte by byte, as raw connections see it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from router.relay.frames import CLOSE, TEXT, close_payload, encode_frame
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.processes import router_process, written
from tests.helpers.running import closed_port, raw_server, read_head, running_router

DEADLINE_S = 30.0
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3

# What each is for → the secret. No prefix by which a pattern would find it: they must not get out, rather than be found.
SECRETS = {
    name: f"{hashlib.sha256(name.encode()).hexdigest()[:20]}Zq"
    for name in (
        *("master key", "virtual key", "openai key", "xai key", "azure key", "failing key", "compatible key"),
        *("extra header", "extra query", "base query", "proxy password", "organization of the client", "cookie"),
    )
}
# Real Entra tokens are this long at the least.
SECRETS |= {name: f"{name.encode().hex()}.{'q7' * 300}" for name in ("entra literal", "entra file", "entra command")}
WAYS: dict[str, tuple[str, str]] = {
    # How a key is handed over → header lines and query; {} is the key.
    "bearer": ("Authorization: Bearer {}", ""),
    "lower bearer": ("authorization: bearer {}", ""),
    "api-key": ("api-key: {}", ""),
    "x-api-key": ("X-Api-Key: {}", ""),
    "openai subprotocol": ("Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{}", ""),
    "xai subprotocol": ("Sec-WebSocket-Protocol: realtime,xai-client-secret.{}", ""),
    "query api-key": ("", "api-key={}"),
    "query api_key": ("", "api_key={}"),
}
WRONG = {way: f"{hashlib.sha256(way.encode()).hexdigest()[:20]}Wx" for way in WAYS}


# --- providers -----------------------------------------------------------------------------------


def accepted(head: bytes) -> bytes:
    """The 101 to a request."""
    found = re.search(rb"(?im)^sec-websocket-key: *(\S+)", head)
    assert found is not None
    accept = base64.b64encode(hashlib.sha1(found[1] + _GUID, usedforsecurity=False).digest())
    return UPGRADED + accept + b"\r\n\r\n"


def told(head: bytes) -> tuple[str, str]:
    """The whole request as text, and the key in it."""
    text = head.decode("latin-1")
    found = re.search(r"(?im)^(?:authorization: bearer|api-key:|proxy-authorization: basic) *(\S+)", text)
    return text, found[1] if found is not None else "nothing"


def answer(head: bytes, how: str) -> bytes:
    """An indiscreet refusal."""
    text, key = told(head)
    error = {"type": key[:60], "code": key[:60], "param": key[:60], "message": f"Incorrect API key provided: {key}. {text}"}
    body = json.dumps({"error": error}).encode()
    length = f"Content-Length: {len(body)}\r\nx-key: {key[:900]}\r\nWWW-Authenticate: Bearer realm={key[:900]}\r\n"
    if how in ("401", "400", "429", "503", "407"):
        return f"HTTP/1.1 {how} {key[:60]}\r\n{length}Retry-After: 1\r\n\r\n".encode() + body
    if how == "redirect":
        return f"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:9/{key[:900]}?key={key[:900]}\r\n{length}\r\n".encode() + body
    if how == "no http":
        return f"{key} {text}\r\n\r\n".encode()
    if how == "wrong accept":
        return UPGRADED + key[:60].encode() + b"\r\n\r\n"
    event = json.dumps({"type": "error", "event_id": key[:60], "error": error}).encode()
    close = encode_frame(CLOSE, close_payload(3000, key))
    if how == "event":
        return accepted(head) + encode_frame(TEXT, event) + close
    if how == "close":
        return accepted(head) + close
    if how == "no event":
        return accepted(head) + encode_frame(TEXT, key.encode())
    assert how == "no frame"
    return accepted(head) + b"\xff\xff" + key.encode()


FAILURES = ("401", "400", "429", "503", "redirect", "no http", "wrong accept", "event", "close", "no event", "no frame")


@dataclass(slots=True)
class World:
    """Providers, and a configuration that has a group for every kind of session."""

    config: dict[str, Any] = field(default_factory=dict)
    working: list[str] = field(default_factory=list)  # groups
    failing: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)  # "host:port" of providers and proxies
    seen: list[bytes] = field(default_factory=list)  # what the indiscreet providers were sent

    def add(self, group: str, model: str, *, works: bool, **params: Any) -> None:
        """Add a group of one deployment."""
        (self.working if works else self.failing).append(group)
        self.config["model_list"].append(
            {"model_name": group, "litellm_params": {"model": model, **params}, "model_info": {"mode": "realtime"}}
        )
        for name in ("api_base", "proxy"):
            if name in params:
                self.hosts.add(re.sub(r"^\w+://(?:[^@/]*@)?([^/?]+).*", r"\1", params[name]))


@pytest.fixture
async def world(simulator: SimulatorFactory, tmp_path: Path) -> AsyncIterator[World]:
    """Every kind of deployment, working and failing."""
    openai = await simulator(api_keys=[SECRETS["openai key"]])
    xai = await simulator(dialect="xai", api_keys=[SECRETS["xai key"]])
    tokens = [SECRETS[name] for name in ("azure key", "entra literal", "entra file", "entra command")]
    azure = await simulator(dialect="azure", api_keys=tokens)
    local = await simulator(api_keys=[SECRETS["compatible key"]])
    refusing = await simulator(api_keys=["another"])
    token_file = tmp_path / "token"
    token_file.write_text(SECRETS["entra file"])
    script = tmp_path / "token.py"
    script.write_text(f"print({SECRETS['entra command']!r})")

    made = World()
    made.config = {
        "model_list": [],
        "router_settings": {"num_retries": 0, "total_timeout_s": 6, "ready_timeout_s": 0.5, "connect_timeout_s": 2},
        "general_settings": {
            "master_key": SECRETS["master key"],
            "keys": [{"name": "team", "sha256": f"sha256:{hashlib.sha256(SECRETS['virtual key'].encode()).hexdigest()}"}],
            "log_level": "debug",
            "log_format": "json",
            "expose_routing": True,
            "drain": {"grace_s": 0, "timeout_s": 0},
        },
    }
    made.add("openai", "openai/m", works=True, api_key=SECRETS["openai key"], api_base=openai.api_base, organization="org-1")
    made.add("xai", "xai/m", works=True, api_key=SECRETS["xai key"], api_base=xai.api_base)
    made.add("azure", "azure/m", works=True, api_key=SECRETS["azure key"], api_base=azure.api_base)
    made.add("entra", "azure/m", works=True, azure_ad_token=SECRETS["entra literal"], api_base=azure.api_base)
    made.add("entra-file", "azure/m", works=True, azure_ad_token_file=str(token_file), api_base=azure.api_base)
    command = [sys.executable, str(script)]
    made.add("entra-command", "azure/m", works=True, azure_ad_token_command=command, api_base=azure.api_base)
    made.add(
        "compatible",
        "openai_compatible/m",
        works=True,
        api_key=SECRETS["compatible key"],
        api_base=f"{local.api_base}?sig={SECRETS['base query']}",
        extra_headers={"X-Gateway": SECRETS["extra header"]},
        extra_query={"subscription": SECRETS["extra query"]},
    )
    made.add("refused-key", "openai/m", works=False, api_key=SECRETS["failing key"], api_base=refusing.api_base)

    async with AsyncExitStack() as stack:

        def refuse(how: str) -> Any:
            async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                head = await read_head(reader)
                made.seen.append(head)
                writer.write(answer(head, how))
                await writer.drain()
                await reader.read()

            return raw_server(handler)

        async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            made.seen.append(await read_head(reader))
            await reader.read()

        extras = {
            "api_key": SECRETS["failing key"],
            "extra_headers": {"X-Gateway": SECRETS["extra header"]},
            "extra_query": {"subscription": SECRETS["extra query"]},
        }
        for how in FAILURES:
            base = await stack.enter_async_context(refuse(how))
            made.add(f"fails by {how}", "openai/m", works=False, api_base=f"{base}?sig={SECRETS['base query']}", **extras)
        entra = await stack.enter_async_context(refuse("401"))
        made.add("fails with a token", "azure/m", works=False, azure_ad_token=SECRETS["entra literal"], api_base=entra)
        made.add("fails with a file", "azure/m", works=False, azure_ad_token_file=str(token_file), api_base=entra)
        silent = await stack.enter_async_context(raw_server(silence))
        made.add("fails by silence", "xai/m", works=False, api_base=silent, **extras)
        closed = await stack.enter_async_context(closed_port())
        made.add("fails by a closed port", "xai/m", works=False, api_base=closed, **extras)
        password = quote(SECRETS["proxy password"])
        proxy = (await stack.enter_async_context(refuse("407"))).removesuffix("/v1").replace("://", f"://user:{password}@")
        made.add("fails at a proxy", "openai/m", works=False, api_base=closed, proxy=proxy, **extras)
        tls = closed.replace("http:", "https:")
        made.add("fails at a proxy for TLS", "openai/m", works=False, api_base=tls, proxy=proxy, **extras)
        dead = closed.removesuffix("/v1").replace("://", f"://user:{password}@")
        made.add("fails at a dead proxy", "openai/m", works=False, api_base=openai.api_base, proxy=dead, **extras)
        # All of them in a row, and then one that works.
        made.working.append("chain")
        for entry in [dict(item) for item in made.config["model_list"]]:
            if entry["model_name"] in (*made.failing, "xai") and entry["model_name"] != "fails by 400":
                order = int(entry["model_name"] == "xai")
                params = {**entry["litellm_params"], "order": order}
                made.config["model_list"].append({**entry, "model_name": "chain", "litellm_params": params})
        yield made


# --- clients -------------------------------------------------------------------------------------


async def exchange(
    port: int, target: str, *, headers: str = "", browser: bool = False, websocket: bool = True, until: bytes = b'"response.done"'
) -> bytes:
    """Make a request over a bare connection, hold a turn if it opens a session; return every byte that came.

    The client says CLOSE after an error, or when it has seen ``until``.
    """
    lines = [f"GET {target} HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers.splitlines()]
    if websocket:
        lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    else:
        lines += ["Connection: close"]
    if browser:
        lines += ["User-Agent: Mozilla/5.0 (X11; Linux x86_64)", f"Origin: http://127.0.0.1:{port}"]
    # What belongs to the client's own account, and goes nowhere.
    lines += [f"Cookie: session={SECRETS['cookie']}", f"OpenAI-Organization: {SECRETS['organization of the client']}"]
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        try:
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            got = bytearray(await reader.readuntil(b"\r\n\r\n"))
            if got.startswith(b"HTTP/1.1 101"):
                content = [{"type": "input_text", "text": "hello"}]
                item = {"type": "message", "role": "user", "content": content}
                for event in ({"type": "conversation.item.create", "item": item}, {"type": "response.create"}):
                    writer.write(encode_frame(TEXT, json.dumps(event).encode(), mask_key=b"mask"))
                said = False
                while data := await reader.read(2**16):
                    got += data
                    if not said and (until in got or b'"type":"error"' in got):
                        said = True
                        writer.write(encode_frame(CLOSE, close_payload(1000), mask_key=b"mask"))
            else:
                length = re.search(rb"(?i)content-length: *(\d+)", got)
                got += await reader.readexactly(int(length[1])) if length is not None else await reader.read()
        finally:
            writer.close()
        return bytes(got)


async def everything(port: int, world: World) -> list[bytes]:
    """Good and failing sessions of every kind, and every other page. Returns what clients got; operators' pages come last."""
    bearer = f"Authorization: Bearer {SECRETS['virtual key']}"
    got: list[bytes] = []

    async def session(group: str, headers: str, query: str = "", **options: Any) -> bytes:
        data = await exchange(port, f"/v1/realtime?model={quote(group)}{query}", headers=headers, **options)
        got.append(data)
        return data

    for group in world.working:
        assert b"response.done" in await session(group, bearer), group
    for way, (header, query) in WAYS.items():
        for key in (SECRETS["virtual key"], SECRETS["master key"]):
            data = await session("openai", header.format(key), f"&{query.format(key)}" if query else "")
            assert b"response.done" in data, way
        refused = await session("openai", header.format(WRONG[way]), f"&{query.format(WRONG[way])}" if query else "")
        assert b"invalid_api_key" in refused, way
        if "Sec-WebSocket" not in header:
            refused = await session("openai", header.format(WRONG[way]), f"&{query.format(WRONG[way])}", browser=True)
            assert refused.startswith(b"HTTP/1.1 101") and b"invalid_api_key" in refused, way
    assert b"invalid_api_key" in await session("openai", f"Authorization: Basic {WRONG['bearer']}")

    async def fails(group: str) -> None:
        assert b'"error"' in await session(group, bearer), group
        assert b'"error"' in await session(group, bearer, browser=True), group

    await asyncio.gather(*(fails(group) for group in world.failing))
    # A key where none belongs.
    wrong = WRONG["bearer"]
    for target in (f"/{wrong}", f"/v1/realtime/{wrong}", f"/v1/realtime?model=openai&model={wrong}", "/v1/realtime?intent=x"):
        got.append(await exchange(port, target, headers=bearer))
        got.append(await exchange(port, target, headers=bearer, websocket=False))
    for path in ("/v1/models", "/health/live", "/health/ready", "/v1/realtime?model=openai", "/", "/admin/deployments"):
        got.append(await exchange(port, path, headers=bearer, websocket=False))
    got.append(await exchange(port, "/v1/models", headers=f"Authorization: Bearer {wrong}", websocket=False))
    return got


async def operators_pages(port: int) -> list[bytes]:
    """What an operator can read over HTTP."""
    master = f"Authorization: Bearer {SECRETS['master key']}"
    pages = [await exchange(port, path, headers=master, websocket=False) for path in ("/metrics", "/admin/deployments")]
    assert all(page.startswith(b"HTTP/1.1 200") for page in pages)
    return pages


# --- the search ----------------------------------------------------------------------------------


def spellings(secret: str) -> Iterator[bytes]:
    """A secret as it may stand in a text: as it is, in hexadecimal, in base64 at each offset."""
    raw = secret.encode()
    # The first twenty characters are enough to be unique, and a shortened key is a leak too.
    raw = raw[:20]
    yield raw
    yield raw.hex().encode()
    for offset in range(3):
        padded = base64.b64encode(b"\0" * offset + raw)
        yield padded[4 : len(raw) * 4 // 3 - 4]


def found_in(data: bytes, secrets: Mapping[str, str]) -> list[str]:
    """Names of the secrets that occur in some bytes, with what is around the first place."""
    lower = data.lower()
    found = []
    for name, secret in secrets.items():
        for spelling in spellings(secret):
            place = lower.find(spelling.lower())
            if place >= 0:
                found.append(f"{name}: …{data[max(0, place - 120) : place + 60]!r}…")
                break
    return found


ALL = SECRETS | {f"wrong key by {way}": key for way, key in WRONG.items()}


def assert_silent(world: World, clients: list[bytes], rest: bytes) -> None:
    """None of the secrets is anywhere, and no provider's address in what clients got."""
    for data in clients:
        assert not found_in(data, ALL)
        addresses = [host for host in world.hosts if host.encode() in data]
        assert not addresses, f"{addresses} in {data[:600]!r}"
        assert b"Traceback" not in data
    assert not found_in(rest, ALL)


def test_the_search_finds_what_it_should() -> None:
    """The search is no formality: it finds a secret as it is, shortened, in base64, and in an escaped text."""
    name, secret = "openai key", SECRETS["openai key"]
    texts = (
        secret,
        secret.upper(),
        secret[:20] + "***",
        json.dumps({"error": f"key {secret}"}),
        base64.b64encode(f"user:{secret}".encode()).decode(),
        base64.b64encode(f"user1:{secret}".encode()).decode(),
        base64.b64encode(f"user12:{secret}".encode()).decode(),
        secret.encode().hex(),
    )
    for text in texts:
        assert [item.partition(":")[0] for item in found_in(text.encode(), ALL)] == [name], text


async def test_a_process_keeps_its_secrets(world: World, tmp_path: Path) -> None:
    """A router at debug level, through all of it: no secret in its output, its metrics, its pages, or what clients got."""
    environ = {"PYTHONASYNCIODEBUG": "1"}
    async with router_process(written(tmp_path, world.config), environ=environ) as router:
        port = int(router.http.rpartition(":")[2])
        clients = await everything(port, world)
        pages = await operators_pages(port)
        assert await router.end(signal.SIGTERM) == 0
    assert_silent(world, clients, bytes(router.out + router.err) + b"".join(pages))
    # The secrets were in play, and the log was not empty.
    for name in ("failing key", "extra header", "extra query", "base query", "entra literal", "entra file"):
        assert any(SECRETS[name].encode() in head for head in world.seen), name
    basic = base64.b64encode(f"user:{SECRETS['proxy password']}".encode())
    assert any(basic in head for head in world.seen)
    assert len(router.lines("session ended")) + len(router.lines("session not served")) >= len(world.working) + len(world.failing)
    assert {line["level"] for line in router.lines()} >= {"debug", "info", "warning", "error"}
    assert not router.lines("task failed") and not router.lines("event loop")


@asynccontextmanager
async def inside(world: World) -> AsyncIterator[tuple[Any, list[bytes], list[bytes]]]:
    """A router in this process after all of it."""
    async with running_router(world.config) as router:
        clients = await everything(router.port, world)
        yield router, clients, await operators_pages(router.port)


async def test_events_hold_no_secret(world: World) -> None:
    """What observers are told holds none either, before any redaction: a third party's observer gets the same records.

    An upstream that answered with the key it was sent, as ``error.code``, had it in the attempt's detail; cut to 64 characters,
    a long token was not even recognised by the log.
    """
    async with inside(world) as (router, clients, pages):
        told_to_observers = "\n".join(map(repr, router.events)).encode()
        assert len(router.records) >= len(world.working)
        assert_silent(world, clients, b"".join(pages) + repr(router.engine.settings).encode())
        assert not found_in(told_to_observers, ALL)


async def test_the_admitted_words_of_an_upstream_are_bounded(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """A provider that closes a running session with its key as the reason: the client gets it verbatim, the log does not."""
    secret = SECRETS["openai key"]
    sim = await simulator(api_keys=[secret], faults=[f"close_after_events=1,code=4000,reason={secret}"])
    params = {"model": "openai/m", "api_key": secret, "api_base": sim.api_base}
    config = {
        "model_list": [{"model_name": "voice", "litellm_params": params}],
        "general_settings": {"drain": {"grace_s": 0, "timeout_s": 0}},
    }
    async with router_process(written(tmp_path, config)) as router:
        port = int(router.http.rpartition(":")[2])
        got = await exchange(port, "/v1/realtime?model=voice", until=secret.encode())
        assert secret.encode() in got
        record = await router.logged("session ended")
        assert record["upstream_code"] == 4000
        assert await router.end(signal.SIGTERM) == 0
    assert not found_in(bytes(router.err), ALL)
