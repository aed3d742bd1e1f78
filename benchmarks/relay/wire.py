"""WebSocket frames as cheap as Python makes them, so that the ends do not cost more than the proxy between them.

An ``Event`` is encoded once. What differs from one sending to the next is its number: 20 digits in a fixed place. The receiver
knows the event that must come next, so checking it is comparing bytes; nothing is decoded unless it is wrong.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import re
import struct
import traceback
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
ID_BYTES: Final = 20
CONTINUATION: Final = 0x0
TEXT: Final = 0x1
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
_WHOLE_TEXT: Final = 0x80 | TEXT
_HEAD_LIMIT: Final = 16 * 1024

_ID: Final = re.compile(rb"(?<![0-9])([0-9]{8})([0-9]{12})")
_TYPE: Final = re.compile(rb'"type":"([A-Za-z0-9_.]{1,80})"')


class Fault(Exception):
    """What came is not what was sent, or did not come at all."""


class Verdict:
    """Holds the first fault of a run; whoever waits is told at once."""

    def __init__(self) -> None:
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, text: str) -> None:
        """Note a fault; the first one counts, the others follow from it."""
        if not self._broken.done():
            self._broken.set_exception(Fault(text))
            # Whether somebody waits just now is not known.
            self._broken.exception()

    def loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A handler for the event loop: a fault of our own must end the run as well."""
        error = context.get("exception")
        if isinstance(error, Exception):
            traceback.print_exception(error)
        self.fail(f"the load itself: {context.get('message')} {error!r}")

    def check(self) -> None:
        """Raise the fault, if there is one."""
        if self._broken.done():
            self._broken.result()

    async def sleep(self, seconds: float) -> None:
        """Sleep, or raise a fault as soon as it is noted."""
        await asyncio.wait({self._broken}, timeout=seconds)
        self.check()

    async def race(self, work: Coroutine[Any, Any, T], *, within_s: float, what: str) -> T:
        """Return what ``work`` returns.

        Raises: Fault: one was noted meanwhile, or the time is over.
        """
        task = asyncio.create_task(work)
        try:
            both: set[asyncio.Future[Any]] = {task, self._broken}
            await asyncio.wait(both, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            self.check()
            if not task.done():
                self.fail(f"{what}: not done within {within_s:g} s")
                self.check()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def xor(data: bytes, key: bytes, offset: int = 0) -> bytes:
    """Mask or unmask (RFC 6455 §5.3); ``offset`` is the place of the first byte in its frame's payload."""
    size = len(data)
    shift = offset & 3
    pad = (key[shift:] + key[:shift]) * (size // 4 + 1)
    return (int.from_bytes(data, "little") ^ int.from_bytes(pad[:size], "little")).to_bytes(size, "little")


def frame_head(first: int, size: int, *, key: bytes | None = None) -> bytes:
    """The bytes of a frame before its payload."""
    bit = 0 if key is None else 0x80
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = struct.pack(">BBH", first, bit | 126, size)
    else:
        head = struct.pack(">BBQ", first, bit | 127, size)
    return head if key is None else head + key


def control_frame(opcode: int, payload: bytes, *, key: bytes | None = None) -> bytes:
    """A PING, PONG or CLOSE."""
    return frame_head(0x80 | opcode, len(payload), key=key) + (payload if key is None else xor(payload, key))


def accept_of(key: bytes) -> bytes:
    """The ``Sec-WebSocket-Accept`` for a ``Sec-WebSocket-Key``."""
    return base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())


def event_id(number: int, sequence: int) -> bytes:
    """The 20 digits: who sends, and its how manieth event it is, from 0."""
    return b"%08d%012d" % (number, sequence)


class Event:
    """An event from which frames are made.

    Args:
        text: its JSON, with one ``{id}`` in it.
        key: mask key of a client's event; none for a server's.
    """

    __slots__ = ("_after", "_before", "_id_pad", "id_at", "key", "prefix", "size", "suffix", "type")

    def __init__(self, text: str, *, key: bytes | None = None) -> None:
        before, _, after = text.partition("{id}")
        self.prefix = before.encode()
        self.suffix = after.encode()
        self.key = key
        self.id_at = len(self.prefix)
        self.size = self.id_at + ID_BYTES + len(self.suffix)
        found = _TYPE.search(self.prefix + self.suffix)
        assert found is not None
        self.type = found[1].decode()
        head = frame_head(_WHOLE_TEXT, self.size, key=key)
        if key is None:
            self._before, self._after, self._id_pad = self.prefix, self.suffix, 0
        else:
            self._before = xor(self.prefix, key)
            self._after = xor(self.suffix, key, self.id_at + ID_BYTES)
            self._id_pad = int.from_bytes(xor(bytes(ID_BYTES), key, self.id_at), "big")
        self._before = head + self._before

    def frame(self, number: int, sequence: int) -> bytes:
        """A whole frame."""
        digits = b"%08d%012d" % (number, sequence)
        if self._id_pad:
            digits = (int.from_bytes(digits, "big") ^ self._id_pad).to_bytes(ID_BYTES, "big")
        return b"".join((self._before, digits, self._after))

    def is_frame(self, data: bytes, at: int, start: int, end: int, digits: bytes) -> bool:
        """Whether ``data[at:end]``, payload from ``start``, is this event under the very key it was sent with."""
        if end - start != self.size or not data.startswith(self._before, at):
            return False
        place = start + self.id_at
        if self._id_pad:
            digits = (int.from_bytes(digits, "big") ^ self._id_pad).to_bytes(ID_BYTES, "big")
        return data[place : place + ID_BYTES] == digits and data.startswith(self._after, place + ID_BYTES)

    def is_payload(self, payload: bytes, digits: bytes) -> bool:
        """Whether an unmasked payload is this event."""
        return payload == b"".join((self.prefix, digits, self.suffix))


def complaint(payload: bytes, expected: Event, number: int, sequence: int) -> str:
    """Say in which way a payload is not the expected event."""
    found_id = _ID.search(payload)
    found_type = _TYPE.search(payload[:200]) or _TYPE.search(payload)
    wanted = f"event {sequence} ({expected.type}, {expected.size} bytes)"
    type_name = found_type[1].decode() if found_type else "no type"
    if found_id is None:
        return f"expected {wanted}, found {type_name}, {len(payload)} bytes, without a number: changed"
    found = int(found_id[2])
    text = f"expected {wanted}, found event {found} ({type_name}, {len(payload)} bytes)"
    if int(found_id[1]) != number:
        return f"{text} of another session"
    if found > sequence:
        return f"{text}: lost or out of order"
    if found < sequence:
        return f"{text}: duplicated or out of order"
    return f"{text}: wrong type" if type_name != expected.type else f"{text}: changed"


class Endpoint(asyncio.Protocol, ABC):
    """One end of a connection: an HTTP head first, frames from then on.

    Args:
        masked: whether the frames that arrive must be masked: it is the server.
        verdict: told of faults.
    """

    transport: asyncio.Transport

    def __init__(self, *, masked: bool, verdict: Verdict) -> None:
        self.verdict = verdict
        self.open = False  # the handshake is done
        self.gone = False  # the connection is lost
        self._masked = masked
        self._bit = 0x80 if masked else 0
        self._rest = b""  # of a frame, or of the head, that is not all there yet
        self._parts: list[bytes] = []  # of a fragmented message, unmasked

    @property
    @abstractmethod
    def label(self) -> str:
        """Who it is, in a complaint."""

    @abstractmethod
    def head(self, head: bytes) -> None:
        """The HTTP head, without the empty line."""

    @abstractmethod
    def event(self, data: bytes, at: int, start: int, end: int) -> None:
        """A whole text frame ``data[at:end]`` with its payload from ``start``."""

    @abstractmethod
    def closing(self, code: int) -> None:
        """A CLOSE; 1005 when it has no code."""

    def fail(self, text: str) -> None:
        """A fault: note it and cut the connection."""
        self.verdict.fail(f"{self.label}: {text}")
        if not self.gone:
            self.transport.abort()

    def send_control(self, opcode: int, payload: bytes) -> None:
        """Send a control frame."""
        self.transport.write(control_frame(opcode, payload, key=None if self._masked else b"\x9d\x13\x5a\xc7"))

    # --- asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        # uvloop's are transports by what they do, not by their class.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes, cut anywhere."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not self.open:
            head, empty_line, data = data.partition(b"\r\n\r\n")
            if not empty_line:
                self._rest = head
                if len(head) > _HEAD_LIMIT:
                    self.fail("HTTP head without an end")
                return
            self.open = True
            self.head(head)
        at, size = 0, len(data)
        while size - at >= 2:
            second = data[at + 1]
            length = second & 0x7F
            start = at + 2
            if length == 126:
                if size < at + 4:
                    break
                length = data[at + 2] << 8 | data[at + 3]
                start = at + 4
            elif length == 127:
                if size < at + 10:
                    break
                length = int.from_bytes(data[at + 2 : at + 10], "big")
                start = at + 10
            if second & 0x80:
                start += 4
            end = start + length
            if end > size:
                break
            if second & 0x80 != self._bit:
                self.fail("found an unmasked frame" if self._bit else "found a masked frame")
                return
            if data[at] == _WHOLE_TEXT:
                self.event(data, at, start, end)
            else:
                self._other_frame(data[at], self._payload(data, start, end))
            at = end
        self._rest = data[at:] if at else data

    def _payload(self, data: bytes, start: int, end: int) -> bytes:
        return xor(data[start:end], data[start - 4 : start]) if self._masked else data[start:end]

    def _other_frame(self, first: int, payload: bytes) -> None:
        opcode = first & 0x0F
        if opcode == CLOSE:
            self.closing(int.from_bytes(payload[:2], "big") if payload else 1005)
        elif opcode == PING:
            self.send_control(PONG, payload)
        elif first & 0x70 or opcode not in (CONTINUATION, TEXT, PONG):
            self.fail(f"found a frame that begins with {first:#04x}")
        elif opcode != PONG:
            # A proxy may fragment (RFC 6455 §5.4); what counts is the message.
            self._parts.append(payload)
            if first & 0x80:
                whole, self._parts = b"".join(self._parts), []
                key = bytes(4) if self._masked else None
                head = frame_head(_WHOLE_TEXT, len(whole), key=key)
                self.event(head + whole, 0, len(head), len(head) + len(whole))

    def complain(self, data: bytes, start: int, end: int, expected: Event, number: int, sequence: int) -> None:
        """Tell what is wrong with a frame that is not the expected event."""
        self.fail(complaint(self._payload(data, start, end), expected, number, sequence))


def random_text(rng: random.Random, size: int) -> str:
    """Base64 text of ``size`` characters, a multiple of four, without a run of digits that looks like a number."""
    while True:
        text = base64.b64encode(rng.randbytes(size * 3 // 4)).decode()
        if _ID.search(text.encode()) is None:
            return text
