"""Groups: layers, strategies, fallbacks, aliases."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

import strategies
from router.config import GroupSettings, loader
from strategies import affinity, fastest, least_connections
from tests.unit.config.helpers import ONE, deployments, loaded, problem, problems

TWO = ONE + deployments("model: openai/gpt-realtime, api_key: k", group="other").removeprefix("model_list:\n")
CHAT = "  - {model_name: chat, litellm_params: {model: openai/gpt-4o}}\n"


def group(text: str, name: str = "voice") -> GroupSettings:
    """Load and return one group."""
    return loaded(text).settings.groups[name]


# --- layers --------------------------------------------------------------------------------------


def test_without_settings_a_group_has_the_defaults() -> None:
    """They are written down once, in the settings."""
    built = group(ONE)
    assert built == GroupSettings(name="voice", deployments=built.deployments, strategy=built.strategy)
    assert built.strategy.name == "least-connections"
    assert built.strategy.cls is least_connections.LeastConnections


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("total_timeout_s", 5, lambda built: built.total_timeout_s),
        ("stagger_s", 1, lambda built: built.stagger_s),
        ("max_attempts", 3, lambda built: built.max_attempts),
        ("num_retries", 0, lambda built: built.num_retries),
        ("allowed_fails", 7, lambda built: built.breaker.allowed_fails),
        ("cooldown_time", 60, lambda built: built.breaker.cooldown_s),
        ("max_cooldown_s", 90, lambda built: built.breaker.max_cooldown_s),
        ("cooldown_jitter", 0.5, lambda built: built.breaker.jitter),
        ("authentication_cooldown_s", 9, lambda built: built.breaker.authentication_cooldown_s),
        ("slow_start_s", 0, lambda built: built.breaker.slow_start_s),
        ("early_close_s", 0, lambda built: built.breaker.early_close_s),
        ("max_message_bytes", 1024, lambda built: built.relay.max_message_bytes),
        ("ping_interval_s", 5, lambda built: built.relay.ping_interval_s),
        ("ping_timeout_s", 50, lambda built: built.relay.ping_timeout_s),
        ("stall_timeout_s", 9, lambda built: built.relay.stall_timeout_s),
        ("idle_timeout_s", 9, lambda built: built.relay.idle_timeout_s),
        ("max_session_s", 9, lambda built: built.relay.max_session_s),
        ("connect_timeout_s", 1, lambda built: built.deployments[0].connect_timeout_s),
        ("ready_timeout_s", 1, lambda built: built.deployments[0].ready_timeout_s),
        ("ready_grace_s", 2, lambda built: built.deployments[0].ready_grace_s),
        ("timeout", 2, lambda built: built.deployments[0].timeout_s),
    ],
)
def test_a_setting_comes_from_the_group_else_from_router_settings(key: str, value: float, read: Any) -> None:
    """Each key works in both places, the inner one wins, and other groups keep the outer value."""
    default = read(group(TWO))
    assert default != value
    assert read(group(TWO + f"router_settings: {{{key}: {value}}}")) == value
    text = TWO + f"router_settings: {{{key}: {value}}}\ngroups: {{other: {{{key}: {value + 1 if value > 1 else 0.75}}}}}"
    if key in ("num_retries", "cooldown_jitter", "slow_start_s", "early_close_s") or value > 1:
        text = text.replace("0.75", "1" if key == "num_retries" else "0.75")
        assert read(group(text)) == value
        assert read(group(text, "other")) not in (value, default)


def test_words_and_lists_come_from_the_layers_too() -> None:
    """As the numbers do."""
    text = TWO + (
        "router_settings: {ready: auto, forward_query: [a], forward_headers: [X-A], health_check: {interval_s: 9}}\n"
        "groups: {other: {ready: handshake, forward_query: [], health_check: null}}\n"
    )
    outer, inner = group(text), group(text, "other")
    assert (outer.deployments[0].ready, inner.deployments[0].ready) == ("auto", "handshake")
    assert (outer.forward_query, inner.forward_query) == (frozenset({"a"}), frozenset())
    assert outer.forward_headers == inner.forward_headers == frozenset({"x-a"})
    assert outer.deployments[0].health_check is not None and inner.deployments[0].health_check is None


def test_nothing_switches_off_what_an_outer_layer_switched_on() -> None:
    """For a limit that may be off, an empty key in a group is a statement; for any other it is no key."""
    text = TWO + "router_settings: {idle_timeout_s: 9, stagger_s: 1}\ngroups: {other: {idle_timeout_s: , stagger_s: }}"
    assert group(text).relay.idle_timeout_s == 9
    assert group(text, "other").relay.idle_timeout_s is None
    assert group(text, "other").stagger_s == 1


def test_litellm_settings_come_last() -> None:
    """``router_settings`` win over them, as in LiteLLM."""
    litellm = "litellm_settings: {num_retries: 2, request_timeout: 4, default_fallbacks: [other]}\n"
    built = group(TWO + litellm)
    assert (built.num_retries, built.deployments[0].timeout_s, built.fallbacks) == (2, 4.0, ("other",))
    built = group(TWO + litellm + "router_settings: {num_retries: 1, timeout: 3, default_fallbacks: []}")
    assert (built.num_retries, built.deployments[0].timeout_s, built.fallbacks) == (1, 3.0, ())


def test_litellms_zeros_are_read_as_the_least_that_works() -> None:
    """A LiteLLM file may say 0 for "at once"."""
    result = loaded(ONE + "router_settings: {allowed_fails: 0, cooldown_time: 0}")
    breaker = result.settings.groups["voice"].breaker
    assert (breaker.allowed_fails, breaker.cooldown_s) == (1, 1.0)
    assert len(result.warnings) == 2


def test_a_long_cooldown_is_not_cut_by_the_default_cap() -> None:
    """Who asks for an hour gets an hour."""
    assert group(ONE + "router_settings: {cooldown_time: 3600}").breaker.max_cooldown_s == 3600


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("total_timeout_s: 20", "20 seconds"),
        ("stagger_s: 8", "8 seconds with a total of 8"),
        ("connect_timeout_s: 9", "9 seconds with a total of 8"),
        ("on_upstream_loss: resume", "resume, which has no effect in this version"),
    ],
)
def test_times_that_defeat_each_other_warn(settings: str, found: str) -> None:
    """They are legal, and seldom what was meant."""
    (warning,) = loaded(ONE + f"router_settings: {{{settings}}}").warnings
    assert warning.found == found and warning.path == f"router_settings.{settings.partition(':')[0]}"


def test_a_ping_timeout_within_the_interval_is_an_error() -> None:
    """It would end every session that is quiet, and is told where it is set."""
    assert problem(ONE + "groups: {voice: {ping_timeout_s: 20}}").path == "groups.voice.ping_timeout_s"
    assert problem(ONE + "router_settings: {ping_interval_s: 45}").path == "router_settings.ping_timeout_s"


@pytest.mark.parametrize(
    "setting",
    [
        "forward_headers: [Authorization]",
        "forward_headers: [a b]",
        "forward_headers: [Cookie]",
        "forward_headers: [Upgrade]",
        "forward_query: [model]",
    ],
)
def test_what_must_not_travel_upstream_cannot_be_listed(setting: str) -> None:
    """The client's key is for the router."""
    assert problem(ONE + f"router_settings: {{{setting}}}").path.startswith("router_settings.forward_")


