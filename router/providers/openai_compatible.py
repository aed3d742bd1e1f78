"""Any server that speaks OpenAI's realtime protocol: ``{api_base}/realtime?model=M``, the base's path kept as it is.

It never falls back to ``OPENAI_API_KEY``: that key would go to a host that OpenAI does not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.errors import ConnectFailed
from router.providers.base import ErrorKind, Forward, Target
from router.providers.codes import table
from router.providers.headers import bearer, build_headers
from router.providers.urls import build_url, split_base, with_endpoint

if TYPE_CHECKING:
    from router.config.settings import DeploymentSettings, ReadyRule


class OpenAICompatible:
    """The provider ``openai_compatible``."""

    name = "openai_compatible"
    key_variables: tuple[str, ...] = ()
    key_required = False
    default_api_base: str | None = None
    default_ready: ReadyRule = "auto"  # some servers never speak first
    errors: Mapping[str, ErrorKind] = table()

    def target(self, deployment: DeploymentSettings, forward: Forward, *, token: str | None) -> Target:
        """Return what to dial; ``token`` is not used."""
        if not deployment.api_base:
            raise ConnectFailed("api_base: found none, expected the server's address such as http://HOST:8000/v1")
        base = split_base(deployment.api_base)
        url = build_url(
            base,
            with_endpoint(base.path),
            computed=(("model", deployment.model),) if deployment.model else (),
            forwarded=forward.query,
            extra={name: secret.reveal() for name, secret in deployment.extra_query.items()},
        )
        return Target(url=url, headers=build_headers(deployment, bearer(deployment), forward.headers))
