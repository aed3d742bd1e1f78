"""No text whatsoever gets anything but a configuration or its problems out of the loader."""

from __future__ import annotations

import json
import re
import string
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.config import ConfigError, FleetSettings, Loaded, json_schema, load_text, redis_url
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
    'redis://:os.environ/X@h', 'redis+sentinel://[::1]:1,b/m/0', 'rediss+cluster://', 'unix:///', 'auto', 'shared-round-robin',
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
    st.sampled_from(["shared-least-connections", "redis://h", "rediss+sentinel://u:p@h/main", "unix:///s", "closed"]),
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
@example({"router_settings": {"redis": "redis://h", "routing_strategy": "shared-round-robin"}}, True)
@example({"router_settings": {"redis_host": "[]", "redis_port": "1", "redis_ca_file": "."}}, True)
@example({"general_settings": {"workers": "auto"}, "router_settings": {"routing_strategy": "shared-round-robin"}}, True)
def test_any_structure_of_known_keys(sections: dict[str, object], valid_deployment: bool) -> None:
    """Known keys in any place with any value, beside a deployment that works or alone."""
    # JSON is YAML but for NaN and infinities, which become the text that they are.
    body = "\n".join(
        f"{json.dumps(key)}: {json.dumps(value)}"
        for key, value in sections.items()
        if key != "model_list" or not valid_deployment
    )
    check((ONE + body) if valid_deployment else body)


# --- the server of a fleet -----------------------------------------------------------------------

# No part of a URL's grammar, of a message or of a key holds it.
SECRET = "zqXhushXqz"
_URL_PARTS = st.sampled_from(
    [
        "redis", "rediss", "valkey", "valkeys", "+sentinel", "+cluster", "unix", "http", "://", ":", "/", "@", ",", "?", "&", "=",
        "#", "%", "%40", "%2F", "%00", "%ff", "[", "]", "[::1]", "::1", "127.0.0.1", "256.1.1.1", "h", "main", "0", "6379",
        "65536", "db=", "db=1", "password=", "ssl_cert_reqs=none", "os.environ/X", "${X}", " ", "\n", "é", "\u2028", "\ud800",
        SECRET,
    ]
)  # fmt: skip
_URLS = st.lists(_URL_PARTS, max_size=14).map("".join)


def read_url(url: str) -> FleetSettings | None:
    """Read a URL and judge what comes back; anything raised but ``UnfitUrl`` fails the test by itself."""
    try:
        return redis_url.parse(url)
    except redis_url.UnfitUrl as error:
        told = f"{error}\n{error.found}\n{error.expected}\n{error.hint}\n{error.__cause__}"
        assert error.found and error.expected and SECRET not in told
        return None


@given(st.one_of(st.text(max_size=200), _URLS, _URLS.map("redis://".__add__), _URLS.map("rediss+sentinel://".__add__)))
@example("redis+sentinel://" + "," * 4000)
@example("redis://" + "h." * 2000)
@example("redis://" + "a-" * 120)
@example("redis://[" + ":" * 4000)
@example("redis://u:" + "%41" * 1300 + "@h")
@example("redis://h?" + "&" * 4000)
def test_any_text_as_the_url_of_a_server(url: str) -> None:
    """What is taken is a server that can be dialled; what is not is refused without a word of it."""
    server = read_url(url)
    if server is None:
        return
    assert bool(server.nodes) != bool(server.path)
    assert (server.kind == "sentinel") == bool(server.service)
    assert server.kind != "cluster" or server.db == 0
    assert len(server.nodes) <= 1 or server.kind != "single"
    assert 0 <= server.db <= redis_url.HIGHEST_DB
    for name, port in server.nodes:
        assert name == redis_url.host(name) and 0 < port < 65536
        assert not set(name) & set("@/?#[]%, ")
    for text in (server.username, server.password and server.password.reveal(), server.path):
        assert text is None or (text and not re.search(r"[\x00-\x1f\x7f]", text))


_CREDENTIAL = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=20)
_HOSTS = st.sampled_from(["h", "redis_1.my-net", "10.0.0.1", "::1", "2001:db8::7"])


@given(
    st.sampled_from(["redis", "rediss", "valkey+sentinel", "valkeys+sentinel", "redis+cluster", "rediss+cluster"]),
    st.none() | _CREDENTIAL,
    st.none() | _CREDENTIAL,
    st.lists(st.tuples(_HOSTS, st.integers(1, 65535)), min_size=1, max_size=4, unique=True),
    st.integers(0, redis_url.HIGHEST_DB),
)
def test_what_is_written_as_a_url_is_read_back(
    scheme: str, username: str | None, password: str | None, nodes: list[tuple[str, int]], db: int
) -> None:
    """Any user and password survive percent-encoding, and hosts, ports and databases are as they were written."""
    plain, sentinels = "+" not in scheme, scheme.endswith("+sentinel")
    nodes, db = (nodes[:1] if plain else nodes), (0 if scheme.endswith("+cluster") else db)
    user = "" if username is None else quote(username, safe="")
    user += "" if password is None else f":{quote(password, safe='')}"
    hosts = ",".join(f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name, port in nodes)
    service = "/main" if sentinels else ""
    server = read_url(f"{scheme}://{f'{user}@' if user else ''}{hosts}{service}/{db}")
    assert server is not None
    assert (server.nodes, server.db, server.username) == (tuple(nodes), db, username)
    assert (server.password and server.password.reveal()) == password
    assert server.tls == scheme.startswith(("rediss", "valkeys"))


_REDIS_KEYS = [key for key in KEYS if "redis" in key]


@given(
    st.dictionaries(
        st.sampled_from(_REDIS_KEYS),
        st.one_of(
            _URLS,
            _URLS.map("rediss://".__add__),
            _SCALARS,
            st.sampled_from(HOSTILE),
            st.just(SECRET),
            st.just(f"redis://:{SECRET}@h"),
        ),
        max_size=6,
    )
)
@example({"redis": f"redis://:{SECRET}@h", "redis_password": SECRET})
@example({"redis_password": SECRET, "redis_sentinel_password": SECRET, "redis_username": SECRET})
@example({"redis_host": SECRET, "redis_port": 0})
@example({"redis_host": f"u:{SECRET}@h"})
def test_any_keys_of_a_server(settings: dict[str, object]) -> None:
    """Any of them with any value, together: settings that hold together, or problems that show no password."""
    # What may be shown, since it is no place for a secret: a number, a name of a file, a prefix, a word.
    shown = {"redis_port", "redis_db", "redis_ssl", "redis_ca_file", "redis_client_cert", "redis_client_key", "redis_prefix"}
    settings = {key: value for key, value in settings.items() if key not in shown | {"on_redis_loss"} or SECRET not in str(value)}
    text = ONE + "router_settings:\n" + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in settings.items())
    check(text)
    try:
        loaded = load_text(text, environ=ENVIRON)
    except ConfigError as error:
        assert SECRET not in "\n".join(map(str, (*error.problems, *error.warnings)))
        return
    fleet = loaded.settings.fleet
    assert (fleet is not None) == any(settings.get(key) is not None for key in ("redis", "redis_url", "redis_host"))
    if fleet is not None:
        assert fleet.tls or not (fleet.ca_file or fleet.client_cert or fleet.client_key)
        assert fleet.kind == "sentinel" or not (fleet.sentinel_username or fleet.sentinel_password)


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
