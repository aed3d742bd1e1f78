"""What a session cost, in the provider's own units: tokens by kind and seconds of transcription."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

# Beyond this a number from outside is not a count of tokens.
_MOST: Final = 10**12
_MOST_SECONDS: Final = 10**6
# Limits in one report; there are two kinds.
_MOST_LIMITS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Sums; every number is a count of tokens unless said otherwise.

    ``cached_*`` are parts of the inputs, not in addition to them. Totals are the provider's own; the kinds may add up to less,
    for providers do not break all of them down.
    """

    total: int = 0
    input: int = 0
    output: int = 0
    input_text: int = 0
    input_audio: int = 0
    input_image: int = 0
    cached: int = 0
    cached_text: int = 0
    cached_audio: int = 0
    cached_image: int = 0
    output_text: int = 0
    output_audio: int = 0
    transcription_input: int = 0
    transcription_input_text: int = 0
    transcription_input_audio: int = 0
    transcription_output: int = 0
    transcription_seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in USAGE_FIELDS})

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in USAGE_FIELDS)

    def as_dict(self) -> dict[str, int | float]:
        """The counts that are not zero."""
        return {name: value for name in USAGE_FIELDS if (value := getattr(self, name))}


USAGE_FIELDS: Final = tuple(item.name for item in fields(Usage))


def _count(value: object) -> int:
    """A number from outside as a count; what is none counts as 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return 0
    return int(value) if 0 < value <= _MOST else 0


def _seconds(value: object) -> float:
    """A duration from outside; what is none, or longer than any session, counts as 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 < value <= _MOST_SECONDS else 0.0


def _part(value: object, key: str) -> Mapping[str, Any]:
    part = value.get(key) if isinstance(value, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def response_usage(usage: Mapping[str, Any]) -> Usage:
    """Read ``response.done``'s ``usage`` (PROTOCOL §3). Missing and hostile values count as 0.

    A provider that gives no total gets the sum of its inputs and outputs, for limits are counted by the total.
    """
    inputs, outputs = _part(usage, "input_token_details"), _part(usage, "output_token_details")
    cached = _part(inputs, "cached_tokens_details")
    spent, made = _count(usage.get("input_tokens")), _count(usage.get("output_tokens"))
    return Usage(
        total=_count(usage.get("total_tokens")) or spent + made,
        input=spent,
        output=made,
        input_text=_count(inputs.get("text_tokens")),
        input_audio=_count(inputs.get("audio_tokens")),
        input_image=_count(inputs.get("image_tokens")),
        cached=_count(inputs.get("cached_tokens")),
        cached_text=_count(cached.get("text_tokens")),
        cached_audio=_count(cached.get("audio_tokens")),
        cached_image=_count(cached.get("image_tokens")),
        output_text=_count(outputs.get("text_tokens")),
        output_audio=_count(outputs.get("audio_tokens")),
    )


def transcription_usage(usage: Mapping[str, Any]) -> Usage:
    """Read the ``usage`` of a completed transcription: tokens, or a duration in seconds (PROTOCOL §3).

    Which of the two it is says ``type``; where that is missing, what is there says it.
    """
    if usage.get("type", "duration" if "seconds" in usage else "tokens") == "duration":
        return Usage(transcription_seconds=_seconds(usage.get("seconds")))
    inputs = _part(usage, "input_token_details")
    spent, made = _count(usage.get("input_tokens")), _count(usage.get("output_tokens"))
    return Usage(
        total=_count(usage.get("total_tokens")) or spent + made,
        transcription_input=spent,
        transcription_input_text=_count(inputs.get("text_tokens")),
        transcription_input_audio=_count(inputs.get("audio_tokens")),
        transcription_output=made,
    )


def tightest_limit(limits: object) -> tuple[float, float] | None:
    """Read ``rate_limits.updated``'s ``rate_limits`` (PROTOCOL §3): requests and tokens, each with what remains of how much.

    Returns:
        The share that is used up of the one that is used up most, 0 to 1, and the seconds until that one is whole again.
        ``None``: there is no usable one.
    """
    if not isinstance(limits, list):
        return None
    known = [known for item in limits[:_MOST_LIMITS] if (known := _limit(item)) is not None]
    return max(known, default=None)


def _limit(item: object) -> tuple[float, float] | None:
    if not isinstance(item, Mapping):
        return None
    most = _count(item.get("limit"))
    remaining = item.get("remaining")
    if not most or isinstance(remaining, bool) or not isinstance(remaining, int | float) or remaining != remaining:
        return None
    return 1.0 - min(max(remaining, 0), most) / most, _seconds(item.get("reset_seconds"))
