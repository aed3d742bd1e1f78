"""Taking secrets out of text: those that were registered, and what looks like one."""

from __future__ import annotations

import json
import string
import time
from types import MappingProxyType
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config.settings import DeploymentSettings, GroupSettings, Secret, ServerSettings, Settings, StrategySettings
from router.redaction import MASK, Redactor, secrets_of

# Made up here; put together so that no scanner takes them for real ones.
OPENAI = "sk-" + "proj-Abc123_def-456GHI"
XAI = "xai-" + "Q7w8E9r0T1y2U3i4"
EPHEMERAL = "ek_" + "68af296e8e408191a1120ab6383263c2"
ROUTER = "rr-" + "x_Yz0123456789abcdefghij"
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"


@pytest.mark.parametrize("key", [OPENAI, XAI, EPHEMERAL, ROUTER, JWT])
@pytest.mark.parametrize("frame", ["{}", "key {} refused", '"{}"', "({})", "a={}&b=1", "x,{},y", "Key: {}\n", "url/{}/x"])
def test_what_looks_like_a_key_goes(key: str, frame: str) -> None:
    """A key of a known shape disappears from any surroundings, and the surroundings stay."""
    assert Redactor()(frame.format(key)) == frame.format(MASK)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("sent bearer abc.def-123 there", "sent bearer *** there"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
        ("Proxy: basic dXNlcjpwYXNz=, next", "Proxy: basic ***, next"),
        ("realtime, openai-insecure-api-key.abc, x", "realtime, openai-insecure-api-key.***, x"),
        ("['realtime', 'xai-client-secret.abc']", "['realtime', 'xai-client-secret.***']"),
        ("GET /v1/realtime?api_key=abc&model=m", "GET /v1/realtime?api_key=***&model=m"),
        ("GET /v1/realtime?api-key=abc&model=m", "GET /v1/realtime?api-key=***&model=m"),
        ("access_token=abc; token = 'abc'", "access_token=***; token = '***'"),
        ("api-key: 0123456789abcdef", "api-key: ***"),
        ('{"api_key": "abc", "model": "m"}', '{"api_key": "***", "model": "m"}'),
        (r"{\"api_key\": \"abc\"}", r"{\"api_key\": \"***\"}"),
        ("{'client_secret': 'a b c'}", "{'client_secret': '***'}"),
        ("Cookie: session=abcdef", "Cookie: ***"),
        ("via http://user:pass@proxy:3128/", "via http://***@proxy:3128/"),
        ("wss://token@host/path", "wss://***@host/path"),
    ],
)
def test_what_is_named_a_key_goes(text: str, shown: str) -> None:
    """A value goes by the name in front of it, whatever it looks like; what follows stays."""
    assert Redactor()(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "upgrade answered with HTTP 401 (invalid_api_key)",
        "config.yaml:3: model_list[0].litellm_params.api_key: found nothing, expected a key",
        "xai-grok-voice-latest",
        "group grok-voice-agent, deployment grok-voice-agent/xai/grok-4-1-fast-non-reasoning-3af9c2",
        "rs_0123456789abcdef0123",
        "risk-averse, task-oriented-planner, err-handling-of-things",
        "closed with 1011: keepalive ping timeout",
        "https://api.openai.com/v1/realtime",
        "max_tokens: 4096, total_tokens=253",
        "monkey: business-as-usual",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    """What an operator has to read is not taken for a secret."""
    assert Redactor()(text) == text


SECRETS = st.text(alphabet=string.printable + "äß☃\u2028", min_size=8, max_size=40).filter(
    lambda text: len(text.strip()) >= 8 and MASK not in text
)


@given(secret=SECRETS, before=st.text(max_size=10), after=st.text(max_size=10))
def test_a_registered_secret_goes_in_every_spelling(secret: str, before: str, after: str) -> None:
    """As it is, in a URL, in JSON, in a ``repr``: nothing is left of any spelling."""
    redactor = Redactor()
    redactor.register([secret])
    stripped = secret.strip()
    for spelling in (
        stripped,
        quote(stripped, safe=""),
        quote_plus(stripped),
        json.dumps(stripped),
        json.dumps(stripped, ensure_ascii=False),
        repr(stripped),
    ):
        shown = redactor(f"{before}{spelling}{after}")
        assert spelling.strip("\"'") not in shown
        assert MASK in shown


def test_the_longer_of_two_secrets_goes_first() -> None:
    """One secret that begins like another leaves no tail behind."""
    redactor = Redactor()
    redactor.register(["abcdefgh", "abcdefgh-more-of-it"])
    assert redactor("x abcdefgh-more-of-it y abcdefgh z") == "x *** y *** z"


def test_a_short_secret_goes_where_it_stands_alone() -> None:
    """Local servers take words as keys; such a word must not eat the names of deployments."""
    redactor = Redactor()
    redactor.register(["openai", "none"])
    assert redactor("key openai, deployment openai-1, openai_compatible, 'none'") == (
        "key ***, deployment openai-1, openai_compatible, '***'"
    )


def test_what_is_too_short_or_empty_is_left_out() -> None:
    """A secret of a single character would take that character out of every line."""
    redactor = Redactor()
    redactor.register(["", " ", "1", "abc"])
    assert redactor("closed with 1011 abc") == "closed with 1011 abc"


def test_secrets_add_up_and_words_notice() -> None:
    """A later secret joins the earlier ones, also for texts whose answer was remembered."""
    redactor = Redactor()
    redactor.register([Secret("first-secret")])
    assert redactor.word("second-secret") == "second-secret"
    redactor.register(["second-secret"])
    assert redactor.word("second-secret") == MASK
    assert redactor("first-secret second-secret") == "*** ***"
    assert redactor.longest == len("second-secret")


def test_names_are_spared_the_patterns() -> None:
    """A name of the configuration may look like a key, but a registered secret goes from it all the same."""
    redactor = Redactor()
    redactor.register(["my-real-secret"])
    assert redactor("xai-voice-agent") == MASK
    assert redactor.registered("xai-voice-agent") == "xai-voice-agent"
    assert redactor.registered("a my-real-secret b") == "a *** b"


@pytest.mark.parametrize(
    "unit", ["token", "bearer ", "eyJ-", "sk-", "a", "api_key: ", "://", "basic ", "token  ", "cookie\\\"", "-rr"]
)
def test_hostile_text_takes_linear_time(unit: str) -> None:
    """Sixteen times the text takes nowhere near the 256 times that a pattern with nested repetition would need."""
    redactor = Redactor()

    def seconds(text: str) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.thread_time()
            redactor(text)
            best = min(best, time.thread_time() - began)
        return best

    short, long = (unit * (size // len(unit)) + " sk-" for size in (4_000, 64_000))
    # A floor below which the clock's own grain would decide.
    assert seconds(long) < 80 * max(seconds(short), 2e-5)


def test_every_secret_of_a_configuration_is_found() -> None:
    """Keys, tokens, long header and query values, and passwords in URLs; no flag that stands beside them."""
    deployment = DeploymentSettings(
        id="d",
        group="g",
        position=0,
        provider="openai",
        model="m",
        api_key=Secret("the-api-key"),
        azure_ad_token=Secret("the-entra-token"),
        extra_headers=MappingProxyType({"x-key": Secret("the-header-key"), "x-flag": Secret("true")}),
        extra_query=MappingProxyType({"sig": Secret("the-query-key"), "v": Secret("1")}),
        proxy="http://user:the-proxy%20password@proxy:3128",
        api_base="https://host/base?code=the-base-code&v=1",
    )
    bare = DeploymentSettings(id="e", group="g", position=1, provider="openai", model="m", proxy="http://[broken")
    strategy = StrategySettings(name="first", cls=object, options=None)
    group = GroupSettings(name="g", deployments=(deployment, bare), strategy=strategy)
    settings = Settings(server=ServerSettings(master_key=Secret("the-master-key")), groups={"g": group})
    assert set(secrets_of(settings)) == {
        "the-master-key",
        "the-api-key",
        "the-entra-token",
        "the-header-key",
        "the-query-key",
        "the-proxy%20password",
        "the-proxy password",
        "the-base-code",
    }
