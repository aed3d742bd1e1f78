"""Reading what a provider says a response or a transcription cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.usage import USAGE_FIELDS, Usage, response_usage, transcription_usage

RESPONSE = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 119,
        "audio_tokens": 13,
        "image_tokens": 7,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 60, "audio_tokens": 4, "image_tokens": 1},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}
TRANSCRIPTION = {
    "type": "tokens",
    "total_tokens": 22,
    "input_tokens": 17,
    "output_tokens": 5,
    "input_token_details": {"text_tokens": 2, "audio_tokens": 15},
}

# What JSON can hold, wherever it stands.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [
        "type",
        "seconds",
        "total_tokens",
        "input_tokens",
        "output_tokens",
        "input_token_details",
        "output_token_details",
        "text_tokens",
        "audio_tokens",
        "image_tokens",
        "cached_tokens",
        "cached_tokens_details",
    ]
)
HOSTILE = st.recursive(
    st.dictionaries(NAMES, JSON, max_size=8), lambda inner: st.dictionaries(NAMES, JSON | inner, max_size=8), max_leaves=4
)


def test_every_kind_of_a_response_is_read() -> None:
    """Each number of a complete usage lands in the field that is named after it."""
    assert response_usage(RESPONSE) == Usage(
        total=253,
        input=132,
        output=121,
        input_text=119,
        input_audio=13,
        input_image=7,
        cached=64,
        cached_text=60,
        cached_audio=4,
        cached_image=1,
        output_text=30,
        output_audio=91,
    )


def test_every_kind_of_a_transcription_is_read() -> None:
    """Tokens of a transcription are kept apart from those of responses, and are in the total."""
    assert transcription_usage(TRANSCRIPTION) == Usage(
        total=22,
        transcription_input=17,
        transcription_input_text=2,
        transcription_input_audio=15,
        transcription_output=5,
    )


@pytest.mark.parametrize("usage", [{"type": "duration", "seconds": 3.5}, {"seconds": 3.5}])
def test_a_transcription_billed_by_time(usage: dict[str, Any]) -> None:
    """A duration is read as seconds, also from a server that leaves the type out."""
    assert transcription_usage(usage) == Usage(transcription_seconds=3.5)


def test_a_missing_total_is_the_sum() -> None:
    """A provider that gives no total still counts against a limit of tokens."""
    assert response_usage({"input_tokens": 3, "output_tokens": 4}).total == 7
    assert transcription_usage({"input_tokens": 3, "output_tokens": 4}).total == 7
    assert response_usage({"total_tokens": 9, "input_tokens": 3, "output_tokens": 4}).total == 9


@pytest.mark.parametrize(
    "value", [None, True, "12", -1, -0.5, math.nan, math.inf, -math.inf, 10**13, 10**400, [], {}, 1e300], ids=repr
)
def test_a_hostile_number_counts_as_nothing(value: object) -> None:
    """What is not a plausible count is 0, and never an exception."""
    assert response_usage({"total_tokens": value, "input_tokens": value}) == Usage()
    assert transcription_usage({"type": "duration", "seconds": value}) == Usage()
    assert transcription_usage({"type": "tokens", "input_tokens": value}) == Usage()


def test_a_number_with_a_fraction_is_cut() -> None:
    """A count that came as a float is a count all the same."""
    assert response_usage({"total_tokens": 12.0, "input_tokens": 1.9}) == Usage(total=12, input=1)


@pytest.mark.parametrize("details", [None, [], "text_tokens", 7])
def test_details_of_a_wrong_kind(details: object) -> None:
    """Details that are no object leave the sums readable."""
    usage = {**RESPONSE, "input_token_details": details, "output_token_details": details}
    assert response_usage(usage) == Usage(total=253, input=132, output=121)
    nested = {**RESPONSE, "input_token_details": {"text_tokens": 1, "cached_tokens_details": details}, "output_token_details": {}}
    assert response_usage(nested) == Usage(total=253, input=132, output=121, input_text=1)


@given(HOSTILE)
def test_whatever_comes_is_counted_without_harm(usage: dict[str, Any]) -> None:
    """No object whatever raises, and every count is finite and not negative: counters must never fall."""
    for read in (response_usage, transcription_usage):
        result = read(usage)
        for name in USAGE_FIELDS:
            assert 0 <= getattr(result, name) < math.inf
        assert all(isinstance(getattr(result, name), int) for name in USAGE_FIELDS if name != "transcription_seconds")


def test_usage_adds_up_field_by_field() -> None:
    """A sum holds both, and adding nothing changes nothing."""
    both = response_usage(RESPONSE) + transcription_usage(TRANSCRIPTION) + transcription_usage({"type": "duration", "seconds": 2})
    assert both.total == 275
    assert both.input_text == 119
    assert both.transcription_output == 5
    assert both.transcription_seconds == 2.0
    assert both + Usage() == both


def test_nothing_is_false_and_shows_nothing() -> None:
    """An empty usage is false and its dict is empty; any count makes it true and shows in the dict alone."""
    assert not Usage()
    assert Usage().as_dict() == {}
    assert Usage(cached_image=1)
    assert Usage(cached_image=1, transcription_seconds=0.5).as_dict() == {"cached_image": 1, "transcription_seconds": 0.5}
