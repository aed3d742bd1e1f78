"""Calls with audio that check themselves: every frame that is sent comes back, in order, byte for byte, and without a gap.

    async with calls(url, 50) as running:
        ...                                   # whatever is done to the router meanwhile
        assert running.harmed == []
    assert running.gap_s < control.gap_s + 0.15

The provider is a simulator of the dialect ``echo``, in a process of its own (``simulator_process``), so that what a call hears is
what it said, a frame of audio each 100 ms.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.helpers.processes import PATIENCE_S, environment

# 24 kHz, 16 bit, one channel.
BYTES_PER_S = 48_000


@asynccontextmanager
async def simulator_process(*arguments: str) -> AsyncIterator[str]:
    """Run ``realtime-router simulate`` until the block ends; gives its API base."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "simulate", "--port", "0", *arguments),
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = await process.stdout.readline()
        yield line.decode().split()[-1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass(slots=True, eq=False)
class Call:
    """One session that runs.

    Attributes:
        fault: what went wrong; empty while nothing has.
        code: close code, if the other side closed.
        events: types of what came and was no echo, such as an ``error`` event before the end.
        gap_s: longest time between two frames that came, seconds.
        heard: frames that came.
    """

    fault: str = ""
    code: int | None = None
    events: list[str] = field(default_factory=list)
    gap_s: float = 0.0
    heard: int = 0
    stopping: bool = False
    task: asyncio.Task[None] | None = None


class Calls:
    """Calls that run at the same time."""

    def __init__(self) -> None:
        self.all: list[Call] = []

    @property
    def harmed(self) -> list[str]:
        """What went wrong, of those that something did."""
        return [call.fault for call in self.all if call.fault]

    @property
    def ended(self) -> list[Call]:
        """Those that the other side ended."""
        return [call for call in self.all if call.code is not None]

    @property
    def gap_s(self) -> float:
        """The longest gap of any."""
        return max(call.gap_s for call in self.all)

    @property
    def heard(self) -> int:
        """Frames that came back."""
        return sum(call.heard for call in self.all)

    def forget_gaps(self) -> None:
        """Measure from now on."""
        for call in self.all:
            call.gap_s = 0.0


@asynccontextmanager
async def calls(
    url: str,
    count: int,
    *,
    frame_s: float = 0.1,
    headers: Mapping[str, str] | None = None,
    may_end: bool = False,
    seed: int = 1,
) -> AsyncIterator[Calls]:
    """Hold calls until the block ends; then they hear the last of what they said, and hang up.

    Args:
        url: of the router, or of the provider for calls to compare with.
        count: how many.
        frame_s: seconds of audio a frame, and between two frames.
        headers: of the request.
        may_end: the other side may end them; else that is a fault.
        seed: of what is said.
    """
    running = Calls()
    rng = random.Random(seed)
    try:
        for _ in range(count):
            call = Call()
            ws = await asyncio.wait_for(
                connect(url, proxy=None, compression=None, ping_interval=None, additional_headers=headers or {}), PATIENCE_S
            )
            call.task = asyncio.create_task(_hold(call, ws, frame_s, rng.randbytes(16), may_end))
            running.all.append(call)
            # Not all in one beat of the frames' clock.
            await asyncio.sleep(frame_s / max(1, count))
        yield running
        for call in running.all:
            call.stopping = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(call.task for call in running.all if call.task is not None))
    finally:
        for call in running.all:
            if call.task is not None:
                call.task.cancel()
        await asyncio.gather(*(call.task for call in running.all if call.task is not None), return_exceptions=True)


async def _hold(call: Call, ws: ClientConnection, frame_s: float, voice: bytes, may_end: bool) -> None:
    said: deque[str] = deque()
    silence = asyncio.Event()  # all that was said has come back
    listening = asyncio.create_task(_listen(call, ws, said, silence))
    loop = asyncio.get_running_loop()
    size = int(BYTES_PER_S * frame_s)
    number = 0
    due = loop.time()
    try:
        while not call.stopping and not listening.done():
            number += 1
            audio = (number.to_bytes(4, "big") + voice) * (size // 20)
            frame = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()})
            said.append(frame)
            await ws.send(frame)
            due += frame_s
            await asyncio.sleep(max(0.0, due - loop.time()))
        async with asyncio.timeout(PATIENCE_S):
            # What it has said comes back before it hangs up, unless the other side did.
            while said and not listening.done():
                silence.clear()
                await asyncio.wait([listening, asyncio.ensure_future(silence.wait())], return_when=asyncio.FIRST_COMPLETED)
            await ws.close()
            await listening
    except ConnectionClosed:
        await listening
    except TimeoutError:
        call.fault = call.fault or f"{len(said)} frames never came back"
    finally:
        silence.set()
        listening.cancel()
        if call.code is not None and not may_end:
            call.fault = call.fault or f"ended by the other side with {call.code} after {call.heard} frames"


async def _listen(call: Call, ws: ClientConnection, said: deque[str], silence: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    last: float | None = None
    try:
        async for message in ws:
            now = loop.time()
            if last is not None:
                call.gap_s = max(call.gap_s, now - last)
            last = now
            if said and message == said[0]:
                said.popleft()
                call.heard += 1
                if not said:
                    silence.set()
                continue
            kind = str(json.loads(message).get("type"))
            if kind == "error" or not said:
                call.events.append(kind)
            else:
                call.fault = call.fault or f"frame {call.heard + 1} came back as something else ({kind})"
    except ConnectionClosed as closed:
        call.code = closed.rcvd.code if closed.rcvd is not None else 1006
    else:
        # A normal close of the other side ends the loop without an exception.
        if not call.stopping and ws.close_code is not None:
            call.code = ws.close_code
