"""Spans by OpenTelemetry: what happened to a session, as a trace.

    realtime GROUP          SERVER    a session, or a refused request; event ``ready``
    ├── dial GROUP          CLIENT    an attempt, from its dial to its outcome; ended long before the session is
    └── chat MODEL          CLIENT    a turn: an answer of the upstream's; event ``first_audio``

``SpanObserver`` is one more observer of ``router.events``; it makes spans of what it is told, when it is told, with times of its
own. ``Tracing`` puts it on OpenTelemetry's SDK and sends what it makes by OTLP over HTTP, from a thread of the SDK's. Everything
about that (where to, how much, sampling, names) is said by OpenTelemetry's own OTEL_… variables. docs/tracing.md lists what is in
a span, and why.

Nothing here may cost a session: the SDK's queue is bounded and drops the oldest spans, its thread is a daemon, its complaints are
one line a minute, and the end of the process waits ``FLUSH_S`` for it at most.

Imported only where ``general_settings.tracing`` is on; the only module that imports OpenTelemetry.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from router import events
from router._version import __version__
from router.logs import register_secrets, shown, shown_name
from router.retry import Outcome
from router.routing import UNDER_WAY

SERVICE_NAME: Final = "realtime-router"
#: Longest wait for what is left to be sent, when the process ends.
FLUSH_S: Final = 2.0
#: Complaints of the SDK's in so many seconds: one.
TROUBLE_INTERVAL_S: Final = 60.0
#: Turns of one session that get a span; an upstream decides how many there are.
MAX_TURNS: Final = 2000
#: Refused requests a second that get a span; more are counted on the next one.
REFUSALS_PER_S: Final = 20
# Sessions that ended before a dial that had lost its race; such a dial takes a few seconds.
_MOST_LATE: Final = 1024
_MAX_CHARS: Final = 256
_SECRET_CHARS: Final = 8
_MOST_INT: Final = 2**63 - 1

# The names that the conventions for generative AI give to providers; what they do not know keeps the router's name for it.
_PROVIDERS: Final[Mapping[str, str]] = {"openai": "openai", "azure": "azure.ai.openai", "xai": "x_ai"}
# Attempts that went as they should, or that nobody is to blame for.
_NO_ERROR: Final = frozenset({Outcome.READY.value, Outcome.CLIENT_GONE.value})

Attribute = str | bool | int | float


class _Session:
    """What is kept of a session while it runs: its span, and where its clock stood on the wall."""

    __slots__ = ("_began", "_began_ns", "context", "span", "turns", "under_way")

    def __init__(self, span: Span, *, began: float, began_ns: int) -> None:
        self.span = span
        self.context = set_span_in_context(span, Context())
        self.turns = 0
        self.under_way = 0  # attempts that go on after its end
        # One pair for a whole trace: the wall clock may be set while a call lasts, and no child must begin before its parent.
        self._began = began
        self._began_ns = began_ns

    def at(self, now: float) -> int:
        """Monotonic seconds as nanoseconds since the epoch."""
        return self._began_ns + int((now - self._began) * 1e9)


class SpanObserver:
    """Makes spans of the core's events.

    Args:
        tracer: makes and samples them.
        joins: go on with the traces that clients name.
        clock: monotonic seconds.
        wall_ns: nanoseconds since the epoch.
    """

    def __init__(
        self,
        tracer: Tracer,
        *,
        joins: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer = tracer
        self._joins = joins
        self._clock = clock
        self._wall_ns = wall_ns
        self._propagator = TraceContextTextMapPropagator()
        self._sessions: dict[str, _Session] = {}  # under way, those that are not sampled left out
        self._late: OrderedDict[str, _Session] = OrderedDict()  # ended, with attempts that have not
        self._refusals_since = -math.inf  # when the current second of refusals began
        self._refusals = 0  # in it
        self._refusals_left_out = 0  # since one had a span
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            events.SessionStarted: self._session_started,
            events.SessionRefused: self._session_refused,
            events.Attempt: self._attempt,
            events.SessionReady: self._session_ready,
            events.TurnEnded: self._turn_ended,
            events.SessionRecord: self._session_ended,
        }

    def __call__(self, event: events.Event) -> None:
        """Make of an event what there is to be made of it."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def close(self) -> None:
        """End the spans of sessions whose end was not told."""
        now = self._clock()
        for session in self._sessions.values():
            session.span.end(session.at(now))
        self._sessions.clear()
        self._late.clear()

    # --- sessions -----------------------------------------------------------------------------------

    def _session_started(self, event: events.SessionStarted) -> None:
        group = shown_name(event.group)
        now, wall_ns = self._clock(), self._wall_ns()
        attributes: dict[str, Attribute | None] = {
            **_request(event.client),
            "gen_ai.request.model": group,
            "realtime_router.session": event.session,
            "realtime_router.group": group,
            "realtime_router.principal": shown_name(event.principal),
        }
        span = self._tracer.start_span(
            f"realtime {group}",
            context=self._parent(event.trace),
            kind=SpanKind.SERVER,
            attributes=_present(attributes),
            start_time=wall_ns,
        )
        if span.is_recording():
            self._sessions[event.session] = _Session(span, began=now, began_ns=wall_ns)

    def _session_ready(self, event: events.SessionReady) -> None:
        session = self._sessions.get(event.session)
        if session is None:
            return
        attributes: dict[str, Attribute | None] = {
            "realtime_router.deployment": shown_name(event.deployment),
            "realtime_router.attempts": event.attempts,
            "realtime_router.fallback": event.fallback,
        }
        session.span.add_event("ready", _present(attributes), session.at(self._clock()))

    def _session_ended(self, event: events.SessionRecord) -> None:
        session = self._sessions.pop(event.session, None)
        if session is None:
            return
        served = next((attempt for attempt in event.attempts if attempt.deployment == event.deployment), None)
        lost = event.who == "upstream" and event.cause != "close"
        failed = event.status >= 500 or lost
        attributes: dict[str, Attribute | None] = {
            "http.response.status_code": event.status,
            "gen_ai.provider.name": "" if served is None else _provider(served.provider),
            "gen_ai.response.model": "" if served is None else shown_name(served.model),
            "error.type": event.cause if failed else "",
            "realtime_router.deployment": shown_name(event.deployment),
            "realtime_router.attempts": len(event.attempts),
            "realtime_router.passed_over": ", ".join(f"{shown_name(name)}: {why}" for name, why in event.passed_over[:20]),
            "realtime_router.end.who": event.who,
            "realtime_router.end.cause": event.cause,
            "realtime_router.end.phase": event.phase,
            "realtime_router.client.close_code": event.client_code,
            "realtime_router.upstream.close_code": event.upstream_code,
            "realtime_router.upstream.close_reason": _outside(event.upstream_reason),
            "realtime_router.ready_s": event.ready_s,
            "realtime_router.first_audio_s": event.first_audio_s,
            "realtime_router.client.bytes": event.client_bytes,
            "realtime_router.upstream.bytes": event.upstream_bytes,
            "realtime_router.client.events": event.client_events,
            "realtime_router.upstream.events": event.upstream_events,
            "realtime_router.turns": event.turns,
            "realtime_router.config.generation": event.generation,
            **{f"realtime_router.usage.{kind}": number for kind, number in event.usage.as_dict().items()},
        }
        session.span.set_attributes(_present(attributes))
        if failed:
            session.span.set_status(StatusCode.ERROR)
        session.span.end(session.at(self._clock()))
        session.under_way = sum(attempt.outcome == UNDER_WAY for attempt in event.attempts)
        if session.under_way:
            self._late[event.session] = session
            if len(self._late) > _MOST_LATE:
                self._late.popitem(last=False)

    def _session_refused(self, event: events.SessionRefused) -> None:
        now = self._clock()
        if now - self._refusals_since >= 1.0:
            self._refusals_since = now
            self._refusals = 0
        self._refusals += 1
        if self._refusals > REFUSALS_PER_S:
            # Whoever guesses keys must not push sessions out of the queue.
            self._refusals_left_out += 1
            return
        # A server's span is no error when the request was (HTTP conventions).
        failed = event.status >= 500
        attributes: dict[str, Attribute | None] = {
            **_request(event.client),
            "http.response.status_code": event.status,
            "error.type": event.code if failed else "",
            "gen_ai.request.model": _outside(event.model),
            "realtime_router.session": event.session,
            "realtime_router.principal": shown_name(event.principal),
            "realtime_router.end.who": "router",
            "realtime_router.end.cause": event.code,
            "realtime_router.refusals_left_out": self._refusals_left_out or None,
        }
        wall_ns = self._wall_ns()
        span = self._tracer.start_span(
            # Not with the model, which is the client's word.
            "realtime",
            context=self._parent(event.trace),
            kind=SpanKind.SERVER,
            attributes=_present(attributes),
            start_time=wall_ns,
        )
        if not span.is_recording():
            return
        self._refusals_left_out = 0
        if failed:
            span.set_status(StatusCode.ERROR, _outside(event.detail))
        span.end(wall_ns)

    def _parent(self, trace: Mapping[str, str] | None) -> Context:
        """The client's span, if it named one; never whatever happens to be the current one here."""
        if trace is None or not self._joins:
            return Context()
        state = trace.get("tracestate", "")
        if shown(state) != state:
            # Somebody put a secret there, and it would go to the collector.
            trace = {"traceparent": trace["traceparent"]}
        return self._propagator.extract(trace, context=Context())

    # --- what a session consists of -----------------------------------------------------------------

    def _attempt(self, event: events.Attempt) -> None:
        session = self._sessions.get(event.session) or self._late_attempt(event.session)
        if session is None:
            return
        now = self._clock()
        failed = event.outcome not in _NO_ERROR
        attributes: dict[str, Attribute | None] = {
            **_upstream(event.provider, event.model),
            "error.type": event.outcome if failed else "",
            "realtime_router.session": event.session,
            "realtime_router.group": shown_name(event.group),
            "realtime_router.deployment": shown_name(event.deployment),
            "realtime_router.attempt.outcome": event.outcome,
            "realtime_router.attempt.raced": event.raced,
        }
        span = self._tracer.start_span(
            f"dial {shown_name(event.group)}",
            context=session.context,
            kind=SpanKind.CLIENT,
            attributes=_present(attributes),
            start_time=session.at(now - event.seconds),
        )
        if failed:
            span.set_status(StatusCode.ERROR, _outside(event.detail))
        span.end(session.at(now))

    def _late_attempt(self, name: str) -> _Session | None:
        session = self._late.get(name)
        if session is not None:
            session.under_way -= 1
            if not session.under_way:
                del self._late[name]
        return session

    def _turn_ended(self, event: events.TurnEnded) -> None:
        session = self._sessions.get(event.session)
        if session is None or session.turns >= MAX_TURNS:
            return
        session.turns += 1
        turn = event.turn
        now = self._clock()
        began = now - turn.seconds
        failed = turn.status in ("failed", "unfinished")
        attributes: dict[str, Attribute | None] = {
            **_upstream(event.provider, event.model),
            "gen_ai.operation.name": "chat",
            "gen_ai.conversation.id": event.session,
            "gen_ai.response.id": _outside(turn.response),
            "gen_ai.usage.input_tokens": turn.usage.input or None,
            "gen_ai.usage.output_tokens": turn.usage.output or None,
            "gen_ai.usage.cache_read.input_tokens": turn.usage.cached or None,
            "error.type": (_outside(turn.error) or turn.status) if failed else "",
            "realtime_router.group": shown_name(event.group),
            "realtime_router.deployment": shown_name(event.deployment),
            "realtime_router.turn.status": turn.status,
            "realtime_router.first_audio_s": turn.first_audio_s,
        }
        span = self._tracer.start_span(
            f"chat {shown_name(event.model)}",
            context=session.context,
            kind=SpanKind.CLIENT,
            attributes=_present(attributes),
            start_time=session.at(began),
        )
        if turn.first_audio_s is not None:
            span.add_event("first_audio", timestamp=session.at(began + turn.first_audio_s))
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(session.at(now))


