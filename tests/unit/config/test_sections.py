"""Environment variables, keys without effect, and pydantic's errors in our words."""

from __future__ import annotations

import pytest

from router.errors import ConfigError
from tests.unit.config.helpers import ONE, deployments, loaded, only, problem, problems

# --- os.environ/NAME -----------------------------------------------------------------------------


def test_a_variable_works_in_any_place() -> None:
    """Numbers, booleans, words, items of lists and values of mappings."""
    text = (
        deployments(
            "model: os.environ/M, api_key: os.environ/K, weight: os.environ/W, extra_headers: {X-A: os.environ/H}",
            group="os.environ/G",
        )
        + "router_settings: {total_timeout_s: os.environ/T, forward_headers: [os.environ/F], routing_strategy: os.environ/S}\n"
        "general_settings: {master_key: os.environ/K, expose_routing: os.environ/B, listen: os.environ/L}\n"
    )
    result = loaded(
        text, M="xai/voice-1", K="k" * 20, W="2.5", H="h", G="grp", T="4", F="X-F", S="first", B="true", L="127.0.0.1:5000"
    )  # fmt: skip
    settings, deployment = result.settings, only(result)
    assert (deployment.model, deployment.weight, deployment.group) == ("voice-1", 2.5, "grp")
    assert deployment.extra_headers["X-A"].reveal() == "h"
    group = settings.groups["grp"]
    assert (group.total_timeout_s, group.forward_headers, group.strategy.name) == (4.0, frozenset({"x-f"}), "first")
    assert settings.server.expose_routing and settings.server.listen.port == 5000


@pytest.mark.parametrize(
    "line",
    [
        "general_settings: {master_key: os.environ/NOT_SET}",
        "general_settings: {master_key: os.environ/EMPTY}",
        "general_settings: {keys: [{name: a, sha256: os.environ/NOT_SET}]}",
        "general_settings: {default_model: os.environ/NOT_SET}",
        "general_settings: {trusted_proxies: [os.environ/NOT_SET]}",
        "router_settings: {stagger_s: os.environ/NOT_SET}",
        "router_settings: {fallbacks: [{voice: [os.environ/NOT_SET]}]}",
        "groups: {voice: {ready: os.environ/NOT_SET}}",
        "litellm_settings: {num_retries: os.environ/NOT_SET}",
        "general_settings: {master_key: os.environ/}",
        "general_settings: {master_key: 'os.environ/A B'}",
    ],
)
def test_an_unset_variable_of_the_router_is_an_error(line: str) -> None:
    """A missing master key must never mean "no key"."""
    found = problem(ONE + line, EMPTY=" ")
    assert "not set" in found.found or "without a variable's name" in found.found


def test_the_files_own_variables_win_and_are_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand for ``os.environ/NAME`` only, may refer to the environment, and reach no other program."""
    import os

    monkeypatch.delenv("OWN", raising=False)
    text = deployments("model: xai/voice, weight: os.environ/OWN", "model: openai/realtime, api_key: os.environ/LENT") + (
        "environment_variables: {XAI_API_KEY: from-file, OWN: 3, LENT: os.environ/OPENAI_API_KEY}"
    )
    first, second = loaded(text, OPENAI_API_KEY="from-env").settings.groups["voice"].deployments
    assert first.api_key is not None and first.api_key.reveal() == "from-file" and first.weight == 3.0
    assert second.api_key is not None and second.api_key.reveal() == "from-env"
    assert "OWN" not in os.environ


def test_own_variables_cannot_refer_in_a_circle() -> None:
    """They refer to the environment, not to each other."""
    text = deployments("model: xai/voice, api_key: os.environ/A") + "environment_variables: {A: os.environ/B, B: os.environ/A}"
    assert "variable A, which is not set" in problem(text).found


def test_a_value_of_the_environment_is_never_shown() -> None:
    """Even where it stands for a word, and the word is wrong."""
    text = ONE + "router_settings: {routing_strategy: os.environ/V, ready: os.environ/V, default_fallbacks: [os.environ/V]}"
    found = problems(text, V="hush-hush")
    assert len(found) == 3 and "hush" not in "\n".join(map(str, found))


# --- keys without effect -------------------------------------------------------------------------


def test_litellms_keys_warn_by_name() -> None:
    """Each once, at its first place, their values unchecked."""
    text = (
        deployments(*["model: xai/voice, temperature: os.environ/NOT_SET, stream_timeout: [], num_retries: 2"] * 3)
        + "router_settings: {enable_pre_call_checks: true, stream_timeout: 3}\n"
        "general_settings: {database_url: os.environ/NOT_SET, completion_model: x}\n"
        "litellm_settings: {drop_params: {a: [1]}, callbacks: [x]}\n"
        "guardrails: [{a: b}]\n"
    )
    warnings = {warning.path: warning for warning in loaded(text).warnings}
    assert len(warnings) == 10
    assert warnings["model_list[0].litellm_params.temperature"].hint == "and in 2 more places"
    assert "set it in router_settings" in warnings["model_list[0].litellm_params.num_retries"].hint
    assert warnings["general_settings.completion_model"].hint == "default_model is the counterpart"
    assert all("LiteLLM" in warning.found for warning in warnings.values())


def test_keys_of_later_versions_warn() -> None:
    """They are accepted, so that a file can be written for both."""
    text = ONE + ("router_settings: {resume: {max_items: 1}}\ngroups: {voice: {dialects: {}}}\n")
    warnings = loaded(text).warnings
    assert len(warnings) == 2 and all("no effect in this version" in warning.found for warning in warnings)


def test_tls_is_not_passed_over() -> None:
    """Whoever asks for TLS must not get a router that takes keys in clear with a warning."""
    with pytest.raises(ConfigError, match=r"general_settings\.tls"):
        loaded(ONE + "general_settings: {tls: {cert: x, key: y}}\n")


def test_a_key_that_looks_like_a_variable_warns() -> None:
    """The likeliest mistake with a key is a forgotten os.environ/."""
    (warning,) = loaded(deployments("model: xai/voice, api_key: XAI_API_KEY")).warnings
    assert warning.path == "model_list[0].litellm_params.api_key" and "os.environ/" in warning.expected
    assert not loaded(deployments("model: xai/voice, api_key: xai-0123456789abcdef")).warnings


def test_warnings_are_told_beside_errors() -> None:
    """A skipped entry is often the reason of an error, so its warning must not wait for the error's end."""
    with pytest.raises(ConfigError) as caught:
        loaded("model_list: [{model_name: chat, litellm_params: {model: xai/grok-4}}]\n")
    assert any("model_list[0]" in warning.path for warning in caught.value.warnings)


