"""xAI Grok Voice: ``wss://api.x.ai/v1/realtime?model=M`` with ``Authorization: Bearer``.

Nothing that is spelt ``OpenAI-…`` goes there: ``OpenAI-Beta`` not even when the configuration asks for it, and a client's
``OpenAI-Safety-Identifier`` names an end user to OpenAI, not to somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.providers.base import ErrorKind, Forward, Target
from router.providers.codes import table
from router.providers.headers import bearer, build_headers
from router.providers.urls import build_url, split_base, with_endpoint

if TYPE_CHECKING:
    from router.config.settings import DeploymentSettings, ReadyRule


class XAI:
    """The provider ``xai``."""

    name = "xai"
    key_variables: tuple[str, ...] = ("XAI_API_KEY",)
    key_required = True
    default_api_base: str | None = "wss://api.x.ai/v1"
    default_ready: ReadyRule = "first_event"
    errors: Mapping[str, ErrorKind] = table()

    def target(self, deployment: DeploymentSettings, forward: Forward, *, token: str | None) -> Target:
        """Return what to dial; ``token`` is not used. An ``api_base`` without a path gets ``/v1/realtime``."""
        base = split_base(deployment.api_base or "wss://api.x.ai/v1")
        url = build_url(
            base,
            with_endpoint(base.path, when_empty="/v1/realtime"),
            computed=(("model", deployment.model),),
            forwarded=forward.query,
            extra={name: secret.reveal() for name, secret in deployment.extra_query.items()},
        )
        headers = build_headers(
            deployment, bearer(deployment), forward.headers, never=("openai-beta",), never_forwarded_prefix="openai-"
        )
        return Target(url=url, headers=headers)
