"""From a loaded configuration to an exit code: in this process, or in several of which this one is the parent."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

from router import logs
from router.events import Notice, Observers
from router.handover import HandoverFailed
from router.process import drop_unread, open_missing_streams, run, serve_until_signal
from router.reload import Origin
from router.succession import inherit


def serve(origin: Origin) -> int:
    """Serve until a signal ends it. Returns the exit code."""
    open_missing_streams()
    loaded = origin.loaded
    server = loaded.settings.server
    logs.register_secrets(logs.secrets_of(loaded.settings))
    logs.configure(server.log_format, server.log_level)
    observer = logs.LogObserver()
    tell = Observers([observer])
    for warning in loaded.warnings:
        tell(Notice(level="warning", event="configuration", facts={"warning": str(warning)}))
    try:
        inheritance = inherit(server)
    except HandoverFailed as error:
        print(error, file=sys.stderr)
        return 1
    # What is read later is held against the addresses that are in force, as the start is.
    origin = replace(origin, source=replace(origin.source, inherited=inheritance.places))
    if server.workers > 1:
        # Forks, so it must not have an event loop.
        from router.workers.parent import Parent

        code = Parent(loaded.settings, tell, origin=origin, inheritance=inheritance).run()
    else:
        code = run(partial(serve_until_signal, loaded.settings, tell, origin=origin, inheritance=inheritance))
    observer.flush()
    drop_unread(sys.stderr)
    return code
