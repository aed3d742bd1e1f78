"""Messages between a worker and its parent: JSON objects, each behind its length in four bytes, over a socket pair.

The parent's end neither blocks nor waits: what a worker does not take is kept up to a bound, beyond which the worker is stuck.
The worker's end lives on its event loop. Messages of a worker to its parent (``k`` tells the kind):

    ready                            it accepts connections
    pulse    sessions, …             it lives; once a second
    prepared id, data                what it found in a configuration that it was told to prepare, and once more when that is in
                                     force (``generations``)
    idle                             it drains, and nobody is left
    samples  data                    its metrics (``merge.pack``), now and then and at its end
    ask      id, what, …             a question: beat, acquire, release, leave (``exchange``), ticket (of the dashboard), metrics;
                                     or, with ``args``, one of operators' questions and acts (``router.admin.contract``)
    told     id, data                the answer to ``tell``; ``data`` is null when it cannot say

and of the parent to a worker:

    answer   id, … or error          to ``ask``
    tell     id, what, args          a question: metrics, or one of operators' questions and acts; ``overrides``, all that
                                     operators have said of deployments, which has no answer; prepare, commit, refuse, load:
                                     a configuration (``reloads``)
    order    stage, left_s, at_once  how far the drain of all of them is (``router.drain``)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Protocol, cast

import orjson

#: Longest message. A page of metrics of a thousand deployments has some megabytes.
MAX_FRAME_BYTES: Final = 32 * 1024 * 1024
#: What a worker may leave unread before it counts as stuck.
MOST_UNREAD_BYTES: Final = 64 * 1024 * 1024
#: What a parent may leave unread before its worker stops asking; nothing a worker asks is worth more memory.
MOST_UNASKED_BYTES: Final = 4 * 1024 * 1024
# Read in one go of one worker, so that none keeps the parent from the others; more would cost a new mapping of memory each time.
_CHUNK_BYTES: Final = 64 * 1024
_HEAD: Final = struct.Struct("!I")

Message = Mapping[str, Any]


class BadFrame(ValueError):
    """What came is no message: whoever sent it cannot be understood any more."""


class Stuck(Exception):
    """A worker has left more unread than anybody should."""


class ChannelLost(ConnectionError):
    """The other end is gone, does not listen, or could not answer."""


def encode(message: Message) -> bytes:
    """Return a message as it goes over the wire.

    Raises:
        BadFrame: it is too long, or cannot be JSON.
    """
    try:
        body = orjson.dumps(message)
    except TypeError as error:
        raise BadFrame(f"found {error}, expected a message of plain JSON") from None
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrame(f"found a message of {len(body)} bytes, expected at most {MAX_FRAME_BYTES}")
    return _HEAD.pack(len(body)) + body


class Frames:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes as they come; return the messages that are complete now.

        Raises:
            BadFrame: a length beyond ``MAX_FRAME_BYTES``, or what is no JSON object.
        """
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        start = 0
        while len(buffer) - start >= _HEAD.size:
            (length,) = _HEAD.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                raise BadFrame(f"found a length of {length} bytes, expected at most {MAX_FRAME_BYTES}")
            end = start + _HEAD.size + length
            if len(buffer) < end:
                break
            messages.append(_decode(buffer[start + _HEAD.size : end]))
            start = end
        del buffer[:start]
        return messages


def _decode(body: bytearray) -> Message:
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadFrame(f"found {len(body)} bytes that are no JSON, expected an object") from None
    if not isinstance(message, dict):
        raise BadFrame(f"found {type(message).__name__}, expected an object")
    return message


