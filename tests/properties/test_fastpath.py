"""Every form of the fast path does what the rule says: the one in Python, the one in C, and a third that is only here.

The third is written to be read, not to be fast: it decodes one frame after the other, byte by byte. All forms get the same reads
and the same changes from outside in lock step, and after each of them everything that can be seen of them must be equal.
"""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.relay import fastpath
from router.relay.fastpath import BOUNDARY, FAIR_BYTES, MIDDLE, SLOW, PurePythonFastPath, hot_table
from router.relay.frames import BINARY, PING, TEXT, encode_frame
from tests.helpers.parts import require
from tests.properties.test_frames import CLIENT_HOT, LOOKALIKES, UPSTREAM_HOT, segments

LIMIT = 20_000
# Each of them is in a table, and not in another one.
TYPES = {True: CLIENT_HOT, False: [*UPSTREAM_HOT, "response.output_audio_transcript.delta"]}


class Reference:
    """The rule, for people. A hot frame is a whole text message with a 16-bit length that begins like a hot type's."""

    def __init__(self, masked: bool, max_message_bytes: int) -> None:
        self.masked = masked
        self.max_message_bytes = max_message_bytes
        self.mode = BOUNDARY
        self.left = 0
        self.entered = -1
        self.entered_bytes = 0
        self.events = 0
        self.skipped_bytes = 0
        self.waiting = False
        self.hot: dict[str, int] = {}
        self.write: Callable[[bytes], object] = lambda data: None
        self.slow: Callable[[bytes], object] = lambda data: None
        self.counted: list[tuple[int, int]] = []

    def data_received(self, data: bytes) -> None:
        passes = 0 if len(data) >= FAIR_BYTES or self.waiting else self.skip(data)
        whole = passes == len(data) and len(data) < FAIR_BYTES and not self.waiting
        if passes or whole:
            self.skipped_bytes += passes
            self.write(data[:passes])
        if not whole:
            self.slow(data[passes:])

    def skip(self, data: bytes) -> int:
        if self.mode == SLOW:
            return 0
        passes = 0
        if self.mode == MIDDLE:
            if len(data) < self.left:
                self.left -= len(data)
                return len(data)
            if self.entered < 0:
                return 0
            passes = self.left
            self.leave()
            self.mode = BOUNDARY
        while (frame := self._hot_frame(data[passes:])) is not None:
            index, size, length = frame
            if passes + size > len(data):
                self.mode = MIDDLE
                self.left = passes + size - len(data)
                self.entered, self.entered_bytes = index, length
                return len(data)
            passes += size
            self.events += 1
            self.counted.append((index, length))
        return passes

    def _hot_frame(self, data: bytes) -> tuple[int, int, int] | None:
        """Of the frame at the beginning of ``data``, if it is hot: its type's place, its size, and its payload's."""
        head = 8 if self.masked else 4
        if len(data) < head + (36 if self.masked else 33) or data[0] != 0x81 or data[1] != (0xFE if self.masked else 126):
            return None
        length = int.from_bytes(data[2:4], "big")
        if not 126 <= length <= self.max_message_bytes:
            return None
        text = data[head : head + 100]
        if self.masked:
            text = bytes(byte ^ data[4 + place % 4] for place, byte in enumerate(text))
        for name, index in self.hot.items():
            prefix = f'{{"type":"{name}",'.encode()
            # A short type is only told by what usually follows it.
            following = ("",) if len(prefix) >= 33 else ('"e', '"r', '"i')
            if any(text.startswith(prefix + more.encode()) for more in following):
                return index, head + length, length
        return None

    def leave(self) -> None:
        self.counted.append((self.entered, self.entered_bytes))
        self.events += 1
        self.entered, self.left = -1, 0

    def take_counts(self) -> list[int]:
        taken = [0] * (2 * fastpath.MAX_HOT_TYPES)
        for index, length in self.counted:
            taken[2 * index] += 1
            taken[2 * index + 1] += length
        self.counted = []
        return taken


Form = Any
# What happens to a form from outside; every form gets the same.
Change = Callable[["Driven"], None]


class Refused(Exception):
    """A callback raises it."""


