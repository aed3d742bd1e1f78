"""One process that serves: event loop, observers, engine, server, signals.

Several that serve the same addresses are in ``router.workers``, and made of the same pieces.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TextIO

from prometheus_client import CollectorRegistry

from router.accounting import KNOWN_TYPES
from router.app import Server
from router.config.settings import ServerSettings, Settings
from router.departure import Departure
from router.engine import Engine
from router.eventloop import new_event_loop
from router.events import Notice, Observers
from router.fleet.exchange import Exchange
from router.handover import HandoverFailed
from router.lag import LoopLag
from router.metrics import Metrics
from router.relay.fastpath import accelerated
from router.reload import Origin, Reloader
from router.succession import NOTHING, Inheritance, Succession

if TYPE_CHECKING:
    from router.tracing import Tracing

# Objects that may be made and not freed before the collector looks at the young ones; its default is 700, a few sessions.
GC_THRESHOLDS: Final = (20_000, 20, 50)


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run ``main`` to its end on uvloop where there is one, else asyncio's."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main())


async def serve_until_signal(
    settings: Settings,
    tell: Observers,
    *,
    origin: Origin | None = None,
    inheritance: Inheritance = NOTHING,
    started: Callable[[str], str] | None = None,
    hangup_ends: bool = False,
) -> int:
    """Serve until SIGTERM or SIGINT, and drain then. Returns the exit code.

    Args:
        settings: the generation.
        tell: observers; metrics are added.
        origin: where the settings come from, so that they can be read again; ``None``: they cannot.
        inheritance: listening sockets that are there already.
        started: URL → what to print once connections are accepted, instead of one line.
        hangup_ends: SIGHUP ends it as well, for what belongs to a terminal.
    """
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: loop_error(tell, context))
    engine, metrics = assemble(settings, tell)
    try:
        succession = Succession(
            settings.server, inheritance, workers=1, watch=watch, tell=tell, generation=lambda: engine.generation
        )
    except (HandoverFailed, OSError) as error:
        await engine.close()
        cannot_start(settings, error)
        return 1

    def apply(settings: Settings, *, generation: int) -> None:
        # What can fail comes first.
        engine.apply(settings, generation=generation)
        server.configure(settings.server)

    reloader = None
    if origin is not None:
        reloader = Reloader(origin, apply=apply, tell=tell)
    server = Server(
        engine,
        render_metrics=metrics.render,
        configuration=reloader,
        sockets=(succession.clients[0], succession.operators[0]),
    )
    departure = Departure(server, engine, tell, kept=succession.kept, on_draining=metrics.draining)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, departure.signalled, number)
    if hasattr(signal, "SIGHUP"):
        # A terminal that closes must not end every call.
        hung_up = partial(hangup, tell) if reloader is None else partial(reloader.request, "signal")
        loop.add_signal_handler(signal.SIGHUP, departure.hung_up if hangup_ends else hung_up)
    tracing = trace(settings, tell)
    lag = LoopLag(metrics.loop_lag)
    lag.start()
    try:
        try:
            await server.start()
        except OSError as error:
            await server.stop(timeout_s=0)
            cannot_start(settings, error)
            return 1
        settle()
        url = url_of(server.addresses[0], settings.server)
        operations = None if settings.server.ops_listen is None else server.addresses[-1]
        # One that was asked to end meanwhile must not take the place of one that serves.
        if departure.drain.stage == "serving":
            succession.listening(departure.handed_over)
            say(f"realtime-router listening on {url}" if started is None else started(url))
            tell(Notice(level="info", event="listening", facts=facts_of(settings, url, operations)))
            if reloader is not None:
                reloader.start()
        await departure.run()
        await departure.stop()
        if tracing is not None:
            await tracing.close()
    finally:
        succession.close()
        lag.stop()
        if reloader is not None:
            await reloader.close()
    return 0


def trace(settings: Settings, tell: Observers, *, worker: int | None = None) -> Tracing | None:
    """Begin to make spans, where the configuration asks for it; inside the event loop of the process that serves.

    Args:
        settings: the generation.
        tell: observers; the one that makes spans is added.
        worker: number of this process among several.

    Returns:
        What to close when the last session has ended; ``None``: there is nothing to close.
    """
    if not settings.server.tracing:
        return None
    try:
        # OpenTelemetry is an extra, and a quarter of a second: imported only where it is wanted.
        from router.tracing import Tracing

        return Tracing.start(tell, worker=worker)
    except Exception as error:  # OpenTelemetry's, about what is written in one of its variables; some it reads when imported
        facts = {"reason": str(error), "meanwhile": "sessions are served without spans"}
        tell(Notice(level="error", event="tracing not started", facts=facts))
        return None


def assemble(
    settings: Settings,
    tell: Observers,
    *,
    exchange: Exchange | None = None,
    member: str | None = None,
    generation: int = 1,
) -> tuple[Engine, Metrics]:
    """Put together what serves and what counts, inside the event loop.

    Args:
        settings: the generation.
        tell: observers; the metrics are added.
        exchange, member, generation: see ``Engine``.
    """
    metrics = Metrics(CollectorRegistry(), known_types=KNOWN_TYPES)
    tell.add(metrics)
    engine = Engine(settings, tell=tell, exchange=exchange, member=member, generation=generation)
    metrics.watch(lambda: engine.pool.every)
    metrics.watch_fleet(engine.fleet)
    metrics.config_loaded(engine.generation, epoch_s=time.time())
    return engine, metrics


def settle() -> None:
    """The start is over: set the garbage collector to what serving needs."""
    # What was made so far lives as long as the process: the collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    # A session leaves no garbage that would need the collector, which walks over all that run to find that out.
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()


def watch(sock: socket.socket, callback: Callable[[], None] | None) -> None:
    """See ``handover.Watch``; by the event loop that runs."""
    loop = asyncio.get_running_loop()
    if callback is None:
        loop.remove_reader(sock)
    else:
        loop.add_reader(sock, callback)


def cannot_start(settings: Settings, error: OSError | HandoverFailed) -> None:
    """Complain of an address that cannot be had, in one sentence."""
    if isinstance(error, HandoverFailed):
        print(error, file=sys.stderr)
        return
    server = settings.server
    places = " or ".join(f"{one.host}:{one.port}" for one in (server.listen, server.ops_listen) if one is not None)
    print(f"cannot listen on {places}: {error.strerror or error}", file=sys.stderr)


def facts_of(settings: Settings, url: str, operations: tuple[str, int] | None) -> dict[str, Any]:
    """What the log says when connections are accepted.

    Args:
        settings: the generation.
        url: for clients.
        operations: the operators' own address, if they have one.
    """
    facts: dict[str, Any] = {"url": url, "groups": len(settings.groups), "relay": "accelerated" if accelerated else "pure"}
    if operations is not None:
        facts["operations"] = "http://{}:{}".format(*operations)
    return facts


def open_missing_streams() -> None:
    """Give a process that was started without standard input, output or error one that leads nowhere.

    The next files and sockets would get their numbers otherwise, and be written to by whoever means the stream.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))


def say(text: str) -> None:
    """Print on standard output; whoever reads it may be gone, and that is no reason to end."""
    with contextlib.suppress(OSError):
        print(text, flush=True)
    drop_unread(sys.stdout)


def drop_unread(stream: TextIO | None) -> None:
    """Lose what nobody will read: it would fail once more when the interpreter ends, and turn the exit code into 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def url_of(address: tuple[str, int], server: ServerSettings) -> str:
    """The URL that clients connect to."""
    host, port = address
    scheme = "ws" if server.tls is None else "wss"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{server.root_path}/v1/realtime"


def hangup(tell: Observers) -> None:
    """Say that SIGHUP does nothing."""
    tell(Notice(level="warning", event="SIGHUP ignored", facts={"reason": "the configuration does not come from a file"}))


def loop_error(tell: Observers, context: dict[str, Any]) -> None:
    """Tell of what nobody caught on the event loop."""
    facts = {"message": str(context.get("message", ""))}
    error = context.get("exception")
    tell(Notice(level="error", event="event loop", facts=facts if error is None else {**facts, "error": error}))
