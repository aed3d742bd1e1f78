"""Real clients through the router: Python's websockets, Node's ws, the openai SDKs, a browser; the README's programs as written.

The simulator's answer is the same sound every time, so that a client's bytes are compared with those that were said.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
from aiohttp import web
from openai import AsyncAzureOpenAI, AsyncOpenAI, OpenAI
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from router.simulator import Simulator
from router.simulator.audio import PCM_24K, AudioBank
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.parts import NODE_DIR, require
from tests.helpers.running import MODEL, UPSTREAM_KEY, config_of, running_router

CLIENT_KEY = "rr-client-0123456789abcdefghijklmnop"
REPLY = "Every byte of this has to arrive, in order."
SPOKEN = AudioBank().speech(REPLY, PCM_24K).sound
SPOKEN_SHA256 = hashlib.sha256(SPOKEN).hexdigest()
DEADLINE_S = 30.0
ROOT = Path(__file__).parent.parent.parent
BOTH = pytest.mark.parametrize("dialect", ["openai", "xai"])


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's proxies have no say in these tests, in programs that they start neither."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def provider(simulator: SimulatorFactory, dialect: str) -> Simulator:
    """A provider that says ``REPLY`` and takes the deployment's key only."""
    return await simulator(dialect=dialect, api_keys=[UPSTREAM_KEY], reply=REPLY)


def keyed(*targets: Simulator, **general: Any) -> dict[str, Any]:
    """A configuration whose clients need a key."""
    return config_of(*targets, general={"master_key": CLIENT_KEY, **general})


def assert_clean_dial(sim: Simulator) -> None:
    """The provider was dialled with the deployment's key and model, and with nothing of the client's."""
    request = sim.stats.last_request
    assert request is not None
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert "openai-beta" not in headers
    assert not [name for name in headers if name.startswith(("openai-", "x-stainless", "cookie", "origin"))]
    assert request.protocols == ()
    assert request.query == {"model": "upstream-model"}
    assert CLIENT_KEY not in str([*headers.values(), request.query_string])


# --- the shape of LiteLLM's page -----------------------------------------------------------------


@BOTH
async def test_python_websockets(simulator: SimulatorFactory, dialect: str) -> None:
    """The ``websockets`` package as its users write it: Bearer and the retired beta header, a turn, every byte of its sound."""
    sim = await provider(simulator, dialect)
    async with running_router(keyed(sim)) as router:
        sound = bytearray()
        asked = False
        headers = {"Authorization": f"Bearer {CLIENT_KEY}", "OpenAI-Beta": "realtime=v1"}
        async with asyncio.timeout(DEADLINE_S), connect(router.url(), additional_headers=headers) as ws:
            async for message in ws:
                event = json.loads(message)
                assert event["type"] != "error", event
                # xAI sends both.
                if event["type"] in ("session.created", "conversation.created") and not asked:
                    asked = True
                    content = [{"type": "input_text", "text": "Say something."}]
                    item = {"type": "message", "role": "user", "content": content}
                    await ws.send(json.dumps({"type": "conversation.item.create", "item": item}))
                    await ws.send(json.dumps({"type": "response.create"}))
                if event["type"] in ("response.output_audio.delta", "response.audio.delta"):
                    sound += base64.b64decode(event["delta"])
                if event["type"] == "response.done":
                    assert event["response"]["status"] == "completed"
                    break
        assert bytes(sound) == SPOKEN
        assert_clean_dial(sim)
        await router.idle()
        assert [(record.who, record.client_code, record.turns) for record in router.records] == [("client", 1000, 1)]


