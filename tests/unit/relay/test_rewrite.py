"""``session.update`` leaves with the deployment's model; everything else is not touched at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.relay.rewrite import rewrite_session_update

WHISPER = {"transcription": {"model": "whisper"}}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"type": "session.update", "session": {"model": "a"}}, {"type": "session.update", "session": {"model": "b"}}),
        ({"type": "session.update", "model": "a"}, {"type": "session.update", "model": "b"}),
        (
            {"model": "a", "session": {"model": "a", "audio": {"input": WHISPER}}, "type": "session.update"},
            {"model": "b", "session": {"model": "b", "audio": {"input": WHISPER}}, "type": "session.update"},
        ),
        (
            {"type": "session.update", "session": {"model": "a", "n": 12345678901234567890, "x": 0.1, "s": "\ud800 é"}},
            {"type": "session.update", "session": {"model": "b", "n": 12345678901234567890, "x": 0.1, "s": "\ud800 é"}},
        ),
    ],
)
def test_the_model_is_replaced_where_sdks_write_it(event: dict[str, Any], expected: dict[str, Any]) -> None:
    """In ``session`` and at the top (vLLM); not that of the transcription. Order, big numbers and lone surrogates survive."""
    changed = rewrite_session_update(json.dumps(event).encode(), "b")
    assert changed is not None
    assert list(json.loads(changed).items()) == list(expected.items())


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"session.update","session":{"model":"b"}}',
        b'{"type":"session.update","session":{"instructions":"x"}}',
        b'{"type":"session.update","session":{"model":7}}',
        b'{"type":"session.update","session":"model"}',
        b'{"type":"session.update","session":["model"]}',
        b'{"type":"response.create","model":"a"}',
        b'{"type":"session.update","session":{"model":"a"}',
        b'{"type":"session.update","session":{"model":"a","x":1e999}}',
        b'{"type":"session.update","session":{"model":"a","x":"\xff"}}',
        b'["model"]',
        b'"model"',
        b"",
        b'{"model":' + b"[" * 100_000,
        b'{"type":"session.update","model":"a","x":' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_not_to_be_changed_is_left_to_its_sender(text: bytes) -> None:
    """Right already, without a model, another event, not JSON, or nothing Python could write back: unchanged."""
    assert rewrite_session_update(text, "b") is None


@given(st.binary(max_size=200))
def test_no_bytes_raise(noise: bytes) -> None:
    """The relay calls it in the middle of a stream: whatever stands there, it returns."""
    for text in (noise, b'{"model":"a","type":"session.update","x":' + noise + b"}", b'"model"' + noise):
        changed = rewrite_session_update(text, "b")
        assert changed is None or json.loads(changed)["type"] == "session.update"