class ParentEnd:
    """The parent's end of the channel to one worker.

    Args:
        sock: of a socket pair.
        most_unread_bytes: see ``MOST_UNREAD_BYTES``.

    Attributes:
        ended: the worker has closed its end, or is gone.
    """

    def __init__(self, sock: socket.socket, *, most_unread_bytes: int = MOST_UNREAD_BYTES) -> None:
        sock.setblocking(False)
        self.ended = False
        self._most_unread_bytes = most_unread_bytes
        self._sock = sock
        self._frames = Frames()
        # Only filled while the worker does not take what it is sent.
        self._unsent = bytearray()

    def fileno(self) -> int:
        """For a selector."""
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._unsent) and not self.ended

    def send(self, message: Message) -> None:
        """Send a message, now or when the worker reads again.

        Raises:
            BadFrame: it is no message.
            Stuck: too much waits already.
        """
        data = encode(message)
        if self.ended:
            return
        if len(self._unsent) + len(data) > self._most_unread_bytes:
            raise Stuck(f"a worker leaves {len(self._unsent)} bytes unread")
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """Send what waits, in so far as the worker takes it."""
        try:
            while self._unsent:
                sent = self._sock.send(self._unsent)
                del self._unsent[:sent]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # it is gone; what it still had to say can be read nevertheless
            self._unsent.clear()

    def receive(self) -> list[Message]:
        """Return what has come, at most one chunk's worth.

        Raises:
            BadFrame: see ``Frames.feed``.
        """
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return []
        return self._frames.feed(data)

    def drain(self) -> list[Message]:
        """Return everything that has come until now; for a worker that has ended, to hear its last words.

        Raises:
            BadFrame: see ``Frames.feed``.
        """
        messages: list[Message] = []
        while not self.ended:
            try:
                data = self._sock.recv(_CHUNK_BYTES)
            except OSError:
                break
            if not data:
                break
            messages += self._frames.feed(data)
        return messages

    def close(self) -> None:
        """Let go of it; the worker reads its end."""
        self.ended = True
        self._sock.close()


class Hearer(Protocol):
    """What a worker does when its parent speaks."""

    def told_to(self, what: str, number: int, args: Mapping[str, Any]) -> None:
        """The parent asks; the answer is a ``told`` message with this number. Must not raise."""

    def ordered(self, message: Message) -> None:
        """The parent orders a stage of the drain. Must not raise."""

    def parent_gone(self) -> None:
        """The parent is gone; told once. Must not raise."""


class WorkerEnd(asyncio.Protocol):
    """A worker's end of the channel, on its event loop.

    Args:
        hearer: is told what the parent asks, and that it is gone.
    """

    def __init__(self, hearer: Hearer) -> None:
        self._hearer = hearer
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None  # only set while the parent is there
        self._number = 0
        # Questions that wait for an answer.
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._closing = False
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, sock: socket.socket, hearer: Hearer) -> WorkerEnd:
        """Take over the socket that leads to the parent."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        _, end = await loop.create_unix_connection(partial(cls, hearer), sock=sock)
        return end

    @property
    def connected(self) -> bool:
        """Whether the parent is there, as far as is known."""
        return self._transport is not None

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            BadFrame: it is no message.
            ChannelLost: the parent is gone, or does not read.
        """
        data = encode(message)
        if self._transport is None or self._transport.is_closing():
            raise ChannelLost("the parent process is gone")
        if self._transport.get_write_buffer_size() > MOST_UNASKED_BYTES:
            raise ChannelLost("the parent process does not read")
        self._transport.write(data)

    async def ask(self, what: str, *, timeout_s: float, **facts: Any) -> Message:
        """Ask the parent and return its answer.

        Raises:
            ChannelLost: there is none, or it is an error.
            TimeoutError: it did not come in time.
        """
        self._number += 1
        number = self._number
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.send({"k": "ask", "id": number, "what": what, **facts})
        self._asked[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                message = await answer
        finally:
            self._asked.pop(number, None)
        if "error" in message:
            raise ChannelLost(f"the parent process refused {what}: {message['error']}")
        return message

    async def close(self, *, timeout_s: float) -> None:
        """Send what was written, and close; at most for so many seconds."""
        self._closing = True
        if self._transport is None:
            return
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._closed)

    # --- asyncio's side -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is on the loop."""
        # uvloop's transports have asyncio's methods, and not its base class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of the parent."""
        try:
            messages = self._frames.feed(data)
        except BadFrame:
            # Nothing that follows could be understood: the same as no parent.
            if self._transport is not None:
                self._transport.abort()
            return
        for message in messages:
            self._heard(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """The parent is gone, or this end was closed."""
        self._transport = None
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ChannelLost("the parent process is gone"))
        if not self._closed.done():
            self._closed.set_result(None)
        if not self._closing:
            self._hearer.parent_gone()

    def _heard(self, message: Message) -> None:
        kind, number = message.get("k"), message.get("id")
        if kind == "order":
            self._hearer.ordered(message)
            return
        if not isinstance(number, int):
            return
        if kind == "answer":
            answer = self._asked.get(number)
            # Whoever asked may have given up.
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif kind == "tell" and isinstance(what := message.get("what"), str):
            args = message.get("args")
            self._hearer.told_to(what, number, args if isinstance(args, dict) else {})
