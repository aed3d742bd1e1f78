"""A key → who it belongs to. No I/O: the keys are in the configuration, virtual ones only as hashes.

Keys are random, so one SHA-256 is as good as a slow password hash and does not block the event loop; ``new_key`` makes
them. What a caller can measure depends on the hash of what it sent, never on the key it was compared with.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from router.config.settings import KeySettings, Secret, ServerSettings
from router.errors import AuthenticationFailed, PermissionDenied

MASTER = "master"
ANONYMOUS = "anonymous"

# A request may carry the key in several places at once; a real client uses two at the most.
_MAX_CREDENTIALS = 8
# Longer than any token of a real issuer (an Entra token has 1–3 KiB); what is longer is not even hashed.
_MAX_CREDENTIAL_CHARS = 8192
_KEY_BYTES = 32

# One text for unknown, expired and malformed: which of them it was helps only somebody who guesses.
_BAD_KEY = "The API key is not valid."
_NO_KEY = (
    "No API key was found in the request. Send it as 'Authorization: Bearer KEY', as header 'api-key: KEY', "
    "or from a browser as the subprotocol 'openai-insecure-api-key.KEY'."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whoever holds a key.

    Attributes:
        name: for logs, metrics and affinity: ``master``, a virtual key's name, or ``anonymous``.
        is_master: may use the admin API.
        groups: names of the groups it may use; ``None``: all.
        max_sessions: most sessions at the same time; ``None``: no limit.
    """

    name: str
    is_master: bool = False
    groups: frozenset[str] | None = None
    max_sessions: int | None = None

    def may_use(self, group: str) -> bool:
        """Whether it may open sessions on the group of this name (aliases resolved)."""
        return self.groups is None or group in self.groups

    def require(self, group: str) -> None:
        """Do nothing when it may use the group.

        Raises:
            PermissionDenied: it may not.
        """
        if not self.may_use(group):
            raise PermissionDenied("This API key is not allowed to use this model.")


class Authenticator:
    """Checks keys against one generation of the configuration.

    Args:
        server: holds the master key and the virtual keys.
        wall_clock: epoch seconds, for the keys' expiry.
    """

    def __init__(self, server: ServerSettings, *, wall_clock: Callable[[], float]) -> None:
        self._keyless = server.keyless
        self._master_digest = None if server.master_key is None else _digest(server.master_key.reveal())
        self._keys: Mapping[str, KeySettings] = {key.sha256: key for key in server.keys}
        self._wall_clock = wall_clock

    def authenticate(self, credentials: Sequence[Secret]) -> Principal:
        """Return whom the credentials belong to.

        SDKs and proxies add keys of their own (a placeholder as Bearer beside the real ``api-key``), so any valid one is
        enough, and the first valid one counts. Without any key in the configuration everybody is ``anonymous``; that such a
        router is reached from its own host alone is checked by the handshake.

        Args:
            credentials: what the request carried, the most telling place first.

        Raises:
            AuthenticationFailed: there was none, or none of the first eight is valid.
        """
        if self._keyless:
            return Principal(name=ANONYMOUS)
        if not credentials:
            raise AuthenticationFailed(_NO_KEY)
        for credential in credentials[:_MAX_CREDENTIALS]:
            principal = self._check(credential.reveal())
            if principal is not None:
                return principal
        raise AuthenticationFailed(_BAD_KEY)

    def _check(self, credential: str) -> Principal | None:
        if not credential or len(credential) > _MAX_CREDENTIAL_CHARS:
            return None
        digest = _digest(credential)
        # Digests have one length, so that not even the master key's length can be measured.
        if self._master_digest is not None and hmac.compare_digest(digest, self._master_digest):
            return Principal(name=MASTER, is_master=True)
        # The time of a dict's lookup tells about the hash of a guess, from which no other hash can be steered to.
        key = self._keys.get(digest.hex())
        if key is None or (key.expires_at is not None and self._wall_clock() >= key.expires_at):
            return None
        return Principal(name=key.name, groups=key.groups, max_sessions=key.max_sessions)


def new_key() -> tuple[str, str]:
    """Make a virtual key of 256 random bits.

    Returns:
        The key, to be given to its user and kept nowhere, and ``sha256:`` with 64 hex digits, for the configuration.
    """
    key = "rr-" + secrets.token_urlsafe(_KEY_BYTES)
    return key, f"sha256:{_digest(key).hex()}"


def _digest(value: str) -> bytes:
    # A header's bytes that are not UTF-8 arrive as unpaired surrogates, which plain UTF-8 refuses to encode.
    return sha256(value.encode("utf-8", "surrogatepass")).digest()
