"""A session as long as it lasts: what it asks for, what an operator can ask of it, and how an operator ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.auth import Principal
from router.pool import Group
from router.providers.base import Forward
from router.relay.contract import error_event
from router.relay.relay import Relay
from router.routing import Opened, Search
from strategies.base import Call

if TYPE_CHECKING:
    from router.accounting import Accounting


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a session asks for.

    Attributes:
        session: its id.
        group: where it starts.
        principal: whose key it was.
        client: address, for the log.
        call: for strategies.
        forward: group → what travels upstream.
        trace: see ``events.SessionStarted``.
    """

    session: str
    group: Group
    principal: Principal
    client: str
    call: Call
    forward: Callable[[Group], Forward]
    trace: Mapping[str, str] | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Live:
    """One session, from its search to its record.

    Attributes:
        request: what it asked for.
        search: where it looked.
        task: who serves it.
        generation: of the configuration it began under.
        opened: whom it was given to; ``None`` while it searches.
        ready_s: seconds from its start to that; ``None`` while it searches.
        accounting: its books, from then on.
        relay: only set while it is relayed.
        ending: close code and reason that an operator wants it to end with; ``None``: none does.
    """

    request: Request
    search: Search
    task: asyncio.Task[object]
    generation: int
    opened: Opened | None = None
    ready_s: float | None = None
    accounting: Accounting | None = None
    relay: Relay | None = None
    ending: tuple[int, str] | None = None

    def joined(self, relay: Relay) -> None:
        """Its legs are about to be joined."""
        self.relay = relay
        if self.ending is not None:
            # An operator ended it while its 101 was on the way. ``run`` has joined the legs when this is called.
            asyncio.get_running_loop().call_soon(self._end_relay)

    def end(self, *, code: int, reason: str) -> None:
        """End it politely, now or as soon as it is relayed; the first word counts. A search is the engine's to end."""
        if self.ending is not None:
            return
        self.ending = (code, reason)
        self._end_relay()

    def _end_relay(self) -> None:
        if self.relay is None or self.ending is None:
            return
        code, reason = self.ending
        event = error_event("ended_by_operator", "The session was ended by the router's operator.")
        self.relay.end(cause="admin", code=code, reason=reason, error_event=event)
