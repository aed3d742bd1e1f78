"""What a simulator saw, for tests, load generators and ``GET /_sim/stats``."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from router.simulator.schema import Json

KEPT_REQUESTS = 256

# Request headers whose values are told over HTTP; any other may hold a key, and only its name is.
_TOLD_HEADERS = frozenset(
    {"connection", "content-type", "host", "openai-beta", "origin", "sec-websocket-version", "upgrade", "user-agent"}
)
_TOLD_QUERY = frozenset({"api-version", "conversation_id", "deployment", "intent", "model"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRequest:
    """An upgrade request as it came, keys included, hence without a telling ``repr``.

    Attributes:
        path: decoded.
        query: the first value of each name.
        query_string: as it stood in the request line.
        headers: names in any case.
        protocols: offered subprotocols.
    """

    path: str
    query: Mapping[str, str] = field(repr=False)
    query_string: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    protocols: tuple[str, ...] = field(repr=False)

    def told(self) -> Json:
        """The request for JSON, with values only where no key can be."""
        return {
            "path": self.path,
            "query": {name: value if name in _TOLD_QUERY else "***" for name, value in self.query.items()},
            "headers": {name.lower(): value if name.lower() in _TOLD_HEADERS else "***" for name, value in self.headers.items()},
            "protocols": [name if "." not in name else f"{name.split('.', 1)[0]}.***" for name in self.protocols],
        }


@dataclass(slots=True, kw_only=True)
class Stats:
    """Counters since the start.

    Attributes:
        connections: accepted and not reset at once, HTTP ones included.
        sessions_opened: sessions that were sent their first event, or that a fault holds silent after the 101.
        active: WebSocket connections now.
        peak: most at a time.
        upgrades_refused: answered with another status than 101.
        sessions_refused: answered with a 101, an ``error`` event and a close.
        connections_reset: reset right after accept.
        events_sent: events and binary messages.
        events_received: by type; types that the dialect does not know are ``other``.
        bytes_received: of the clients' messages.
        close_codes: how connections ended as seen from here: the client's code, 1005 for a frame without, 1006 for none at all.
        requests: the last upgrade requests, oldest first.
        received: the last messages as they came, oldest first; empty unless asked for.
        failures: exceptions that should not have been, as text.
    """

    connections: int = 0
    sessions_opened: int = 0
    active: int = 0
    peak: int = 0
    upgrades_refused: int = 0
    sessions_refused: int = 0
    connections_reset: int = 0
    events_sent: int = 0
    events_received: Counter[str] = field(default_factory=Counter)
    bytes_received: int = 0
    close_codes: Counter[int] = field(default_factory=Counter)
    requests: deque[SeenRequest] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS), repr=False)
    received: deque[bytes] = field(default_factory=lambda: deque(maxlen=0), repr=False)
    failures: list[str] = field(default_factory=list)
    # Only filled while somebody waits for a state.
    _waiting: list[asyncio.Future[None]] = field(default_factory=list, repr=False)

    def changed(self) -> None:
        """Wake whoever waits for a state; called after each change that one could wait for."""
        while self._waiting:
            waiter = self._waiting.pop()
            if not waiter.done():
                waiter.set_result(None)

    async def wait_until(self, condition: Callable[[Stats], bool], *, timeout_s: float = 5.0) -> None:
        """Wait for a condition, looked at whenever something changed.

        Raises:
            TimeoutError: it did not hold within ``timeout_s`` seconds.
        """
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                waiter = asyncio.get_running_loop().create_future()
                self._waiting.append(waiter)
                await waiter

    @property
    def last_request(self) -> SeenRequest | None:
        """The last upgrade request, if there was one."""
        return self.requests[-1] if self.requests else None

    def told(self) -> Json:
        """Everything for JSON, without keys and without messages."""
        names = (
            "connections",
            "sessions_opened",
            "active",
            "peak",
            "upgrades_refused",
            "sessions_refused",
            "connections_reset",
            "events_sent",
            "bytes_received",
        )
        told: Json = {name: getattr(self, name) for name in names}
        told["events_received"] = dict(self.events_received)
        told["close_codes"] = {str(code): count for code, count in sorted(self.close_codes.items())}
        told["last_request"] = self.last_request.told() if self.last_request is not None else None
        told["failures"] = list(self.failures)
        return told


class RateMeter:
    """An account's limits of requests and tokens a minute, refilled steadily.

    Args:
        clock: monotonic seconds.
        requests: limit a minute.
        tokens: limit a minute.
    """

    def __init__(self, *, clock: Callable[[], float], requests: int = 10_000, tokens: int = 2_000_000) -> None:
        self._clock = clock
        self._limits = {"requests": requests, "tokens": tokens}
        self._used = {"requests": 0.0, "tokens": 0.0}
        self._at_s = clock()

    def spend(self, tokens: int) -> None:
        """Count one request and its tokens. Nothing is refused: real limits hit between sessions, as an HTTP 429."""
        self._refill()
        self._used["requests"] += 1
        self._used["tokens"] += tokens

    def written(self) -> list[Json]:
        """``rate_limits`` of ``rate_limits.updated``."""
        self._refill()
        return [
            {
                "name": name,
                "limit": limit,
                "remaining": max(limit - round(self._used[name]), 0),
                "reset_seconds": round(self._used[name] * 60 / limit, 3),
            }
            for name, limit in self._limits.items()
        ]

    def _refill(self) -> None:
        now_s = self._clock()
        for name, limit in self._limits.items():
            self._used[name] = max(self._used[name] - limit / 60 * (now_s - self._at_s), 0.0)
        self._at_s = now_s
