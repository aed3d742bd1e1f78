"""The URL and headers of a dial to Azure OpenAI, in both of its forms."""

from __future__ import annotations

from typing import Any

import pytest

from router.errors import ConnectFailed
from router.providers.headers import USER_AGENT
from tests.unit.providers.helpers import KEY, WITH_KEY, target

BASE = "https://res.openai.azure.com"
PREVIEW: dict[str, Any] = {"realtime_protocol": "preview", "api_version": "2025-04-01-preview"}
PREVIEW_QUERY = "api-version=2025-04-01-preview&deployment=m"


@pytest.mark.parametrize(
    ("settings", "query", "url"),
    [
        ({"api_base": BASE}, {}, "wss://res.openai.azure.com/openai/v1/realtime?model=m"),
        ({"api_base": f"{BASE}/"}, {}, "wss://res.openai.azure.com/openai/v1/realtime?model=m"),
        ({"api_base": f"{BASE}/openai"}, {}, "wss://res.openai.azure.com/openai/v1/realtime?model=m"),
        ({"api_base": f"{BASE}/openai/v1/"}, {}, "wss://res.openai.azure.com/openai/v1/realtime?model=m"),
        ({"api_base": f"{BASE}/openai/v1/realtime"}, {}, "wss://res.openai.azure.com/openai/v1/realtime?model=m"),
        ({"api_base": "http://gw:8080/azure"}, {}, "ws://gw:8080/azure/openai/v1/realtime?model=m"),
        ({"api_base": BASE, "api_version": "2025-01-01"}, {}, "wss://res.openai.azure.com/openai/v1/realtime?model=m"),
        (
            {"api_base": BASE},
            {"intent": "transcription"},
            "wss://res.openai.azure.com/openai/v1/realtime?model=m&intent=transcription",
        ),
        ({"api_base": BASE, **PREVIEW}, {}, f"wss://res.openai.azure.com/openai/realtime?{PREVIEW_QUERY}"),
        ({"api_base": f"{BASE}/openai/", **PREVIEW}, {}, f"wss://res.openai.azure.com/openai/realtime?{PREVIEW_QUERY}"),
        ({"api_base": f"{BASE}/openai/v1", **PREVIEW}, {}, f"wss://res.openai.azure.com/openai/realtime?{PREVIEW_QUERY}"),
        (
            {"api_base": f"{BASE}/openai/realtime?api-version=2024-10-01-preview", "realtime_protocol": "preview"},
            {},
            "wss://res.openai.azure.com/openai/realtime?api-version=2024-10-01-preview&deployment=m",
        ),
        (
            {"api_base": "https://r.services.ai.azure.com/voice-live/realtime?api-version=2026-04-10"},
            {},
            "wss://r.services.ai.azure.com/voice-live/realtime?api-version=2026-04-10&model=m",
        ),
    ],
)
def test_url(settings: dict[str, Any], query: dict[str, str], url: str) -> None:
    """GA names the deployment in ``model``, preview in ``deployment`` beside the version."""
    assert target("azure", query=query, **WITH_KEY, **settings).url == url


def test_a_key_goes_into_its_own_header() -> None:
    """A resource's key is sent as api-key and not as Bearer."""
    assert dict(target("azure", api_base=BASE, **WITH_KEY).headers) == {"User-Agent": USER_AGENT, "api-key": KEY}


def test_a_token_wins_over_the_key() -> None:
    """An Entra token is sent as Bearer, and the key stays here."""
    headers = target("azure", api_base=BASE, token="entra\n", **WITH_KEY).headers
    assert dict(headers) == {"User-Agent": USER_AGENT, "Authorization": "Bearer entra"}


@pytest.mark.parametrize("settings", [{}, {"api_base": BASE, "realtime_protocol": "preview"}])
def test_settings_that_are_missing(settings: dict[str, Any]) -> None:
    """Without a base, or without a version in preview, there is nothing to dial."""
    with pytest.raises(ConnectFailed, match="expect"):
        target("azure", **WITH_KEY, **settings)