def test_settings_of_an_unknown_group_are_an_error() -> None:
    """With the nearest name; those of a skipped one are a warning."""
    assert problem(ONE + "groups: {vioce: {}}").hint == "did you mean 'voice'?"
    result = loaded(ONE + CHAT + "groups: {chat: {stagger_s: 1}}")
    assert any(warning.path == "groups.chat" for warning in result.warnings)


# --- strategies ----------------------------------------------------------------------------------


def test_a_strategy_is_resolved_with_its_options() -> None:
    """Class and options are ready for use."""
    strategy = group(
        ONE + "router_settings: {routing_strategy: affinity, routing_strategy_args: {by: query, name: user, load_factor: 2}}"
    ).strategy
    assert strategy.name == "affinity" and strategy.cls is affinity.Affinity
    assert strategy.options == affinity.Affinity.Options(by="query", name="user", load_factor=2.0)


def test_litellms_names_are_aliases() -> None:
    """With LiteLLM's own options of theirs left out."""
    result = loaded(
        ONE + "router_settings: {routing_strategy: latency-based-routing, routing_strategy_args: {ttl: 60, exploration: 0}}"
    )
    strategy = result.settings.groups["voice"].strategy
    assert (strategy.name, strategy.options) == ("fastest", fastest.Fastest.Options(exploration=0.0))
    assert [warning.path for warning in result.warnings] == ["router_settings.routing_strategy_args.ttl"]


