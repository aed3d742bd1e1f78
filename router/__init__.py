"""Realtime Router: a WebSocket router for realtime voice models.

A session, end to end:

    upgrade request → handshake → auth → group → [ eligible → choose → lease → dial → ready ] → 101 → relay → record
                                                  └──── failed: classify, penalise, exclude, next ────┘

Where to find what:

    app.py          the HTTP surface, in the words of web.py; cli.py the commands; config/ the YAML
    handshake.py    upgrade request → what the client wants; auth.py key → principal
    engine.py       one session from its search to its record; the pieces below put together
    routing.py      the attempt loop; retry.py what a failure means; pool.py the deployments with their state:
                    breaker.py, limits.py, load.py
    upstream.py     the dial, until the first good event; providers/ who is dialled and how
                    eventloop.py, tls.py, tlstransport.py: the loop under it, certificates and resumption, TLS
    listener/       before the first request: PROXY headers, TLS for clients, the path's prefix
    fleet/          what replicas and workers tell each other, and limits that hold for all of them
    workers/        several processes behind one address; process.py one that serves; serve.py the one or the other
    drain.py        the stages of an end, departure.py one process on that way; succession.py where listening sockets come from
                    and go to: handover.py a running router's, systemd.py
    relay/          two transports joined: bytes verbatim, a scanner that follows the frames; accel/ beside router/: its fast
                    path in C
    accounting.py   turns, first audio, usage; events.py what happened → metrics.py, logs.py, tracing.py
    admin/          what operators see and do over HTTP; ctl/ the same from a shell; dashboard/ in a browser
                    live.py: a session as long as it lasts; decisions.py: why sessions went where they went
    reload.py       another generation of the configuration; generations.py what of it can be in force; watch.py when
    simulator/      a provider to develop, demo and test against
    library.py      the same without a server

Imports point one way: ``router`` → ``strategies``. The client's 101 is sent only when an upstream is ready: until then any
failure moves to another deployment, afterwards only a close code can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router._version import __version__

if TYPE_CHECKING:
    from router.library import RealtimeSession, Router, realtime
    from router.local import SessionClosed

__all__ = ["RealtimeSession", "Router", "SessionClosed", "__version__", "realtime"]


def __getattr__(name: str) -> Any:
    # Loaded on need: ``import router.config`` alone must not cost aiohttp's 200 ms.
    if name in ("RealtimeSession", "Router", "SessionClosed", "realtime"):
        from router import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
