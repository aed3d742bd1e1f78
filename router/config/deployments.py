"""``model_list`` → deployments.

Which entries are served. A LiteLLM file usually holds chat and embedding models too, so an entry is served only when something
says that it is a realtime model:

1. ``model_info.mode: realtime``;
2. no ``mode``, and the provider is ``openai_compatible``, a name that LiteLLM does not have;
3. no ``mode``, and the model's or the group's name says so (``realtime``, ``voice``, ``speech-to-speech``).

Everything else is skipped with one warning that names the reason, its parameters unchecked: nobody's chat model becomes a voice
model in silence, and none disappears in silence either. A misspelt provider is an error, since it would disappear.

What is wrong with one deployment only because of where the router runs (a variable that is not set, a file that is not there)
takes that deployment out of service (state ``misconfigured``) and leaves the rest running. What is wrong in the file is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar, cast

from router import providers
from router.config.litellm import COMPATIBLE_PROVIDERS, LITELLM_PROVIDERS
from router.config.report import FromEnvironment, Report, describe, nearest, quoted
from router.config.rules import Credential, Name, Unfit
from router.config.schema import Entry, GroupKeys, HealthCheck, ModelInfo, Params, Section
from router.config.sections import Environment, Fault, Ignored, salvage, tell, validate
from router.config.settings import DeploymentSettings, DeploymentState, HealthCheckSettings, ReadyRule, Secret
from router.config.source import Path
from router.providers.headers import header_name_problem
from router.providers.urls import api_base_problem

_REALTIME_NAME = re.compile(r"real-?time|voice|speech-to-speech", re.IGNORECASE)
_DATED = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
_FILES = ("azure_ad_token_file", "ca_file", "client_cert", "client_key")
_AZURE_ONLY = ("api_version", "realtime_protocol", "azure_ad_token", "azure_ad_token_file", "azure_ad_token_command")
_OPENAI_ONLY = ("organization", "project")
_TOKENS = ("azure_ad_token", "azure_ad_token_file", "azure_ad_token_command")
# Keys for which nothing (``null``) means "off" and wins over an outer layer; elsewhere it means "not set here".
OFF_BY_NULL = frozenset({"idle_timeout_s", "max_session_s", "max_attempts", "num_retries", "health_check"})
_DEFAULTS: Mapping[str, Any] = {item.name: item.default for item in dataclasses.fields(DeploymentSettings)}

# A key in capitals only, with no digit run of a real one: somebody forgot ``os.environ/``.
_VARIABLE_NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
T = TypeVar("T")
M = TypeVar("M", bound=Section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An entry that is served, checked but without the defaults of its group yet.

    Attributes:
        path: its place in the file.
        group: ``model_name``.
        provider: a name in ``providers.PROVIDERS``.
        model: what the upstream calls it.
        params: ``litellm_params``, checked.
        info: ``model_info``, checked.
        id: explicit or made up.
        problems: why it is out of service; empty when it is not.
    """

    path: Path
    group: str
    provider: str
    model: str
    params: Params
    info: ModelInfo
    id: str
    problems: tuple[Fault, ...] = ()


@dataclass(slots=True)
class Entries:
    """What became of ``model_list``: the served entries in the file's order, and the names of groups that are not served."""

    served: list[Served] = field(default_factory=list)
    skipped_groups: set[str] = field(default_factory=set)

    @property
    def groups(self) -> dict[str, list[Served]]:
        """Entries by group, groups in the order of their first entry."""
        groups: dict[str, list[Served]] = {}
        for entry in self.served:
            groups.setdefault(entry.group, []).append(entry)
        return groups


