"""Random WebSocket conversations, made from a number: what each side sends, how its bytes are cut, how it ends; and the check.

Everything follows from the seed. The check knows nothing of the router's scanner: it compares frames as they were on the wire,
heads, mask keys and fragments included, and works out by itself what becomes of a ``session.update``.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from router.events import SessionRecord
from router.relay.contract import SessionEnd
from tests.helpers.raw import BINARY, CLOSE, PING, PONG, TEXT, Frame, close_frame, encode, fragments, xor

# How many, and where they begin: thousands with ``make test-conformance``.
COUNT: Final = int(os.environ.get("CONFORMANCE_SEQUENCES", "200"))
FIRST_SEED: Final = int(os.environ.get("CONFORMANCE_SEED", "0"))

Side = Literal["client", "upstream"]
How = Literal["close", "crossed", "fin", "fin in a frame", "reset"]

# What the deployment calls the model; a session.update that names another one leaves changed.
UPSTREAM_MODEL: Final = "upstream-model"
# Longer messages are not held back to be changed.
_HELD_BYTES: Final = 512 * 1024
# Legal in a CLOSE (RFC 6455 §7.4 and the IANA registry).
CODES: Final = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4001, 4999, None)
# Enough for any payload; slices of it are cheap.
_FILLER: Final = "".join(random.Random(0).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=720_000))
_NOISE: Final = random.Random(1).randbytes(720_000)

_HOT: Final = {
    "client": ["input_audio_buffer.append"],
    "upstream": [
        "response.output_audio.delta",
        "response.audio.delta",
        "response.output_text.delta",
        "response.output_audio_transcript.delta",
    ],
}
_OTHERS: Final = {
    "client": ["conversation.item.create", "response.create", "input_audio_buffer.appendix", "input_audio_buffer.commit", "x"],
    "upstream": ["response.done", "response.output_audio.done", "rate_limits.updated", "session.updated", "error", "x.y-z", "é"],
}
_UPDATES: Final = [
    '{"type":"session.update","session":{"model":"voice","instructions":"%s"}}',
    '{"type": "session.update", "session": {"type": "realtime", "model": "voice", "audio": {"x": "%s"}}}',
    '{"event_id":"event_1","type":"session.update","model":"voice","session":{"x":"%s"}}',
    '{"session":{"model":"voice","instructions":"%s"},"type":"session.update"}',
    '{"x":"%s","type":"session.update","session":{"model":"voice"}}',
    '{"type":"session.update","session":{"instructions":"%s"}}',
    '{"type":"session.update","session":{"model":"upstream-model","instructions":"%s"}}',
    '{"type":"session.update","session":{"audio":{"input":{"transcription":{"model":"voice"}}},"x":"%s"}}',
    '{"type":"session.update","session":{"model":"voice","instructions":"%s"',
]


@dataclass(frozen=True, slots=True)
class Message:
    """A data message.

    Attributes:
        frames: as they are sent; control frames stand elsewhere.
        changed: what its JSON must be when it arrives; ``None``: the frames arrive as they are.
        complete: it has a last frame.
    """

    frames: tuple[bytes, ...]
    changed: Any = None
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Control:
    """A PING or PONG.

    Attributes:
        frame: as it is sent.
        least, most: how many data frames may stand before it when it arrives: as many as when it was sent, or fewer where it was
            sent inside a message, for it may overtake what is held back (RFC 6455 §5.4).
    """

    frame: bytes
    least: int
    most: int


@dataclass(slots=True)
class Script:
    """What one side sends before it ends.

    Attributes:
        side: whose.
        wire: all of it, in order.
        messages, controls: what it is made of.
        pieces: ``wire`` as it is handed to the socket.
        yields: after which pieces others get their turn.
    """

    side: Side
    wire: bytes = b""
    messages: list[Message] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    yields: list[bool] = field(default_factory=list)

    @property
    def complete(self) -> int:
        """How many messages have a last frame."""
        return sum(message.complete for message in self.messages)

    @property
    def arriving(self) -> int:
        """How many data frames must arrive at least."""
        return sum(
            1 if message.changed is not None else len(message.frames) for message in self.messages if message.complete
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """How a conversation ends.

    Attributes:
        by: who begins; with ``crossed`` both do.
        how: CLOSE and its answer; both say CLOSE at once; FIN without CLOSE, at a frame's end or within; RST.
        late: only when everything has arrived on both sides.
        close, answer: code and reason of the CLOSE, and of the other side's.
        partial: the beginning of a frame, before a FIN in a frame.
    """

    by: Side
    how: How
    late: bool
    close: tuple[int | None, bytes]
    answer: tuple[int | None, bytes]
    partial: bytes = b""


@dataclass(frozen=True, slots=True)
class Sequence:
    """A conversation."""

    seed: int
    client: Script
    upstream: Script
    ending: Ending
    early: bool  # the client's first piece comes with its upgrade request

    def script(self, side: Side) -> Script:
        """What a side sends."""
        return self.client if side == "client" else self.upstream


# --- making -------------------------------------------------------------------------------------


def sequence_of(seed: int) -> Sequence:
    """Make a conversation."""
    rng = random.Random(seed)
    by: Side = rng.choice(["client", "upstream"])
    hows: list[How] = ["close", "crossed", "fin", "fin in a frame", "reset"]
    how = rng.choices(hows, [60, 12, 10, 8, 10])[0]
    scripts = {side: _script(rng, side, open_end=how != "crossed" and side == by) for side in _sides()}
    partial = b""
    if how == "fin in a frame":
        frame = encode(TEXT if rng.random() < 0.5 else BINARY, _text(rng, by, _size(rng) + 2), masked=by == "client")
        if scripts[by].messages and not scripts[by].messages[-1].complete:
            frame = bytes([frame[0] & 0xF0]) + frame[1:]
        partial = frame[: rng.choice([1, 2, rng.randrange(1, len(frame)), len(frame) - 1])]
    ending = Ending(by, how, rng.random() < 0.4 or how == "fin in a frame", _close(rng), _close(rng), partial)
    return Sequence(seed, scripts["client"], scripts["upstream"], ending, rng.random() < 0.2)


def _sides() -> tuple[Side, Side]:
    return "client", "upstream"


def _close(rng: random.Random) -> tuple[int | None, bytes]:
    code = rng.choice(CODES)
    reason = b""
    if code is not None and rng.random() < 0.6:
        reason = ("".join(rng.choices("ab é\u4e2d\U0001f600", k=rng.choice([1, 9, 40, 120]))).encode())[:123]
        reason = reason.decode(errors="ignore").encode()
    return code, reason


def _script(rng: random.Random, side: Side, *, open_end: bool) -> Script:
    masked = side == "client"
    script = Script(side)
    parts: list[bytes] = []
    arrived = 0  # data frames that arrive before what comes next

    def control(least: int, most: int) -> None:
        if rng.random() < 0.12:
            payload = rng.choice([b"", b"x", rng.randbytes(rng.randrange(126)), rng.randbytes(125)])
            frame = encode(rng.choice([PING, PONG]), payload, masked=masked, key=rng.randbytes(4))
            script.controls.append(Control(frame, least, most))
            parts.append(frame)

    for _ in range(rng.choice([0, rng.randint(1, 3), rng.randint(1, 5), rng.randint(1, 12), rng.randint(10, 30)])):
        message = _message(rng, side)
        for index, frame in enumerate(message.frames):
            control(arrived, arrived if message.changed is not None else arrived + index)
            parts.append(frame)
        script.messages.append(message)
        arrived += 1 if message.changed is not None else len(message.frames)
    control(arrived, arrived)
    if open_end and rng.random() < 0.15:
        whole = _message(rng, side, least_fragments=2)
        message = Message(whole.frames[: rng.randrange(1, len(whole.frames))], complete=False)
        script.messages.append(message)
        parts += message.frames
    script.wire = b"".join(parts)
    script.pieces = _cut(rng, script.wire, [len(part) for part in parts])
    script.yields = [rng.random() < 0.6 for _ in script.pieces]
    return script


def _size(rng: random.Random) -> int:
    """Payload bytes: the edges of the three length forms and of the ways through the router, and anything between."""
    kind = rng.random()
    if kind < 0.30:
        return rng.choice([0, 1, 125, 126, 127])
    if kind < 0.60:
        return rng.randrange(2, 125)
    if kind < 0.80:
        return rng.choice([159, 160, 161, rng.randrange(128, 2000)])
    if kind < 0.96:
        return rng.randrange(2000, 9000)
    if kind < 0.985:
        return rng.choice([65534, 65535, 65536, 65537])
    if kind < 0.998:
        return rng.randrange(66_000, 150_000)
    return rng.choice([rng.randrange(200_000, 700_000), _HELD_BYTES, _HELD_BYTES + 1])


def _text(rng: random.Random, side: Side, size: int) -> bytes:
    """Text of exactly that size, JSON where there is room for it."""
    kind = rng.random()
    at = rng.randrange(1000)
    if side == "client" and kind < 0.2:
        shape = rng.choice(_UPDATES)
    elif kind < 0.6:
        shape = f'{{"type":"{rng.choice(_HOT[side])}",{rng.choice(_KEYS)}:"%s"}}'
    elif kind < 0.9:
        name = rng.choice([*_OTHERS[side], *_HOT[side]])
        shape = rng.choice(_SHAPES).replace("NAME", name)
    else:
        decoy = '{"a":{"type":"session.update","model":"voice"},"b":"%s"}'
        shape = rng.choice(["%s", "[%s]", "{%s", "é%s", '"%s"', " %s\n", decoy])
    room = size - len((shape % "").encode())
    return (shape % _FILLER[at : at + room]).encode() if room >= 0 else _FILLER[at : at + size].encode()


_KEYS: Final = ['"delta"', '"audio"', '"event_id"', '"response_id"', '"item_id"']
_SHAPES: Final = [
    '{"type":"NAME","x":"%s"}',
    '{"event_id":"event_2","type":"NAME","x":"%s"}',
    '{"event_id":null,"type":"NAME","x":"%s"}',
    '{"x":"%s","type":"NAME"}',
    '{"x":{"type":"decoy","y":"%s"},"type":"NAME","z":[1,2]}',
    '{\n  "type": "NAME",\n  "x": "%s"\n}',
    ' { "type" : "NAME" , "x" : "%s" } ',
]


def _message(rng: random.Random, side: Side, *, least_fragments: int = 1) -> Message:
    masked = side == "client"
    size = _size(rng)
    opcode = BINARY if rng.random() < 0.2 else TEXT
    if opcode == BINARY:
        at = rng.randrange(1000)
        payload = _NOISE[at : at + size]
    else:
        payload = _text(rng, side, size)
    count = max(least_fragments, rng.choices([1, 2, 3, 12], [70, 14, 12, 4])[0])
    edges = [rng.choice([0, len(payload), rng.randrange(len(payload) + 1)]) for _ in range(count - 1)]
    frames = fragments(payload, edges, masked=masked, opcode=opcode)
    if rng.random() < 0.1:
        frames = [encode(opcode, payload, masked=masked, key=bytes(4))] if count == 1 else frames
    changed = _changed(payload) if side == "client" and opcode == TEXT else None
    return Message(tuple(frames), changed)


def _changed(payload: bytes) -> Any:
    """What a client's text must be when it arrives, or ``None`` when it arrives as it is."""
    if b"session.update" not in payload or len(payload) > _HELD_BYTES:
        return None
    try:
        event = json.loads(payload)
    except ValueError:
        return None
    if not isinstance(event, dict) or event.get("type") != "session.update":
        return None
    places = [place for place in (event, event.get("session")) if isinstance(place, dict) and "model" in place]
    if all(place["model"] == UPSTREAM_MODEL for place in places):
        return None
    for place in places:
        place["model"] = UPSTREAM_MODEL
    return event


