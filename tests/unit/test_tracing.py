"""Spans of events: what is in them, when they begin and end, and what cannot spoil them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, Sampler

from router import events, tracing
from router.tracing import MAX_TURNS, REFUSALS_PER_S, TROUBLE_INTERVAL_S, SpanObserver
from router.usage import Usage
from tests.helpers.clock import ManualClock

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
SECRET = "sk-" + "a" * 40
SECOND = 1_000_000_000


class Traced:
    """An observer with what it made."""

    def __init__(self, *, sampler: Sampler = DEFAULT_ON, joins: bool = True) -> None:
        self.clock = ManualClock()
        self.wall_ns = 1_700_000_000 * SECOND
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        tracer = self._provider.get_tracer("router")
        self.it = SpanObserver(tracer, joins=joins, clock=self.clock, wall_ns=lambda: self.wall_ns)

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended; every one of them can be sent."""
        spans = list(self._exporter.get_finished_spans())
        encode_spans(spans).SerializeToString()
        return spans

    def pass_time(self, seconds: float) -> None:
        """On both clocks."""
        self.clock.advance(seconds)
        self.wall_ns += int(seconds * SECOND)

    def started(self, session: str = "s", **more: Any) -> None:
        """A session begins."""
        self.it(events.SessionStarted(session=session, group="voice", principal="p", client="192.0.2.1", **more))

    def attempt(self, outcome: str = "ready", *, session: str = "s", seconds: float = 0.0, **more: Any) -> None:
        """An attempt ends."""
        self.it(attempt_of(outcome, session=session, seconds=seconds, **more))

    def ended(self, **more: Any) -> None:
        """The session ends."""
        self.it(record(**more))

    def turn(self, *, session: str = "s", **turn: Any) -> None:
        """A turn ends."""
        names = {"deployment": "d", "group": "voice", "provider": "azure", "model": "m"}
        self.it(events.TurnEnded(session=session, **names, turn=events.Turn(**{"seconds": 0.0, "status": "completed", **turn})))

    def refused(self, **more: Any) -> None:
        """A request is refused."""
        self.it(events.SessionRefused(**{"session": "r", "status": 401, "code": "c", "detail": "", "client": "", **more}))


def attempt_of(outcome: str = "ready", *, session: str = "s", seconds: float = 0.0, **more: Any) -> events.Attempt:
    """An attempt that has ended."""
    names = {"group": "voice", "deployment": "d", "provider": "azure", "model": "m"}
    return events.Attempt(**{"session": session, "outcome": outcome, "seconds": seconds, **names, **more})


def record(**more: Any) -> events.SessionRecord:
    """A session that was served, and closed by its client."""
    facts: dict[str, Any] = {
        "session": "s",
        "group": "voice",
        "principal": "p",
        "client": "192.0.2.1",
        "deployment": "d",
        "attempts": (attempt_of(),),
        "passed_over": (),
        "who": "client",
        "cause": "close",
        "phase": "idle",
        "status": 101,
        "client_code": 1000,
        "upstream_code": 1000,
        "upstream_reason": "",
        "seconds": 1.0,
        "ready_s": 0.1,
        "client_bytes": 1,
        "upstream_bytes": 2,
        "client_events": 3,
        "upstream_events": 4,
        "turns": 5,
        "first_audio_s": None,
        "usage": Usage(),
        "generation": 1,
    }
    return events.SessionRecord(**{**facts, **more})


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """A span's."""
    return dict(span.attributes or {})


def parent_of(span: ReadableSpan) -> int | None:
    """The id of a span's parent."""
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    """A span's id."""
    assert span.context is not None
    return int(span.context.span_id)


