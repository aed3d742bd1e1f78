"""The YAML as pydantic models: LiteLLM's sections with this project's keys among them.

Every key is optional here and every default is ``None``: what a missing key means is decided in ``settings`` alone, and a key
that is set to nothing differs from one that is missing by ``model_fields_set`` (``idle_timeout_s:`` in a group switches off what
``router_settings`` switched on). Values are checked by ``rules``; relations between keys and everything that needs a second look
at the file are checked by ``loader``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from router.config.litellm import LATER_KEYS, LITELLM_KEYS, MODEL_INFO_KEYS
from router.config.redis_url import HIGHEST_DB
from router.config.rules import (
    FROM_ELSEWHERE,
    Address,
    Choice,
    Credential,
    Digest,
    Flag,
    HeaderValue,
    Host,
    KeyPrefix,
    Moment,
    Name,
    Network,
    Number,
    OneOf,
    Origin,
    Password,
    PathPrefix,
    ProxyUrl,
    Text,
    Workers,
)
from router.config.settings import ListenSettings, ReadyRule

_DAY_S = 86_400
_SECONDS = Number(low=0, above=True, high=_DAY_S, unit="seconds")
# A dial: nobody waits for one longer than this.
_DIAL_SECONDS = Number(low=0, above=True, high=600, unit="seconds")
_LITELLM_SECONDS = Number(low=0, above=True, high=10 * _DAY_S, unit="seconds", text=True)
_GROUP_NAME = Name(what="a group's name", item=True)
_COUNT = Number(low=1, high=1_000_000, whole=True)
_REALTIME_PROTOCOLS = Choice(words={"GA": "ga", "v1": "ga", "beta": "preview", "preview": "preview"})


class Section(BaseModel):
    """Base: unknown keys are refused, and nothing of a section can end up in a ``repr`` or an error."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    __str__ = __repr__


def _says(text: str) -> Any:
    """A description for editors. ``Any``, because ``Field`` is typed as the value of the field it describes."""
    return Field(description=text)


class HealthCheck(Section):
    """Active probing of a deployment."""

    interval_s: Annotated[
        float | None, Number(low=1, high=_DAY_S, unit="seconds"), _says("Seconds between probes, at least.")
    ] = None
    timeout_s: Annotated[float | None, _DIAL_SECONDS, _says("Seconds until a probe has failed. Default 5.")] = None


