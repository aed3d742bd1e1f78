"""JSON from outside is read as leniently as by the clients it is meant for, and never raises."""

from __future__ import annotations

import math
from typing import Any

import pytest

from router.jsontext import parse, parse_object


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a":1}', {"a": 1}),
        (b'{"type":"\\ud800"}', {"type": "\ud800"}),
        (b'{"k":"\\udc00\\ud800","n":1}', {"k": "\udc00\ud800", "n": 1}),
        (b'{"n":Infinity}', {"n": math.inf}),
        (b'{"n":-Infinity}', {"n": -math.inf}),
        (b"[1,2]", [1, 2]),
        (b"null", None),
    ],
)
def test_what_python_reads_is_read(text: bytes, value: Any) -> None:
    """orjson alone refuses lone surrogates and the numbers that JSON does not have: then a response was not billed."""
    assert parse(text) == value


def test_nan_is_a_number() -> None:
    """It equals nothing, itself included, so it has a test of its own."""
    assert math.isnan(parse(b'{"n":NaN}')["n"])


NO_JSON = [
    b"",
    b"{",
    b'{"a":1}x',
    b"\xff\xfe",
    b'"\xc3"',
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 100_000 + b"x",
    b"\x00" * 64,
]


@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_json_is_nothing(text: bytes) -> None:
    """Neither broken text nor nesting or digits without end raise anything."""
    assert parse(text) is None
    assert parse_object(text) == {}


@pytest.mark.parametrize("text", [b"[]", b"1", b'"x"', b"null", b"true", b"NaN", b'"\\ud800"'])
def test_an_object_is_asked_for(text: bytes) -> None:
    """Whatever else it is counts as an empty one."""
    assert parse_object(text) == {}
    assert parse_object(b'{"a":NaN}').keys() == {"a"}
