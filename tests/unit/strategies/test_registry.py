"""Names: built-ins, LiteLLM's aliases, entry points of installed packages, and ``module:Class``."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

import strategies
from strategies import (
    ALIASES,
    DEFAULT,
    Call,
    InvalidStrategy,
    StrategyNotAvailable,
    UnknownStrategy,
    canonical_name,
    get,
    is_shared,
    known_names,
    options_of,
    promises_of,
    registry,
)
from strategies.base import C
from strategies.fastest import Fastest
from strategies.first import First
from strategies.least_connections import LeastConnections
from strategies.shared_least_connections import SharedLeastConnections
from strategies.testing import fleet, verify
from strategies.usage import Usage
from strategies.weighted_random import WeightedRandom

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "headroom-strategy"

BUILT_IN = (
    "affinity",
    "fastest",
    "first",
    "least-connections",
    "p2c",
    "round-robin",
    "shared-least-connections",
    "shared-round-robin",
    "usage",
    "weighted-random",
)
SHARED = {"shared-least-connections", "shared-round-robin"}


class Plain:
    """A strategy that did not register: what a third party writes."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """One option."""

        depth: int = 1

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self.options = options

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """The last one."""
        return candidates[-1]


class NoOptions:
    """Lacks Options."""

    def __init__(self, options: object, *, rng: random.Random) -> None: ...

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """The first one."""
        return candidates[0]


class MutableOptions(Plain):
    """Options that could change under a running group."""

    @dataclass
    class Options:
        """Not frozen."""


class NoChoose:
    """Lacks choose."""

    Options = Plain.Options

    def __init__(self, options: object, *, rng: random.Random) -> None: ...


class NoRng(Plain):
    """Would draw randomness from somewhere else."""

    def __init__(self, options: Plain.Options) -> None: ...


class ShortChoose(Plain):
    """Forgot the call."""

    def choose(self, candidates: Sequence[C]) -> C:  # type: ignore[override]  # wrong on purpose
        """The first one."""
        return candidates[0]


class AsyncChoose(Plain):
    """Wants to wait."""

    async def choose(self, candidates: Sequence[C], call: Call) -> C:  # type: ignore[override]  # wrong on purpose
        """The first one."""
        return candidates[0]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path, as a site-packages; what was imported from it is forgotten again."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def install(site: Path, distribution: str, entry_points: str) -> None:
    """Write the metadata that pip would write for a package with these entry points."""
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\n{entry_points}\n")
    importlib.invalidate_caches()


def test_the_built_ins_are_there() -> None:
    """Every algorithm has its name, and the default is one of them."""
    assert known_names() == BUILT_IN
    assert get(DEFAULT) is LeastConnections
    assert all(canonical_name(name) == name for name in BUILT_IN)


def test_litellms_names_lead_to_the_same_behaviour() -> None:
    """A file of LiteLLM's keeps its meaning."""
    assert get("simple-shuffle") is WeightedRandom
    assert get("least-busy") is LeastConnections
    assert get("latency-based-routing") is Fastest
    assert get("usage-based-routing") is get("usage-based-routing-v2") is Usage
    assert get("redis-least-connections") is SharedLeastConnections
    assert canonical_name("simple-shuffle") == "weighted-random"
    assert set(ALIASES) == {
        "simple-shuffle",
        "least-busy",
        "latency-based-routing",
        "usage-based-routing",
        "usage-based-routing-v2",
        "cost-based-routing",
        "redis-least-connections",
    }


@pytest.mark.parametrize(("alias", "stands_for"), [("cost-based-routing", "cost")])
def test_an_alias_without_a_strategy_is_told_apart(alias: str, stands_for: str) -> None:
    """The caller can warn by name and go on with the default; a mistyped name cannot be mistaken for this."""
    assert canonical_name(alias) == stands_for
    with pytest.raises(StrategyNotAvailable, match=rf"{alias}.*stands for {stands_for}, which is not part") as caught:
        get(alias)
    assert (caught.value.name, caught.value.canonical) == (alias, stands_for)
    with pytest.raises(UnknownStrategy) as unknown:
        get(stands_for)
    assert type(unknown.value) is UnknownStrategy


