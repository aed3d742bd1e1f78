"""Short ways to write, load and judge a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent, indent

from router.config import ConfigError, DeploymentSettings, Loaded, Problem, load_text

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "config.example.yaml"

# Every variable that the example and the tests name; the values have the look of keys, to be searched for in messages.
ENVIRON: Mapping[str, str] = {
    "XAI_API_KEY": "xai-Vq8Wm2Zr4Tn6Bp1Lc9",
    "OPENAI_API_KEY": "sk-proj-Hd7Kf3Js5Gw0Xe2",
    "AZURE_API_KEY": "9f8e7d6c5b4a39281706",
    "AZURE_API_BASE": "https://example.openai.azure.com",
    "AZURE_AD_TOKEN": "eyJ0eXAiOiJKV1QiLCJh",
    "MASTER_KEY": "rt-Yk4Nz8Uq2Ma6Ts0Rd5Fv",
    "REDIS_PASSWORD": "redis-Pw3Qx7",
}


def deployments(*params: str, group: str = "voice", info: str = "mode: realtime") -> str:
    """Return a ``model_list`` of entries in one group, each given by its ``litellm_params`` as flow-style YAML."""
    entries = (f"- {{model_name: {group}, litellm_params: {{{each}}}, model_info: {{{info}}}}}\n" for each in params)
    return "model_list:\n" + indent("".join(entries), "  ")


ONE = deployments("model: xai/grok-voice, api_key: os.environ/XAI_API_KEY")


def loaded(text: str, **environ: str) -> Loaded:
    """Load text that must be fine; ``environ`` is added to ``ENVIRON``."""
    return load_text(dedent(text), path="test.yaml", environ={**ENVIRON, **environ})


def problems(text: str, **environ: str) -> tuple[Problem, ...]:
    """Load text that must be refused and return its problems."""
    try:
        result = loaded(text, **environ)
    except ConfigError as error:
        return error.problems
    raise AssertionError(f"loaded without an error: {[str(warning) for warning in result.warnings]}")


def problem(text: str, **environ: str) -> Problem:
    """Load text that must be refused for one reason and return it."""
    found = problems(text, **environ)
    assert len(found) == 1, [str(each) for each in found]
    return found[0]


def only(result: Loaded) -> DeploymentSettings:
    """Return the only deployment."""
    (group,) = result.settings.groups.values()
    (deployment,) = group.deployments
    return deployment
