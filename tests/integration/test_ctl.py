"""``ctl`` and ``top`` against a router in a process of its own: what they print, what they do, and how they end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from router.ctl.client import CtlError, connected
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.processes import PATIENCE_S, RouterProcess, environment, router_process, run, written
from tests.helpers.running import MODEL, config_of, next_type, raw_server, read_head

MASTER = "master-key-0123456789abcdef"


async def ctl(router: RouterProcess, *arguments: str, key: str | None = MASTER) -> tuple[int, str, str]:
    """Run ``ctl`` with arguments; returns exit code, standard output, standard error."""
    environ = {"REALTIME_ROUTER_URL": router.http}
    if key is not None:
        environ["REALTIME_ROUTER_KEY"] = key
    return await run("ctl", *arguments, environ=environ)


async def document(router: RouterProcess, *arguments: str) -> Any:
    """What ``ctl … --json`` prints."""
    code, out, err = await ctl(router, *arguments, "--json")
    assert (code, err) == (0, ""), err
    return json.loads(out)


@pytest.fixture
async def router(simulator: SimulatorFactory, tmp_path: Path) -> AsyncIterator[RouterProcess]:
    """A router with two deployments and a master key."""
    first, second = await simulator(name="first"), await simulator(name="second")
    config = config_of(first, second, max_sessions=5, general={"master_key": MASTER})
    async with router_process(written(tmp_path, config)) as running:
        yield running


@asynccontextmanager
async def session(router: RouterProcess) -> AsyncIterator[str]:
    """A session that has got its first event; its id."""
    headers = {"Authorization": f"Bearer {MASTER}"}
    async with connect(router.url(MODEL), proxy=None, compression=None, additional_headers=headers) as ws:
        assert await next_type(ws) == "session.created"
        assert ws.response is not None
        yield ws.response.headers["x-router-session"]


# --- ctl --------------------------------------------------------------------------------------------------------


async def test_what_can_be_seen(router: RouterProcess) -> None:
    """Every view as a table with what matters in it, and as the router's own document."""
    async with session(router) as id:
        views = {
            ("deployments",): ("first", "admitting", "1/5", MODEL),
            ("sessions",): (id, "first", "127.0.0.1", "1 session"),
            ("sessions", "--search", "nowhere"): ("0 sessions",),
            ("session", id): (id, "attempts", "ready", "decisions", "strategy first"),
            ("decisions", "--session", id, "--limit", "5"): (id, "strategy first", "first=0 second=0"),
            ("config",): ("generation", "by start: accepted"),
            ("fleet",): (str(router.pid), "no fleet"),
        }
        for arguments, expected in views.items():
            code, out, err = await ctl(router, *arguments)
            assert (code, err) == (0, ""), (arguments, err)
            for words in expected:
                assert words in out, (arguments, words, out)
        assert (await document(router, "deployments"))["groups"][0]["group"] == MODEL
        assert [one["session"] for one in (await document(router, "sessions", "--group", MODEL))["sessions"]] == [id]


async def test_what_can_be_done(router: RouterProcess) -> None:
    """States, weight, readmission, the end of a session: seen in the answer and in the next view."""
    async with session(router) as id:
        for arguments, state, override in (
            (("drain", "first"), "draining", {"state": "drain", "weight": None}),
            (("maint", "first"), "maint", {"state": "maint", "weight": None}),
            (("ready", "first"), "admitting", {"state": "ready", "weight": None}),
            (("weight", "first", "2.5"), "admitting", {"state": "ready", "weight": 2.5}),
            (("reset", "first"), "admitting", {"state": None, "weight": None}),
            (("readmit", "first"), "admitting", {"state": None, "weight": None}),
        ):
            changed = (await document(router, *arguments))["deployment"]
            assert (changed["state"], changed["override"]) == (state, override)
        code, out, _ = await ctl(router, "drain", "first")
        assert code == 0 and "draining" in out and "by operator: drain" in out
        assert await document(router, "end", id, "--code", "4001", "--reason", "enough") == {"session": id, "ended": True}
        ended = await router.logged("session ended")
        assert (ended["session"], ended["cause"], ended["client_code"]) == (id, "admin", 4001)
        code, out, _ = await ctl(router, "session", id)
        assert code == 0 and "by the router (admin)" in out and "4001" in out
    acts = router.lines("operator acted")
    assert [act["act"] for act in acts] == ["set"] * 5 + ["readmit", "set", "end"]
    assert {act["principal"] for act in acts} == {"master"} and MASTER not in bytes(router.err).decode()


