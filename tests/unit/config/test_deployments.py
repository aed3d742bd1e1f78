"""``model_list``: which entries are served, and what they become."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router.config import ConfigError, Secret, load
from tests.unit.config.helpers import ENVIRON, ONE, deployments, loaded, only, problem, problems

XAI = "model: xai/grok-voice, api_key: os.environ/XAI_API_KEY"


def entry(model: str, *, name: str = "assistant", info: str = "{}", more: str = "") -> str:
    """One entry of ``model_list`` on a line."""
    return f"  - {{model_name: {name}, litellm_params: {{model: {model}, api_key: k{more}}}, model_info: {info}}}\n"


# --- which entries are served --------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        entry("xai/grok-4", info="{mode: realtime}"),
        entry("xai/grok-4", info="{mode: Realtime}"),
        entry("openai/gpt-realtime"),
        entry("azure/my-dep", name="realtime-azure", more=", api_base: 'https://r.example'"),
        entry("xai/grok-voice-latest"),
        entry("openai_compatible/qwen", more=", api_base: 'ws://h/v1'"),
        entry("openai_compatible/org/model:7b", more=", api_base: 'ws://h/v1'"),
        entry("gpt-realtime"),
        entry("gpt-realtime", more=", custom_llm_provider: openai"),
    ],
)
def test_a_realtime_entry_is_served(line: str) -> None:
    """By its mode, its provider or its name."""
    assert loaded("model_list:\n" + line).settings.groups


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (entry("openai/gpt-realtime", info="{mode: chat}"), "an entry of mode 'chat', which is skipped"),
        (entry("openai/gpt-realtime", info="{mode: 5}"), "an entry of mode '5', which is skipped"),
        (entry("openai/gpt-4o"), "an entry without mode, which is skipped"),
        (entry("xai/grok-4"), "an entry without mode, which is skipped"),
        (entry("azure/my-dep"), "an entry without mode, which is skipped"),
        (entry("gemini/gemini-live", info="{mode: realtime}"), "an entry of the provider 'gemini', which is skipped"),
        (entry("azure_ai/x", info="{mode: realtime}"), "an entry of the provider 'azure_ai', which is skipped"),
        (entry("claude-3"), "an entry of the provider '', which is skipped"),
        (entry("hosted_vllm/x", info="{mode: realtime}"), "an entry of the provider 'hosted_vllm', which is skipped"),
        (entry("'openai/*'", name="'*'"), "a wildcard, which is skipped"),
    ],
)
def test_any_other_entry_is_skipped_with_one_warning(line: str, found: str) -> None:
    """Its parameters are not looked at, variables that are not set included."""
    line = line.replace("api_key: k", "api_key: os.environ/NOT_SET, made_up: {x: [1]}, weight: none")
    (warning,) = loaded(ONE + line).warnings
    assert warning.found == found and warning.line == 3


def test_a_misspelt_provider_is_an_error() -> None:
    """Skipping it would take a deployment out of service in silence."""
    found = problem(ONE + entry("opnai/gpt-realtime"))
    assert found.hint == "did you mean 'openai'?" and found.line == 3
    assert problem(ONE + entry("openai-compatible/x")).hint == "did you mean 'openai_compatible'?"


def test_realtime_without_a_provider_is_an_error() -> None:
    """The mode says that it was meant."""
    assert problem(ONE + entry("grok-voice", info="{mode: realtime}")).expected.startswith("PROVIDER/MODEL")


@pytest.mark.parametrize(
    "model_list", ["", "model_list: []", "model_list: {}", "model_list: 5", "model_list:\n" + entry("openai/gpt-4o")]
)
def test_nothing_to_serve_is_an_error(model_list: str) -> None:
    """A router without a deployment has nothing to do."""
    assert problem(model_list + "\nrouter_settings: {fallbacks: [{a: [b]}]}").path == "model_list"


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ("5", "model_list[1]"),
        ("{litellm_params: {model: openai/realtime}}", "model_list[1].model_name"),
        ("{model_name: '', litellm_params: {model: openai/realtime}}", "model_list[1].model_name"),
        ("{model_name: 7, litellm_params: {model: openai/realtime}}", "model_list[1].model_name"),
        ("{model_name: os.environ/NOT_SET, litellm_params: {model: openai/realtime}}", "model_list[1].model_name"),
        ("{model_name: v}", "model_list[1].litellm_params"),
        ("{model_name: v, litellm_params: [1]}", "model_list[1].litellm_params"),
        ("{model_name: v, litellm_params: {}}", "model_list[1].litellm_params.model"),
        ("{model_name: v, litellm_params: {model: openai/}, model_info: {mode: realtime}}", "model_list[1].litellm_params.model"),
        ("{model_name: v, litellm_params: {model: openai/realtime}, model_info: 5}", "model_list[1].model_info"),
        ("{model_name: v, litelm_params: 1, litellm_params: {model: openai/realtime}}", "model_list[1].litelm_params"),
    ],
)
def test_an_entry_of_the_wrong_shape_is_an_error(item: str, path: str) -> None:
    """What cannot be told apart from a mistake is one."""
    assert path in [found.path for found in problems(ONE + f"  - {item}\n")]


# --- what they become ----------------------------------------------------------------------------


def test_an_entry_with_nothing_but_a_model_has_the_defaults() -> None:
    """The settings' own defaults, and the provider's rules."""
    deployment = only(loaded(deployments(XAI)))
    assert (deployment.provider, deployment.model, deployment.group, deployment.position) == ("xai", "grok-voice", "voice", 0)
    assert deployment.api_key == Secret(ENVIRON["XAI_API_KEY"])
    assert (deployment.weight, deployment.order, deployment.max_sessions, deployment.state) == (1.0, 0, None, "ready")
    assert (deployment.ready, deployment.connect_timeout_s, deployment.ready_timeout_s) == ("first_event", 2.0, 3.0)
    assert only(loaded(deployments("model: openai_compatible/x, api_base: 'ws://h'"))).ready == "auto"


def test_every_parameter_arrives() -> None:
    """Each key of a deployment is read into its setting."""
    deployment = only(
        loaded(
            deployments(
                "model: openai/gpt-realtime, api_key: k1, api_base: 'https://h/v1', organization: o, project: p,"
                " extra_headers: {X-A: 1}, extra_query: {q: yes}, weight: 2, order: -1, max_sessions: 3, rpm: '60', tpm: 100,"
                " ready: HANDSHAKE, ready_grace_s: 0.5, connect_timeout_s: 1, ready_timeout_s: 2, timeout: '2.5',"
                " proxy: 'http://u:p@proxy', tls_server_name: n, health_check: {interval_s: 60}",
                info="mode: realtime, id: 42, state: drain",
            )
        )
    )
    assert (deployment.id, deployment.state, deployment.organization, deployment.project) == ("42", "drain", "o", "p")
    assert {name: value.reveal() for name, value in deployment.extra_headers.items()} == {"X-A": "1"}
    assert {name: value.reveal() for name, value in deployment.extra_query.items()} == {"q": "true"}
    assert (deployment.weight, deployment.order, deployment.max_sessions, deployment.rpm, deployment.tpm) == (2.0, -1, 3, 60, 100)
    assert (deployment.ready, deployment.ready_grace_s, deployment.timeout_s) == ("handshake", 0.5, 2.5)
    assert (deployment.connect_timeout_s, deployment.ready_timeout_s) == (1.0, 2.0)
    assert (deployment.proxy, deployment.tls_server_name, deployment.api_base) == ("http://u:p@proxy", "n", "https://h/v1")
    assert deployment.health_check is not None and deployment.health_check.interval_s == 60.0


def test_second_names_of_litellm() -> None:
    """``base_url`` and ``max_parallel_requests`` are read as what they are called here, and refused beside it."""
    deployment = only(loaded(deployments("model: openai/realtime, api_key: k, base_url: 'https://h', max_parallel_requests: 4")))
    assert (deployment.api_base, deployment.max_sessions) == ("https://h", 4)
    found = problems(
        deployments(
            "model: openai/realtime, api_key: k, base_url: 'https://h', api_base: x, max_parallel_requests: 4, max_sessions: 4"
        )
    )
    assert {"base_url beside api_base", "max_parallel_requests beside max_sessions"} <= {each.found for each in found}


def test_groups_keep_the_order_of_the_file() -> None:
    """Position counts within the group, not in the file."""
    text = deployments(XAI) + entry("openai/realtime", name="other") + entry("openai/realtime", name="voice")
    groups = loaded(text).settings.groups
    assert list(groups) == ["voice", "other"]
    assert [(each.provider, each.position) for each in groups["voice"].deployments] == [("xai", 0), ("openai", 1)]


# --- ids -----------------------------------------------------------------------------------------


def ids(text: str, **environ: str) -> list[str]:
    """Ids of all deployments, by group and position."""
    return [each.id for group in loaded(text, **environ).settings.groups.values() for each in group.deployments]


def test_a_made_up_id_tells_what_it_is_and_no_address() -> None:
    """Group, provider, model and six hex digits."""
    (made,) = ids(deployments("model: openai/gpt/realtime, api_key: k, api_base: 'https://secret-host.example/v1'"))
    assert re.fullmatch(r"voice-openai-gpt-realtime-[0-9a-f]{6}", made)


def test_a_made_up_id_does_not_depend_on_the_environment() -> None:
    """Replicas with different keys and addresses agree about the names, and a rotated key does not end a deployment's state."""
    text = deployments("model: openai/realtime, api_key: os.environ/K, api_base: os.environ/B")
    assert ids(text, K="one", B="https://one") == ids(text, K="two", B="https://two")


