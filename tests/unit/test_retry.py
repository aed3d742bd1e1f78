"""What a failure means, and how many re-dials are affordable."""

from __future__ import annotations

import random
from functools import partial

import pytest

from router.errors import (
    ConnectFailed,
    ErrorEvent,
    HandshakeRejected,
    ProtocolViolation,
    UpstreamClosed,
    UpstreamError,
    UpstreamTimeout,
)
from router.providers import PROVIDERS, error_kind
from router.retry import (
    BACKOFF_FIRST_S,
    Outcome,
    RetryBudget,
    Verdict,
    abnormal_end,
    backoff_s,
    classify,
    parse_retry_after,
)
from tests.helpers.clock import ManualClock

OPENAI = partial(error_kind, PROVIDERS["openai"])
KEY = Verdict(outcome=Outcome.AUTHENTICATION, blames=True, transient=False)


def verdict_of(error: UpstreamError, *forwarded: str) -> Verdict:
    """Classify for the provider ``openai``."""
    return classify(error, kind_of=OPENAI, forwarded=forwarded)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectFailed("refused"), Outcome.UNREACHABLE),
        (UpstreamTimeout("dial", 2), Outcome.TIMEOUT),
        (UpstreamTimeout("upgrade", 2), Outcome.TIMEOUT),
        (UpstreamTimeout("first_event", 3), Outcome.TIMEOUT),
        (HandshakeRejected(500), Outcome.REFUSED),
        (HandshakeRejected(503), Outcome.REFUSED),
        (HandshakeRejected(404), Outcome.REFUSED),
        (HandshakeRejected(302), Outcome.REFUSED),
        (HandshakeRejected(200), Outcome.REFUSED),
        (HandshakeRejected(0), Outcome.REFUSED),
        (HandshakeRejected(101, detail="wrong Sec-WebSocket-Accept"), Outcome.REFUSED),
        (HandshakeRejected(400), Outcome.REFUSED),
        (ErrorEvent(error_code="server_error", error_kind="server_error"), Outcome.ERROR_EVENT),
        (ErrorEvent(error_code="", error_kind=""), Outcome.ERROR_EVENT),
        (UpstreamClosed(1000), Outcome.EARLY_CLOSE),
        (UpstreamClosed(1006), Outcome.EARLY_CLOSE),
        (UpstreamClosed(1011, "internal"), Outcome.EARLY_CLOSE),
        (ProtocolViolation("reserved bits"), Outcome.PROTOCOL),
    ],
)
def test_ordinary_failures_are_blamed_and_tried_again(error: UpstreamError, outcome: Outcome) -> None:
    """Whatever is neither a limit nor a key counts in the breaker and may pass."""
    assert verdict_of(error) == Verdict(outcome=outcome, blames=True, transient=True)


@pytest.mark.parametrize(
    "error",
    [
        HandshakeRejected(401),
        HandshakeRejected(402),
        HandshakeRejected(403),
        HandshakeRejected(429, error_code="insufficient_quota", retry_after_s=1),
        HandshakeRejected(400, error_code="invalid_api_key"),
        HandshakeRejected(404, error_code="model_not_found"),
        ErrorEvent(error_code="invalid_api_key", error_kind="invalid_request_error"),
        ErrorEvent(error_code="insufficient_quota", error_kind="insufficient_quota"),
        ErrorEvent(error_code="", error_kind="insufficient_quota"),
        ErrorEvent(error_code="beta_api_shape_disabled", error_kind="invalid_request_error"),
        UpstreamClosed(3000, "invalid_request_error.invalid_api_key"),
    ],
)
def test_keys_and_quota_need_an_operator(error: UpstreamError) -> None:
    """Also as a 429 and as the reason of a close: waiting does not mend them, so they are not dialled again."""
    assert verdict_of(error) == KEY


def test_rate_limiting_is_no_outage() -> None:
    """Nobody is blamed, and the wait that was asked for is kept, uncapped."""
    expected = Verdict(outcome=Outcome.RATE_LIMITED, blames=False, transient=False, retry_after_s=7.0)
    assert verdict_of(HandshakeRejected(429, retry_after_s=7.0)) == expected
    assert verdict_of(HandshakeRejected(503, error_code="rate_limit_exceeded", retry_after_s=7.0)) == expected
    event = ErrorEvent(error_code="rate_limit_exceeded", error_kind="requests")
    assert verdict_of(event) == Verdict(outcome=Outcome.RATE_LIMITED, blames=False, transient=False)


def test_a_400_about_something_forwarded_is_the_clients() -> None:
    """The upstream names the parameter, and the client sent it: every deployment would say the same."""
    mentions = frozenset({"invalid", "conversation_id"})
    verdict = verdict_of(HandshakeRejected(400, mentions=mentions), "conversation_id")
    assert verdict == Verdict(outcome=Outcome.CLIENT_REQUEST, blames=False, transient=False)
    header = HandshakeRejected(400, mentions=frozenset({"openai-safety-identifier"}))
    assert verdict_of(header, "OpenAI-Safety-Identifier").outcome is Outcome.CLIENT_REQUEST


PROVOKED = [
    HandshakeRejected(400),
    HandshakeRejected(400, mentions=frozenset({"invalid", "model"})),
    HandshakeRejected(403),
    HandshakeRejected(404, error_code="conversation_not_found"),
    HandshakeRejected(404, error_code="model_not_found"),
    HandshakeRejected(414),
    HandshakeRejected(431),
    ErrorEvent(error_code="model_not_found", error_kind="invalid_request_error"),
    ErrorEvent(error_code="invalid_value", error_kind="server_error", param="conversation_id"),
    UpstreamClosed(1000),
    UpstreamClosed(1008, "no such conversation"),
    UpstreamClosed(4004, "invalid_request_error.conversation_not_found"),
]