@pytest.mark.parametrize(("more", "default"), [("", "least-connections"), (", redis_host: h", "shared-least-connections")])
def test_an_alias_without_its_strategy_warns_and_uses_the_default(more: str, default: str) -> None:
    """A LiteLLM file loads; its options are not looked at."""
    settings = f"routing_strategy: cost-based-routing, routing_strategy_args: {{rpm: 1}}{more}"
    result = loaded(ONE + f"router_settings: {{{settings}}}")
    assert result.settings.groups["voice"].strategy.name == default
    (warning,) = result.warnings
    assert warning.hint == f"{default} is used"


@pytest.mark.parametrize("name", ["usage", "usage-based-routing", "usage-based-routing-v2"])
@pytest.mark.parametrize("more", ["", ", redis_host: h"])
def test_litellms_names_for_usage(name: str, more: str) -> None:
    """With a server and without: it uses what it hears, and needs nobody."""
    args = "" if name == "usage" else ", routing_strategy_args: {ttl: 60}"
    result = loaded(ONE + f"router_settings: {{routing_strategy: {name}{args}{more}}}")
    assert result.settings.groups["voice"].strategy.name == "usage"
    assert len(result.warnings) == (name != "usage")


@pytest.mark.parametrize(
    ("settings", "path", "expected"),
    [
        ("routing_strategy: least-conections", "routing_strategy", "least-connections"),
        ("routing_strategy: no.such:Thing", "routing_strategy", "a strategy"),
        ("routing_strategy: builtins:int", "routing_strategy", "a strategy"),
        ("routing_strategy: p2c, routing_strategy_args: {cots: latency}", "routing_strategy_args.cots", "key"),
        ("routing_strategy: p2c, routing_strategy_args: {cost: money}", "routing_strategy_args.cost", "'latency'"),
        ("routing_strategy: affinity, routing_strategy_args: {load_factor: '2'}", "routing_strategy_args.load_factor", "number"),
        ("routing_strategy: affinity, routing_strategy_args: {load_factor: true}", "routing_strategy_args.load_factor", "number"),
        ("routing_strategy: affinity, routing_strategy_args: {load_factor: .nan}", "routing_strategy_args.load_factor", "finite"),
        (
            "routing_strategy: affinity, routing_strategy_args: {load_factor: 1" + "0" * 30 + "}",
            "routing_strategy_args.load_factor",
            "size",
        ),
        ("routing_strategy: affinity, routing_strategy_args: {load_factor: 0.5}", "routing_strategy_args.load_factor", "1"),
        ("routing_strategy: affinity, routing_strategy_args: {by: header}", "routing_strategy_args", "name"),
        ("routing_strategy_args: {by: header}", "routing_strategy_args.by", "key"),
        ("routing_strategy: 5", "routing_strategy", "name"),
        ("routing_strategy_args: []", "routing_strategy_args", "mapping"),
    ],
)
def test_a_wrong_strategy_or_option_is_an_error(settings: str, path: str, expected: str) -> None:
    """Told at start-up, at its place, once however many groups use it."""
    found = problem(TWO + f"router_settings: {{{settings}}}")
    assert found.path == f"router_settings.{path}" and expected in found.expected + found.hint


