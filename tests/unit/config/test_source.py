"""YAML with positions."""

from __future__ import annotations

import pytest

from router.config.source import MAX_BYTES, MAX_DEPTH, MAX_NODES, Document, decode, format_path, parse, printable
from router.errors import ConfigError, Problem


def parsed(text: str) -> Document:
    """Parse text that must be fine."""
    return parse(text, file="test.yaml")


def refused(text: str) -> tuple[Problem, ...]:
    """Parse text that must be refused."""
    with pytest.raises(ConfigError) as caught:
        parse(text, file="test.yaml")
    return caught.value.problems


@pytest.mark.parametrize(
    ("spelt", "value"),
    [
        ("text", "text"),
        ("'7'", "7"),
        ("7", 7),
        ("-1_000", -1000),
        ("+7", 7),
        ("010", 8),
        ("0x1F", 31),
        ("0b101", 5),
        ("0", 0),
        ("1.5", 1.5),
        ("1_0.5", 10.5),
        ("-.inf", float("-inf")),
        ("1.0e+400", float("inf")),
        ("1e3", "1e3"),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("2024-10-01", "2024-10-01"),
        ("2024-10-01T10:00:00Z", "2024-10-01T10:00:00Z"),
        ("1:30", "1:30"),
        ("12:30:45.5", "12:30:45.5"),
        ("=", "="),
        ("!!str 7", "7"),
        ("!!int '7'", 7),
        ("! 7", 7),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("|\n  two\n  lines", "two\nlines\n"),
    ],
)
def test_a_scalar_is_what_yaml_1_1_says_but_for_dates_and_sexagesimals(spelt: str, value: object) -> None:
    """Values keep the type that LiteLLM's loader gives them, and dates and clock times stay text."""
    data = parsed(f"k: {spelt}\n").data["k"]
    assert data == value and type(data) is type(value)


def test_not_a_number_is_read_as_such() -> None:
    """``.nan`` is a float; refusing it is the rules' business."""
    value = parsed("k: .NaN").data["k"]
    assert isinstance(value, float) and value != value


def test_every_place_has_its_line() -> None:
    """Keys, items and values are found again by their path."""
    document = parsed("a:\n  - b: 1\n    c:\n      - x\n      -\n        y\nd: 2\n")
    assert document.line(("a",)) == 1
    assert document.line(("a", 0, "b")) == 2
    assert document.line(("a", 0, "c")) == 3
    assert document.line(("a", 0, "c", 1)) == 6
    assert document.line(("d",)) == 7


def test_a_missing_place_has_the_line_around_it() -> None:
    """A key that should be there is reported where its section stands."""
    document = parsed("a:\n  b: 1\nc:\n  d: {e: 1}\n")
    assert document.line(("c", "d", "nope", 3, "x")) == 4
    assert document.line(()) == 1


def test_merge_keys_follow_yaml_1_1() -> None:
    """Own keys win over merged ones, earlier sources over later ones, and lines point at where a value is written."""
    document = parsed("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  x: 3\nd: {<<: *b, q: 0}\n")
    assert document.data["c"] == {"x": 3, "y": 1, "z": 2}
    assert document.data["d"] == {"q": 0, "y": 2, "z": 2}
    assert document.line(("c", "y")) == 1
    assert document.line(("c", "z")) == 2


def test_a_quoted_merge_sign_is_a_plain_key() -> None:
    """Only the bare ``<<`` merges."""
    assert parsed("'<<': 1").data == {"<<": 1}


def test_aliases_are_values_of_their_own() -> None:
    """Two places of one anchor do not share a mutable value."""
    data = parsed("a: &a [1]\nb: *a\n").data
    assert data["a"] == data["b"] and data["a"] is not data["b"]


def test_a_byte_order_mark_is_dropped() -> None:
    """Windows editors write one."""
    assert parsed("\ufeffa: 1").data == {"a": 1}


def test_duplicate_keys_name_both_lines() -> None:
    """YAML says nothing and PyYAML lets the last one win; here it is an error."""
    (problem,) = refused("a:\n  k: 1\n  l: 2\n  k: 3\n")
    assert (problem.line, problem.path, problem.found) == (4, "a.k", "the key again (first on line 2)")


def test_a_duplicate_in_a_shared_mapping_is_told_once() -> None:
    """An anchor that is used often is not a fault as often."""
    assert len(refused("x: &x {k: 1, k: 2}\ny: [*x, *x, *x]\nz: {<<: *x}\n")) == 1


