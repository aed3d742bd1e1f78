"""One accepted WebSocket: carries a session's events to the client and back, and lets its fault happen on the wire.

Events are written to the transport as frames made here, not through ``WebSocketResponse.send_str``: a handler of the session may
then send several without waiting in between, and an audio delta costs one write. What is unsent is bounded because both whoever
reads the client and whoever runs an answer wait for the buffer to drain before they go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import time
from collections.abc import Callable
from typing import Literal, cast

import orjson
from aiohttp import WSMsgType, web
from aiohttp.abc import AbstractStreamWriter

from router.simulator import faults as verbs
from router.simulator.response import Job
from router.simulator.session import Session
from router.simulator.stats import Stats
from router.simulator.wire import BINARY, PONG, TEXT, close_frame, frame
from router.tasks import Tasks

CLOSE_WAIT_S = 1.0  # for the peer's close frame, before the connection is cut
STEPS_AT_ONCE = 8  # of an unpaced job, before others get the loop


def reset(transport: asyncio.BaseTransport) -> None:
    """End a connection with a TCP reset (RFC 9293 §3.10.7.4 by SO_LINGER 0); unsent bytes are lost."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() != -1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    cast(asyncio.Transport, transport).abort()


class Connection:
    """A ``Host`` for one session.

    Args:
        ws: prepared, with ``autoclose`` and ``autoping`` off and text left undecoded.
        transport: of the connection.
        writer: what ``ws.prepare`` returned; used only to wait for the buffer.
        lost: done when the connection is gone.
        tasks: owner of what runs beside the reader.
        stats: where everything is counted.
        pace: seconds of an answer per second of the clock; ``math.inf``: without waiting.
        fault: of this session.
    """

    def __init__(
        self,
        ws: web.WebSocketResponse[Literal[False]],
        *,
        transport: asyncio.Transport,
        writer: AbstractStreamWriter,
        lost: asyncio.Future[None],
        tasks: Tasks,
        stats: Stats,
        pace: float,
        fault: verbs.Fault | None,
    ) -> None:
        self._ws = ws
        self._transport = transport
        self._writer = writer
        self._lost = lost
        self._tasks = tasks
        self._stats = stats
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._fault = fault
        # Only set while the fault is one that waits for a number of events, or of deltas of an answer.
        self._events_left = _events_of(fault)
        self._deltas_left = fault.after_deltas if isinstance(fault, (verbs.Stall, verbs.DropMidTurn)) else None
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._pinging: asyncio.Task[None] | None = None
        # Nothing is sent any more: a close was, or a fault struck.
        self._mute = False
        # Nothing is read any more; the reader finds out at the next message.
        self._stalled = False
        self._close_sent = False
        # Only set while a close frame of ours is unanswered; it cuts the connection.
        self._cut: asyncio.TimerHandle | None = None

    # --- Host ---

    def send(self, kind: str, payload: bytes) -> None:
        """See ``Host.send``."""
        self.send_message(kind, payload, TEXT)

    def send_binary(self, payload: bytes) -> None:
        """See ``Host.send_binary``."""
        self.send_message("response.binary.delta", payload, BINARY)

    def send_message(self, kind: str, payload: bytes, opcode: int) -> None:
        """Send one message, unless a fault strikes before it; one may strike after it."""
        # The loop notices a lost connection a moment before it says so; writing in between would only be logged.
        if self._mute or self._transport.is_closing():
            return
        if self._deltas_left is not None and self._strikes_at(kind):
            self._strike()
            return
        self._transport.write(frame(payload, opcode))
        self._stats.events_sent += 1
        if self._events_left is not None:
            self._events_left -= 1
            if self._events_left == 0:
                self._strike()

    def start(self, job: Job) -> None:
        """See ``Host.start``."""
        if self._mute:
            return
        task = self._tasks.spawn(self._run(job), name=f"simulator {type(job).__name__}", expected=(ConnectionError,))
        self._running[job] = task
        task.add_done_callback(lambda _: self._running.pop(job, None))

    def stop(self, job: Job) -> None:
        """See ``Host.stop``."""
        task = self._running.get(job)
        if task is not None:
            task.cancel()

    def close(self, code: int, reason: str = "") -> None:
        """See ``Host.close``. The connection is cut if the peer does not answer in ``CLOSE_WAIT_S``."""
        if self._close_sent or self._transport.is_closing():
            return
        self._close_sent = self._mute = True
        self._transport.write(close_frame(code, reason))
        self._cut = self._loop.call_later(CLOSE_WAIT_S, self._transport.abort)

    def reset(self) -> None:
        """End the connection with a reset, behind what was sent so far."""
        self._mute = True
        # uvloop hands writes to the kernel at the end of the loop's iteration; an abort in this one would discard them.
        self._loop.call_soon(reset, self._transport)

    # --- serving ---

    async def serve(self, session: Session, *, cap_s: float, ping_interval_s: float | None) -> None:
        """Open a session and serve it to its end. Returns when the connection is over.

        Args:
            session: has this connection for its host.
            cap_s: longest duration, seconds.
            ping_interval_s: between ``ping`` events; ``None``: none.
        """

        def take(message_type: WSMsgType, data: bytes) -> None:
            kind = session.receive(data) if message_type is WSMsgType.TEXT else session.receive_binary(data)
            self._stats.events_received[kind] += 1

        expiry = self._loop.call_later(cap_s, session.expire, cap_s / 60)
        if ping_interval_s is not None:
            self._pinging = self._tasks.spawn(self._ping(session, ping_interval_s), name="simulator pings")
        try:
            if self._events_left == 0:
                self._strike()
            session.open()
            await self.read(take)
        finally:
            expiry.cancel()

    async def echo(self) -> None:
        """Return every message as it came, silent at first. Returns when the connection is over."""

        def take(message_type: WSMsgType, data: bytes) -> None:
            self._stats.events_received["text" if message_type is WSMsgType.TEXT else "binary"] += 1
            self.send_message("message", data, TEXT if message_type is WSMsgType.TEXT else BINARY)

        if self._events_left == 0:
            self._strike()
        await self.read(take)

    async def read(self, take: Callable[[WSMsgType, bytes], None] | None = None) -> None:
        """Read until the connection is over, handing on what comes; ``None``: drop it."""
        while True:
            await self._drained()
            message = await self._ws.receive()
            if self._stalled:
                await asyncio.wait([self._lost])
                self._stats.close_codes[1006] += 1
                return
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                data = cast(bytes, message.data)
                self._stats.bytes_received += len(data)
                self._stats.received.append(data)
                if take is not None and not self._mute:
                    take(message.type, data)
                self._stats.changed()
            elif message.type is WSMsgType.PING:
                if not self._mute:
                    self._transport.write(frame(cast(bytes, message.data), PONG))
            elif message.type is not WSMsgType.PONG:
                self._note_end(message.type, message.data)
                return

    async def finish(self) -> None:
        """End what runs beside the reader, and the connection."""
        self._mute = True
        if self._cut is not None:
            self._cut.cancel()
        tasks = [*self._running.values(), *([self._pinging] if self._pinging is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._transport.close()
        if not self._lost.done():
            # A peer that reads nothing would keep the connection for ever.
            cut = self._loop.call_later(CLOSE_WAIT_S, self._transport.abort)
            self._lost.add_done_callback(lambda _: cut.cancel())

    async def _drained(self) -> None:
        # Raises ConnectionError when the connection is gone; then the next read tells how it ended.
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    def _note_end(self, kind: WSMsgType, code: object) -> None:
        if kind is not WSMsgType.CLOSE or not isinstance(code, int):
            self._stats.close_codes[1006] += 1
            return
        code = code or 1005  # aiohttp gives 0 for a close frame without a code
        self._stats.close_codes[code] += 1
        if not self._close_sent and not self._mute:
            self._close_sent = True
            self._transport.write(close_frame(code))

    async def _run(self, job: Job) -> None:
        began_s = self._loop.time()
        for step, due_s in enumerate(job.steps()):
            if math.isinf(self._pace):
                if step % STEPS_AT_ONCE == 0:
                    await asyncio.sleep(0)
            else:
                delay_s = began_s + due_s / self._pace - self._loop.time()
                if delay_s > 0:
                    await asyncio.sleep(delay_s)
            await self._writer.drain()
            if self._mute:
                return

    async def _ping(self, session: Session, interval_s: float) -> None:
        while not self._mute:
            await asyncio.sleep(interval_s)
            session.emit("ping", {"timestamp": int(time.time() * 1000)})

    # --- faults ---

    def refuse(
        self, *, event_id: str, code: str, kind: str, message: str, param: str | None, close: int | None, reason: str
    ) -> None:
        """Send an ``error`` event instead of a first good one, and close.

        Args:
            event_id: of the event.
            code: ``error.code``.
            kind: ``error.type``.
            message: ``error.message``.
            param: ``error.param``.
            close: close code; ``None`` leaves the socket open.
            reason: of the close.
        """
        error = {"type": kind, "code": code, "message": message, "param": param, "event_id": None}
        self.send("error", orjson.dumps({"type": "error", "event_id": event_id, "error": error}))
        if close is not None:
            self.close(close, reason)

    def spoil(self, garbage: verbs.Garbage) -> None:
        """Put illegal bytes on the wire; nothing follows them."""
        if not self._mute:
            self._transport.write(frame(garbage.payload) if garbage.kind == "json" else garbage.payload)
        self._mute = True

    def _strikes_at(self, kind: str) -> bool:
        """Count a delta of an answer; the fault strikes before the next one, or before the answer's first end of anything."""
        if not kind.startswith("response."):
            return False
        if kind.endswith(".done"):
            return True
        if not kind.endswith(".delta") or self._deltas_left is None:
            return False
        if self._deltas_left == 0:
            return True
        self._deltas_left -= 1
        return False

    def _strike(self) -> None:
        self._events_left = self._deltas_left = None
        fault = self._fault
        if isinstance(fault, verbs.CloseAfterEvents):
            self.close(fault.code, fault.reason)
        elif isinstance(fault, verbs.ResetAfterEvents):
            self.reset()
        elif isinstance(fault, verbs.Garbage):
            self.spoil(fault)
        elif isinstance(fault, verbs.DropMidTurn):
            self._mute = True
            self._transport.close()
        elif isinstance(fault, verbs.Stall):
            self._mute = self._stalled = True


def _events_of(fault: verbs.Fault | None) -> int | None:
    if isinstance(fault, (verbs.CloseAfterEvents, verbs.ResetAfterEvents)):
        return fault.events
    if isinstance(fault, verbs.Garbage):
        return fault.after_events
    return None
