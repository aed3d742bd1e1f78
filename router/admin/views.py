"""What one process knows, as plain JSON. Pure: it reads live state between two awaits, and waits for nothing.

Times are seconds and moments epoch seconds. No secret and no address of an upstream is in any of it; texts that an upstream
wrote, and what dials said, go through ``clean``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from router.breaker import BreakerState
from router.decisions import described, select
from router.engine import Engine
from router.events import Attempt, Event, SessionRecord
from router.live import Live
from router.pool import Deployment, Group

#: Ended sessions that are remembered.
REMEMBERED: Final = 500
# The two clocks drift apart by less than this while nobody sets one.
_CLOCK_SET_S: Final = 0.25


class Recent:
    """An observer that remembers the records of the last sessions.

    Args:
        remembered: how many.
        wall_clock: epoch seconds.
    """

    def __init__(self, *, wall_clock: Callable[[], float], remembered: int = REMEMBERED) -> None:
        # By id, oldest first, with the moment of the end.
        self._records: dict[str, tuple[float, SessionRecord]] = {}
        self._remembered = remembered
        self._wall_clock = wall_clock

    def __len__(self) -> int:
        return len(self._records)

    def __call__(self, event: Event) -> None:
        """Remember a record."""
        if type(event) is not SessionRecord:
            return
        self._records[event.session] = (self._wall_clock(), event)
        if len(self._records) > self._remembered:
            del self._records[next(iter(self._records))]

    def get(self, session: str) -> tuple[float, SessionRecord] | None:
        """When a session ended and its record; ``None``: it is not remembered."""
        return self._records.get(session)

    @property
    def ids(self) -> Iterable[str]:
        """Of all that are remembered."""
        return self._records


class Views:
    """Reads an engine.

    Args:
        engine: serves the sessions.
        recent: sessions that have ended.
        wall_clock: epoch seconds.
        clean: takes secrets out of a text that is not the router's own.
    """

    def __init__(
        self, engine: Engine, *, recent: Recent, wall_clock: Callable[[], float], clean: Callable[[str], str]
    ) -> None:
        self._engine = engine
        self._recent = recent
        self._wall_clock = wall_clock
        self._clean = clean
        self._epoch = -math.inf  # epoch seconds at the zero of the engine's clock, as last reckoned

    # --- deployments --------------------------------------------------------------------------------

    def deployments(self) -> dict[str, Any]:
        """Every group with its deployments and their live state."""
        groups = {name: self._group(name, group) for name, group in self._engine.pool.groups.items()}
        # Those that are gone from the file, as long as their sessions run; their group may be gone as well.
        for deployment in self._engine.pool.leaving:
            if not deployment.sessions:
                continue
            name = deployment.settings.group
            entry = groups.setdefault(name, {"group": name, "strategy": "", "fallbacks": [], "aliases": [], "deployments": []})
            entry["deployments"].append(self.deployment(deployment))
        return {"generation": self._engine.generation, "fleet": self.fleet(), "groups": list(groups.values())}

    def _group(self, name: str, group: Group) -> dict[str, Any]:
        return {
            "group": name,
            "strategy": group.settings.strategy.name,
            "fallbacks": list(group.settings.fallbacks),
            "aliases": list(self._engine.pool.aliases(name)),
            "deployments": [self.deployment(deployment) for deployment in group.deployments],
        }

    def deployment(self, deployment: Deployment) -> dict[str, Any]:
        """One deployment."""
        settings = deployment.settings
        breaker = deployment.breaker
        return {
            "id": deployment.id,
            "provider": settings.provider,
            "model": settings.model,
            "state": deployment.state,
            "obstacle": _obstacle(deployment),
            "reason": breaker.reason or settings.problem or None,
            "order": settings.order,
            "weight": deployment.weight,
            "sessions": deployment.sessions,
            "sessions_elsewhere": None if self._engine.fleet is None else deployment.elsewhere.sessions,
            "max_sessions": deployment.max_sessions,
            "ready_s": deployment.measured_ready_s,
            "first_audio_s": deployment.measured_first_audio_s,
            "minute_starts": deployment.minute_starts,
            "minute_tokens": deployment.minute_tokens,
            "rpm": settings.rpm,
            "tpm": settings.tpm,
            "headroom": deployment.headroom,
            "available_in_s": deployment.available_in_s(),
            "failures_in_a_row": breaker.failures,
            "ejected_s": breaker.remaining_s() if breaker.state is BreakerState.EJECTED else None,
            "attempts": dict(deployment.outcomes),
            "started": deployment.started,
            "configured": {"state": settings.state, "weight": settings.weight},
            "override": {"state": deployment.override_state, "weight": deployment.override_weight},
            "removed": deployment.removed,
        }

    def fleet(self) -> dict[str, Any] | None:
        """What this process is among others; ``None``: there are none."""
        fleet = self._engine.fleet
        if fleet is None:
            return None
        age_s = fleet.picture.age_s
        return {
            "member": fleet.member,
            "mode": fleet.mode,
            "members": fleet.picture.members + 1,
            "picture_age_s": age_s if math.isfinite(age_s) else None,
        }

    # --- sessions -----------------------------------------------------------------------------------

    def sessions(
        self,
        *,
        limit: int,
        group: str | None = None,
        deployment: str | None = None,
        principal: str | None = None,
        search: str | None = None,
    ) -> dict[str, Any]:
        """Sessions under way, the newest first.

        Args:
            limit: most of them that are shown; all are counted.
            group, deployment, principal: only these.
            search: a part of the id, or of the client's address, the principal's or the deployment's name, in any case.
        """
        needle = None if search is None else search.lower()
        found = [
            live
            for live in reversed(list(self._engine.live.values()))
            if (group is None or live.request.group.settings.name == group)
            and (deployment is None or (live.opened is not None and live.opened.deployment.id == deployment))
            and (principal is None or live.request.principal.name == principal)
            and (needle is None or _mentions(live, needle))
        ]
        return {"sessions": [self._session(live) for live in found[:limit]], "total": len(found)}

    def session(self, session: str) -> dict[str, Any] | None:
        """A session under way, or one that has ended lately, with its attempts, decisions and usage; ``None``: no such one."""
        live = self._engine.live.get(session)
        if live is not None:
            now = self._engine.clock()
            attempts = live.search.all_attempts(now)
            return {
                **self._session(live),
                "attempts": [self._attempt(attempt) for attempt in attempts],
                "decisions": self._decisions(session),
                "usage": {} if live.accounting is None else live.accounting.usage.as_dict(),
                "generation": live.generation,
                "ended": None,
            }
        ended = self._recent.get(session)
        return None if ended is None else self._ended(*ended)

    def near(self, session: str) -> list[str]:
        """Ids of at most three sessions that begin with what was asked for, or hold it: an id that was cut off."""
        if not session:
            return []
        ids = (*self._engine.live, *self._recent.ids)
        found = [one for one in ids if one.startswith(session)] or [one for one in ids if session in one]
        return found[:3]

    def _session(self, live: Live) -> dict[str, Any]:
        now = self._engine.clock()
        request, search, accounting = live.request, live.search, live.accounting
        end = None if live.relay is None else live.relay.summary()
        return {
            "session": request.session,
            "group": request.group.settings.name,
            "deployment": None if live.opened is None else live.opened.deployment.id,
            "principal": request.principal.name,
            "client": request.client,
            "phase": "waiting" if accounting is None else accounting.phase,
            "began_at": self._epoch_s(now) + search.started,
            "seconds": now - search.started,
            "ready_s": live.ready_s,
            "attempts": len(search.attempts) + len(search.under_way),
            "turns": 0 if accounting is None else accounting.turns,
            "first_audio_s": None if accounting is None else accounting.first_audio_s,
            "client_events": 0 if end is None else end.client_events,
            "upstream_events": 0 if end is None else end.upstream_events,
            "client_bytes": 0 if end is None else end.client_bytes,
            "upstream_bytes": 0 if end is None else end.upstream_bytes,
        }

    def _ended(self, at: float, record: SessionRecord) -> dict[str, Any]:
        return {
            "session": record.session,
            "group": record.group,
            "deployment": record.deployment or None,
            "principal": record.principal,
            "client": record.client,
            "phase": record.phase,
            "began_at": at - record.seconds,
            "seconds": record.seconds,
            "ready_s": record.ready_s,
            "attempts": [self._attempt(attempt) for attempt in record.attempts],
            "turns": record.turns,
            "first_audio_s": record.first_audio_s,
            "client_events": record.client_events,
            "upstream_events": record.upstream_events,
            "client_bytes": record.client_bytes,
            "upstream_bytes": record.upstream_bytes,
            "decisions": self._decisions(record.session),
            "usage": record.usage.as_dict(),
            "generation": record.generation,
            "ended": {
                "at": at,
                "who": record.who,
                "cause": record.cause,
                "phase": record.phase,
                "status": record.status,
                "client_code": record.client_code,
                "upstream_code": record.upstream_code,
                "upstream_reason": self._clean(record.upstream_reason),
                "passed_over": [{"id": id, "reason": reason} for id, reason in record.passed_over],
            },
        }

    def _attempt(self, attempt: Attempt) -> dict[str, Any]:
        return {
            "deployment": attempt.deployment,
            "outcome": attempt.outcome,
            "seconds": attempt.seconds,
            "detail": self._clean(attempt.detail),
            "raced": attempt.raced,
        }

    # --- decisions ----------------------------------------------------------------------------------

    def decisions(
        self, *, limit: int, group: str | None = None, deployment: str | None = None, session: str | None = None
    ) -> dict[str, Any]:
        """The last choices, the newest first, at most ``limit`` of them, of those about a group, a deployment, a session."""
        remembered = self._engine.routing.decisions.newest_first()
        found: Iterator[Any] = select(remembered, group=group, deployment=deployment, session=session)
        epoch_s = self._epoch_s(self._engine.clock())
        return {"decisions": [described(decision, epoch_s=epoch_s) for decision in islice(found, limit)]}

    def _decisions(self, session: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.decisions(limit=REMEMBERED, session=session)["decisions"]
        return found

    def _epoch_s(self, now: float) -> float:
        """Epoch seconds at the zero of the engine's clock."""
        epoch = self._wall_clock() - now
        # A moment that was shown once stays the same to the last digit, unless somebody sets the clock.
        if abs(epoch - self._epoch) > _CLOCK_SET_S:
            self._epoch = epoch
        return self._epoch


def _mentions(live: Live, needle: str) -> bool:
    request = live.request
    texts = (request.session, request.client, request.principal.name, "" if live.opened is None else live.opened.deployment.id)
    return any(needle in text.lower() for text in texts)


def _obstacle(deployment: Deployment) -> str | None:
    """Why no session may begin there now, as far as this process knows; ``None``: nothing stands in the way."""
    obstacle = deployment.obstacle()
    most = deployment.max_sessions
    # Whether the fleet has a place left is found out at the dial, and asked for nowhere else; its picture is enough to look at.
    if not obstacle and most is not None and deployment.sessions + deployment.elsewhere.sessions >= most:
        return "full"
    return obstacle or None
