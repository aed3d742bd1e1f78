"""Groups and deployments with their live state: leases, breaker, cool-down, limits, latencies.

A deployment is what a strategy compares (``strategies.base.Candidate``, by shape) and what routing leases. It lives from the
generation of the configuration that brings it until the last session after the one that removes it: its state is kept by its id.
State changes between awaits, never across one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from types import TracebackType
from typing import Final, Protocol, cast

from router.breaker import Breaker, BreakerState, Ticket
from router.config.settings import DeploymentSettings, DeploymentState, GroupSettings, Settings
from router.events import Admitted, ConfigAlarm, CooledDown, Ejected, Observers
from router.fleet.picture import Picture
from router.limits import CoolDown, SlidingWindow
from router.load import PeakEwma
from router.providers import PROVIDERS, Provider
from router.retry import Outcome, Verdict
from strategies.base import Elsewhere, Freshness, Strategy

# Averages forget with this time constant: long enough to span a lull, short enough to follow an afternoon.
LATENCY_DECAY_S: Final = 30.0
# Retry-After beyond this is not believed (DESIGN §12).
MAX_RETRY_AFTER_S: Final = 60.0
# A provider's report of its limits (``rate_limits.updated``) says nothing about later than this.
MAX_REPORT_S: Final = 60.0
_NEXT_BEAT_S: Final = 1.0


class Unchanged(Enum):
    """In the place of a value that may itself be ``None``."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED


class Limits(Protocol):
    """Says how much of a limit of the whole fleet this process may use."""

    @property
    def unknown(self) -> bool:
        """Whether nothing may be granted, because the fleet cannot be asked."""

    def most(self, deployment: str, limit: int) -> int:
        """Return the most sessions that this process may hold on a deployment under a limit of the fleet, as things are."""


class Alone:
    """No fleet: every limit is this process's own."""

    unknown = False

    def most(self, deployment: str, limit: int) -> int:
        """Return the limit."""
        return limit


