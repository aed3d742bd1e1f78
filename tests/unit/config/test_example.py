"""``config.example.yaml`` names every key, loads as it is, and tells the true defaults."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.config import FleetSettings, GroupSettings, Settings, json_schema, load, load_text
from router.config.litellm import LATER_KEYS
from router.config.schema import NO_EFFECT
from router.fleet import scripts
from tests.helpers.tls import Authority
from tests.unit.config.helpers import ENVIRON, EXAMPLE

TEXT = EXAMPLE.read_text(encoding="utf-8")
# A line that starts with "#" and no single space holds a key that is switched off.
OFF = re.compile(r"^(?P<indent>[ ]*)#(?P<line>(?:[ ]{2,})?(?:- )?['\"*\w]+:(?:\s.*)?)$", re.MULTILINE)
# Of these pairs one excludes the other.
SECOND_NAMES = ("base_url", "max_parallel_requests", "azure_ad_token_file", "azure_ad_token_command")
# The ways to name a server of a fleet, and what goes with only one of them.
BY_URL, BY_OTHER_URL = ("redis",), ("redis_url",)
BY_HOST = ("redis_host", "redis_port", "redis_db", "redis_ssl")
BY_SENTINELS = ("redis_sentinel_username", "redis_sentinel_password")
FILES = re.compile(r"\bcerts/[\w.-]+")


def switched_on(*, defaults_only: bool = False, but: Iterable[str] = SECOND_NAMES) -> str:
    """The example with the keys on that are switched off, or only with those that show their default; but for some keys."""

    def switch(match: re.Match[str]) -> str:
        line = match["line"]
        key = line.strip().removeprefix("- ").partition(":")[0]
        if key in but:
            return match[0]
        if defaults_only and (line.endswith("e.g.") or line.startswith(" ")):
            return match[0]
        return match["indent"] + line

    return OFF.sub(switch, TEXT)


def keys_of_the_schema() -> set[str]:
    """Every key that the schema knows, but for LiteLLM's that have no effect."""
    schema = json_schema()
    later = frozenset[str]().union(*LATER_KEYS.values())
    sections: list[dict[str, Any]] = [schema, *schema["$defs"].values()]
    return {
        key
        for section in sections
        for key, value in section["properties"].items()
        if key in later or not (isinstance(value, dict) and value.get(NO_EFFECT))
    }


def keys_of_the_example() -> Iterator[str]:
    """Every key that stands in the example, switched on or off, but for names that the user chooses."""
    import yaml

    def walk(value: object, parent: str) -> Iterator[str]:
        if isinstance(value, list):
            for item in value:
                yield from walk(item, parent)
        if not isinstance(value, dict):
            return
        for key, item in value.items():
            if parent not in CHOSEN:
                yield key
            if key in OPAQUE or (parent == "fallbacks"):
                continue
            yield from walk(item, key)

    every = OFF.sub(lambda match: match["indent"] + match["line"], TEXT)
    yield from walk(yaml.load(every, Loader=yaml.BaseLoader), "")


# Below these, keys are names of groups, headers, parameters or variables.
CHOSEN = {"groups", "model_group_alias", "fallbacks", "extra_headers", "extra_query", "environment_variables"}
# What is in these is not part of this version's schema.
OPAQUE = {"resume", "dialects", "routing_strategy_args"}


def test_the_example_loads_without_a_warning() -> None:
    """A new user's first file."""
    result = load(EXAMPLE, environ=ENVIRON)
    assert not result.warnings, [str(warning) for warning in result.warnings]
    assert list(result.settings.groups) == ["voice-agent", "voice-agent-azure", "voice-local"]
    assert result.settings.groups["voice-agent"].fallbacks == ("voice-agent-azure",)


def test_every_key_is_in_the_example_and_every_key_of_it_exists() -> None:
    """Nothing undocumented, nothing made up."""
    documented, known = set(keys_of_the_example()), keys_of_the_schema()
    assert known - documented == set(), "missing in config.example.yaml"
    assert documented - known == set(), "not in the schema"