def test_a_planned_alias_works_once_a_package_provides_it(site: Path) -> None:
    """The alias follows the name, whoever implements it."""
    install(site, "cost-package", f"cost = {__name__}:Plain")
    assert get("cost-based-routing") is Plain
    assert "cost" in known_names()


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("least_connections", "least-connections"),
        ("Round Robin", "round-robin"),
        ("simple-shufle", "simple-shuffle"),
        ("fastests", "fastest"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(typed: str, nearest: str) -> None:
    """The error names what was found, everything that exists, and what was probably meant."""
    for lookup in (get, canonical_name):
        with pytest.raises(UnknownStrategy) as caught:
            lookup(typed)
        assert caught.value.nearest[0] == nearest
        assert caught.value.known == BUILT_IN
        assert repr(typed) in str(caught.value)
        assert f"did you mean {nearest}" in str(caught.value)
        assert all(name in str(caught.value) for name in BUILT_IN)


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\nb", ":", "a:", ":b", "a:b:c", "1a:b", "a b:c", "../x:y", "cost"])
def test_nonsense_is_unknown_and_kept_to_one_short_line(name: str) -> None:
    """Whatever stands in the file, the error is one line that fits a log, and nothing is imported."""
    with pytest.raises(UnknownStrategy) as caught:
        get(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_class_is_loaded_by_module_and_name() -> None:
    """``module:Class`` needs no registration, and the name is not resolved to anything else."""
    name = f"{__name__}:Plain"
    assert get(name) is Plain
    assert canonical_name(name) == name
    assert get(f"{__name__}:Nested.Inner") is Nested.Inner


class Nested:
    """A place for a strategy within a class."""

    class Inner(Plain):
        """Found by its qualified name."""


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("NoOptions", "found Options nothing in NoOptions, expected a dataclass"),
        ("MutableOptions", r"found a mutable dataclass MutableOptions\.Options, expected @dataclass\(frozen=True\)"),
        ("NoChoose", r"found no choose\(self, candidates, call\) in NoChoose"),
        ("NoRng", r"found no __init__\(self, options, \*, rng\) in NoRng"),
        ("ShortChoose", r"found no choose\(self, candidates, call\) in ShortChoose"),
        ("AsyncChoose", "found async choose in AsyncChoose, expected a plain function"),
        ("install", "found function 'install', expected a class"),
        ("ROOT", "expected a class"),
        ("Missing", "found AttributeError .*, expected .*:Missing to be importable"),
    ],
)
def test_what_is_not_a_strategy_is_refused_with_the_reason(attribute: str, reason: str) -> None:
    """The first thing that is missing is named, before any session depends on it."""
    with pytest.raises(InvalidStrategy, match=reason) as caught:
        get(f"{__name__}:{attribute}")
    assert caught.value.name == f"{__name__}:{attribute}"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError .*nowhere_to_be_found"),
        ("1/0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit"),
    ],
)
def test_a_module_that_fails_to_import_is_reported_with_its_own_error(site: Path, source: str, reason: str) -> None:
    """Whatever a foreign module does on import, the operator reads why, and the cause stays attached."""
    (site / "faulty_strategy.py").write_text(source)
    with pytest.raises(InvalidStrategy, match=f"found {reason}.*expected faulty_strategy:Thing to be importable") as caught:
        get("faulty_strategy:Thing")
    assert caught.value.__cause__ is not None


