"""A simulated provider: to develop, demonstrate, test and load the router without a key and without the internet.

    Simulator (server)          HTTP and WebSocket, one handler per connection, the faults of the wire
    └── Session (session)       the protocol: events in, events out; knows neither asyncio nor sockets
        ├── Response (response) one answer as a generator of timed steps, so that pace and cancellation are the driver's business
        ├── Conversation, Item  (items)   what was said
        ├── TurnDetector        (vad)     speech in what is appended, by energy
        ├── Shape               (shapes)  what a dialect calls things: session object, event names, accepted fields
        └── AudioBank           (audio)   deterministic speech-like sound, made once, sent often

Dialects: ``openai`` (GA), ``openai-beta``, ``azure`` (GA and preview by path), ``xai``, ``echo`` (returns every message).

What it says depends only on what it was told: a text answer quotes the user, a tool is called when the user's text names it, and
speech is "heard" as its length. The sound of a text is the same every time. Time, ids and chance come from injected sources.

Faults. One applies to a session at most: the first, in order of setting, that is due. Each takes, besides its own options,
``next=N`` (only the next N sessions), ``every=K`` (each k-th) and ``probability=P`` (by the simulator's seed), in any
combination. The option marked * is the one that a bare ``verb=value`` sets.

| verb | what a client sees | options |
|---|---|---|
| ``refuse`` | ECONNREFUSED until ``for_s`` or cleared; or a RST right after accept | ``for_s``* (s), ``reset`` |
| ``status`` | another HTTP status; ``code`` gives it a JSON body | ``status``*, ``retry_after``, ``location``, ``code`` |
| ``hang_before_101`` | a connection, and no answer, for good or for a while | ``for_s``* (s) |
| ``hang_after_101`` | a 101 and silence; what is sent is read and dropped, pings answered | |
| ``slow_first_event`` | a 101, and the first event late | ``seconds``* (s) |
| ``error_event`` | a 101, one ``error`` event, a close | ``code``*, ``type``, ``param``, ``message``, ``close``, ``reason`` |
| ``close_after_events`` | that many events, then a close frame | ``events``*, ``code``, ``reason`` |
| ``reset_after_events`` | that many events, then a RST | ``events``* |
| ``garbage`` | illegal bytes as a frame, as JSON, or instead of HTTP | ``kind``* (frame, json, http), ``hex``, ``after_events`` |
| ``stall`` | silence in mid-answer on an open socket that is not read any more | ``after_deltas``* |
| ``drop_mid_turn`` | the connection's end in mid-answer, without a close frame | ``after_deltas``* |
| ``fail_turn`` | each answer ends as ``response.done`` with status ``failed`` | ``code``*, ``type``, ``message`` |

The body of ``status`` takes ``type`` and ``message`` as well.

They are set by ``Simulator(faults=…)``, ``set_fault``, ``--fault 'status=503,retry_after=7,next=3'``, or at run time by
``POST /_sim/faults`` with ``{"verb": "status", "status": 503, "next": 3}`` (or a list of such); ``DELETE /_sim/faults`` clears
them and ``GET /_sim/stats`` tells what happened. Over HTTP, ``refuse`` needs ``for_s``: it closes the way to its own end.

What it does not do: WebRTC, SIP, MCP tools, ``idle_timeout_ms``, the translation socket, and ``client_secrets``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.simulator.faults import Fault, FaultError
    from router.simulator.server import Simulator

__all__ = ["Fault", "FaultError", "Simulator"]


def __getattr__(name: str) -> object:
    """Load on first use: the command line imports this package without paying for a web server."""
    if name == "Simulator":
        from router.simulator.server import Simulator

        return Simulator
    if name in ("Fault", "FaultError"):
        from router.simulator import faults

        return getattr(faults, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