@pytest.mark.parametrize(
    "spelt", ["!!bool perhaps", "!!int ''", "!!float x", "!!float 1:30:x", "!!int 0x", "!!int -", "!!int 1:z"]
)
def test_an_explicit_type_that_the_text_does_not_fit(spelt: str) -> None:
    """A tag forces a conversion that may fail in its own ways."""
    assert refused(f"a: {spelt}")[0].line == 1


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("", None, "an empty file"),
        ("# nothing\n", None, "an empty file"),
        ("---\n", 2, "nothing"),
        ("just text", 1, "text"),
        ("\n- a\n- b\n", 2, "a list"),
        ("42", 1, "an integer"),
        ("a: 1\n---\nb: 2\n", 2, "a second YAML document"),
        ("a:\n\tb: 1\n", 2, "a tab"),
        ("a: 1\nb: \x00\n", 2, "the control character U+0000"),
        ("a: \x1b[31m", 1, "the control character U+001B"),
        ("a: \ud800", 1, "the control character U+D800"),
        ("a: 1\n7: x\n", 2, "an integer as a key"),
        ("a: 1\nyes: x\n", 2, "a boolean as a key"),
        ("a: 1\n~: x\n", 2, "nothing as a key"),
        ("a: 1\n? [b]\n: x\n", 2, "a list as a key"),
        ("a: *nobody\n", 1, "an alias (*…) without an anchor (&…) before it"),
        ("a: &a [*a]\n", 1, "an alias (*…) without an anchor (&…) before it"),
        ("a: !!python/object/apply:os.system [x]\n", 1, "a YAML tag that is not a plain type"),
        ("a: !!binary aGk=\n", 1, "a YAML tag that is not a plain type"),
        ("a: !!set {x}\n", 1, "a YAML tag that is not a plain type"),
        ("a: " + "9" * 5000, 1, "a malformed value of 5000 characters"),
        ("a: 0b_", 1, "a malformed value of 3 characters"),
        ("a: !!int x", 1, "a malformed value of 1 characters"),
        ("a: {<<: 1}", 1, "no mapping"),
        ("a: {<<: [{b: 1}, 2]}", 1, "no mapping"),
        ("a: [1\nb: 2\n", 2, "broken YAML"),
        ("a: 'open\n\n", 3, "broken YAML"),
        ('a: "\\q"', 1, "broken YAML"),
        ('a: "\\U00FFFFFF"', 1, "a malformed escape or directive"),
    ],
)
def test_what_is_not_a_usable_document_is_a_problem_with_a_line(text: str, line: int | None, found: str) -> None:
    """Each way to be no configuration is told in words."""
    problem = refused(text)[0]
    assert problem.line == line
    assert problem.found.startswith(found)
    assert problem.expected


def test_all_problems_of_a_document_come_at_once() -> None:
    """What does not break the syntax does not end the search."""
    assert [problem.line for problem in refused("1: a\nb: {c: 1, c: 2}\nd: *x\n")] == [1, 3, 2]


def test_nesting_is_bounded() -> None:
    """The deepest legal document is read, one level more is refused where it starts."""
    assert parsed("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)).data["a"]
    (problem,) = refused("a:\n " + "[" * MAX_DEPTH)
    assert problem.line == 2 and "levels" in problem.found


def test_nesting_through_aliases_is_bounded() -> None:
    """Anchors inside anchors multiply depth as well as size."""
    lines = ["a0: &a0 [[[[[[[[x]]]]]]]]"] + [f"a{n}: &a{n} [[[[[[[[*a{n - 1}]]]]]]]]" for n in range(1, 12)]
    assert "levels through aliases" in refused("\n".join(lines))[0].found


def test_aliases_cannot_unfold_without_bound() -> None:
    """A few hundred bytes that mean billions of values are refused."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert "aliases that unfold" in refused("\n".join(lines))[0].found


def test_size_is_bounded() -> None:
    """Bytes and values have a limit, each with its own message."""
    assert "bytes" in refused("#" * (MAX_BYTES + 1))[0].expected
    assert str(MAX_NODES) in refused("a: [" + "1," * (MAX_NODES + 1) + "]")[0].found
    with pytest.raises(ConfigError, match="bytes"):
        decode(b"#" * (MAX_BYTES + 1), file="f")


def test_bytes_that_are_not_utf_8_have_a_line() -> None:
    """A Latin-1 or UTF-16 file is recognised as such."""
    with pytest.raises(ConfigError) as caught:
        decode("a: 1\nb: café\n".encode("latin-1"), file="f")
    assert caught.value.problems[0].line == 2 and caught.value.problems[0].found == "byte 0xe9, which is not UTF-8"
    with pytest.raises(ConfigError):
        decode("a: 1".encode("utf-16"), file="f")


@pytest.mark.parametrize(
    "text",
    [
        "api_key: *Zx8Secret",
        "api_key: @Zx8Secret",
        "api_key: %Zx8Secret",
        "api_key: `Zx8Secret`",
        "api_key: !Zx8Secret x",
        "api_key: 'Zx8Secret",
        'api_key: "Zx8Secret\\q"',
        "api_key: Zx8Secret: x",
        "api_key: [Zx8Secret",
        "api_key: a\n Zx8Secret\n\tx: y",
    ],
)
def test_a_syntax_error_does_not_quote_the_file(text: str) -> None:
    """PyYAML's own messages print the line, and with it the key on it."""
    assert "Zx8Secret" not in "\n".join(str(problem) for problem in refused(text))


def test_a_syntax_error_leaves_no_exception_behind_that_quotes_the_file() -> None:
    """A traceback of a ``ConfigError`` shows no PyYAML error as its cause."""
    with pytest.raises(ConfigError) as caught:
        parse("api_key: 'Zx8Secret", file="f")
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_paths_read_like_the_file() -> None:
    """Plain keys are joined by dots, others are quoted."""
    assert format_path(("model_list", 2, "litellm_params", "weight")) == "model_list[2].litellm_params.weight"
    assert format_path(("groups", "gpt-4.1 voice", "ready")) == 'groups["gpt-4.1 voice"].ready'
    assert format_path(("groups", "voice-agent")) == "groups.voice-agent"
    assert format_path(()) == "(document)"


def test_what_does_not_print_is_escaped() -> None:
    """No message can move the cursor of a terminal or add a line to a log."""
    assert printable("a\x1b\n\u202eb") == "a\\x1b\\n\\u202eb"
    assert printable("x" * 100, 10) == "x" * 10 + "…"
