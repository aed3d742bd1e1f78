"""The URL and headers of a dial to xAI."""

from __future__ import annotations

from typing import Any

import pytest

from router.providers.headers import USER_AGENT
from tests.unit.providers.helpers import KEY, WITH_KEY, target


@pytest.mark.parametrize(
    ("settings", "query", "url"),
    [
        ({}, {}, "wss://api.x.ai/v1/realtime?model=m"),
        (
            {"model": "grok-voice-latest"},
            {"conversation_id": "c1"},
            "wss://api.x.ai/v1/realtime?model=grok-voice-latest&conversation_id=c1",
        ),
        ({}, {"intent": "transcription"}, "wss://api.x.ai/v1/realtime?model=m&intent=transcription"),
        ({"api_base": "http://127.0.0.1:9"}, {}, "ws://127.0.0.1:9/v1/realtime?model=m"),
        ({"api_base": "https://h/proxy/xai"}, {}, "wss://h/proxy/xai/realtime?model=m"),
        ({"api_base": "https://h/v1/realtime?r=1"}, {}, "wss://h/v1/realtime?r=1&model=m"),
    ],
)
def test_url(settings: dict[str, Any], query: dict[str, str], url: str) -> None:
    """The model is always named, also beside an intent."""
    assert target("xai", query=query, **WITH_KEY, **settings).url == url


def test_headers() -> None:
    """The key goes as Bearer and nothing else is sent."""
    assert dict(target("xai", **WITH_KEY).headers) == {"User-Agent": USER_AGENT, "Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("name", ["OpenAI-Beta", "openai-beta", "OPENAI-BETA"])
def test_the_beta_header_is_never_sent(name: str) -> None:
    """OpenAI-Beta is dropped even when the configuration asks for it."""
    headers = target("xai", headers={"openai-beta": "realtime=v1"}, extra_headers={name: "realtime=v1"}, **WITH_KEY).headers
    assert not [header for header in headers if header.lower() == "openai-beta"]


def test_what_a_client_tells_openai_stays_here() -> None:
    """A client's OpenAI headers do not go to xAI, other allowed ones do."""
    headers = target("xai", headers={"openai-safety-identifier": "u", "x-tenant": "t"}, **WITH_KEY).headers
    assert dict(headers) == {"User-Agent": USER_AGENT, "Authorization": f"Bearer {KEY}", "x-tenant": "t"}
