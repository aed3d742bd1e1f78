"""What operators have said about deployments, for workers that begin later. Pure.

A word wins over the file as long as the file says what it said then: one that was given to another configuration is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from router.config.settings import Settings

#: Deployment's id → ``state`` and ``weight``, as the file says.
Configured = Mapping[str, Mapping[str, Any]]

_STATES: Final = frozenset({"ready", "drain", "maint"})
# More than any file has deployments; who says more is not understood.
_MOST: Final = 100_000


class Overrides:
    """Words of operators by deployment.

    Attributes:
        version: grows with each word.
    """

    def __init__(self) -> None:
        self.version = 0
        # Id → field → (the word, what the file said then).
        self._words: dict[str, dict[str, tuple[Any, Any]]] = {}

    def note(self, args: Mapping[str, Any], configured: Configured) -> None:
        """Remember a word.

        Args:
            args: those of the act ``set``.
            configured: by the generation it was said to.

        Raises:
            ValueError: it is no such act.
        """
        id = args.get("id")
        if not isinstance(id, str):
            raise ValueError(f"id: found {type(id).__name__}, expected a text")
        said_to = configured.get(id)
        if said_to is None or len(self._words) >= _MOST:
            # Nobody's deployment; the workers will say so.
            return
        words = self._words.setdefault(id, {})
        for name, allowed in (("state", _is_state), ("weight", _is_weight)):
            if name not in args:
                continue
            value = args[name]
            if value is None:
                words.pop(name, None)
            elif allowed(value):
                words[name] = (value, said_to[name])
            else:
                raise ValueError(f"{name}: found {str(value)[:40]!r}, expected a state or a weight")
        if not words:
            del self._words[id]
        self.version += 1

    def settle(self, configured: Configured) -> None:
        """A new generation is in force: forget for good what was said to another configuration."""
        for id, words in list(self._words.items()):
            for name, (_, then) in list(words.items()):
                if id not in configured or configured[id][name] != then:
                    del words[name]
            if not words:
                del self._words[id]
        self.version += 1

    def of(self, configured: Configured) -> Iterator[dict[str, Any]]:
        """Yield the arguments of the acts that bring a worker of this generation to where the others are."""
        for id, words in self._words.items():
            args = {
                name: value for name, (value, then) in words.items() if id in configured and configured[id][name] == then
            }
            if args:
                yield {"id": id, **args}


def configured_of(settings: Settings) -> Configured:
    """Return what a generation says of its deployments."""
    return {
        deployment.id: {"state": deployment.state, "weight": deployment.weight}
        for group in settings.groups.values()
        for deployment in group.deployments
    }


def _is_state(value: object) -> bool:
    return isinstance(value, str) and value in _STATES


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
