"""How upstreams spell what an operator must look at.

``AUTHENTICATION`` means "the next session would fail in the same way until somebody changes the account or the configuration":
the deployment is ejected for minutes and an alarm is raised. That is wider than keys: an empty account, a closed account, a model
that the account does not have, or a header that asks for the retired beta will not heal by waiting 30 seconds either.
``RATE_LIMITED`` heals by itself. Whatever is in neither table is an ordinary failure.

OpenAI puts the telling word in ``error.code`` for some faults and in ``error.type`` for others, so one table serves both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from router.providers.base import ErrorKind

_AUTHENTICATION = (
    # The key.
    "invalid_api_key",
    "authentication_error",
    "account_deactivated",
    "access_terminated",
    # What the key may do: organisation, project, region, model.
    "permission_error",
    "permission_denied",
    "invalid_organization",
    "mismatched_organization",
    "mismatched_project",
    "unsupported_country_region_territory",
    "model_not_found",
    # Money. ``insufficient_quota`` comes with status 429 and is no rate limit: it lasts until somebody pays.
    "insufficient_quota",
    "credit_balance_exhausted",
    "billing_hard_limit_reached",
    "billing_not_active",
    # The dial itself asks for the retired beta: an ``OpenAI-Beta`` in ``extra_headers``, as the client's own is never forwarded.
    "beta_api_shape_disabled",
)

_RATE_LIMITED = (
    "rate_limit_exceeded",
    "rate_limit_error",
    "rate_limit_reached",
    "too_many_requests",
    # The account's number of concurrent sessions.
    "session_limit_exceeded",
    "concurrent_session_limit_exceeded",
)


def table(*, authentication: Iterable[str] = (), rate_limited: Iterable[str] = ()) -> Mapping[str, ErrorKind]:
    """Return OpenAI's codes, which all providers share, with a provider's own beside them."""
    kinds = dict.fromkeys((*_AUTHENTICATION, *authentication), ErrorKind.AUTHENTICATION)
    kinds.update(dict.fromkeys((*_RATE_LIMITED, *rate_limited), ErrorKind.RATE_LIMITED))
    return MappingProxyType(kinds)