def _cut(rng: random.Random, wire: bytes, frame_sizes: list[int]) -> list[bytes]:
    """Cut bytes into pieces of 1 byte to 80 KB, which have little to do with frames; some hundreds at the most."""
    if not wire:
        return []
    style = rng.random()
    if style < 0.1:
        edges = [len(wire)]
    elif style < 0.25:
        # At the heads: where a frame ends, and some bytes before and behind.
        ends = list(itertools.accumulate(frame_sizes))
        edges = [end + rng.randint(-8, 14) for end in ends] if rng.random() < 0.7 else ends
    elif style < 0.4 and len(wire) < 500:
        edges = list(range(1, len(wire)))
    else:
        sizes = rng.choice([[1, 2, 3, 7], [1, 7, 130, 1400], [1400, 9000], [1, 9000, 80_000], [1, 2, 7, 130, 1400, 9000, 80_000]])
        edges, at = [], 0
        while at < len(wire) and len(edges) < 300:
            at += rng.choice(sizes)
            edges.append(at)
        edges += range(at + 80_000, len(wire), 80_000)
    inner = sorted({edge for edge in edges if 0 < edge < len(wire)})
    return [wire[start:end] for start, end in itertools.pairwise([0, *inner, len(wire)])]


# --- reading and comparing ------------------------------------------------------------------------


