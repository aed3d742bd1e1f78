"""RFC 6455 framing as a pure state machine over one direction of one connection.

``FrameScanner.feed`` takes the bytes as they come from the socket and returns those that may go out to the other side at once,
unchanged. On the way it checks legality (§5.2 reserved bits, opcodes, lengths; §5.3 mask direction; §5.4 fragmentation; §5.5
control frames; §7.4 close codes), names the type of every message after its first bytes, and hands whole messages or control
frames to a ``Sink`` where the sink asked for them.

Three things can happen to a message, decided once its type is known (``Disposition``):

    PASS      its bytes go out as they arrive, its payload is never looked at again
    COLLECT   the same, and a copy of the payload is kept for the sink
    HOLD      nothing goes out before the message is complete; the sink may put another in its place

Control frames are at most 131 bytes, so they are always completed before the sink decides whether they are passed on.

Pure: no asyncio, no sockets, no clock.
"""

from __future__ import annotations

import re
import struct
from enum import Enum
from typing import Final, Protocol

from router.relay.fastpath import BOUNDARY, MIDDLE, SLOW, FastPath

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

# Bytes of a message that are looked at to name its type. Real events fit: `{"event_id":"event_…(21)…","type":"…(60)…"`.
PEEK_BYTES: Final = 160
# A copy of a message is given up beyond this, for the memory of one session is bounded whatever its peers send.
COLLECT_LIMIT_BYTES: Final = 512 * 1024
HOLD_LIMIT_BYTES: Final = 512 * 1024
# The same for the bytes as they came: fragments without payload, or with hardly any, are heads above all.
_HOLD_RAW_LIMIT_BYTES: Final = 2 * HOLD_LIMIT_BYTES
_TAIL_BYTES: Final = 128

# RFC 6455 §7.4.1 and the IANA registry (1012–1014). 1004–1006 and 1015 never travel.
_WIRE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})

_U16: Final = struct.Struct(">H").unpack_from
_U64: Final = struct.Struct(">Q").unpack_from

# "type" counts only as the first key, or straight after "event_id": anywhere else it could be nested or quoted text.
_TYPE_FIRST: Final = re.compile(
    rb'\s*\{\s*(?:"event_id"\s*:\s*(?:"[^"\\]*"|null)\s*,\s*)?"type"\s*:\s*"([A-Za-z0-9_.\-]{1,80})"\s*[,}]'
)
# ... or as the last key: in valid JSON, what stands right before the last brace is a key of the outermost object, and this text
# cannot be inside a string, for it holds quotes that are not escaped. Some SDKs write ``{"audio": …, "type": …}``.
_TYPE_LAST: Final = re.compile(rb'["}\]0-9el]\s*,\s*"type"\s*:\s*"([A-Za-z0-9_.\-]{1,80})"\s*\}\s*$')


class Disposition(Enum):
    """What becomes of a message."""

    PASS = 0
    COLLECT = 1
    HOLD = 2


PASS: Final = Disposition.PASS
COLLECT: Final = Disposition.COLLECT
HOLD: Final = Disposition.HOLD


class FrameError(Exception):
    """The peer broke the protocol.

    Attributes:
        code: close code RFC 6455 §7.4.1 asks for: 1002 protocol error, 1007 bad UTF-8 in a close reason, 1009 too big.
        detail: what was seen, for the log.
    """

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{detail} (close {code})")
        self.code = code
        self.detail = detail


class Sink(Protocol):
    """Who listens to one direction. Called synchronously from ``feed``."""

    def classify(self, opcode: int, event_type: str | None) -> Disposition:
        """A message has begun. ``event_type`` is ``None`` for binary, and for text whose first bytes do not tell."""

    def message(self, opcode: int, event_type: str | None, size: int, payload: bytes | None) -> bytes | None:
        """A message is complete.

        Args:
            opcode: TEXT or BINARY.
            event_type: as in ``classify``, or found at the end of a collected or held message.
            size: payload bytes, all fragments together.
            payload: the unmasked payload when it was collected or held and stayed below the limit.

        Returns: whole frames to send in place of a held message, or ``None`` to send it unchanged.
        """

    def control(self, opcode: int, payload: bytes) -> bool:
        """A PING or PONG arrived; return whether it goes on to the other side."""

    def closing(self, code: int, reason: str) -> bool:
        """A legal CLOSE arrived (1005 when it had no code); return whether it goes on to the other side."""