def test_made_up_ids_differ_where_the_deployments_do() -> None:
    """By base, version and key as written, and by number among equals; other keys and other entries do not matter."""
    same = "model: openai/realtime, api_key: a"
    variants = [
        same,
        "model: openai/realtime, api_key: b",
        same + ", api_base: 'https://h'",
        same + ", api_base: 'https://i'",
        same,
        same,
    ]
    made = ids(deployments(*variants))
    assert len(set(made)) == len(variants)
    assert ids(deployments(same + ", weight: 5", "model: xai/voice, api_key: z"))[0] == made[0]
    # Removing the first of equals keeps the first name: the remaining one takes its place.
    assert ids(deployments(same, same)) == [made[0], made[4]]


def test_a_long_name_gives_a_bounded_id() -> None:
    """Metric labels stay short, and distinct."""
    made = ids(
        "model_list:\n" + entry("openai/" + "m" * 200 + "-realtime", name="g" * 128) + entry("openai/" + "m" * 200 + "-realtime2")
    )
    assert all(len(each) <= 128 for each in made) and len(set(made)) == 2


def test_the_same_id_twice_is_an_error() -> None:
    """Also when one of the two was made up."""
    (made,) = ids(deployments(XAI))
    for one, other in (
        ("{mode: realtime, id: x}", "{mode: realtime, id: x}"),
        ("{mode: realtime}", f"{{mode: realtime, id: {made}}}"),
    ):
        text = deployments(XAI, info=one.strip("{}")) + entry("openai/realtime", info=other)
        assert problem(text).found.startswith("the id ")


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "variable"), [("xai", "XAI_API_KEY"), ("openai", "OPENAI_API_KEY"), ("azure", "AZURE_API_KEY")]
)
def test_the_usual_variable_is_used_when_no_key_is_named(provider: str, variable: str) -> None:
    """As LiteLLM does; a trailing line break of a mounted secret does no harm."""
    text = deployments(f"model: {provider}/realtime, api_base: 'https://h'")
    assert only(loaded(text, **{variable: "the-key\n"})).api_key == Secret("the-key")


