"""What a failure means, decided once; how long to wait; how many re-dials the process can afford.

Exceptions carry facts, ``classify`` takes the decision, and breaker, routing, metrics and logs read its verdict (learned from
pingora's ``pingora-error`` and linkerd2-proxy's ``http/classify``). Back-off and stopping are tenacity's; this module supplies
the numbers. Pure: no asyncio.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from router.errors import (
    ConnectFailed,
    ErrorEvent,
    HandshakeRejected,
    ProtocolViolation,
    UpstreamClosed,
    UpstreamError,
    UpstreamTimeout,
)
from router.providers.base import ErrorKind

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_JITTER: Final = 0.5


class Outcome(StrEnum):
    """How an attempt ended; the metric's label."""

    READY = "ready"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    ERROR_EVENT = "error_event"
    EARLY_CLOSE = "early_close"
    PROTOCOL = "protocol"
    RATE_LIMITED = "rate_limited"
    AUTHENTICATION = "authentication"
    CLIENT_REQUEST = "client_request"
    CLIENT_GONE = "client_gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from a failed attempt.

    Attributes:
        outcome: the class of the failure.
        blames: it counts against the deployment in the breaker.
        transient: dialling the same deployment again in this session may help.
        retry_after_s: seconds the deployment asked to be left alone; ``None``: it did not say.
    """

    outcome: Outcome
    blames: bool
    transient: bool
    retry_after_s: float | None = None


# Words that are about the deployment's key or account whatever the client sent.
_ABOUT_THE_ACCOUNT: Final = frozenset(
    {
        "account_deactivated",
        "billing_hard_limit_reached",
        "credit_balance_exhausted",
        "insufficient_quota",
        "invalid_api_key",
    }
)
# Statuses by which an upstream says that the key, the account or the access is wrong, not the moment.
_AUTHENTICATION_STATUSES: Final = frozenset({401, 402, 403})


def classify(
    error: UpstreamError,
    *,
    kind_of: Callable[..., ErrorKind],
    forwarded: Collection[str] = (),
) -> Verdict:
    """Decide what a failed attempt means (DESIGN §3.5).

    Args:
        error: what was seen.
        kind_of: what the provider's error table says of ``error.code``, ``error.type`` or a close reason.
        forwarded: names of the query parameters and headers that were forwarded from the client. A 400 that is about one of
            them is the client's; any other refusal that they could have provoked moves on and blames nobody, or one client could
            eject a deployment for all.
    """
    if forwarded and (verdict := _provoked(error, kind_of, {name.lower() for name in forwarded})) is not None:
        return verdict
    if isinstance(error, ConnectFailed):
        return Verdict(outcome=Outcome.UNREACHABLE, blames=True, transient=True)
    if isinstance(error, UpstreamTimeout):
        return Verdict(outcome=Outcome.TIMEOUT, blames=True, transient=True)
    if isinstance(error, ProtocolViolation):
        return Verdict(outcome=Outcome.PROTOCOL, blames=True, transient=True)
    if isinstance(error, HandshakeRejected):
        return _rejected(error, kind_of)
    if isinstance(error, ErrorEvent):
        return _by_kind(kind_of(error.error_code, error.error_kind), Outcome.ERROR_EVENT, error.retry_after_s)
    if isinstance(error, UpstreamClosed):
        return _by_kind(kind_of(error.reason), Outcome.EARLY_CLOSE, error.retry_after_s)
    return Verdict(outcome=Outcome.UNREACHABLE, blames=True, transient=True)


def _provoked(error: UpstreamError, kind_of: Callable[..., ErrorKind], forwarded: Collection[str]) -> Verdict | None:
    """The verdict on a refusal that what the client sent may have provoked; ``None`` when it cannot have."""
    if isinstance(error, HandshakeRejected):
        words, outcome = [error.error_code], Outcome.REFUSED
        if error.status == 400 and error.mentions & set(forwarded):
            return Verdict(outcome=Outcome.CLIENT_REQUEST, blames=False, transient=False)
        # 401 is about the key, 429 about the rate, whatever was asked.
        possible = 400 <= error.status < 500 and error.status not in (401, 429)
    elif isinstance(error, ErrorEvent):
        words, outcome = [error.error_code, error.error_kind], Outcome.ERROR_EVENT
        possible = error.error_kind == "invalid_request_error" or error.param.lower() in forwarded
    elif isinstance(error, UpstreamClosed):
        # ``invalid_request_error.invalid_api_key`` counts by what follows its last dot.
        words, outcome = [error.reason.rpartition(".")[2]], Outcome.EARLY_CLOSE
        possible = error.upstream_code in _CLIENTS_FAULT_CODES or error.upstream_code >= 3000
    else:
        return None
    known = _ABOUT_THE_ACCOUNT.intersection(words) or kind_of(*words) is ErrorKind.RATE_LIMITED
    return Verdict(outcome=outcome, blames=False, transient=False) if possible and not known else None


def _rejected(error: HandshakeRejected, kind_of: Callable[..., ErrorKind]) -> Verdict:
    kind = kind_of(error.error_code)
    # A quota error comes as 429 as well, and waiting does not mend it; so the body's word goes first.
    if kind is ErrorKind.AUTHENTICATION or error.status in _AUTHENTICATION_STATUSES:
        return _by_kind(ErrorKind.AUTHENTICATION, Outcome.REFUSED, error.retry_after_s)
    if kind is ErrorKind.RATE_LIMITED or error.status == 429:
        return _by_kind(ErrorKind.RATE_LIMITED, Outcome.REFUSED, error.retry_after_s)
    return Verdict(outcome=Outcome.REFUSED, blames=True, transient=True, retry_after_s=error.retry_after_s)


def _by_kind(kind: ErrorKind, otherwise: Outcome, retry_after_s: float | None) -> Verdict:
    if kind is ErrorKind.AUTHENTICATION:
        return Verdict(outcome=Outcome.AUTHENTICATION, blames=True, transient=False)
    if kind is ErrorKind.RATE_LIMITED:
        return Verdict(outcome=Outcome.RATE_LIMITED, blames=False, transient=False, retry_after_s=retry_after_s)
    return Verdict(outcome=otherwise, blames=True, transient=True, retry_after_s=retry_after_s)


# Codes by which an upstream answers what the client sent (RFC 6455 §7.4.1: protocol, data, policy, size), besides a normal end.
_CLIENTS_FAULT_CODES: Final = frozenset({1000, 1002, 1003, 1005, 1007, 1008, 1009, 1010})


def abnormal_end(*, by_upstream: bool, cause: str, code: int, client_spoke: bool) -> bool:
    """Whether the end of a session that was ready speaks against its upstream.

    A hostile client can provoke a close for a bad message, so codes that may answer one blame nobody: else three clients could
    eject a deployment for everyone. The providers' own codes (3000 to 4999) are such once the client has said anything.
    """
    if not by_upstream:
        return False
    if cause != "close":
        return True
    return code not in _CLIENTS_FAULT_CODES and not (code >= 3000 and client_spoke)


def backoff_s(redial: int, rng: random.Random) -> float:
    """Seconds before the ``redial``-th pass of re-dials (from 0): 0.2 s × 2^n ± 50 %."""
    # The exponent is bounded: 2^20 × 0.2 s is two days already.
    return float(BACKOFF_FIRST_S * 2 ** min(redial, 20) * (1 + BACKOFF_JITTER * (2 * rng.random() - 1)))


class RetryBudget:
    """How many re-dials the whole process may make, as a share of the sessions that start.

    Without it, an outage multiplies the load on what is left of the providers. A token bucket: each session deposits ``ratio``,
    time deposits ``min_per_s`` a second, each re-dial takes 1; at most ten seconds' worth is kept. Learned from tower's
    ``retry/budget`` (Finagle's ``RetryBudget``).

    Args:
        ratio: re-dials a session start earns.
        min_per_s: re-dials a second that are always affordable.
        clock: monotonic seconds.
    """

    KEPT_S: Final = 10.0

    def __init__(self, *, ratio: float, min_per_s: float, clock: Callable[[], float]) -> None:
        self._ratio = ratio
        self._min_per_s = min_per_s
        self._clock = clock
        self._earned = 0.0  # by sessions
        self._base = min_per_s  # by time
        self._at = clock()

    def configure(self, *, ratio: float, min_per_s: float) -> None:
        """Go on by other rates, with what is in it."""
        self._settle()
        self._ratio = ratio
        self._min_per_s = min_per_s

    def deposit(self) -> None:
        """A session starts."""
        self._settle()
        self._earned += self._ratio

    def withdraw(self) -> bool:
        """Take the price of one re-dial; ``False``: it cannot be afforded."""
        self._settle()
        if self._base >= 1:
            self._base -= 1
            return True
        if self._earned >= 1:
            self._earned -= 1
            return True
        return False

    def _settle(self) -> None:
        now = self._clock()
        elapsed_s = max(0.0, now - self._at)
        self._at = now
        # At least one re-dial can be saved up, or a small rate would never allow any.
        self._base = min(max(1.0, self._min_per_s), self._base + elapsed_s * self._min_per_s)
        # What sessions earned fades over KEPT_S, so that a quiet hour's savings do not fuel a storm.
        self._earned *= max(0.0, 1 - elapsed_s / self.KEPT_S)


def parse_retry_after(headers: Mapping[str, str], *, epoch_s: float) -> float | None:
    """Read how long an upstream asks to be left alone.

    Args:
        headers: of its answer; looked up by ``retry-after-ms`` (Azure, OpenAI) and ``Retry-After`` (RFC 9110 §10.2.3).
        epoch_s: the time now, for a date.

    Returns: seconds, not capped; ``None`` when it does not say or cannot be read.
    """
    milliseconds = headers.get("retry-after-ms")
    if milliseconds is not None and (value := _number(milliseconds)) is not None:
        return value / 1000
    text = headers.get("Retry-After")
    if text is None:
        return None
    if (value := _number(text)) is not None:
        return value
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - epoch_s)
    except (ValueError, OverflowError, TypeError):
        return None


def _number(text: str) -> float | None:
    text = text.strip()
    # ``float`` alone would take "nan", "1_0" and a megabyte of digits.
    if len(text) > 20 or not text.replace(".", "", 1).isdecimal() or not text.isascii():
        return None
    return float(text)
