"""From a file to settings: reading, the process's own settings, and the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import router.config
from router.config import ConfigError, FleetSettings, ListenSettings, Secret, ServerSettings, load, load_text, loader
from tests.unit.config.helpers import ENVIRON, ONE, ROOT, deployments, loaded, only, problem, problems

# Word for word what has to be accepted unchanged.
REFERENCE = """\
model_list:
  - model_name: grok-voice-agent
    litellm_params:
      model: xai/grok-4-1-fast-non-reasoning
      api_key: os.environ/XAI_API_KEY
    model_info:
      mode: realtime

  # Optional: Add fallback to OpenAI
  - model_name: grok-voice-agent
    litellm_params:
      model: openai/gpt-4o-realtime-preview-2024-10-01
      api_key: os.environ/OPENAI_API_KEY
    model_info:
      mode: realtime
"""

# A file as LiteLLM's users have them: mostly about other things.
LITELLM_FILE = """\
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/NOT_HERE
      temperature: 0.2
    model_info: {mode: chat, input_cost_per_token: 0.1}
  - model_name: claude
    litellm_params: {model: anthropic/claude-3-5-sonnet, api_key: os.environ/NOT_HERE}
  - model_name: embeddings
    litellm_params: {model: azure/text-embedding-3-large, api_base: os.environ/NOT_HERE, api_version: "2024-02-01"}
    model_info: {mode: embedding}
  - model_name: "*"
    litellm_params: {model: "*"}
  - model_name: realtime
    litellm_params:
      model: azure/gpt-realtime
      api_base: os.environ/AZURE_API_BASE
      api_key: os.environ/AZURE_API_KEY
      realtime_protocol: GA
      max_parallel_requests: 20
      timeout: 600
    model_info: {mode: realtime, base_model: azure/gpt-realtime}
router_settings:
  routing_strategy: usage-based-routing-v2
  model_group_alias: {gpt-4: gpt-4o, voice: {model: realtime, hidden: true}}
  fallbacks: [{gpt-4o: [claude]}, {realtime: [claude]}]
  context_window_fallbacks: [{gpt-4o: [claude]}]
  redis_host: os.environ/REDIS_HOST
  redis_port: os.environ/REDIS_PORT
  redis_password: os.environ/REDIS_PASSWORD
  num_retries: 2
  enable_pre_call_checks: true
litellm_settings:
  drop_params: true
  cache: true
  cache_params: {type: redis, host: os.environ/NOT_HERE}
  request_timeout: 600
  success_callback: [langfuse]
general_settings:
  master_key: os.environ/MASTER_KEY
  database_url: os.environ/NOT_HERE
  store_model_in_db: true