class Params(Section):
    """``litellm_params``: one deployment."""

    model: Annotated[str | None, Text(what="provider/model", limit=256), _says("PROVIDER/MODEL; Azure: azure/DEPLOYMENT.")] = None
    custom_llm_provider: Annotated[str | None, Name(what="a provider"), _says("The provider when model names none.")] = None
    api_key: Annotated[str | None, Credential(), _says("The provider's key, usually os.environ/NAME.")] = None
    api_base: Annotated[str | None, Text(what="a URL"), _says("Base URL; overrides scheme, host and path.")] = None
    base_url: Annotated[str | None, Text(what="a URL"), _says("Another name for api_base.")] = None
    api_version: Annotated[str | None, Name(what="a version such as 2025-04-01-preview"), _says("Azure preview only.")] = None
    realtime_protocol: Annotated[Literal["ga", "preview"] | None, _REALTIME_PROTOCOLS, _says("Azure: GA (v1) or beta.")] = None
    organization: Annotated[str | None, Credential(what="an organization's id"), _says("OpenAI-Organization header.")] = None
    project: Annotated[str | None, Credential(what="a project's id"), _says("OpenAI-Project header.")] = None
    azure_ad_token: Annotated[str | None, Credential(), _says("Azure: an Entra token; it expires within the hour.")] = None
    azure_ad_token_file: Annotated[
        str | None, Text(what="a file"), _says("Azure: file with an Entra token, read when it changed.")
    ] = None
    azure_ad_token_command: Annotated[
        list[Annotated[str, HeaderValue(what="an argument", item=True)]] | None,
        _says("Azure: program and arguments that print an Entra token."),
    ] = None
    extra_headers: Annotated[dict[str, Annotated[str, HeaderValue(item=True)]] | None, _says("Headers added to the dial.")] = None
    extra_query: Annotated[
        dict[str, Annotated[str, HeaderValue(item=True)]] | None, _says("Query parameters added to the dial.")
    ] = None
    weight: Annotated[float | None, Number(low=0, above=True, high=1e6), _says("Share within the group. Default 1.")] = None
    order: Annotated[int | None, Number(low=-1000, high=1000, whole=True), _says("Lower is tried first. Default 0.")] = None
    max_sessions: Annotated[int | None, _COUNT, _says("Most sessions at once, in the whole fleet. Default: no limit.")] = None
    max_parallel_requests: Annotated[int | None, _COUNT, _says("LiteLLM's name for max_sessions.")] = None
    rpm: Annotated[
        int | None, Number(low=1, high=1e9, whole=True, text=True), _says("Sessions started a minute, in the whole fleet.")
    ] = None
    tpm: Annotated[int | None, Number(low=1, high=1e12, whole=True, text=True), _says("Tokens a minute, in the whole fleet.")] = (
        None
    )
    ready: Annotated[ReadyRule | None, Choice.of(ReadyRule), _says("What proves that an upstream works.")] = None
    ready_grace_s: Annotated[float | None, _DIAL_SECONDS, _says("ready auto: silence that counts as ready. Default 1.")] = None
    connect_timeout_s: Annotated[float | None, _DIAL_SECONDS, _says("TCP, TLS and upgrade. Default 2.")] = None
    ready_timeout_s: Annotated[float | None, _DIAL_SECONDS, _says("From the 101 to the first good event. Default 3.")] = None
    timeout: Annotated[float | None, _LITELLM_SECONDS, _says("Bounds a dial as a whole; only ever shortens.")] = None
    proxy: Annotated[str | None, ProxyUrl(), _says("HTTP proxy. Default: HTTPS_PROXY and NO_PROXY.")] = None
    ca_file: Annotated[str | None, Text(what="a file"), _says("PEM file of authorities to trust.")] = None
    client_cert: Annotated[str | None, Text(what="a file"), _says("PEM file of a client certificate.")] = None
    client_key: Annotated[str | None, Text(what="a file"), _says("PEM file of its key, if not in client_cert.")] = None
    tls_server_name: Annotated[str | None, Name(what="a host name", limit=253), _says("Name to expect in the certificate.")] = (
        None
    )
    health_check: Annotated[HealthCheck | None, _says("Active probing. It may cost money.")] = None


