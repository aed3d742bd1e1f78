"""Any segmentation of any legal stream yields the same bytes and messages; any corruption yields an RFC 6455 code."""

from __future__ import annotations

import json
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.relay import frames
from router.relay.fastpath import hot_table
from router.relay.frames import BINARY, CLOSE, PING, PONG, TEXT, Disposition, FrameError, FrameScanner, encode_frame

TYPES = ["session.update", "input_audio_buffer.append", "response.done", "error", "x"]


class Recorder:
    """A sink that records everything and holds or collects by type."""

    def __init__(self, dispositions: dict[str | None, Disposition], replace: dict[str, bytes] | None = None) -> None:
        self.dispositions = dispositions
        self.replace = replace or {}
        self.messages: list[tuple[int, str | None, int]] = []
        self.payloads: list[bytes | None] = []
        self.controls: list[tuple[int, bytes]] = []
        self.closes: list[tuple[int, str]] = []
        self.swallow = b"own"

    def classify(self, opcode: int, event_type: str | None) -> Disposition:
        return self.dispositions.get(event_type, frames.PASS)

    def message(self, opcode: int, event_type: str | None, size: int, payload: bytes | None) -> bytes | None:
        self.messages.append((opcode, event_type, size))
        self.payloads.append(payload)
        return self.replace.get(event_type or "")

    def control(self, opcode: int, payload: bytes) -> bool:
        self.controls.append((opcode, payload))
        return payload != self.swallow

    def closing(self, code: int, reason: str) -> bool:
        self.closes.append((code, reason))
        return True


def event(event_type: str, filler: int, style: int) -> bytes:
    """JSON text of an event with its type in one of several places."""
    body = "a" * filler
    if style == 0:
        return json.dumps({"type": event_type, "x": body}).encode()
    if style == 1:
        return json.dumps({"event_id": "event_123", "type": event_type, "x": body}).encode()
    if style == 2:
        return json.dumps({"x": body, "type": event_type}, separators=(",", ":")).encode()
    return json.dumps({"x": {"type": "decoy"}, "type": event_type, "y": body}).encode()


@st.composite
def streams(draw: st.DrawFn) -> tuple[bool, list[tuple[int, bytes]], bytes]:
    """A legal stream: whether it is masked, its messages and controls in order of completion, and its bytes."""
    masked = draw(st.booleans())
    rng = random.Random(draw(st.integers(0, 2**32)))
    out = bytearray()
    expected: list[tuple[int, bytes]] = []

    def frame(opcode: int, payload: bytes, fin: bool) -> None:
        key = rng.randbytes(4) if masked else None
        encoded = bytearray(encode_frame(opcode, payload, mask_key=key))
        if not fin:
            encoded[0] &= 0x7F
        out.extend(encoded)

    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.integers(0, 5))
        if kind == 0:
            payload = rng.randbytes(rng.choice([0, 1, 125]))
            opcode = rng.choice([PING, PONG])
            frame(opcode, payload, True)
            expected.append((opcode, payload))
            continue
        if kind == 1:
            opcode, payload = BINARY, rng.randbytes(rng.choice([0, 1, 125, 126, 200, 65535, 65536]))
        else:
            opcode = TEXT
            payload = event(rng.choice(TYPES), rng.choice([0, 1, 90, 130, 400, 70000]), rng.randrange(4))
        pieces = rng.choice([1, 1, 2, 4])
        cuts = sorted(rng.randrange(len(payload) + 1) for _ in range(pieces - 1))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for index, part in enumerate(parts):
            frame(opcode if index == 0 else 0, part, index == len(parts) - 1)
            if index < len(parts) - 1 and rng.random() < 0.4:
                ping = rng.randbytes(5)
                frame(PING, ping, True)
                expected.append((PING, ping))
        expected.append((opcode, payload))
    return masked, expected, bytes(out)


