"""Groups: their strategies, fallbacks and aliases, and the limits that all their sessions share."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

import strategies
from router.config.deployments import Entries, Served, build, pick
from router.config.litellm import LITELLM_STRATEGY_OPTIONS
from router.config.report import Report, describe, nearest, quoted
from router.config.rules import Unfit
from router.config.schema import Alias, Group, GroupKeys, LitellmSettings, RouterSettings
from router.config.sections import tell, validate
from router.config.settings import BreakerSettings, GroupSettings, RelaySettings, StrategySettings
from router.config.source import Path, printable
from router.providers.headers import header_name_problem, is_handshake_header
from strategies.base import is_shared

_ROUTER: Path = ("router_settings",)
# Client libraries give up after 10 s (websockets, openai, aiohttp).
_CLIENT_PATIENCE_S = 10.0
# Never travel upstream, whatever the configuration says: they are the client's credentials or belong to its own account.
_HEADERS_NEVER_FORWARDED = frozenset(
    """
    api-key authorization cookie cookie2 host ocp-apim-subscription-key openai-beta openai-organization openai-project origin
    proxy-authorization set-cookie x-api-key x-access-token x-amz-security-token x-auth-token x-goog-api-key
    """.split()
)
# Counts of one process in the midst of others are seldom what was meant. LiteLLM's name counts in Redis where there is one, and a
# group that names no strategy is given the same; whoever writes ``least-connections`` gets that.
_SHARED_LEAST = "shared-least-connections"
_LITELLM_LEAST = "least-busy"
# The router's own: it has consumed them, or sets them itself.
_QUERY_NEVER_FORWARDED = frozenset({"api-key", "api_key", "call_id", "deployment", "model"})
_RELAY: Mapping[str, Any] = {item.name: item.default for item in dataclasses.fields(RelaySettings)}
_BREAKER: Mapping[str, Any] = {item.name: item.default for item in dataclasses.fields(BreakerSettings)}
_GROUP: Mapping[str, Any] = {item.name: item.default for item in dataclasses.fields(GroupSettings)}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """The checked sections that shape groups.

    Attributes:
        router: ``router_settings``.
        groups: ``groups``, by name.
        litellm: ``litellm_settings``.
        shared: there are other processes with which this one shares what it counts.
    """

    router: RouterSettings
    groups: Mapping[str, Group]
    litellm: LitellmSettings
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Aliases:
    """Other names for groups.

    Attributes:
        names: alias → group.
        hidden: those that ``/v1/models`` leaves out.
        dropped: aliases of groups that are not served.
    """

    names: Mapping[str, str]
    hidden: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()


def build_groups(entries: Entries, sections: Sections, aliases: Aliases, report: Report) -> dict[str, GroupSettings]:
    """Return the groups by name, in the order of their first deployment."""
    fallbacks = _Fallbacks(entries, sections, aliases, report)
    resolver = _Strategies(report, shared=sections.shared)
    _check_layer(sections.router, _ROUTER, report)
    for name, group in sections.groups.items():
        _check_layer(group, ("groups", name), report)
        if name not in entries.groups:
            _unknown_group(("groups", name), name, entries, aliases, report, what="settings of the group")
    built: dict[str, GroupSettings] = {}
    for name, served in entries.groups.items():
        own = sections.groups.get(name, Group())
        built[name] = _build_group(name, served, own, sections, fallbacks.of(name), resolver, report)
    return built


def read_aliases(router: RouterSettings, entries: Entries, report: Report) -> Aliases:
    """Check ``model_group_alias``."""
    names: dict[str, str] = {}
    hidden: set[str] = set()
    dropped: set[str] = set()
    raw = router.model_group_alias or {}
    for alias, target in raw.items():
        path: Path = (*_ROUTER, "model_group_alias", alias)
        form, faults = validate(Alias, target if isinstance(target, dict) else {"model": target}, path)
        # A plain name has no key "model" in the file.
        tell(report, [dataclasses.replace(fault, path=path) if not isinstance(target, dict) else fault for fault in faults])
        if form is None:
            continue
        if form.model is None:
            report.error(path, "nothing" if target is None else "no model", "the name of a group")
        elif not alias.isprintable() or not 0 < len(alias.strip()) <= 128:
            report.error(path, f"the alias {quoted(alias)}", "1 to 128 printable characters")
        elif alias in entries.groups:
            report.error(
                path, "the name of a group as an alias", "a name that no group has", "rename the group or drop the alias"
            )
        elif form.model in entries.groups:
            names[alias] = form.model
            if form.hidden:
                hidden.add(alias)
        elif form.model in entries.skipped_groups:
            dropped.add(alias)
            report.warn(path, f"an alias of {quoted(form.model)}, which is not served", "a group that is served")
        elif form.model in raw:
            report.error(path, f"an alias of the alias {quoted(form.model)}", "the name of a group")
        else:
            hint = nearest(form.model, entries.groups)
            report.error(path, f"the unknown group {quoted(form.model)}", "a model_name of model_list", hint)
    return Aliases(names=names, hidden=frozenset(hidden), dropped=frozenset(dropped))


def find_group(name: str, path: Path, entries: Entries, aliases: Aliases, report: Report, *, what: str) -> str | None:
    """Return the group that ``name`` or the alias ``name`` stands for; tell the report when there is none.

    A group whose entries were all skipped is a warning, since a LiteLLM file names such groups everywhere.
    """
    target = aliases.names.get(name, name)
    if target in entries.groups:
        return target
    _unknown_group(path, name, entries, aliases, report, what=what)
    return None


def _unknown_group(path: Path, name: str, entries: Entries, aliases: Aliases, report: Report, *, what: str) -> None:
    shown = quoted(name)
    if name in entries.skipped_groups or name in aliases.dropped:
        report.warn(path, f"{what} {shown}, which is not served", "a group that is served", "it is left out")
        return
    hint = nearest(name, [*entries.groups, *aliases.names])
    report.error(path, f"{what} {shown}, which does not exist", "a model_name of model_list", hint)


# --- one group -----------------------------------------------------------------------------------


def _build_group(
    name: str,
    served: list[Served],
    own: Group,
    sections: Sections,
    fallbacks: tuple[str, ...],
    resolver: _Strategies,
    report: Report,
) -> GroupSettings:
    layers = (own, sections.router)
    litellm = sections.litellm

    def layered(key: str, default: T) -> T:
        return pick(key, layers, default)

    deployments = tuple(
        build(entry, position=position, layers=layers, request_timeout_s=litellm.request_timeout)
        for position, entry in enumerate(served)
    )
    relay = RelaySettings(**{key: layered(key, default) for key, default in _RELAY.items()})
    group = GroupSettings(
        name=name,
        deployments=deployments,
        strategy=resolver.resolve(name, own, sections.router),
        fallbacks=fallbacks,
        total_timeout_s=layered("total_timeout_s", _GROUP["total_timeout_s"]),
        max_attempts=layered("max_attempts", None),
        num_retries=layered("num_retries", litellm.num_retries),
        stagger_s=layered("stagger_s", _GROUP["stagger_s"]),
        forward_query=frozenset(layered("forward_query", [])),
        forward_headers=frozenset(header.lower() for header in layered("forward_headers", list[str]())),
        relay=relay,
        breaker=_breaker(layers),
    )
    _check_times(group, served, own, report)
    if all(entry.problems for entry in served):
        report.warn(served[0].path, f"no deployment of the group {quoted(name)} that is in service", "at least one")
    return group


def _breaker(layers: tuple[GroupKeys, ...]) -> BreakerSettings:
    allowed_fails = pick("allowed_fails", layers, _BREAKER["allowed_fails"])
    cooldown_s = pick("cooldown_time", layers, _BREAKER["cooldown_s"])
    return BreakerSettings(
        # LiteLLM's 0 means "cool down at once": for both keys that is the smallest value that ejects at all.
        allowed_fails=max(1, allowed_fails),
        cooldown_s=cooldown_s or 1.0,
        max_cooldown_s=pick("max_cooldown_s", layers, max(_BREAKER["max_cooldown_s"], cooldown_s)),
        jitter=pick("cooldown_jitter", layers, _BREAKER["jitter"]),
        authentication_cooldown_s=pick("authentication_cooldown_s", layers, _BREAKER["authentication_cooldown_s"]),
        slow_start_s=pick("slow_start_s", layers, _BREAKER["slow_start_s"]),
        early_close_s=pick("early_close_s", layers, _BREAKER["early_close_s"]),
    )


def _check_layer(layer: GroupKeys, path: Path, report: Report) -> None:
    """Checks that need no other section."""
    if layer.on_upstream_loss == "resume":
        report.warn((*path, "on_upstream_loss"), "resume, which has no effect in this version", "close")
    if layer.allowed_fails == 0:
        report.warn((*path, "allowed_fails"), "0, which is read as 1", "1 or more", "it counts the failures in a row that eject")
    if layer.cooldown_time == 0:
        report.warn((*path, "cooldown_time"), "0, which is read as 1 second", "a time above 0")
    if layer.health_check is not None and layer.health_check.interval_s is None and not report.told_at((*path, "health_check")):
        report.error((*path, "health_check"), "no interval_s", "seconds between probes")
    for index, header in enumerate(layer.forward_headers or ()):
        place = (*path, "forward_headers", index)
        problem = header_name_problem(header)
        if problem is not None:
            found, _, expected = problem.removeprefix("found ").partition(", expected ")
            report.error(place, found, expected)
        elif header.lower() in _HEADERS_NEVER_FORWARDED or is_handshake_header(header.lower()):
            report.error(place, f"the header {quoted(header)}", "a header that is neither a credential nor the router's business")
    for index, parameter in enumerate(layer.forward_query or ()):
        if parameter in _QUERY_NEVER_FORWARDED:
            found = f"the parameter {quoted(parameter)}, which the router reads or sets itself"
            report.error((*path, "forward_query", index), found, "another parameter")


def _check_times(group: GroupSettings, served: list[Served], own: Group, report: Report) -> None:
    """Checks of times against each other; told where the group sets one of them, else in ``router_settings``."""

    def place(*keys: str) -> Path:
        key = next((key for key in keys if key in own.model_fields_set), None)
        return ("groups", group.name, key) if key is not None else (*_ROUTER, keys[0])

    total, relay = group.total_timeout_s, group.relay
    if relay.ping_timeout_s <= relay.ping_interval_s:
        report.error(
            place("ping_timeout_s", "ping_interval_s"),
            f"ping_timeout_s {relay.ping_timeout_s:g} with ping_interval_s {relay.ping_interval_s:g}",
            "a timeout longer than the interval",
            "every quiet session would be closed",
        )
    if total > _CLIENT_PATIENCE_S:
        report.warn(
            place("total_timeout_s"), f"{total:g} seconds", f"at most {_CLIENT_PATIENCE_S:g}", "client libraries give up by then"
        )
    if group.stagger_s >= total:
        report.warn(
            place("stagger_s", "total_timeout_s"),
            f"{group.stagger_s:g} seconds with a total of {total:g}",
            "less than total_timeout_s",
        )
    for deployment, entry in zip(group.deployments, served, strict=True):
        if deployment.connect_timeout_s >= total:
            where: Path = (*entry.path, "litellm_params", "connect_timeout_s")
            key_set = "connect_timeout_s" in entry.params.model_fields_set
            report.warn(
                where if key_set else place("connect_timeout_s", "total_timeout_s"),
                f"{deployment.connect_timeout_s:g} seconds with a total of {total:g}",
                "less than total_timeout_s",
                "a deployment that does not answer uses up the session's time",
            )
            return


# --- fallbacks -----------------------------------------------------------------------------------


class _Fallbacks:
    """Who takes over for whom: ``groups`` win over ``router_settings``, these over ``litellm_settings``, all over the default."""

    def __init__(self, entries: Entries, sections: Sections, aliases: Aliases, report: Report) -> None:
        self._entries = entries
        self._sections = sections
        self._aliases = aliases
        self._report = report
        self._default: tuple[str, ...] = ()
        self._by_group: dict[str, tuple[str, ...]] = {}
        for layer, path in ((sections.litellm, ("litellm_settings",)), (sections.router, _ROUTER)):
            self._read(layer.fallbacks or [], (*path, "fallbacks"))
            if layer.default_fallbacks is not None:
                self._default = self._targets(layer.default_fallbacks, (*path, "default_fallbacks"), owner=None)

    def of(self, group: str) -> tuple[str, ...]:
        """Return the fallback groups of ``group``, in turn."""
        own = self._sections.groups.get(group)
        if own is not None and own.fallbacks is not None:
            return self._targets(own.fallbacks, ("groups", group, "fallbacks"), owner=group)
        if group in self._by_group:
            return self._by_group[group]
        # A default list may name any group, this one too.
        return tuple(name for name in self._default if name != group)

    def _read(self, fallbacks: list[dict[str, list[Any]]], path: Path) -> None:
        for index, mapping in enumerate(fallbacks):
            for name, targets in mapping.items():
                place = (*path, index, name)
                if name == "*":
                    self._default = self._targets(targets, place, owner=None)
                    continue
                group = find_group(name, place, self._entries, self._aliases, self._report, what="fallbacks of the group")
                if group is not None:
                    self._by_group[group] = self._targets(targets, place, owner=group)

    def _targets(self, names: list[Any], path: Path, *, owner: str | None) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for index, name in enumerate(names):
            place = (*path, index)
            if isinstance(name, dict):
                self._report.warn(place, "a fallback with parameters of its own, which is left out", "the name of a group")
                continue
            if not isinstance(name, str):
                self._report.error(place, describe(name, place), "the name of a group")
                continue
            group = find_group(name, place, self._entries, self._aliases, self._report, what="a fallback to the group")
            if group is None:
                continue
            if group == owner:
                self._report.warn(place, "a group as its own fallback, which is left out", "another group")
                continue
            found[group] = None
        return tuple(found)


# --- strategies ----------------------------------------------------------------------------------


class _Strategies:
    """Resolves names to classes and options, and tells the faults of one place once."""

    def __init__(self, report: Report, *, shared: bool) -> None:
        self._report = report
        self._shared = shared
        self._default = _SHARED_LEAST if shared else strategies.DEFAULT
        self._known: dict[Path, StrategySettings] = {}

    def resolve(self, group: str, own: Group, router: RouterSettings) -> StrategySettings:
        """Return the strategy of a group. After an error it is the default one, so that the checks can go on."""
        path: Path = ("groups", group)
        name, raw, name_path, args_path = own.routing_strategy, own.routing_strategy_args, path, path
        if name is None:
            name, name_path = router.routing_strategy or self._default, _ROUTER
        # Options belong to the strategy beside which they stand; a group that names another one does not inherit them.
        if raw is None and (own.routing_strategy is None or own.routing_strategy == router.routing_strategy):
            raw, args_path = router.routing_strategy_args, _ROUTER
        key = (*name_path, "|", *args_path)
        if key not in self._known:
            self._known[key] = self._resolve(
                name, raw or {}, (*name_path, "routing_strategy"), (*args_path, "routing_strategy_args")
            )
        return self._known[key]

    def _resolve(self, name: str, raw: Mapping[str, object], path: Path, args_path: Path) -> StrategySettings:
        report = self._report
        default = _with_defaults(self._default)
        meant = _SHARED_LEAST if name == _LITELLM_LEAST and self._shared else name
        try:
            cls = strategies.get(meant)
        except strategies.StrategyNotAvailable:
            report.warn(
                path,
                f"{quoted(name)}, which this version does not have",
                "another strategy",
                f"{self._default} is used",
            )
            return default
        except strategies.UnknownStrategy as exc:
            hint = f"did you mean {exc.nearest[0]!r}?" if exc.nearest else ""
            report.error(path, f"the unknown strategy {quoted(name)}", f"one of {', '.join(exc.known)}, or module:Class", hint)
            return default
        except strategies.InvalidStrategy as exc:
            report.error(path, f"{quoted(name)}, which cannot be used", "a strategy", printable(exc.reason, 200))
            return default
        canonical = strategies.canonical_name(meant)
        if is_shared(cls) and not self._shared:
            plain = canonical.removeprefix("shared-")
            hint = f"{plain!r} goes by the counts of this process alone" if plain in strategies.known_names() else ""
            expected = "router_settings.redis, or general_settings.workers above 1"
            report.error(path, f"{quoted(name)} without redis or workers", expected, hint)
            return default
        options = dict(raw)
        if canonical != name:
            for key in sorted(LITELLM_STRATEGY_OPTIONS & options.keys()):
                del options[key]
                report.warn(
                    (*args_path, key), f"an option of LiteLLM's {name}", f"an option of {canonical}", "it has no effect here"
                )
        parsed = self._options(strategies.options_of(cls), options, args_path)
        return default if parsed is None else StrategySettings(name=canonical, cls=cls, options=parsed)

    def _options(self, kind: type[Any], raw: Mapping[str, object], path: Path) -> object | None:
        """Build a strategy's options. ``None``: faults were told."""
        fields = {item.name for item in dataclasses.fields(kind) if item.init}
        hints = _hints(kind)
        errors_before = len(self._report.errors)
        values: dict[str, object] = {}
        for key, value in raw.items():
            place = (*path, key)
            if key not in fields:
                self._report.unknown_key(place, fields)
                continue
            try:
                values[key] = _parse(hints.get(key, Any), value)
            except Unfit as exc:
                self._report.error(place, describe(value, place), exc.expected, exc.hint)
        if len(self._report.errors) > errors_before:
            return None
        try:
            options: object = kind(**values)
        # The class may be a third party's, and its checks may raise anything.
        except Exception as exc:
            self._refused(str(exc), values, path)
            return None
        return options

    def _refused(self, message: str, values: Mapping[str, object], path: Path) -> None:
        match = re.fullmatch(r"(\w+): found (.*), expected (.*)", message, re.DOTALL)
        if match is not None:
            place = (*path, match[1]) if match[1] in values else path
            self._report.error(place, printable(match[2]), printable(match[3], 200))
            return
        self._report.error(path, "options that the strategy refuses", printable(message, 200) or "other options")


def _with_defaults(name: str) -> StrategySettings:
    cls = strategies.get(name)
    return StrategySettings(name=name, cls=cls, options=strategies.options_of(cls)())


def _hints(kind: type[Any]) -> Mapping[str, Any]:
    try:
        return get_type_hints(kind)
    # A third party's annotation may name what exists for type checkers only; its values are then taken as they are.
    except Exception:
        return {}


def _parse(hint: Any, value: object) -> object:
    """Read an option as its annotation says, as strictly as JSON: no text for numbers, no booleans for integers.

    Raises:
        Unfit: it does not fit.
    """
    if not _is_ordinary(value):
        raise Unfit("finite numbers of ordinary size")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except PydanticUserError:
        return value
    try:
        parsed: object = adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as exc:
        messages: Iterable[str] = dict.fromkeys(error["msg"] for error in exc.errors(include_url=False, include_input=False))
        raise Unfit("; ".join(messages).replace("Input should be ", "").replace("a valid ", "a ")) from None
    return parsed


def _is_ordinary(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_ordinary(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_ordinary(item) for item in value)
    return not isinstance(value, int | float) or (math.isfinite(value) if isinstance(value, float) else abs(value) < 10**18)
