"""What a provider is: the URL and headers of a dial, its ready rule, and how it spells its errors. No I/O, no asyncio.

The settings are imported for type checkers only: ``router.config`` reads the table of providers while it loads a file, so an
import back at run time would be a circle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from router.config.settings import DeploymentSettings, ReadyRule

NO_ITEMS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """What of the client's request travels upstream: the allow-listed part, already filtered.

    Attributes:
        query: allow-listed query parameters (``intent``, ``conversation_id``, configured ones).
        headers: allow-listed headers, names in lower case. Neither is in the ``repr``: the values are the client's business.
    """

    query: Mapping[str, str] = field(default_factory=lambda: NO_ITEMS, repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: NO_ITEMS, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to dial and what to say.

    Attributes:
        url: ``ws://`` or ``wss://`` URL with its query.
        headers: request headers besides those of the WebSocket handshake; they hold the key, hence no ``repr``.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


class ErrorKind(StrEnum):
    """What an error code of a provider tells, before ``retry.classify`` decides what follows from it."""

    AUTHENTICATION = "authentication"  # key, quota, billing, model access: an operator must act
    RATE_LIMITED = "rate_limited"
    OTHER = "other"


class Provider(Protocol):
    """One kind of upstream. Stateless; the module ``router.providers`` holds one instance of each."""

    @property
    def name(self) -> str:
        """The part of ``litellm_params.model`` before the slash."""

    @property
    def key_variables(self) -> tuple[str, ...]:
        """Environment variables that hold the key when the configuration names none, in order."""

    @property
    def key_required(self) -> bool:
        """A deployment without a key cannot work."""

    @property
    def default_api_base(self) -> str | None:
        """Used when ``api_base`` is not set; ``None``: ``api_base`` is required."""

    @property
    def default_ready(self) -> ReadyRule:
        """Ready rule when the deployment names none."""

    @property
    def errors(self) -> Mapping[str, ErrorKind]:
        """``error.code`` or ``error.type`` → kind; what is not listed is ``OTHER``."""

    def target(self, deployment: DeploymentSettings, forward: Forward, *, token: str | None) -> Target:
        """Return what to dial.

        Args:
            deployment: its settings.
            forward: the client's part.
            token: a fresh Entra token (Azure), which takes precedence over ``api_key``; otherwise ``None``.

        Raises:
            ConnectFailed: the settings cannot be turned into a dial; the message names the setting, never its secret.
        """
