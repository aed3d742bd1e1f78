"""A deployment with every default, for the tests of the providers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.config.settings import DeploymentSettings, Secret
from router.providers import PROVIDERS, Forward, Target

KEY = "sk-secret-of-the-deployment"
WITH_KEY: Mapping[str, Any] = {"api_key": Secret(KEY)}


def deployment(provider: str, **changes: Any) -> DeploymentSettings:
    """Return settings of a deployment ``d1`` of model ``m``."""
    for name in ("extra_headers", "extra_query"):
        if name in changes:
            changes[name] = {key: Secret(value) for key, value in changes[name].items()}
    values: dict[str, Any] = {"id": "d1", "group": "g", "position": 0, "provider": provider, "model": "m", **changes}
    return DeploymentSettings(**values)


def target(
    provider: str,
    *,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    token: str | None = None,
    **changes: Any,
) -> Target:
    """Return what a provider would dial for such a deployment and a client's part."""
    return PROVIDERS[provider].target(
        deployment(provider, **changes), Forward(query=query or {}, headers=headers or {}), token=token
    )