class ModelInfo(Section):
    """``model_info``: free-form in LiteLLM; these keys have a meaning here."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, protected_namespaces=())

    id: Annotated[
        str | None, Name(what="an id", number=True), _says("Name in metrics and logs. Default: made of group and model.")
    ] = None
    mode: Annotated[str | None, Name(what="a mode"), _says("Only entries with realtime are served.")] = None
    state: Annotated[
        Literal["ready", "drain", "maint"] | None,
        Choice.of(Literal["ready", "drain", "maint"]),
        _says("State at start. Default ready."),
    ] = None


class Entry(Section):
    """An entry of ``model_list``."""

    model_name: Annotated[str | None, Name(what="a group's name"), _says("The name that clients ask for.")] = None
    litellm_params: Annotated[Params | None, _says("The deployment.")] = None
    model_info: Annotated[ModelInfo | None, _says("Facts about the deployment.")] = None


class GroupKeys(Section):
    """What ``router_settings`` sets for all groups and ``groups.NAME`` for one."""

    routing_strategy: Annotated[
        str | None, Name(what="a strategy's name"), _says("Default least-connections, shared in a fleet.")
    ] = None
    routing_strategy_args: Annotated[dict[str, Any] | None, _says("Options of the strategy.")] = None
    num_retries: Annotated[
        int | None,
        Number(low=0, high=1000, whole=True, text=True),
        _says("Dials again after all were tried. Default: no bound but time."),
    ] = None
    allowed_fails: Annotated[
        int | None, Number(low=0, high=10_000, whole=True), _says("Failures in a row that eject. Default 3.")
    ] = None
    cooldown_time: Annotated[
        float | None, Number(low=0, high=_DAY_S, unit="seconds", text=True), _says("First ejection. Default 30.")
    ] = None
    max_cooldown_s: Annotated[float | None, _SECONDS, _says("Longest ejection. Default 300.")] = None
    cooldown_jitter: Annotated[
        float | None, Number(low=0, high=0.9), _says("Random share of an ejection's length, ±. Default 0.2.")
    ] = None
    authentication_cooldown_s: Annotated[float | None, _SECONDS, _says("Ejection after a refused key. Default 300.")] = None
    slow_start_s: Annotated[
        float | None, Number(low=0, high=3600, unit="seconds"), _says("Ramp after an ejection. Default 30.")
    ] = None
    early_close_s: Annotated[
        float | None, Number(low=0, high=600, unit="seconds"), _says("An abnormal end this soon is a failure. Default 5.")
    ] = None
    ready: Annotated[ReadyRule | None, Choice.of(ReadyRule), _says("What proves that an upstream works.")] = None
    ready_grace_s: Annotated[float | None, _DIAL_SECONDS, _says("ready auto: silence that counts as ready. Default 1.")] = None
    connect_timeout_s: Annotated[float | None, _DIAL_SECONDS, _says("TCP, TLS and upgrade. Default 2.")] = None
    ready_timeout_s: Annotated[float | None, _DIAL_SECONDS, _says("From the 101 to the first good event. Default 3.")] = None
    timeout: Annotated[float | None, _LITELLM_SECONDS, _says("Bounds a dial as a whole; only ever shortens.")] = None
    health_check: Annotated[HealthCheck | None, _says("Active probing. It may cost money.")] = None
    total_timeout_s: Annotated[float | None, _DIAL_SECONDS, _says("From the request to a working session. Default 8.")] = None
    stagger_s: Annotated[float | None, _DIAL_SECONDS, _says("Silence that starts the next dial beside. Default 1.5.")] = None
    max_attempts: Annotated[
        int | None, Number(low=1, high=1000, whole=True), _says("Most dials a session. Default: every deployment.")
    ] = None
    forward_query: Annotated[
        list[Annotated[str, Name(what="a query parameter", item=True)]] | None, _says("Parameters that travel upstream.")
    ] = None
    forward_headers: Annotated[
        list[Annotated[str, Name(what="a header's name", item=True)]] | None, _says("Headers that travel upstream.")
    ] = None
    max_message_bytes: Annotated[
        int | None, Number(low=1024, high=2**30, whole=True, unit="bytes"), _says("Largest message. Default 33554432.")
    ] = None
    ping_interval_s: Annotated[float | None, _SECONDS, _says("Between own pings. Default 20.")] = None
    ping_timeout_s: Annotated[float | None, _SECONDS, _says("A leg without any byte this long is dead. Default 45.")] = None
    stall_timeout_s: Annotated[float | None, _SECONDS, _says("A reader that takes nothing this long is closed. Default 30.")] = (
        None
    )
    idle_timeout_s: Annotated[float | None, _SECONDS, _says("Close a session without events. Default: off.")] = None
    max_session_s: Annotated[
        float | None,
        Number(low=0, above=True, high=30 * _DAY_S, unit="seconds"),
        _says("Close a session this old. Default: off."),
    ] = None
    on_upstream_loss: Annotated[
        Literal["close", "resume"] | None,
        Choice.of(Literal["close", "resume"]),
        _says("Default close. resume has no effect yet."),
    ] = None


class Group(GroupKeys):
    """``groups.NAME``."""

    fallbacks: Annotated[list[Annotated[str, _GROUP_NAME]] | None, _says("Groups to try next, in turn.")] = None


class Alias(Section):
    """LiteLLM's longer form of an alias."""

    model: Annotated[str | None, Name(what="a group's name"), _says("The group.")] = None
    hidden: Annotated[bool | None, Flag(), _says("Leave it out of /v1/models.")] = None