async def node(*arguments: str, cwd: Path = NODE_DIR) -> str:
    """Run a program of Node.js and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        require("node"), *arguments, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode()


@BOTH
async def test_node_ws(simulator: SimulatorFactory, dialect: str) -> None:
    """The ``ws`` package of Node.js: the same turn, the same bytes."""
    sim = await provider(simulator, dialect)
    async with running_router(keyed(sim)) as router:
        seen = json.loads(await node("client.mjs", router.url(), CLIENT_KEY))
        assert seen["error"] is None
        assert seen["status"] == "completed"
        assert (seen["audioBytes"], seen["sha256"]) == (len(SPOKEN), SPOKEN_SHA256)
        assert seen["closeCode"] == 1000
        assert_clean_dial(sim)


async def test_node_ws_is_refused_by_a_status(simulator: SimulatorFactory) -> None:
    """A program with a wrong key gets the HTTP status and the reason as JSON, where ``ws`` shows it."""
    sim = await provider(simulator, "openai")
    async with running_router(keyed(sim)) as router:
        seen = json.loads(await node("client.mjs", router.url(), "wrong"))
        assert seen["httpStatus"] == 401
        assert seen["error"]["code"] == "invalid_api_key"
        assert sim.stats.connections == 0


# --- the openai package --------------------------------------------------------------------------


async def sdk_turn(client: AsyncOpenAI, model: str = MODEL) -> bytes:
    """Hold a turn by the asynchronous SDK; return the sound."""
    sound = bytearray()
    async with asyncio.timeout(DEADLINE_S), client.realtime.connect(model=model) as connection:
        await connection.session.update(session={"type": "realtime", "model": model, "instructions": "Be brief."})
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say something."}]}
        )
        await connection.response.create()
        async for event in connection:
            assert event.type != "error", event
            if event.type == "response.output_audio.delta":
                sound += base64.b64decode(event.delta)
            elif event.type == "session.updated":
                # The client named the group; the provider must hear, and tell, its own name.
                assert getattr(event.session, "model", None) == "upstream-model"
                assert getattr(event.session, "instructions", None) == "Be brief."
            elif event.type == "response.done":
                assert event.response.status == "completed"
                break
    return bytes(sound)


@BOTH
async def test_openai_sdk(simulator: SimulatorFactory, dialect: str) -> None:
    """``AsyncOpenAI(...).realtime.connect``: a turn, and its ``session.update`` names the deployment's model upstream."""
    sim = await provider(simulator, dialect)
    async with running_router(keyed(sim)) as router:
        async with AsyncOpenAI(api_key=CLIENT_KEY, websocket_base_url=f"{router.url(None).removesuffix('/realtime')}") as client:
            assert await sdk_turn(client) == SPOKEN
        assert_clean_dial(sim)


# The SDK's own use of the websockets package.
@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
async def test_openai_sdk_without_asyncio(simulator: SimulatorFactory) -> None:
    """The synchronous ``OpenAI`` client holds the same turn."""
    sim = await provider(simulator, "openai")

    def turn(base: str) -> bytes:
        sound = bytearray()
        with OpenAI(api_key=CLIENT_KEY, websocket_base_url=base) as client, client.realtime.connect(model=MODEL) as connection:
            connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say something."}]}
            )
            connection.response.create()
            for event in connection:
                assert event.type != "error", event
                if event.type == "response.output_audio.delta":
                    sound += base64.b64decode(event.delta)
                elif event.type == "response.done":
                    break
        return bytes(sound)

    async with running_router(keyed(sim)) as router:
        base = router.url(None).removesuffix("/realtime")
        async with asyncio.timeout(DEADLINE_S):
            assert await asyncio.to_thread(turn, base) == SPOKEN
        assert_clean_dial(sim)


async def test_azure_sdk(simulator: SimulatorFactory) -> None:
    """``AsyncAzureOpenAI``, which asks ``/openai/realtime?api-version=…&deployment=…`` with an ``api-key``, is served as well."""
    sim = await provider(simulator, "openai")
    async with running_router(keyed(sim)) as router:
        async with AsyncAzureOpenAI(
            api_key=CLIENT_KEY,
            api_version="2025-04-01-preview",
            azure_endpoint=router.http,
            websocket_base_url=router.url(None, path="/openai"),
        ) as client:
            assert await sdk_turn(client) == SPOKEN
        assert_clean_dial(sim)


# --- a browser -----------------------------------------------------------------------------------