def read_entries(raw: object, *, env: Environment, ignored: Ignored, report: Report, folder: str) -> Entries:
    """Check ``model_list``.

    Args:
        raw: the list as it stands in the file.
        env: for ``os.environ/NAME``.
        ignored: collects keys without effect.
        report: takes the problems.
        folder: relative file names start here.
    """
    path: Path = ("model_list",)
    entries = Entries()
    if not isinstance(raw, list):
        report.error(path, "nothing" if raw is None else describe(raw, path), "a list of deployments")
        return entries
    reader = _Reader(env=env, ignored=ignored, report=report, folder=folder)
    broken = False
    for index, item in enumerate(raw):
        errors_before = len(report.errors)
        name, served = reader.read(item, (*path, index))
        if served is not None:
            entries.served.append(served)
        elif name is not None and len(report.errors) == errors_before:
            entries.skipped_groups.add(name)
        broken = broken or len(report.errors) > errors_before
    entries.skipped_groups -= entries.groups.keys() | reader.broken_groups
    # A broken entry might be the usable one; its own error says more.
    if not entries.served and not broken:
        known = ", ".join(providers.PROVIDERS)
        report.error(path, "no entry that can be served", f"at least one with model_info.mode realtime and a provider of {known}")
    _check_ids(entries.served, report)
    return entries


def build(entry: Served, *, position: int, layers: tuple[GroupKeys, ...], request_timeout_s: float | None) -> DeploymentSettings:
    """Fill in the defaults of an entry's group.

    Args:
        entry: the checked entry.
        position: its index within the group.
        layers: the group's settings, then ``router_settings``.
        request_timeout_s: LiteLLM's outermost timeout.
    """
    params = entry.params

    def layered(key: str, default: T) -> T:
        return pick(key, (params, *layers), default)

    timeout_s = layered("timeout", request_timeout_s)
    protocol, version = _azure_form(params) if entry.provider == "azure" else ("ga", None)
    state: DeploymentState = params_state(entry)
    default_ready: ReadyRule = providers.PROVIDERS[entry.provider].default_ready
    health: HealthCheck | None = layered("health_check", None)
    return DeploymentSettings(
        id=entry.id,
        group=entry.group,
        position=position,
        provider=entry.provider,
        model=entry.model,
        api_key=_secret(params.api_key),
        api_base=params.api_base,
        api_version=version,
        realtime_protocol="preview" if protocol == "preview" else "ga",
        organization=params.organization,
        project=params.project,
        azure_ad_token=_secret(params.azure_ad_token),
        azure_ad_token_file=params.azure_ad_token_file,
        azure_ad_token_command=tuple(params.azure_ad_token_command or ()),
        extra_headers=_secrets(params.extra_headers),
        extra_query=_secrets(params.extra_query),
        weight=_default("weight", params.weight),
        order=_default("order", params.order),
        max_sessions=params.max_sessions,
        rpm=params.rpm,
        tpm=params.tpm,
        state=state,
        problem="; ".join(f"{fault.path[-1]}: found {fault.found}, expected {fault.expected}" for fault in entry.problems),
        ready=layered("ready", default_ready),
        ready_grace_s=layered("ready_grace_s", _default("ready_grace_s")),
        connect_timeout_s=layered("connect_timeout_s", _default("connect_timeout_s")),
        ready_timeout_s=layered("ready_timeout_s", _default("ready_timeout_s")),
        timeout_s=timeout_s,
        proxy=params.proxy,
        ca_file=params.ca_file,
        client_cert=params.client_cert,
        client_key=params.client_key,
        tls_server_name=params.tls_server_name,
        health_check=_health_check(health),
    )


def pick(key: str, layers: Iterable[Section], default: T) -> T:
    """Return the value of the innermost layer that sets ``key``, else ``default``."""
    for layer in layers:
        if key in layer.model_fields_set:
            value: T | None = getattr(layer, key)
            if value is not None or key in OFF_BY_NULL:
                # Only a key of OFF_BY_NULL gets here with None, and its T includes None.
                return cast(T, value)
    return default


def params_state(entry: Served) -> DeploymentState:
    """The state a deployment starts in."""
    return "misconfigured" if entry.problems else entry.info.state or "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Skip:
    """Why an entry is not served. ``is_error``: it was surely meant to be."""

    path: Path
    found: str
    expected: str
    hint: str = ""
    is_error: bool = False