@dataclass
class Driven:
    """A form under test, with what it was seen to do.

    Attributes:
        form: the object.
        script: what its callbacks do, call after call; nothing once it is at its end.
        told: its calls of ``write`` and ``slow``, and how its methods ended.
    """

    form: Form
    script: list[Change]
    told: list[tuple[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listen("write")
        self.listen("slow")

    def listen(self, name: str) -> None:
        """Set a callback that records its call and then does what the script says next."""

        def called(data: bytes) -> None:
            self.told.append((name, data))
            if self.script:
                self.script.pop(0)(self)

        setattr(self.form, name, called)

    def call(self, method: str, *arguments: object) -> None:
        """Call a method, and record its end."""
        try:
            result = getattr(self.form, method)(*arguments)
        except Refused:
            self.told.append((method, Refused))
        else:
            self.told.append((method, result))

    @property
    def seen(self) -> tuple[object, ...]:
        """All that can be seen of it."""
        form = self.form
        state = (form.mode, form.left, form.entered, form.entered_bytes, form.events, form.skipped_bytes, form.waiting)
        return (*state, form.masked, form.max_message_bytes, self.told)


def use_table(names: list[str], places: list[str], masked: bool) -> Change:
    """Exchange the table for one of ``names``, counted at their places in ``places``."""
    table = hot_table(places, masked=masked, without=[name for name in places if name not in names])

    def change(driven: Driven) -> None:
        if isinstance(driven.form, Reference):
            driven.form.hot = {name: places.index(name) for name in names}
        else:
            driven.form.hot = table

    return change


def put(mode: int, left: int = 0, entered: int = -1, size: int = 0) -> Change:
    """Set the state, as the scanner does after a slow turn."""

    def change(driven: Driven) -> None:
        form = driven.form
        form.mode, form.left, form.entered, form.entered_bytes = mode, left, entered, size

    return change


def wait(value: bool) -> Change:
    """Let earlier bytes wait, or not."""
    return lambda driven: setattr(driven.form, "waiting", value)


def exchange(name: str) -> Change:
    """Set a callback anew, perhaps while it runs."""
    return lambda driven: driven.listen(name)


def read(data: bytes) -> Change:
    """Let a read arrive, perhaps while another is under way."""
    return lambda driven: driven.call("data_received", data)


def skip(data: bytes) -> Change:
    """Ask what passes, as the scanner does at the beginning of a slow turn."""
    return lambda driven: driven.call("skip", data)


def take(driven: Driven) -> None:
    """Take the counts."""
    driven.call("take_counts")


def refuse(driven: Driven) -> None:
    """Fail, in a callback."""
    raise Refused


def frames(rng: random.Random, masked: bool, number: int) -> bytes:
    """Some frames: hot ones above all, those that look like them, and others."""
    data = bytearray()
    for _ in range(number):
        key = rng.randbytes(4) if masked else None
        name = rng.choice([*TYPES[masked] * 4, *LOOKALIKES])
        other = rng.choice(["event_id", "response_id", "item_id", "audio"])
        body = {"type": name, other: "a" * rng.choice([0, 60, 90, 300, 900, 900, 3000, 3000, LIMIT - 80, LIMIT, 66_000])}
        payload = json.dumps(body, separators=(",", ":") if rng.random() < 0.9 else None).encode()
        if rng.random() < 0.1:
            payload = payload[: rng.randrange(len(payload) + 1)]
        frame = bytearray(encode_frame(rng.choice([*[TEXT] * 9, BINARY]), payload, mask_key=key))
        if rng.random() < 0.1:
            frame[0] &= 0x7F  # a fragment
        if rng.random() < 0.05:
            frame[rng.randrange(min(60, len(frame)))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.1:
            frame = bytearray(encode_frame(PING, b"p", mask_key=key)) + frame
        data += frame
    return bytes(data)


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """Make reads of it: one, a few, or one of each byte; seldom more than ``FAIR_BYTES``."""
    kind = rng.randrange(4)
    if kind == 0:
        return segments(data, rng.randrange(2**32))
    if kind == 1:
        return [data]
    size = rng.choice([len(data) // 2 + 1, 200, 1500, FAIR_BYTES - 1])
    return [data[at : at + size] for at in range(0, len(data), size)]


def changes(rng: random.Random, masked: bool) -> Change:
    """Any change."""
    names = TYPES[masked]
    kind = rng.randrange(9)
    if kind == 0:
        return use_table(rng.sample(names, rng.randrange(len(names) + 1)), rng.sample(names, len(names)), masked)
    if kind == 1:
        return put(MIDDLE, rng.choice([1, 50, 3000]), rng.choice([-1, 0]), rng.randrange(126, 65536))
    if kind == 2:
        return wait(rng.random() < 0.3)
    if kind == 3:
        return exchange(rng.choice(["write", "slow"]))
    if kind == 4:
        return take
    if kind == 5:
        return skip(frames(rng, masked, rng.randrange(3)))
    return put(rng.choice([SLOW, BOUNDARY, BOUNDARY, BOUNDARY]))


def drive(kinds: list[Callable[[bool, int], Form]], masked: bool, seed: int, turns: int) -> list[Driven]:
    """Give all forms the same reads and changes, and compare them after each."""
    rng = random.Random(seed)
    script: list[Change] = []
    for _ in range(turns):
        kind = rng.randrange(12)
        if kind == 0:
            script.append(refuse)
        elif kind == 1:
            # In the middle of a read, as a callback of the transport could.
            script.append(read(frames(rng, masked, 1)[:5000]))
        else:
            script.append(changes(rng, masked))
    driven = [Driven(kind(masked, LIMIT), list(script)) for kind in kinds]
    steps: list[Change] = [use_table(TYPES[masked], TYPES[masked], masked)]
    for _ in range(turns):
        # Nobody follows the frames here: without this nothing would pass any more after the first cold one.
        if rng.random() < 0.8:
            steps += [put(BOUNDARY), wait(False)]
        if rng.random() < 0.3:
            steps.append(use_table(TYPES[masked], TYPES[masked], masked))
        for part in cut(rng, frames(rng, masked, rng.randrange(1, 5))):
            steps.append(read(part))
            if rng.random() < 0.05:
                steps.append(changes(rng, masked))
    steps.append(take)
    for step in steps:
        for one in driven:
            step(one)
        for one in driven[1:]:
            assert one.seen == driven[0].seen
    return driven


def edges(masked: bool) -> list[bytes]:
    """Streams at the limits: of lengths, of forms of the length, of the mask bit, of what a read must hold."""
    streams = []
    for name in [*TYPES[masked], *LOOKALIKES]:
        for size in (125, 126, 127, 1000, LIMIT, LIMIT + 1, 65_535):
            head = f'{{"type":"{name}","event_id":"'.encode()
            payload = head + b"e" * (size - len(head))
            frame = encode_frame(TEXT, payload, mask_key=b"\x07\x80ab" if masked else None)
            streams.append(frame)
            streams.append(frame * 2)
            streams.append(frame[:1] + bytes([frame[1] ^ 0x80]) + frame[2:])
            # As if the length were in its 16-bit form, and the bytes behind it the message's.
            streams.append(frame[:1] + bytes([frame[1] | 0x7F]) + frame[2:])
            streams.append(frame[:1] + bytes([frame[1] & 0x80 | 0x7E]) + frame[2:])
            streams.append(frame[:1] + bytes([frame[1] & 0x80 | 0x7E]) + b"\0\x7d" + frame[4:])
            if size == 125:
                streams.append(frame[:1] + bytes([frame[1] & 0x80 | 0x7E]) + b"\0\x7d" + frame[2:])
    return streams


def check_edges(kinds: list[Callable[[bool, int], Form]]) -> list[Driven]:
    """Give all forms these streams in one read, and in two of every size that could matter."""
    ends = []
    for masked in (False, True):
        driven = [Driven(kind(masked, LIMIT), []) for kind in kinds]
        table = use_table(TYPES[masked], TYPES[masked], masked)
        for stream in edges(masked):
            for at in (*range(60), 125, 129, 130, 133, 134, 135, FAIR_BYTES - 1, FAIR_BYTES, FAIR_BYTES + 1, len(stream) - 1):
                for one in driven:
                    for change in (put(BOUNDARY), table, read(stream[:at]), read(stream[at:])):
                        change(one)
                seen = [one.seen for one in driven]
                assert all(other == seen[0] for other in seen[1:])
                for one in driven:
                    one.told.clear()
        for one in driven:
            take(one)
        assert all(one.seen == driven[0].seen for one in driven[1:])
        ends += driven
    return ends


def test_the_form_in_python_at_the_edges() -> None:
    """Lengths at their limits, reads that end at every place of a frame's beginning, bits that make it another frame."""
    for driven in check_edges([Reference, PurePythonFastPath]):
        ((_, counts),) = driven.told
        assert isinstance(counts, list) and sum(counts[::2]) > 300


def test_the_form_in_c_at_the_edges() -> None:
    """The same of the C form, where it is built."""
    require("accelerator")
    compiled = importlib.import_module("realtime_router_accel").FastPath
    check_edges([PurePythonFastPath, compiled])


@given(st.booleans(), st.integers(0, 2**32), st.integers(1, 30))
def test_the_form_in_python_does_what_the_rule_says(masked: bool, seed: int, turns: int) -> None:
    """Whatever arrives, however it is cut, whatever is changed meanwhile: the same bytes pass, and the same is counted."""
    drive([Reference, PurePythonFastPath], masked, seed, turns)


def test_the_form_in_c_does_what_the_one_in_python_does() -> None:
    """The same of the C form, where it is built: state, counts, calls and their order, also when a callback changes things."""
    require("accelerator")
    compiled = importlib.import_module("realtime_router_accel").FastPath

    @given(st.booleans(), st.integers(0, 2**32), st.integers(1, 30))
    def check(masked: bool, seed: int, turns: int) -> None:
        drive([PurePythonFastPath, compiled, Reference], masked, seed, turns)

    check()


def test_what_the_properties_compare_is_there() -> None:
    """In these streams there are hot frames of every type, whole and in parts, and bytes of both ways, in both directions."""
    for masked in (False, True):
        told: list[tuple[str, object]] = []
        for seed in range(30):
            told += drive([Reference, PurePythonFastPath], masked, seed, 8)[1].told
        counts = [result for name, result in told if name == "take_counts"]
        totals = [sum(numbers) for numbers in zip(*counts, strict=True)]
        assert all(number > 10 for number in totals[: 2 * len(TYPES[masked])])
        # Cold frames are few by design, yet not none; a refusal shows that a callback's exception came through.
        assert sum(name == "write" for name, _ in told) > 100
        assert sum(name == "slow" for name, _ in told) > 50
        assert ("data_received", Refused) in told
