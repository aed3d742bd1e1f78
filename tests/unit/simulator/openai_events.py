"""Checks events against the ``openai`` package's types: it must be valid, and no field may be one that the package does not know.

The package's session events carry the type of a *request*, so three fields that the server adds are not in it: they are allowed
there by name, and checked against the type of the session that ``client_secrets`` returns, which has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pydantic
from openai.types.beta.realtime import realtime_server_event as beta_events
from openai.types.beta.realtime.session import Session as BetaSession
from openai.types.realtime import realtime_server_event as ga_events
from openai.types.realtime.realtime_session_create_response import RealtimeSessionCreateResponse

SERVER_FIELDS = {"id", "object", "expires_at"}


def _by_type(union: Any) -> dict[str, type[pydantic.BaseModel]]:
    members = get_args(get_args(union)[0])
    return {get_args(member.model_fields["type"].annotation)[0]: member for member in members}


GA_TYPES = _by_type(ga_events.RealtimeServerEvent)
BETA_TYPES = _by_type(beta_events.RealtimeServerEvent)


def unknown_fields(value: object, path: str = "") -> Iterator[str]:
    """Yield the place of every field that landed in some ``model_extra``."""
    if isinstance(value, pydantic.BaseModel):
        for name in value.model_extra or {}:
            yield f"{path}.{name}"
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from unknown_fields(entry, f"{path}.{name}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from unknown_fields(entry, f"{path}[{index}]")


def check_ga(event: dict[str, Any]) -> None:
    """Fail unless the event is a GA server event without unknown fields."""
    kind = event["type"]
    assert kind in GA_TYPES, f"{kind} is no GA event"
    allowed: set[str] = set()
    if kind in ("session.created", "session.updated"):
        allowed = {f".session.{name}" for name in SERVER_FIELDS}
        assert event["session"].keys() >= SERVER_FIELDS
        if event["session"]["type"] == "realtime":
            session = RealtimeSessionCreateResponse.model_validate(event["session"])
            assert not list(unknown_fields(session))
    unknown = set(unknown_fields(GA_TYPES[kind].model_validate(event)))
    assert unknown == allowed, f"{kind}: unknown {sorted(unknown - allowed)}"


# transcription_session.created has no type in the package, and .updated has one whose client_secret is not nullable, although a
# WebSocket session has none.
BETA_TRANSCRIPTION_FIELDS = {
    "id",
    "object",
    "expires_at",
    "client_secret",
    "turn_detection",
    "input_audio_format",
    "input_audio_transcription",
    "input_audio_noise_reduction",
}


def check_beta(event: dict[str, Any]) -> None:
    """Fail unless the event is a beta server event without unknown fields."""
    kind = event["type"]
    if kind in ("transcription_session.created", "transcription_session.updated"):
        assert set(event["session"]) == BETA_TRANSCRIPTION_FIELDS
        return
    assert kind in BETA_TYPES, f"{kind} is no beta event"
    allowed: set[str] = set()
    if kind in ("session.created", "session.updated"):
        allowed = {".session.object", ".session.expires_at"}
        # The package knows the models of its day only; any name is a model here.
        event = event | {"session": event["session"] | {"model": "gpt-realtime"}}
        BetaSession.model_validate(event["session"])
    unknown = set(unknown_fields(BETA_TYPES[kind].model_validate(event)))
    assert unknown == allowed, f"{kind}: unknown {sorted(unknown - allowed)}"