class Frames:
    """Frames as they come from a socket, each with every byte of it."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.controls: list[tuple[bytes, int]] = []  # with the number of data frames before it
        self.close: tuple[int | None, bytes] | None = None
        self.rest = b""  # of a frame that is not complete
        self.size = 0  # bytes so far

    def feed(self, data: bytes) -> None:
        """Take bytes. Raises: AssertionError: something comes behind a CLOSE."""
        assert self.close is None, "bytes behind a CLOSE (RFC 6455 §5.5.1)"
        self.size += len(data)
        buffer = self.rest + data
        at = 0
        while (end := _end_of_frame(buffer, at)) is not None:
            assert self.close is None, "a frame behind a CLOSE (RFC 6455 §5.5.1)"
            frame = buffer[at:end]
            at = end
            opcode = frame[0] & 0xF
            if opcode == CLOSE:
                self.close = read(frame).close
            elif opcode in (PING, PONG):
                self.controls.append((frame, len(self.data)))
            else:
                self.data.append(frame)
        self.rest = buffer[at:]


def _end_of_frame(buffer: bytes, at: int) -> int | None:
    """Where the frame that begins at ``at`` ends; ``None`` when that is not all there."""
    available = len(buffer) - at
    if available < 2:
        return None
    size, head = buffer[at + 1] & 0x7F, 2
    if size >= 126:
        head = 4 if size == 126 else 10
        if available < head:
            return None
        size = int.from_bytes(buffer[at + 2 : at + head], "big")
    if buffer[at + 1] & 0x80:
        head += 4
    return at + head + size if available >= head + size else None


def read(frame: bytes) -> Frame:
    """What is in a frame."""
    size, at = frame[1] & 0x7F, 2
    if size >= 126:
        at = 4 if size == 126 else 10
    payload = frame[at:]
    masked = bool(frame[1] & 0x80)
    if masked:
        payload = xor(payload[4:], payload[:4])
    return Frame(frame[0] & 0xF, bool(frame[0] & 0x80), masked, payload)


def check_arrived(sent: Script, got: Frames, *, prefix: bool = False) -> None:
    """Compare what a side sent with what came out on the other one.

    Args:
        sent: by the one.
        got: by the other, what was there before the conversation left out.
        prefix: the end may be missing.

    Raises: AssertionError: a frame is missing, changed, doubled or out of order.
    """
    expected: list[bytes | Any] = []
    last = 0  # frames of an incomplete message: they may have been held back for good
    for message in sent.messages:
        expected += [message.changed] if message.changed is not None else message.frames
        last = 0 if message.complete else len(message.frames)
    for index, (want, have) in enumerate(zip(expected, got.data, strict=False)):
        if isinstance(want, bytes):
            assert have == want, f"data frame {index}: {_told(have)}, expected {_told(want)}"
            continue
        frame = read(have)
        assert (frame.opcode, frame.fin, frame.masked) == (TEXT, True, True), f"data frame {index}: {_told(have)}"
        assert json.loads(frame.payload) == want, f"data frame {index}: {_told(have)}, expected {str(want)[:200]}"
    assert len(got.data) <= len(expected), f"{len(got.data)} data frames, expected {len(expected)}"
    if not prefix:
        assert len(got.data) in (len(expected), len(expected) - last), f"{len(got.data)} data frames, expected {len(expected)}"
        assert len(got.controls) == len(sent.controls), f"{len(got.controls)} control frames, expected {len(sent.controls)}"
    for index, ((arrived, before), control) in enumerate(zip(got.controls, sent.controls, strict=False)):
        assert arrived == control.frame, f"control frame {index}: {_told(arrived)}, expected {_told(control.frame)}"
        assert control.least <= before <= control.most, (
            f"control frame {index} behind {before} data frames, expected {control.least} to {control.most}"
        )
    assert len(got.controls) <= len(sent.controls), f"{len(got.controls)} control frames, expected {len(sent.controls)}"


def _told(frame: bytes) -> str:
    """A frame in a few words."""
    what = read(frame)
    return f"opcode {what.opcode} fin {what.fin} masked {what.masked} {len(what.payload)} bytes {what.payload[:60]!r}"


class Part:
    """One side of a conversation that is played.

    Args:
        side: which.
        sequence: the conversation.
    """

    def __init__(self, side: Side, sequence: Sequence) -> None:
        self.side: Side = side
        self.script = sequence.script(side)
        self.got = Frames()
        self.sent = 0  # bytes
        self.other: Part


# What the router says to the one when the other is lost.
LOST: dict[Side, tuple[int | None, bytes]] = {"client": (1001, b""), "upstream": (1011, b"upstream connection lost")}


def check(sequence: Sequence, client: Part, upstream: Part, record: SessionRecord | SessionEnd, greeting: bytes) -> None:
    """Compare both directions, both ends, and what the router says of them."""
    ending = sequence.ending
    parts: dict[Side, Part] = {"client": client, "upstream": upstream}
    beginner = parts[ending.by]
    other = beginner.other
    codes = {"client": record.client_code, "upstream": record.upstream_code}
    whole = ending.how in ("close", "crossed")
    abrupt = ending.how == "reset" and not ending.late

    check_arrived(beginner.script, other.got, prefix=abrupt)
    check_arrived(other.script, beginner.got, prefix=not whole and not ending.late)

    if whole:
        assert other.got.close == ending.close, f"{other.side} got {other.got.close}, expected {ending.close}"
        assert beginner.got.close == ending.answer, f"{beginner.side} got {beginner.got.close}, expected {ending.answer}"
        assert not beginner.got.rest and not other.got.rest
        seen = {1005 if code is None else code for code in (ending.close[0], ending.answer[0])}
        if ending.how == "close":
            seen = {1005 if ending.close[0] is None else ending.close[0]}
            assert record.who == ending.by
            reason = ending.close if ending.by == "upstream" else ending.answer
            assert record.upstream_reason == reason[1].decode()
        assert record.cause == "close"
        assert {record.client_code, record.upstream_code} <= seen, f"{codes}, expected {seen}"
    else:
        # In the middle of a frame nothing can be said; whatever came of it is its beginning.
        cut = bool(other.got.rest)
        assert not cut or abrupt or (ending.partial and ending.partial.startswith(other.got.rest)), "bytes nobody sent"
        expected = None if cut else LOST[ending.by]
        assert other.got.close == expected, f"{other.side} got {other.got.close}, expected {expected}"
        assert beginner.got.close is None, f"{beginner.side} got {beginner.got.close} although it had ended"
        assert (record.who, record.cause) == (ending.by, "lost")
        assert codes[ending.by] == 1006
        assert codes[other.side] == (1006 if expected is None else expected[0])
    if whole:
        assert (record.client_bytes, record.upstream_bytes) == (client.sent, upstream.sent + len(greeting))
        assert (record.client_events, record.upstream_events) == (
            client.script.complete,
            upstream.script.complete + bool(greeting),
        )


def close_of(ending: tuple[int | None, bytes], *, masked: bool) -> bytes:
    """A CLOSE on the wire."""
    return close_frame(*ending, masked=masked)


def summary(where: str, count: int, counts: Counter[str]) -> str:
    """One line on sequences that were played."""
    facts = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    return f"{where}: {count} sequences, seeds {FIRST_SEED} to {FIRST_SEED + count - 1}: {facts}"
