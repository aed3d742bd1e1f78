"""Frames of a WebSocket server (RFC 6455 §5.2): unmasked, unfragmented, without extensions."""

from __future__ import annotations

from struct import Struct

TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PONG = 0xA

_LEN_16 = Struct("!BBH").pack
_LEN_64 = Struct("!BBQ").pack

# Codes that describe a connection and never travel in a frame (RFC 6455 §7.4.1).
UNSENDABLE = frozenset({1005, 1006, 1015})


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return one final frame around ``payload``."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return _LEN_16(0x80 | opcode, 126, size) + payload
    return _LEN_64(0x80 | opcode, 127, size) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close frame; a code that may not travel gives one without a body, a long reason is cut.

    Args:
        code: RFC 6455 §7.4 status code.
        reason: cut to 123 bytes of UTF-8, at a character's end.
    """
    if code in UNSENDABLE:
        return frame(b"", CLOSE)
    body = code.to_bytes(2, "big") + reason.encode()[:123].decode(errors="ignore").encode()
    return frame(body, CLOSE)
