"""Which router a command is about."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which router, and in what form its answers are wanted.

    Attributes:
        url: of the router.
        key: its master key. Not in the ``repr``.
        ca_file: who signed its certificate; ``None``: an authority of the system.
        as_json: the documents as they come.
    """

    url: str
    key: str | None
    ca_file: str | None = None
    as_json: bool = False

    def __repr__(self) -> str:
        return f"Target(url={self.url!r})"
