"""What single values may look like."""

from __future__ import annotations

import math

import pytest

from router.config.report import FromEnvironment
from router.config.rules import (
    Address,
    Choice,
    Credential,
    Digest,
    Flag,
    HeaderValue,
    Moment,
    Name,
    Network,
    Number,
    Origin,
    ProxyUrl,
    Rule,
    Text,
    Unfit,
)
from router.config.settings import ListenSettings

SECONDS = Number(low=0, above=True, high=600, unit="seconds")
COUNT = Number(low=1, high=100, whole=True)
LENIENT = Number(low=0, high=600, text=True)


def env(value: str) -> FromEnvironment:
    """A value as an environment variable supplies it."""
    return FromEnvironment(value, name="NAME")


@pytest.mark.parametrize(
    ("rule", "value", "result"),
    [
        (SECONDS, 2, 2.0),
        (SECONDS, 0.5, 0.5),
        (SECONDS, 600, 600.0),
        (SECONDS, env("1.5"), 1.5),
        (SECONDS, env(" 2 \n"), 2.0),
        (SECONDS, env("1e1"), 10.0),
        (COUNT, 1, 1),
        (COUNT, env("100"), 100),
        (LENIENT, "30", 30.0),
        (LENIENT, 0, 0.0),
        (Flag(), False, False),
        (Flag(), env("True"), True),
        (Flag(), env("0"), False),
        (Choice(words={"GA": "ga", "v1": "ga"}), "V1", "ga"),
        (Text(), " a b ", " a b "),
        (Text(), env("key\n"), "key"),
        (Name(number=True), 17, "17"),
        (Name(), "gpt-4.1 (voice) é", "gpt-4.1 (voice) é"),
        (Credential(), "sk-a/b+c=", "sk-a/b+c="),
        (HeaderValue(), 1.5, "1.5"),
        (HeaderValue(), True, "true"),
        (HeaderValue(), "", ""),
        (Address(), 4000, ListenSettings(host="127.0.0.1", port=4000)),
        (Address(), "4000", ListenSettings(host="127.0.0.1", port=4000)),
        (Address(), "0.0.0.0:0", ListenSettings(host="0.0.0.0", port=0)),
        (Address(), "router.internal", ListenSettings(host="router.internal", port=4000)),
        (Address(), "::1", ListenSettings(host="::1", port=4000)),
        (Address(), "[::1]:80", ListenSettings(host="::1", port=80)),
        (Address(), "[::]", ListenSettings(host="::", port=4000)),
        (Network(), "10.0.0.1", "10.0.0.1"),
        (Network(), "10.0.0.0/8", "10.0.0.0/8"),
        (Network(), "FD00::/8", "fd00::/8"),
        (Origin(), "HTTPS://App.Example.com", "https://app.example.com"),
        (Origin(), "https://a.example:443", "https://a.example"),
        (Origin(), "http://localhost:3000", "http://localhost:3000"),
        (Origin(), "http://[::1]:8080", "http://[::1]:8080"),
        (Origin(), "*", "*"),
        (Digest(), "sha256:" + "Ab" * 32, "ab" * 32),
        (Digest(), "0" * 64, "0" * 64),
        (Moment(), 1_800_000_000, 1_800_000_000.0),
        (Moment(), "1800000000", 1_800_000_000.0),
        (Moment(), "2027-01-15T08:00:00Z", 1_800_000_000.0),
        (Moment(), "2027-01-15T09:00:00+01:00", 1_800_000_000.0),
        (Moment(), "2027-01-15 08:00:00", 1_800_000_000.0),
        (ProxyUrl(), "http://user:pw@proxy:3128", "http://user:pw@proxy:3128"),
        (ProxyUrl(), "none", "none"),
    ],
)
def test_a_fit_value_becomes_what_the_settings_hold(rule: Rule, value: object, result: object) -> None:
    """Values are taken as meant, with the type the router works with."""
    parsed = rule.parse(value)
    assert parsed == result and type(parsed) is type(result)


HOSTILE_NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    -1,
    10**400,
    -(10**400),
    1e308,
    True,
    False,
    "5",
    "",
    "1e3",
    [],
    {},
    env("x"),
    env("nan"),
]