# --- one entry -----------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Reader:
    env: Environment
    ignored: Ignored
    report: Report
    folder: str
    # How often each identity came so far: the ordinal in a made-up id.
    seen: dict[str, int] = field(default_factory=dict)
    # Groups with an entry that has errors; they are not "skipped".
    broken_groups: set[str] = field(default_factory=set)

    def read(self, raw: object, path: Path) -> tuple[str | None, Served | None]:
        """Return the group's name, where there is one, and the entry, where it is served."""
        report = self.report
        if not isinstance(raw, dict):
            report.error(path, describe(raw, path), "a mapping with model_name and litellm_params")
            return None, None
        entry = self.ignored.strip(raw, section="model_list[]", path=path)
        for key in entry:
            if key not in Entry.model_fields:
                report.unknown_key((*path, key), Entry.model_fields)
        name = self._group_name(entry, path)
        params, info = entry.get("litellm_params"), entry.get("model_info")
        if not isinstance(params, dict):
            report.error((*path, "litellm_params"), "nothing" if params is None else describe(params, ()), "a mapping with model")
        if info is not None and not isinstance(info, dict):
            report.error((*path, "model_info"), describe(info, ()), "a mapping")
        if name is None or not isinstance(params, dict) or not (info is None or isinstance(info, dict)):
            return name, None
        served = self._entry(name, params, info or {}, path)
        return name, served

    def _group_name(self, entry: Mapping[str, object], path: Path) -> str | None:
        return self._text(entry.get("model_name"), (*path, "model_name"), Name(what="a group's name"))

    def _text(self, raw: object, path: Path, rule: Name) -> str | None:
        """Check a name without which an entry cannot even be shown; unlike the rest it is an error when its variable is unset."""
        value, unset = self.env.resolve(raw, path)
        if unset:
            tell(self.report, unset)
            return None
        if value is None:
            self.report.error(path, "nothing", rule.what)
            return None
        try:
            return str(rule.parse(value))
        except Unfit as exc:
            self.report.error(path, describe(value, path), exc.expected, exc.hint)
            return None

    def _entry(self, name: str, params: Mapping[str, object], info: Mapping[str, object], path: Path) -> Served | None:
        model_path = (*path, "litellm_params", "model")
        spelt = self._text(params.get("model"), model_path, Name(what="provider/model", limit=256))
        if spelt is None:
            self.broken_groups.add(name)
            return None
        mode = self._mode(info, path)
        provider, model = _split(spelt, params.get("custom_llm_provider"))
        skip = self._skip(name, provider, model, mode, model_path)
        if skip is not None:
            note = self.report.error if skip.is_error else self.report.warn
            note(skip.path, skip.found, skip.expected, skip.hint)
            if skip.is_error:
                self.broken_groups.add(name)
            return None
        errors_before = len(self.report.errors)
        served = self._serve(name, provider, model, params, info, path)
        if len(self.report.errors) > errors_before:
            self.broken_groups.add(name)
        return served

    def _mode(self, info: Mapping[str, object], path: Path) -> str | None:
        value, _ = self.env.resolve(info.get("mode"), (*path, "model_info", "mode"))
        return value.strip().lower() if isinstance(value, str) else None if value is None else describe(value, ())

    def _skip(self, name: str, provider: str, model: str, mode: str | None, path: Path) -> _Skip | None:
        """Say why an entry is not served; ``None`` when it is. The module's docstring has the rules."""
        known = providers.PROVIDERS
        known_names = ", ".join(known)
        if mode not in (None, "realtime"):
            hint = nearest(str(mode), ["realtime"])
            place = (*path[:-2], "model_info", "mode")
            return _Skip(
                path=place,
                found=f"an entry of mode {quoted(str(mode))}, which is skipped",
                expected="realtime",
                hint=hint,
            )
        if "*" in model:
            return _Skip(path=path, found="a wildcard, which is skipped", expected="the name of one model")
        if not provider and mode == "realtime":
            return _Skip(
                path=path, found="a model without a provider", expected=f"PROVIDER/MODEL, one of {known_names}", is_error=True
            )
        if provider not in known:
            close = difflib.get_close_matches(provider.lower().replace("-", "_"), list(known), n=1, cutoff=0.75)
            if close and provider not in LITELLM_PROVIDERS:
                found, hint = f"the unknown provider {quoted(provider)}", f"did you mean {close[0]!r}?"
                return _Skip(path=path, found=found, expected=f"one of {known_names}", hint=hint, is_error=True)
            hint = (
                "a server that speaks OpenAI's protocol is provider openai_compatible" if provider in COMPATIBLE_PROVIDERS else ""
            )
            found = f"an entry of the provider {quoted(provider)}, which is skipped"
            return _Skip(path=path, found=found, expected=f"one of {known_names}", hint=hint)
        if mode is None and provider != "openai_compatible" and not _REALTIME_NAME.search(f"{model} {name}"):
            hint = "nothing in its name says that it is a voice model"
            return _Skip(
                path=path, found="an entry without mode, which is skipped", expected="model_info.mode: realtime", hint=hint
            )
        return None

    def _serve(
        self, name: str, provider: str, model: str, raw: Mapping[str, object], raw_info: Mapping[str, object], path: Path
    ) -> Served | None:
        report = self.report
        params_path, info_path = (*path, "litellm_params"), (*path, "model_info")
        problems: list[Fault] = []
        params, data = self._model(
            Params, self.ignored.strip(raw, section="litellm_params", path=params_path), params_path, problems
        )
        info, _ = self._model(ModelInfo, raw_info, info_path, problems)
        if not model:
            report.error((*params_path, "model"), "no model after the provider", f"{provider}/MODEL")
            return None
        params = _without_aliases(params, params_path, report)
        params = self._fill_key(provider, params, raw.get("api_key"), params_path, problems)
        params = self._absolute(params, data, params_path, problems)
        faults = [
            *_check_base(provider, params, data, params_path, problems),
            *_check_params(provider, params, params_path, report),
        ]
        problems.extend(fault for fault in faults if fault.supplied)
        tell(report, [fault for fault in faults if not fault.supplied])
        identity = (name, provider, model, raw.get("api_base", raw.get("base_url")), raw.get("api_version"), raw.get("api_key"))
        deployment_id = info.id if info.id is not None else self._made_up_id(identity)
        return Served(
            path=path,
            group=name,
            provider=provider,
            model=model,
            params=params,
            info=info,
            id=deployment_id,
            problems=tuple(problems),
        )

    def _model(self, kind: type[M], raw: Mapping[str, object], path: Path, problems: list[Fault]) -> tuple[M, dict[str, object]]:
        """Check a section; faults of supplied values go to ``problems``, all others are told; it does without their keys."""
        data, unset = self.env.resolve(dict(raw), path)
        assert isinstance(data, dict)  # a mapping stays one; for the type checker
        checked, faults = validate(kind, data, path, ignore=[fault.path for fault in unset])
        problems.extend([*unset, *(fault for fault in faults if fault.supplied)])
        tell(self.report, [fault for fault in faults if not fault.supplied])
        if checked is None or unset:
            checked, data = salvage(kind, data, [*unset, *faults], path)
        return checked, data

    def _fill_key(self, provider: str, params: Params, raw_key: object, path: Path, problems: list[Fault]) -> Params:
        """Take the provider's usual variable when the file names no key."""
        kind = providers.PROVIDERS[provider]
        has_token = provider == "azure" and any(getattr(params, key) for key in _TOKENS)
        told = any(fault.path[: len(path)] == path and fault.path[-1] in ("api_key", *_TOKENS) for fault in problems)
        if params.api_key is not None and _VARIABLE_NAME.fullmatch(params.api_key) and raw_key == params.api_key:
            expected = "os.environ/NAME to read a variable"
            self.report.warn((*path, "api_key"), "a literal key that looks like a variable's name", expected)
        if params.api_key is not None or has_token or told:
            return params
        for variable in kind.key_variables:
            value = self.env.get(variable)
            if value is None:
                continue
            try:
                return params.model_copy(update={"api_key": str(Credential().parse(value))})
            except Unfit as exc:
                problems.append(Fault(path=(*path, "api_key"), found=describe(value, path), expected=exc.expected, supplied=True))
                return params
        if kind.key_required:
            variables = " or ".join(kind.key_variables)
            problems.append(
                Fault(path=(*path, "api_key"), found="no key", expected=f"api_key, or a value for {variables}", supplied=True)
            )
        return params

    def _absolute(self, params: Params, data: Mapping[str, object], path: Path, problems: list[Fault]) -> Params:
        """Make file names absolute, and note files that cannot be read."""
        found: dict[str, object] = {}
        for key in _FILES:
            name = getattr(params, key)
            if name is None:
                continue
            file = os.path.join(self.folder, name)
            found[key] = file
            if not os.path.isfile(file) or not os.access(file, os.R_OK):
                why = "cannot be read" if os.path.exists(file) else "does not exist"
                found_text = f"{describe(data.get(key), (key,))} for a file that {why}"
                problems.append(Fault(path=(*path, key), found=found_text, expected="a readable file", supplied=True))
        return params.model_copy(update=found)

    def _made_up_id(self, identity: tuple[object, ...]) -> str:
        """Build a stable id: readable words, and a hash that keeps equal words apart. It holds no address.

        The key and the base go in as written, so that every replica gets the same id whatever its environment holds.
        """
        text = json.dumps(identity, ensure_ascii=True, default=str)
        ordinal = self.seen[text] = self.seen.get(text, -1) + 1
        digest = hashlib.sha256(f"{text}#{ordinal}".encode()).hexdigest()[:6]
        words = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(str(part) for part in identity[:3])).strip("-")
        return f"{words[:121]}-{digest}"


