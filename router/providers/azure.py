"""Azure OpenAI, in its two forms.

GA: ``{base}/openai/v1/realtime?model=D``; preview: ``{base}/openai/realtime?api-version=…&deployment=D``. ``D`` is the
deployment's name in the Azure resource. A key goes into ``api-key``, an Entra token into ``Authorization: Bearer``.
An ``api_base`` that ends in ``/realtime`` is the whole endpoint (Azure Voice Live has another path) and is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.errors import ConnectFailed
from router.providers.base import ErrorKind, Forward, Target
from router.providers.codes import table
from router.providers.headers import build_headers, credential
from router.providers.urls import ENDPOINT, base_parameter, build_url, split_base

if TYPE_CHECKING:
    from router.config.settings import DeploymentSettings, ReadyRule


class Azure:
    """The provider ``azure``."""

    name = "azure"
    key_variables: tuple[str, ...] = ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY")
    key_required = True  # or an Entra token
    default_api_base: str | None = None
    default_ready: ReadyRule = "first_event"
    # Azure's gateway answers in its own words, some of them HTTP statuses spelt as strings.
    errors: Mapping[str, ErrorKind] = table(
        authentication=("401", "403", "Unauthorized", "AccessDenied", "PermissionDenied", "DeploymentNotFound"),
        rate_limited=("429", "RateLimitReached", "TooManyRequests"),
    )

    def target(self, deployment: DeploymentSettings, forward: Forward, *, token: str | None) -> Target:
        """Return what to dial: ``token`` as Bearer when there is one, else the deployment's key as ``api-key``."""
        if not deployment.api_base:
            raise ConnectFailed("api_base: found none, expected the Azure resource such as https://NAME.openai.azure.com")
        base = split_base(deployment.api_base)
        preview = deployment.realtime_protocol == "preview"
        extra = {name: secret.reveal() for name, secret in deployment.extra_query.items()}

        computed: list[tuple[str, str]] = []
        if preview:
            version = deployment.api_version or extra.get("api-version") or base_parameter(base, "api-version")
            if not version:
                raise ConnectFailed("api_version: found none, the preview protocol expects a date such as 2025-04-01-preview")
            computed += [("api-version", version), ("deployment", deployment.model)]
        else:
            computed.append(("model", deployment.model))
        url = build_url(base, _path(base.path, preview=preview), computed=computed, forwarded=forward.query, extra=extra)

        own: dict[str, str] = {}
        if token is not None:
            own["Authorization"] = f"Bearer {credential(token, source='the Entra token')}"
        elif deployment.api_key is not None:
            own["api-key"] = credential(deployment.api_key.reveal(), source="api_key")
        return Target(url=url, headers=build_headers(deployment, own, forward.headers))


def _path(path: str, *, preview: bool) -> str:
    """Complete a base's path: the resource alone, with ``/openai``, with ``/openai/v1``, or a whole endpoint."""
    if path.endswith(ENDPOINT):
        return path
    root = path.removesuffix("/v1") if path.endswith("/openai/v1") else path
    root = root.removesuffix("/openai")
    return f"{root}/openai{ENDPOINT}" if preview else f"{root}/openai/v1{ENDPOINT}"
