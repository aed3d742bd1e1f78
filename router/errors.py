"""The exception tree: exceptions carry facts, ``retry.classify`` decides what they mean.

    RouterError                     http_status, close_code, code (fixed set: also the metric label)
    ├── ConfigError                 problems: every fault of a file at once
    ├── ClientError                 the request is at fault
    │   ├── BadHandshake            400
    │   ├── AuthenticationFailed    401
    │   ├── PermissionDenied        403
    │   ├── UnknownModel            404
    │   ├── UpgradeRequired         426
    │   └── TooManyLogins           429  wrong keys at the dashboard, one after the other
    ├── Unavailable                 the router has nothing to offer, now
    │   ├── RateLimited             429  all that is left is rate limited or full
    │   │   └── KeyLimitReached     429  the key's own limit of sessions
    │   ├── NoDeploymentAvailable   503  nothing is left
    │   ├── Overloaded              503  the router's own limits
    │   ├── ShuttingDown            503  the process is about to end
    │   ├── EndedByOperator         503  an operator ended the session while it looked for a deployment
    │   └── TimedOut                504  the session's budget ran out
    └── UpstreamError               one attempt failed; never shown to a client
        ├── ConnectFailed           no TCP or TLS connection, or no proxy
        ├── HandshakeRejected       an HTTP answer other than 101
        ├── UpstreamTimeout         silence in a phase
        ├── ErrorEvent              an ``error`` event before the first good event
        ├── UpstreamClosed          the socket ended before the first good event
        └── ProtocolViolation       bytes that are not legal WebSocket or not an event

``public_message`` is the router's own wording and the only text of an exception that a client may see: no address, no key,
no words of an upstream. ``str(exc)`` is for the operator's log; it holds no secret either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

# One dial's stages, in order: TCP and TLS and the upgrade; then the wait for the first good event.
Phase = Literal["dial", "upgrade", "first_event"]


class RouterError(Exception):
    """Base of all the router's own exceptions.

    Attributes:
        http_status: answer to a program whose upgrade has not been accepted.
        close_code: WebSocket close code for a client that was accepted only to be told (RFC 6455 §7.4).
        error_type: OpenAI's ``error.type``.
        code: OpenAI's ``error.code``; one of a fixed set, so it can be a metric label.
        recorded: a session record already tells of it.
    """

    http_status: ClassVar[int] = 500
    close_code: ClassVar[int] = 1011
    error_type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message or self.public_message)
        self.retry_after_s = retry_after_s
        self.recorded = False

    @property
    def public_message(self) -> str:
        """What a client may read; the same for every instance unless a subclass says otherwise."""
        return "The router failed to serve this request."


# --- configuration -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault (or warning) of a configuration file.

    Attributes:
        file: path as the operator gave it.
        line: 1-based line, or ``None`` where no line applies.
        path: place in the document, such as ``model_list[2].litellm_params.weight``.
        found: what stands there, shortened; never the value of a secret.
        expected: what would have been right.
        hint: the nearest known key or another way out; empty when there is none.
    """

    file: str
    line: int | None
    path: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        text = f"{place}: {self.path or '(document)'}: found {self.found}, expected {self.expected}"
        return f"{text} ({self.hint})" if self.hint else text


class ConfigError(RouterError):
    """A configuration that cannot be used, with every problem found in it."""

    code = "invalid_configuration"

    def __init__(
        self, problems: Sequence[Problem], *, warnings: Sequence[Problem] = (), files: Sequence[str] = ()
    ) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)  # what else was noticed; often the reason of a problem, such as a skipped entry
        self.files = tuple(files)  # absolute names of the other files that it names: what they hold may be the problem
        super().__init__("\n".join(str(problem) for problem in self.problems))


# --- the client's fault --------------------------------------------------------------------------


class ClientError(RouterError):
    """The request cannot be served as it was made; retrying it unchanged is of no use."""

    http_status = 400
    close_code = 1008
    error_type = "invalid_request_error"
    code = "invalid_request"

    def __init__(self, message: str) -> None:
        self._message = message
        super().__init__(message)

    @property
    def public_message(self) -> str:
        """The message is written by the router from facts of the request alone."""
        return self._message


class BadHandshake(ClientError):
    """Not a well-formed WebSocket upgrade, or a query that contradicts itself."""


class AuthenticationFailed(ClientError):
    """No key, or one that is not known, or one that has expired."""

    http_status = 401
    code = "invalid_api_key"


class PermissionDenied(ClientError):
    """The key or the origin is known and not allowed to do this."""

    http_status = 403
    error_type = "permission_error"
    code = "permission_denied"


class UnknownModel(ClientError):
    """No group goes by the name that was asked for."""

    http_status = 404
    code = "model_not_found"


class UpgradeRequired(ClientError):
    """A plain HTTP request on a WebSocket path (RFC 9110 §15.5.22)."""

    http_status = 426
    code = "upgrade_required"