def decode(stream: bytes, masked: bool) -> list[tuple[int, bytes]]:
    """An independent, slow decoder: messages and controls in order of completion."""
    done: list[tuple[int, bytes]] = []
    at, opcode, parts = 0, 0, b""
    while at < len(stream):
        first, second = stream[at], stream[at + 1]
        at += 2
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack_from(">H", stream, at)
            at += 2
        elif size == 127:
            (size,) = struct.unpack_from(">Q", stream, at)
            at += 8
        key = b"\0\0\0\0"
        if masked:
            key = stream[at : at + 4]
            at += 4
        payload = bytes(byte ^ key[i & 3] for i, byte in enumerate(stream[at : at + size]))
        at += size
        if first & 8:
            done.append((first & 15, payload))
            continue
        opcode = (first & 15) or opcode
        parts += payload
        if first & 0x80:
            done.append((opcode, parts))
            parts = b""
    return done


def segments(stream: bytes, seed: int) -> list[bytes]:
    """Cut a stream at random places, sometimes byte by byte."""
    rng = random.Random(seed)
    if len(stream) < 600 and rng.random() < 0.3:
        return [stream[i : i + 1] for i in range(len(stream))]
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(12)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]


DISPOSITIONS = st.dictionaries(st.sampled_from([*TYPES, None]), st.sampled_from(list(Disposition)))


@given(streams(), st.integers(0, 2**32), DISPOSITIONS)
def test_any_segmentation_arrives_unchanged(stream: tuple[bool, list[tuple[int, bytes]], bytes], seed: int, how: dict) -> None:
    """What goes out decodes to the messages that came in, whatever is held or collected, and collected payloads are exact."""
    masked, expected, data = stream
    sink = Recorder(how)
    sink.swallow = b"never sent"
    scanner = FrameScanner(masked=masked, max_message_bytes=1 << 20, sink=sink)
    out = b"".join(piece for part in segments(data, seed) for piece in scanner.feed(part))
    # A held message lets control frames overtake it, so messages and controls are compared as two sequences.
    got = decode(out, masked)
    for control in (False, True):
        assert [m for m in got if bool(m[0] & 8) is control] == [m for m in expected if bool(m[0] & 8) is control]
    assert sorted(out) == sorted(data)
    messages = [m for m in expected if not m[0] & 8]
    assert [(m[0], m[2]) for m in sink.messages] == [(m[0], len(m[1])) for m in messages]
    for payload, (_, sent) in zip(sink.payloads, messages, strict=True):
        assert payload is None or payload == sent
    assert scanner.at_frame_boundary and scanner.at_message_boundary
    assert scanner.held_bytes == 0


@given(streams(), st.integers(0, 2**32))
def test_injected_frames_land_at_legal_places(stream: tuple[bool, list[tuple[int, bytes]], bytes], seed: int) -> None:
    """Own control frames stand between frames and own events between messages, and the rest is as it was."""
    masked, expected, data = stream
    rng = random.Random(seed)
    scanner = FrameScanner(masked=masked, max_message_bytes=1 << 20, sink=Recorder({None: frames.HOLD}))
    key = b"abcd" if masked else None
    ping = encode_frame(PING, b"injected", mask_key=key)
    note = encode_frame(TEXT, b'{"type":"injected"}', mask_key=key)
    out = b""
    sent = {"ping": 0, "note": 0}
    for part in segments(data, seed):
        out += b"".join(scanner.feed(part))
        if rng.random() < 0.5:
            out += scanner.inject_control(ping)
            sent["ping"] += 1
        if rng.random() < 0.5:
            out += scanner.inject_event(note)
            sent["note"] += 1
    got = decode(out, masked)
    assert got.count((PING, b"injected")) == sent["ping"]
    assert got.count((TEXT, b'{"type":"injected"}')) == sent["note"]
    rest = [m for m in got if m not in ((PING, b"injected"), (TEXT, b'{"type":"injected"}'))]
    assert [m for m in rest if not m[0] & 8] == [m for m in expected if not m[0] & 8]


