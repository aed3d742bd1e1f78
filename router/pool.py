"""Groups and deployments with their live state: leases, breaker, cool-down, limits, latencies.

Built once for a generation of the configuration. A deployment is what a strategy compares (``strategies.base.Candidate``, by
shape) and what routing leases. State changes between awaits, never across one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Final, cast

from router.breaker import Breaker, BreakerState, Ticket
from router.config.settings import DeploymentSettings, GroupSettings, Settings
from router.events import Admitted, ConfigAlarm, CooledDown, Ejected, Observers
from router.limits import CoolDown, SlidingWindow
from router.load import PeakEwma
from router.providers import PROVIDERS, Provider
from router.retry import Outcome, Verdict
from strategies.base import Strategy

# Averages forget with this time constant: long enough to span a lull, short enough to follow an afternoon.
LATENCY_DECAY_S: Final = 30.0
# Retry-After beyond this is not believed (DESIGN §12).
MAX_RETRY_AFTER_S: Final = 60.0


class Lease:
    """One session's or probe's hold on a deployment, from before the dial to the end. Releasing it twice is one release."""

    __slots__ = ("_held", "deployment", "ticket")

    def __init__(self, deployment: Deployment, ticket: Ticket) -> None:
        self.deployment = deployment
        self.ticket = ticket
        self._held = True

    def release(self) -> None:
        """Give it back."""
        if self._held:
            self._held = False
            self.deployment.sessions -= 1
            # An attempt that ended without any outcome must not block the breaker's one probing place.
            self.deployment.breaker.abandon(self.ticket)

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
    """

    def __init__(
        self,
        settings: DeploymentSettings,
        group: GroupSettings,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        tell: Observers,
    ) -> None:
        self.settings = settings
        self.provider: Provider = PROVIDERS[settings.provider]
        self.breaker = Breaker(group.breaker, clock=clock, rng=rng)
        self.cool_down = CoolDown(clock)
        self.starts = SlidingWindow(settings.rpm, clock=clock)
        self.tokens = SlidingWindow(settings.tpm, clock=clock)
        self.sessions = 0
        self.was_ready = False  # at least once; before that ``ready_s`` is made of penalties alone
        self._ready = PeakEwma(LATENCY_DECAY_S, clock)
        self._first_audio = PeakEwma(LATENCY_DECAY_S, clock)
        self._tell = tell

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
        """Configured weight times the slow-start ramp."""
        return self.settings.weight * self.breaker.ramp()

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

    # --- eligibility --------------------------------------------------------------------------------

    def obstacle(self) -> str:
        """Why no session may begin here now, breaker aside; empty when nothing stands in the way.

        One of ``misconfigured``, ``maint``, ``draining``, ``cooling_down``, ``full``, ``rate_limited``.
        """
        state = self.settings.state
        if state != "ready":
            return "draining" if state == "drain" else state
        if self.cool_down.active:
            return "cooling_down"
        if self.settings.max_sessions is not None and self.sessions >= self.settings.max_sessions:
            return "full"
        if not self.starts.has_room() or not self.tokens.has_room():
            return "rate_limited"
        return ""

    def eligible(self) -> bool:
        """Whether a session may begin here now."""
        return not self.obstacle() and self.breaker.admits()

    def why_not(self) -> str:
        """Why no session may begin here now, in a word or two; empty when one may."""
        obstacle = self.obstacle()
        if obstacle or self.breaker.admits():
            return obstacle
        state = self.breaker.state
        return f"{state}: {self.breaker.reason}" if state is BreakerState.EJECTED else state.value

    def available_in_s(self) -> float | None:
        """Seconds until what stands in the way will have passed by itself; ``None``: nobody knows."""
        obstacle = self.obstacle()
        if obstacle == "cooling_down":
            return self.cool_down.remaining_s()
        if obstacle == "rate_limited":
            return max(self.starts.room_in_s(), self.tokens.room_in_s())
        return self.breaker.remaining_s() if not obstacle else None

    def lease(self) -> Lease:
        """Hold a place for a session that is about to dial."""
        self.sessions += 1
        self.starts.add()
        return Lease(self, self.breaker.begin())

    # --- outcomes -----------------------------------------------------------------------------------

    def ready(self, lease: Lease, seconds: float) -> None:
        """The attempt's upstream sent its first good event after ``seconds``."""
        self._ready.observe(seconds)
        self.was_ready = True
        # A cool-down stays: nobody dials while it runs, so this dial began before the provider asked to be left alone.
        ticket = self.breaker.ready(lease.ticket)
        if ticket is not None:
            lease.ticket = ticket
            self._tell(Admitted(deployment=self.id, group=self.settings.group))

    def failed(self, lease: Lease, verdict: Verdict, seconds: float, detail: str) -> None:
        """The attempt failed, or its session ended early; ``seconds`` from its dial."""
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

    @property
    def state(self) -> str:
        """One word for metrics and the admin API."""
        if self.settings.state != "ready":
            return "draining" if self.settings.state == "drain" else self.settings.state
        state = self.breaker.state
        if state is not BreakerState.ADMITTING:
            return state.value
        return "cooling_down" if self.cool_down.active else state.value


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
    """All groups of a generation.

    Args:
        settings: the generation.
        clock: monotonic seconds.
        rng: for strategies and breakers.
        tell: observers.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float], rng: random.Random, tell: Observers) -> None:
        self.groups: Mapping[str, Group] = {
            name: self._group(group, clock=clock, rng=rng, tell=tell) for name, group in settings.groups.items()
        }
        self._aliases = settings.aliases
        self._hidden_aliases = settings.hidden_aliases

    def _group(self, settings: GroupSettings, *, clock: Callable[[], float], rng: random.Random, tell: Observers) -> Group:
        deployments = tuple(Deployment(item, settings, clock=clock, rng=rng, tell=tell) for item in settings.deployments)
        cls = cast(Callable[..., Strategy], settings.strategy.cls)
        # Each strategy draws from a generator of its own, so that one group's choices do not depend on another's traffic.
        strategy = cls(settings.strategy.options, rng=random.Random(rng.getrandbits(64)))
        return Group(settings, deployments, strategy)

    def find(self, model: str) -> Group | None:
        """The group of a public name or alias."""
        return self.groups.get(self._aliases.get(model, model))

    @property
    def names(self) -> tuple[str, ...]:
        """Public names and aliases, sorted; hidden aliases work and are not listed."""
        return tuple(sorted({*self.groups, *self._aliases} - self._hidden_aliases))

    @property
    def deployments(self) -> Iterator[Deployment]:
        """Every deployment."""
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