@pytest.mark.parametrize("error", PROVOKED)
def test_what_a_client_may_have_provoked_moves_on_and_blames_nobody(error: UpstreamError) -> None:
    """Such a refusal may be the client's doing or a broken deployment's.

    Were it the client's, one broken gateway would end every session that forwards something while the next deployment works;
    were it blamed, one client could eject a deployment for everyone.
    """
    verdict = verdict_of(error, "conversation_id")
    assert (verdict.blames, verdict.transient) == (False, False)
    assert verdict.outcome in (Outcome.REFUSED, Outcome.ERROR_EVENT, Outcome.EARLY_CLOSE)
    assert verdict_of(error).blames


@pytest.mark.parametrize(
    "error",
    [
        HandshakeRejected(401),
        HandshakeRejected(403, error_code="invalid_api_key"),
        ErrorEvent(error_code="insufficient_quota", error_kind="invalid_request_error"),
        HandshakeRejected(429),
        HandshakeRejected(503),
        ErrorEvent(error_code="server_error", error_kind="server_error"),
        UpstreamClosed(3000, "invalid_request_error.invalid_api_key"),
        UpstreamClosed(4000, "rate_limit_exceeded"),
        UpstreamClosed(1006),
        UpstreamClosed(1011),
        ConnectFailed("refused"),
    ],
)
def test_what_no_client_can_provoke_counts_whatever_was_forwarded(error: UpstreamError) -> None:
    """A forwarded parameter is no excuse for a bad key, a limit or an outage."""
    assert verdict_of(error, "intent") == verdict_of(error)


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1005, 1007, 1008, 1009, 1010])
def test_closes_that_a_client_can_provoke_blame_nobody(code: int) -> None:
    """Else three bad messages of one client would eject a deployment for everyone."""
    assert not abnormal_end(by_upstream=True, cause="close", code=code, client_spoke=True)
    assert not abnormal_end(by_upstream=True, cause="close", code=code, client_spoke=False)


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 1013, 3000, 4000])
def test_other_closes_of_the_upstream_are_abnormal(code: int) -> None:
    """They tell of the upstream's own troubles; the same code from the client's side does not."""
    assert abnormal_end(by_upstream=True, cause="close", code=code, client_spoke=False)
    assert abnormal_end(by_upstream=True, cause="close", code=code, client_spoke=True) is (code < 3000)
    assert not abnormal_end(by_upstream=False, cause="close", code=code, client_spoke=False)


def test_a_lost_upstream_is_abnormal_whatever_the_code() -> None:
    """A connection that ends without a CLOSE is never in order."""
    assert abnormal_end(by_upstream=True, cause="lost", code=1000, client_spoke=True)


def test_back_off_doubles_within_its_jitter() -> None:
    """0.2 s × 2^n ± 50 %, and no overflow however often."""
    rng = random.Random(3)
    for redial in range(8):
        samples = [backoff_s(redial, rng) for _ in range(200)]
        middle = BACKOFF_FIRST_S * 2**redial
        assert middle * 0.5 <= min(samples) < middle * 0.6 and middle * 1.4 < max(samples) <= middle * 1.5
    assert backoff_s(100_000, rng) > 0


def test_the_budget_allows_its_minimum_and_then_its_rate() -> None:
    """Three at once, then three a second, whatever the traffic."""
    clock = ManualClock()
    budget = RetryBudget(ratio=0.2, min_per_s=3.0, clock=clock)
    assert [budget.withdraw() for _ in range(5)] == [True, True, True, False, False]
    clock.advance(1.0)
    assert sum(budget.withdraw() for _ in range(10)) == 3
    clock.advance(3600.0)
    assert sum(budget.withdraw() for _ in range(10)) == 3, "a quiet hour must not be saved up for a storm"


def test_sessions_earn_their_share() -> None:
    """A hundred starts pay for twenty re-dials, beside the minimum."""
    clock = ManualClock()
    budget = RetryBudget(ratio=0.2, min_per_s=3.0, clock=clock)
    for _ in range(100):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(100)) in (22, 23)


def test_what_sessions_earned_fades() -> None:
    """Ten seconds later nothing of it is left."""
    clock = ManualClock()
    budget = RetryBudget(ratio=1.0, min_per_s=0.0, clock=clock)
    for _ in range(100):
        budget.deposit()
    clock.advance(RetryBudget.KEPT_S)
    budget.withdraw()  # the minimum that is always kept
    assert not budget.withdraw()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 7.5 "}, 7.5),
        ({"Retry-After": "0"}, 0.0),
        ({"retry-after-ms": "1500", "Retry-After": "60"}, 1.5),
        ({"retry-after-ms": "soon", "Retry-After": "60"}, 60.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:10 GMT"}, 10.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:27:50 GMT"}, 0.0),
        ({}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "1_0"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "9" * 400}, None),
        ({"Retry-After": "٣"}, None),
        ({"Retry-After": "Wed, 99 Foo 2015 99:99:99 GMT"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, a date, milliseconds; what cannot be read counts as nothing."""
    assert parse_retry_after(headers, epoch_s=1445412480.0) == seconds
