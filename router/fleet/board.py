"""Who holds what in a fleet, in memory: what the Lua scripts of ``redis_link`` keep in a server, rule by rule the same.

The parent of several workers keeps one for them; tests hold it beside a real server and beside the truth. Pure: the time is
handed in, since the two have clocks of different kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from router.fleet.exchange import ExchangeError, Heard, Wanted
from router.fleet.picture import Vector, add

#: Seconds after its last beat in which a process is taken to be alive.
SHARE_TTL_S: Final = 5.0
#: Seconds for which a place is held without being renewed.
PLACE_TTL_S: Final = 15.0
#: Seconds by which the clock may be set back without anything being taken for an entry from before a jump.
CLOCK_SLACK_S: Final = 2.0


class Board:
    """Shares by member and places by deployment, each with the time at which it ends.

    The clock may jump. What ends later than its whole time from now, with some slack, was entered before a jump backwards: it is
    taken away like what has ended, and whoever lives enters it again with the next beat.
    """

    def __init__(self) -> None:
        self._shares: dict[str, tuple[float, Mapping[str, Vector]]] = {}
        self._places: dict[str, dict[str, float]] = {}

    def beat(self, member: str, share: Mapping[str, Vector], renew: Mapping[str, Sequence[str]], *, now_s: float) -> Heard:
        """Enter a member's whole share and renew its places; return what the others hold."""
        for other, (ends, _) in list(self._shares.items()):
            if not now_s < ends <= now_s + SHARE_TTL_S + CLOCK_SLACK_S:
                del self._shares[other]
        known = member in self._shares
        self._shares[member] = (now_s + SHARE_TTL_S, share)
        for deployment, places in renew.items():
            held = self._places.setdefault(deployment, {})
            held.update(dict.fromkeys(places, now_s + PLACE_TTL_S))
        others = [other_share for other, (_, other_share) in self._shares.items() if other != member]
        return Heard(now_s=now_s, known=known, members=len(others), totals=add(others))

    def acquire(self, wanted: Sequence[Wanted], *, now_s: float, member: str | None = None) -> list[bool]:
        """Enter places in turn, each while fewer than its limit are held.

        Args:
            wanted: the places.
            now_s: the time.
            member: who asks; ``None``: one that is known by other means.

        Raises:
            ExchangeError: the member has no entry.
        """
        if member is not None and not self._shares.get(member, (0.0,))[0] > now_s:
            raise ExchangeError("found no entry of this process, expected one: its next beat makes it")
        return [self._acquire(item, now_s) for item in wanted]

    def places(self, deployment: str, *, now_s: float) -> frozenset[str]:
        """Return the places that are held on a deployment."""
        held = self._places.get(deployment, {})
        for place, ends in list(held.items()):
            if not now_s < ends <= now_s + PLACE_TTL_S + CLOCK_SLACK_S:
                del held[place]
        return frozenset(held)

    def _acquire(self, item: Wanted, now_s: float) -> bool:
        self.places(item.deployment, now_s=now_s)
        held = self._places.setdefault(item.deployment, {})
        if item.place not in held and len(held) >= item.limit:
            return False
        held[item.place] = now_s + PLACE_TTL_S
        return True

    def release(self, places: Mapping[str, Sequence[str]]) -> None:
        """Give places back."""
        for deployment, names in places.items():
            held = self._places.get(deployment, {})
            for name in names:
                held.pop(name, None)
            if not held:
                self._places.pop(deployment, None)

    def clear(self) -> None:
        """Forget everything."""
        self._shares.clear()
        self._places.clear()

    def remove(self, member: str) -> None:
        """A member has ended. Its places stay until their time is up, unless it gave them back."""
        self._shares.pop(member, None)

    def evict(self, member: str) -> None:
        """A member has died, and nobody will give its places back: they go with its share. Their names begin with its own."""
        self._shares.pop(member, None)
        for deployment, held in list(self._places.items()):
            for place in [place for place in held if place.startswith(f"{member}:")]:
                del held[place]
            if not held:
                del self._places[deployment]
