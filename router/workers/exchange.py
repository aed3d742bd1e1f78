"""The exchange of the workers of one router: their parent keeps the board, so that they balance as one without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from router.fleet import picture
from router.fleet.exchange import Heard, Wanted
from router.fleet.picture import Vector
from router.workers.channel import ChannelLost, Message, WorkerEnd

#: Seconds between two beats: a message through a socket pair costs next to nothing, and the picture is as fresh as it is old.
INTERVAL_S: Final = 0.25
#: A parent that has not answered by then is taken to be away; it has nothing else to do.
TIMEOUT_S: Final = 0.5


class ParentExchange:
    """``router.fleet.exchange.Exchange`` through the parent of this process.

    The parent knows by the channel who speaks, so no message carries the member's name. Every call takes at most ``TIMEOUT_S``
    and fails with ``ConnectionError`` or ``TimeoutError``.

    Args:
        end: the channel to the parent; whoever opened it closes it.
    """

    def __init__(self, end: WorkerEnd) -> None:
        self._end = end

    @property
    def interval_s(self) -> float:
        """Seconds between two beats."""
        return INTERVAL_S

    @property
    def patience_s(self) -> float:
        """A parent on the same host that has not answered is not away but has no CPU, and its limits hold all the same."""
        return TIMEOUT_S

    async def beat(self, share: Mapping[str, Vector], renew: Mapping[str, Sequence[str]]) -> Heard:
        """Publish this process's whole share and renew its places; return what the others hold."""
        answer = await self._end.ask("beat", timeout_s=TIMEOUT_S, share=picture.encode(share).decode(), renew=renew)
        now_s, members, totals = answer.get("now_s"), answer.get("members"), answer.get("totals")
        known = answer.get("known")
        if not isinstance(now_s, int | float) or not isinstance(members, int) or not isinstance(totals, str):
            raise _senseless("beat", answer)
        if not isinstance(known, bool):
            raise _senseless("beat", answer)
        try:
            return Heard(now_s=now_s, known=known, members=members, totals=picture.decode(totals.encode()))
        except picture.NotAShare:
            raise _senseless("beat", answer) from None

    async def acquire(self, wanted: Sequence[Wanted]) -> Sequence[bool]:
        """Enter places in turn; each is granted while fewer than its limit are held."""
        items = [[item.deployment, item.limit, item.place] for item in wanted]
        answer = await self._end.ask("acquire", timeout_s=TIMEOUT_S, wanted=items)
        granted = answer.get("granted")
        if not isinstance(granted, list) or len(granted) != len(items) or not all(type(item) is bool for item in granted):
            raise _senseless("acquire", answer)
        return granted

    async def release(self, places: Mapping[str, Sequence[str]]) -> None:
        """Give places back, by deployment; unknown ones are nothing."""
        await self._end.ask("release", timeout_s=TIMEOUT_S, places=places)

    async def leave(self) -> None:
        """Take this process's share away: it ends."""
        await self._end.ask("leave", timeout_s=TIMEOUT_S)

    async def close(self) -> None:
        """Nothing to let go of: the channel serves other ends as well."""


def _senseless(what: str, answer: Message) -> ChannelLost:
    return ChannelLost(f"found {', '.join(sorted(answer))} in the parent's answer to {what}, and not what was expected")
