"""The sections as models, and their JSON Schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.config import json_schema, settings
from router.config.deployments import OFF_BY_NULL
from router.config.litellm import COUNTERPARTS, LATER_KEYS, LITELLM_KEYS, LITELLM_PROVIDERS
from router.config.schema import (
    NO_EFFECT,
    Entry,
    File,
    GeneralSettings,
    Group,
    GroupKeys,
    LitellmSettings,
    ModelInfo,
    Params,
    RouterSettings,
    Section,
)
from router.providers import PROVIDERS
from tests.unit.config.helpers import ENVIRON, ONE, loaded

MODELS: dict[str, type[Section]] = {
    "": File,
    "model_list[]": Entry,
    "litellm_params": Params,
    "router_settings": RouterSettings,
    "general_settings": GeneralSettings,
    "litellm_settings": LitellmSettings,
    "groups": Group,
}


@pytest.mark.parametrize("section", sorted(LITELLM_KEYS))
def test_no_key_has_both_an_effect_and_none(section: str) -> None:
    """A key that a model reads is not among those that are ignored."""
    ignored = LITELLM_KEYS[section] | LATER_KEYS.get(section, frozenset())
    assert not ignored & MODELS[section].model_fields.keys()
    assert not LITELLM_KEYS[section] & LATER_KEYS.get(section, frozenset())


def test_counterparts_belong_to_ignored_keys() -> None:
    """Advice that is never given would be a mistake."""
    for section, key in COUNTERPARTS:
        assert key in LITELLM_KEYS[section], (section, key)


def test_own_providers_are_not_foreign() -> None:
    """The list of LiteLLM's other providers holds none of ours."""
    assert not LITELLM_PROVIDERS & PROVIDERS.keys()


def test_groups_take_everything_that_router_settings_does_for_a_group() -> None:
    """What has a default for all groups can be overridden for one."""
    for_all_only = {"default_fallbacks", "model_group_alias", "on_redis_loss"}
    for_all_only |= {key for key in RouterSettings.model_fields if key.startswith("redis")}
    assert RouterSettings.model_fields.keys() - for_all_only == Group.model_fields.keys()
    assert GroupKeys.model_fields.keys() >= OFF_BY_NULL


@pytest.mark.parametrize(
    ("kind", "elsewhere"),
    [
        (settings.RelaySettings, {}),
        (
            settings.BreakerSettings,
            {"cooldown_s": "cooldown_time", "jitter": "cooldown_jitter"},
        ),
        (
            settings.GroupSettings,
            {"name": None, "deployments": None, "strategy": "routing_strategy", "relay": None, "breaker": None},
        ),
    ],
)
def test_every_setting_of_a_group_has_its_key(kind: Any, elsewhere: dict[str, str | None]) -> None:
    """No limit of a session can be changed in code only."""
    for name in kind.__dataclass_fields__:
        key = elsewhere.get(name, name)
        assert key is None or key in Group.model_fields, name


def test_every_setting_of_a_deployment_has_its_key() -> None:
    """Each is set by ``litellm_params`` or ``model_info``, or follows from the rest."""
    derived = {"group", "position", "provider", "problem"}
    spelt = {"timeout_s": "timeout"}
    for name in settings.DeploymentSettings.__dataclass_fields__:
        key = spelt.get(name, name)
        assert name in derived or key in Params.model_fields or key in ModelInfo.model_fields, name


def test_every_setting_of_the_process_has_its_key() -> None:
    """Each is a key of ``general_settings``."""
    assert settings.ServerSettings.__dataclass_fields__.keys() <= GeneralSettings.model_fields.keys()


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: dict[str, Any] = root["$defs"][reference.rpartition("/")[2]]
    return found