# --- checks that look at several keys ------------------------------------------------------------


def _split(spelt: str, custom_provider: object) -> tuple[str, str]:
    """Return provider and model; the provider is empty when nothing names one."""
    if isinstance(custom_provider, str) and custom_provider:
        return custom_provider, spelt.removeprefix(f"{custom_provider}/")
    provider, slash, model = spelt.partition("/")
    if slash:
        return provider, model
    # LiteLLM knows OpenAI's models without a prefix.
    return ("openai", spelt) if spelt.startswith("gpt-") else ("", spelt)


def _without_aliases(params: Params, path: Path, report: Report) -> Params:
    """Fold LiteLLM's second names into the first."""
    update: dict[str, object] = {}
    for second, first in (("base_url", "api_base"), ("max_parallel_requests", "max_sessions")):
        value = getattr(params, second)
        if value is None:
            continue
        if getattr(params, first) is not None:
            report.error((*path, second), f"{second} beside {first}", "one of the two: they mean the same")
            continue
        update[first] = value
    return params.model_copy(update=update)


def _check_base(provider: str, params: Params, data: Mapping[str, object], path: Path, problems: Iterable[Fault]) -> list[Fault]:
    key = "base_url" if params.base_url is not None else "api_base"
    supplied = isinstance(data.get(key), FromEnvironment)
    if params.api_base is None:
        if providers.PROVIDERS[provider].default_api_base is not None or any(fault.path[-1] == key for fault in problems):
            return []
        return [
            Fault(path=(*path, "api_base"), found="nothing", expected=f"the server's URL, which the provider {provider} needs")
        ]
    problem = api_base_problem(params.api_base.strip())
    if problem is None:
        return []
    found, _, expected = problem.removeprefix("found ").partition(", expected ")
    return [Fault(path=(*path, key), found=found, expected=expected, supplied=supplied)]


