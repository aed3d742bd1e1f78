"""OpenAI: ``wss://api.openai.com/v1/realtime?model=M`` with ``Authorization: Bearer``.

A dial carries exactly one of ``model`` and ``intent=transcription``: a transcription session names its model in
``session.update``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.providers.base import ErrorKind, Forward, Target
from router.providers.codes import table
from router.providers.headers import bearer, build_headers
from router.providers.urls import base_parameter, build_url, split_base, with_endpoint

if TYPE_CHECKING:
    from router.config.settings import DeploymentSettings, ReadyRule


class OpenAI:
    """The provider ``openai``."""

    name = "openai"
    key_variables: tuple[str, ...] = ("OPENAI_API_KEY",)
    key_required = True
    default_api_base: str | None = "wss://api.openai.com/v1"
    default_ready: ReadyRule = "first_event"
    errors: Mapping[str, ErrorKind] = table()

    def target(self, deployment: DeploymentSettings, forward: Forward, *, token: str | None) -> Target:
        """Return what to dial; ``token`` is not used. An ``api_base`` without a path gets ``/v1/realtime``."""
        base = split_base(deployment.api_base or "wss://api.openai.com/v1")
        extra = {name: secret.reveal() for name, secret in deployment.extra_query.items()}
        intent = extra.get("intent") or base_parameter(base, "intent") or forward.query.get("intent")
        url = build_url(
            base,
            with_endpoint(base.path, when_empty="/v1/realtime"),
            computed=() if intent == "transcription" else (("model", deployment.model),),
            forwarded=forward.query,
            extra=extra,
        )
        own = bearer(deployment)
        # The deployment's, as the key is the deployment's: the client's would belong to another account.
        if deployment.organization:
            own["OpenAI-Organization"] = deployment.organization
        if deployment.project:
            own["OpenAI-Project"] = deployment.project
        return Target(url=url, headers=build_headers(deployment, own, forward.headers))
