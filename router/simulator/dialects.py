"""A dialect as HTTP sees it: which paths it serves, what their queries mean, and where a key may stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from router.simulator.shapes import BETA, GA, XAI, Shape

DialectName = Literal["openai", "openai-beta", "azure", "xai", "echo"]

BETA_PROTOCOL = "openai-beta.realtime-v1"
_KEY_PROTOCOLS = ("openai-insecure-api-key.", "xai-client-secret.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One kind of provider.

    Attributes:
        session_cap_s: longest session, seconds.
        usage: where ``response.done`` has its usage.
        base_path: what ``api_base`` needs behind the host.
        refuses_beta: the retired ``OpenAI-Beta: realtime=v1`` ends a session at once.
    """

    name: DialectName
    session_cap_s: float
    usage: Literal["response", "beside", "none"] = "response"
    base_path: str = "/v1"
    refuses_beta: bool = False


DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            Dialect(name="openai", session_cap_s=3600, refuses_beta=True),
            Dialect(name="openai-beta", session_cap_s=1800),
            Dialect(name="azure", session_cap_s=1800, base_path=""),
            Dialect(name="xai", session_cap_s=7200, usage="beside"),
            Dialect(name="echo", session_cap_s=86_400),
        )
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A request that opens a session.

    Attributes:
        model: ``None`` for a transcription session.
        conversation_id: a conversation to go on with (xAI).
    """

    shape: Shape
    model: str | None
    transcription: bool = False
    conversation_id: str | None = None


class RouteError(Exception):
    """A request that opens none: an HTTP status, and ``code`` and message of its JSON body."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def find_route(dialect: Dialect, path: str, query: Mapping[str, str], *, own_path: str | None = None) -> Route:
    """Return what a request asks for.

    Args:
        dialect: of the simulator.
        path: of the request.
        query: of the request, the first value of each name.
        own_path: serve this path instead of the dialect's.

    Raises:
        RouteError: not a path of this dialect, or a query that asks for nothing.
    """
    if dialect.name == "azure":
        return _azure(path, query, own_path)
    served = path == own_path if own_path is not None else path.endswith("/v1/realtime")
    if not served:
        raise RouteError(404, "not_found", f"Invalid URL (GET {path}): expected {own_path or '…/v1/realtime'}.")
    model = query.get("model")
    if dialect.name == "xai":
        return Route(shape=XAI, model=model or "grok-voice-latest", conversation_id=query.get("conversation_id"))
    return _openai(GA if dialect.name == "openai" else BETA, query, model)


def _openai(shape: Shape, query: Mapping[str, str], model: str | None) -> Route:
    if "call_id" in query:
        raise RouteError(400, "invalid_parameter", "Invalid 'call_id': there are no calls on this server.")
    intent = query.get("intent", "realtime")
    if intent not in ("realtime", "transcription"):
        raise RouteError(400, "invalid_value", "Invalid 'intent': expected realtime or transcription.")
    if intent == "transcription":
        if shape is GA and model is not None:
            raise RouteError(400, "invalid_parameter", "Found both 'model' and 'intent=transcription': expected one of them.")
        return Route(shape=shape, model=None, transcription=True)
    if not model:
        raise RouteError(400, "missing_required_parameter", "Missing required parameter: 'model'.")
    return Route(shape=shape, model=model)


def _azure(path: str, query: Mapping[str, str], own_path: str | None) -> Route:
    if path.endswith("/openai/v1/realtime") or path == own_path:
        return _openai(GA, query, query.get("model"))
    if not path.endswith("/openai/realtime"):
        raise RouteError(404, "not_found", f"Resource not found: {path}.")
    if not query.get("api-version"):
        raise RouteError(400, "missing_required_parameter", "Missing required query parameter: 'api-version'.")
    if not query.get("deployment"):
        raise RouteError(400, "missing_required_parameter", "Missing required query parameter: 'deployment'.")
    return Route(shape=BETA, model=query["deployment"])


def offered_keys(dialect: Dialect, headers: Mapping[str, str], query: Mapping[str, str], protocols: list[str]) -> list[str]:
    """Return every key that a request carries, in the places where this dialect reads one."""
    keys: list[str] = []
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        keys.append(token.strip())
    if dialect.name == "azure":
        keys.extend(value for value in (headers.get("api-key"), query.get("api-key")) if value)
    for protocol in protocols:
        keys.extend(protocol.removeprefix(prefix) for prefix in _KEY_PROTOCOLS if protocol.startswith(prefix))
    return keys