environment_variables: {LANGFUSE_HOST: https://example.com}
"""


# --- whole files ---------------------------------------------------------------------------------


def test_the_reference_configuration_loads_unchanged() -> None:
    """Two deployments in one group, no warning."""
    result = loaded(REFERENCE)
    first, second = result.settings.groups["grok-voice-agent"].deployments
    assert (first.provider, first.model) == ("xai", "grok-4-1-fast-non-reasoning")
    assert (second.provider, second.model) == ("openai", "gpt-4o-realtime-preview-2024-10-01")
    assert first.api_key is not None and first.api_key.reveal() == ENVIRON["XAI_API_KEY"]
    assert not result.warnings
    assert result.settings.server == ServerSettings()


def test_the_reference_configuration_runs_with_one_of_its_keys() -> None:
    """The fallback's key may be missing."""
    result = load_text(REFERENCE, environ={"XAI_API_KEY": "k"})
    assert [each.state for each in result.settings.groups["grok-voice-agent"].deployments] == ["ready", "misconfigured"]


def test_a_whole_litellm_file_loads() -> None:
    """The realtime group works, and everything else is named in a warning."""
    result = loaded(LITELLM_FILE, REDIS_HOST="redis", REDIS_PORT="6379")
    deployment = only(result)
    assert (deployment.group, deployment.max_sessions, deployment.timeout_s) == ("realtime", 20, 600.0)
    group = result.settings.groups["realtime"]
    assert (group.num_retries, group.fallbacks, group.strategy.name) == (2, (), "usage")
    assert result.settings.fleet == FleetSettings(nodes=(("redis", 6379),), password=Secret(ENVIRON["REDIS_PASSWORD"]))
    assert dict(result.settings.aliases) == {"voice": "realtime"}
    told = [warning.path for warning in result.warnings]
    assert told.count("model_list[0].model_info.mode") == 1
    assert {"general_settings.database_url", "litellm_settings.cache"} <= set(told)
    assert not any("redis" in path for path in told)


def test_places_for_anchors_are_ignored() -> None:
    """Keys that start with ``x-`` belong to nobody, and what they hold can be merged."""
    text = """\
        x-defaults: &defaults {api_key: k, weight: 3}
        model_list:
          - model_name: voice
            litellm_params: {<<: *defaults, model: xai/voice}
        """
    result = loaded(text)
    assert only(result).weight == 3.0 and not result.warnings


def test_settings_cannot_be_changed() -> None:
    """One generation is shared by all sessions."""
    settings = loaded(REFERENCE).settings
    with pytest.raises(TypeError):
        settings.groups["x"] = settings.groups["grok-voice-agent"]  # type: ignore[index]  # that it fails is the test
    with pytest.raises(AttributeError):
        settings.server.max_sessions = 5  # type: ignore[misc]  # that it fails is the test


# --- reading -------------------------------------------------------------------------------------


def refused(path: object) -> str:
    """Load a file that cannot be used and return its only problem."""
    with pytest.raises(ConfigError) as caught:
        load(path, environ=ENVIRON)  # type: ignore[arg-type]  # str and Path alike
    (found,) = caught.value.problems
    return str(found)


def test_a_file_is_read_from_str_and_path(tmp_path: Path) -> None:
    """Problems name it as it was given."""
    file = tmp_path / "config.yaml"
    file.write_text(REFERENCE, encoding="utf-8")
    assert load(file, environ=ENVIRON) == load(str(file), environ=ENVIRON)
    file.write_bytes(b"\xef\xbb\xbf" + REFERENCE.replace("\n", "\r\n").encode())
    assert load(file, environ=ENVIRON).settings.groups
    file.write_text("a: 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml:1: a: found the unknown key"):
        load(file, environ=ENVIRON)


def test_what_is_no_file_is_a_problem(tmp_path: Path) -> None:
    """Missing, a directory, a device, an impossible name, no UTF-8, too large."""
    assert "no such file" in refused(tmp_path / "missing.yaml")
    assert "a directory" in refused(tmp_path)
    assert "a special file" in refused(os.devnull)
    assert "name that no file can have" in refused("a\0b")
    assert "cannot be read" in refused("a" * 5000)
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refused(file)
    file.write_bytes(b"#" * (5 * 1024 * 1024))
    assert "bytes" in refused(file)
    file.write_bytes(b"")
    assert "an empty file" in refused(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_problem(tmp_path: Path) -> None:
    """As the service's user often meets it."""
    file = tmp_path / "config.yaml"
    file.write_text(REFERENCE, encoding="utf-8")
    file.chmod(0)
    assert "may not read" in refused(file)


def test_permission_is_told_apart_from_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as above for a test that runs as root: the operating system's refusal is put in words."""

    def forbid(*args: object, **kwargs: object) -> object:
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "config.yaml"
    file.write_text(REFERENCE, encoding="utf-8")
    monkeypatch.setattr("builtins.open", forbid)
    assert "may not read" in refused(file)


# --- general_settings ----------------------------------------------------------------------------


def server(settings: str, text: str = ONE, **overrides: object) -> ServerSettings:
    """Load general settings, given as flow-style YAML."""
    return load_text(f"{text}general_settings: {{{settings}}}", environ=ENVIRON, **overrides).settings.server  # type: ignore[arg-type]  # host and port


KEY = "master_key: os.environ/MASTER_KEY"


def test_every_setting_of_the_process_arrives() -> None:
    """Each key is read into its setting."""
    built = server(
        KEY
        + ", listen: '0.0.0.0:80', ops_listen: 9000, trusted_proxies: [10.0.0.0/8, 10.0.0.0/8], allowed_origins: ['https://a.example'],"
        " default_model: voice, handshake_errors: close, expose_routing: true, metrics_auth: true, max_sessions: 5,"
        " max_pending: 6, handshake_timeout_s: 7, retry_budget_ratio: 0, retry_budget_min_per_s: 0, log_format: json,"
        " log_level: DEBUG, workers: 3"
    )
    assert built == ServerSettings(
        listen=ListenSettings(host="0.0.0.0", port=80),
        ops_listen=ListenSettings(host="127.0.0.1", port=9000),
        master_key=built.master_key,
        trusted_proxies=("10.0.0.0/8",),
        allowed_origins=("https://a.example",),
        default_model="voice",
        handshake_errors="close",
        expose_routing=True,
        metrics_auth=True,
        max_sessions=5,
        max_pending=6,
        handshake_timeout_s=7.0,
        retry_budget_ratio=0.0,
        retry_budget_min_per_s=0.0,
        log_format="json",
        log_level="debug",
        workers=3,
    )
    assert built.master_key is not None and built.master_key.reveal() == ENVIRON["MASTER_KEY"]


def test_the_command_line_wins() -> None:
    """``--host`` and ``--port`` replace their half of the address."""
    assert server("listen: '127.0.0.1:1'", port=2).listen == ListenSettings(host="127.0.0.1", port=2)
    assert server(KEY, host="0.0.0.0").listen == ListenSettings(host="0.0.0.0", port=4000)


@pytest.mark.parametrize("key", ["sk-1234", "SK-1234", "changeme", "secret", "password"])
def test_a_well_known_master_key_warns(key: str) -> None:
    """It is tried first by whoever finds the port; the warning does not repeat it."""
    (warning,) = loaded(ONE + f"general_settings: {{master_key: {key}}}").warnings
    assert "stands in examples" in warning.found and key not in str(warning)


def test_a_short_master_key_warns() -> None:
    """Fifteen characters are few, sixteen pass."""
    (warning,) = loaded(ONE + "general_settings: {master_key: qwertzuiopasdfg}").warnings
    assert warning.found == "a key of 15 characters"
    assert not loaded(ONE + "general_settings: {master_key: qwertzuiopasdfgh}").warnings


@pytest.mark.parametrize("listen", ["127.0.0.1:4000", "localhost:4000", "'[::1]:4000'", "127.8.8.8:1", "4000"])
def test_without_a_key_the_router_may_listen_on_loopback(listen: str) -> None:
    """Only this host can reach it there."""
    assert server(f"listen: {listen}").keyless


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:4000", "'[::]:4000'", "192.168.1.5:4000", "router.internal:4000", "'[::ffff:10.0.0.1]:1'"]
)
@pytest.mark.parametrize("key", ["listen", "ops_listen"])
def test_without_a_key_any_other_address_is_an_error(key: str, listen: str) -> None:
    """The message says what to do about it."""
    found = problem(ONE + f"general_settings: {{{key}: {listen}}}")
    assert found.path == f"general_settings.{key}" and "master_key" in found.hint and "127.0.0.1" in found.hint
    assert not loaded(ONE + f"general_settings: {{{key}: {listen}, {KEY}}}").settings.server.keyless


def test_without_a_key_the_command_line_is_checked_too() -> None:
    """It is told where it came from, and can also mend what the file says."""
    with pytest.raises(ConfigError) as caught:
        server("", host="0.0.0.0")
    assert caught.value.problems[0].path == "--host"
    assert server("listen: '0.0.0.0:80'", host="127.0.0.1").listen.port == 80


def test_a_faulty_key_is_not_reported_as_none() -> None:
    """Its own problem is enough."""
    assert (
        problem(ONE + "general_settings: {listen: '0.0.0.0:1', master_key: os.environ/NOT_SET}").path
        == "general_settings.master_key"
    )
    assert problem(ONE + "general_settings: {listen: '0.0.0.0:1', keys: [{name: a}]}").path == "general_settings.keys[0]"


def test_virtual_keys() -> None:
    """Hashes, groups with aliases resolved, limits and expiry."""
    text = ONE + (
        "router_settings: {model_group_alias: {v: voice}}\n"
        "general_settings:\n"
        "  keys:\n"
        f"    - {{name: a, sha256: 'SHA256:{'AB' * 32}', models: [v, voice], max_sessions: 2, expires: 2099-01-01}}\n"
        f"    - {{name: b, sha256: {'c' * 64}}}\n"
        f"    - {{name: c, sha256: {'d' * 64}, groups: [voice]}}\n"
    )
    first, second, third = loaded(text).settings.server.keys
    assert (first.sha256, first.groups, first.max_sessions, first.expires_at) == (
        "ab" * 32,
        frozenset({"voice"}),
        2,
        4_070_908_800.0,
    )
    assert (second.groups, second.max_sessions, second.expires_at) == (None, None, None)
    assert third.groups == frozenset({"voice"})


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ("[{name: a, key: sk-hush-hush}]", "keys[0].key"),
        ("[{name: a, sha256: sk-hush-hush}]", "keys[0].sha256"),
        ("[{name: a}]", "keys[0]"),
        (f"[{{sha256: {'a' * 64}}}]", "keys[0]"),
        ("[null]", "keys[0]"),
        ("[5]", "keys[0]"),
        (f"[{{name: a, sha256: {'a' * 64}}}, {{name: a, sha256: {'b' * 64}}}]", "keys[1].name"),
        (f"[{{name: a, sha256: {'a' * 64}}}, {{name: b, sha256: {'a' * 64}}}]", "keys[1].sha256"),
        (f"[{{name: master, sha256: {'a' * 64}}}]", "keys[0].name"),
        (f"[{{name: anonymous, sha256: {'a' * 64}}}]", "keys[0].name"),
        (f"[{{name: a, sha256: {'a' * 64}, models: []}}]", "keys[0].models"),
        (f"[{{name: a, sha256: {'a' * 64}, models: [nobody]}}]", "keys[0].models[0]"),
        (f"[{{name: a, sha256: {'a' * 64}, models: [voice], groups: [voice]}}]", "keys[0].groups"),
        (f"[{{name: a, sha256: {'a' * 64}, expires: 1800000000000}}]", "keys[0].expires"),
        (f"[{{name: a, sha256: {'a' * 64}, max_sessions: 0}}]", "keys[0].max_sessions"),
    ],
)
def test_a_wrong_virtual_key_is_an_error(keys: str, path: str) -> None:
    """Told at its place; what may be the key itself is not repeated, and ``key new`` is named."""
    found = problem(ONE + f"general_settings: {{keys: {keys}}}")
    assert found.path == f"general_settings.{path}" and "hush" not in str(found)
    if "hush" in keys:
        assert "realtime-router key new" in found.hint