@pytest.mark.parametrize(
    ("but", "url", "kind"),
    [
        pytest.param((*BY_OTHER_URL, *BY_HOST, *BY_SENTINELS), "", "single", id="redis"),
        pytest.param((*BY_URL, *BY_HOST, *BY_SENTINELS), "", "single", id="redis_url"),
        pytest.param((*BY_URL, *BY_OTHER_URL, *BY_SENTINELS), "", "single", id="redis_host"),
        pytest.param((*BY_OTHER_URL, *BY_HOST), "rediss+sentinel://h/main", "sentinel", id="sentinels"),
    ],
)
def test_the_example_loads_with_everything_switched_on(tmp_path: Path, but: tuple[str, ...], url: str, kind: str) -> None:
    """No key that it shows has a value that is refused; what then warns is known."""
    text = switched_on(but=(*SECOND_NAMES, *but))
    text = re.sub(r"^  redis: \S+", f"  redis: {url}", text, flags=re.MULTILINE) if url else text
    # The server's files need TLS, which by the host is off unless it is switched on.
    text = text.replace("redis_ssl: false", "redis_ssl: true")
    for name in FILES.findall(text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pair = Authority(tmp_path / "authority").issue()
    (tmp_path / "certs/server.pem").write_bytes(pair.certificate.read_bytes())
    (tmp_path / "certs/server.key").write_bytes(pair.key.read_bytes())
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    result = load(tmp_path / "config.yaml", environ=ENVIRON)
    deployments = [each for group in result.settings.groups.values() for each in group.deployments]
    assert [each.state for each in deployments] == ["ready"] * 4
    fleet = result.settings.fleet
    assert fleet is not None and (fleet.kind, fleet.tls, fleet.username) == (kind, True, "router")
    assert (fleet.prefix, fleet.on_loss) == (FleetSettings().prefix, FleetSettings().on_loss)
    for warning in result.warnings:
        place, found = warning.path, warning.found
        assert "no effect in this version" in found or "does not exist" in found or "azure_ad_token" in place, str(warning)


def test_defaults_are_what_the_example_says() -> None:
    """A key that is switched on with its default changes nothing."""

    def comparable(settings: Settings) -> tuple[object, ...]:
        # Ids hash what is written, so a written default gives another id.
        groups = tuple(
            dataclasses.replace(
                group, deployments=tuple(dataclasses.replace(each, id="", api_base=None) for each in group.deployments)
            )
            for group in settings.groups.values()
        )
        return settings.server, groups, settings.fleet

    text = switched_on(defaults_only=True)
    changed = len(text.splitlines()) and sum(a != b for a, b in zip(text.splitlines(), TEXT.splitlines(), strict=True))
    assert changed >= 40
    assert comparable(load_text(text, environ=ENVIRON).settings) == comparable(load_text(TEXT, environ=ENVIRON).settings)


def test_every_plain_default_is_shown_in_the_example() -> None:
    """A key of a group whose default is a value is switched off with that value, not with some other."""
    shown = {match["line"].partition(":")[0] for match in OFF.finditer(TEXT) if not match["line"].endswith("e.g.")}
    spelt = {"cooldown_s": "cooldown_time", "jitter": "cooldown_jitter"}
    group = GroupSettings.__dataclass_fields__
    for owner in (group["relay"].default_factory, group["breaker"].default_factory):
        assert callable(owner)
        for name, value in dataclasses.asdict(owner()).items():
            assert value is None or spelt.get(name, name) in shown, name


def test_the_example_names_the_commands_that_the_server_must_allow() -> None:
    """An operator writes the ACL from it, and a command that is missing there would keep the fleet apart."""
    used = set(re.findall(r"redis\.call\('([A-Z]+)'", Path(scripts.__file__).read_text(encoding="utf-8")))
    assert len(used) > 5
    (told,) = re.findall(r"# (EVALSHA EVAL [A-Z ]+),", TEXT)
    assert used - set(told.split()) == set()


@pytest.mark.parametrize("word", ["unit", "default", "trap"])
def test_the_example_says_how_to_read_it(word: str) -> None:
    """Its head names what the comments tell."""
    assert word in TEXT.splitlines()[0].lower()
