"""What the simulated model says and does, as a function of what it was told: no chance, no state; a test can predict it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from router.simulator.items import Item
from router.simulator.schema import Json

_QUOTED = 200  # characters of the user's text that an answer repeats
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_WORD = re.compile(r"\w[\w'-]*")
_AFTER_PREPOSITION = re.compile(r"\b(?:in|for|to|at|of|from|about|with|called|named)\s+(\w[\w'-]*)", re.IGNORECASE)


def transcript_of(item: Item, heard: str | None) -> str:
    """What the user's sound is taken to say: the configured text, or its length, since nothing here understands speech."""
    return heard if heard is not None else f"{item.heard_ms / 1000:.1f} seconds of speech"


def last_said(items: Iterable[Item], heard: str | None) -> tuple[Item | None, str]:
    """The last thing that was said to the model, and its text; the assistant's own words do not count."""
    for item in reversed(list(items)):
        if item.kind == "function_call_output":
            return item, item.output
        if item.kind == "message" and item.role == "user":
            words = [part["text"] for part in item.content if part["type"] == "input_text"]
            if any(part["type"] == "input_audio" for part in item.content):
                words.append(transcript_of(item, heard))
            return item, " ".join(words)
    return None, ""


def reply(item: Item | None, said: str, *, name: str, fixed: str | None) -> str:
    """Return the answer's text.

    Args:
        item: what is answered; ``None``: nothing was said yet.
        said: its text.
        name: the simulator's own name, which answers mention so that one sees who spoke; empty: no mention.
        fixed: a configured answer, which wins.
    """
    if fixed is not None:
        return fixed
    signature = f" This is {name}." if name else ""
    if item is None:
        return f"Hello, how can I help you?{signature}"
    quoted = said if len(said) <= _QUOTED else f"{said[:_QUOTED]}…"
    if item.kind == "function_call_output":
        return f"The tool answered: {quoted}{signature}"
    if any(part["type"] == "input_audio" for part in item.content):
        return f"I heard {quoted.rstrip('.')}.{signature}"
    stop = "" if quoted.endswith(("?", "!")) else "."
    return f"You said: {quoted.rstrip('.')}{stop}{signature}"


def calls(tools: Sequence[Json], tool_choice: Any, item: Item | None, said: str) -> list[tuple[str, str]]:
    """Return the functions to call, as names and JSON arguments: those that the user's text names.

    A name is matched as it is or with its underscores and dashes as spaces, in any case. ``tool_choice`` may demand a call (the
    first tool if none is named, or the one it names) or forbid all. A tool's output is answered in words.
    """
    functions = [tool for tool in tools if tool.get("type") == "function" and tool.get("name")]
    if tool_choice == "none" or not functions:
        return []
    if isinstance(tool_choice, dict):
        chosen = [tool for tool in functions if tool["name"] == tool_choice.get("name")]
    elif item is not None and item.kind == "function_call_output":
        chosen = []
    else:
        lowered = said.lower()
        chosen = [tool for tool in functions if _names(tool["name"].lower(), lowered)]
        if not chosen and tool_choice == "required":
            chosen = functions[:1]
    return [(tool["name"], orjson.dumps(arguments(tool.get("parameters"), said)).decode()) for tool in chosen]


def _names(name: str, said: str) -> bool:
    return name in said or re.sub(r"[_-]+", " ", name) in said


def arguments(schema: Any, said: str) -> Json:
    """Fill the required properties of a JSON schema from a text: its numbers, its words, the members of an ``enum`` it names."""
    if not isinstance(schema, dict):
        return {}
    properties = schema.get("properties")
    required = schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    return {name: _value(properties.get(name), said) for name in required if isinstance(name, str)}


def _value(schema: Any, said: str) -> Any:
    if not isinstance(schema, dict):
        return _object_of(said)
    members = schema.get("enum")
    if isinstance(members, list) and members:
        return next((member for member in members if str(member).lower() in said.lower()), members[0])
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((entry for entry in kind if entry != "null"), "null")
    found = _NUMBER.search(said)
    digits = found.group()[:15] if found else "1"  # 15 digits are exact in a double, and no text makes a number that JSON lacks
    if kind == "integer":
        return int(float(digits))
    if kind == "number":
        return float(digits)
    if kind == "boolean":
        return True
    if kind == "array":
        return [_value(schema.get("items"), said)]
    if kind == "object":
        return arguments(schema, said)
    if kind == "null":
        return None
    return _object_of(said)


def _object_of(said: str) -> str:
    """The word that a request is most likely about: the one after the last preposition, else the last."""
    after = _AFTER_PREPOSITION.findall(said)
    if after:
        return str(after[-1])
    words = _WORD.findall(said)
    return words[-1] if words else ""