def test_an_interrupt_during_import_is_not_swallowed(site: Path) -> None:
    """Ctrl-C while a slow module loads ends the program."""
    (site / "interrupted_strategy.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        get("interrupted_strategy:Thing")


def test_an_entry_point_gives_a_name(site: Path) -> None:
    """An installed package's strategy is known by the name it claims, without its module being imported to list it."""
    (site / "from_a_package.py").write_text(f"from {__name__} import Plain as Packaged")
    install(site, "some-package", "packaged = from_a_package:Packaged [extra]")
    assert "packaged" in known_names()
    assert canonical_name("packaged") == "packaged"
    assert "from_a_package" not in sys.modules
    assert get("packaged") is Plain
    with pytest.raises(UnknownStrategy, match="did you mean packaged"):
        get("packagd")


def test_an_entry_point_cannot_replace_a_built_in(site: Path) -> None:
    """Installing a package never changes what an existing configuration does."""
    install(site, "greedy-package", f"first = {__name__}:Plain\nleast-busy = {__name__}:Plain")
    assert get("first") is First
    assert get("least-busy") is LeastConnections


def test_two_packages_that_claim_a_name_are_refused(site: Path) -> None:
    """Which one would win depends on the order of directories, so neither does; the same claim twice is no conflict."""
    install(site, "one-package", f"contested = {__name__}:Plain\nagreed = {__name__}:Plain")
    install(site, "other-package", f"contested = {__name__}:Another\nagreed = {__name__}:Plain")
    with pytest.raises(InvalidStrategy, match=r"found entry points .*:Another and .*:Plain, expected only one") as caught:
        get("contested")
    assert caught.value.name == "contested"
    assert get("agreed") is Plain


def test_an_entry_point_that_leads_nowhere_is_reported(site: Path) -> None:
    """A package that was half removed gives its name and the reason."""
    install(site, "half-package", "half = half_removed:Thing\nodd = half_removed")
    for name in ("half", "odd"):
        with pytest.raises(InvalidStrategy, match=f"'{name}': found ModuleNotFoundError"):
            get(name)


def test_the_table_of_built_ins_is_closed() -> None:
    """Nothing changes it after the import; the error says what to do instead."""
    with pytest.raises(RuntimeError, match=r"closed; use an entry point in the group realtime_router\.strategies"):
        registry.register("late")
    with pytest.raises(TypeError):
        ALIASES["mine"] = "first"  # type: ignore[index]  # that it cannot be written is what is tested
    assert "late" not in known_names()


def test_duplicates_and_malformed_names_are_refused() -> None:
    """A name stands for one class only, aliases included, and looks like a name."""
    table = registry.Registry(planned={"planned-alias": "planned"})
    table.register("one", aliases=("uno",))(Plain)
    for name, aliases in (
        ("one", ()),
        ("uno", ()),
        ("two", ("one",)),
        ("two", ("uno",)),
        ("two", ("two",)),
        ("planned-alias", ()),
    ):
        with pytest.raises(ValueError, match="twice, expected every name once"):
            table.register(name, aliases=aliases)
    for name in ("", "Two", "two_words", "two words", "-two", "a:b"):
        with pytest.raises(ValueError, match="expected lower-case words joined by dashes"):
            table.register(name)
    assert dict(table.classes) == {"one": Plain}
    assert table.get("uno") is Plain


def test_a_class_that_is_no_strategy_cannot_register() -> None:
    """The same check as for third parties, at import."""
    table = registry.Registry()
    with pytest.raises(InvalidStrategy, match="NoChoose"):
        table.register("broken")(NoChoose)  # type: ignore[type-var]  # wrong on purpose
    assert not table.classes


def test_promises_are_optional() -> None:
    """A class that says nothing promises nothing."""
    assert promises_of(Plain) == frozenset()
    assert promises_of(First) == frozenset()
    assert len(promises_of(LeastConnections)) == 2


def test_only_the_shared_ones_say_that_they_need_a_fleet() -> None:
    """A class that does not say works alone, and what is merely truthy says nothing."""
    assert {name for name in BUILT_IN if is_shared(get(name))} == SHARED
    assert not is_shared(Plain)
    assert not is_shared(type("Odd", (Plain,), {"shared": "no"}))


def test_the_package_needs_nothing_but_the_standard_library() -> None:
    """An interpreter without site-packages imports it; neither the router, nor the event loop, nor entry points come along."""
    code = (
        "import sys, strategies, strategies.testing;"
        "print([m for m in ('router','asyncio','aiohttp','importlib.metadata','difflib','pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", BUILT_IN)
def test_options_are_frozen_and_checkable_by_pydantic(name: str) -> None:
    """Defaults are valid, unknown options and wrong types are told, and an instance cannot change under a running group."""
    options = options_of(get(name))

    # The same fields; unknown ones are errors.
    strict = type("Strict", (options,), {"__pydantic_config__": ConfigDict(extra="forbid")})
    adapter: TypeAdapter[object] = TypeAdapter(strict)
    parsed = adapter.validate_python({})
    assert isinstance(parsed, options)
    with pytest.raises(ValidationError, match="Unexpected keyword argument"):
        adapter.validate_python({"no_such_option": 1})
    for field in options.__dataclass_fields__:
        with pytest.raises(ValidationError):
            adapter.validate_python({field: ["a list is no option"]})
        with pytest.raises(FrozenInstanceError):
            setattr(options(), field, None)


def test_the_worked_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strategy of the documentation loads from its directory, keeps the contract, and does what it says."""
    monkeypatch.syspath_prepend(EXAMPLE)
    cls = get("headroom:MostHeadroom")
    options = options_of(cls)
    verify(cls)
    verify(cls, options=options(places=5))
    with pytest.raises(ValueError, match="places: found 0, expected 1 or more"):
        options(places=0)
    big, small, unlimited = candidates = fleet(1, 1, 1)
    big.max_sessions, big.sessions = 100, 40
    small.max_sessions, small.sessions = 20, 5
    unlimited.sessions = 50
    assert cls(options(), rng=random.Random(1)).choose(candidates, Call(group="voice")) is big


def test_the_worked_example_has_the_entry_point_that_its_configuration_uses(site: Path) -> None:
    """Its pyproject, installed as pip would, gives the name that its config.yaml asks for."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = project["entry-points"][registry.ENTRY_POINT_GROUP]
    install(site, project["name"], "\n".join(f"{name} = {value}" for name, value in points.items()))
    (site / "headroom.py").write_text((EXAMPLE / "headroom.py").read_text())
    asked = yaml.safe_load((EXAMPLE / "config.yaml").read_text())["router_settings"]
    cls = get(asked["routing_strategy"])
    assert cls.__name__ == "MostHeadroom"
    assert options_of(cls)(**asked["routing_strategy_args"]).places == 50


def test_the_documentation_shows_the_example_as_it_is() -> None:
    """The code in docs/strategies.md is the file's: the same class body but for its docstrings."""
    shown = (ROOT / "docs" / "strategies.md").read_text().split("```python\n", 1)[1].split("```", 1)[0]
    source = (EXAMPLE / "headroom.py").read_text()
    for line in filter(None, shown.splitlines()):
        assert line.split("  #")[0].rstrip() in source.splitlines() or '"""' in line, line


def test_every_strategy_and_option_is_documented() -> None:
    """docs/strategies.md has a section for each name and a row for each of its options, and no other section."""
    text = (ROOT / "docs" / "strategies.md").read_text()
    for name in BUILT_IN:
        section = text.split(f"### `{name}`\n", 1)[1].split("\n#", 1)[0]
        for field in options_of(get(name)).__dataclass_fields__:
            assert f"| `{field}` |" in section, f"{name}: {field}"
    assert text.count("\n### `") == len(BUILT_IN)
    assert all(f"`{alias}`" in text for alias in ALIASES)


def test_the_public_names_are_there() -> None:
    """Everything in __all__ can be imported."""
    assert all(hasattr(strategies, name) for name in strategies.__all__)