def _request(client: str) -> dict[str, Attribute | None]:
    return {"http.request.method": "GET", "network.protocol.name": "websocket", "client.address": _outside(client)}


def _upstream(provider: str, model: str) -> dict[str, Attribute | None]:
    return {"gen_ai.provider.name": _provider(provider), "gen_ai.request.model": shown_name(model)}


def _provider(name: str) -> str:
    return _PROVIDERS.get(name, name)


def _outside(text: str) -> str:
    """What a client or an upstream wrote: legal Unicode, without secrets, bounded."""
    return shown(text, _MAX_CHARS)


def _present(attributes: Mapping[str, Attribute | None]) -> dict[str, Attribute]:
    """Attributes that there is something to say of. What the protocol cannot carry would spoil a whole batch of spans."""
    return {
        key: min(value, _MOST_INT) if type(value) is int else value
        for key, value in attributes.items()
        if value is not None and value != ""
    }


# --- the SDK -------------------------------------------------------------------------------------


class Tracing:
    """Spans on their way out of this process, from ``start`` to ``close``."""

    def __init__(self, tell: events.Observers, *, joins: bool = True, worker: int | None = None) -> None:
        self._tell = tell
        self._trouble = _Trouble(tell, asyncio.get_running_loop())
        try:
            self._provider = TracerProvider(resource=_resource(worker), shutdown_on_exit=False)
            # Starts a thread, which is why the parent of several workers has none of this.
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
            self._observer = SpanObserver(self._provider.get_tracer("router", __version__), joins=joins)
        except BaseException:
            self._trouble.close()
            raise
        self._trouble.serving = True

    @classmethod
    def start(
        cls, tell: events.Observers, *, worker: int | None = None, environ: Mapping[str, str] = os.environ
    ) -> Tracing | None:
        """Add an observer that makes spans; inside the event loop of the process that serves.

        Args:
            tell: observers.
            worker: number of this process among several.
            environ: the variables that are looked at here; the SDK looks at those of the process.

        Returns:
            What to close when the last session has ended; ``None``: the variables say that no spans are to be made.

        Raises:
            Exception: the SDK's, about what is written in a variable.
        """
        register_secrets(_secrets_of(environ))
        for problem in _unsupported(environ):
            tell(events.Notice(level="warning", event="tracing", facts=problem))
        off = _switched_off(environ)
        if off:
            tell(events.Notice(level="info", event="tracing is off", facts={"reason": off}))
            return None
        tracing = cls(tell, joins=_joins(environ), worker=worker)
        tell.add(tracing._observer)
        return tracing

    async def close(self) -> None:
        """Send what is left, for ``FLUSH_S`` at most; a collector that hangs does not delay the end."""
        self._observer.close()
        sent = asyncio.Event()
        loop = asyncio.get_running_loop()

        def flush() -> None:
            try:
                self._provider.shutdown()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits any more
                    loop.call_soon_threadsafe(sent.set)

        # Not the loop's executor: the end of the process would wait for it without a bound.
        threading.Thread(target=flush, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await sent.wait()
        except TimeoutError:
            # What the thread says from now on nobody hears, and the process ends without it.
            facts = {"reason": f"the collector took nothing for {FLUSH_S:g} s"}
            self._tell(events.Notice(level="warning", event="last spans not sent", facts=facts))
        else:
            self._trouble.close()


def _resource(worker: int | None) -> Resource:
    """Who makes the spans. The environment wins over what is said here; the SDK has it the other way round."""
    attributes: dict[str, Any] = {
        "service.name": SERVICE_NAME,
        "service.version": __version__,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
    }
    if worker is not None:
        attributes["realtime_router.worker"] = worker
    return Resource.create({**attributes, **OTELResourceDetector().detect().attributes})


def _switched_off(environ: Mapping[str, str]) -> str:
    """Which variable says that there are to be no spans; empty: none does."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "OTEL_SDK_DISABLED is true"
    if environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return "OTEL_TRACES_EXPORTER is none"
    return ""


def _joins(environ: Mapping[str, str]) -> bool:
    """Whether the traces of clients are gone on with: not where the variable names other propagators, or ``none``."""
    names = environ.get("OTEL_PROPAGATORS", "").strip().lower()
    return not names or "tracecontext" in (name.strip() for name in names.split(","))


def _unsupported(environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Variables that ask for what is not there; the SDK does not look at them."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "otlp", "none"):
        yield {"found": f"OTEL_TRACES_EXPORTER={exporter[:40]}", "expected": "otlp or none", "meanwhile": "otlp"}
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environ.get(name, "").strip().lower()
        if protocol:
            if protocol != "http/protobuf":
                expected = "http/protobuf"
                yield {"found": f"{name}={protocol[:40]}", "expected": expected, "meanwhile": f"{expected}, usually port 4318"}
            # The first one that is set counts.
            return


def _secrets_of(environ: Mapping[str, str]) -> Iterator[str]:
    """What the SDK may quote when it complains: the values of headers, passwords of URLs."""
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        for pair in environ.get(name, "").split(","):
            value = pair.partition("=")[2].strip() or pair.strip()
            # Shorter ones are a tenant's name or a flag, which would be taken out of every line.
            if len(value) >= _SECRET_CHARS:
                yield value
                yield unquote(value)
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        with contextlib.suppress(ValueError):
            password = urlsplit(environ.get(name, "")).password
            if password:
                yield password
                yield unquote(password)


class _Trouble(logging.Handler):
    """What the SDK and its HTTP client complain of, as notices: one a minute, however often it is said.

    They complain from a thread of their own, and observers belong to the event loop.

    Args:
        tell: observers.
        loop: theirs.
        clock: monotonic seconds.
    """

    _LOGGERS: Final = ("opentelemetry", "urllib3")
    # About what stood in a client's ``tracestate``: invalid is ignored, and no operator can do anything about it.
    _CLIENTS: Final = "opentelemetry.trace"

    def __init__(
        self, tell: events.Observers, loop: asyncio.AbstractEventLoop, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(logging.WARNING)
        self.serving = False  # until then, what is said is about the variables, each of which is to be read
        self._tell = tell
        self._loop = loop
        self._clock = clock
        self._told_at = -math.inf
        self._held_back = 0
        self._before: list[tuple[logging.Logger, list[logging.Handler], bool]] = []
        for name in self._LOGGERS:
            logger = logging.getLogger(name)
            self._before.append((logger, logger.handlers[:], logger.propagate))
            logger.handlers[:] = [self]
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of a record, in any thread, without its traceback."""
        if record.name.startswith(self._CLIENTS):
            return
        now = self._clock()
        if self.serving and now - self._told_at < TROUBLE_INTERVAL_S:
            self._held_back += 1
            return
        try:
            message = record.getMessage()
        except Exception:  # its arguments do not fit its format
            message = str(record.msg)
        facts: dict[str, Any] = {"message": message}
        if self._held_back:
            facts["held_back"] = self._held_back
        if self.serving:
            self._told_at, self._held_back = now, 0
        notice = events.Notice(level="warning", event="tracing trouble", facts=facts)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell, notice)

    def close(self) -> None:
        """Give the loggers back as they were found."""
        for logger, handlers, propagate in self._before:
            logger.handlers[:], logger.propagate = handlers, propagate
        self._before.clear()
        super().close()
