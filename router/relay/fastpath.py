"""The fast path of one direction: what passes without a closer look, which is nearly every read of a session.

Two things pass: whole *hot* frames, one after the other, and the middle of a frame that was let through. A hot frame is one
unfragmented text frame with a 16-bit length whose message begins like one of a few types (audio, transcripts); it is told by its
first bytes in one look-up and counted here, without telling the scanner's sink.

``FastPath`` is the base of ``FrameScanner``, which owns the rest of the stream; the two share the state below. At real-time pace
every call runs on a cold cache, where each Python frame costs more than what it does, so there is one call between the
transport's read and its peer's write. The same class in C is ``realtime_router_accel.FastPath``, from the distribution in
``accel/``; it is taken when it is installed and fits, and a property test holds the two against each other.

Pure: no asyncio, no sockets, no clock.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

# Bytes that have to be equal to find a frame's type.
HOT_KEY_BYTES: Final = 33  # of a server's frame: the first length at which `response.output_audio.delta` and `.done` differ
HOT_MASKED_KEY_BYTES: Final = 36  # of a client's frame: all of `{"type":"input_audio_buffer.append",`
# A mask key times this is the key repeated over those bytes, as one number.
_REPEAT: Final = sum(1 << (32 * index) for index in range(HOT_MASKED_KEY_BYTES // 4))
# The first two bytes of a frame, a 16-bit length, for a client's the mask key, and what tells the type: in one call, for at
# real-time pace each bytecode runs on a cold cache.
_UNMASKED: Final = struct.Struct(f">HH{HOT_KEY_BYTES}s").unpack_from
_UNMASKED_SIZE: Final = 4 + HOT_KEY_BYTES
_MASKED: Final = struct.Struct(f">HHI{HOT_MASKED_KEY_BYTES}s").unpack_from
_MASKED_SIZE: Final = 8 + HOT_MASKED_KEY_BYTES
# How many types may be hot in one direction.
MAX_HOT_TYPES: Final = 8

# A read of at least this size may be a flood of tiny frames: it goes to whoever times it.
FAIR_BYTES: Final = 16 * 1024

# ``FastPath.mode``
SLOW: Final = 0  # every byte is the scanner's
BOUNDARY: Final = 1  # at a frame and message boundary, with nothing pending
MIDDLE: Final = 2  # in a frame that is let through, with nothing pending

# What the first bytes must be → the first bytes of the message up to the first key's comma, and the type's place in the counts.
# By ``bytes``; a client's also by the number those bytes are, which Python can compare under a mask.
HotTable = Mapping[bytes | int, tuple[bytes, int]]

# The C form is only taken when it says that it is this interface; a constant in both is raised when the contract changes.
INTERFACE: Final = 1


def hot_table(types: Iterable[str], *, masked: bool, without: Iterable[str] = ()) -> HotTable:
    """Build what a scanner's ``hot`` has to hold. Never changed afterwards, so all sessions share it.

    Args:
        types: at most ``MAX_HOT_TYPES``; only their plain form, type first and no blanks, is hot; counted in their order.
        masked: for the direction from the client.
        without: those of them that are not hot in this table.

    Raises: ValueError: a type is too short, or too long, to be told by those bytes, or there are too many.
    """
    table: dict[bytes | int, tuple[bytes, int]] = {}
    cold = frozenset(without)
    for index, event_type in enumerate(types):
        if index >= MAX_HOT_TYPES:
            raise ValueError(f"more than {MAX_HOT_TYPES} types cannot be hot")
        for key, prefix in _hot_keys(event_type, masked=masked):
            if event_type not in cold:
                table[key] = (prefix, index)
    return table


def _hot_keys(event_type: str, *, masked: bool) -> list[tuple[bytes | int, bytes]]:
    prefix = b'{"type":"' + event_type.encode() + b'",'
    if masked:
        if len(prefix) != HOT_MASKED_KEY_BYTES:
            raise ValueError(f"{event_type!r} cannot be hot from a client")
        return [(int.from_bytes(prefix, "big"), prefix), (prefix, prefix)]
    if len(prefix) >= HOT_KEY_BYTES:
        return [(prefix[:HOT_KEY_BYTES], prefix)]
    # What follows a short type is the beginning of the next key: event_id, response_id, item_id.
    keys = [prefix + following for following in (b'"e', b'"r', b'"i') if len(prefix) + 2 == HOT_KEY_BYTES]
    if not keys:
        raise ValueError(f"{event_type!r} cannot be hot from an upstream")
    return [(key, prefix) for key in keys]


def _nowhere(data: bytes) -> None:
    """Where bytes go before the legs are joined, and after their end."""


class PurePythonFastPath:
    """The fast path's state, and its way through a read.

    Args:
        masked: whether frames of this direction must be masked.
        max_message_bytes: payload limit of a message.

    Attributes:
        mode: what may be skipped; ``SLOW``, ``BOUNDARY`` or ``MIDDLE``. The scanner sets it after every slow turn.
        left: payload bytes of the current data frame still to come.
        entered: place in the counts of the hot frame that is under way; -1 when it is another frame, or none.
        entered_bytes: that frame's payload bytes.
        events: complete messages so far.
        skipped_bytes: bytes that ``data_received`` has passed on.
        hot: ``hot_table`` of the types that the sink need not be told of; may be exchanged at any time.
        write: takes what passes.
        slow: takes the rest of a read, from the first byte that does not pass.
        waiting: bytes of earlier reads wait behind ``slow``, so nothing may overtake them.
    """

    __slots__ = (
        "_counts",
        "entered",
        "entered_bytes",
        "events",
        "hot",
        "left",
        "masked",
        "max_message_bytes",
        "mode",
        "skipped_bytes",
        "slow",
        "waiting",
        "write",
    )

    def __init__(self, masked: bool, max_message_bytes: int) -> None:
        self.masked = masked
        self.max_message_bytes = max_message_bytes
        self.mode = BOUNDARY
        self.left = 0
        self.entered = -1
        self.entered_bytes = 0
        self.events = 0
        self.skipped_bytes = 0
        self.hot: HotTable = {}
        self._counts = [0] * (2 * MAX_HOT_TYPES)
        self.write: Callable[[bytes], object] = _nowhere
        self.slow: Callable[[bytes], object] = _nowhere
        self.waiting = False

    def data_received(self, data: bytes) -> None:
        """Take a read: write what passes, and hand the rest to ``slow``."""
        size = len(data)
        if size < FAIR_BYTES and not self.waiting:
            passes = self.skip(data)
            if passes == size:
                self.skipped_bytes += size
                self.write(data)
                return
            if passes:
                self.skipped_bytes += passes
                self.write(data[:passes])
                data = data[passes:]
        self.slow(data)

    def skip(self, data: bytes) -> int:
        """Move over what passes at the beginning of ``data``, counting hot frames; return how many bytes that are."""
        mode = self.mode
        if mode == SLOW:
            return 0
        size = len(data)
        at = 0
        if mode == MIDDLE:
            at = self.left
            if at > size:
                self.left = at - size
                return size
            if self.entered < 0:
                # The end of a message that the sink is told of.
                return 0
            self.leave()
            self.mode = BOUNDARY
        hot = self.hot
        if self.masked:
            while size - at >= _MASKED_SIZE:
                head, length, mask, key = _MASKED(data, at)
                # FIN and TEXT, masked, a 16-bit length: the shape of every audio event below 64 KiB.
                if head != 0x81FE:
                    break
                found = hot.get(int.from_bytes(key, "big") ^ mask * _REPEAT)
                if found is None or not 126 <= length <= self.max_message_bytes:
                    break
                at += 8 + length
                if at > size:
                    self._enter(found[1], length, at - size)
                    return size
                index = 2 * found[1]
                counts = self._counts
                counts[index] += 1
                counts[index + 1] += length
                self.events += 1
            return at
        while size - at >= _UNMASKED_SIZE:
            head, length, key = _UNMASKED(data, at)
            if head != 0x817E:
                break
            found = hot.get(key)
            if found is None or not data.startswith(found[0], at + 4) or not 126 <= length <= self.max_message_bytes:
                break
            at += 4 + length
            if at > size:
                self._enter(found[1], length, at - size)
                return size
            index = 2 * found[1]
            counts = self._counts
            counts[index] += 1
            counts[index + 1] += length
            self.events += 1
        return at

    def _enter(self, index: int, length: int, left: int) -> None:
        """A hot frame goes on in the next read."""
        self.mode = MIDDLE
        self.left = left
        self.entered = index
        self.entered_bytes = length

    def leave(self) -> None:
        """Count the hot frame that was entered; its last byte has come."""
        index = self.entered
        self._counts[2 * index] += 1
        self._counts[2 * index + 1] += self.entered_bytes
        self.events += 1
        self.entered = -1
        self.left = 0

    def take_counts(self) -> list[int]:
        """Return what was counted since the last call: messages and payload bytes of the first type, of the second, …"""
        taken = self._counts
        self._counts = [0] * (2 * MAX_HOT_TYPES)
        return taken


def _choose() -> tuple[type[PurePythonFastPath], bool]:
    """Take the C form when it is there. ``REALTIME_ROUTER_ACCEL=0`` forbids it, ``1`` insists on it."""
    wish = os.environ.get("REALTIME_ROUTER_ACCEL", "")
    if wish == "0":
        return PurePythonFastPath, False
    try:
        # Optional, and without stubs: where it is not installed mypy does not find it, where it is the comment is unused.
        import realtime_router_accel as accel  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        if wish == "1":
            raise
        return PurePythonFastPath, False
    if accel.INTERFACE != INTERFACE:
        if wish == "1":
            raise ImportError(f"realtime_router_accel: found interface {accel.INTERFACE}, expected {INTERFACE}")
        return PurePythonFastPath, False
    return accel.FastPath, True


if TYPE_CHECKING:
    FastPath = PurePythonFastPath
    accelerated: bool
else:
    FastPath, accelerated = _choose()