def test_an_openai_key_does_not_reach_another_server() -> None:
    """``openai_compatible`` has no usual variable."""
    assert only(loaded(deployments("model: openai_compatible/m, api_base: 'ws://h'"))).api_key is None


def test_the_usual_variable_does_not_stand_in_for_a_named_one() -> None:
    """A key that was named and is missing is not replaced by another account's."""
    result = loaded(ONE + entry("openai/realtime").replace("api_key: k", "api_key: os.environ/NOT_SET"))
    deployment = result.settings.groups["assistant"].deployments[0]
    assert deployment.state == "misconfigured" and deployment.api_key is None


def test_without_any_key_a_deployment_is_out_of_service() -> None:
    """The router runs on with the others."""
    result = loaded(ONE + entry("openai/realtime").replace(", api_key: k", ""), OPENAI_API_KEY=" ")
    deployment = result.settings.groups["assistant"].deployments[0]
    assert deployment.state == "misconfigured"
    assert deployment.problem == "api_key: found no key, expected api_key, or a value for OPENAI_API_KEY"


def test_an_entra_token_stands_in_for_a_key() -> None:
    """Azure needs one of the two."""
    for token in ("azure_ad_token: t", "azure_ad_token_command: [print, token]"):
        deployment = only(loaded(deployments(f"model: azure/realtime, api_base: 'https://h', {token}"), AZURE_API_KEY=""))
        assert deployment.state == "ready" and deployment.api_key is None


