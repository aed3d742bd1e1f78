"""Problems, and what of a value they show."""

from __future__ import annotations

import pytest

from router.config.report import MAX_PROBLEMS, FromEnvironment, Report, describe, limited, nearest, quoted
from router.config.source import parse
from router.errors import ConfigError, Problem


@pytest.mark.parametrize(
    ("value", "path", "shown"),
    [
        (5, ("weight",), "5"),
        (10**30, ("weight",), "an integer of 100 bits"),
        (float("nan"), ("weight",), "nan"),
        (True, ("weight",), "true"),
        (None, ("weight",), "nothing"),
        ([], ("weight",), "a list"),
        ({}, ("weight",), "a mapping"),
        ("", ("ready",), "empty text"),
        ("atuo", ("ready",), "the text 'atuo'"),
        ("gpt-4o-realtime-preview-2024-10-01", ("model",), "the text 'gpt-4o-realtime-preview-2024-10-01'"),
        ("a\x1bb", ("ready",), "the text 'a\\x1bb'"),
        (FromEnvironment("hush", name="NAME"), ("ready",), "the value of the environment variable NAME"),
    ],
)
def test_a_harmless_value_is_shown(value: object, path: tuple[str, ...], shown: str) -> None:
    """A problem says what it found, in terms of the file."""
    assert describe(value, path) == shown


@pytest.mark.parametrize(
    "path",
    [
        ("litellm_params", "api_key"),
        ("litellm_params", "extra_headers", "X-Team"),
        ("litellm_params", "extra_query", "sig"),
        ("litellm_params", "api_base"),
        ("litellm_params", "proxy"),
        ("litellm_params", "azure_ad_token"),
        ("litellm_params", "azure_ad_token_command", 1),
        ("general_settings", "master_key"),
        ("general_settings", "keys", 0, "sha256"),
        ("router_settings", "redis_password"),
        ("router_settings", "redis"),
        ("router_settings", "redis_url"),
        ("router_settings", "redis_host"),
        ("router_settings", "redis_username"),
        ("router_settings", "redis_sentinel_password"),
        ("environment_variables", "ANYTHING"),
    ],
)
def test_what_stands_in_a_secret_place_is_not_shown(path: tuple[str | int, ...]) -> None:
    """The key decides, whatever the value looks like, numbers included."""
    assert "hush" not in describe("hush", path)
    assert "12345" not in describe(12345, path)


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-abcdefgh",
        "xai-0123456789abcdefABCD",
        "Bearer abc",
        "wss://user:pw@host/v1",
        "https://h/v1?api_key=abc",
        "0123456789abcdef0123456789abcdef",
        "AbCdEfGhIj0123456789+/==",
    ],
)
def test_what_looks_like_a_secret_is_not_shown_anywhere(text: str) -> None:
    """A key that was put beside its place is still a key."""
    assert text not in describe(text, ("ready",)) and quoted(text) == "***"


def test_nearest_helps_and_does_not_guess() -> None:
    """Close words are suggested, far ones are not."""
    assert nearest("wieght", ["weight", "order"]) == "did you mean 'weight'?"
    assert nearest("Weight", ["weight"]) == "did you mean 'weight'?"
    assert nearest("xyz", ["weight", "order"]) == ""


def test_hidden_values_are_taken_out_of_everything_that_is_told() -> None:
    """A key that got into a name is replaced wherever the name went, cut or whole."""
    report = Report(parse("a: 1", file="f"))
    report.hidden.update({"hush-hush", "x" * 200, "abc"})
    report.error(("a", "hush-hush"), "found hush-hush", f"expected {quoted('x' * 200)}", "abc")
    with pytest.raises(ConfigError) as caught:
        report.raise_if_failed()
    (problem,) = caught.value.problems
    assert "hush" not in str(problem) and "xxx" not in str(problem)
    assert problem.hint == "abc"  # too short to be a key, and part of many words


def test_a_secret_in_the_place_of_a_key_is_not_shown() -> None:
    """A colon behind a pasted secret makes it a key; its place is told by the line and by what is around it."""
    report = Report(parse("general_settings:\n  kyes: 1\n  sk-live-0123456789abcdef: 1", file="f"))
    report.unknown_key(("general_settings", "sk-live-0123456789abcdef"), ["keys"])
    report.unknown_key(("general_settings", "kyes"), ["keys"])
    hidden, shown = report.errors
    assert "0123456789" not in str(hidden) and (hidden.path, hidden.line) == ('general_settings["***"]', 3)
    assert shown.path == "general_settings.kyes"


def test_problems_come_in_the_order_of_the_file_and_once() -> None:
    """Sections are checked in another order than they are written."""
    report = Report(parse("a: 1\nb: 2\nc: 3\n", file="f"))
    for key in "cabc":
        report.error((key,), "x", "y")
    assert [problem.line for problem in report.told(report.errors)] == [1, 2, 3]


def test_a_flood_of_problems_is_cut_with_a_count() -> None:
    """Nobody reads ten thousand lines; how many there are is still told."""
    problems = [Problem(file="f", line=n, path="p", found=str(n), expected="e") for n in range(MAX_PROBLEMS + 20)]
    kept = limited(problems)
    assert len(kept) == MAX_PROBLEMS + 1 and kept[-1].found.startswith("20 more")
    assert limited(problems[:MAX_PROBLEMS]) == tuple(problems[:MAX_PROBLEMS])
