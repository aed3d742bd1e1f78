"""The beat: once a second a process publishes its whole share and hears what the others hold.

Nobody waits for it but itself, so an exchange that is frozen, gone, full or insane costs a session nothing: the picture
grows old, and strategies trust it less (``strategies.base.Freshness``).

An answer that does not know this process is not believed: the exchange was emptied, or is another one by now, or this
process was stopped for so long that its entry ended. The others seem to hold nothing then until each of them has published
again, which all do before this process's next beat. Its places are entered at once, so that nobody is let in where its
sessions run.

Beats are a little irregular, so that replicas that start together do not stay together. After a burst of new sessions one
comes early, in the place of the next: the others hear of the burst sooner, and the number of calls stays that of the
seconds.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

from router.breaker import BreakerState
from router.events import FleetBeat, Notice, Observers
from router.fleet.exchange import Exchange, ExchangeError, Heard
from router.fleet.gate import Gate
from router.fleet.picture import MAXIMA, MOST, Picture, Vector, add, vector
from router.pool import Deployment
from router.tasks import Tasks

#: Sessions begun since the last beat that make the next one come early ...
BURST: Final = 32
#: ... though not sooner after the last one than this share of the interval, and once in so many beats.
_EARLIEST: Final = 0.25
_BEATS_BETWEEN_EARLY: Final = 5
# Only ever sooner: a dead process is to be out of everybody's picture one interval after its entry has ended.
_JITTER: Final = 0.04
# Of a beat as a whole, connecting included; far above what the exchanges allow themselves.
_BEAT_TIMEOUT_S: Final = 3.0
# Failures in a row before the log says so, and the least time between two such lines: a server that comes and goes
# every few seconds must not fill the log.
_FAILURES_TOLD: Final = 2
_SILENCE_BETWEEN_LINES_S: Final = 60.0
_LEAVE_TIMEOUT_S: Final = 0.3

Mode = Literal["fresh", "ageing", "local"]


class Fleet:
    """This process as a member of a fleet.

    Args:
        exchange: carries shares and places.
        where: the exchange in an operator's words, for the log.
        member: this process's name there, fresh at each start: an old life's entry is another member's.
        deployments: what there is to tell of, asked at each beat.
        keys: virtual key's name → its sessions here.
        picture: what is heard goes there.
        on_loss: what becomes of hard limits while the exchange is away.
        tasks: owner of the beat.
        tell: observers.
        clock: monotonic seconds.
        rng: for the jitter.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        where: str,
        member: str,
        deployments: Callable[[], Iterable[Deployment]],
        keys: Callable[[], Mapping[str, int]],
        picture: Picture,
        on_loss: Literal["open", "closed"],
        tasks: Tasks,
        tell: Observers,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.member = member
        self._where = where
        self.picture = picture
        self.gate = Gate(
            exchange,
            picture=picture,
            member=member,
            on_loss=on_loss,
            tasks=tasks,
            clock=clock,
            on_failure=self._gate_failed,
        )
        #: Set when the first beat was answered, or was not.
        self.joined = asyncio.Event()
        self._exchange = exchange
        self._deployments = deployments
        self._keys = keys
        self._tasks = tasks
        self._tell = tell
        self._clock = clock
        self._rng = rng
        self._begun = 0  # sessions since the last beat
        self._early = asyncio.Event()
        self._since_early = _BEATS_BETWEEN_EARLY
        self._failures = 0
        self._asked_at = -math.inf  # the last beat that was answered
        self._told_lost_at = -math.inf
        self._told_lost = False
        self._joined_once = False
        self._gate_error: Exception | None = None  # since the last answer

    @property
    def mode(self) -> Mode:
        """How far the others are known."""
        return self.picture.freshness.value

    def begun(self) -> None:
        """Another session has begun; many of them make a beat come early."""
        self._begun += 1
        if self._begun == BURST:
            self._early.set()

    async def run(self) -> None:
        """Beat until cancelled."""
        try:
            await self.beat()
        finally:
            self.joined.set()
        due = self._clock() + self._exchange.interval_s * (1 - _JITTER * self._rng.random())
        while True:
            due = await self._wait(due)
            await self.beat()

    async def beat(self) -> bool:
        """Publish and hear once. Returns whether there was an answer."""
        self._begun = 0
        self._early.clear()
        asked_at = self._clock()
        try:
            async with asyncio.timeout(_BEAT_TIMEOUT_S):
                heard = await self._call(asked_at)
                if not heard.known:
                    # Whoever answers may have lost all places, too: others must not be let in where sessions of this process run.
                    self.gate.forget_entries()
                    if self.gate.to_renew():
                        await self._call(asked_at)
            # In here: what cannot be dealt with is a failure like others, and the next beat comes.
            self._answered(heard, asked_at)
        except Exception as error:
            self._tell(FleetBeat(outcome="failed", seconds=self._clock() - asked_at))
            self._failed(error)
            return False
        self._tell(FleetBeat(outcome="answered", seconds=self._clock() - asked_at))
        return True

    async def _call(self, asked_at: float) -> Heard:
        renew = self.gate.to_renew()
        heard = await self._exchange.beat(self.share(), renew)
        self.gate.renewed(renew, asked_at)
        return heard

    async def leave(self) -> None:
        """Take this process out of the others' picture, in so far as that is quick; it would vanish by itself."""
        if not self.joined.is_set():
            return
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                await self.gate.leave()
                await self._exchange.leave()
        except Exception as error:
            self._tell(Notice(level="debug", event="fleet: not told of the end", facts={"error": error}))

    async def close(self) -> None:
        """Let go of connections."""
        await self._exchange.close()

    def share(self) -> Mapping[str, Vector]:
        """What this process holds. Deployments and keys without anything to tell are left out."""
        share: dict[str, Vector] = {}
        for deployment in self._deployments():
            deployment.telling()
            told = _vector_of(deployment)
            name = f"d:{deployment.id}"
            if name in share:
                # A generation has given the id to something else, and the old one's sessions still run.
                told = add(({name: share[name]}, {name: told}))[name]
            if any(told):
                share[name] = told
        for name, sessions in self._keys().items():
            share[f"k:{name}"] = (*(0,) * MAXIMA, sessions)
        return share

    # --- when ---------------------------------------------------------------------------------------

    async def _wait(self, due: float) -> float:
        """Sleep until the next beat, and return when the one behind it is due."""
        interval_s = self._exchange.interval_s
        following = due + interval_s * (1 - _JITTER * self._rng.random())
        earliest = self._asked_at + interval_s * _EARLIEST
        self._since_early += 1
        while (wait_s := due - self._clock()) > 0:
            if self._since_early <= _BEATS_BETWEEN_EARLY:
                await asyncio.sleep(wait_s)
                continue
            try:
                async with asyncio.timeout(wait_s):
                    await self._early.wait()
            except TimeoutError:
                continue
            self._since_early = 0
            due = min(due, max(earliest, self._clock()))
        # A beat that took long, or a process that was stopped, does not make up for those it missed.
        return max(following, self._clock() + interval_s * _EARLIEST)

    # --- what came of it ----------------------------------------------------------------------------

    def _answered(self, heard: Heard, asked_at: float) -> None:
        gate_failed = self._gate_error is not None
        if self._gate_error is not None:
            # Shares come and go, and places do not: a right that is missing, or a server that is too far away.
            self._lose("fleet: places across the fleet cannot be asked for", self._gate_error)
            self._gate_error = None
        self._failures = 0
        first, self._asked_at = self._asked_at == -math.inf, asked_at
        if not heard.known:
            # Not to be trusted, but nobody who is in it is not there.
            self.picture.members = max(self.picture.members, heard.members)
            if not first:
                # The others' beats are all to come before the next one of this process.
                self._since_early = 0
            # Who begins is not known, and that is all: places of others are where they were.
            self.gate.reachable = self.gate.reachable and first
            return
        self.picture.take(heard.totals, members=heard.members, asked_at=asked_at)
        for deployment in self._deployments():
            deployment.told()
        self.gate.reachable = True
        self.gate.tell_returns()
        facts = {"members": heard.members + 1, "server": self._where}
        if not self._joined_once:
            self._joined_once = True
            self._tell(Notice(level="info", event="fleet joined", facts=facts))
        elif self._told_lost and not gate_failed:
            self._tell(Notice(level="info", event="fleet: shared state is back", facts=facts))
        self._told_lost = self._told_lost and gate_failed

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._gate_error = None
        self.gate.reachable = False
        if self._failures >= _FAILURES_TOLD:
            self._lose("fleet: shared state is lost" if self._joined_once else "fleet: shared state cannot be reached", error)

    def _lose(self, event: str, error: Exception) -> None:
        now = self._clock()
        if self._told_lost or now - self._told_lost_at < _SILENCE_BETWEEN_LINES_S:
            return
        self._told_lost = True
        self._told_lost_at = now
        # In words of the library and not as an exception: where it was raised says nothing to an operator.
        text = f"{type(error).__name__}: {error}" if not isinstance(error, ExchangeError) else str(error)
        facts = {
            "server": self._where,
            "error": text,
            "silent_s": None if self._asked_at == -math.inf else round(now - self._asked_at, 1),
            "meanwhile": self._meanwhile,
        }
        self._tell(Notice(level="warning", event=event, facts=facts))

    @property
    def _meanwhile(self) -> str:
        limits = "max_sessions by this process's part" if self.gate.open_on_loss else "nothing new where there is a max_sessions"
        return f"choices by the last picture until it is 10 s old, then by own counts; {limits}"

    def _gate_failed(self, error: Exception) -> None:
        # The beat finds out for itself how things are; until then nobody else waits in vain.
        self._gate_error = error


def _vector_of(deployment: Deployment) -> Vector:
    if deployment.removed:
        # How it does is of no use to anybody; what it holds, and has used of a limit, still counts.
        return vector(
            sessions=deployment.sessions,
            starts=deployment.started,
            minute_starts=deployment.starts.used(),
            minute_tokens=min(deployment.tokens.used(), MOST),
        )
    ready_s = deployment.ready_s if deployment.was_ready else None
    audio_s = deployment.first_audio_s
    return vector(
        spent=deployment.spent,
        sessions=deployment.sessions,
        starts=deployment.started,
        minute_starts=deployment.starts.used(),
        # A provider's numbers may be absurd; the others would refuse the whole vector for it.
        minute_tokens=min(deployment.tokens.used(), MOST),
        ejected=int(deployment.breaker.state is BreakerState.EJECTED),
        ready_sum=ready_s or 0.0,
        ready_count=int(ready_s is not None),
        first_audio_sum=audio_s or 0.0,
        first_audio_count=int(audio_s is not None),
    )
