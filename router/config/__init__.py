"""The configuration: one YAML in LiteLLM's schema → frozen, checked ``Settings``.

A package rather than one module, because it holds separate things that change for separate reasons:

    settings      the values the router works with; nothing in it knows of YAML
    source        YAML text → plain data with line numbers, safe against hostile input
    rules         what a single value may look like
    schema        the sections as pydantic models, and their JSON Schema
    litellm       keys and names of LiteLLM that have no effect here
    report        problems, and what of a value they may show
    sections      environment variables, and pydantic's errors in our words
    deployments   model_list
    groups        strategies, fallbacks, aliases, shared limits
    redis_url     the URL of a server, its parts
    fleet         the server through which replicas tell each other what they hold
    loader        a file → Settings

pydantic stays at this edge: the rest of the router sees ``settings`` only. Nothing here needs asyncio or aiohttp.

``settings`` can be imported alone, without pydantic and YAML: what loads a file is imported on first use. The loading modules use
``router.providers``, ``router.proxies`` and ``router.listener.certificate``, which need nothing of this package at run time but
``settings``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.config.settings import (
    BreakerSettings,
    DeploymentSettings,
    DeploymentState,
    DrainSettings,
    FleetSettings,
    GroupSettings,
    HealthCheckSettings,
    KeySettings,
    ListenSettings,
    ListenTlsSettings,
    ReadyRule,
    RelaySettings,
    Secret,
    ServerSettings,
    Settings,
    StrategySettings,
)
from router.errors import ConfigError, Problem

if TYPE_CHECKING:
    from router.config.loader import Loaded, load, load_text
    from router.config.schema import json_schema

__all__ = [
    "BreakerSettings",
    "ConfigError",
    "DeploymentSettings",
    "DeploymentState",
    "DrainSettings",
    "FleetSettings",
    "GroupSettings",
    "HealthCheckSettings",
    "KeySettings",
    "ListenSettings",
    "ListenTlsSettings",
    "Loaded",
    "Problem",
    "ReadyRule",
    "RelaySettings",
    "Secret",
    "ServerSettings",
    "Settings",
    "StrategySettings",
    "json_schema",
    "load",
    "load_text",
]

_ON_USE = {"Loaded": "loader", "load": "loader", "load_text": "loader", "json_schema": "schema"}


def __getattr__(name: str) -> Any:
    """Import what loads a file when it is first asked for (PEP 562)."""
    module = _ON_USE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{module}"), name)