def test_options_belong_to_the_strategy_beside_them() -> None:
    """A group with another strategy does not inherit them, one with the same does."""
    text = TWO + "router_settings: {routing_strategy: p2c, routing_strategy_args: {cost: latency}}\n"
    assert group(text + "groups: {other: {routing_strategy: first}}", "other").strategy.name == "first"
    same = group(text + "groups: {other: {routing_strategy: p2c}}", "other").strategy
    assert same.options == group(text).strategy.options
    own = problem(text + "groups: {other: {routing_strategy_args: {cost: x}}}")
    assert own.path == "groups.other.routing_strategy_args.cost"


# Ways to say that there are other processes, of which each makes the same difference.
TOGETHER = [
    pytest.param("router_settings: {redis: 'redis://h'%s}\n", id="redis"),
    pytest.param("router_settings: {redis_host: h%s}\n", id="redis_host"),
    pytest.param("router_settings: {stagger_s: 1%s}\ngeneral_settings: {workers: 2}\n", id="workers"),
    pytest.param("router_settings: {stagger_s: 1%s}\ngeneral_settings: {workers: auto}\n", id="auto"),
]
ALONE = [
    pytest.param("router_settings: {stagger_s: 1%s}\n", id="nothing"),
    pytest.param("router_settings: {stagger_s: 1%s}\ngeneral_settings: {workers: 1}\n", id="one worker"),
]


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that can have workers, on a host with one CPU, wherever the tests run."""

    def one(process: int) -> set[int]:
        return {process}

    monkeypatch.setattr(loader, "_PLATFORM", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", one, raising=False)


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("settings", TOGETHER)
@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("", "shared-least-connections"),
        ("least-busy", "shared-least-connections"),
        ("shared-least-connections", "shared-least-connections"),
        ("redis-least-connections", "shared-least-connections"),
        ("shared-round-robin", "shared-round-robin"),
        ("least-connections", "least-connections"),
        ("round-robin", "round-robin"),
    ],
)
def test_strategies_where_there_are_other_processes(settings: str, strategy: str, name: str) -> None:
    """The default and LiteLLM's ``least-busy`` count all of them; a plain name that is written counts one."""
    text = TWO + settings % (f", routing_strategy: {strategy}" if strategy else "")
    result = loaded(text)
    assert {built.strategy.name for built in result.settings.groups.values()} == {name} and not result.warnings
    built = result.settings.groups["voice"].strategy
    assert built.cls is strategies.get(name) and isinstance(built.options, strategies.options_of(strategies.get(name)))
    inner = loaded(text + "groups: {other: {routing_strategy: least-busy}}").settings.groups
    assert (inner["voice"].strategy.name, inner["other"].strategy.name) == (name, "shared-least-connections")


@pytest.mark.parametrize("settings", ALONE)
@pytest.mark.parametrize("strategy", ["", "least-busy", "least-connections"])
def test_strategies_of_a_process_alone(settings: str, strategy: str) -> None:
    """There is nobody to hear of."""
    built = group(ONE + settings % (f", routing_strategy: {strategy}" if strategy else "")).strategy
    assert (built.name, built.cls) == ("least-connections", least_connections.LeastConnections)