@given(streams(), st.integers(0, 2**32), st.binary(min_size=1, max_size=30))
def test_corruption_yields_a_code(stream: tuple[bool, list[tuple[int, bytes]], bytes], seed: int, junk: bytes) -> None:
    """Overwritten bytes either still form a legal stream or raise FrameError with 1002, 1007 or 1009."""
    masked, _, data = stream
    rng = random.Random(seed)
    at = rng.randrange(len(data))
    broken = data[:at] + junk + data[at + len(junk) :]
    scanner = FrameScanner(masked=masked, max_message_bytes=1 << 20, sink=Recorder({}))
    try:
        for part in segments(broken, seed):
            scanner.feed(part)
    except FrameError as error:
        assert error.code in (1002, 1007, 1009)
        assert b"".join(frames.legal_output(error)) in broken or frames.legal_output(error)


@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_never_crash(data: bytes, masked: bool) -> None:
    """Bytes that are no WebSocket at all give FrameError or nothing."""
    scanner = FrameScanner(masked=masked, max_message_bytes=1 << 16, sink=Recorder({None: frames.HOLD}))
    try:
        for index in range(0, len(data), 7):
            scanner.feed(data[index : index + 7])
    except FrameError as error:
        assert error.code in (1002, 1007, 1009)


def frame_bytes(first: int, second: int, rest: bytes = b"") -> bytes:
    """Raw frame bytes, legal or not."""
    return bytes((first, second)) + rest


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame_bytes(0xC1, 0), 1002, id="rsv1"),
        pytest.param(frame_bytes(0xA1, 0), 1002, id="rsv2"),
        pytest.param(frame_bytes(0x91, 0), 1002, id="rsv3"),
        pytest.param(frame_bytes(0x83, 0), 1002, id="opcode 3"),
        pytest.param(frame_bytes(0x8B, 0), 1002, id="opcode 11"),
        pytest.param(frame_bytes(0x81, 0x81, b"abcdx"), 1002, id="masked frame from a server"),
        pytest.param(frame_bytes(0x09, 0), 1002, id="fragmented ping"),
        pytest.param(frame_bytes(0x89, 126, b"\x00\x7e"), 1002, id="long ping"),
        pytest.param(frame_bytes(0x80, 0), 1002, id="continuation of nothing"),
        pytest.param(frame_bytes(0x01, 1, b"a") + frame_bytes(0x81, 0), 1002, id="new message inside a message"),
        pytest.param(frame_bytes(0x81, 126, b"\x00\x05"), 1002, id="16-bit length not minimal"),
        pytest.param(frame_bytes(0x81, 127, b"\0" * 6 + b"\xff\xff"), 1002, id="64-bit length not minimal"),
        pytest.param(frame_bytes(0x81, 127, b"\xff" * 8), 1002, id="64-bit length with the top bit"),
        pytest.param(frame_bytes(0x82, 127, (1 << 62).to_bytes(8, "big")), 1009, id="2^62 bytes"),
        pytest.param(frame_bytes(0x01, 1, b"a") + frame_bytes(0x80, 127, (1 << 20).to_bytes(8, "big")), 1009, id="sum too big"),
        pytest.param(frame_bytes(0x88, 1, b"a"), 1002, id="close of one byte"),
        pytest.param(frame_bytes(0x88, 2, struct.pack(">H", 1005)), 1002, id="close 1005"),
        pytest.param(frame_bytes(0x88, 2, struct.pack(">H", 1006)), 1002, id="close 1006"),
        pytest.param(frame_bytes(0x88, 2, struct.pack(">H", 999)), 1002, id="close 999"),
        pytest.param(frame_bytes(0x88, 2, struct.pack(">H", 2999)), 1002, id="close 2999"),
        pytest.param(frame_bytes(0x88, 2, struct.pack(">H", 5000)), 1002, id="close 5000"),
        pytest.param(frame_bytes(0x88, 3, struct.pack(">H", 1000) + b"\xff"), 1007, id="close reason not UTF-8"),
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_illegal_frames(data: bytes, code: int, step: int) -> None:
    """Each breach of RFC 6455 gives its code, also when the bytes trickle in, and what stood before it still goes out."""
    scanner = FrameScanner(masked=False, max_message_bytes=1 << 20, sink=Recorder({}))
    before = encode_frame(TEXT, b'{"type":"x"}')
    assert b"".join(scanner.feed(before)) == before
    with pytest.raises(FrameError) as caught:
        for index in range(0, len(data), step):
            scanner.feed(data[index : index + step])
    assert caught.value.code == code


