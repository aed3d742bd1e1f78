"""The contract between the beat and whatever carries shares and places from process to process.

An exchange may fail in any way at any call: whoever calls it bounds the time of the call and takes every exception for "not
reachable". It keeps no state that matters: what it knows can be told to it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from router.fleet.picture import Vector


class ExchangeError(RuntimeError):
    """The exchange could not be reached, refused, or gave no sound answer. The message is fit for a log: no secret is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The answer to a beat.

    Attributes:
        now_s: the exchange's own clock, seconds; only differences mean something, and a jump of it is possible.
        known: whether this process's own entry was still there. If not, it has ended, or everything was lost: the exchange was
            emptied or is another one, and the others are in the answer only in so far as they have beaten since.
        members: other processes that are alive by that clock.
        totals: their shares, added up (``picture.add``).
    """

    now_s: float
    known: bool
    members: int
    totals: Mapping[str, Vector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A place on a deployment whose limit holds for the whole fleet.

    Attributes:
        deployment: its id.
        limit: most places at once.
        place: a name that no other place has, in any process.
    """

    deployment: str
    limit: int
    place: str


class Exchange(Protocol):
    """Carries what processes tell each other."""

    @property
    def interval_s(self) -> float:
        """Seconds between two beats."""

    @property
    def patience_s(self) -> float:
        """Longest that a session waits for the answer to ``acquire``, in seconds."""

    async def beat(self, share: Mapping[str, Vector], renew: Mapping[str, Sequence[str]]) -> Heard:
        """Publish this process's whole share for ``board.SHARE_TTL_S``, and renew places for ``board.PLACE_TTL_S``.

        Args:
            share: its picture of itself; what it published before is replaced.
            renew: deployment's id → places; one that is unknown (its server was restarted) is entered again, whatever the limit.
        """

    async def acquire(self, wanted: Sequence[Wanted]) -> Sequence[bool]:
        """Enter places in turn; each is granted while fewer than its limit are held, or when it is held already.

        Raises:
            Exception: also when this process has no entry: what is not known of it may not be known of others either.
        """

    async def release(self, places: Mapping[str, Sequence[str]]) -> None:
        """Give places back, by deployment; unknown ones are nothing."""

    async def leave(self) -> None:
        """Take this process's share away: it ends."""

    async def close(self) -> None:
        """Let go of connections."""
