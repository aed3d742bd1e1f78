"""Checks of client fields."""

from __future__ import annotations

from typing import Any

import pytest

from router.simulator.schema import (
    Check,
    EventError,
    anything,
    boolean,
    choice,
    either,
    integer,
    list_of,
    nullable,
    number,
    record,
    string_map,
    text,
)

PERSON = record(
    {"name": text(max_length=3), "tags": list_of(choice("a", "b"), longest=2), "age": integer(0, 9)}, required=("name",)
)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (text(), ""),
        (choice("a"), "a"),
        (boolean, False),
        (number(0, 1), 0.5),
        (number(0, 1), 1),
        (integer(0, 9), 9),
        (nullable(boolean), None),
        (either(integer(1, 2), choice("inf"), expected="x"), "inf"),
        (PERSON, {"name": "abc", "tags": ["a", "b"], "age": 0}),
        (string_map, {"k": "v"}),
        (anything, object),
    ],
)
def test_good_values_pass_unchanged(check: Check, value: Any) -> None:
    """What fits comes back as it was."""
    assert check(value, "p") == value


@pytest.mark.parametrize(
    ("check", "value", "code", "param"),
    [
        (text(), 5, "invalid_value", "p"),
        (text(max_length=2), "abc", "string_above_max_length", "p"),
        (choice("a"), "b", "invalid_value", "p"),
        (choice("a"), ["a"], "invalid_value", "p"),
        (boolean, 1, "invalid_value", "p"),
        (number(0, 1), True, "invalid_value", "p"),
        (number(0, 1), float("nan"), "invalid_value", "p"),
        (number(0, 1), "1", "invalid_value", "p"),
        (integer(0, 9), 1.0, "invalid_value", "p"),
        (integer(0, 9), 10, "invalid_value", "p"),
        (either(integer(1, 2), choice("inf"), expected="1, 2 or inf"), 3, "invalid_value", "p"),
        (PERSON, [], "invalid_value", "p"),
        (PERSON, {}, "missing_required_parameter", "p.name"),
        (PERSON, {"name": "a", "x": 1}, "unknown_parameter", "p.x"),
        (PERSON, {"name": "a", "tags": ["a", "c"]}, "invalid_value", "p.tags[1]"),
        (PERSON, {"name": "a", "tags": ["a", "a", "a"]}, "invalid_value", "p.tags"),
        (PERSON, {"name": "a", "tags": {}}, "invalid_value", "p.tags"),
        (string_map, {"k": 1}, "invalid_value", "p.k"),
        (string_map, {"k" * 65: "v"}, "string_above_max_length", "p"),
        (string_map, {str(n): "v" for n in range(17)}, "invalid_value", "p"),
        (string_map, [], "invalid_value", "p"),
    ],
)
def test_bad_values_are_refused_with_code_and_place(check: Check, value: Any, code: str, param: str) -> None:
    """What does not fit raises the documented code with the place."""
    with pytest.raises(EventError) as refused:
        check(value, "p")
    assert (refused.value.code, refused.value.param) == (code, param)


def test_tolerant_records_drop_what_they_do_not_know() -> None:
    """xAI's way with unknown fields."""
    assert record({"a": boolean}, tolerant=True)({"a": True, "b": 1}, "") == {"a": True}


def test_long_values_are_shortened_in_messages() -> None:
    """A message does not repeat a megabyte."""
    with pytest.raises(EventError) as refused:
        choice("a")("x" * 10_000, "p")
    assert len(refused.value.message) < 200
