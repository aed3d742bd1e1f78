"""No text whatsoever gets anything but a configuration or its problems out of the loader."""

from __future__ import annotations

import json
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.config import ConfigError, Loaded, json_schema, load_text
from router.config.source import decode
from tests.unit.config.helpers import ENVIRON, EXAMPLE, ONE

EXAMPLE_TEXT = EXAMPLE.read_text(encoding="utf-8")
ENTRY = "  - {model_name: a, litellm_params: {model: openai/realtime, %s: 1}}\n"
LINES = [line for line in EXAMPLE_TEXT.splitlines() if line.strip() and not line.lstrip().startswith("# ")]

HOSTILE = [
    '~', 'null', 'true', 'no', 'NaN', '.nan', '.inf', '-.inf', '1e400', '1.0e+400', '-1', '0', '0.0', '-0.0', "9" * 5000,
    "1" + "0" * 30, "0x" + "f" * 600, '0b_', '0x_', '1_000', '1:30', '190:20:30', '010', '08', '2024-10-01', "''", '""',
    '[]', '{}', '[[]]', '{a: b}', '[null]', '[~, 1]', '- x', '!!binary aGk=', '!!python/object:os.system x', '!!bool x',
    "!!int ''", '!!set {a}', '!x y', '&a *a', '*nowhere', '<<', '=', 'os.environ/', 'os.environ/XAI_API_KEY',
    'os.environ/NOT_SET', 'os.environ/\xe9', '${XAI_API_KEY}', '"\\0"', '"\\uD800"', '"a\\nb"', '|\n  x\n', '\ufffe', 'é',
    '日本', "a" * 300, 'http://user:pw@host', 'ws://[::1', 'sha256:zz', '{model: x}', '[1e3, 0.5]', "{'*': [a]}", '?', ': :',
]  # fmt: skip


def _keys() -> list[str]:
    schema = json_schema()
    sections = [schema, *schema["$defs"].values()]
    return sorted({key for section in sections for key in section.get("properties", ())})


KEYS = [*_keys(), "<<", "x-mine", "voice-agent", "nobody", "*", "yes", "1", "''"]


def check(text: str) -> None:
    """Load ``text`` and judge what comes back; anything raised but ``ConfigError`` fails the test by itself."""
    try:
        result = load_text(text, environ=ENVIRON)
    except ConfigError as error:
        told = error.problems
        assert told
    else:
        assert isinstance(result, Loaded)
        assert result.settings.groups
        assert any(each.state != "misconfigured" for group in result.settings.groups.values() for each in group.deployments)
        told = result.warnings
    for problem in told:
        assert problem.path and problem.found and problem.expected and problem.file
        shown = str(problem)
        assert shown.isprintable(), repr(shown)
        assert len(shown) < 2000
        assert not any(value in shown for value in ENVIRON.values())


@given(st.text(max_size=400))
def test_any_text(text: str) -> None:
    """Arbitrary characters are refused or loaded, never a traceback."""
    check(text)


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    """Arbitrary bytes are refused as not being UTF-8, or treated as the text they are."""
    try:
        text = decode(raw, file="bytes")
    except ConfigError as error:
        assert error.problems[0].expected == "UTF-8 text"
        return
    check(text)


@given(st.text(alphabet="{}[]:,-?&*!|>'\"%@`#<= \n\t~xy01.", max_size=300))
def test_yaml_punctuation(text: str) -> None:
    """Text dense in YAML's indicators reaches deep into the parser."""
    check(text)


@given(st.data())
def test_a_value_of_the_example_replaced(data: st.DataObject) -> None:
    """Any value of the example may be anything at all."""
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(lines) - 1))
        line = re.sub(r"^(\s*)#", r"\1", lines[index])
        head, colon, _ = line.partition(":")
        lines[index] = f"{head}{colon} {data.draw(st.sampled_from(HOSTILE))}"
    check("\n".join(lines))


@given(st.data())
def test_the_example_cut_and_spliced(data: st.DataObject) -> None:
    """Lines of the example lost, doubled, shifted, switched on and cut short."""
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 6))):
        index = data.draw(st.integers(0, len(lines) - 1))
        action = data.draw(st.sampled_from(["drop", "double", "indent", "outdent", "switch on", "cut", "tab"]))
        line = lines[index]
        replaced = {
            "drop": [],
            "double": [line, line],
            "indent": ["  " + line],
            "outdent": [line[2:]],
            "switch on": [line.replace("#", "", 1)],
            "cut": [line[: data.draw(st.integers(0, len(line)))]],
            "tab": ["\t" + line],
        }[action]
        lines[index : index + 1] = replaced
        if not lines:
            break
    check("\n".join(lines))


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(string.printable, max_size=20),
    st.sampled_from(
        ["voice-agent", "least-busy", "usage-based-routing-v2", "auto", "GA", "1.2.3.4", "realtime", "openai/gpt-realtime"]
    ),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYS), _VALUES, max_size=6), st.booleans())
@example({"general_settings": {"keys": [{"name": "a", "sha256": "0" * 64}, None]}}, True)
@example({"router_settings": {"fallbacks": [{"voice": [{"model": "x"}, 1]}]}}, True)
@example({"router_settings": {"routing_strategy": "affinity", "routing_strategy_args": {"by": "header"}}}, True)
@example({"groups": {"voice": {"health_check": {}}}}, True)
def test_any_structure_of_known_keys(sections: dict[str, object], valid_deployment: bool) -> None:
    """Known keys in any place with any value, beside a deployment that works or alone."""
    # JSON is YAML but for NaN and infinities, which become the text that they are.
    body = "\n".join(
        f"{json.dumps(key)}: {json.dumps(value)}"
        for key, value in sections.items()
        if key != "model_list" or not valid_deployment
    )
    check((ONE + body) if valid_deployment else body)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="brackets"),
        pytest.param("{a: " * 100_000, id="braces"),
        pytest.param("- " * 100_000, id="dashes"),
        pytest.param("? " * 100_000, id="question marks"),
        pytest.param("&a " * 100_000, id="anchors"),
        pytest.param("'" * 100_001, id="quotes"),
        pytest.param("a: " + "x" * 1_000_000, id="long scalar"),
        pytest.param("".join(f"k{index}: 1\n" for index in range(20_000)), id="many keys"),
        pytest.param("a: 1\n" * 20_000, id="one key many times"),
        pytest.param("a: [" + "x, " * 250_000 + "]", id="more values than allowed"),
        pytest.param(
            "x-a0: &a0 [x]\n" + "".join(f"x-a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
            id="alias bomb",
        ),
        pytest.param(
            "x-m0: &m0 {k: 1}\n" + "".join(f"x-m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}\n" for n in range(1, 12)),
            id="merge bomb",
        ),
        pytest.param(
            "x-m: &m {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}\nx-n:\n" + "  - <<: *m\n" * 5000, id="large merges"
        ),
        pytest.param("model_list:\n" + (ENTRY % "wieght") * 3000, id="many errors"),
        pytest.param("model_list:\n" + (ENTRY % "top_p") * 3000, id="many warnings"),
    ],
)  # fmt: skip
def test_inputs_made_to_be_slow(text: str) -> None:
    """Texts made to exhaust the stack, the memory or the patience come back with an answer."""
    check(text)