def test_unmasked_client_frame() -> None:
    """A client that does not mask is refused (RFC 6455 §5.1)."""
    scanner = FrameScanner(masked=True, max_message_bytes=100, sink=Recorder({}))
    with pytest.raises(FrameError) as caught:
        scanner.feed(b"\x81\x01a")
    assert caught.value.code == 1002


def test_held_message_is_replaced() -> None:
    """A held message leaves as the sink's frames, and its neighbours stay as they were."""
    sink = Recorder({"session.update": frames.HOLD}, {"session.update": b"NEW"})
    scanner = FrameScanner(masked=False, max_message_bytes=1 << 20, sink=sink)
    before, after = encode_frame(TEXT, event("x", 10, 0)), encode_frame(BINARY, b"abc")
    data = before + encode_frame(TEXT, event("session.update", 300, 0)) + after
    for step in (1, 7, 10_000):
        out = b"".join(piece for i in range(0, len(data), step) for piece in scanner.feed(data[i : i + step]))
        assert out == before + b"NEW" + after


def test_held_message_too_long_goes_out_in_bounded_memory() -> None:
    """Holding ends at its limit: the bytes go out unchanged and the type is still told by the last key."""
    sink = Recorder({None: frames.HOLD})
    scanner = FrameScanner(masked=False, max_message_bytes=1 << 25, sink=sink)
    data = encode_frame(TEXT, event("input_audio_buffer.append", 3 << 20, 2))
    out = bytearray()
    for index in range(0, len(data), 65536):
        for piece in scanner.feed(data[index : index + 65536]):
            out += piece
        assert scanner.held_bytes <= 2 * frames.HOLD_LIMIT_BYTES + 2 * 65536
    assert out == data
    assert sink.messages == [(TEXT, "input_audio_buffer.append", len(data) - 10)]
    assert sink.payloads == [None]


def test_swallowed_control_frames_vanish() -> None:
    """A control frame that the sink refuses does not go out, and the stream around it stays whole."""
    sink = Recorder({})
    scanner = FrameScanner(masked=False, max_message_bytes=1 << 20, sink=sink)
    first, second = bytearray(encode_frame(TEXT, b"he")), bytearray(encode_frame(0, b"llo"))
    first[0] &= 0x7F
    data = bytes(first) + encode_frame(PONG, b"own") + bytes(second)
    assert b"".join(scanner.feed(data)) == bytes(first + second)


def test_nothing_after_close() -> None:
    """Bytes behind a CLOSE are dropped (RFC 6455 §5.5.1)."""
    sink = Recorder({})
    scanner = FrameScanner(masked=False, max_message_bytes=1 << 20, sink=sink)
    close = encode_frame(CLOSE, frames.close_payload(4000, "gone"))
    assert b"".join(scanner.feed(close + b"rubbish")) == close
    assert scanner.feed(b"more") == []
    assert sink.closes == [(4000, "gone")]