@pytest.mark.parametrize("settings", ALONE)
@pytest.mark.parametrize(
    ("strategy", "plain"),
    [
        ("shared-least-connections", "'least-connections'"),
        ("redis-least-connections", "'least-connections'"),
        ("shared-round-robin", "'round-robin'"),
    ],
)
def test_a_shared_strategy_without_other_processes_is_an_error(settings: str, strategy: str, plain: str) -> None:
    """It would balance by what it never hears; told once, where it is written, with the strategy that needs nobody."""
    found = problem(TWO + settings % f", routing_strategy: {strategy}")
    assert (found.path, found.found) == ("router_settings.routing_strategy", f"'{strategy}' without redis or workers")
    assert "router_settings.redis" in found.expected and "general_settings.workers" in found.expected
    assert found.hint.startswith(plain)
    inner = problem(TWO + settings % "" + f"groups: {{other: {{routing_strategy: {strategy}}}}}")
    assert inner.path == "groups.other.routing_strategy"


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize(
    "settings",
    [
        "router_settings: {redis: nonsense%s}\n",
        "router_settings: {redis_host: os.environ/NOT_SET%s}\n",
        "router_settings: {redis: 'redis://h', redis_url: 'redis://h'%s}\n",
        "router_settings: {stagger_s: 1%s}\ngeneral_settings: {workers: many}\n",
    ],
)
def test_a_faulty_server_is_not_reported_as_none(settings: str) -> None:
    """Its own problem is enough."""
    assert "routing_strategy" not in problem(TWO + settings % ", routing_strategy: shared-round-robin").path


@pytest.mark.parametrize(("shared", "fits"), [(True, False), (False, True)])
def test_a_third_partys_class_may_need_other_processes(shared: bool, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so as the built-in ones do; no plain name is known for it."""

    class Mine(least_connections.LeastConnections):
        """Goes by what all processes hold, or says nothing of the kind."""

    Mine.shared = shared  # type: ignore[attr-defined]  # what a class body would say
    module = ModuleType("third_party_strategy")
    module.Mine = Mine  # type: ignore[attr-defined]  # a module made by hand
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = ONE + "router_settings: {routing_strategy: 'third_party_strategy:Mine'%s}"
    assert group(text % ", redis_host: h").strategy.cls is Mine
    if fits:
        assert group(text % "").strategy.cls is Mine
        return
    found = problem(text % "")
    assert found.found == "'third_party_strategy:Mine' without redis or workers" and not found.hint


def test_a_third_partys_class_and_its_complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    """``module:Class`` works, its option types are checked, and whatever its checks raise becomes a problem."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        zones: tuple[str, ...] = ()
        limit: int = 1
        unknown: NotHere = None  # type: ignore[name-defined]  # noqa: F821 - an annotation only a type checker can resolve

        def __post_init__(self) -> None:
            if self.limit == 13:
                raise RuntimeError("no thirteen")

    class Mine:
        def __init__(self, options: Options, *, rng: object) -> None:
            self.options = options

        def choose(self, candidates: Any, call: object) -> Any:
            return candidates[0]

    Mine.Options = Options  # type: ignore[attr-defined]  # a nested class could not see this function's names
    module = ModuleType("third_party_strategy")
    module.Mine = Mine  # type: ignore[attr-defined]  # a module made by hand
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = ONE + "router_settings: {routing_strategy: 'third_party_strategy:Mine', routing_strategy_args: {limit: %s}}"
    strategy = group(text % 5).strategy
    assert (strategy.name, strategy.cls, strategy.options) == ("third_party_strategy:Mine", Mine, Options(limit=5))
    assert problem(text % 13).expected == "no thirteen"


# --- fallbacks -----------------------------------------------------------------------------------


def test_fallbacks_in_litellms_form() -> None:
    """A list of mappings; a circle is fine."""
    text = TWO + "router_settings: {fallbacks: [{voice: [other]}, {other: [voice]}]}"
    assert (group(text).fallbacks, group(text, "other").fallbacks) == (("other",), ("voice",))


def test_the_innermost_fallbacks_win() -> None:
    """``groups`` over ``router_settings`` over ``litellm_settings`` over the default; an empty list is a statement."""
    text = TWO + deployments("model: xai/voice, api_key: k", group="third").removeprefix("model_list:\n")
    text += "litellm_settings: {fallbacks: [{voice: [third]}, {other: [third]}], default_fallbacks: [voice]}\n"
    assert group(text).fallbacks == ("third",)
    assert group(text, "third").fallbacks == ("voice",)
    assert group(text + "router_settings: {fallbacks: [{voice: [other]}]}").fallbacks == ("other",)
    assert group(text + "groups: {voice: {fallbacks: []}}").fallbacks == ()
    assert group(text + "groups: {voice: {fallbacks: [other, third, other]}}").fallbacks == ("other", "third")


def test_default_fallbacks_leave_out_the_group_itself() -> None:
    """One list may serve all groups; LiteLLM's ``'*'`` is another way to write it."""
    for text in ("router_settings: {default_fallbacks: [voice, other]}", "router_settings: {fallbacks: [{'*': [voice, other]}]}"):
        assert (group(TWO + text).fallbacks, group(TWO + text, "other").fallbacks) == (("other",), ("voice",))


def test_fallbacks_may_name_aliases() -> None:
    """Both ways of an alias lead to its group."""
    text = TWO + "router_settings: {model_group_alias: {v: voice, o: other}, fallbacks: [{v: [o]}]}"
    assert group(text).fallbacks == ("other",)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ("fallbacks: [{vioce: [other]}]", "router_settings.fallbacks[0].vioce"),
        ("fallbacks: [{voice: [othr]}]", "router_settings.fallbacks[0].voice[0]"),
        ("fallbacks: [{voice: [5]}]", "router_settings.fallbacks[0].voice[0]"),
        ("fallbacks: {voice: [other]}", "router_settings.fallbacks"),
        ("fallbacks: [voice]", "router_settings.fallbacks[0]"),
        ("fallbacks: [{voice: other}]", "router_settings.fallbacks[0].voice"),
        ("default_fallbacks: [othr]", "router_settings.default_fallbacks[0]"),
        ("default_fallbacks: [null]", "router_settings.default_fallbacks[0]"),
    ],
)
def test_fallbacks_to_nowhere_are_errors(settings: str, path: str) -> None:
    """A fallback that does not exist would be noticed on the worst day."""
    assert problem(TWO + f"router_settings: {{{settings}}}").path == path