class Lease:
    """One session's or probe's hold on a deployment, from before the dial to the end. Releasing it twice is one release."""

    __slots__ = ("_held", "_target", "deployment", "on_release", "place", "ticket")

    def __init__(self, deployment: Deployment, ticket: Ticket) -> None:
        self.deployment = deployment
        self.ticket = ticket
        self._held = True
        self._target = deployment.target
        # Only with a limit that holds across the fleet: the place's name, and who takes it back.
        self.place = ""
        self.on_release: Callable[[str, str], None] | None = None

    @property
    def current(self) -> bool:
        """Whether the deployment is still what it was when this was taken: if not, what happens here says nothing about it."""
        return self._target == self.deployment.target

    def release(self) -> None:
        """Give it back."""
        if self._held:
            self._held = False
            self.deployment.sessions -= 1
            # An attempt that ended without any outcome must not block the breaker's one probing place.
            self.deployment.breaker.abandon(self.ticket)
            if self.on_release is not None:
                self.on_release(self.deployment.id, self.place)

    def turned_away(self) -> None:
        """Give it back, and take back that a session started: nobody was dialled."""
        self.deployment.starts.take_back()
        self.deployment.started -= 1
        self.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class Deployment:
    """One target, live.

    Args:
        settings: of this generation.
        group: its group's settings.
        clock: monotonic seconds.
        rng: for the breaker's jitter.
        tell: observers.
        picture: what the other processes of the fleet hold.
        limits: how much of ``max_sessions`` is this process's.
    """

    def __init__(
        self,
        settings: DeploymentSettings,
        group: GroupSettings,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        tell: Observers,
        picture: Picture,
        limits: Limits,
    ) -> None:
        self.settings = settings
        self.provider: Provider = PROVIDERS[settings.provider]
        self.breaker = Breaker(group.breaker, clock=clock, rng=rng)
        self.cool_down = CoolDown(clock)
        self.starts = SlidingWindow(settings.rpm, clock=clock)
        self.tokens = SlidingWindow(settings.tpm, clock=clock)
        self.target = 0  # grows whenever a generation makes it another address, key or certificate
        self.removed = False  # a later generation does not have it: no new sessions, those that run go on
        self.sessions = 0
        self.started = 0  # sessions since the process began, probes included
        self.full_until = -math.inf  # the fleet has said so; a reading of the clock
        self.was_ready = False  # at least once; before that ``ready_s`` is made of penalties alone
        self.outcomes: dict[str, int] = {}  # dials of sessions that ended, by ``retry.Outcome``'s value
        # An operator's word, which wins over the file's; ``None``: the file's holds.
        self.override_state: DeploymentState | None = None
        self.override_weight: float | None = None
        self._ready = PeakEwma(LATENCY_DECAY_S, clock)
        self._first_audio = PeakEwma(LATENCY_DECAY_S, clock)
        # Share of the provider's own limits that is used up, as it reported, and until when that means anything.
        self._spent = 0.0
        self._spent_until = -math.inf
        # What the windows had counted when the others were told last, and when they were last told that has been heard.
        self._telling = self._told = (0, 0)
        self._clock = clock
        self._tell = tell
        self._picture = picture
        self._limits = limits

    def configure(self, settings: DeploymentSettings, group: GroupSettings) -> None:
        """Go on under the settings of another generation, with everything that is known of the target.

        What was learned of another target (an address, a key, a certificate has changed) says nothing about this one, so a
        deployment that was ejected for a bad key is admitted as soon as the key is mended.
        """
        if _target(settings) != _target(self.settings):
            self.target += 1
            self.breaker.reset()
            self.cool_down.clear()
            self.was_ready = False
            self._ready = PeakEwma(LATENCY_DECAY_S, self._clock)
            self._first_audio = PeakEwma(LATENCY_DECAY_S, self._clock)
            self._spent_until = -math.inf
        # An operator's word wins over what the file said then, not over what its author has written since.
        if self.removed or settings.state != self.settings.state:
            self.override_state = None
        if self.removed or settings.weight != self.settings.weight:
            self.override_weight = None
        self.removed = False
        self.settings = settings
        self.breaker.settings = group.breaker
        self.starts.limit = settings.rpm
        self.tokens.limit = settings.tpm

    def follow(self, before: Deployment) -> None:
        """Take over what operators have said of the one that had the id before: it is the id that they speak of.

        Nothing else: it served another group, or another provider's model.
        """
        if self.settings.state == before.settings.state:
            self.override_state = before.override_state
        if self.settings.weight == before.settings.weight:
            self.override_weight = before.override_weight

    # --- Candidate ----------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Stable across reloads."""
        return self.settings.id

    @property
    def position(self) -> int:
        """Index in the file."""
        return self.settings.position

    @property
    def weight(self) -> float:
        """Configured weight, or an operator's, times the slow-start ramp."""
        weight = self.settings.weight if self.override_weight is None else self.override_weight
        return weight * self.breaker.ramp()

    @property
    def max_sessions(self) -> int | None:
        """Most sessions it may hold."""
        return self.settings.max_sessions

    @property
    def ready_s(self) -> float | None:
        """Average seconds from dial to ready, faded while nothing is measured."""
        return self._ready.value

    @property
    def first_audio_s(self) -> float | None:
        """Average seconds to the first audio, faded while nothing is measured."""
        return self._first_audio.value

    @property
    def measured_ready_s(self) -> float | None:
        """``ready_s`` as the last session left it: what to show."""
        return self._ready.measured

    @property
    def measured_first_audio_s(self) -> float | None:
        """``first_audio_s`` as the last answer left it: what to show."""
        return self._first_audio.measured

    @property
    def elsewhere(self) -> Elsewhere:
        """What the other processes of the fleet hold of it."""
        return self._picture.of(self.settings.id)

    @property
    def minute_starts(self) -> int:
        """Sessions started in the last minute, fleet-wide where that is known."""
        return self.starts.used() + self._minute_elsewhere("minute_starts")

    @property
    def minute_tokens(self) -> int:
        """Tokens reported in the last minute, fleet-wide where that is known."""
        return self.tokens.used() + self._minute_elsewhere("minute_tokens")

    @property
    def headroom(self) -> float | None:
        """Share that is left of its tightest limit a minute, 0 to 1; ``None``: it has none."""
        left = []
        for window, name in ((self.starts, "minute_starts"), (self.tokens, "minute_tokens")):
            if window.limit is not None:
                limit, used = self._of_the_fleet(window, name)
                left.append(1.0 - min(1.0, used / limit))
        spent = max(self.spent, self._picture.total(self.id, "spent"))
        if spent > 0.0 or self._spent_until > self._clock():
            left.append(1.0 - min(1.0, spent))
        return min(left, default=None)

    @property
    def spent(self) -> float:
        """Share of the provider's own limits that is used up, 0 to 1, by its last report; 0 when that is over."""
        return self._spent if self._spent_until > self._clock() else 0.0

    # --- eligibility --------------------------------------------------------------------------------

    def obstacle(self) -> str:
        """Why no session may begin here now, breaker aside; empty when nothing stands in the way.

        One of ``misconfigured``, ``maint``, ``draining``, ``cooling_down``, ``full``, ``limit_unknown`` (that of
        the fleet cannot be asked about), ``rate_limited``.
        """
        state = self.wanted_state
        if state != "ready":
            return "draining" if state == "drain" else state
        if self.cool_down.active:
            return "cooling_down"
        most = self.settings.max_sessions
        if most is not None:
            if self._limits.unknown:
                return "limit_unknown"
            if self.sessions >= self._limits.most(self.settings.id, most) or self.full_until > self._clock():
                return "full"
        if self._lacks_room(self.starts, "minute_starts") or self._lacks_room(self.tokens, "minute_tokens"):
            return "rate_limited"
        return ""

    def _minute_elsewhere(self, name: str) -> int:
        return int(self._picture.total(self.id, name))

    def _of_the_fleet(self, window: SlidingWindow, name: str) -> tuple[int, int]:
        """A limit a minute and what is used of it: the fleet's, or this process's part while it does not hear of the others."""
        assert window.limit is not None  # asked only of windows with one
        if self._picture.freshness is Freshness.LOCAL:
            return self._picture.local_share(window.limit), window.used()
        return window.limit, window.used() + self._minute_elsewhere(name)

    def _lacks_room(self, window: SlidingWindow, name: str) -> bool:
        if window.limit is None:
            return False
        limit, used = self._of_the_fleet(window, name)
        if used >= limit:
            return True
        others = self._picture.members
        if not others or self._picture.freshness is Freshness.LOCAL:
            return False
        # All processes see the same room, and what each of them takes the others see with the next beat only: until then it
        # is shared out. One is always allowed, or the last places would be nobody's.
        since = window.added - self._told[0 if window is self.starts else 1]
        room = limit - (used - since)
        return since >= max(1, room // (others + 1))

    def telling(self) -> None:
        """The others are about to be told what this process holds."""
        self._telling = (self.starts.added, self.tokens.added)

    def told(self) -> None:
        """What they were told then has reached them."""
        self._told = self._telling

    def eligible(self) -> bool:
        """Whether a session may begin here now."""
        return not self.obstacle() and self.breaker.admits()

    def why_not(self) -> str:
        """Why no session may begin here now, in a word or two; empty when one may."""
        obstacle, reason = self.refusal()
        return f"{obstacle}: {reason}" if reason else obstacle

    def refusal(self) -> tuple[str, str]:
        """The same without putting text together: the obstacle or the breaker's state, and the breaker's reason.

        Of one that is eligible after all, two empty texts.
        """
        obstacle = self.obstacle()
        if obstacle or self.breaker.admits():
            return obstacle, ""
        state = self.breaker.state
        return state.value, self.breaker.reason if state is BreakerState.EJECTED else ""

    def available_in_s(self) -> float | None:
        """Seconds until what stands in the way will have passed by itself; ``None``: nobody knows."""
        obstacle = self.obstacle()
        if obstacle == "cooling_down":
            return self.cool_down.remaining_s()
        if obstacle == "rate_limited":
            waits_s = []
            for window, name in ((self.starts, "minute_starts"), (self.tokens, "minute_tokens")):
                if self._lacks_room(window, name):
                    # What others have used will be less by then; nobody here knows by how much.
                    waits_s.append(window.room_in_s(1 + self._minute_elsewhere(name)))
            known_s = [wait_s for wait_s in waits_s if wait_s < math.inf]
            # Nothing to wait for but the next beat.
            return max((_NEXT_BEAT_S, *known_s)) if known_s else None
        return self.breaker.remaining_s() if not obstacle else None

    def lease(self) -> Lease:
        """Hold a place for a session that is about to dial."""
        self.sessions += 1
        self.started += 1
        self.starts.add()
        return Lease(self, self.breaker.begin())

    # --- operators ----------------------------------------------------------------------------------

    @property
    def wanted_state(self) -> DeploymentState:
        """What the file or an operator says of it, whatever its breaker says."""
        configured = self.settings.state
        if self.removed:
            return "drain"
        # What the file lacks cannot be had by a word.
        return configured if configured == "misconfigured" or self.override_state is None else self.override_state

    def override(
        self,
        *,
        state: DeploymentState | Unchanged | None = UNCHANGED,
        weight: float | Unchanged | None = UNCHANGED,
    ) -> None:
        """Let an operator's word win over the file's; ``None`` gives it back to the file.

        Args:
            state: ``ready``, ``drain`` or ``maint``; without effect on one that is misconfigured or removed.
            weight: above 0.

        Raises:
            ValueError: a weight that strategies cannot use, or a state that is nobody's to set. Nothing has changed then.
        """
        if state == "misconfigured":
            raise ValueError("state: found misconfigured, expected ready, drain or maint")
        if isinstance(weight, float | int) and not 0.0 < weight < math.inf:
            raise ValueError(f"weight: found {weight!r}, expected a finite number above 0")
        if state is not UNCHANGED:
            self.override_state = state
        if weight is not UNCHANGED:
            self.override_weight = weight

    def readmit(self) -> None:
        """End an ejection and a cool-down: sessions may begin here at once, at its full weight."""
        was_out = self.breaker.state is not BreakerState.ADMITTING
        self.breaker.reset()
        self.cool_down.clear()
        if was_out:
            self._tell(Admitted(deployment=self.id, group=self.settings.group))

    # --- outcomes -----------------------------------------------------------------------------------

    def ready(self, lease: Lease, seconds: float) -> None:
        """The attempt's upstream sent its first good event after ``seconds``."""
        if not lease.current:
            return
        self._ready.observe(seconds)
        self.was_ready = True
        # A cool-down stays: nobody dials while it runs, so this dial began before the provider asked to be left alone.
        ticket = self.breaker.ready(lease.ticket)
        if ticket is not None:
            lease.ticket = ticket
            self._tell(Admitted(deployment=self.id, group=self.settings.group))

    def failed(self, lease: Lease, verdict: Verdict, seconds: float, detail: str) -> None:
        """The attempt failed, or its session ended early; ``seconds`` from its dial."""
        if not lease.current:
            return
        group = self.settings.group
        if verdict.outcome is Outcome.RATE_LIMITED:
            wait_s = self.cool_down.start(verdict.retry_after_s, reason=verdict.outcome)
            self._tell(CooledDown(deployment=self.id, group=group, seconds=wait_s))
        if not verdict.blames:
            self.breaker.abandon(lease.ticket)
            return
        # A target that fails fast must not look fast (linkerd2-proxy ``load-biaser``): a failure counts as a full time-out.
        self._ready.penalise(max(seconds, self.settings.connect_timeout_s + self.settings.ready_timeout_s))
        authentication = verdict.outcome is Outcome.AUTHENTICATION
        if authentication:
            self._tell(ConfigAlarm(deployment=self.id, group=group, detail=detail))
        ejection = self.breaker.fail(lease.ticket, reason=verdict.outcome, authentication=authentication)
        if ejection is not None:
            self._tell(
                Ejected(
                    deployment=self.id,
                    group=group,
                    reason=ejection.reason,
                    seconds=ejection.seconds,
                    in_a_row=ejection.in_a_row,
                )
            )

    def survived(self) -> None:
        """A session outlived the breaker's ``early_close_s``, or ended well."""
        self.breaker.credit()

    def first_audio(self, seconds: float) -> None:
        """An answer's first audio came after ``seconds``."""
        self._first_audio.observe(seconds)

    def reported(self, spent: float, seconds: float) -> None:
        """The provider told how much of its own limits is used up.

        Args:
            spent: the share of the tightest one, 0 to 1.
            seconds: until that limit is whole again; more than a minute is not believed.
        """
        if 0.0 <= spent <= 1.0 and 0.0 <= seconds:
            self._spent = spent
            self._spent_until = self._clock() + min(seconds, MAX_REPORT_S)

    @property
    def state(self) -> str:
        """One word for metrics and the admin API."""
        wanted = self.wanted_state
        if wanted != "ready":
            return "draining" if wanted == "drain" else wanted
        state = self.breaker.state
        if state is not BreakerState.ADMITTING:
            return state.value
        return "cooling_down" if self.cool_down.active else state.value


def _target(settings: DeploymentSettings) -> DeploymentSettings:
    """Return what of the settings says whom to dial and as whom, with all else made equal."""
    return replace(
        settings,
        position=0,
        weight=1.0,
        order=0,
        max_sessions=None,
        rpm=None,
        tpm=None,
        state="ready",
        problem="",
        ready="first_event",
        ready_grace_s=0.0,
        connect_timeout_s=0.0,
        ready_timeout_s=0.0,
        timeout_s=None,
        health_check=None,
    )


class Group:
    """A public model name with its deployments and its strategy."""

    def __init__(self, settings: GroupSettings, deployments: tuple[Deployment, ...], strategy: Strategy) -> None:
        self.settings = settings
        self.deployments = deployments
        self.strategy = strategy
        # Lowest order first; the file's order within one.
        orders = sorted({deployment.settings.order for deployment in deployments})
        self.tiers = tuple(
            tuple(deployment for deployment in deployments if deployment.settings.order == order) for order in orders
        )


class Pool:
    """All groups of the generation in force.

    Args:
        settings: the generation.
        clock: monotonic seconds.
        rng: for strategies and breakers.
        tell: observers.
        picture: what the other processes of the fleet hold; ``None``: there are none.
        limits: how much of a limit of the fleet is this process's; ``None``: all of it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        tell: Observers,
        picture: Picture | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._tell = tell
        self._picture = picture if picture is not None else Picture(clock)
        self._limits = limits if limits is not None else Alone()
        self.applied = 0  # generations so far, for whoever has to see that another one came
        self.groups: Mapping[str, Group] = {}
        self.leaving: tuple[Deployment, ...] = ()  # removed by a generation, and perhaps not by their last session yet
        self._aliases: Mapping[str, str] = {}
        self._hidden_aliases: frozenset[str] = frozenset()
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Put a generation in the place of the one in force, in one step.

        Deployments and strategies that it has in common with the one before go on with all that they know; a deployment is the
        same by its id, in the same group and of the same provider.

        Raises:
            Exception: what a strategy raises that cannot be made; nothing has changed then.
        """
        # A third party's strategy may refuse its options, or fail: before anything has changed.
        strategies = {name: self._strategy(group) for name, group in settings.groups.items()}
        before = {_identity(deployment.settings): deployment for deployment in (*self.leaving, *self.deployments)}
        named = {deployment.id: deployment for deployment in self.deployments}
        self.groups = {
            name: Group(group, tuple(self._deployment(item, group, before) for item in group.deployments), strategies[name])
            for name, group in settings.groups.items()
        }
        for deployment in self.deployments:
            if (one := named.get(deployment.id, deployment)) is not deployment:
                deployment.follow(one)
        for deployment in before.values():
            deployment.removed = True
        self.leaving = tuple(deployment for deployment in before.values() if deployment.sessions)
        self._aliases = settings.aliases
        self._hidden_aliases = settings.hidden_aliases
        self.applied += 1

    def _strategy(self, settings: GroupSettings) -> Strategy:
        """Return the group's strategy: the one it has, unless another one is configured."""
        was = self.groups.get(settings.name)
        if was is not None and was.settings.strategy == settings.strategy:
            return was.strategy
        cls = cast(Callable[..., Strategy], settings.strategy.cls)
        # Each strategy draws from a generator of its own, so that one group's choices do not depend on another's traffic.
        return cls(settings.strategy.options, rng=random.Random(self._rng.getrandbits(64)))

    def _deployment(
        self, settings: DeploymentSettings, group: GroupSettings, before: dict[tuple[str, str, str], Deployment]
    ) -> Deployment:
        """Return a group's deployment: the one that exists, taken out of ``before``, or a new one."""
        known = before.pop(_identity(settings), None)
        if known is not None:
            known.configure(settings, group)
            return known
        return Deployment(
            settings,
            group,
            clock=self._clock,
            rng=self._rng,
            tell=self._tell,
            picture=self._picture,
            limits=self._limits,
        )

    def forget_left(self) -> tuple[Deployment, ...]:
        """Return those of ``leaving`` whose last session has ended, and keep them no longer."""
        left = tuple(deployment for deployment in self.leaving if not deployment.sessions)
        self.leaving = tuple(deployment for deployment in self.leaving if deployment.sessions)
        return left

    def find(self, model: str) -> Group | None:
        """The group of a public name or alias."""
        return self.groups.get(self._aliases.get(model, model))

    @property
    def names(self) -> tuple[str, ...]:
        """Public names and aliases, sorted; hidden aliases work and are not listed."""
        return tuple(sorted({*self.groups, *self._aliases} - self._hidden_aliases))

    def aliases(self, group: str) -> tuple[str, ...]:
        """The other names of a group, hidden ones included, sorted."""
        return tuple(sorted(alias for alias, name in self._aliases.items() if name == group))

    @property
    def every(self) -> Iterator[Deployment]:
        """Every deployment, those included that a generation removed and that still have sessions."""
        yield from self.deployments
        yield from self.leaving

    @property
    def deployments(self) -> Iterator[Deployment]:
        """Every deployment of the generation in force."""
        for group in self.groups.values():
            yield from group.deployments

    def chain(self, group: Group) -> tuple[Group, ...]:
        """A group and those it falls back to, in turn, each once."""
        seen = {group.settings.name: group}
        for name in group.settings.fallbacks:
            fallback = self.groups.get(name)
            if fallback is not None:
                seen.setdefault(name, fallback)
        return tuple(seen.values())


def _identity(settings: DeploymentSettings) -> tuple[str, str, str]:
    return settings.id, settings.group, settings.provider
