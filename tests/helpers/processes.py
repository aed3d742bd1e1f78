"""The router as an operator starts it: a process of its own, with what it prints and how it ends.

    async with router_process(config) as router:
        async with connect(router.url("voice")) as ws:
            ...
        assert await router.end(signal.SIGTERM) == 0
        assert router.lines("session")

Only processes that a test started are ended, by their id.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from signal import Signals
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).parent.parent.parent
# Longest wait for anything that must happen; only a fault reaches it.
PATIENCE_S = 20.0

# A process gets no more of the test's environment than this, so that the machine's keys and proxies have no say.
_KEPT = (
    "COVERAGE_PROCESS_START",
    "HOME",
    "LANG",
    "LC_ALL",
    "PATH",
    # The same form of the fast path as in the tests' own process.
    "REALTIME_ROUTER_ACCEL",
    "SYSTEMROOT",
    "TMPDIR",
    "VIRTUAL_ENV",
)
# Where the tests find the accelerator when it is built and not installed.
ACCEL = ROOT / ".accel"


def environment(**more: str) -> dict[str, str]:
    """Return the environment that a process gets, with ``more`` in it."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = str(ROOT)
    if os.path.realpath(ACCEL) in map(os.path.realpath, sys.path):
        path += f"{os.pathsep}{ACCEL}"
    return {**kept, "PYTHONPATH": path, **more}


def written(folder: Path, config: Mapping[str, Any] | str, *, name: str = "config.yaml") -> Path:
    """Write a configuration, YAML or the same as a mapping, and return its path."""
    path = folder / name
    # JSON is YAML.
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return path


async def run(*arguments: str | Path, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run ``python -m router`` with arguments to its end. Returns its exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "router",
        *arguments,
        env=environment(**(environ or {})),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class RouterProcess:
    """A router that was started.

    Attributes:
        out: what it printed on standard output so far.
        err: the same for standard error.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.out = bytearray()
        self.err = bytearray()
        self._process = process
        self._more = asyncio.Event()
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.out)),
            asyncio.create_task(self._read(process.stderr, self.err)),
        ]

    async def _read(self, stream: asyncio.StreamReader | None, into: bytearray) -> None:
        while stream is not None and (data := await stream.read(64 * 1024)):
            into += data
            self._more.set()
        self._more.set()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def base(self) -> str:
        """``ws://host:port/v1/realtime`` from the line it printed."""
        return self.out.decode().splitlines()[0].rpartition(" ")[2]

    @property
    def http(self) -> str:
        """``http://host:port``."""
        return "http" + self.base.removeprefix("ws").removesuffix("/v1/realtime")

    def url(self, model: str) -> str:
        """The WebSocket URL of a session."""
        return f"{self.base}?model={quote(model)}"

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its log's complete lines, those of one event if given. A line that is no JSON fails the test."""
        complete = bytes(self.err).rpartition(b"\n")[0]
        lines = [json.loads(line) for line in complete.decode().splitlines()]
        return [line for line in lines if event is None or line["event"] == event]

    async def started(self) -> None:
        """Wait for the line with the URL.

        Raises:
            AssertionError: it ended, or printed none in time.
        """
        async with asyncio.timeout(PATIENCE_S):
            while b"\n" not in self.out:
                assert self._process.returncode is None and not self._readers[0].done(), self.err.decode()
                self._more.clear()
                await self._more.wait()

    async def logged(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait for the ``count``-th log line of an event, and return it."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := self.lines(event)) < count:
                self._more.clear()
                await self._more.wait()
        return found[count - 1]

    def signal(self, number: Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.returncode is None

    async def end(self, number: Signals | None = None) -> int:
        """Send a signal, if given, and wait for its end and for everything it printed. Returns its exit code."""
        if number is not None:
            self.signal(number)
        async with asyncio.timeout(PATIENCE_S):
            code = await self._process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def kill(self) -> None:
        """End it whatever it does."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(*self._readers)


@asynccontextmanager
async def router_process(
    config: Path,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    command: Sequence[str] = ("--port", "0"),
    wait: bool = True,
) -> AsyncIterator[RouterProcess]:
    """Run ``python -m router --config CONFIG --port 0`` until the block ends.

    Args:
        config: the file.
        arguments: more of them.
        environ: more of its environment.
        command: in the place of ``--port 0``.
        wait: until it accepts connections.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "router",
        "--config",
        config,
        *command,
        *arguments,
        env=environment(**(environ or {})),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    router = RouterProcess(process)
    try:
        if wait:
            await router.started()
        yield router
    finally:
        await router.kill()