def test_attempts_end_before_their_session() -> None:
    """An attempt's span is made when the attempt has ended, with the time at which it began."""
    traced = Traced()
    traced.started()
    began = traced.wall_ns
    traced.pass_time(2.0)
    traced.attempt("timeout", seconds=1.5, detail="no event in 1.5 s")
    (attempt,) = traced.spans
    assert (attempt.start_time, attempt.end_time) == (began + SECOND // 2, began + 2 * SECOND)
    assert (attempt.status.is_ok, attempt.status.description) == (False, "no event in 1.5 s")
    traced.pass_time(3600.0)
    traced.ended()
    attempt, session = traced.spans
    assert (session.start_time, session.end_time) == (began, began + 3602 * SECOND)
    assert parent_of(attempt) == id_of(session) and parent_of(session) is None
    assert attributes(session)["gen_ai.provider.name"] == "azure.ai.openai"


def test_a_wall_clock_that_is_set_moves_no_child() -> None:
    """All times of a trace follow from one look at the wall clock."""
    traced = Traced()
    traced.started()
    began = traced.wall_ns
    traced.clock.advance(10.0)
    traced.wall_ns -= 3600 * SECOND
    traced.turn(seconds=4.0, first_audio_s=1.0)
    traced.ended()
    turn, session = traced.spans
    assert (turn.start_time, turn.end_time, session.end_time) == (began + 6 * SECOND, began + 10 * SECOND, began + 10 * SECOND)
    assert [(event.name, event.timestamp) for event in turn.events] == [("first_audio", began + 7 * SECOND)]


def test_a_dial_that_outlives_its_session_is_in_its_trace() -> None:
    """The loser of a race ends when it does; then nothing of the session is kept any more."""
    traced = Traced()
    traced.started()
    traced.ended(attempts=(attempt_of(), attempt_of("under_way", deployment="slow", raced=True)))
    traced.pass_time(1.0)
    traced.attempt("timeout", deployment="slow", raced=True)
    traced.attempt("timeout", deployment="another")
    session, late = traced.spans
    assert parent_of(late) == id_of(session)
    assert attributes(late)["realtime_router.deployment"] == "slow" and attributes(late)["realtime_router.attempt.raced"] is True
    assert not traced.it._sessions and not traced.it._late


@pytest.mark.parametrize(
    ("outcome", "failed"), [("ready", False), ("client_gone", False), ("refused", True), ("client_request", True)]
)
def test_an_attempt_that_nobody_is_to_blame_for_is_no_error(outcome: str, failed: bool) -> None:
    """A client that hangs up is no failure of the upstream's."""
    traced = Traced()
    traced.started()
    traced.attempt(outcome)
    (attempt,) = traced.spans
    assert (not attempt.status.is_ok, attributes(attempt).get("error.type")) == (failed, outcome if failed else None)


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({}, None),
        ({"who": "upstream"}, None),
        ({"who": "upstream", "cause": "lost"}, "lost"),
        ({"who": "client", "cause": "lost"}, None),
        ({"who": "router", "cause": "no_deployment_available", "status": 503}, "no_deployment_available"),
        ({"who": "router", "cause": "rate_limited", "status": 429}, None),
        ({"who": "client", "cause": "lost", "status": 499}, None),
    ],
)
def test_a_session_is_an_error_when_its_caller_was_hurt(facts: dict[str, Any], error: str | None) -> None:
    """Nobody could serve it, or its call was lost under it."""
    traced = Traced()
    traced.started()
    traced.ended(**facts)
    (session,) = traced.spans
    assert (not session.status.is_ok, attributes(session).get("error.type")) == (error is not None, error)


def test_what_is_not_sampled_is_not_kept() -> None:
    """Nothing of it, not even of its attempts and turns."""
    traced = Traced(sampler=ALWAYS_OFF)
    traced.started(trace={"traceparent": PARENT})
    assert not traced.it._sessions
    traced.attempt()
    traced.turn()
    traced.ended(attempts=(attempt_of("under_way"),))
    traced.refused()
    assert not traced.spans and not traced.it._late


def test_turns_of_a_session_are_bounded() -> None:
    """An upstream that makes up answers does not fill the queue for ever; the session tells how many there were."""
    traced = Traced()
    traced.started()
    for _ in range(MAX_TURNS + 10):
        traced.turn()
    traced.ended(turns=MAX_TURNS + 10)
    assert len(traced.spans) == MAX_TURNS + 1
    assert attributes(traced.spans[-1])["realtime_router.turns"] == MAX_TURNS + 10


def test_a_flood_of_refusals_is_summed_up() -> None:
    """A second has so many spans; the next one tells of those left out."""
    traced = Traced()
    for _ in range(REFUSALS_PER_S + 7):
        traced.refused()
    traced.pass_time(1.0)
    traced.refused()
    traced.refused()
    left_out = [attributes(span).get("realtime_router.refusals_left_out") for span in traced.spans]
    assert left_out == [None] * REFUSALS_PER_S + [7, None]


def test_what_comes_from_outside_is_made_fit() -> None:
    """No secret, no endless text, no surrogate and no huge number gets as far as the protocol."""
    traced = Traced()
    traced.started(trace={"traceparent": PARENT, "tracestate": f"vendor={SECRET}"})
    traced.attempt("refused", detail=f"saw {SECRET} " + "x" * 5000)
    traced.turn(status="failed", response=SECRET, error="\udcff" * 300, usage=Usage(input=2**70))
    traced.ended(upstream_reason=f"Bearer {SECRET}", passed_over=(("\udcff", "full"),), usage=Usage(total=2**70))
    traced.refused(model=SECRET, client="\udcff", detail=SECRET, status=500)
    attempt, turn, session, refused = traced.spans
    assert len(attempt.status.description or "") < 400
    assert attributes(turn)["gen_ai.usage.input_tokens"] == 2**63 - 1
    for span in (attempt, turn, session, refused):
        assert span.context is not None and SECRET not in span.to_json() + str(span.context.trace_state)
    assert session.parent is not None and session.parent.trace_id == int(TRACE, 16)


