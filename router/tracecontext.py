"""The trace that a client's request belongs to (W3C Trace Context), taken out of an upgrade request's head.

Only what may be looked at by a tracer leaves here: one ``traceparent`` and its ``tracestate``, bounded. Whether it is a legal one
decides the tracer's propagator; what is not is as good as none. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router.handshake import RequestHead

# Version 00 has 55; a later version may be longer (W3C Trace Context §3.2).
_MAX_PARENT_CHARS: Final = 256
# What everybody must be able to propagate (§3.3.1.5); a longer one is left out, and its traceparent still counts.
_MAX_STATE_CHARS: Final = 512


def trace_context(head: RequestHead) -> Mapping[str, str] | None:
    """Return ``traceparent`` and, if there is one, ``tracestate``; ``None`` when no trace is continued by this request."""
    parents = head.values("traceparent")
    # With two of them nobody can say which one was meant (§3.2.1).
    if len(parents) != 1 or not 0 < len(parents[0]) <= _MAX_PARENT_CHARS:
        return None
    context = {"traceparent": parents[0]}
    state = ",".join(head.values("tracestate"))
    if 0 < len(state) <= _MAX_STATE_CHARS:
        context["tracestate"] = state
    return context
