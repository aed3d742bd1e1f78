"""Checks of what clients send, and the errors that providers answer with (codes as seen on the wire)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Json = dict[str, Any]

# A check returns the value to keep. ``path`` is the place as an error's ``param`` writes it: ``session.audio.input.format``.
Check = Callable[[Any, str], Any]


class EventError(Exception):
    """A client event that is refused with an ``error`` event; the session goes on.

    Attributes:
        code: ``error.code``.
        message: ``error.message``.
        param: ``error.param``, the place in the event.
        kind: ``error.type``.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind


def missing(path: str) -> EventError:
    """The error for a required field that is not there."""
    return EventError("missing_required_parameter", f"Missing required parameter: '{path}'.", param=path)


def wrong(path: str, expected: str, found: object) -> EventError:
    """The error for a value of the wrong type or out of range. Long values are shortened."""
    shown = repr(found) if isinstance(found, (str, int, float, bool)) or found is None else type(found).__name__
    if len(shown) > 60:
        shown = f"{shown[:60]}…"
    return EventError("invalid_value", f"Invalid value: '{path}': found {shown}, expected {expected}.", param=path)


def text(*, max_length: int | None = None) -> Check:
    """A string, at most ``max_length`` characters long."""

    def check(value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise wrong(path, "a string", value)
        if max_length is not None and len(value) > max_length:
            problem = f"Invalid '{path}': string too long. Expected at most {max_length} characters, but got {len(value)}."
            raise EventError("string_above_max_length", problem, param=path)
        return value

    return check


def choice(*allowed: str) -> Check:
    """One of a fixed set of strings."""

    def check(value: Any, path: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise wrong(path, f"one of {', '.join(allowed)}", value)
        return value

    return check


def boolean(value: Any, path: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(path, "a boolean", value)
    return value


def number(low: float, high: float) -> Check:
    """A number within bounds."""

    def check(value: Any, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise wrong(path, f"a number from {low:g} to {high:g}", value)
        return value

    return check


def integer(low: int, high: int) -> Check:
    """A whole number within bounds."""

    def check(value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(path, f"an integer from {low} to {high}", value)
        return value

    return check


def anything(value: Any, path: str) -> Any:
    """Whatever it is."""
    del path
    return value


def nullable(inner: Check) -> Check:
    """``null``, or what ``inner`` accepts."""
    return lambda value, path: None if value is None else inner(value, path)


def either(*checks: Check, expected: str) -> Check:
    """What one of the checks accepts, the first that does."""

    def check(value: Any, path: str) -> Any:
        for inner in checks:
            try:
                return inner(value, path)
            except EventError:
                continue
        raise wrong(path, expected, value)

    return check


def list_of(inner: Check, *, longest: int = 1024) -> Check:
    """A list, each entry accepted by ``inner``."""

    def check(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise wrong(path, "an array", value)
        if len(value) > longest:
            raise wrong(path, f"at most {longest} entries", len(value))
        return [inner(entry, f"{path}[{index}]") for index, entry in enumerate(value)]

    return check


def record(fields: Mapping[str, Check], *, required: tuple[str, ...] = (), tolerant: bool = False) -> Check:
    """An object with known fields.

    Args:
        fields: name → check.
        required: names that must be there.
        tolerant: drop unknown fields instead of refusing them, as xAI does.
    """

    def check(value: Any, path: str) -> Json:
        if not isinstance(value, dict):
            raise wrong(path, "an object", value)
        for name in required:
            if name not in value:
                raise missing(f"{path}.{name}" if path else name)
        kept: Json = {}
        for name, entry in value.items():
            place = f"{path}.{name}" if path else name
            inner = fields.get(name)
            if inner is not None:
                kept[name] = inner(entry, place)
            elif not tolerant:
                raise EventError("unknown_parameter", f"Unknown parameter: '{place}'.", param=place)
        return kept

    return check


def string_map(value: Any, path: str) -> dict[str, str]:
    """Metadata: at most 16 pairs, keys to 64 and values to 512 characters."""
    if not isinstance(value, dict):
        raise wrong(path, "an object", value)
    if len(value) > 16:
        raise wrong(path, "at most 16 pairs", len(value))
    key_check = text(max_length=64)
    value_check = text(max_length=512)
    return {key_check(key, path): value_check(entry, f"{path}.{key}") for key, entry in value.items()}
