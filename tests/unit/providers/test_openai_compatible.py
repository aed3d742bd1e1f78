"""The URL and headers of a dial to a server that speaks OpenAI's protocol."""

from __future__ import annotations

from typing import Any

import pytest

from router.errors import ConnectFailed
from router.providers.headers import USER_AGENT
from tests.unit.providers.helpers import KEY, WITH_KEY, target


@pytest.mark.parametrize(
    ("settings", "query", "url"),
    [
        ({"api_base": "http://h:8000"}, {}, "ws://h:8000/realtime?model=m"),
        ({"api_base": "http://h:8000/v1"}, {}, "ws://h:8000/v1/realtime?model=m"),
        ({"api_base": "wss://dashscope.example.com/api-ws/v1/"}, {}, "wss://dashscope.example.com/api-ws/v1/realtime?model=m"),
        ({"api_base": "ws://h/v1/realtime?a=1"}, {}, "ws://h/v1/realtime?a=1&model=m"),
        ({"api_base": "ws://h/v1", "model": ""}, {}, "ws://h/v1/realtime"),
        ({"api_base": "ws://h/v1"}, {"intent": "transcription"}, "ws://h/v1/realtime?model=m&intent=transcription"),
        (
            {"api_base": "wss://api.example.com/v1", "extra_query": {"input_audio_format": "pcm_s16le_16000"}},
            {},
            "wss://api.example.com/v1/realtime?model=m&input_audio_format=pcm_s16le_16000",
        ),
    ],
)
def test_url(settings: dict[str, Any], query: dict[str, str], url: str) -> None:
    """The base's path is kept and ``/realtime`` is appended once."""
    assert target("openai_compatible", query=query, **settings).url == url


def test_no_key_no_header() -> None:
    """A server without a key gets no Authorization."""
    assert dict(target("openai_compatible", api_base="ws://h").headers) == {"User-Agent": USER_AGENT}


def test_headers() -> None:
    """A key goes as Bearer, and a server that wants the beta header can be given it."""
    headers = target("openai_compatible", api_base="ws://h", extra_headers={"OpenAI-Beta": "realtime=v1"}, **WITH_KEY).headers
    assert dict(headers) == {"User-Agent": USER_AGENT, "Authorization": f"Bearer {KEY}", "OpenAI-Beta": "realtime=v1"}


def test_a_base_is_required() -> None:
    """Without a base there is nothing to dial."""
    with pytest.raises(ConnectFailed, match="api_base: found none"):
        target("openai_compatible")


@pytest.mark.parametrize("extra", [{"X Y": "1"}, {"X:": "1"}, {"X-A": "1\x00"}, {"X-A": "1\r\nX-B: 2"}])
def test_headers_that_cannot_be_sent(extra: dict[str, str]) -> None:
    """A header that would break the request is an error of the dial, not a traceback of the HTTP library."""
    with pytest.raises(ConnectFailed, match="not allowed"):
        target("openai_compatible", api_base="ws://h", extra_headers=extra)