@pytest.mark.parametrize("literal", ["'${XAI_API_KEY}'", "$XAI_API_KEY", "os.environ.XAI_API_KEY", "'two words'"])
def test_a_variable_in_a_foreign_spelling_is_no_key(literal: str) -> None:
    """It would be sent to the provider as it stands."""
    found = problem(deployments(f"model: xai/voice, api_key: {literal}"))
    assert found.path.endswith("api_key") and found.found == "text (***)"


# --- out of service ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "variable", "value"),
    [
        ("model: openai/realtime, api_key: os.environ/V", "V", None),
        ("model: openai/realtime, api_key: os.environ/V", "V", " \n"),
        ("model: openai/realtime, api_key: os.environ/V", "V", "two words"),
        ("model: openai/realtime, api_key: k, weight: os.environ/V", "V", "heavy"),
        ("model: openai/realtime, api_key: k, api_base: os.environ/V", "V", "nonsense"),
        ("model: openai_compatible/realtime, api_base: os.environ/V", "V", None),
        ("model: openai/realtime, api_key: k, extra_headers: {X-A: os.environ/V}", "V", None),
        ("model: openai/realtime, api_key: k, extra_headers: {X-A: os.environ/V}", "V", "a\nb"),
        ("model: azure/realtime, api_base: 'https://h', azure_ad_token_command: [a, os.environ/V]", "V", None),
        ("model: openai/realtime, api_key: k, ca_file: no-such-file.pem", "V", None),
        ("model: openai/realtime, api_key: k, ca_file: os.environ/V", "V", "hush-no-such-file"),
        ("model: openai/realtime", "OPENAI_API_KEY", "two words"),
    ],
)
def test_what_the_environment_lacks_takes_one_deployment_out_of_service(params: str, variable: str, value: str | None) -> None:
    """Variables and files are not the file's fault; the others keep running, and the reason is told without the value."""
    environ = {} if value is None else {variable: value}
    result = loaded(ONE + deployments(params, group="other").removeprefix("model_list:\n"), **environ)
    deployment = result.settings.groups["other"].deployments[0]
    assert deployment.state == "misconfigured" and deployment.problem
    assert result.settings.groups["voice"].deployments[0].state == "ready"
    told = "\n".join(str(warning) for warning in result.warnings)
    assert "is out of service" in told and "no deployment of the group 'other'" in told
    if value is not None and value.strip():
        assert value not in told and value not in deployment.problem


def test_nothing_in_service_is_an_error_that_names_every_reason() -> None:
    """A router that could serve nobody does not start."""
    found = problems(
        deployments("model: openai/realtime, api_key: os.environ/NOPE_A", "model: xai/voice, api_key: os.environ/NOPE_B")
    )
    assert [each.line for each in found] == [2, 3]
    assert "NOPE_A" in found[0].found and "NOPE_B" in found[1].found


