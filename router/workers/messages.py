"""What a worker says to its parent, read with suspicion: what one says wrongly must not harm the others. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from router.fleet.exchange import Wanted

# A name of a place or a deployment is no longer than this.
_LONGEST_NAME: Final = 700


class Nonsense(ValueError):
    """A worker's message that cannot be followed. Each function here raises it, with what was found and what was expected."""


def natural_of(message: Mapping[str, Any], name: str) -> int:
    """Return a number from 0 of a message."""
    value = message.get(name)
    if type(value) is not int or value < 0:
        raise Nonsense(f"{name}: found {str(value)[:40]!r}, expected a natural number")
    return value


def list_of(message: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list of a message."""
    value = message.get(name)
    if not isinstance(value, list):
        raise Nonsense(f"{name}: found {type(value).__name__}, expected a list")
    return value


def object_of(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object of a message."""
    value = message.get(name)
    if not isinstance(value, dict):
        raise Nonsense(f"{name}: found {type(value).__name__}, expected an object")
    return value


def text_of(message: Mapping[str, Any], name: str) -> str:
    """Return a text of a message; empty: there is none."""
    value = message.get(name, "")
    if not isinstance(value, str):
        raise Nonsense(f"{name}: found {type(value).__name__}, expected a text")
    return value


def places_of(message: Mapping[str, Any], name: str, member: str) -> dict[str, list[str]]:
    """Return a member's places of a message, by deployment."""
    value = object_of(message, name)
    return {name_from(deployment): [_place(place, member) for place in list_of(value, deployment)] for deployment in value}


def wanted_of(message: Mapping[str, Any], name: str, member: str) -> list[Wanted]:
    """Return the places of a message that a member wants."""
    return [_wanted(item, member) for item in list_of(message, name)]


def _wanted(item: Any, member: str) -> Wanted:
    if not isinstance(item, list) or len(item) != 3 or type(item[1]) is not int:
        raise Nonsense("wanted: found something else, expected a deployment, a limit and a place")
    return Wanted(deployment=name_from(item[0]), limit=item[1], place=_place(item[2], member))


def name_from(value: Any) -> str:
    """Return a value that has to be a name."""
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise Nonsense(f"found a name that is {type(value).__name__}, expected a text of at most {_LONGEST_NAME} characters")
    return value


def _place(value: Any, member: str) -> str:
    # By its beginning a dead worker's place is found.
    if not name_from(value).startswith(f"{member}:"):
        raise Nonsense("found a place of another name, expected one that begins with the member's")
    return str(value)