def test_fallbacks_that_lead_nowhere_new_are_dropped_with_a_warning() -> None:
    """To itself, to a group that is not served, and to LiteLLM's form with parameters."""
    result = loaded(TWO + CHAT + "router_settings: {fallbacks: [{voice: [voice, chat, {model: x}, other]}, {chat: [voice]}]}")
    assert result.settings.groups["voice"].fallbacks == ("other",)
    assert len(result.warnings) == 5  # and the skipped entry


# --- aliases -------------------------------------------------------------------------------------


def test_aliases_in_both_forms() -> None:
    """A name, or a mapping that can hide it from the list of models."""
    settings = loaded(
        ONE + "router_settings: {model_group_alias: {a: voice, b: {model: voice, hidden: true}, c: {model: voice}}}"
    ).settings
    assert dict(settings.aliases) == {"a": "voice", "b": "voice", "c": "voice"}
    assert settings.hidden_aliases == {"b"}


@pytest.mark.parametrize(
    ("aliases", "path"),
    [
        ("{a: vioce}", "a"),
        ("{voice: other}", "voice"),
        ("{a: b, b: voice}", "a"),
        ("{a: 5}", "a"),
        ("{a: null}", "a"),
        ("{a: {}}", "a"),
        ("{a: {model: voice, hiden: true}}", "a.hiden"),
        ("{a: {model: voice, hidden: 1}}", "a.hidden"),
        ('{"": voice}', '[""]'),
        ("[voice]", ""),
    ],
)
def test_a_wrong_alias_is_an_error(aliases: str, path: str) -> None:
    """Told at its place."""
    (found,) = problems(TWO + f"router_settings: {{model_group_alias: {aliases}}}")
    assert found.path.removeprefix("router_settings.model_group_alias").lstrip(".") == path


def test_an_alias_of_a_skipped_group_is_dropped() -> None:
    """A LiteLLM file has aliases for its chat models as well, and fallbacks that use them."""
    result = loaded(ONE + CHAT + "router_settings: {model_group_alias: {gpt: chat}, default_fallbacks: [gpt]}")
    assert not result.settings.aliases and result.settings.groups["voice"].fallbacks == ()
    assert len(result.warnings) == 3