@pytest.mark.parametrize(
    "params",
    [
        "weight: heavy",
        "api_base: nonsense",
        "api_base: 'https://user:hush@h'",
        "api_base: 'https://h:0'",
        "extra_headers: {'a b': x}",
        "extra_headers: {Sec-WebSocket-Key: x}",
        "extra_headers: {X-A: null}",
        "client_key: x.pem",
        "health_check: {}",
        "health_check: {interval_s: 0.1}",
        "max_sessions: 0",
        "order: 1.5",
        "timeout: -1",
        "proxy: 'socks5://h'",
        "os.environ/: 1",
    ],
)
def test_what_the_file_says_wrong_is_an_error(params: str) -> None:
    """It would be wrong everywhere, so it is told before the router runs."""
    told = "\n".join(str(each) for each in problems(deployments(f"model: openai/realtime, api_key: k, {params}")))
    assert "hush" not in told


def test_files_start_from_the_configurations_folder(tmp_path: Path) -> None:
    """A configuration can be used from any working directory."""
    (tmp_path / "ca.pem").write_text("x", encoding="ascii")
    file = tmp_path / "config.yaml"
    file.write_text(deployments(XAI + ", ca_file: ca.pem"), encoding="utf-8")
    deployment = only(load(file, environ=ENVIRON))
    assert deployment.state == "ready" and deployment.ca_file == str(tmp_path / "ca.pem")


def test_a_directory_is_no_readable_file(tmp_path: Path) -> None:
    """Kubernetes mounts a directory where a secret is missing."""
    (tmp_path / "ca.pem").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(deployments(XAI + ", ca_file: ca.pem"), encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(file, environ=ENVIRON)


# --- Azure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "protocol", "version", "warns"),
    [
        ("", "ga", None, False),
        (", realtime_protocol: GA", "ga", None, False),
        (", realtime_protocol: v1", "ga", None, False),
        (", realtime_protocol: GA, api_version: 2024-10-01-preview", "ga", None, False),
        (", realtime_protocol: beta, api_version: 2024-10-01-preview", "preview", "2024-10-01-preview", False),
        (", realtime_protocol: beta, api_version: next", "preview", "next", False),
        (", api_version: 2024-10-01", "preview", "2024-10-01", True),
        (", api_version: 2025-04-01-preview", "preview", "2025-04-01-preview", True),
        (", api_version: v1", "ga", None, False),
        (", realtime_protocol: beta, extra_query: {api-version: x}", "preview", None, False),
    ],
)
def test_azures_two_forms(params: str, protocol: str, version: str | None, warns: bool) -> None:
    """``realtime_protocol`` decides; without it a dated version means the preview, with a warning."""
    result = loaded(deployments(f"model: azure/d, api_key: k, api_base: 'https://h'{params}"))
    deployment = only(result)
    assert (deployment.realtime_protocol, deployment.api_version) == (protocol, version)
    assert any("preview protocol" in warning.found for warning in result.warnings) is warns


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ("api_key: k", "api_base"),
        ("api_key: k, api_base: 'https://h', realtime_protocol: beta", "api_version"),
        ("api_key: k, api_base: 'https://h', realtime_protocol: alpha", "realtime_protocol"),
        ("azure_ad_token: t, azure_ad_token_command: [x], api_base: 'https://h'", "azure_ad_token_command"),
        ("azure_ad_token_command: [], api_base: 'https://h'", "azure_ad_token_command"),
    ],
)
def test_an_azure_deployment_that_cannot_work_is_an_error(params: str, path: str) -> None:
    """Told at the key that is missing or wrong."""
    assert problem(deployments(f"model: azure/d, {params}")).path == f"model_list[0].litellm_params.{path}"


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ("model: xai/voice, api_key: k, organization: o", "organization"),
        ("model: xai/voice, api_key: k, realtime_protocol: GA", "realtime_protocol"),
        ("model: openai/realtime, api_key: k, azure_ad_token: t", "azure_ad_token"),
        ("model: azure/d, api_base: 'https://h', azure_ad_token: t", "azure_ad_token"),
    ],
)
def test_a_key_with_another_provider_warns(params: str, key: str) -> None:
    """It has no effect there, or not for long."""
    (warning,) = loaded(deployments(params)).warnings
    assert warning.path.endswith(key)
