"""The library face: realtime sessions for programs that do not want a server.

    from router import Router, realtime

    ws = await realtime(model="xai/grok-4-1-fast-non-reasoning")        # the key from XAI_API_KEY
    await ws.send_text('{"type": "response.create"}')
    async for message in ws:                                             # str
        …
    await ws.close()

    async with Router.from_config("config.yaml") as router:              # the same balancing and fallback as the server's
        ws = await router.realtime("grok-voice-agent")

A session runs through the same engine as the server's; only its client is in memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from router.auth import Principal
from router.config import load, load_text
from router.config.report import quoted
from router.config.settings import Settings
from router.engine import Engine, new_session_id
from router.errors import ConfigError, Problem, UnknownModel
from router.events import Notice, Observer, Observers
from router.handshake import allowed_part
from router.live import Request
from router.local import BINARY, TEXT, LocalTransport, SessionClosed
from router.pool import Group
from router.providers import PROVIDERS
from router.providers.base import Forward
from router.relay.leg import Leg
from router.routing import Opened, Search
from strategies.base import Call

_LOCAL = Principal(name="local")


class RealtimeSession:
    """A realtime session: text messages out and in. Made by ``realtime`` and ``Router.realtime``."""

    def __init__(self, transport: LocalTransport, served: asyncio.Task[None], *, session: str, deployment: str) -> None:
        self.id = session
        self.deployment = deployment  # whom it was given to
        self._transport = transport
        self._served = served
        self._owner: Router | None = None  # only set when the session brought its own router

    async def send_text(self, text: str) -> None:
        """Send a message.

        Raises: SessionClosed: the session is over.
        """
        await self._transport.send(TEXT, text.encode())

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message (xAI's binary audio).

        Raises: SessionClosed: the session is over.
        """
        await self._transport.send(BINARY, data)

    async def receive(self) -> str | bytes:
        """Return the next message: ``str`` for text, ``bytes`` for binary.

        Raises: SessionClosed: the session is over; it tells the close code.
        """
        return await self._transport.receive()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Text messages until the session is over. Binary ones are left out here; ``receive`` gives both."""
        while True:
            try:
                message = await self._transport.receive()
            except SessionClosed:
                return
            if isinstance(message, str):
                yield message

    @property
    def close_code(self) -> int | None:
        """Close code of the other side, ``None`` while the session runs."""
        return self._transport.closed[0] if self._transport.closed is not None else None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """End the session and wait until it has ended. Closing twice is closing once."""
        self._transport.send_close(code, reason)
        await asyncio.wait([self._served])
        # Kept until it is done: a ``close`` that was cancelled can be repeated.
        if self._owner is not None:
            await self._owner.close()
            self._owner = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class Router:
    """Balancing and fallback in process. Belongs to one event loop.

    Args:
        settings: a generation of the configuration.
        observers: told of everything that happens (``router.events``).
    """

    def __init__(self, settings: Settings, *, observers: tuple[Observer, ...] = ()) -> None:
        self._engine = Engine(settings, tell=Observers(observers))
        self._started = False  # what runs in the background needs the event loop, so the first session starts it

    @classmethod
    def from_config(cls, path: str | Path, *, observers: tuple[Observer, ...] = ()) -> Router:
        """Load the YAML file that the server takes. Its warnings are told to the observers.

        Raises: ConfigError: it cannot be used; the message names every problem with its line.
        """
        loaded = load(path)
        router = cls(loaded.settings, observers=observers)
        for warning in loaded.warnings:
            router._engine.tell(Notice(level="warning", event="configuration", facts={"warning": str(warning)}))
        return router

    async def realtime(
        self, model: str, *, headers: Mapping[str, str] | None = None, query: Mapping[str, str] | None = None
    ) -> RealtimeSession:
        """Open a session on whatever deployment of ``model`` works.

        Args:
            model: a group's name or an alias.
            headers: as a client would send them, for affinity and allow-listed forwarding.
            query: likewise.

        Raises:
            UnknownModel: there is no such group.
            RateLimited, NoDeploymentAvailable, TimedOut: no deployment could be had.
            ShuttingDown: the router was closed.
        """
        engine = self._engine
        engine.check_room(_LOCAL)
        if not self._started:
            self._started = True
            engine.start()
        # Once, and bounded: whoever is asked for a place has to know this process first.
        await engine.join()
        group = engine.pool.find(model)
        if group is None:
            raise UnknownModel(f"No group goes by the name {model[:80]!r}.")
        call = Call(group=group.settings.name, principal=_LOCAL.name, headers=dict(headers or {}), query=dict(query or {}))

        def forward(target: Group) -> Forward:
            return allowed_part(call.query, {name.lower(): value for name, value in call.headers.items()}, target.settings)

        opened: asyncio.Future[tuple[LocalTransport, str]] = asyncio.get_running_loop().create_future()

        async def accept(found: Opened, search: Search) -> tuple[Leg, bytes]:
            transport = LocalTransport(max_message_bytes=group.settings.relay.max_message_bytes)
            opened.set_result((transport, found.deployment.id))
            return transport.leg, b""

        request = Request(
            session=new_session_id(), group=group, principal=_LOCAL, client="local", call=call, forward=forward
        )
        served = engine.tasks.spawn(
            engine.serve(request, accept), name=f"session {request.session}", expected=(Exception,)
        )
        try:
            waited: list[asyncio.Future[Any]] = [served, opened]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            served.cancel()
            await asyncio.wait([served])
            raise
        if not opened.done():
            await served  # raises what went wrong
        transport, deployment = opened.result()
        return RealtimeSession(transport, served, session=request.session, deployment=deployment)

    async def close(self) -> None:
        """End all sessions and what runs in the background."""
        await self._engine.end_all(code=1001, reason="router closed", timeout_s=1.0)
        await self._engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


async def realtime(
    model: str, *, api_key: str | None = None, api_base: str | None = None, **params: str | float | int
) -> RealtimeSession:
    """Open one session on one provider.

    Args:
        model: ``provider/model``, such as ``xai/grok-4-1-fast-non-reasoning``.
        api_key: the provider's key; from its usual environment variable when omitted.
        api_base: another address than the provider's own.
        params: any other key of ``litellm_params``, such as ``connect_timeout_s``.

    Raises:
        ConfigError: a parameter is wrong, or there is no key.
        NoDeploymentAvailable, RateLimited, TimedOut: the provider could not be had.
    """
    given = {"model": model, "api_key": api_key, "api_base": api_base, **params}
    settings = _single(given)
    router = Router(settings)
    try:
        session = await router.realtime(model)
    except BaseException:
        await router.close()
        raise
    session._owner = router
    return session


def _single(params: Mapping[str, str | float | int | None]) -> Settings:
    """Settings with one group of one deployment; checked like a file's."""
    import json

    model = str(params["model"])
    provider, slash, _ = model.partition("/")
    # In a file such an entry is skipped, as LiteLLM's files have entries for all sorts of providers; here it is all there is.
    if slash and provider not in PROVIDERS:
        expected = f"provider/model with a provider of {', '.join(PROVIDERS)}"
        raise _wrong(Problem(file="", line=None, path="model", found=quoted(model), expected=expected))
    document = {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {name: value for name, value in params.items() if value is not None},
                "model_info": {"mode": "realtime"},
            }
        ]
    }
    # JSON is YAML, so the one loader checks this as well.
    try:
        return load_text(json.dumps(document), environ=os.environ).settings
    except ConfigError as error:
        raise _wrong(*error.problems) from None


def _wrong(*problems: Problem) -> ConfigError:
    """Problems of a file that the caller never saw, told as those of its arguments."""
    return ConfigError(
        [
            replace(problem, file="realtime()", line=None, path=problem.path.removeprefix("model_list[0].litellm_params."))
            for problem in problems
        ]
    )
