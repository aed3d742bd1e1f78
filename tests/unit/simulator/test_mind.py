"""What the simulated model says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.simulator.items import Item
from router.simulator.mind import arguments, calls, last_said, reply

USER = Item(id="u", role="user", content=[{"type": "input_text", "text": "hello"}])
HEARD = Item(id="h", role="user", content=[{"type": "input_audio", "transcript": None}], heard_ms=1_250)
OUTPUT = Item(id="o", kind="function_call_output", call_id="c", output="42")
ASSISTANT = Item(id="a", role="assistant", content=[{"type": "output_text", "text": "mine"}])
SYSTEM = Item(id="s", role="system", content=[{"type": "input_text", "text": "rule"}])


@pytest.mark.parametrize(
    ("items", "heard", "answer"),
    [
        ([], None, "Hello, how can I help you?"),
        ([SYSTEM], None, "Hello, how can I help you?"),
        ([USER], None, "You said: hello."),
        ([USER, ASSISTANT], None, "You said: hello."),
        ([USER, HEARD], None, "I heard 1.2 seconds of speech."),
        ([USER, HEARD], "good day", "I heard good day."),
        ([USER, OUTPUT], None, "The tool answered: 42"),
    ],
)
def test_answers_follow_from_what_was_said_last(items: list[Item], heard: str | None, answer: str) -> None:
    """The last words of a user or tool are answered."""
    item, said = last_said(items, heard)
    assert reply(item, said, name="", fixed=None) == answer


@pytest.mark.parametrize(("said", "answer"), [("Why?", "You said: Why?"), ("Go!", "You said: Go!"), ("Yes...", "You said: Yes.")])
def test_a_sentence_ends_once(said: str, answer: str) -> None:
    """Whatever it ended with."""
    assert reply(USER, said, name="", fixed=None) == answer
    assert reply(USER, said, name="a", fixed=None) == f"{answer} This is a."


def test_name_is_told_and_a_fixed_answer_wins() -> None:
    """One sees who spoke, unless the words were chosen."""
    assert reply(USER, "hello", name="alpha", fixed=None) == "You said: hello. This is alpha."
    assert reply(USER, "hello", name="alpha", fixed="Fixed.") == "Fixed."


def test_long_texts_are_quoted_in_part() -> None:
    """An answer does not grow with the question."""
    assert len(reply(USER, "x" * 100_000, name="", fixed=None)) < 300


@pytest.mark.parametrize(
    ("schema", "said", "expected"),
    [
        ({"type": "string"}, "weather in Lisbon", "Lisbon"),
        ({"type": "string"}, "one word more", "more"),
        ({"type": "string"}, "", ""),
        ({"type": "string", "enum": ["red", "blue"]}, "the BLUE one", "blue"),
        ({"type": "string", "enum": ["red", "blue"]}, "neither", "red"),
        ({"type": "integer"}, "take 7 of 9", 7),
        ({"type": "integer"}, "take some", 1),
        ({"type": "integer"}, "9" * 400, 10**15 - 1),
        ({"type": "number"}, "-2.5 degrees", -2.5),
        ({"type": ["null", "boolean"]}, "x", True),
        ({"type": "array", "items": {"type": "integer"}}, "3", [3]),
        ({"type": "object", "required": ["a"], "properties": {"a": {"type": "null"}}}, "x", {"a": None}),
        ({}, "last", "last"),
        (None, "last", "last"),
    ],
)
def test_arguments_fill_the_required_properties(schema: Any, said: str, expected: Any) -> None:
    """Each type of property gets a value of that type, from the text where it has one."""
    made = arguments({"type": "object", "required": ["x"], "properties": {"x": schema, "optional": {}}}, said)
    assert made == {"x": expected}


def test_tools_are_matched_by_name_in_any_writing() -> None:
    """Underscores may be spaces; a tool that is no function is never called; an output is not answered by a call."""
    tools = [{"type": "function", "name": "get_weather"}, {"type": "mcp", "name": "get_weather"}]
    assert [name for name, _ in calls(tools, "auto", USER, "Get Weather now")] == ["get_weather"]
    assert calls(tools, "auto", USER, "weather") == []
    assert calls(tools, "required", OUTPUT, "get_weather") == []


@given(
    st.recursive(
        st.none() | st.text() | st.integers() | st.booleans(),
        lambda s: st.lists(s) | st.dictionaries(st.sampled_from(["type", "properties", "required", "enum", "items", "a"]), s),
    ),
    st.text(),
)
def test_any_schema_gives_json(schema: Any, said: str) -> None:
    """Clients send what they like as a schema; the arguments are JSON all the same."""
    made = calls([{"type": "function", "name": "f", "parameters": schema}], "required", USER, said)
    assert made[0][0] == "f"
    assert made[0][1].startswith("{")
