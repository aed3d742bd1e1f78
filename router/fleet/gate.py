"""Hard limits across the fleet: a place on a deployment is asked for before it is dialled.

This is the one thing of the fleet that a connection waits for, and only on a deployment with ``max_sessions``: at most
``Exchange.patience_s``, then the gate counts as lost and answers by itself until the beat has found its way back: each
process grants its part of the limit (``on_loss: open``), or nothing (``closed``). Who is refused goes on to the next
deployment.

Every place has a name of its own, so that asking twice, giving back twice and giving back what was never had are all
harmless. What this process holds is its own truth: the beat enters it anew, whatever the limit says, when a server forgot
it, and a place whose return was lost ends by itself after ``board.PLACE_TTL_S``.

Requests that come while one is on its way travel together in the next one: a burst costs the server a few calls, not
hundreds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from router.fleet.board import PLACE_TTL_S
from router.fleet.budget import budget
from router.fleet.exchange import Exchange, ExchangeError, Wanted
from router.fleet.picture import Picture
from router.pool import Lease
from router.tasks import Tasks

#: After a refusal a deployment counts as full for this long, and nobody asks.
REFUSAL_HOLDS_S: Final = 0.25
# Each place is renewed this often: three beats of five may be lost before one ends.
RENEWAL_S: Final = PLACE_TTL_S / 3
_BATCH: Final = 256
# A place that is asked for, and where the answer goes; ``None``: the exchange did not answer.
_Question = tuple[Wanted, "asyncio.Future[bool | None]"]
# Returns that the server could not be told of. More are left to end by themselves.
_MOST_RETURNS: Final = 10_000


class Gate:
    """Asks for places, holds them, gives them back.

    Args:
        exchange: where they are entered.
        picture: knows this process's part of a limit.
        member: begins every place's name.
        on_loss: what becomes of a limit while the exchange is away.
        tasks: owner of what runs in the background.
        clock: monotonic seconds.
        on_failure: told of an exception of the exchange.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        picture: Picture,
        member: str,
        on_loss: Literal["open", "closed"],
        tasks: Tasks,
        clock: Callable[[], float],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._exchange = exchange
        self._picture = picture
        self._member = member
        self.open_on_loss = on_loss == "open"
        self._tasks = tasks
        self._clock = clock
        self._on_failure = on_failure
        self._number = 0
        #: Whether the exchange is asked. The beat sets it when it is back.
        self.reachable = True
        # Deployment's id → place → when it was last entered.
        self._held: dict[str, dict[str, float]] = {}
        self._queue: list[_Question] = []
        self._asking = False
        self._returns: dict[str, list[str]] = {}
        self._returning = False

    @property
    def unknown(self) -> bool:
        """Whether nothing is granted for now, because the exchange is away and that is what the configuration asks for."""
        return not self.reachable and not self.open_on_loss

    def most(self, deployment: str, limit: int) -> int:
        """Return the most sessions that this process may hold on a deployment under a limit of the fleet, as things are."""
        if self.reachable:
            return limit
        if not self.open_on_loss:
            return 0
        # For as long as it is known what the others held, it is not taken from them.
        left = max(0, limit - self._picture.of(deployment).sessions)
        return min(left, self._picture.local_share(limit))

    async def admit(self, lease: Lease) -> bool:
        """Return whether the session of a lease may dial; its place is given back when the lease is released."""
        limit = lease.deployment.max_sessions
        if limit is None:
            return True
        self._number += 1
        place = f"{self._member}:{self._number}"
        deployment = lease.deployment.id
        granted: bool | None = None
        if self.reachable:
            granted = await self._ask(Wanted(deployment=deployment, limit=limit, place=place))
        if granted is None:
            # The lease itself is counted already.
            granted = lease.deployment.sessions <= self.most(deployment, limit)
            if not granted:
                # The exchange may have entered it and not have been heard.
                self._give_back(deployment, place)
        if not granted:
            lease.deployment.full_until = self._clock() + REFUSAL_HOLDS_S
            return False
        # One that was granted here alone was entered nowhere; the next beat does it.
        self._held.setdefault(deployment, {})[place] = self._clock() if self.reachable else -PLACE_TTL_S
        lease.on_release = self._give_back
        lease.place = place
        return True

    def to_renew(self) -> Mapping[str, Sequence[str]]:
        """Return the places that the next beat has to enter, by deployment."""
        due = self._clock() - RENEWAL_S
        renew = {
            deployment: [place for place, entered in places.items() if entered <= due]
            for deployment, places in self._held.items()
        }
        return {deployment: places for deployment, places in renew.items() if places}

    def renewed(self, places: Mapping[str, Sequence[str]], at: float) -> None:
        """The exchange has entered places; ``at`` is a reading of the clock from before it was asked."""
        for deployment, names in places.items():
            held = self._held.get(deployment, {})
            for name in names:
                if name in held:
                    held[name] = at
                else:
                    # Given back while the beat was on its way, so that the beat may have come behind the return.
                    self._give_back(deployment, name)

    def forget_entries(self) -> None:
        """The exchange may have lost everything: the next beat enters all places."""
        for places in self._held.values():
            for place in places:
                places[place] = -PLACE_TTL_S

    async def leave(self) -> None:
        """The process ends: give back whatever it holds or held.

        Raises:
            Exception: the exchange cannot be reached; the places end by themselves.
        """
        for deployment, places in self._held.items():
            self._returns.setdefault(deployment, []).extend(places)
        self._held.clear()
        returns, self._returns = self._returns, {}
        if returns:
            await self._exchange.release(returns)

    @property
    def held(self) -> Mapping[str, int]:
        """Places that this process holds, by deployment."""
        return {deployment: len(places) for deployment, places in self._held.items() if places}

    # --- asking -------------------------------------------------------------------------------------

    async def _ask(self, wanted: Wanted) -> bool | None:
        """Ask the exchange; ``None``: it does not answer."""
        answer: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._queue.append((wanted, answer))
        if not self._asking:
            self._asking = True
            self._tasks.spawn(self._ask_all(), name="fleet places")
        try:
            return await answer
        except asyncio.CancelledError:
            # The client has left, or this is the end. A place that comes for it goes back, also one that came in this moment.
            if not answer.cancel() and not answer.cancelled() and answer.result() is not False:
                self._give_back(wanted.deployment, wanted.place)
            raise

    async def _ask_all(self) -> None:
        """Ask for whatever waits, together."""
        batch: list[_Question] = []
        try:
            while self._queue:
                batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
                batch = [(wanted, answer) for wanted, answer in batch if not answer.done()]
                if batch:
                    await self._ask_batch(batch)
        except asyncio.CancelledError:
            # The end of the process: nobody waits for an answer that will not come, and ``leave`` gives back what may be entered.
            for wanted, answer in (*batch, *self._queue):
                answer.cancel()
                self._returns.setdefault(wanted.deployment, []).append(wanted.place)
            raise
        finally:
            self._asking = False

    async def _ask_batch(self, batch: Sequence[_Question]) -> None:
        try:
            async with budget(self._exchange.patience_s):
                granted = await self._exchange.acquire([wanted for wanted, _ in batch])
            if len(granted) != len(batch):
                raise ExchangeError(f"found {len(granted)} answers, expected {len(batch)}")
        except Exception as error:
            self._lost(error)
            # Whoever has come meanwhile would wait as long for nothing.
            waiting, self._queue = self._queue, []
            for wanted, answer in (*batch, *waiting):
                # It may have been entered all the same.
                self._answer(wanted, answer, None)
            return
        for (wanted, answer), yes in zip(batch, granted, strict=True):
            self._answer(wanted, answer, yes)

    def _answer(self, wanted: Wanted, answer: asyncio.Future[bool | None], outcome: bool | None) -> None:
        """Tell who waits; when nobody does any more, a place that was granted, or may have been, goes back."""
        if not answer.done():
            answer.set_result(outcome)
        elif outcome is not False:
            self._give_back(wanted.deployment, wanted.place)

    def _lost(self, error: Exception) -> None:
        if self.reachable:
            self.reachable = False
            self._on_failure(error)

    # --- giving back --------------------------------------------------------------------------------

    def _give_back(self, deployment: str, place: str) -> None:
        """Let a place go, held or not; the exchange is told together with the others that end in this moment."""
        places = self._held.get(deployment)
        if places is not None and places.pop(place, None) is not None and not places:
            del self._held[deployment]
        if sum(map(len, self._returns.values())) < _MOST_RETURNS:
            self._returns.setdefault(deployment, []).append(place)
        self.tell_returns()

    def tell_returns(self) -> None:
        """Tell the exchange what was given back, if it can hear; the beat calls it when it can again."""
        if self._returns and self.reachable and not self._returning and not self._tasks.closed:
            self._returning = True
            self._tasks.spawn(self._return_all(), name="fleet returns")

    async def _return_all(self) -> None:
        try:
            while self._returns and self.reachable:
                returns, self._returns = self._returns, {}
                try:
                    await self._exchange.release(returns)
                except Exception as error:
                    # They end by themselves, unless they are told of in time.
                    for deployment, places in returns.items():
                        self._returns.setdefault(deployment, []).extend(places)
                    self._lost(error)
        finally:
            self._returning = False