# LiteLLM takes a mapping as a target as well (a model with other parameters), which has no counterpart: ``loader`` drops those.
Fallbacks = list[dict[str, list[Any]]]


class RouterSettings(GroupKeys):
    """``router_settings``."""

    fallbacks: Annotated[Fallbacks | None, _says("[{GROUP: [GROUP, …]}, …]; '*' as the key: for all groups.")] = None
    default_fallbacks: Annotated[list[Annotated[str, _GROUP_NAME]] | None, _says("For groups without their own.")] = None
    model_group_alias: Annotated[
        dict[str, Any] | None, _says("Other names: {ALIAS: GROUP} or {ALIAS: {model: GROUP, hidden: true}}.")
    ] = None
    redis: Annotated[str | None, Text(what="a URL"), _says("Redis or Valkey server by which replicas balance as one.")] = None
    redis_url: Annotated[str | None, Text(what="a URL"), _says("LiteLLM's name for redis.")] = None
    redis_host: Annotated[str | None, Host(), _says("The server by its host, in the place of a URL.")] = None
    redis_port: Annotated[
        int | None, Number(low=1, high=65535, whole=True, text=True), _says("Beside redis_host. Default 6379.")
    ] = None
    redis_db: Annotated[
        int | None,
        Number(low=0, high=HIGHEST_DB, whole=True, text=True),
        _says("Database, beside redis_host. Default 0."),
    ] = None
    redis_ssl: Annotated[bool | None, Flag(), _says("TLS, beside redis_host. Default false.")] = None
    redis_username: Annotated[str | None, Password(what="a user's name"), _says("ACL user. Default: the server's own.")] = None
    redis_password: Annotated[str | None, Password(), _says("The server's password, usually os.environ/NAME.")] = None
    redis_sentinel_username: Annotated[
        str | None, Password(what="a user's name"), _says("ACL user of the sentinels. Default: their own.")
    ] = None
    redis_sentinel_password: Annotated[str | None, Password(), _says("Password of the sentinels. Default: none.")] = None
    redis_ca_file: Annotated[
        str | None, Text(what="a file"), _says("PEM file of authorities to trust. Default: the system's.")
    ] = None
    redis_client_cert: Annotated[str | None, Text(what="a file"), _says("PEM file of a client certificate.")] = None
    redis_client_key: Annotated[str | None, Text(what="a file"), _says("PEM file of its key, if not in redis_client_cert.")] = (
        None
    )
    redis_prefix: Annotated[str | None, KeyPrefix(), _says("What all keys start with. Default realtime-router.")] = None
    on_redis_loss: Annotated[
        Literal["open", "closed"] | None,
        Choice.of(Literal["open", "closed"]),
        _says("max_sessions without the server: each process its part, or nothing. Default open."),
    ] = None


class LitellmSettings(Section):
    """``litellm_settings``: what ``router_settings`` does not set."""

    fallbacks: Annotated[Fallbacks | None, _says("As in router_settings.")] = None
    default_fallbacks: Annotated[list[Annotated[str, _GROUP_NAME]] | None, _says("As in router_settings.")] = None
    num_retries: Annotated[int | None, Number(low=0, high=1000, whole=True, text=True), _says("As in router_settings.")] = None
    request_timeout: Annotated[float | None, _LITELLM_SECONDS, _says("As router_settings.timeout.")] = None


class VirtualKey(Section):
    """An entry of ``general_settings.keys``."""

    name: Annotated[str | None, Name(what="a name for logs and metrics"), _says("Name in logs and metrics.")] = None
    sha256: Annotated[str | None, Digest(), _says("Hash of the key, from 'realtime-router key new'.")] = None
    models: Annotated[list[Annotated[str, _GROUP_NAME]] | None, _says("Groups it may use. Default: all.")] = None
    groups: Annotated[list[Annotated[str, _GROUP_NAME]] | None, _says("Another name for models.")] = None
    max_sessions: Annotated[int | None, _COUNT, _says("Most sessions at once, in the whole fleet. Default: no limit.")] = None
    expires: Annotated[float | None, Moment(), _says("When it ends: ISO 8601 or epoch seconds. Default: never.")] = None


