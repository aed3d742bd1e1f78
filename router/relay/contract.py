"""What the relay's users see of it: who is told of messages, how a session ended, an ``error`` event. Pure: no asyncio."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, Protocol

import orjson

from router.relay.fastpath import FastPath

Side = Literal["client", "upstream"]
Who = Literal["client", "upstream", "router"]
Phase = Literal["waiting", "idle", "turn"]
# Why a session ended, beside who ended it.
Cause = Literal["close", "lost", "dead", "stalled", "protocol", "idle_timeout", "max_session", "shutdown", "admin", "cancelled"]


class Tap(Protocol):
    """Who is told of the messages of a session. Called on the hot path: no I/O, no exceptions."""

    def join(self, client: FastPath, upstream: FastPath) -> None:
        """The session begins. Types that ``message`` need not be told of may be made hot on its two fast paths, at any time."""

    @property
    def collect(self) -> frozenset[str]:
        """Types of upstream events whose payload is wanted."""

    @property
    def phase(self) -> Phase:
        """What the session is doing."""

    @property
    def quiet(self) -> bool:
        """Neither an answer is under way or due, nor does the user speak."""

    def message(self, side: Side, opcode: int, event_type: str | None, size: int, payload: bytes | None) -> None:
        """A message from ``side`` is complete; ``payload`` is there for the wanted types, up to a limit."""

    def tick(self, now: float) -> None:
        """Twice a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnd:
    """How a relayed session ended.

    Attributes:
        who: the side that began the end.
        cause: why.
        phase: what the session was doing then.
        client_code, upstream_code: close codes, the one that was first on that leg whoever sent it; 1006 when the leg was lost
            without one (RFC 6455 §7.1.5).
        upstream_reason: the reason in the upstream's CLOSE, may be empty.
        client_bytes, upstream_bytes: bytes that came from each side, frame heads included.
        client_events, upstream_events: messages that came from each side.
        seconds: from the join to the end.
    """

    who: Who
    cause: Cause
    phase: Phase
    client_code: int
    upstream_code: int
    upstream_reason: str
    client_bytes: int
    upstream_bytes: int
    client_events: int
    upstream_events: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A message that arrived before the legs were joined."""

    opcode: int
    event_type: str | None
    size: int
    payload: bytes | None


def error_event(code: str, message: str, *, error_type: str = "server_error") -> bytes:
    """JSON text of an ``error`` event as OpenAI's GA interface writes it."""
    return orjson.dumps(
        {
            "type": "error",
            "event_id": "event_" + os.urandom(9).hex(),
            "error": {"type": error_type, "code": code, "message": message, "param": None, "event_id": None},
        }
    )