def _accepts(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON Schema that the file's schema uses; written here so that the test needs no validator package."""
    import re

    schema = _resolve(schema, root)
    if "anyOf" in schema and not any(_accepts(value, each, root) for each in schema["anyOf"]):
        return False
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    actual = {names[type(value)]} | ({"number"} if type(value) is int else set())
    if kinds and not actual & set(kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "pattern" in schema and not (isinstance(value, str) and re.search(schema["pattern"], value)):
        return False
    if isinstance(value, list):
        return all(_accepts(item, schema.get("items", {}), root) for item in value)
    if isinstance(value, dict):
        if not all(key in value for key in schema.get("required", ())):
            return False
        known = schema.get("properties", {})
        other = schema.get("additionalProperties", True)
        for key, item in value.items():
            if any(re.search(pattern, key) for pattern in schema.get("patternProperties", {})):
                continue
            if key not in known and other is False:
                return False
            if not _accepts(item, known.get(key, other if isinstance(other, dict) else {}), root):
                return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high, above = (schema.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
        return (low is None or low <= value) and (high is None or value <= high) and (above is None or above < value)
    return True


def test_the_schema_is_plain_json() -> None:
    """Editors read it as a file; ``NaN`` or a Python object in it would not survive."""
    assert json.loads(json.dumps(json_schema(), allow_nan=False)) == json_schema()


def test_the_schema_takes_what_the_loader_takes() -> None:
    """The example passes both, environment variables in the place of numbers included."""
    import yaml

    from tests.unit.config.helpers import EXAMPLE

    schema = json_schema()
    document = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert _accepts(document, schema, schema)
    document["model_list"][0]["litellm_params"]["weight"] = "os.environ/WEIGHT"
    assert _accepts(document, schema, schema)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model_list", 0, "litellm_params", "weight"), -1),
        (("model_list", 0, "litellm_params", "weight"), "2"),
        (("model_list", 0, "litellm_params", "wieght"), 2),
        (("model_list", 0, "litellm_params", "ready"), "soon"),
        (("model_list", 0, "model_name"), 5),
        (("router_settings", "fallbacks"), {"a": ["b"]}),
        (("general_settings", "listen"), 1.5),
        (("general_settings", "workers"), "many"),
        (("general_settings", "workers"), 0),
        (("router_settings", "redis_port"), 65536),
        (("router_settings", "on_redis_loss"), "shut"),
        (("nonsense",), 1),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(place: tuple[str | int, ...], value: object) -> None:
    """An editor underlines what ``check`` would complain of."""
    schema = json_schema()
    document: Any = {"model_list": [{"model_name": "v", "litellm_params": {"model": "openai/realtime"}}]}
    assert _accepts(document, schema, schema)
    target = document
    for part in place[:-1]:
        target = target.setdefault(part, {}) if isinstance(target, dict) else target[part]
    target[place[-1]] = value
    assert not _accepts(document, schema, schema)


@pytest.mark.parametrize("workers", [4, "auto", "os.environ/WORKERS", None])
def test_the_schema_takes_workers_in_all_their_forms(workers: object) -> None:
    """A number and a word, as the loader does."""
    schema = json_schema()
    document = {
        "model_list": [{"model_name": "v", "litellm_params": {"model": "openai/realtime"}}],
        "general_settings": {"workers": workers},
    }
    assert _accepts(document, schema, schema)


def test_keys_without_effect_are_marked_in_the_schema() -> None:
    """An editor shows them as deprecated instead of wrong."""
    properties = json_schema()["$defs"]["RouterSettings"]["properties"]
    assert properties["enable_pre_call_checks"][NO_EFFECT] and properties["resume"]["deprecated"]
    assert NO_EFFECT not in properties["num_retries"]


def test_a_section_does_not_show_what_it_holds() -> None:
    """A model that ends up in a log line by mistake has no key in it."""
    section = Params.model_validate({"api_key": "sk-hush"})
    assert "hush" not in repr(section) and "hush" not in str(section)


def test_no_settings_show_a_key() -> None:
    """The whole configuration can be printed without a secret in it."""
    result = loaded(ONE + "general_settings: {master_key: os.environ/MASTER_KEY}")
    assert not any(value in repr(result) for value in ENVIRON.values())
