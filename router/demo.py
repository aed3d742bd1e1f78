"""A demonstration with no key and no server: three simulated deployments of two dialects, and the router in front.

One deployment answers its first session with an error event and refuses every second one; the clients never notice, the log
tells.
"""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from router import logs
from router.config import load_text
from router.errors import ConfigError
from router.events import Observers
from router.process import run, serve_until_signal
from router.simulator import Simulator
from router.simulator.dialects import DialectName

GROUP: Final = "voice"
# (name, provider and model, dialect, path of the base, faults)
_DEPLOYMENTS: Final[tuple[tuple[str, str, DialectName, str, tuple[str, ...]], ...]] = (
    ("steady", "openai/gpt-realtime", "openai", "/v1", ()),
    ("flaky", "openai/gpt-realtime", "openai", "/v1", ("error_event=server_error,next=1", "status=503,every=2")),
    ("grok", "xai/grok-voice-latest", "xai", "/v1", ()),
)


def run_demo(*, host: str, port: int) -> int:
    """Serve the demonstration until a signal ends it. Returns the exit code."""
    logs.configure("auto", "debug")
    return run(lambda: _demo(host, port))


async def _demo(host: str, port: int) -> int:
    async with AsyncExitStack() as cleanup:
        entries = []
        for name, model, dialect, path, faults in _DEPLOYMENTS:
            simulator = Simulator(dialect=dialect, pace="realtime", name=name, faults=faults)
            await cleanup.enter_async_context(simulator)
            entries.append(
                f"""
  - model_name: {GROUP}
    litellm_params: {{model: {model}, api_key: not-a-real-key, api_base: "{simulator.url}{path}"}}
    model_info: {{mode: realtime, id: {name}}}"""
            )
        text = f"model_list:{''.join(entries)}\ngeneral_settings: {{expose_routing: true, drain: {{grace_s: 0, timeout_s: 0}}}}\n"
        try:
            loaded = load_text(text, path="demo", environ={}, host=host, port=port)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 2
        return await serve_until_signal(loaded.settings, Observers([logs.LogObserver()]), started=_invite, hangup_ends=True)


def _command() -> str:
    """How this program was started, for whoever wants to start it again in another terminal."""
    started = Path(sys.argv[0])
    return os.path.relpath(started) if started.name == "realtime-router" else f"{sys.executable} -m router"


def _invite(url: str) -> str:
    """What there is to try."""
    address = url.removeprefix("ws://").removesuffix("/v1/realtime")
    return f"""
The router listens on {url}?model={GROUP}
Behind it are three simulated deployments; "flaky" fails now and then. In another terminal, a few times:

    {_command()} talk --url {url} --model {GROUP} "What is the capital of France?"

Metrics: http://{address}/metrics    State: http://{address}/admin/deployments    End: Ctrl-C
"""