@pytest.mark.parametrize("rule", [SECONDS, COUNT, Number(low=0, high=1), Number(low=1, high=1e12, whole=True)])
@pytest.mark.parametrize("value", HOSTILE_NUMBERS)
def test_hostile_numbers_are_refused(rule: Number, value: object) -> None:
    """Nothing that is no finite number within bounds gets through, booleans and text included."""
    with pytest.raises(Unfit) as caught:
        rule.parse(value)
    assert str(caught.value) == rule.expected


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (SECONDS, 0),
        (SECONDS, -0.0),
        (SECONDS, 600.0001),
        (COUNT, 0),
        (COUNT, 101),
        (COUNT, 1.0),
        (COUNT, env("1.5")),
        (LENIENT, "1_0"),
        (LENIENT, "٣"),
        (LENIENT, "inf"),
        (LENIENT, "9" * 5000),
        (Flag(), "true"),
        (Flag(), 1),
        (Flag(), env("maybe")),
        (Choice(words={"a": "a", "b": "b"}), True),
        (Text(), 5),
        (Text(), " "),
        (Text(), "a\nb"),
        (Text(), "a\x7f"),
        (Text(), "\ud800"),
        (Text(), "a\u2028b"),
        (Text(), "x" * 5000),
        (Text(), env("a\nb")),
        (Name(), " a"),
        (Name(), "a\u200b"),
        (Name(), "x" * 129),
        (Name(number=True), True),
        (Name(number=True), 10**20),
        (Credential(), "a b"),
        (Credential(), "schlüssel"),
        (Credential(), "${OPENAI_API_KEY}"),
        (Credential(), "$OPENAI_API_KEY"),
        (Credential(), "os.environ['X']"),
        (Credential(), "{{key}}"),
        (HeaderValue(), "a\r\nX-Evil: 1"),
        (HeaderValue(), None),
        (HeaderValue(), [1]),
        (Address(), ":4000"),
        (Address(), "h:"),
        (Address(), "h:65536"),
        (Address(), "h:4x"),
        (Address(), "h h:1"),
        (Address(), "[::1"),
        (Address(), "[nope]:1"),
        (Address(), "[::1]80"),
        (Address(), -1),
        (Address(), True),
        (Address(), 1.5),
        (Address(), "http://h:1"),
        (Network(), "10.0.0.1/8"),
        (Network(), "10.0.0"),
        (Network(), "example.com"),
        (Origin(), "example.com"),
        (Origin(), "https://a.example/"),
        (Origin(), "https://*.example.com"),
        (Origin(), "https://a.example:0"),
        (Origin(), "https://user@a.example"),
        (Origin(), "null"),
        (Digest(), "0" * 63),
        (Digest(), "sk-plain-key"),
        (Digest(), "md5:" + "0" * 64),
        (Moment(), "soon"),
        (Moment(), 0),
        (Moment(), -5),
        (Moment(), math.nan),
        (Moment(), True),
        (Moment(), 1_800_000_000_000),
        (Moment(), "9999-12-31T23:59:59-23:59"),
        (Moment(), "0001-01-01T00:00:00+23:59"),
        (ProxyUrl(), "socks5://proxy:1080"),
        (ProxyUrl(), "ftp://proxy"),
        (ProxyUrl(), "http://"),
    ],
)
def test_an_unfit_value_is_refused_with_what_was_expected(rule: Rule, value: object) -> None:
    """Every refusal says what would have been right, and none repeats what may be a secret."""
    with pytest.raises(Unfit) as caught:
        rule.parse(value)
    assert caught.value.expected
    if isinstance(rule, Credential | Digest | HeaderValue) and isinstance(value, str):
        assert value not in caught.value.expected + caught.value.hint


def test_a_choice_of_one_word_reads_well() -> None:
    """The message names the words there are."""
    with pytest.raises(Unfit, match=r"^'a'$"):
        Choice(words={"a": "a"}).parse("b")
    with pytest.raises(Unfit, match=r"^'a', 'b' or 'c'$"):
        Choice(words={"a": "a", "b": "b", "c": "c"}).parse("d")


def test_a_value_of_the_environment_does_not_show() -> None:
    """Neither ``repr`` nor a message holds it."""
    assert "secret" not in repr(env("secret"))