async def test_what_cannot_be_done(router: RouterProcess) -> None:
    """Exit code 1 with the router's words when it refuses, 2 when the command line is wrong; never a traceback."""
    refusals: dict[tuple[str, ...], str] = {
        ("drain", "fisrt"): "id: found 'fisrt', expected one of 'first'",
        ("end", "rs_x"): "session: found 'rs_x', expected",
        ("end", "rs_x", "--code", "1005"): "code: found 1005, expected a close code that may be sent",
        ("session", "../config"): "expected the id of a session",
    }
    for arguments, words in refusals.items():
        code, out, err = await ctl(router, *arguments)
        assert (code, out) == (1, "") and words in err and "Traceback" not in err, (arguments, err)
    for arguments in (
        ("weight", "first", "0"),
        ("weight", "first", "nan"),
        ("weight", "first", "inf"),
        ("weight", "first"),
        ("sessions", "--limit", "0"),
        ("nothing",),
        ("deployments", "--url", "ftp://x"),
        ("deployments", "--url", "http://user:secret@127.0.0.1"),
        ("deployments", "--ca-file", "/nowhere.pem"),
        ("deployments", "--key", "ü"),
    ):
        code, out, err = await ctl(router, *arguments)
        assert (code, out) == (2, "") and err and "Traceback" not in err and "secret" not in err, (arguments, err)


def rewritten(path: Path, text: str) -> str:
    """Write a file anew; return what was in it."""
    before = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    return before


async def test_a_file_that_is_refused(router: RouterProcess) -> None:
    """Exit code 1 with each problem and its line; a good file is taken with the next word."""
    _, out, _ = await ctl(router, "config", "--json")
    path = Path(json.loads(out)["file"])
    good = rewritten(path, "model_list: 5\n")
    code, out, err = await ctl(router, "reload")
    assert code == 1 and f"{path}:1: model_list: found 5, expected a list of deployments" in " ".join(err.split())
    rewritten(path, good)
    code, out, err = await ctl(router, "reload")
    assert (code, err) == (0, "") and "generation" in out


async def test_who_cannot_be_reached(router: RouterProcess, simulator: SimulatorFactory) -> None:
    """A wrong key, none, nobody there, somebody else: each with what to do about it."""
    for key in (None, "wrong"):
        code, _, err = await ctl(router, "deployments", key=key)
        assert code == 1 and "refuses the key" in err and "REALTIME_ROUTER_KEY" in err
    sim = await simulator()
    code, _, err = await ctl(router, "deployments", "--url", f"http://127.0.0.1:{sim.port}")
    assert code == 1 and "has no admin API (HTTP 404)" in err

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()

    async with raw_server(garbage) as base:
        code, _, err = await ctl(router, "deployments", "--url", base.removesuffix("/v1"))
        assert code == 1 and "is no HTTP" in err
    base = router.http
    await router.end(signal.SIGTERM)
    code, _, err = await run("ctl", "deployments", "--url", base)
    assert code == 1 and f"cannot reach {base}: Connection refused" in err and "ops_listen" in err


async def test_the_address_of_sessions_will_do(router: RouterProcess) -> None:
    """What stands in a client's configuration, with ws and the path, names the same router."""
    code, out, err = await ctl(router, "fleet", "--url", router.base)
    assert code == 0 and str(router.pid) in out, err