class Site:
    """A web server with the page, and what the page posted."""

    def __init__(self) -> None:
        self.origin = ""
        self.outcome: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()

    async def page(self, request: web.Request) -> web.StreamResponse:
        """The client."""
        return web.FileResponse(ROOT / "tests" / "browser" / "page.html", headers={"Content-Type": "text/html; charset=utf-8"})

    async def posted(self, request: web.Request) -> web.StreamResponse:
        """What it saw."""
        self.outcome.set_result(json.loads(await request.text()))
        return web.Response()

    def url(self, cases: list[dict[str, Any]], *, frame: str | None = None) -> str:
        """The page's address with what it is to do."""
        return f"{self.origin}/?cases={quote(json.dumps(cases))}" + ("" if frame is None else f"&frame={quote(frame, safe='')}")


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """Serve the page in an origin of its own."""
    served = Site()
    app = web.Application()
    app.add_routes([web.get("/", served.page), web.post("/outcome", served.posted)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        served.origin = f"http://127.0.0.1:{cast(tuple[str, int], runner.addresses[0])[1]}"
        yield served
    finally:
        await runner.cleanup()


@asynccontextmanager
async def browser(url: str, folder: Path, *more_flags: str) -> AsyncIterator[None]:
    """Show a page in headless Chromium."""
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    flags += " disable-sync disable-dev-shm-usage disable-extensions no-default-browser-check no-proxy-server"
    process = await asyncio.create_subprocess_exec(
        require("chromium"),
        *(f"--{flag}" for flag in (*flags.split(), *more_flags)),
        f"--user-data-dir={folder / 'profile'}",
        url,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
        start_new_session=True,
    )
    try:
        yield
    finally:
        # Its helpers are in its own process group.
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@BOTH
async def test_a_page_in_chromium(simulator: SimulatorFactory, tmp_path: Path, dialect: str) -> None:
    """A page with the key among its subprotocols holds a turn; refused ones can read why, and get close code 1008.

    A browser hides the status of a failed upgrade, so a refusal is an accepted socket, one ``error`` event and a close. The page
    in the frame has another origin, which is not allowed.
    """
    require("chromium")
    sim = await provider(simulator, dialect)
    async with site() as page, site() as stranger, running_router(keyed(sim, allowed_origins=[page.origin])) as router:

        def case(name: str, key: str, *, model: str = MODEL) -> dict[str, Any]:
            return {"name": name, "url": router.url(model), "protocols": ["realtime", f"openai-insecure-api-key.{key}"]}

        frame = stranger.url([case("strange origin", CLIENT_KEY)])
        cases = [case("right", CLIENT_KEY), case("wrong key", "wrong"), case("unknown model", CLIENT_KEY, model="nobody")]
        async with browser(page.url(cases, frame=frame), tmp_path), asyncio.timeout(DEADLINE_S):
            right, wrong_key, unknown_model = await page.outcome
            (strange_origin,) = await stranger.outcome

        assert (right["opened"], right["protocol"], right["error"], right["status"]) == (True, "realtime", None, "completed")
        assert (right["audioBytes"], right["sha256"]) == (len(SPOKEN), SPOKEN_SHA256)
        assert (right["code"], right["clean"]) == (1000, True)
        assert_clean_dial(sim)

        refusals = ((wrong_key, "invalid_api_key"), (unknown_model, "model_not_found"), (strange_origin, "permission_denied"))
        for refused, code in refusals:
            assert refused["types"] == ["error"], refused
            assert refused["error"]["code"] == code
            assert (refused["code"], refused["reason"], refused["clean"]) == (1008, code, True)
            assert refused["protocol"] == "realtime"
        assert sim.stats.sessions_opened == 1


async def test_a_page_whose_providers_are_down(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """When no deployment is left, a page is told so by close code 1013, after which its library tries again later."""
    require("chromium")
    sim = await simulator(faults=["status=503"])
    async with site() as page, running_router(
        config_of(sim, general={"master_key": CLIENT_KEY, "allowed_origins": [page.origin]}, router={"num_retries": 0})
    ) as router:
        protocols = ["realtime", f"openai-insecure-api-key.{CLIENT_KEY}"]
        url = page.url([{"name": "down", "url": router.url(), "protocols": protocols}])
        async with browser(url, tmp_path), asyncio.timeout(DEADLINE_S):
            (down,) = await page.outcome
        assert down["types"] == ["error"]
        assert down["error"]["code"] == "no_deployment_available"
        assert (down["code"], down["clean"]) == (1013, True)


# --- the README's programs -----------------------------------------------------------------------


def snippets(language: str) -> list[str]:
    """The README's code in a language, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def snippet(language: str, mark: str) -> str:
    """The one piece of code that holds ``mark``."""
    (found,) = [code for code in snippets(language) if mark in code]
    return found


def replaced(code: str, values: Mapping[str, str]) -> str:
    """Code with a reader's own values in the place of the README's; each of them must be there."""
    for old, new in values.items():
        assert old in code, f"the README's code has no {old!r} any more"
        code = code.replace(old, new)
    return code


async def run_python(code: str, folder: Path, **environ: str) -> str:
    """Run a program in an interpreter of its own and return what it printed."""
    path = folder / "program.py"
    path.write_text(code, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        path,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.parametrize("mark", ["import asyncio, json, websockets", "from openai import AsyncOpenAI"])
async def test_python_programs_of_the_readme(simulator: SimulatorFactory, tmp_path: Path, mark: str) -> None:
    """The README's Python clients work as they stand, but for the address and the key."""
    sim = await provider(simulator, "openai")
    async with running_router(keyed(sim)) as router:
        code = replaced(snippet("python", mark), {"127.0.0.1:4000": f"127.0.0.1:{router.port}", "KEY": CLIENT_KEY})
        printed = (await run_python(code, tmp_path)).split()
    assert printed[0] == "session.created"
    assert printed[-1] == "response.done"
    assert "response.output_audio.delta" in printed


async def test_the_node_program_of_the_readme(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """So does its program for Node.js."""
    require("node")
    sim = await provider(simulator, "openai")
    (tmp_path / "node_modules").symlink_to(NODE_DIR / "node_modules")
    async with running_router(keyed(sim)) as router:
        code = replaced(snippet("js", 'from "ws"'), {"127.0.0.1:4000": f"127.0.0.1:{router.port}", "KEY": CLIENT_KEY})
        (tmp_path / "program.mjs").write_text(code, encoding="utf-8")
        printed = (await node("program.mjs", cwd=tmp_path)).split()
    assert printed[0] == "session.created"
    assert printed[-1] == "response.done"
    assert "response.output_audio.delta" in printed


async def test_the_library_program_of_the_readme(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """And its program without a server, given an address to dial and a provider that ends the session."""
    sim = await simulator(dialect="xai", api_keys=[UPSTREAM_KEY], reply=REPLY, faults=["close_after_events=30,code=1000"])
    config = config_of(sim)
    config["model_list"][0]["model_name"] = "grok-voice-agent"
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    code = snippet("python", "from router import Router, realtime")
    single = 'realtime(model="xai/grok-4-1-fast-non-reasoning"'
    code = replaced(code, {single: f"{single}, api_base={sim.api_base!r}"})
    head, _, body = code.partition("\n\n")
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    program = f"{head}\nimport asyncio\n\nasync def main():\n{lines}\n        print(ws.deployment)\n\nasyncio.run(main())\n"
    printed = await run_python(program, tmp_path, XAI_API_KEY=UPSTREAM_KEY)
    lines_printed = printed.splitlines()
    assert json.loads(lines_printed[0])["type"] in ("conversation.created", "session.created")
    assert lines_printed[-1] == "d0"
    assert sim.stats.sessions_opened == 2


async def test_a_client_that_names_no_key_is_told_how(simulator: SimulatorFactory) -> None:
    """Without a key the refusal is a 401 that says where a key may stand."""
    sim = await provider(simulator, "openai")
    async with running_router(keyed(sim)) as router:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(router.url()):
                pass
        assert refused.value.response.status_code == 401
        error = json.loads(refused.value.response.body)["error"]
        assert error["code"] == "invalid_api_key"
        assert "Authorization" in error["message"]