def test_an_expired_key_warns() -> None:
    """It is refused, so it may as well go."""
    (warning,) = loaded(ONE + f"general_settings: {{keys: [{{name: a, sha256: {'a' * 64}, expires: 2020-01-01}}]}}").warnings
    assert warning.path == "general_settings.keys[0].expires"


def test_a_key_for_a_group_that_is_not_served_warns() -> None:
    """A LiteLLM file lists chat models there as well."""
    text = ONE + "  - {model_name: chat, litellm_params: {model: openai/gpt-4o}}\n"
    text += f"general_settings: {{keys: [{{name: a, sha256: {'a' * 64}, models: [chat]}}]}}"
    result = loaded(text)
    assert result.settings.server.keys[0].groups == frozenset() and len(result.warnings) == 2


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ("default_model: nobody", "default_model"),
        ("ops_listen: 4000", "ops_listen"),
        ("max_sessions: 0", "max_sessions"),
        ("max_sessions: 1e3", "max_sessions"),
        ("workers: 0", "workers"),
        ("workers: 1025", "workers"),
        ("workers: 1.5", "workers"),
        ("workers: '2'", "workers"),
        ("workers: many", "workers"),
        ("workers: true", "workers"),
        ("log_level: loud", "log_level"),
        ("allowed_origins: [example.com]", "allowed_origins[0]"),
        ("allowed_origins: 'https://a.example'", "allowed_origins"),
        ("trusted_proxies: [localhost]", "trusted_proxies[0]"),
        ("handshake_timeout_s: .inf", "handshake_timeout_s"),
        ("expose_routing: 1", "expose_routing"),
        ("listen: [1]", "listen"),
        # More than fits into a Unix socket's address.
        (f"handover: /{'x' * 98}", "handover"),
    ],
)
def test_a_wrong_setting_of_the_process_is_an_error(settings: str, path: str) -> None:
    """Told at its place."""
    assert problem(ONE + f"general_settings: {{{settings}}}").path == f"general_settings.{path}"


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ("trusted_proxies: [0.0.0.0/0]", "trusted_proxies[0]"),
        ("trusted_proxies: ['::/0']", "trusted_proxies[0]"),
        ("metrics_auth: true", "metrics_auth"),
    ],
)
def test_a_doubtful_setting_of_the_process_warns(settings: str, path: str) -> None:
    """It is legal, and seldom what was meant."""
    (warning,) = loaded(ONE + f"general_settings: {{{settings}}}").warnings
    assert warning.path == f"general_settings.{path}"