async def test_options_may_stand_before_the_command(router: RouterProcess) -> None:
    """They win over the environment; behind the command they win over those before it."""
    wrong = {"REALTIME_ROUTER_URL": "http://127.0.0.1:1", "REALTIME_ROUTER_KEY": "wrong"}
    code, out, err = await run("ctl", "--url", router.http, "--key", MASTER, "fleet", environ=wrong)
    assert code == 0 and str(router.pid) in out, err
    behind = ("fleet", "--url", router.http, "--key", MASTER)
    code, out, err = await run("ctl", "--url", "http://127.0.0.1:1", "--key", "wrong", *behind)
    assert code == 0 and str(router.pid) in out, err


async def test_watching_without_a_terminal(router: RouterProcess) -> None:
    """A line of JSON each time, until whoever reads it has seen enough."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "ctl", "sessions", "--watch", "--every", "0.1", "--json"),
        env=environment(REALTIME_ROUTER_URL=router.http, REALTIME_ROUTER_KEY=MASTER),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        for _ in range(3):
            line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
            assert json.loads(line)["total"] == 0
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
        assert await process.stderr.read() == b""
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


# --- top --------------------------------------------------------------------------------------------------------

LINES, COLUMNS = 24, 80
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """A program on a pseudo-terminal of 80 by 24.

    Attributes:
        seen: everything it wrote.
    """

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.seen = bytearray()
        self.process = process
        self._master = master
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux's way to say that nobody holds the other end any more
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self.seen += data
        self._more.set()

    @property
    def text(self) -> str:
        """What it wrote."""
        return self.seen.decode(errors="replace")

    async def until(self, condition: Callable[[str], bool]) -> None:
        """Wait until what it wrote fulfils a condition."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition(self.text):
                self._more.clear()
                await self._more.wait()

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    @property
    def frames(self) -> list[list[str]]:
        """The pictures so far, but for the last one, which may not be whole; as lines without control sequences."""
        body = self.text.partition(ENTER)[2].partition(LEAVE)[0]
        pictures = [part for part in body.split("\x1b[H") if "realtime-router" in part]
        return [[re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in part.split("\r\n")] for part in pictures[:-1]]


