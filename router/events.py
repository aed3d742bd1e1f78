"""What happened, as frozen records, and who is told of it.

The core emits these and imports no logging and no metrics library; Prometheus (``metrics.py``) and the structured log
(``logs.py``) are equal observers (learned from stamina's ``instrumentation/``). An observer implements what it cares for by
overriding ``Observer``'s methods. No record holds a key, a token, or text that a client or an upstream wrote, except where
said; that text is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.config.settings import NO_ITEMS
from router.errors import Problem
from router.usage import Usage

_NO_COUNTS: Mapping[tuple[str, str], tuple[int, int]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStarted:
    """A client passed authentication and its group is known."""

    session: str
    group: str
    principal: str
    client: str  # the client's address, for the log only
    # ``tracecontext.trace_context`` of its request; ``None``: it names no trace, or nobody traces here.
    trace: Mapping[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRefused:
    """A request was refused before a session began."""

    session: str
    status: int
    code: str  # the error's code, of a fixed set
    detail: str  # the operator's wording
    client: str
    principal: str = ""  # whose key it was, where that is known
    model: str = ""  # what was asked for: the client's words, at most 128 characters
    trace: Mapping[str, str] | None = field(default=None, repr=False)  # as in ``SessionStarted``


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One dial of one deployment, ended."""

    session: str
    group: str
    deployment: str
    outcome: str  # a value of ``retry.Outcome``; in a record also ``routing.UNDER_WAY``
    seconds: float
    detail: str = ""  # what was seen, for the log
    raced: bool = False  # another attempt of the session was ready first; the session did not wait for this one
    provider: str = ""  # a name in ``router.providers.PROVIDERS``
    model: str = ""  # what the upstream calls it


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReady:
    """A deployment was found for a session."""

    session: str
    group: str
    deployment: str
    seconds: float  # from the start of the session
    attempts: int
    fallback: bool  # it is not the first deployment that was tried


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstAudio:
    """The first audio of an answer."""

    deployment: str
    group: str
    seconds: float  # from the end of the user's speech


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An answer of an upstream's, ended.

    Attributes:
        seconds: from the end of the user's speech, where that was seen, else from the answer's begin.
        first_audio_s: from the end of the user's speech to the first audio; ``None``: there was no speech, or no audio.
        status: ``completed``, ``cancelled``, ``failed``, ``incomplete``; ``unfinished`` when the session ended before it, and
            ``other`` for any other word of the upstream's.
        response: its id, the upstream's words, at most 256 characters.
        error: code or type of what made it fail, likewise.
        usage: as billed; zero when it was not, or was billed before.
    """

    seconds: float
    first_audio_s: float | None = None
    status: str
    response: str = ""
    error: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """A turn of a session ended; told only where sessions are traced."""

    session: str
    deployment: str
    group: str
    provider: str
    model: str  # what the upstream calls it
    turn: Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Messages of a session since the last such record; from both directions."""

    deployment: str
    # (direction, event type of the known ones or ``other``) → (messages, payload bytes)
    counts: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=lambda: _NO_COUNTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecorded:
    """A response or a transcription was billed; told once for each id."""

    deployment: str
    group: str
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One session, ended. The one line an operator reads about it."""

    session: str
    group: str
    principal: str
    client: str
    deployment: str  # empty when none was found
    attempts: tuple[Attempt, ...]
    # Deployments in reach that were not dialled, with the reason; only when none served the session.
    passed_over: tuple[tuple[str, str], ...]
    who: str  # client, upstream, router
    cause: str
    phase: str  # waiting, idle, turn
    status: int  # HTTP status the client got: 101, or that of the refusal
    client_code: int | None  # ``None``: no WebSocket was opened
    upstream_code: int | None
    upstream_reason: str  # the upstream's words, at most 123 bytes
    seconds: float
    ready_s: float | None
    client_bytes: int
    upstream_bytes: int
    client_events: int
    upstream_events: int
    turns: int
    first_audio_s: float | None  # of the first turn that had audio
    usage: Usage
    generation: int  # of the configuration it began under


@dataclass(frozen=True, slots=True, kw_only=True)
class Ejected:
    """A deployment was taken out by its breaker."""

    deployment: str
    group: str
    reason: str
    seconds: float
    in_a_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An ejected deployment was ready again."""

    deployment: str
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CooledDown:
    """A deployment asked to be left alone for a while."""

    deployment: str
    group: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigAlarm:
    """A deployment cannot work until an operator acts: key, quota, access."""

    deployment: str
    group: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """An active probe ended."""

    deployment: str
    group: str
    outcome: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedAway:
    """A session was not let to a deployment, because the fleet as a whole holds all that it may of it."""

    session: str
    deployment: str
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBeat:
    """This process published its share, or tried to."""

    outcome: str  # answered, failed
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentGone:
    """A deployment that a generation removed has ended its last session; its counts will not grow any more."""

    deployment: str
    group: str
    with_group: bool  # the group is gone as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """A configuration was read again, and is in force from now on unless it was refused."""

    trigger: str  # signal, file, api
    generation: int  # in force now
    at: float  # epoch seconds
    errors: tuple[Problem, ...] = ()  # why it was refused; empty when it was not
    warnings: tuple[Problem, ...] = ()
    restart_needed: tuple[str, ...] = ()  # keys whose new values wait for a restart
    added: tuple[str, ...] = ()  # deployments
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something an operator should read that belongs to no session."""

    level: str  # debug, info, warning, error
    event: str  # short, fixed
    facts: Mapping[str, Any] = field(default_factory=lambda: NO_ITEMS)


Event = (
    SessionStarted
    | SessionRefused
    | Attempt
    | SessionReady
    | FirstAudio
    | TurnEnded
    | Traffic
    | UsageRecorded
    | SessionRecord
    | Ejected
    | Admitted
    | CooledDown
    | ConfigAlarm
    | Probed
    | TurnedAway
    | FleetBeat
    | DeploymentGone
    | Reloaded
    | Notice
)

Observer = Callable[[Event], None]


class Observers:
    """Tells every observer of every event, in order. One that raises is reported once and does not hurt the others."""

    def __init__(self, observers: Iterable[Observer] = (), *, on_error: Callable[[Exception], None] | None = None) -> None:
        self._observers = list(observers)
        self._on_error = on_error
        self._failed: set[int] = set()

    def add(self, observer: Observer) -> None:
        """Tell ``observer`` too from now on."""
        self._observers.append(observer)

    def __call__(self, event: Event) -> None:
        """Tell everybody."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception as error:  # an observer must not end a session
                if id(observer) not in self._failed:
                    self._failed.add(id(observer))
                    if self._on_error is not None:
                        self._on_error(error)