def test_names_of_the_configuration_are_left_as_they_are() -> None:
    """``xai-voice-agent`` is a fine name, although it begins as a key does."""
    traced = Traced()
    traced.it(events.SessionStarted(session="s", group="xai-voice-agent", principal="rr-principal", client=""))
    traced.ended(deployment="xai-deployment")
    (session,) = traced.spans
    found = attributes(session)
    assert session.name == "realtime xai-voice-agent"
    assert found["realtime_router.group"] == found["gen_ai.request.model"] == "xai-voice-agent"
    assert (found["realtime_router.principal"], found["realtime_router.deployment"]) == ("rr-principal", "xai-deployment")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"{PARENT}-more",
    ],
)
def test_an_illegal_trace_is_none(parent: str) -> None:
    """The session is the root of a trace of its own."""
    traced = Traced()
    traced.started(trace={"traceparent": parent, "tracestate": "a=1"})
    traced.ended()
    (session,) = traced.spans
    assert session.parent is None and session.context is not None and not session.context.trace_state


def test_sessions_without_an_end_are_ended() -> None:
    """When the observer is closed, what is left is sent as far as it is known."""
    traced = Traced()
    traced.started()
    traced.pass_time(5.0)
    traced.it.close()
    (session,) = traced.spans
    assert session.end_time == traced.wall_ns and not traced.it._sessions


def test_events_of_unknown_sessions_are_nothing() -> None:
    """Those that began before there was an observer, and those that are over."""
    traced = Traced()
    traced.attempt()
    traced.turn()
    traced.ended()
    traced.it(events.SessionReady(session="s", group="voice", deployment="d", seconds=0.1, attempts=1, fallback=False))
    traced.it(events.Notice(level="info", event="anything"))
    assert not traced.spans


# --- variables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, []),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ["OTEL_TRACES_EXPORTER=zipkin"]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["OTEL_EXPORTER_OTLP_PROTOCOL=grpc"]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, []),
    ],
)
def test_unsupported_variables_are_found(environ: dict[str, str], found: list[str]) -> None:
    """The one for traces wins over the one for everything."""
    assert [problem["found"] for problem in tracing._unsupported(environ)] == found


@pytest.mark.parametrize(("value", "joins"), [("", True), ("baggage, tracecontext", True), ("none", False), ("b3", False)])
def test_traces_are_joined_where_their_propagator_is_named(value: str, joins: bool) -> None:
    """None named are the usual ones."""
    assert tracing._joins({"OTEL_PROPAGATORS": value}) is joins


def test_secrets_of_the_variables_are_known() -> None:
    """Values of headers as they stand there and as they are meant, and a password in a URL; no flag, no tenant's name."""
    environ = {
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20abcdef,x-scope=prod",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://user:pass%40word@collector/v1/traces",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://[not an address",
    }
    assert set(tracing._secrets_of(environ)) == {"Basic%20abcdef", "Basic abcdef", "pass%40word", "pass@word"}


# --- the SDK's complaints -------------------------------------------------------------------------


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """The loggers that are diverted; what they were like is looked at in the end."""
    diverted = [logging.getLogger(name) for name in ("opentelemetry", "urllib3")]
    before = [(logger.handlers[:], logger.propagate) for logger in diverted]
    yield diverted
    assert [(logger.handlers[:], logger.propagate) for logger in diverted] == before


async def test_complaints_are_one_a_minute(loggers: list[logging.Logger]) -> None:
    """Of any thread, without a traceback; what was held back is counted, and what clients sent is no complaint."""
    clock = ManualClock()
    told: list[events.Event] = []
    trouble = tracing._Trouble(events.Observers([told.append]), asyncio.get_running_loop(), clock=clock)
    trouble.serving = True
    exporter = logging.getLogger("opentelemetry.exporter.otlp")

    def complain() -> None:
        logging.getLogger("opentelemetry.trace.span").warning("a client's tracestate")
        for number in range(5):
            try:
                raise ValueError("inside")
            except ValueError:
                exporter.exception("failed %d", number)
        exporter.info("nothing")

    try:
        await asyncio.to_thread(complain)
        clock.advance(TROUBLE_INTERVAL_S)
        await asyncio.to_thread(complain)
        await asyncio.sleep(0)
    finally:
        trouble.close()
    notices = [(event.event, dict(event.facts)) for event in told if isinstance(event, events.Notice)]
    assert notices == [
        ("tracing trouble", {"message": "failed 0"}),
        ("tracing trouble", {"message": "failed 0", "held_back": 4}),
    ]


async def test_complaints_about_the_variables_are_all_told(loggers: list[logging.Logger]) -> None:
    """Each of them is something to mend, and they come once, at the start."""
    told: list[events.Event] = []
    trouble = tracing._Trouble(events.Observers([told.append]), asyncio.get_running_loop())
    try:
        for name in ("a", "b"):
            logging.getLogger("opentelemetry.sdk").warning("variable %s", name)
        logging.getLogger("urllib3").warning("odd arguments %d", "x")
        await asyncio.sleep(0)
    finally:
        trouble.close()
    messages = [event.facts["message"] for event in told if isinstance(event, events.Notice)]
    assert messages == ["variable a", "variable b", "odd arguments %d"]