@asynccontextmanager
async def terminal(*arguments: str, **environ: str) -> AsyncIterator[Terminal]:
    """Run ``python -m router`` on a terminal until the block ends."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))

    def session_leader() -> None:
        os.setsid()
        # Ctrl-C reaches only those whose terminal this is.
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", *arguments),
        env=environment(TERM="xterm-256color", **environ),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=session_leader,
    )
    os.close(slave)
    shown = Terminal(process, master)
    try:
        yield shown
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)


async def test_top_on_a_terminal(router: RouterProcess) -> None:
    """It shows deployments, sessions and rates within 80 by 24, follows changes, and Ctrl-C leaves the terminal as it was."""
    async with terminal("top", REALTIME_ROUTER_URL=router.http, REALTIME_ROUTER_KEY=MASTER) as shown:
        await shown.until(lambda text: "first" in text)
        async with session(router) as id:
            await shown.until(lambda text: id[:8] in text)
            await ctl(router, "drain", "second")
            await shown.until(lambda text: "draining" in text)
            await shown.until(lambda text: "ok/s" in text and len(shown.frames) >= 3)
        shown.type(b"\x03")
        assert await asyncio.wait_for(shown.process.wait(), PATIENCE_S) == 0
        await shown.until(lambda text: text.rstrip().endswith((LEAVE, "\x1b[?25h")))
        assert shown.text.count(ENTER) == shown.text.count(LEAVE) == 1 and "Traceback" not in shown.text
        frames = shown.frames
        assert max(len(frame) for frame in frames) <= LINES
        assert max(len(line) for frame in frames for line in frame) <= COLUMNS
        assert any("1 sessions" in line for frame in frames for line in frame)


async def test_top_goes_on_without_its_router(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """A router that is gone is told in the picture, and SIGTERM leaves the terminal as it was as well."""
    async with router_process(written(tmp_path, config_of(await simulator()))) as router:
        async with terminal("top", REALTIME_ROUTER_URL=router.http) as shown:
            await shown.until(lambda text: "d0" in text)
            await router.end(signal.SIGTERM)
            await shown.until(lambda text: "cannot reach" in text)
            shown.process.terminate()
            assert await asyncio.wait_for(shown.process.wait(), PATIENCE_S) == 0
            await shown.until(lambda text: LEAVE in text)
            assert "Traceback" not in shown.text


async def test_top_for_scripts(router: RouterProcess) -> None:
    """``--once`` prints one picture anywhere; without it a terminal is needed; what cannot be reached is exit code 1."""
    environ = {"REALTIME_ROUTER_URL": router.http, "REALTIME_ROUTER_KEY": MASTER}
    async with session(router) as id:
        code, out, err = await run("top", "--once", environ=environ)
        assert (code, err) == (0, "") and id in out and "admitting" in out and "\x1b" not in out
    code, out, err = await run("top", environ=environ)
    assert (code, out) == (2, "") and "--once" in err
    code, _, err = await run("top", "--once", environ={**environ, "REALTIME_ROUTER_KEY": "wrong"})
    assert code == 1 and "refuses the key" in err


async def test_watching_on_a_terminal(router: RouterProcess) -> None:
    """The same on the whole screen, again and again."""
    environ = {"REALTIME_ROUTER_URL": router.http, "REALTIME_ROUTER_KEY": MASTER}
    async with terminal("ctl", "deployments", "--watch", "--every", "0.1", **environ) as shown:
        await shown.until(lambda text: text.count("admitting") >= 6)
        shown.type(b"\x03")
        assert await asyncio.wait_for(shown.process.wait(), PATIENCE_S) == 0
        await shown.until(lambda text: LEAVE in text)
        assert "Traceback" not in shown.text


async def test_the_commands_cost_nothing_until_they_run() -> None:
    """A start of the router loads neither rich nor what talks to a router; its help knows the commands."""
    code = "import sys, router.cli; print([name for name in sys.modules if name in ('rich', 'aiohttp', 'asyncio', 'pydantic')])"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), env=environment(), stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert out == b"[]\n"
    status, text, _ = await run("ctl", "--help")
    assert status == 0
    for command in ("deployments", "sessions", "session", "decisions", "config", "fleet", "drain", "maint", "ready", "reset"):
        assert command in text
    for command in ("weight", "readmit", "end", "reload"):
        assert command in text


# --- what a server may answer -----------------------------------------------------------------------------------


@asynccontextmanager
async def answering(body: bytes, *, status: int = 200) -> AsyncIterator[str]:
    """A server with one answer to everything; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()

    async with raw_server(answer) as base:
        yield base.removesuffix("/v1")


async def test_a_long_answer_is_read_to_its_end() -> None:
    """A thousand sessions do not arrive in one piece; what had come by the first read was once taken for the whole."""
    document = {"sessions": [{"session": "s" * 1000} for _ in range(4000)], "total": 4000}
    async with answering(json.dumps(document).encode()) as base, connected(base, key=None) as client:
        assert await client.get("sessions") == document


async def test_an_endless_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whatever the server sends."""
    monkeypatch.setattr("router.ctl.client._MOST_BYTES", 1 << 20)
    async with answering(b" " * (3 << 20)) as base, connected(base, key=None) as client:
        with pytest.raises(CtlError, match="more than 1 MiB"):
            await client.get("sessions")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"[" * 100_000),
        (422, b'{"error": {"message": "refused"}, "config": []}'),
        (422, b'{"error": {"message": "refused"}, "config": {"last_reload": {"errors": [1]}}}'),
    ],
    ids=["nested", "no object", "no problem"],
)
async def test_an_answer_of_another_form_is_told_in_words(status: int, body: bytes) -> None:
    """Nested beyond all bounds, or of a form that no router writes: an error of the command, and no traceback."""
    async with answering(body, status=status) as base, connected(base, key=None) as client:
        with pytest.raises(CtlError, match=r"no admin API|refused"):
            await client.get("config")
