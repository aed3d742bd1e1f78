"""The URL and headers of a dial to OpenAI."""

from __future__ import annotations

from typing import Any

import pytest

from router._version import __version__
from router.config.settings import Secret
from router.errors import ConnectFailed
from tests.unit.providers.helpers import KEY, WITH_KEY, target

USER_AGENT = f"realtime-router/{__version__}"


@pytest.mark.parametrize(
    ("settings", "query", "url"),
    [
        ({}, {}, "wss://api.openai.com/v1/realtime?model=m"),
        ({"model": "gpt-realtime-2.1"}, {}, "wss://api.openai.com/v1/realtime?model=gpt-realtime-2.1"),
        ({"model": "ft:gpt:org"}, {}, "wss://api.openai.com/v1/realtime?model=ft:gpt:org"),
        ({"model": "a b&c=d#e+f"}, {}, "wss://api.openai.com/v1/realtime?model=a%20b%26c%3Dd%23e%2Bf"),
        ({"model": "é"}, {}, "wss://api.openai.com/v1/realtime?model=%C3%A9"),
        # A dial carries exactly one of model and intent=transcription.
        ({}, {"intent": "transcription"}, "wss://api.openai.com/v1/realtime?intent=transcription"),
        ({}, {"intent": "realtime"}, "wss://api.openai.com/v1/realtime?model=m&intent=realtime"),
        ({"extra_query": {"intent": "transcription"}}, {}, "wss://api.openai.com/v1/realtime?intent=transcription"),
        (
            {"extra_query": {"intent": "realtime"}},
            {"intent": "transcription"},
            "wss://api.openai.com/v1/realtime?model=m&intent=realtime",
        ),
        ({}, {"conversation_id": "c/1 2"}, "wss://api.openai.com/v1/realtime?model=m&conversation_id=c/1%202"),
        ({"extra_query": {"model": "mine", "x": "1&2"}}, {}, "wss://api.openai.com/v1/realtime?model=mine&x=1%262"),
        ({"extra_query": {"x": "operator"}}, {"x": "client"}, "wss://api.openai.com/v1/realtime?model=m&x=operator"),
        # api_base overrides scheme, host and path; a bare host gets the usual path.
        ({"api_base": "https://eu.example.com"}, {}, "wss://eu.example.com/v1/realtime?model=m"),
        ({"api_base": "http://127.0.0.1:8080/"}, {}, "ws://127.0.0.1:8080/v1/realtime?model=m"),
        ({"api_base": "WSS://eu.example.com/v1/"}, {}, "wss://eu.example.com/v1/realtime?model=m"),
        ({"api_base": "ws://[::1]:9/a/b"}, {}, "ws://[::1]:9/a/b/realtime?model=m"),
        ({"api_base": "wss://h/v1/realtime"}, {}, "wss://h/v1/realtime?model=m"),
        ({"api_base": "wss://h/v1/realtime/"}, {}, "wss://h/v1/realtime?model=m"),
        ({"api_base": "https://h/v1?tenant=a%2Bb&x"}, {}, "wss://h/v1/realtime?tenant=a%2Bb&x&model=m"),
        ({"api_base": "https://h/v1?model=base"}, {"model": "client"}, "wss://h/v1/realtime?model=base"),
        ({"api_base": "https://h/v1?x=base", "extra_query": {"x": "extra"}}, {}, "wss://h/v1/realtime?model=m&x=extra"),
        ({"api_base": "https://h/v1?intent=transcription"}, {}, "wss://h/v1/realtime?intent=transcription"),
    ],
)
def test_url(settings: dict[str, Any], query: dict[str, str], url: str) -> None:
    """The URL follows from the settings and the client's query, the operator's word first."""
    assert target("openai", query=query, **WITH_KEY, **settings).url == url


@pytest.mark.parametrize(
    ("settings", "forwarded", "headers"),
    [
        ({}, {}, {"User-Agent": USER_AGENT, "Authorization": f"Bearer {KEY}"}),
        (
            {"organization": "org-1", "project": "proj-1"},
            {},
            {
                "User-Agent": USER_AGENT,
                "Authorization": f"Bearer {KEY}",
                "OpenAI-Organization": "org-1",
                "OpenAI-Project": "proj-1",
            },
        ),
        (
            {},
            {"openai-safety-identifier": "user-7"},
            {"User-Agent": USER_AGENT, "Authorization": f"Bearer {KEY}", "openai-safety-identifier": "user-7"},
        ),
        # extra_headers win, whatever the case of their names.
        (
            {"extra_headers": {"authorization": "Custom 1", "USER-AGENT": "ua"}},
            {},
            {"authorization": "Custom 1", "USER-AGENT": "ua"},
        ),
        (
            {"extra_headers": {"X-Team": "voice\n"}},
            {"x-team": "client"},
            {"User-Agent": USER_AGENT, "Authorization": f"Bearer {KEY}", "X-Team": "voice"},
        ),
        # The connection's and the handshake's own headers belong to whoever dials.
        (
            {
                "extra_headers": {
                    "Connection": "close",
                    "Sec-WebSocket-Protocol": "x",
                    "upgrade": "h2c",
                    "Transfer-Encoding": "chunked",
                }
            },
            {},
            {"User-Agent": USER_AGENT, "Authorization": f"Bearer {KEY}"},
        ),
    ],
)
def test_headers(settings: dict[str, Any], forwarded: dict[str, str], headers: dict[str, str]) -> None:
    """The headers are the provider's, then the client's allowed ones, then the operator's."""
    assert dict(target("openai", headers=forwarded, **WITH_KEY, **settings).headers) == headers


def test_an_entra_token_is_azures() -> None:
    """A token meant for Azure is not sent to OpenAI."""
    assert "token" not in str(dict(target("openai", token="token", **WITH_KEY).headers))


@pytest.mark.parametrize(
    ("api_base", "words"),
    [
        ("ftp://h/v1", "no known scheme"),
        ("h/v1", "no known scheme"),
        ("https://", "no host"),
        ("https://user:hunter2@h/v1", "user or password"),
        ("https://h:99999/v1?key=hunter2", "port"),
        ("https://h:0/v1", "port 0"),
        ("https://[::1/v1", "host or port"),
        ("https://h/v1#hunter2", "fragment"),
        ("https://h/a b?hunter2", "space"),
        ("https://h/\nv1", "control"),
    ],
)
def test_an_api_base_that_cannot_be_dialled(api_base: str, words: str) -> None:
    """The message names the setting and the fault, and repeats nothing of a URL that may hold a secret."""
    with pytest.raises(ConnectFailed, match=words) as caught:
        target("openai", api_base=api_base, **WITH_KEY)
    assert str(caught.value).startswith("api_base: found")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "  \n", "sk-1\r\nX-Evil: 1", "sk\x00"])
def test_a_key_that_cannot_be_sent(key: str) -> None:
    """A key that would break the header is refused before it is sent, and not repeated."""
    with pytest.raises(ConnectFailed, match="api_key") as caught:
        target("openai", api_key=Secret(key))
    assert "Evil" not in str(caught.value)


def test_a_key_with_a_line_break_at_its_end() -> None:
    """A key that was read from a file with its line break works."""
    assert target("openai", api_key=Secret(f"{KEY}\n")).headers["Authorization"] == f"Bearer {KEY}"


def test_the_target_hides_its_key() -> None:
    """Printing a target tells neither the key nor the URL's query."""
    shown = repr(target("openai", extra_query={"k": "hunter2"}, **WITH_KEY))
    assert KEY not in shown
    assert "hunter2" not in shown
