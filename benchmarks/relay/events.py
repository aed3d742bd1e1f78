"""What clients and provider say, in the form of OpenAI's GA protocol, and in which order.

The number of an event stands where the protocol has room for it: in the ``event_id``, or at the beginning of the audio, for
digits are base64 as well.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.relay.wire import ID_BYTES, Event, random_text

Mode = Literal["echo", "paced", "turn", "setup"]

FRAMES_PER_SECOND: Final = 50  # of 20 ms
DELTAS_PER_SECOND: Final = 15  # ten of audio, five of transcript
FRAME_BYTES: Final = 960  # 20 ms of 24 kHz, 16 bits, mono
DELTA_BYTES: Final = 4800  # 100 ms
# Contents that take turns; a client's each have a mask key of their own.
_UP_VARIANTS: Final = 64
_DOWN_VARIANTS: Final = 8
# A response at real-time pace, in triples of audio, transcript, audio: about three seconds.
_PACED_TRIPLES: Final = 14
_TURN_FRAMES: Final = 5
_TURN_TRIPLES: Final = 2

_RNG: Final = random.Random(20)
_RESPONSE: Final = "resp_CCXGWlT9aTqJ9ULUrLcKm"
_ITEM: Final = "item_CCXGXbFFMSsKGj3VqmT1E"


def _key() -> bytes:
    # No zero byte, so that every byte of a masked frame differs from the unmasked one.
    return bytes(_RNG.randint(1, 255) for _ in range(4))


def _json(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _session(instructions: str) -> dict[str, object]:
    return {
        "type": "realtime",
        "output_modalities": ["audio"],
        "instructions": instructions,
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "gpt-realtime-whisper"},
                "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 500},
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1.0},
        },
        "tools": [],
        "tool_choice": "auto",
    }


def _down(kind: str, **more: object) -> Event:
    return Event(_json({"type": kind, "event_id": "event_{id}", **more}))


def _up(kind: str, **more: object) -> Event:
    return Event(_json({"type": kind, "event_id": "event_{id}", **more}), key=_key())


def _delta(kind: str, text: str) -> Event:
    return _down(kind, response_id=_RESPONSE, item_id=_ITEM, output_index=0, content_index=0, delta=text)


def _response(status: str, usage: dict[str, object] | None) -> dict[str, object]:
    return {
        "object": "realtime.response",
        "id": _RESPONSE,
        "status": status,
        "status_details": None,
        "output": [],
        "conversation_id": "conv_CCXGRxsqbYQ0n2fAbvZ2A",
        "output_modalities": ["audio"],
        "max_output_tokens": "inf",
        "audio": {"output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"}},
        "usage": usage,
        "metadata": None,
    }


_USAGE: Final[dict[str, object]] = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {"text_tokens": 119, "audio_tokens": 13, "image_tokens": 0, "cached_tokens": 64},
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}

APPENDS: Final = tuple(
    Event(
        f'{{"type":"input_audio_buffer.append","audio":"{{id}}{random_text(_RNG, FRAME_BYTES * 4 // 3 - ID_BYTES)}"}}', key=_key()
    )
    for _ in range(_UP_VARIANTS)
)
AUDIO: Final = tuple(
    _delta("response.output_audio.delta", random_text(_RNG, DELTA_BYTES * 4 // 3)) for _ in range(_DOWN_VARIANTS)
)
TRANSCRIPT: Final = tuple(
    _delta("response.output_audio_transcript.delta", f" word{variant}") for variant in range(_DOWN_VARIANTS)
)
_CREATED: Final = _down("response.created", response=_response("in_progress", None))
_DONE: Final = _down("response.done", response=_response("completed", _USAGE))

SESSION_CREATED: Final = _down(
    "session.created",
    session={
        "object": "realtime.session",
        "id": "sess_CCXGRcXcrJL2gpMvIm4aY",
        "model": "gpt-realtime",
        "expires_at": 4102444800,
        **_session("You are a helpful, witty, and friendly AI."),
    },
)
SESSION_UPDATED: Final = _down(
    "session.updated",
    session={
        "object": "realtime.session",
        "id": "sess_CCXGRcXcrJL2gpMvIm4aY",
        "model": "gpt-realtime",
        "expires_at": 4102444800,
        **_session("As the client asked."),
    },
)


def _triples(count: int) -> tuple[Event, ...]:
    events: list[Event] = []
    for index in range(count):
        first = AUDIO[2 * index % _DOWN_VARIANTS]
        second = AUDIO[(2 * index + 1) % _DOWN_VARIANTS]
        events += [first, TRANSCRIPT[index % _DOWN_VARIANTS], second]
    return tuple(events)


@dataclass(frozen=True, slots=True)
class Script:
    """What a session's two ends say after ``session.created``, ``session.update`` and ``session.updated``.

    Attributes:
        mode: when they say it. echo: an event down for each one up; paced: both by the clock; turn: all of ``ups``, then all
            of ``downs``, once; setup: nothing, the session ends with ``session.created``.
        hello: the ``session.update``, by which the provider knows the script.
        ups: from the client, over and over again.
        downs: from the provider, over and over again.
    """

    mode: Mode
    hello: Event
    ups: tuple[Event, ...]
    downs: tuple[Event, ...]

    def up(self, sequence: int) -> Event:
        """The client's event with this number."""
        return self.ups[(sequence - 1) % len(self.ups)] if sequence else self.hello

    def down(self, sequence: int) -> Event:
        """The provider's event with this number."""
        if sequence >= 2:
            return self.downs[(sequence - 2) % len(self.downs)]
        return SESSION_UPDATED if sequence else SESSION_CREATED


def _script(mode: Mode, ups: tuple[Event, ...], downs: tuple[Event, ...]) -> Script:
    return Script(mode, _up("session.update", session=_session(f"script {mode}")), ups, downs)


SCRIPTS: Final[dict[Mode, Script]] = {
    "echo": _script(
        "echo", APPENDS, tuple(event for pair in zip(AUDIO, TRANSCRIPT, strict=True) for event in pair)
    ),
    "paced": _script("paced", APPENDS, (_CREATED, *_triples(_PACED_TRIPLES), _DONE)),
    "turn": _script(
        "turn",
        (
            *APPENDS[:_TURN_FRAMES],
            _up("input_audio_buffer.commit"),
            _up("response.create", response={"output_modalities": ["audio"]}),
        ),
        (_CREATED, *_triples(_TURN_TRIPLES), _DONE),
    ),
    "setup": _script("setup", APPENDS[:1], (_CREATED,)),
}