@given(st.text(max_size=200))
@settings(max_examples=50)
def test_close_reason_is_cut_at_a_character(reason: str) -> None:
    """A long reason is cut to 123 bytes and stays UTF-8."""
    payload = frames.close_payload(1000, reason)
    assert len(payload) <= 125
    code, text = frames.parse_close(payload)
    assert code == 1000 and reason.startswith(text)


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.integers(0, 9))
def test_unmask_is_its_own_inverse(data: bytes, key: bytes, offset: int) -> None:
    """Masking twice with one key and offset gives the data back, and agrees with the definition."""
    masked = frames.unmask(data, key, offset)
    assert masked == bytes(byte ^ key[(i + offset) % 4] for i, byte in enumerate(data))
    assert frames.unmask(masked, key, offset) == data


@given(streams(), st.integers(0, 2**32), st.booleans())
def test_final_output_is_the_last(stream: tuple[bool, list[tuple[int, bytes]], bytes], seed: int, after_message: bool) -> None:
    """A final output stands at a boundary with nothing behind it, and what went out before is whole and in order."""
    masked, expected, data = stream
    rng = random.Random(seed)
    sink = Recorder({})
    scanner = FrameScanner(masked=masked, max_message_bytes=1 << 20, sink=sink)
    parts = segments(data, seed)
    when = rng.randrange(len(parts) + 1)
    last = encode_frame(CLOSE, frames.close_payload(1001), mask_key=b"abcd" if masked else None)
    out = b""
    for index, part in enumerate(parts):
        if index == when:
            out += scanner.finish(last, after_message=after_message)
        out += b"".join(scanner.feed(part))
    if when == len(parts):
        out += scanner.finish(last, after_message=after_message)
    assert not scanner.final_waits
    assert out.endswith(last)
    got = decode(out, masked)[:-1]
    # A message that waits for its type lets control frames overtake it, so the two kinds are compared apart.
    for control in (False, True):
        before = [m for m in got if bool(m[0] & 8) is control]
        assert before == [m for m in expected if bool(m[0] & 8) is control][: len(before)]
    assert len(sink.messages) == len([m for m in expected if not m[0] & 8])


UPSTREAM_HOT = ["response.output_audio.delta", "response.audio.delta", "response.output_text.delta"]
CLIENT_HOT = ["input_audio_buffer.append"]
# Alike in their first bytes, and not hot.
LOOKALIKES = [
    "response.output_audio.done",
    "response.output_audio_transcript.delta",
    "input_audio_buffer.appendix",
    "response.done",
]


@given(st.booleans(), st.integers(0, 2**32), st.integers(1, 12))
def test_hot_events_are_counted_exactly_and_pass_unchanged(masked: bool, seed: int, number: int) -> None:
    """Told or counted, every message is booked once with its size, whatever stands around it and however the stream is cut."""
    rng = random.Random(seed)
    hot = CLIENT_HOT if masked else UPSTREAM_HOT
    sink = Recorder({"response.done": frames.COLLECT})
    sink.swallow = b"never sent"
    scanner = FrameScanner(masked=masked, max_message_bytes=1 << 20, sink=sink)
    scanner.hot = hot_table(hot, masked=masked)
    data, expected = b"", []
    for _ in range(number):
        name = rng.choice([*hot, *hot, *LOOKALIKES])
        other = rng.choice(["event_id", "response_id", "item_id", "audio"])
        body = {"type": name, other: "a" * rng.choice([0, 60, 90, 300, 66000])}
        if rng.random() < 0.2:
            body = dict(reversed(body.items()))
        payload = json.dumps(body, separators=(",", ":") if rng.random() < 0.8 else None).encode()
        if rng.random() < 0.1:
            payload = payload[: rng.randrange(len(payload) + 1)]
        key = rng.randbytes(4) if masked else None
        frame = encode_frame(rng.choice([TEXT, TEXT, TEXT, BINARY]), payload, mask_key=key)
        if rng.random() < 0.2:
            frame = encode_frame(PING, b"p", mask_key=key) + frame
        data += frame
        expected.append(len(payload))
    out = b"".join(piece for part in segments(data, seed) for piece in scanner.feed(part))
    assert decode(out, masked) == decode(data, masked) or sorted(out) == sorted(data)
    told = [size for _, _, size in sink.messages]
    taken = scanner.take_counts()
    counts = {name: taken[2 * index : 2 * index + 2] for index, name in enumerate(hot)}
    assert not any(scanner.take_counts())
    assert len(told) + sum(entry[0] for entry in counts.values()) == number == scanner.events
    assert sum(told) + sum(entry[1] for entry in counts.values()) == sum(expected)
    plain = FrameScanner(masked=masked, max_message_bytes=1 << 20, sink=(told_all := Recorder({})))
    for part in segments(data, seed):
        plain.feed(part)
    for name, entry in counts.items():
        named = [size for _, event_type, size in sink.messages if event_type == name]
        both = [size for opcode, event_type, size in told_all.messages if event_type == name and opcode == TEXT]
        assert (len(named) + entry[0], sum(named) + entry[1]) == (len(both), sum(both))