class Drain(Section):
    """How the process ends when it is asked to."""

    grace_s: Annotated[
        float | None, Number(low=0, high=600, unit="seconds"), _says("Goes on accepting while not ready. Default 5.")
    ] = None
    timeout_s: Annotated[
        float | None, Number(low=0, high=_DAY_S, unit="seconds"), _says("Running sessions may go on so long. Default 600.")
    ] = None
    code: Annotated[Literal[1001, 1012] | None, OneOf(numbers=(1001, 1012)), _says("Close code after that. Default 1001.")] = None


class ListenTls(Section):
    """The certificate of ``listen``."""

    cert_file: Annotated[str | None, Text(what="a file"), _says("PEM: the certificate and those that sign it.")] = None
    key_file: Annotated[str | None, Text(what="a file"), _says("PEM: its key. Default: it is in cert_file.")] = None


class GeneralSettings(Section):
    """``general_settings``: the process."""

    master_key: Annotated[str | None, Credential(), _says("Key to everything, usually os.environ/NAME.")] = None
    keys: Annotated[list[VirtualKey] | None, _says("Virtual keys, stored as hashes.")] = None
    listen: Annotated[ListenSettings | None, Address(), _says("HOST:PORT. Default 127.0.0.1:4000.")] = None
    ops_listen: Annotated[ListenSettings | None, Address(), _says("HOST:PORT for metrics, admin and dashboard.")] = None
    workers: Annotated[
        int | Literal["auto"] | None, Workers(), _says("Processes on one address; auto: one a CPU. Default 1.")
    ] = None
    trusted_proxies: Annotated[list[Annotated[str, Network(item=True)]] | None, _says("Proxies whose X-Forwarded-* count.")] = (
        None
    )
    allowed_origins: Annotated[
        list[Annotated[str, Origin(item=True)]] | None, _says("Web origins that may connect. Default: own host.")
    ] = None
    default_model: Annotated[str | None, Name(what="a group's name"), _says("For requests that name no model.")] = None
    handshake_errors: Annotated[
        Literal["auto", "http", "close"] | None, Choice.of(Literal["auto", "http", "close"]), _says("Default auto.")
    ] = None
    expose_routing: Annotated[bool | None, Flag(), _says("Tell clients which deployment they got. Default false.")] = None
    metrics_auth: Annotated[bool | None, Flag(), _says("/metrics needs a key. Default false.")] = None
    max_sessions: Annotated[int | None, _COUNT, _says("Most sessions of a process. Default 10000.")] = None
    max_pending: Annotated[int | None, _COUNT, _says("Most handshakes of a process. Default 1000.")] = None
    handshake_timeout_s: Annotated[float | None, _DIAL_SECONDS, _says("From accept to a whole request. Default 10.")] = None
    retry_budget_ratio: Annotated[float | None, Number(low=0, high=10), _says("Dials again per session start. Default 0.2.")] = (
        None
    )
    retry_budget_min_per_s: Annotated[
        float | None, Number(low=0, high=10_000), _says("… but at least so many a second. Default 3.")
    ] = None
    log_format: Annotated[
        Literal["auto", "json", "console"] | None, Choice.of(Literal["auto", "json", "console"]), _says("Default auto.")
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        Choice.of(Literal["debug", "info", "warning", "error"]),
        _says("Default info."),
    ] = None
    drain: Annotated[Drain | None, _says("How the process ends when it is asked to.")] = None
    handover: Annotated[
        str | None, Text(what="a path", limit=100), _says("Unix socket by which a successor takes over. Default: none.")
    ] = None
    tls: Annotated[ListenTls | None, _says("Serve listen by TLS. Default: plain.")] = None
    proxy_protocol: Annotated[bool | None, Flag(), _says("Connections begin with a PROXY header. Default false.")] = None
    root_path: Annotated[str | None, PathPrefix(), _says("What all paths begin with. Default: nothing.")] = None
    watch: Annotated[bool | None, Flag(), _says("Reload when the file changes. Default true.")] = None
    dashboard: Annotated[bool | None, Flag(), _says("Serve the dashboard at /. Default true.")] = None
    tracing: Annotated[bool | None, Flag(), _says("Spans by OpenTelemetry; extra [otel]. Default false.")] = None


