"""The dialects' session objects; what they do in a session is in ``test_session``."""

from __future__ import annotations

from typing import Any

import pytest

from router.simulator.audio import PCM_24K, PCMA, PCMU, AudioFormat
from router.simulator.schema import EventError
from router.simulator.shapes import BETA, GA, XAI, Shape
from router.simulator.vad import TurnDetection


@pytest.mark.parametrize("shape", [GA, BETA, XAI])
def test_defaults_mean_the_same_in_every_shape(shape: Shape) -> None:
    """However it is written, a new session speaks, listens with VAD at 24 kHz, and transcribes nothing."""
    effective = shape.effective(shape.defaults(model="m", transcription=False))
    assert effective.modality == "audio"
    assert (effective.input_format, effective.output_format) == (PCM_24K, PCM_24K)
    assert effective.turn_detection == TurnDetection()
    assert effective.transcription_model is None
    assert effective.max_output_tokens is None


@pytest.mark.parametrize(
    ("shape", "patch", "field", "expected"),
    [
        (GA, {"type": "realtime", "audio": {"output": {"format": {"type": "audio/pcma"}}}}, "output_format", PCMA),
        (GA, {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "input_format", PCMU),
        (GA, {"type": "realtime", "max_output_tokens": 5}, "max_output_tokens", 5),
        (GA, {"type": "realtime", "output_modalities": ["text"]}, "modality", "text"),
        (GA, {"type": "realtime", "audio": {"output": {"voice": {"id": "v"}}}}, "voice", {"id": "v"}),
        (GA, {"type": "realtime", "audio": {"input": {"transcription": {"model": "w"}}}}, "transcription_model", "w"),
        (BETA, {"modalities": ["text"]}, "modality", "text"),
        (BETA, {"input_audio_format": "g711_alaw"}, "input_format", PCMA),
        (BETA, {"turn_detection": None}, "turn_detection", None),
        (BETA, {"turn_detection": {"silence_duration_ms": 200}}, "turn_detection", TurnDetection(silence_ms=200)),
        (BETA, {"max_response_output_tokens": 9}, "max_output_tokens", 9),
        (XAI, {"voice": "rex"}, "voice", "rex"),
        (XAI, {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}}, "input_format", AudioFormat("pcm", 8000)),
        (XAI, {"audio": {"output": {"transport": "binary"}}}, "binary_output", True),
        (XAI, {"turn_detection": {"type": "server_vad", "threshold": 0.9}}, "turn_detection", TurnDetection(threshold=0.9)),
    ],
)
def test_updates_take_effect_and_leave_the_original_alone(shape: Shape, patch: Any, field: str, expected: Any) -> None:
    """A merged configuration reads as sent; merging returns a new object."""
    config = shape.defaults(model="m", transcription=False)
    untouched = shape.defaults(model="m", transcription=False)
    assert getattr(shape.effective(shape.merged(config, patch, spoken=False)), field) == expected
    assert config == untouched


def test_every_field_that_is_set_is_echoed() -> None:
    """All documented GA fields at once are accepted and come back."""
    patch = {
        "type": "realtime",
        "instructions": "x",
        "output_modalities": ["text"],
        "tools": [{"type": "mcp", "server_label": "s", "server_url": "https://example.invalid"}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_output_tokens": 100,
        "truncation": {"type": "retention_ratio", "retention_ratio": 0.5, "token_limits": {"post_instructions": 5}},
        "tracing": {"workflow_name": "w"},
        "prompt": {"id": "p"},
        "reasoning": {"effort": "low"},
        "include": ["item.input_audio_transcription.logprobs"],
    }
    merged = GA.merged(GA.defaults(model="m", transcription=False), patch, spoken=False)
    assert {name: merged[name] for name in patch} == patch


@pytest.mark.parametrize(
    ("shape", "params", "field", "expected"),
    [
        (GA, {"output_modalities": ["text"]}, "modality", "text"),
        (GA, {"audio": {"output": {"voice": "cedar", "format": {"type": "audio/pcmu"}}}}, "output_format", PCMU),
        (BETA, {"output_audio_format": "g711_ulaw"}, "output_format", PCMU),
        (BETA, {"temperature": 1.1}, "temperature", 1.1),
        (XAI, {"modalities": ["text"]}, "modality", "text"),
        (GA, None, "modality", "audio"),
    ],
)
def test_a_response_may_differ_from_its_session(shape: Shape, params: Any, field: str, expected: Any) -> None:
    """``response.create`` overrides for its own answer."""
    request = shape.request(shape.defaults(model="m", transcription=False), params)
    assert getattr(request.effective, field) == expected


def test_beta_and_ga_refuse_each_others_fields() -> None:
    """The two are not interchangeable, which is why a router must translate."""
    with pytest.raises(EventError):
        GA.merged(GA.defaults(model="m", transcription=False), {"type": "realtime", "modalities": ["text"]}, spoken=False)
    with pytest.raises(EventError):
        BETA.merged(BETA.defaults(model="m", transcription=False), {"type": "realtime"}, spoken=False)