class TooManyLogins(ClientError):
    """Too many wrong keys came from one address."""

    http_status = 429
    error_type = "rate_limit_error"
    code = "too_many_logins"

    def __init__(self, *, retry_after_s: float) -> None:
        super().__init__("Too many wrong keys came from this address. Try again later.")
        self.retry_after_s = retry_after_s


# --- the router has nothing to offer -------------------------------------------------------------


class Unavailable(RouterError):
    """The request was fine and can succeed later."""

    http_status = 503
    close_code = 1013
    code = "unavailable"


class RateLimited(Unavailable):
    """All deployments in reach are rate limited or full."""

    http_status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"

    @property
    def public_message(self) -> str:
        return "All deployments of this model are at their limit. Try again later."


class KeyLimitReached(RateLimited):
    """The key holds as many sessions as it may."""

    @property
    def public_message(self) -> str:
        return "This API key has reached its limit of sessions. Try again when one of them has ended."


class NoDeploymentAvailable(Unavailable):
    """No deployment in reach could serve the session."""

    code = "no_deployment_available"

    @property
    def public_message(self) -> str:
        return "No deployment of this model is available at the moment. Try again later."


class Overloaded(Unavailable):
    """The process is at its own limit of sessions or of handshakes under way."""

    code = "router_overloaded"

    @property
    def public_message(self) -> str:
        return "The router is at its session limit. Try again later."


class ShuttingDown(Unavailable):
    """The process is ending and takes no new sessions."""

    code = "router_shutting_down"

    @property
    def public_message(self) -> str:
        return "The router is shutting down. Try again."


class EndedByOperator(Unavailable):
    """An operator ended the session before a deployment was ready."""

    code = "ended_by_operator"

    @property
    def public_message(self) -> str:
        return "The session was ended by the router's operator."


class TimedOut(Unavailable):
    """``total_timeout_s`` passed before a deployment was ready."""

    http_status = 504
    code = "timeout"

    @property
    def public_message(self) -> str:
        return "No deployment of this model became ready in time. Try again later."


# --- one attempt failed --------------------------------------------------------------------------


class UpstreamError(RouterError):
    """One attempt on one deployment failed.

    Attributes:
        phase: how far the attempt had come.
        retry_after_s: seconds the upstream asked to be left alone, uncapped, or ``None``.
    """

    http_status = 502
    code = "upstream_error"

    def __init__(self, message: str, *, phase: Phase, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.phase: Phase = phase


class ConnectFailed(UpstreamError):
    """No connection: name resolution, TCP, TLS, or the way through an HTTP proxy."""

    def __init__(self, message: str) -> None:
        super().__init__(message, phase="dial")


class HandshakeRejected(UpstreamError):
    """The upstream answered the upgrade with another HTTP status than 101, or with an illegal 101.

    Attributes:
        status: HTTP status of the answer; 0: there was none.
        error_code: ``error.code`` or ``error.type`` of a JSON body, where there was one.
        mentions: lower-case words of the body that could be names of parameters; empty when there was no readable body.
    """

    def __init__(
        self,
        status: int,
        *,
        error_code: str = "",
        retry_after_s: float | None = None,
        detail: str = "",
        mentions: frozenset[str] = frozenset(),
    ) -> None:
        # 0: there was no legal answer at all; the detail says what there was.
        text = f"upgrade answered with HTTP {status}" if status else "upgrade failed"
        if error_code:
            text += f" ({error_code})"
        if detail:
            text += f": {detail}"
        super().__init__(text, phase="upgrade", retry_after_s=retry_after_s)
        self.status = status
        self.error_code = error_code
        self.mentions = mentions


class UpstreamTimeout(UpstreamError):
    """The upstream was silent for longer than the phase allows."""

    def __init__(self, phase: Phase, limit_s: float) -> None:
        super().__init__(f"no answer within {limit_s:g} s", phase=phase)
        self.limit_s = limit_s


class ErrorEvent(UpstreamError):
    """The upstream said 101 and then ``error``.

    Attributes:
        error_code: ``error.code``, may be empty.
        error_kind: ``error.type``, may be empty.
        param: ``error.param``, may be empty.
    """

    def __init__(
        self, *, error_code: str, error_kind: str, param: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(
            f"error event before ready (code {error_code or 'none'}, type {error_kind or 'none'})",
            phase="first_event",
            retry_after_s=retry_after_s,
        )
        self.error_code = error_code
        self.error_kind = error_kind
        self.param = param


class UpstreamClosed(UpstreamError):
    """The connection ended before the first good event.

    Attributes:
        upstream_code: close code, 1006 when there was no close frame (RFC 6455 §7.1.5).
        reason: the close frame's reason, may be empty.
    """

    def __init__(self, upstream_code: int, reason: str = "") -> None:
        super().__init__(f"closed with {upstream_code} before ready", phase="first_event")
        self.upstream_code = upstream_code
        self.reason = reason


class ProtocolViolation(UpstreamError):
    """Bytes that are not legal WebSocket (RFC 6455), or a first message that is not an event."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"protocol violation: {detail}", phase="first_event")
