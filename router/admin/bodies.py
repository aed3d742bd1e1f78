"""What a request of the admin API may say, checked: one model for each query and each body. Pure.

A field's description is what its error message calls expected, and what the OpenAPI document says of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from router.admin.contract import AdminError
from router.config.report import quoted

#: Longest text of a filter or an id; ids of deployments and names of groups are at most 128 long.
MOST_CHARS: Final = 256
#: Most entries of one answer.
MOST_ENTRIES: Final = 1000
#: As in the configuration.
MOST_WEIGHT: Final = 1e6
#: RFC 6455 §5.5: a control frame has 125 bytes, two of which are the code.
MOST_REASON_BYTES: Final = 123

# RFC 6455 §7.4.1 and the IANA registry: 1004 is reserved, 1005 and 1006 never travel; what follows is for libraries and
# applications.
_UNSENDABLE: Final = frozenset({1004, 1005, 1006})
_CODE_TEXT: Final = "a close code that may be sent: 1000 to 1014 without 1004, 1005 and 1006, or 3000 to 4999"
_REASON_TEXT: Final = f"a close reason of at most {MOST_REASON_BYTES} bytes"
_LIMIT_TEXT: Final = f"the most entries to be shown, from 1 to {MOST_ENTRIES}"


def _code(value: int) -> int:
    if not (1000 <= value <= 1014 or 3000 <= value <= 4999) or value in _UNSENDABLE:
        raise ValueError(_CODE_TEXT)
    return value


def _reason(value: str) -> str:
    if len(value.encode("utf-8", "surrogatepass")) > MOST_REASON_BYTES:
        raise ValueError(_REASON_TEXT)
    return value


class _Query(BaseModel):
    # Values come as text.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


def _filter(text: str) -> Any:
    return Field(default=None, min_length=1, max_length=MOST_CHARS, description=f"{text}, of at most {MOST_CHARS} characters")


class NoQuery(_Query):
    """Nothing to choose."""


class SessionsQuery(_Query):
    """Which sessions are shown."""

    group: str | None = _filter("a group's name")
    deployment: str | None = _filter("a deployment's id")
    principal: str | None = _filter("the name of a key")
    search: str | None = _filter("a part of the session's id, the client's address, the principal's or the deployment's name")
    limit: int = Field(default=100, ge=1, le=MOST_ENTRIES, description=_LIMIT_TEXT)


class DecisionsQuery(_Query):
    """Which decisions are shown."""

    group: str | None = _filter("a group's name")
    deployment: str | None = _filter("a deployment's id")
    session: str | None = _filter("a session's id")
    limit: int = Field(default=50, ge=1, le=MOST_ENTRIES, description=_LIMIT_TEXT)


class End(_Body):
    """How a session is ended. The client gets an ``error`` event, and then a CLOSE with this."""

    code: Annotated[
        int,
        AfterValidator(_code),
        # For the document; the check itself is one, so that its message is.
        Field(
            default=1001,
            description=_CODE_TEXT,
            json_schema_extra={
                "anyOf": [{"enum": [*range(1000, 1004), *range(1007, 1015)]}, {"minimum": 3000, "maximum": 4999}]
            },
        ),
    ]
    reason: Annotated[str, AfterValidator(_reason), Field(default="", description=_REASON_TEXT)]


class Set(_Body):
    """What wins over the file. A field that is absent changes nothing; null gives it back to the file."""

    id: str = Field(min_length=1, max_length=MOST_CHARS, description="a deployment's id")
    state: Literal["ready", "drain", "maint"] | None = Field(
        default=None, description="ready, drain, maint, or null for what the file says"
    )
    weight: float | None = Field(
        default=None,
        gt=0,
        le=MOST_WEIGHT,
        allow_inf_nan=False,
        description=f"a number above 0 and at most {MOST_WEIGHT:g}, or null for what the file says",
    )


class Readmit(_Body):
    """Which deployment is left to its sessions again."""

    id: str = Field(min_length=1, max_length=MOST_CHARS, description="a deployment's id")


class NoBody(_Body):
    """Nothing to say."""


MODELS: Final[Mapping[str, type[BaseModel]]] = {
    model.__name__: model for model in (NoQuery, SessionsQuery, DecisionsQuery, NoBody, End, Set, Readmit)
}

M = TypeVar("M", bound=BaseModel)


def read(model: type[M], values: Mapping[str, Any]) -> M:
    """Check what a request says.

    Raises:
        AdminError: 400, with everything that is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for one in error.errors(include_url=False):
            place = str(one["loc"][0]) if one["loc"] else ""
            # Several alternatives of one field complain each; the field's own words say it once.
            problems.setdefault(place, _problem(model, place, one["type"], values.get(place)))
        first = next(iter(problems))
        raise AdminError("; ".join(problems.values()), status=400, code="invalid_request", param=first or None) from None


def _problem(model: type[BaseModel], place: str, kind: str, found: object) -> str:
    """Place, found, expected."""
    if kind == "extra_forbidden":
        known = list(model.model_fields)
        near = difflib.get_close_matches(place, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{quoted(place)}: found an unknown name, expected {_one_of(known)}{hint}"
    if kind == "missing":
        return f"{place}: found nothing, expected {model.model_fields[place].description}"
    return f"{place}: found {_shown(found)}, expected {model.model_fields[place].description}"


def _one_of(known: list[str]) -> str:
    return f"some of {', '.join(known)}" if known else "none"


def _shown(value: object) -> str:
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return quoted(repr(value)).strip("'")
    return "an object" if isinstance(value, dict) else "a list"
