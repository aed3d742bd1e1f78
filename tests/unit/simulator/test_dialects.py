"""Paths, queries and keys of each dialect."""

from __future__ import annotations

import pytest

from router.simulator.dialects import DIALECTS, Route, RouteError, find_route, offered_keys
from router.simulator.shapes import BETA, GA, XAI


@pytest.mark.parametrize(
    ("dialect", "path", "query", "route"),
    [
        ("openai", "/v1/realtime", {"model": "m"}, Route(shape=GA, model="m")),
        ("openai", "/api-ws/v1/realtime", {"model": "m", "intent": "realtime"}, Route(shape=GA, model="m")),
        ("openai", "/v1/realtime", {"intent": "transcription"}, Route(shape=GA, model=None, transcription=True)),
        ("openai-beta", "/v1/realtime", {"model": "m"}, Route(shape=BETA, model="m")),
        (
            "openai-beta",
            "/v1/realtime",
            {"intent": "transcription", "model": "m"},
            Route(shape=BETA, model=None, transcription=True),
        ),
        ("azure", "/openai/v1/realtime", {"model": "d"}, Route(shape=GA, model="d")),
        ("azure", "/openai/realtime", {"api-version": "1", "deployment": "d"}, Route(shape=BETA, model="d")),
        ("xai", "/v1/realtime", {}, Route(shape=XAI, model="grok-voice-latest")),
        ("xai", "/v1/realtime", {"conversation_id": "c"}, Route(shape=XAI, model="grok-voice-latest", conversation_id="c")),
    ],
)
def test_routes(dialect: str, path: str, query: dict[str, str], route: Route) -> None:
    """Each dialect's addresses lead to its shape and model."""
    assert find_route(DIALECTS[dialect], path, query) == route


@pytest.mark.parametrize(
    ("dialect", "path", "query", "status"),
    [
        ("openai", "/realtime", {"model": "m"}, 404),
        ("openai", "/v1/realtime", {}, 400),
        ("openai", "/v1/realtime", {"model": ""}, 400),
        ("openai", "/v1/realtime", {"call_id": "c"}, 400),
        ("openai", "/v1/realtime", {"model": "m", "intent": "transcription"}, 400),
        ("azure", "/v1/realtime", {"model": "m"}, 404),
        ("azure", "/openai/realtime", {"model": "m"}, 400),
        ("azure", "/openai/v1/realtime", {}, 400),
        ("xai", "/openai/realtime", {}, 404),
    ],
)
def test_requests_that_ask_for_no_session(dialect: str, path: str, query: dict[str, str], status: int) -> None:
    """A wrong path is 404, a wrong query 400."""
    with pytest.raises(RouteError) as refused:
        find_route(DIALECTS[dialect], path, query)
    assert refused.value.status == status


def test_own_path_replaces_the_dialects() -> None:
    """With a path of its own a simulator serves no other."""
    assert find_route(DIALECTS["openai"], "/x", {"model": "m"}, own_path="/x").model == "m"
    with pytest.raises(RouteError):
        find_route(DIALECTS["openai"], "/v1/realtime", {"model": "m"}, own_path="/x")


def test_keys_are_read_where_the_dialect_has_them() -> None:
    """Bearer in any case and browser subprotocols everywhere, ``api-key`` for Azure only."""
    headers = {"Authorization": "bearer one", "api-key": "two"}
    protocols = ["realtime", "openai-insecure-api-key.three", "xai-client-secret.four"]
    everything = offered_keys(DIALECTS["azure"], headers, {"api-key": "five"}, protocols)
    assert sorted(everything) == ["five", "four", "one", "three", "two"]
    assert offered_keys(DIALECTS["openai"], headers, {"api-key": "five"}, []) == ["one"]
    assert offered_keys(DIALECTS["openai"], {"Authorization": "Basic abc"}, {}, []) == []
