"""Fault verbs: what they are, how they are written, and which session gets which. The table is in the package's docstring."""

from __future__ import annotations

import random
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

from router.simulator.wire import UNSENDABLE

GarbageKind = Literal["frame", "json", "http"]


class FaultError(ValueError):
    """A fault that cannot be: the message names the place, what was found and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Base of all verbs: when a fault is due.

    Attributes:
        next: only for this many of the sessions it would hit; ``None``: no limit.
        every: only each k-th session, counted from when the fault was set; ``None``: all.
        probability: chance for each session, 0 to 1; ``None``: certain.
    """

    verb: ClassVar[str] = ""
    main: ClassVar[str] = ""  # the option that ``verb=value`` sets; empty: the verb takes no bare value

    next: int | None = field(default=None, metadata={"low": 1})
    every: int | None = field(default=None, metadata={"low": 1})
    probability: float | None = field(default=None, metadata={"low": 0, "high": 1})

    def __post_init__(self) -> None:
        """Check types and ranges, so that a fault built in code is held to the same rules.

        Raises:
            FaultError: an option does not fit.
        """
        hints = get_type_hints(type(self))
        for option in fields(self):
            _check(f"fault {self.verb!r}: {option.name}", getattr(self, option.name), hints[option.name], option)
        self._check_together()

    def _check_together(self) -> None:
        """Check what concerns more than one option; nothing by default."""

    def describe(self) -> dict[str, object]:
        """Return the fault as JSON writes it, defaults left out."""
        told: dict[str, object] = {"verb": self.verb}
        for option in fields(self):
            value = getattr(self, option.name)
            if value != option.default:
                told[option.name] = value
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Fault):
    """No connection: the listener closed, or a reset right after accept."""

    verb = "refuse"
    main = "for_s"
    reset: bool = False
    for_s: float | None = field(default=None, metadata={"low": 0})  # None: until cleared

    def _check_together(self) -> None:
        if self.reset and self.for_s is not None:
            raise FaultError("fault 'refuse': for_s: found a value beside reset=true, expected one of the two")
        counted = [name for name in ("next", "every", "probability") if getattr(self, name) is not None]
        if counted and not self.reset:
            # A closed port sees nobody arrive, so it cannot count whom it turned away.
            raise FaultError(f"fault 'refuse': {counted[0]}: found a value, expected none unless reset=true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Fault):
    """The upgrade is answered with another status than 101."""

    verb = "status"
    main = "status"
    status: int = field(metadata={"low": 200, "high": 599})
    retry_after: float | str | None = None  # seconds, or an HTTP date
    code: str = ""  # set: the body is a JSON error
    type: str = "server_error"
    message: str = "Simulated refusal."
    location: str = ""  # for redirects


@dataclass(frozen=True, slots=True, kw_only=True)
class HangBefore101(Fault):
    """The request is read and not answered."""

    verb = "hang_before_101"
    main = "for_s"
    for_s: float | None = field(default=None, metadata={"low": 0})  # None: for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class HangAfter101(Fault):
    """The upgrade is accepted and nothing follows. Pings are answered."""

    verb = "hang_after_101"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowFirstEvent(Fault):
    """The first event comes late; what the client sends meanwhile is answered after it."""

    verb = "slow_first_event"
    main = "seconds"
    seconds: float = field(metadata={"low": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEvent(Fault):
    """An ``error`` event instead of the first good one, then a close."""

    verb = "error_event"
    main = "code"
    code: str = "server_error"
    type: str = "invalid_request_error"
    param: str | None = None
    message: str = "Simulated error."
    close: int | None = field(default=4000, metadata={"close": True})  # None: the socket stays open
    reason: str | None = None  # None: OpenAI's form, ``type.code``


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseAfterEvents(Fault):
    """A close frame after a number of events."""

    verb = "close_after_events"
    main = "events"
    events: int = field(metadata={"low": 0})
    code: int = field(default=1011, metadata={"close": True})
    reason: str = "Simulated close."


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetAfterEvents(Fault):
    """A TCP reset after a number of events."""

    verb = "reset_after_events"
    main = "events"
    events: int = field(metadata={"low": 0})


# frame: all reserved bits set, reserved opcode 0xF, masked by a server: three offences in two bytes.
_GARBAGE: Mapping[GarbageKind, bytes] = types.MappingProxyType(
    {"frame": b"\xff\xff" * 32, "json": b'{"type":"session.crea', "http": b"\x00\xffnot http at all\r\n\r\n"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage(Fault):
    """Bytes that no WebSocket client may accept, or a message that is no event."""

    verb = "garbage"
    main = "kind"
    kind: GarbageKind = "frame"
    hex: str = ""  # these very bytes instead of the built-in ones; for ``json`` they are the message's payload
    after_events: int = field(default=0, metadata={"low": 0})

    def _check_together(self) -> None:
        try:
            bytes.fromhex(self.hex)
        except ValueError:
            raise FaultError(f"fault 'garbage': hex: found {self.hex[:40]!r}, expected pairs of hex digits") from None

    @property
    def payload(self) -> bytes:
        """The bytes to send."""
        if self.hex:
            return bytes.fromhex(self.hex)
        return _GARBAGE[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall(Fault):
    """Nothing is sent or read any more in the middle of an answer; the socket stays open."""

    verb = "stall"
    main = "after_deltas"
    after_deltas: int = field(default=2, metadata={"low": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class DropMidTurn(Fault):
    """The connection ends in the middle of an answer, without a close frame."""

    verb = "drop_mid_turn"
    main = "after_deltas"
    after_deltas: int = field(default=2, metadata={"low": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class FailTurn(Fault):
    """Every answer fails: ``response.done`` with status ``failed`` and an error in its details."""

    verb = "fail_turn"
    main = "code"
    code: str = "server_error"
    type: str = "server_error"
    message: str = "Simulated failure of the answer."


VERBS: Mapping[str, type[Fault]] = types.MappingProxyType(
    {
        kind.verb: kind
        for kind in (
            Refuse,
            Status,
            HangBefore101,
            HangAfter101,
            SlowFirstEvent,
            ErrorEvent,
            CloseAfterEvents,
            ResetAfterEvents,
            Garbage,
            Stall,
            DropMidTurn,
            FailTurn,
        )
    }
)


# --- reading ------------------------------------------------------------------------------------


def make_fault(verb: str, options: Mapping[str, object]) -> Fault:
    """Build a fault from its verb and options, as JSON gives them.

    Raises:
        FaultError: unknown verb or option, a missing option, a wrong type or a value out of range.
    """
    kind = VERBS.get(verb)
    if kind is None:
        raise FaultError(f"fault: verb: found {verb!r}, expected one of {', '.join(sorted(VERBS))}")
    known = {option.name: option for option in fields(kind)}
    for name in options:
        if name not in known:
            raise FaultError(f"fault {verb!r}: found option {name!r}, expected one of {', '.join(sorted(known))}")
    for option in known.values():
        if option.default is MISSING and option.name not in options:
            raise FaultError(f"fault {verb!r}: {option.name}: found nothing, expected a value")
    made: Fault = cast(Any, kind)(**options)  # each value is checked by the dataclass itself
    return made


def parse_fault(text: str) -> Fault:
    """Read the command line's form: ``verb[=value][,option=value]…``; spaces around the parts do not matter.

    Raises:
        FaultError: as ``make_fault``, or a part without ``=``.
    """
    head, *rest = text.split(",")
    verb, has_value, value = (part.strip() for part in head.partition("="))
    kind = VERBS.get(verb)
    if kind is None:
        raise FaultError(f"fault: verb: found {verb!r}, expected one of {', '.join(sorted(VERBS))}")
    written: dict[str, str] = {}
    if has_value:
        if not kind.main:
            raise FaultError(f"fault {verb!r}: found the value {value!r}, expected none")
        written[kind.main] = value
    for part in rest:
        name, equals, content = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise FaultError(f"fault {verb!r}: found {part.strip()!r}, expected option=value")
        if name in written:
            raise FaultError(f"fault {verb!r}: found {name!r} twice, expected it once")
        written[name] = content
    hints = get_type_hints(kind)
    return make_fault(verb, {name: _from_text(content, hints.get(name)) for name, content in written.items()})


def read_faults(document: object) -> list[Fault]:
    """Read what ``POST /_sim/faults`` carries: one object with a ``verb``, or a list of them.

    Raises:
        FaultError: anything else.
    """
    entries = document if isinstance(document, list) else [document]
    faults: list[Fault] = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise FaultError(f"fault: found {type(entry).__name__}, expected an object with a 'verb'")
        options = dict(entry)
        verb = options.pop("verb", None)
        if not isinstance(verb, str):
            raise FaultError(f"fault: verb: found {verb!r}, expected one of {', '.join(sorted(VERBS))}")
        faults.append(make_fault(verb, options))
    return faults


def as_fault(fault: Fault | str) -> Fault:
    """Return the fault itself, or the one that a text in the command line's form stands for."""
    return parse_fault(fault) if isinstance(fault, str) else fault


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _from_text(text: str, hint: Any) -> object:
    """Turn a written value into the most specific type that its option takes; what fits none is left to the check."""
    members = _members(hint)
    if type(None) in members and text.lower() in ("none", "null"):
        return None
    if bool in members and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number in members:
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _check(place: str, value: object, hint: Any, option: Field[Any]) -> None:
    members = _members(hint)
    if value is None and type(None) in members:
        return
    allowed = next((get_args(member) for member in members if get_origin(member) is Literal), ())
    if allowed:
        if value not in allowed:
            raise FaultError(f"{place}: found {value!r}, expected one of {', '.join(allowed)}")
        return
    kinds = tuple(member for member in members if member is not type(None))
    if not _fits(value, kinds):
        wanted = " or ".join({bool: "true or false", int: "an integer", float: "a number", str: "a text"}[kind] for kind in kinds)
        raise FaultError(f"{place}: found {value!r}, expected {wanted}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(place, value, option)
    if isinstance(value, str) and any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise FaultError(f"{place}: found {value[:40]!r}, expected no control characters")


def _fits(value: object, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):  # an int in Python, which must not pass for a number
        return bool in kinds
    if isinstance(value, int) and float in kinds:
        return True
    return isinstance(value, kinds)


# What may stand in a close frame (RFC 6455 §7.4 and the IANA registry); a close without one is ``drop_mid_turn``.
_CLOSE_CODES = frozenset(range(1000, 1015)) - UNSENDABLE


def _check_range(place: str, value: float, option: Field[Any]) -> None:
    if option.metadata.get("close") and not (value in _CLOSE_CODES or 3000 <= value <= 4999):
        raise FaultError(f"{place}: found {value}, expected a close code: 1000 to 1004, 1007 to 1014 or 3000 to 4999")
    low = option.metadata.get("low")
    high = option.metadata.get("high")
    # Written so that NaN, which compares false with everything, is refused.
    if low is not None and not value >= low:
        raise FaultError(f"{place}: found {value}, expected at least {low}")
    if high is not None and not value <= high:
        raise FaultError(f"{place}: found {value}, expected at most {high}")


# --- choosing -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Armed:
    """A fault with what it has seen so far."""

    fault: Fault
    seen: int = 0
    hits: int = 0

    def draw(self, rng: random.Random) -> bool:
        """Count one session and say whether the fault hits it."""
        fault = self.fault
        if fault.next is not None and self.hits >= fault.next:
            return False
        self.seen += 1
        if fault.every is not None and self.seen % fault.every:
            return False
        if fault.probability is not None and rng.random() >= fault.probability:
            return False
        self.hits += 1
        return True


class FaultPlan:
    """The faults that are set, in order, and which session gets which.

    Args:
        rng: source of the ``probability`` of faults.
    """

    def __init__(self, faults: Iterable[Fault] = (), *, rng: random.Random) -> None:
        self._rng = rng
        self._armed = [_Armed(fault) for fault in faults]

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is set, in order, spent ones included."""
        return tuple(armed.fault for armed in self._armed)

    @property
    def listener_closed(self) -> Refuse | None:
        """The fault that wants the listener closed, if one is set."""
        for armed in self._armed:
            if isinstance(armed.fault, Refuse) and not armed.fault.reset:
                return armed.fault
        return None

    def add(self, fault: Fault) -> None:
        """Set a fault behind those that are set."""
        self._armed.append(_Armed(fault))

    def replace(self, fault: Fault) -> None:
        """Set a fault in the place of those of the same verb."""
        self.remove(fault.verb)
        self.add(fault)

    def remove(self, verb: str) -> None:
        """Take out the faults of one verb."""
        self._armed = [armed for armed in self._armed if armed.fault.verb != verb]

    def clear(self) -> None:
        """Take out all of them."""
        self._armed = []

    def draw_connection(self) -> bool:
        """Whether the connection that was just accepted is to be reset."""
        return any(armed.draw(self._rng) for armed in self._armed if isinstance(armed.fault, Refuse) and armed.fault.reset)

    def draw_session(self) -> Fault | None:
        """The fault of the session that is about to begin: the first that is due."""
        for armed in self._armed:
            if not isinstance(armed.fault, Refuse) and armed.draw(self._rng):
                return armed.fault
        return None

    def describe(self) -> list[dict[str, object]]:
        """What is set and how often each hit, for JSON."""
        return [armed.fault.describe() | {"hits": armed.hits} for armed in self._armed]
