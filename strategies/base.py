"""What a strategy is: a choice among deployments that are already known to be eligible.

The router filters first (state, breaker, cool-down, limits, not yet tried in this session), so a strategy only compares.
Measurements belong to the deployment, comparisons to the strategy; a strategy keeps at most a cursor. It does no I/O, reads
no clock of its own and draws randomness only from the generator it was given, so that a seed reproduces every decision.
Shape learned from tower's ``balance/p2c/service.rs`` and linkerd2-proxy.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a strategy may know of the session that asks. It holds no credential.

    Attributes:
        group: the group's name, aliases resolved.
        principal: name of the key that authenticated (``master``, a virtual key's name, or ``anonymous``).
        headers: the request's headers, names in lower case, without credentials and cookies.
        query: the request's query parameters, without credentials; the first value of each.
    """

    group: str
    principal: str = "anonymous"
    headers: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    query: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


class Freshness(Enum):
    """How far what the other processes said of themselves can be trusted, by the age of the picture they make together."""

    #: At most 2 s old: compare all candidates.
    FRESH = "fresh"
    #: At most 10 s old: others may have acted on the same numbers since, so compare a random pair.
    AGEING = "ageing"
    #: Older, or nobody told anything: this process counts for itself.
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What the other processes of the fleet hold of a deployment, as last heard. All zero when ``freshness`` is ``LOCAL``.

    Another object whenever something was heard, even if it says the same, and when the picture changes its freshness; the
    same one until then. So ``is`` tells a strategy whether what it sees can include what was done since it last looked.

    Attributes:
        freshness: how old the picture is.
        members: other processes in it; those that do not know this deployment count as well.
        sessions: leases they hold of it.
        starts: sessions they have started on it since each of them began to run: only differences between two looks mean
            something, and the number falls when a process leaves.
        ejected: how many of them have ejected it. A hint: the trouble may lie between them and it.
        ready_s: mean of their averages of the seconds from dial to ready; ``None``: none of them measured it.
        first_audio_s: the same for the seconds from the end of speech to the first audio.
    """

    freshness: Freshness = Freshness.LOCAL
    members: int = 0
    sessions: int = 0
    starts: int = 0
    ejected: int = 0
    ready_s: float | None = None
    first_audio_s: float | None = None


#: Nothing is known of other processes.
NOWHERE = Elsewhere()


class Candidate(Protocol):
    """The read-only view of a deployment that a strategy compares."""

    @property
    def id(self) -> str:
        """Stable across reloads, unique in the process."""

    @property
    def position(self) -> int:
        """Index in the configuration file among the group's deployments."""

    @property
    def weight(self) -> float:
        """Configured weight times the slow-start ramp; always positive."""

    @property
    def sessions(self) -> int:
        """Leases held by this process: dials under way and running sessions."""

    @property
    def max_sessions(self) -> int | None:
        """Most sessions it may hold; ``None`` is no limit. An eligible candidate is below it."""

    @property
    def ready_s(self) -> float | None:
        """Peak-EWMA of the seconds from dial to ready, failures included as penalties; ``None``: not measured yet."""

    @property
    def first_audio_s(self) -> float | None:
        """Peak-EWMA of the seconds from the end of speech to the first audio; ``None``: not measured yet."""

    @property
    def elsewhere(self) -> Elsewhere:
        """What the other processes of the fleet hold of it."""

    @property
    def minute_starts(self) -> int:
        """Sessions started on it in the last 60 s, the other processes' included when they are known."""

    @property
    def minute_tokens(self) -> int:
        """Tokens it reported in the last 60 s, the other processes' included when they are known."""

    @property
    def headroom(self) -> float | None:
        """Share left of its tightest limit a minute (rpm, tpm, or what the provider reported), 0 to 1; ``None``: no limit."""


C = TypeVar("C", bound=Candidate)


class Promise(Enum):
    """What a strategy with its default options promises beyond returning a member; the property tests hold it to that."""

    #: While sessions come and go and all measure alike, every candidate of the same weight is chosen again and again.
    FAIR = "fair"
    #: The share of sessions goes by weight when all measure alike.
    PROPORTIONAL = "proportional"


class Strategy(Protocol):
    """An algorithm. One instance serves one group for as long as its configuration stands.

    A class may also carry ``promises: ClassVar[frozenset[Promise]]``; one without it promises nothing beyond ``choose``. And
    ``shared: ClassVar[bool] = True`` when it makes no sense in a process that nobody tells anything: the configuration is then
    refused unless there is a fleet.
    """

    @property
    def Options(self) -> type[Any]:
        """A nested frozen dataclass with keyword-only fields, against which ``routing_strategy_args`` are checked at start-up.

        A property only because that is how a protocol spells "may be read": ``options_of`` gets it from a class.
        """

    def __init__(self, options: Any, *, rng: random.Random) -> None: ...

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return one member of ``candidates``, which is never empty. No I/O, no exceptions."""


def promises_of(strategy: type[Any]) -> frozenset[Promise]:
    """Return what a strategy class promises; nothing when it does not say."""
    promises: frozenset[Promise] = getattr(strategy, "promises", frozenset())
    return promises


def is_shared(strategy: type[Any]) -> bool:
    """Return whether a strategy class says that it needs what other processes hold; ``False`` when it does not say."""
    return getattr(strategy, "shared", False) is True


def options_of(strategy: type[Any]) -> type[Any]:
    """Return the ``Options`` dataclass of a strategy class."""
    options: type[Any] = strategy.Options
    return options
