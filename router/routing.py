"""The attempt loop: from a call to an upstream that is ready, whatever some of the deployments do.

    pass 0    every deployment in reach, each at most once: the group's lowest order with an eligible one, the next orders, the
              groups named in ``fallbacks``; then ejected ones, the least recently ejected first (fail open)
    pass 1…   what failed for a passing reason is dialled again, after a back-off, until the session's time is used up

Within a pass, a failure starts the next attempt at once, and an attempt that is silent for ``stagger_s`` starts the next one
beside it (at most ``MAX_OPEN``; the first that is ready wins; learned from RFC 8305's connection racing). A loser runs on,
waited for by nobody, so that a dead deployment is found out although no session waits for it any more.

tenacity drives the passes: when to stop, how long to wait. The wait itself, the race and the classification are ours.
A client that hangs up cancels ``open``, and with it every dial under way; nobody is blamed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import tenacity

from router import decisions
from router.breaker import BreakerState
from router.errors import BadHandshake, NoDeploymentAvailable, Overloaded, RateLimited, RouterError, TimedOut, UpstreamError
from router.events import Attempt, Observers, TurnedAway
from router.pool import MAX_RETRY_AFTER_S, Deployment, Group, Lease, Pool
from router.providers import error_kind
from router.providers.base import Forward
from router.retry import Outcome, RetryBudget, Verdict, backoff_s, classify
from router.tasks import Tasks
from router.upstream import Dialer, Upstream
from strategies.base import Call

# Attempts of one session that may be open at a time (DESIGN §3.3).
MAX_OPEN: Final = 3
# In a session's record, in the place of an outcome: the attempt had not ended when the record was made.
UNDER_WAY: Final = "under_way"
# Told to clients when nobody knows how long it will take.
DEFAULT_RETRY_AFTER_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A deployment that is ready for the session; whoever gets it releases the lease and ends the upstream."""

    deployment: Deployment
    lease: Lease
    upstream: Upstream


class Admission(Protocol):
    """Grants places on deployments whose ``max_sessions`` holds across the fleet."""

    async def admit(self, lease: Lease) -> bool:
        """Return whether the session of a lease may dial; what it took goes back with the lease."""


class _PassFailed(Exception):
    """A pass found nothing; whether another one may help stands in the search."""


class Search:
    """The state of one session's search: what was tried, what happened, how much time is left.

    Args:
        session: its id.
        group: where it starts.
        chain: that group and those it falls back to.
        call: for strategies.
        forward: group → what travels upstream, for each may allow other names.
        started: monotonic seconds.
        applied: of the pool, when it began.
    """

    def __init__(
        self,
        *,
        session: str,
        group: Group,
        chain: tuple[Group, ...],
        call: Call,
        forward: Callable[[Group], Forward],
        started: float,
        applied: int = 0,
    ) -> None:
        self.session = session
        self.group = group
        self.chain = chain
        self.call = call
        self.forward = forward
        self.started = started
        self.applied = applied
        self.deadline = started + group.settings.total_timeout_s
        self.attempts: list[Attempt] = []  # those that have ended
        self.under_way: dict[str, tuple[Deployment, float]] = {}  # the others: when their dial began, by deployment's id
        self.full: set[str] = set()  # the fleet had no place there
        self.dials = 0
        self.redials = 0  # number of the pass, counted from 0
        self.tried: set[str] = set()  # in this pass
        self.over = False  # a winner was found, or the session gave up: what is still open is on its own
        self.verdicts: dict[str, Verdict] = {}  # the last one of each deployment
        self.client_error: UpstreamError | None = None  # the upstream refused what the client sent
        self.starved = False  # the retry budget refused a dial

    @property
    def deployments(self) -> list[tuple[Group, Deployment]]:
        """Everything in reach."""
        return [(group, deployment) for group in self.chain for deployment in group.deployments]

    def all_attempts(self, now: float) -> tuple[Attempt, ...]:
        """Every attempt, those included that are still under way (a loser of a race may be)."""
        pending = tuple(
            Attempt(
                session=self.session,
                group=deployment.settings.group,
                deployment=deployment.id,
                outcome=UNDER_WAY,
                seconds=now - started,
                raced=True,
                provider=deployment.settings.provider,
                model=deployment.settings.model,
            )
            for deployment, started in self.under_way.values()
        )
        return (*self.attempts, *pending)

    def passed_over(self) -> tuple[tuple[str, str], ...]:
        """Deployments in reach that were not dialled, with the reason."""
        dialled = {attempt.deployment for attempt in self.attempts} | set(self.under_way)
        return tuple(
            (deployment.id, deployment.why_not() or "not reached")
            for _, deployment in self.deployments
            if deployment.id not in dialled
        )

    @property
    def dials_left(self) -> bool:
        """Whether ``max_attempts`` allows another dial."""
        limit = self.group.settings.max_attempts
        return limit is None or self.dials < limit