def test_tracing_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without OpenTelemetry the key is an error that says what to install; switched off it needs nothing."""
    assert loaded(ONE + "general_settings: {tracing: true}").settings.server.tracing
    for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)  # as the import system marks what cannot be imported
            found = problem(ONE + "general_settings: {tracing: true}")
            assert (found.path, found.found) == ("general_settings.tracing", "true without OpenTelemetry")
            assert "[otel]" in found.expected and found.hint == "pip install 'realtime-router[otel]'"
            assert not loaded(ONE + "general_settings: {tracing: false}").settings.server.tracing


# --- workers -------------------------------------------------------------------------------------


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system on which several processes can share an address, wherever the tests run."""
    monkeypatch.setattr(loader, "_PLATFORM", "linux")


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize(("workers", "number"), [("1", 1), ("2", 2), ("1024", 1024), ("os.environ/WORKERS", 4), ("", 1)])
def test_a_number_of_workers(workers: str, number: int) -> None:
    """As it is written, or as a variable says; one without the key."""
    result = loaded(ONE + f"general_settings: {{workers: {workers}}}", WORKERS="4")
    assert result.settings.server.workers == number and result.settings.fleet is None and not result.warnings


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("spelt", ["auto", "AUTO", "os.environ/WORKERS"])
def test_as_many_workers_as_cpus(spelt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process may use; where the system does not say, those that there are; never more than are allowed."""
    text = ONE + f"general_settings: {{workers: {spelt}}}"

    def may_use(number: int) -> object:
        def affinity(process: int) -> set[int]:
            assert process == 0
            return set(range(number))

        return affinity

    def unknown() -> None:
        """The operating system does not say."""

    for cpus in (1, 6):
        monkeypatch.setattr(os, "sched_getaffinity", may_use(cpus), raising=False)
        assert loaded(text, WORKERS="auto").settings.server.workers == cpus
    monkeypatch.setattr(os, "sched_getaffinity", may_use(5000), raising=False)
    assert loaded(text, WORKERS="auto").settings.server.workers == 1024
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", unknown)
    assert loaded(text, WORKERS="auto").settings.server.workers == 1


def test_workers_where_the_system_cannot_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is an error that says why; ``auto`` means one there, and says so."""
    monkeypatch.setattr(loader, "_PLATFORM", "darwin")
    found = problem(ONE + "general_settings: {workers: 2}")
    assert (found.path, found.found, found.expected) == ("general_settings.workers", "2 on darwin", "1 on this system")
    assert "SO_REUSEPORT" in found.hint and "fork" in found.hint
    assert server("workers: 1").workers == 1
    result = loaded(ONE + "general_settings: {workers: auto}")
    (warning,) = result.warnings
    assert result.settings.server.workers == 1 and "read as 1" in warning.found


def test_a_default_model_may_be_an_alias() -> None:
    """It is resolved."""
    text = ONE + "router_settings: {model_group_alias: {v: voice}}\n"
    assert server("default_model: v", text).default_model == "voice"


# --- what must not happen ------------------------------------------------------------------------


def test_no_problem_shows_a_secret() -> None:
    """A file with a key in every place that may hold one, and each in a wrong place, keeps them to itself."""
    text = deployments(
        "model: openai/realtime, api_key: 'hush 01', api_base: 'https://u:hush02@h', extra_headers: {A: [hush03], 'b c': hush04},"
        " extra_query: {q: [hush05]}, azure_ad_token: 'hush 06', proxy: 'socks5://u:hush07@h', unknown: hush08,"
        " weight: sk-hush09xx"
    ) + (
        "general_settings: {master_key: 'hush 10', keys: [{name: a, key: hush11, sha256: hush12}], listen: 'sk-hush13xx:1:2'}\n"
        "router_settings: {redis_password: hush14, redis: 'redis://:hush15@h', routing_strategy: sk-hush16xxxx}\n"
        "environment_variables: {A: [hush17]}\n"
    )
    told = "\n".join(map(str, problems(text)))
    assert len(told.splitlines()) >= 13 and "hush" not in told


def test_importing_the_settings_is_cheap() -> None:
    """Neither pydantic nor YAML nor anything of the network is loaded for them, and no network for loading a file either."""
    script = (
        "import sys, router.config.settings\n"
        "early = {'pydantic', 'yaml'} & sys.modules.keys()\n"
        "from router.config import load_text, json_schema\n"
        "late = {'aiohttp', 'asyncio', 'redis', 'prometheus_client', 'structlog'} & sys.modules.keys()\n"
        "sys.exit(f'{early} {late}' if early or late else 0)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_everything_public_is_there() -> None:
    """Names that are imported on first use exist, and unknown ones fail as usual."""
    for name in router.config.__all__:
        assert getattr(router.config, name) is not None
    with pytest.raises(AttributeError):
        _ = router.config.nonsense
