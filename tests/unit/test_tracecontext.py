"""The client's trace, out of a request's head: one of them, bounded."""

from __future__ import annotations

import pytest

from router.handshake import RequestHead
from router.tracecontext import trace_context

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def head(*headers: tuple[str, str]) -> RequestHead:
    """A request's head."""
    return RequestHead(method="GET", path="/v1/realtime", headers=headers)


def test_a_trace_is_taken_with_its_state() -> None:
    """Names in any case; a state in several headers is one list."""
    found = trace_context(head(("Traceparent", PARENT), ("tracestate", "a=1"), ("TraceState", "b=2")))
    assert found == {"traceparent": PARENT, "tracestate": "a=1,b=2"}


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((), id="none"),
        pytest.param((("tracestate", "a=1"),), id="a state without a trace"),
        pytest.param((("traceparent", ""),), id="an empty one"),
        pytest.param((("traceparent", PARENT), ("traceparent", PARENT)), id="two"),
        pytest.param((("traceparent", PARENT + "-" + "0" * 300),), id="a long one"),
    ],
)
def test_no_trace(headers: tuple[tuple[str, str], ...]) -> None:
    """What says nothing, or too much, is as good as none."""
    assert trace_context(head(*headers)) is None


def test_a_long_state_is_left_out() -> None:
    """The trace goes on without it."""
    assert trace_context(head(("traceparent", PARENT), ("tracestate", "a=" + "1" * 600))) == {"traceparent": PARENT}