def test_hot_events_take_the_short_way() -> None:
    """A read of whole hot frames is passed on as it is and the sink hears nothing; a frame over two reads is counted as well."""
    sink = Recorder({})
    scanner = FrameScanner(masked=False, max_message_bytes=1 << 20, sink=sink)
    scanner.hot = hot_table(UPSTREAM_HOT[:1], masked=False)
    event = {"type": UPSTREAM_HOT[0], "delta": "x" * 5000}
    frame = encode_frame(TEXT, json.dumps(event, separators=(",", ":")).encode())
    assert scanner.feed(frame * 3) == [frame * 3]
    assert (scanner.take_counts()[:2], sink.messages, scanner.events) == ([3, 3 * (len(frame) - 4)], [], 3)
    assert scanner.feed(frame + frame[:100]) == [frame + frame[:100]]
    assert not scanner.at_frame_boundary and not scanner.at_message_boundary
    assert scanner.feed(frame[100:200]) == [frame[100:200]]
    assert scanner.feed(frame[200:] + frame) == [frame[200:] + frame]
    assert (scanner.take_counts()[0], sink.messages, scanner.events) == (3, [], 6)


def test_what_is_injected_into_a_hot_frame_comes_out_at_its_end() -> None:
    """Entered on the fast path, ended on the slow one: counted once, and the stream is at a boundary again."""
    sink = Recorder({})
    scanner = FrameScanner(masked=False, max_message_bytes=1 << 20, sink=sink)
    scanner.hot = hot_table(UPSTREAM_HOT[:1], masked=False)
    event = {"type": UPSTREAM_HOT[0], "delta": "x" * 500}
    frame = encode_frame(TEXT, json.dumps(event, separators=(",", ":")).encode())
    assert scanner.feed(frame[:100]) == [frame[:100]]
    ping, own = encode_frame(PING, b"own"), encode_frame(TEXT, b"{}")
    assert (scanner.inject_control(ping), scanner.inject_event(own)) == (b"", b"")
    assert scanner.feed(frame[100:200]) == [frame[100:200]]
    assert b"".join(scanner.feed(frame[200:] + frame)) == frame[200:] + ping + own + frame
    # What came behind it in the same read was told, not counted.
    assert (scanner.events, sink.messages) == (2, [(TEXT, UPSTREAM_HOT[0], len(frame) - 4)])
    assert scanner.take_counts()[:2] == [1, len(frame) - 4]
    assert (scanner.feed(frame), scanner.take_counts()[0]) == ([frame], 1)


@pytest.mark.parametrize(("name", "masked"), [("x", False), ("x", True), ("response.output_audio.delta", True)])
def test_types_that_cannot_be_hot_are_refused(name: str, masked: bool) -> None:
    """A table that would never match is a mistake to be told at once."""
    with pytest.raises(ValueError, match="cannot be hot"):
        hot_table([name], masked=masked)


def test_no_more_types_can_be_hot_than_there_are_counters() -> None:
    """The C form has a fixed number of them."""
    with pytest.raises(ValueError, match="more than 8 types"):
        hot_table(["response.output_audio.delta"] * 9, masked=False)