def _check_params(provider: str, params: Params, path: Path, report: Report) -> list[Fault]:
    faults: list[Fault] = []
    for name in params.extra_headers or ():
        problem = header_name_problem(name)
        if problem is not None:
            found, _, expected = problem.removeprefix("found ").partition(", expected ")
            faults.append(Fault(path=(*path, "extra_headers", name), found=found, expected=expected))
    tokens = [key for key in _TOKENS if getattr(params, key)]
    if len(tokens) > 1:
        faults.append(
            Fault(path=(*path, tokens[1]), found=f"{tokens[1]} beside {tokens[0]}", expected="one source of the Entra token")
        )
    if params.azure_ad_token_command == []:
        faults.append(
            Fault(path=(*path, "azure_ad_token_command"), found="an empty list", expected="a program and its arguments")
        )
    if params.client_key is not None and params.client_cert is None:
        faults.append(Fault(path=(*path, "client_key"), found="client_key without client_cert", expected="both"))
    if params.health_check is not None and params.health_check.interval_s is None and not report.told_at((*path, "health_check")):
        faults.append(Fault(path=(*path, "health_check"), found="no interval_s", expected="seconds between probes"))
    for owner, keys in (("azure", _AZURE_ONLY), ("openai", _OPENAI_ONLY)):
        for key in keys if provider != owner else ():
            if getattr(params, key) is not None:
                report.warn((*path, key), f"{key} with the provider {provider}", f"it only with {owner}; it has no effect")
    if provider == "azure":
        faults.extend(_check_azure(params, path, report))
    if provider == "azure" and params.azure_ad_token is not None:
        report.warn(
            (*path, "azure_ad_token"),
            "an Entra token, which expires within the hour",
            "azure_ad_token_file or azure_ad_token_command",
        )
    return faults