class Routing:
    """Finds a ready deployment for a session.

    Args:
        pool: groups and deployments.
        dialer: opens upstreams.
        budget: the process's re-dials.
        tasks: owner of the dials.
        tell: observers.
        clock: monotonic seconds.
        rng: for back-off jitter.
        admission: asked before a deployment with ``max_sessions`` is dialled; ``None``: the process's own count is all there is.

    Attributes:
        decisions: the last choices.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        dialer: Dialer,
        budget: RetryBudget,
        tasks: Tasks,
        tell: Observers,
        clock: Callable[[], float],
        rng: random.Random,
        admission: Admission | None = None,
    ) -> None:
        self._pool = pool
        self._admission = admission
        self._dialer = dialer
        self._budget = budget
        self._tasks = tasks
        self._tell = tell
        self._clock = clock
        self._rng = rng
        self.decisions = decisions.Decisions()

    def search(self, *, session: str, group: Group, call: Call, forward: Callable[[Group], Forward]) -> Search:
        """Begin a session's search; its clock starts now."""
        self._budget.deposit()
        return Search(
            session=session,
            group=group,
            chain=self._pool.chain(group),
            call=call,
            forward=forward,
            started=self._clock(),
            applied=self._pool.applied,
        )

    async def open(self, search: Search) -> Opened:
        """Return an upstream that is ready.

        Raises:
            BadHandshake: the upstream refused what the client sent.
            RateLimited, NoDeploymentAvailable, TimedOut: nothing could be found.
            Overloaded: this process or machine has no socket left for a dial.
        """
        try:
            try:
                # Nearly every session is served by its first pass, so what follows is not made before it is needed.
                return await self._pass(search)
            except _PassFailed:
                return await self._more_passes(search)
        except _PassFailed:
            pass
        finally:
            search.over = True
        raise self._final_error(search)

    async def _more_passes(self, search: Search) -> Opened:
        """Try again while that could help, after a back-off; the first pass has failed.

        Raises: as ``open``, and _PassFailed.
        """
        passes = tenacity.AsyncRetrying(
            sleep=asyncio.sleep,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, _PassFailed) and self._may_redial(search)),
            wait=lambda state: backoff_s(state.attempt_number - 1, self._rng),
            stop=partial(self._stop, search),
            reraise=True,
        )
        async for attempt in passes:
            with attempt:
                search.redials = attempt.retry_state.attempt_number - 1
                if not search.redials:
                    # The one that has been made.
                    raise _PassFailed
                return await self._pass(search)
        raise _PassFailed

    # --- one pass -----------------------------------------------------------------------------------

    async def _pass(self, search: Search) -> Opened:
        """Try each deployment in reach at most once."""
        search.tried.clear()
        racing: dict[asyncio.Task[Opened | None], Deployment] = {}
        next_at = self._clock()  # when another attempt may start beside those that are open
        try:
            while True:
                now = self._clock()
                if now >= search.deadline:
                    raise TimedOut
                while len(racing) < MAX_OPEN and (not racing or now >= next_at):
                    chosen = self._choose(search, racing.values())
                    if chosen is None:
                        next_at = search.deadline
                        break
                    racing[self._start(search, *chosen)] = chosen[1]
                    next_at = now + search.group.settings.stagger_s
                if not racing:
                    raise _PassFailed
                full = len(racing) >= MAX_OPEN
                until = search.deadline if full else min(search.deadline, max(next_at, now))
                done, _ = await asyncio.wait(racing, timeout=until - now, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    opened = task.result()
                    if opened is not None:
                        del racing[task]
                        return opened
                for task in done:
                    del racing[task]
                if done:
                    # A failure does not wait for the stagger.
                    next_at = self._clock()
                if search.client_error is not None:
                    raise BadHandshake("The provider refused a parameter or header of this request.")
        except asyncio.CancelledError:
            await self._abandon(racing)
            raise
        finally:
            # Whatever is still open is on its own now. (A pass that merely failed leaves nothing open.)
            search.over = search.over or bool(racing)
            for task in racing:
                # One that became ready in this very moment, too late.
                if task.done() and not task.cancelled() and task.exception() is None:
                    late = task.result()
                    if late is not None:
                        late.upstream.close()
                        late.lease.release()

    async def _abandon(self, racing: dict[asyncio.Task[Opened | None], Deployment]) -> None:
        """The client has hung up: end its dials and see them ended."""
        for task in racing:
            task.cancel()
        if racing:
            await asyncio.wait(racing)

    def _choose(self, search: Search, racing: Collection[Deployment]) -> tuple[Group, Deployment] | None:
        """The next deployment to dial, by order, fallbacks, and fail-open; ``None``: nothing is left for now."""
        if search.applied != self._pool.applied:
            self._follow(search)
        if not search.dials_left:
            self._nothing(search, racing, (), decisions.NO_DIALS_LEFT)
            return None
        passed_over: list[tuple[Deployment, tuple[str, str]]] = []
        for group in search.chain:
            for tier in group.tiers:
                candidates: list[Deployment] = []
                for deployment in tier:
                    if deployment.id in search.tried:
                        passed_over.append((deployment, decisions.TRIED))
                    elif not self._may_dial(search, deployment):
                        passed_over.append((deployment, decisions.LASTING))
                    elif deployment.eligible():
                        candidates.append(deployment)
                    else:
                        passed_over.append((deployment, deployment.refusal()))
                if not candidates:
                    continue
                if search.verdicts:
                    # One that was never dialled in this session goes first, and is free of charge.
                    fresh = [item for item in candidates if item.id not in search.verdicts]
                    if fresh:
                        passed_over += [(item, decisions.FAILED_BEFORE) for item in candidates if item.id in search.verdicts]
                        candidates = fresh
                    elif not self._afford(search):
                        self._nothing(search, racing, passed_over, decisions.NO_BUDGET)
                        return None
                chosen = group.strategy.choose(candidates, search.call)
                self._chose(search, group, chosen, candidates, passed_over)
                return group, chosen
        # An admitted one that is still being dialled is not helped by an ejected one beside it.
        if any(deployment.breaker.state is not BreakerState.EJECTED for deployment in racing):
            return None
        opened = self._fail_open(search)
        if opened is None:
            self._nothing(search, racing, passed_over, decisions.NOTHING)
            return None
        passed_over = [item for item in passed_over if item[0] is not opened[1]]
        self._chose(search, *opened, [opened[1]], passed_over, why=decisions.FAIL_OPEN)
        return opened

    def _chose(
        self,
        search: Search,
        group: Group,
        chosen: Deployment,
        candidates: list[Deployment],
        passed_over: list[tuple[Deployment, tuple[str, str]]],
        *,
        why: str | None = None,
    ) -> None:
        """Remember a choice, before the lease on it is taken."""
        alone = len(candidates) == 1
        self.decisions.note(
            at=self._clock(),
            session=search.session,
            group=search.group.settings.name,
            number=search.redials,
            attempt=search.dials + 1,
            candidates=candidates,
            passed_over=passed_over,
            chosen=chosen,
            why=why or (decisions.ONLY_ONE if alone else group.settings.strategy.name),
            in_group=group.settings.name,
            order=chosen.settings.order,
            by_strategy=why is None and not alone,
        )

    def _nothing(
        self,
        search: Search,
        racing: Collection[Deployment],
        passed_over: Sequence[tuple[Deployment, tuple[str, str]]],
        why: str,
    ) -> None:
        """Remember that nothing was chosen, where that ended a pass: beside an open dial it is no news."""
        if racing:
            return
        self.decisions.note(
            at=self._clock(),
            session=search.session,
            group=search.group.settings.name,
            number=search.redials,
            attempt=search.dials + 1,
            candidates=(),
            passed_over=passed_over,
            chosen=None,
            why=why,
        )

    def _follow(self, search: Search) -> None:
        """Go on under the generation that has come meanwhile; what it removed is dialled no more, what it brought can be."""
        search.applied = self._pool.applied
        group = self._pool.groups.get(search.group.settings.name)
        if group is not None:
            search.group = group
            search.chain = self._pool.chain(group)

    def _may_dial(self, search: Search, deployment: Deployment) -> bool:
        """What failed for a reason that does not pass is not dialled again in this session."""
        verdict = search.verdicts.get(deployment.id)
        return verdict is None or verdict.transient

    def _fail_open(self, search: Search) -> tuple[Group, Deployment] | None:
        """When nothing eligible is left: the least recently ejected, unless its key was refused."""
        ejected = [
            (deployment.breaker.ejected_at, index, group, deployment)
            for index, (group, deployment) in enumerate(search.deployments)
            if deployment.id not in search.tried
            and self._may_dial(search, deployment)
            and not deployment.obstacle()
            and deployment.breaker.reason not in ("", Outcome.AUTHENTICATION)
        ]
        if not ejected or not self._afford(search):
            return None
        _, _, group, deployment = min(ejected, key=lambda item: item[:2])
        return group, deployment

    def _afford(self, search: Search) -> bool:
        if self._budget.withdraw():
            return True
        search.starved = True
        return False

    # --- one attempt --------------------------------------------------------------------------------

    def _start(self, search: Search, group: Group, deployment: Deployment) -> asyncio.Task[Opened | None]:
        """Lease and dial. The lease is taken before anything can await, so that concurrent choices see it."""
        # A fallback group may let more travel; what is too long for that is refused while nothing is held yet.
        forward = search.forward(group)
        search.tried.add(deployment.id)
        search.dials += 1
        lease = deployment.lease()
        search.under_way[deployment.id] = (deployment, self._clock())
        return self._tasks.spawn(
            self._attempt(search, deployment, lease, forward),
            name=f"dial {search.session} {deployment.id}",
            expected=(Overloaded,),
        )

    async def _attempt(self, search: Search, deployment: Deployment, lease: Lease, forward: Forward) -> Opened | None:
        """Dial one deployment to its end. Returns ``None`` when it failed, or was ready when nobody waited any more."""
        started = self._clock()
        settings = deployment.settings
        try:
            if self._admission is not None and settings.max_sessions is not None:
                try:
                    admitted = await self._admission.admit(lease)
                except asyncio.CancelledError:
                    # Nobody was dialled, so nothing is recorded.
                    self._turned_away(search, deployment, lease)
                    raise
                if not admitted:
                    group = deployment.settings.group
                    self._tell(TurnedAway(session=search.session, deployment=deployment.id, group=group))
                if not admitted or search.over:
                    self._turned_away(search, deployment, lease)
                    return None
                started = self._clock()
            upstream = await self._dialer.dial(
                settings, forward, max_message_bytes=search.group.settings.relay.max_message_bytes
            )
        except UpstreamError as error:
            seconds = self._clock() - started
            verdict = classify(
                error,
                kind_of=partial(error_kind, deployment.provider),
                forwarded=frozenset(forward.query) | frozenset(forward.headers),
            )
            if verdict.outcome is Outcome.AUTHENTICATION:
                self._dialer.key_refused(settings)
            deployment.failed(lease, verdict, seconds, str(error))
            lease.release()
            search.verdicts[deployment.id] = verdict
            if verdict.outcome is Outcome.CLIENT_REQUEST:
                search.client_error = error
            self._ended(search, deployment, verdict.outcome, seconds, str(error))
            return None
        except asyncio.CancelledError:
            lease.release()
            self._ended(search, deployment, Outcome.CLIENT_GONE, self._clock() - started, "given up with its session")
            raise
        except BaseException:
            # The machine's own limits (Overloaded), or a fault of this program: nobody's to blame but ours.
            search.under_way.pop(deployment.id, None)
            lease.release()
            raise
        seconds = self._clock() - started
        deployment.ready(lease, seconds)
        self._ended(search, deployment, Outcome.READY, seconds, "")
        if search.over:
            upstream.close()
            lease.release()
            return None
        return Opened(deployment=deployment, lease=lease, upstream=upstream)

    def _turned_away(self, search: Search, deployment: Deployment, lease: Lease) -> None:
        """The fleet has no place there: as if it had been full when this session chose."""
        lease.turned_away()
        search.under_way.pop(deployment.id, None)
        search.full.add(deployment.id)
        search.dials -= 1

    def _ended(self, search: Search, deployment: Deployment, outcome: Outcome, seconds: float, detail: str) -> None:
        attempt = Attempt(
            session=search.session,
            group=deployment.settings.group,
            deployment=deployment.id,
            outcome=outcome.value,
            seconds=seconds,
            detail=detail,
            raced=search.over,
            provider=deployment.settings.provider,
            model=deployment.settings.model,
        )
        search.under_way.pop(deployment.id, None)
        search.attempts.append(attempt)
        deployment.outcomes[attempt.outcome] = deployment.outcomes.get(attempt.outcome, 0) + 1
        self._tell(attempt)

    # --- between passes and at the end --------------------------------------------------------------

    def _may_redial(self, search: Search) -> bool:
        """Whether another pass could help: something failed for a passing reason, and there are dials left."""
        if search.starved or not search.dials_left:
            return False
        return any(
            (verdict := search.verdicts.get(deployment.id)) is not None and verdict.transient
            for _, deployment in search.deployments
        )

    def _stop(self, search: Search, state: tenacity.RetryCallState) -> bool:
        """Whether another pass is not allowed, or would begin only after the session's deadline."""
        limit = search.group.settings.num_retries
        if limit is not None and state.attempt_number > limit:
            return True
        return self._clock() + state.upcoming_sleep >= search.deadline

    def _final_error(self, search: Search) -> RouterError:
        """What to tell the client when nothing was found."""
        limited_s: list[float | None] = []
        ejected_s: list[float] = []
        for _, deployment in search.deployments:
            obstacle = deployment.obstacle()
            verdict = search.verdicts.get(deployment.id)
            wait_s = deployment.available_in_s()
            told = verdict is not None and verdict.outcome is Outcome.RATE_LIMITED
            if told or obstacle in _LIMITED or deployment.id in search.full:
                limited_s.append(wait_s)
            elif wait_s:
                ejected_s.append(wait_s)
        # What has failed is not left; so when anything is limited, the limit is what keeps the client waiting.
        if limited_s:
            return RateLimited(retry_after_s=_retry_after_s([wait_s for wait_s in limited_s if wait_s]))
        return NoDeploymentAvailable(retry_after_s=_retry_after_s(ejected_s))


_LIMITED: Final = frozenset({"full", "limit_unknown", "cooling_down", "rate_limited"})


def _retry_after_s(waits_s: list[float]) -> float:
    """The shortest known wait, within reason."""
    return min(MAX_RETRY_AFTER_S, max(1.0, min(waits_s))) if waits_s else DEFAULT_RETRY_AFTER_S