def test_model_info_is_free_form() -> None:
    """As in LiteLLM: whatever stands there besides our keys is metadata."""
    assert not loaded(deployments("model: xai/voice", info="mode: realtime, base_model: x, anything: {a: [1]}")).warnings


# --- unknown keys and wrong shapes ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ("model_lists: []", "model_lists", "did you mean 'model_list'?"),
        ("router_setting: {}", "router_setting", "did you mean 'router_settings'?"),
        ("router_settings: {stager_s: 1}", "router_settings.stager_s", "did you mean 'stagger_s'?"),
        ("groups: {voice: {fallback: []}}", "groups.voice.fallback", "did you mean 'fallbacks'?"),
        ("general_settings: {Listen: x}", "general_settings.Listen", "did you mean 'listen'?"),
        ("litellm_settings: {request_timeouts: 1}", "litellm_settings.request_timeouts", "did you mean 'request_timeout'?"),
        ("router_settings: {health_check: {interval: 9}}", "router_settings.health_check.interval", "did you mean 'interval_s'?"),
        ("general_settings: {zzz: 1}", "general_settings.zzz", ""),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_one(text: str, path: str, hint: str) -> None:
    """A typo in a timeout must not be a timeout that is not there."""
    found = problem(ONE + text)
    assert (found.path, found.hint, found.line) == (path, hint, 3)


def test_the_nearest_key_is_one_of_the_same_section() -> None:
    """``weight`` belongs to a deployment, so a group is not told of it."""
    assert "weight" not in problem(ONE + "groups: {voice: {weigth: 1}}").hint


@pytest.mark.parametrize(
    "section", ["router_settings", "general_settings", "litellm_settings", "groups", "environment_variables"]
)
@pytest.mark.parametrize("value", ["5", "text", "[1]", "true"])
def test_a_section_of_the_wrong_shape_is_an_error(section: str, value: str) -> None:
    """A mapping is expected; an empty section is fine."""
    found = problem(ONE + f"{section}: {value}")
    assert found.path == section and found.expected == "a mapping"
    assert not loaded(ONE + f"{section}:").warnings


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    """One run of ``check`` is enough, and a fault in one key does not hide those of its neighbours."""
    text = """\
        general_settings:
          listen: nowhere:99999
          keys:
            - {name: a, sha256: short, models: [nobody]}
            - {name: master, sha256: %s}
        model_list:
          - model_name: voice
            litellm_params: {model: xai/voice, weight: -1, extra_headers: {"a b": 1}, api_base: nonsense}
          - model_name: voice
            litellm_params: {model: opnai/realtime}
        router_settings:
          routing_strategy: best
          ping_timeout_s: 1
          unknown: 1
        """ % ("0" * 64)  # fmt: skip
    assert [found.line for found in problems(text)] == [2, 4, 4, 5, 8, 8, 8, 10, 12, 13, 14]