class File(Section):
    """The whole file."""

    model_list: Annotated[list[Entry] | None, _says("The deployments.")] = None
    router_settings: Annotated[RouterSettings | None, _says("Defaults of every group.")] = None
    groups: Annotated[dict[str, Group] | None, _says("Settings of single groups; they win over router_settings.")] = None
    general_settings: Annotated[GeneralSettings | None, _says("The process.")] = None
    litellm_settings: Annotated[LitellmSettings | None, _says("LiteLLM's own place for a few of router_settings.")] = None
    environment_variables: Annotated[
        dict[str, Any] | None, _says("Values for os.environ/NAME; they win over the environment and are not exported.")
    ] = None


_SECTIONS: dict[str, str] = {
    "File": "",
    "Entry": "model_list[]",
    "Params": "litellm_params",
    "RouterSettings": "router_settings",
    "Group": "groups",
    "GeneralSettings": "general_settings",
    "LitellmSettings": "litellm_settings",
}

# Marks a key of the JSON Schema that loads and does nothing.
NO_EFFECT = "x-no-effect"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the file, for editors.

    Scalars may also be ``os.environ/NAME`` or ``file:PATH``. Keys that load without effect are in it, marked ``x-no-effect`` and
    deprecated.
    """
    schema = File.model_json_schema()
    definitions: dict[str, dict[str, Any]] = {"File": schema, **schema["$defs"]}
    for name, definition in definitions.items():
        properties: dict[str, Any] = definition["properties"]
        for key, value in properties.items():
            properties[key] = _editor_form(value)
        section = _SECTIONS.get(name)
        if section is not None:
            _add_without_effect(properties, LITELLM_KEYS.get(section, frozenset()), "LiteLLM's; no effect here.")
            _add_without_effect(properties, LATER_KEYS.get(section, frozenset()), "No effect in this version.")
        if name == "ModelInfo":
            _add_without_effect(properties, MODEL_INFO_KEYS, "LiteLLM's; no effect here.")
            definition["additionalProperties"] = True
    schema["patternProperties"] = {"^x-": {"description": "Ignored: a place for YAML anchors."}}
    schema["required"] = ["model_list"]
    definitions["Entry"]["required"] = ["model_name", "litellm_params"]
    definitions["Params"]["required"] = ["model"]
    definitions["VirtualKey"]["required"] = ["name", "sha256"]
    alias = schema["$defs"]["Alias"] = Alias.model_json_schema()
    alias["required"] = ["model"]
    aliases = schema["$defs"]["RouterSettings"]["properties"]["model_group_alias"]
    aliases["additionalProperties"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Alias"}]}
    aliases.pop("anyOf", None)
    aliases["type"] = ["object", "null"]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Realtime Router configuration"
    return schema


def _add_without_effect(properties: dict[str, Any], keys: frozenset[str], reason: str) -> None:
    for key in sorted(keys):
        properties.setdefault(key, {"description": reason, "deprecated": True, NO_EFFECT: True})


def _editor_form(value: dict[str, Any]) -> dict[str, Any]:
    """Let a scalar be empty or come from the environment, and drop pydantic's titles and defaults, which say nothing."""
    value = {key: part for key, part in value.items() if key not in ("title", "default")}
    scalar = "enum" in value or (isinstance(value.get("type"), str) and value["type"] not in ("string", "array", "object"))
    described = {"description": value.pop("description")} if "description" in value else {}
    if scalar:
        return {**described, "anyOf": [value, {"type": "string", "pattern": FROM_ELSEWHERE}, {"type": "null"}]}
    if "type" in value and "anyOf" not in value:
        kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
        return {**described, **value, "type": [*kinds, "null"]}
    return {**described, **value}