class DeafSink:
    """A sink that keeps nothing and passes on no control frame: for a stream whose end alone is of interest, or not even that."""

    def classify(self, opcode: int, event_type: str | None) -> Disposition:
        """Nothing is kept."""
        return PASS

    def message(self, opcode: int, event_type: str | None, size: int, payload: bytes | None) -> bytes | None:
        """Nobody listens any more."""
        return None

    def control(self, opcode: int, payload: bytes) -> bool:
        """After a CLOSE no ping is answered (RFC 6455 §5.5.1)."""
        return False

    def closing(self, code: int, reason: str) -> bool:
        """Nobody waits for it."""
        return False


def unmask(data: bytes | bytearray | memoryview, key: bytes, offset: int = 0) -> bytes:
    """XOR ``data`` with a mask key (RFC 6455 §5.3); ``offset`` is the position of its first byte in the frame's payload."""
    size = len(data)
    if not size:
        return b""
    shift = offset & 3
    rotated = key[shift:] + key[:shift]
    pad = rotated * (size // 4 + 1)
    # One big-integer XOR: the fastest way pure Python has, about 2 GB/s.
    return (int.from_bytes(data, "little") ^ int.from_bytes(pad[:size], "little")).to_bytes(size, "little")


def encode_frame(opcode: int, payload: bytes, *, mask_key: bytes | None = None) -> bytes:
    """Encode one unfragmented frame, with the shortest length form (RFC 6455 §5.2)."""
    size = len(payload)
    mask_bit = 0x80 if mask_key is not None else 0
    if size < 126:
        head = bytes((0x80 | opcode, mask_bit | size))
    elif size < 65536:
        head = struct.pack(">BBH", 0x80 | opcode, mask_bit | 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, mask_bit | 127, size)
    if mask_key is None:
        return head + payload
    return head + mask_key + unmask(payload, mask_key)


def close_payload(code: int, reason: str = "") -> bytes:
    """Payload of a CLOSE frame; a reason is cut to 123 bytes at a character boundary (RFC 6455 §5.5.1)."""
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return struct.pack(">H", code) + text


def may_travel(code: int) -> bool:
    """Whether a close code may stand in a CLOSE frame (RFC 6455 §7.4)."""
    return code in _WIRE_CODES or 3000 <= code <= 4999


def event_type_of(prefix: bytes | bytearray) -> str | None:
    """Name the event whose JSON text begins with ``prefix``, or ``None`` when these bytes do not tell."""
    match = _TYPE_FIRST.match(prefix)
    return match[1].decode("ascii") if match is not None else None


def late_type(tail: bytes | bytearray) -> str | None:
    """Name the event whose JSON text ends with ``tail``, or ``None`` when its last key is another."""
    match = _TYPE_LAST.search(tail)
    return match[1].decode("ascii") if match is not None else None


class FrameScanner(FastPath):
    """Follows the frames of one direction. What needs no look is moved over by ``FastPath``.

    Args:
        masked: whether frames of this direction must be masked (from a client) or must not be (from a server).
        max_message_bytes: payload limit of a message, checked on the announced length before any memory is spent.
        sink: who listens.
        collect_limit_bytes: a copy of a message is given up beyond this.
    """

    __slots__ = (
        "_close_seen",
        "_collect_limit",
        "_collected",
        "_cut",
        "_disposition",
        "_event_type",
        "_fin",
        "_final",
        "_held",
        "_in_message",
        "_injected_control",
        "_injected_events",
        "_key",
        "_muted",
        "_offset",
        "_opcode",
        "_overflow",
        "_partial",
        "_passed",
        "_size",
        "_undecided",
        "sink",
    )

    def __init__(
        self, *, masked: bool, max_message_bytes: int, sink: Sink, collect_limit_bytes: int = COLLECT_LIMIT_BYTES
    ) -> None:
        super().__init__(masked, max_message_bytes)
        self.sink = sink
        self._collect_limit = collect_limit_bytes
        self._partial = b""  # a frame head, or a control frame, that is not complete yet
        self._fin = True  # the current data frame's FIN bit
        self._key = b""  # the current data frame's mask key
        self._offset = 0  # payload bytes of the current data frame seen so far, for the mask
        self._in_message = False  # between a message's first frame and its last
        self._opcode = TEXT
        self._size = 0  # payload bytes announced so far for the current message
        self._event_type: str | None = None
        self._disposition = PASS
        self._undecided = False  # not enough of the message seen to name its type; its bytes are held meanwhile
        # Raw bytes that wait; ``None`` when nothing is held back. One buffer: a list of tiny pieces would cost a multiple.
        self._held: bytearray | None = None
        self._collected: bytearray | None = None  # unmasked payload, ``None`` when nobody asked for it
        self._overflow = False  # the copy was given up; ``_collected`` holds only the tail
        self._passed = False  # some byte of the current message has gone out
        self._close_seen = False  # §5.5.1: nothing after a CLOSE is looked at
        self._injected_control: list[bytes] = []  # wait for the next frame boundary
        self._injected_events: list[bytes] = []  # wait for the next message boundary
        self._final: tuple[bytes, bool] | None = None  # the last output ever; whether it waits for a message boundary
        self._cut = 0  # how much of the output that is being built stands before and with the final output
        self._muted = False  # the final output has been placed: the stream is still read, nothing goes out any more

    # --- where the outgoing stream stands -----------------------------------------------------------

    @property
    def at_frame_boundary(self) -> bool:
        """Whether a control frame may be put into the outgoing stream now."""
        return self.left == 0 or self._held is not None

    @property
    def at_message_boundary(self) -> bool:
        """Whether a data message may be put into the outgoing stream now."""
        return self.entered < 0 and (not self._in_message or not self._passed)

    @property
    def held_bytes(self) -> int:
        """Memory spent on bytes that wait."""
        held = len(self._held) if self._held is not None else 0
        return held + len(self._partial) + (len(self._collected) if self._collected is not None else 0)

    @property
    def close_seen(self) -> bool:
        """A CLOSE frame has been read."""
        return self._close_seen

    @property
    def current_type(self) -> str | None:
        """Type of the message that is under way, where its first bytes told."""
        return self._event_type if self._in_message else None

    def inject_control(self, frame: bytes) -> bytes:
        """Return the frame if it may go out now, else keep it for the next frame boundary and return nothing."""
        if self.at_frame_boundary:
            return frame
        self._injected_control.append(frame)
        self.mode = SLOW
        return b""

    def inject_event(self, frame: bytes) -> bytes:
        """Return the frame if it may go out now, else keep it for the next message boundary and return nothing."""
        if self.at_message_boundary and self.at_frame_boundary:
            return frame
        self._injected_events.append(frame)
        self.mode = SLOW
        return b""

    @property
    def final_waits(self) -> bool:
        """A final output was asked for and has found no place yet."""
        return self._final is not None

    def finish(self, frames: bytes, *, after_message: bool) -> bytes:
        """Put the last output of this direction in place; whatever arrives later is read and not passed on.

        Args:
            frames: whole frames, the last of them a CLOSE.
            after_message: they hold a message, so they wait for a message boundary; otherwise for a frame boundary.

        Returns: the frames if they may go out now; else nothing, and they come out of a later ``feed``.
        """
        if self._muted or self._final is not None:
            return b""
        self.mode = SLOW
        if self.at_frame_boundary and (self.at_message_boundary or not after_message):
            self._muted = True
            return frames
        self._final = (frames, after_message)
        return b""

    # --- the stream ---------------------------------------------------------------------------------

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream, or what the fast path left of a read.

        Returns: what may go out now, in order; often just ``[data]``.
        Raises: FrameError: the stream is illegal from here on; ``legal_output(error)`` gives what stood before that.
        """
        position = self.skip(data)
        if position == len(data):
            return [data]
        if self.entered >= 0:
            self._fin = True  # of the hot frame that the fast path entered
        out: list[bytes] = []
        muted = self._muted
        try:
            self._scan(data, position, out)
        except FrameError as error:
            self.mode = SLOW
            raise _Illegal(error, [] if muted else out) from None
        self.mode = self._what_may_be_skipped()
        if not self._muted:
            return out
        if muted:
            return []
        # The final output was placed just now: it is the last element that counts.
        del out[self._cut :]
        return out

    def _what_may_be_skipped(self) -> int:
        """The fast path's mode from here on."""
        if (
            self._muted
            or self._partial
            or self._close_seen
            or self._injected_control
            or self._injected_events
            or self._final is not None
        ):
            return SLOW
        if self.left:
            # In a frame that passes nothing can be of interest.
            return MIDDLE if self._collected is None and self._held is None else SLOW
        return SLOW if self._in_message else BOUNDARY

    def _scan(self, data: bytes, position: int, out: list[bytes]) -> None:
        if self._close_seen:
            return
        if self._partial:
            data = self._partial + data
            self._partial = b""
        size = len(data)
        # ``position``: next byte to look at.
        start = 0  # first byte of the run that goes out unchanged

        while position < size:
            if self.left:
                end = min(size, position + self.left)
                if self._collected is not None:
                    self._collect(data, position, end)
                    if self._undecided and len(self._collected) >= PEEK_BYTES:
                        start = self._decide(start, position, out)
                    elif self._overflow and self._held is not None:
                        # Too long to hold: it goes out unchanged. The type may still be told by its tail.
                        start = self._release(start, position, out)
                self.left -= end - position
                self._offset += end - position
                if self._held is not None:
                    self._held += data[position:end]
                    start = end
                position = end
                if self.left:
                    break
                start = self._frame_end(data, start, position, out)
                continue

            try:
                head = self._read_head(data, position)
            except FrameError:
                self._emit(data, start, position, out)
                raise
            if head is None:
                self._emit(data, start, position, out)
                self._partial = data[position:]
                return
            opcode, _, length, key, payload_at = head

            if opcode & 0x8:
                if size - payload_at < length:
                    self._emit(data, start, position, out)
                    self._partial = data[position:]
                    return
                end = payload_at + length
                payload = data[payload_at:end]
                if key:
                    payload = unmask(payload, key)
                # While a message is held back the run is empty here, so a control frame overtakes it, which §5.4 allows.
                self._emit(data, start, position, out)
                start = position
                if not self._take_control(opcode, payload):
                    start = end
                else:
                    self._emit(data, start, end, out)
                    start = end
                position = end
                if self._close_seen:
                    return
                continue

            start = self._begin_frame(data, start, position, head, out)
            position = payload_at
            if length == 0:
                start = self._frame_end(data, start, position, out)

        self._emit(data, start, position, out)

    def _emit(self, data: bytes, start: int, end: int, out: list[bytes]) -> None:
        if start >= end:
            return
        out.append(data if start == 0 and end == len(data) else data[start:end])

    def _read_head(self, data: bytes, at: int) -> tuple[int, bool, int, bytes, int] | None:
        """Read a frame head at ``at``: opcode, FIN, length, key, payload position; ``None`` when it is not all there."""
        available = len(data) - at
        if available < 2:
            # What one byte can tell is told at once, so that a peer that is not speaking WebSocket is not waited for.
            self._check_first(data[at])
            return None
        first, second = data[at], data[at + 1]
        opcode = self._check_first(first)
        if bool(second & 0x80) is not self.masked:
            raise FrameError(1002, "masked frame from a server" if second & 0x80 else "unmasked frame from a client")
        length = second & 0x7F
        if opcode & 0x8 and length > 125:
            raise FrameError(1002, "control frame longer than 125 bytes")
        payload_at = at + 2
        if length == 126:
            if available < 4:
                return None
            length = _U16(data, payload_at)[0]
            if length < 126:
                raise FrameError(1002, f"length {length} not in its shortest form")
            payload_at += 2
        elif length == 127:
            if available < 10:
                return None
            length = _U64(data, payload_at)[0]
            if length >> 63:
                raise FrameError(1002, "length with the top bit set")
            if length < 65536:
                raise FrameError(1002, f"length {length} not in its shortest form")
            payload_at += 8
        if not opcode & 0x8:
            total = length if opcode != CONTINUATION else self._size + length
            if total > self.max_message_bytes:
                raise FrameError(1009, f"message of at least {total} bytes, limit {self.max_message_bytes}")
        key = b""
        if self.masked:
            if len(data) - payload_at < 4:
                return None
            key = data[payload_at : payload_at + 4]
            payload_at += 4
        return opcode, bool(first & 0x80), length, key, payload_at

    def _check_first(self, first: int) -> int:
        """Check a frame's first byte and return its opcode."""
        opcode = first & 0x0F
        if first & 0x70:
            raise FrameError(1002, "reserved bit set although no extension was negotiated")
        if opcode & 0x8:
            if opcode > PONG:
                raise FrameError(1002, f"reserved opcode {opcode:#x}")
            if not first & 0x80:
                raise FrameError(1002, "fragmented control frame")
            return opcode
        if opcode > BINARY:
            raise FrameError(1002, f"reserved opcode {opcode:#x}")
        if opcode == CONTINUATION and not self._in_message:
            raise FrameError(1002, "continuation of nothing")
        if opcode != CONTINUATION and self._in_message:
            raise FrameError(1002, "new message inside a fragmented one")
        return opcode

    def _begin_frame(
        self, data: bytes, start: int, at: int, head: tuple[int, bool, int, bytes, int], out: list[bytes]
    ) -> int:
        """Enter a data frame whose head is complete; return the new start of the outgoing run."""
        opcode, fin, length, key, payload_at = head
        self._fin = fin
        self.left = length
        self._key = key
        self._offset = 0
        if opcode == CONTINUATION:
            self._size += length
            if self._held is not None:
                self._emit(data, start, at, out)
                self._held += data[at:payload_at]
                if len(self._held) > _HOLD_RAW_LIMIT_BYTES:
                    self._give_up_holding(payload_at, out)
                return payload_at
            return start

        self._in_message = True
        self._opcode = opcode
        self._size = length
        self._event_type = None
        self._passed = False
        self._collected = None
        self._overflow = False
        available = len(data) - payload_at
        whole = length <= PEEK_BYTES and fin
        if opcode == BINARY:
            self._disposition = self.sink.classify(BINARY, None)
        elif available >= PEEK_BYTES <= length or (whole and available >= length):
            peeked = data[payload_at : payload_at + min(length, PEEK_BYTES)]
            self._event_type = event_type_of(unmask(peeked, key) if key else peeked)
            self._disposition = self.sink.classify(TEXT, self._event_type)
        else:
            self._undecided = True
            self._collected = bytearray()
            self._held = bytearray()
        if not self._undecided:
            if self._disposition is not PASS:
                self._collected = bytearray()
            if self._disposition is HOLD:
                self._held = bytearray()
        if self._held is None:
            self._passed = True
            return start
        self._emit(data, start, at, out)
        self._held += data[at:payload_at]
        return payload_at

    def _give_up_holding(self, at: int, out: list[bytes]) -> None:
        """Endless fragments must not be held for ever, though their payload stays small: let them go unchanged."""
        if self._undecided:
            self._decide(at, at, out)
        if self._held is not None:
            self._overflow = True
            self._release(at, at, out)

    def _collect(self, data: bytes, start: int, end: int) -> None:
        """Copy payload bytes for the sink, unmasked, as long as the copy stays below its limit."""
        collected = self._collected
        assert collected is not None
        part = data[start:end]
        collected += unmask(part, self._key, self._offset) if self._key else part
        limit = HOLD_LIMIT_BYTES if self._held is not None else self._collect_limit
        if self._overflow or len(collected) > limit:
            self._overflow = True
            del collected[:-_TAIL_BYTES]

    def _decide(self, start: int, at: int, out: list[bytes]) -> int:
        """Name the type of a message whose beginning came in pieces; return the new start of the outgoing run."""
        assert self._collected is not None
        self._undecided = False
        self._event_type = event_type_of(self._collected)
        self._disposition = self.sink.classify(TEXT, self._event_type)
        if self._disposition is HOLD:
            return start
        start = self._release(start, at, out)
        if self._disposition is PASS:
            self._collected = None
        return start

    def _release(self, start: int, at: int, out: list[bytes]) -> int:
        """Let held bytes go; the outgoing run goes on at ``at``."""
        if self._held is None:
            return start
        if self._held:
            out.append(bytes(self._held))
        self._held = None
        self._passed = True
        return at

    def _frame_end(self, data: bytes, start: int, at: int, out: list[bytes]) -> int:
        """A data frame is complete; return the new start of the outgoing run."""
        if self._fin:
            start = self._message_end(start, at, out)
        if self._injected_control or self._injected_events or self._final is not None:
            self._emit(data, start, at, out)
            start = at
            self._place_injected(out)
        return start

    def _place_injected(self, out: list[bytes]) -> None:
        """The outgoing stream is at a frame boundary: put in what waits for one."""
        out.extend(self._injected_control)
        self._injected_control.clear()
        if self.at_message_boundary:
            out.extend(self._injected_events)
            self._injected_events.clear()
        if self._final is not None and not self._muted and (self.at_message_boundary or not self._final[1]):
            out.append(self._final[0])
            self._final = None
            self._muted = True
            self._cut = len(out)

    def _message_end(self, start: int, at: int, out: list[bytes]) -> int:
        if self._undecided:
            start = self._decide(start, at, out)
        if self.entered >= 0:
            self.leave()
            return start
        payload: bytes | None = None
        collected = self._collected
        if collected is not None:
            if self._event_type is None and self._opcode == TEXT:
                self._event_type = late_type(collected[-_TAIL_BYTES:])
            if not self._overflow:
                payload = bytes(collected)
        self._in_message = False
        self.events += 1
        replacement = self.sink.message(self._opcode, self._event_type, self._size, payload)
        self._collected = None
        self._size = 0
        if self._held is None:
            return start
        if replacement is None:
            return self._release(start, at, out)
        self._held = None
        out.append(replacement)
        return at

    def _take_control(self, opcode: int, payload: bytes) -> bool:
        if opcode != CLOSE:
            return self.sink.control(opcode, payload)
        code, reason = parse_close(payload)
        self._close_seen = True
        return self.sink.closing(code, reason)


class _Illegal(FrameError):
    """``FrameError`` with the bytes that were legal before it."""

    def __init__(self, error: FrameError, output: list[bytes]) -> None:
        super().__init__(error.code, error.detail)
        self.output = output


def legal_output(error: FrameError) -> list[bytes]:
    """The bytes of the failing ``feed`` that stood before the illegal ones and may still go out."""
    return error.output if isinstance(error, _Illegal) else []


def parse_close(payload: bytes) -> tuple[int, str]:
    """Read a CLOSE payload (RFC 6455 §5.5.1).

    Returns: code and reason; 1005 when there is none.
    Raises: FrameError: 1002 for an illegal code or length, 1007 for a reason that is not UTF-8.
    """
    if not payload:
        return 1005, ""
    if len(payload) == 1:
        raise FrameError(1002, "close payload of one byte")
    code: int = _U16(payload, 0)[0]
    if not may_travel(code):
        raise FrameError(1002, f"close code {code} may not travel")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise FrameError(1007, "close reason is not UTF-8") from None
