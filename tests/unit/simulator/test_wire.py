"""Frames, by RFC 6455 §5.2."""

from __future__ import annotations

import pytest

from router.simulator.wire import BINARY, CLOSE, TEXT, UNSENDABLE, close_frame, frame


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_length_takes_the_shortest_form(size: int, head: bytes) -> None:
    """The three length forms change where the RFC says."""
    payload = b"x" * size
    assert frame(payload) == head + payload


def test_opcodes() -> None:
    """The opcode stands in the first byte, the final bit set."""
    assert [frame(b"", opcode)[0] for opcode in (TEXT, BINARY, CLOSE)] == [0x81, 0x82, 0x88]


def test_close_frame_has_code_and_reason() -> None:
    """The code is big-endian, the reason UTF-8."""
    assert close_frame(1001, "bye ü") == b"\x88\x08\x03\xe9bye \xc3\xbc"


def test_long_reason_is_cut_at_a_character() -> None:
    """At most 123 bytes of reason travel, and no half character."""
    sent = close_frame(4000, "ü" * 100)
    assert sent[1] <= 125
    assert sent[4:].decode() == "ü" * 61


@pytest.mark.parametrize("code", sorted(UNSENDABLE))
def test_codes_that_may_not_travel_do_not(code: int) -> None:
    """1005, 1006 and 1015 give a close frame without a body."""
    assert close_frame(code, "reason") == b"\x88\x00"