def _azure_form(params: Params) -> tuple[str, str | None]:
    """Return Azure's protocol and the version it is dialled with (none for GA)."""
    dated = params.api_version is not None and _DATED.fullmatch(params.api_version) is not None
    protocol = params.realtime_protocol or ("preview" if dated else "ga")
    return protocol, params.api_version if protocol == "preview" else None


def _check_azure(params: Params, path: Path, report: Report) -> list[Fault]:
    protocol, version = _azure_form(params)
    if params.realtime_protocol is None and protocol == "preview":
        report.warn(
            (*path, "api_version"),
            "a dated api_version without realtime_protocol, which means Azure's preview protocol",
            "realtime_protocol: GA, or realtime_protocol: beta if the preview is meant",
            "the preview speaks the beta's event names and is deprecated",
        )
    in_query = "api-version" in (params.extra_query or {}) or "api-version=" in (params.api_base or "")
    if protocol == "preview" and version is None and not in_query:
        return [
            Fault(
                path=(*path, "api_version"),
                found="nothing",
                expected="a version such as 2025-04-01-preview for realtime_protocol beta",
            )
        ]
    return []


def _check_ids(served: list[Served], report: Report) -> None:
    first: dict[str, Served] = {}
    for entry in served:
        known = first.setdefault(entry.id, entry)
        if known is not entry:
            place: Path = (*entry.path, "model_info", "id")
            line = report.document.line((*known.path, "model_info", "id"))
            report.error(place, f"the id {quoted(entry.id)} again (first on line {line})", "an id that only one deployment has")


def _default(key: str, value: T | None = None) -> Any:
    return _DEFAULTS[key] if value is None else value


def _secret(value: str | None) -> Secret | None:
    return None if value is None else Secret(value)


def _secrets(values: Mapping[str, str] | None) -> Mapping[str, Secret]:
    return MappingProxyType({name: Secret(value) for name, value in (values or {}).items()})


def _health_check(health: HealthCheck | None) -> HealthCheckSettings | None:
    if health is None or health.interval_s is None:
        return None
    return HealthCheckSettings(interval_s=health.interval_s, timeout_s=health.timeout_s or 5.0)
