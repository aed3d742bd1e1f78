"""The admin API's description of itself: OpenAPI 3.1, made of the models that check requests and describe answers. Pure.

Source: OpenAPI Specification 3.1.1, whose schemas are JSON Schema 2020-12, as pydantic writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from router._version import __version__
from router.admin import bodies, documents

_REFERENCE: Final = "#/components/schemas/{model}"
_STATUS_TEXTS: Final[Mapping[int, str]] = {
    400: "The request says something that cannot be.",
    401: "There is no key, or it is not valid.",
    403: "The key is not the master key, or the request may not come from where it does.",
    404: "There is no such thing; the message names the nearest.",
    408: "The body did not come in time.",
    409: "It would be without effect.",
    413: "The body is too long.",
    415: "The body is no application/json.",
    422: "The file was refused; the configuration that was in force still is.",
    503: "A process did not answer; an act may have been done by the others.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation.

    Attributes:
        id: its name.
        method: ``get`` or ``post``.
        path: with parameters in braces.
        summary: one line.
        answer: of 200.
        query, body: what it takes; ``None``: nothing.
        errors: statuses beyond those that every operation has.
        error_answers: answers of statuses that are more than an error.
    """

    id: str
    method: str
    path: str
    summary: str
    answer: type[BaseModel] | None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    error_answers: Mapping[int, type[BaseModel]] = field(default_factory=dict)


_BODY_ERRORS: Final = (408, 413, 415)

OPERATIONS: Final = (
    Operation(
        id="deployments",
        method="get",
        path="/admin/deployments",
        summary="Every group with its deployments: state, reasons, counters, latencies, limits.",
        answer=documents.Deployments,
    ),
    Operation(
        id="set",
        method="post",
        path="/admin/deployments/set",
        summary="Let a state or a weight win over the file's, or give it back to the file.",
        answer=documents.ChangedDeployment,
        body=bodies.Set,
        errors=(404, 409, *_BODY_ERRORS),
    ),
    Operation(
        id="readmit",
        method="post",
        path="/admin/deployments/readmit",
        summary="End an ejection and a cool-down.",
        answer=documents.ChangedDeployment,
        body=bodies.Readmit,
        errors=(404, *_BODY_ERRORS),
    ),
    Operation(
        id="sessions",
        method="get",
        path="/admin/sessions",
        summary="Sessions under way, the newest first.",
        answer=documents.Sessions,
        query=bodies.SessionsQuery,
    ),
    Operation(
        id="session",
        method="get",
        path="/admin/sessions/{session}",
        summary="One session, under way or ended lately, with its attempts and decisions.",
        answer=documents.SessionDetail,
        errors=(404,),
    ),
    Operation(
        id="end",
        method="post",
        path="/admin/sessions/{session}/end",
        summary="End a session: an error event and a CLOSE, or 503 when it still searches.",
        answer=documents.EndedSession,
        body=bodies.End,
        errors=(404, *_BODY_ERRORS),
    ),
    Operation(
        id="decisions",
        method="get",
        path="/admin/decisions",
        summary="Why sessions went where they went: the last choices, the newest first.",
        answer=documents.Decisions,
        query=bodies.DecisionsQuery,
    ),
    Operation(
        id="config",
        method="get",
        path="/admin/config",
        summary="The generation of the configuration, and what came of the last reload.",
        answer=documents.Config,
    ),
    Operation(
        id="reload",
        method="post",
        path="/admin/reload",
        summary="Read the file again.",
        answer=documents.Config,
        errors=(422, *_BODY_ERRORS),
        error_answers={422: documents.RefusedConfig},
    ),
    Operation(
        id="fleet",
        method="get",
        path="/admin/fleet",
        summary="This router's processes, and what they are among others.",
        answer=documents.FleetView,
    ),
    Operation(id="openapi", method="get", path="/admin/openapi.json", summary="This document.", answer=None),
)
_COMMON_ERRORS: Final = (400, 401, 403, 503)


@lru_cache(maxsize=4)
def document(root_path: str = "") -> Mapping[str, Any]:
    """Return the OpenAPI document.

    Args:
        root_path: what all paths begin with, behind a proxy.
    """
    answers = {operation.answer for operation in OPERATIONS if operation.answer is not None}
    answers |= {model for operation in OPERATIONS for model in operation.error_answers.values()} | {documents.Error}
    asked = {operation.body for operation in OPERATIONS if operation.body is not None}
    _, answered = models_json_schema([(model, "serialization") for model in sorted(answers, key=_name)], ref_template=_REFERENCE)
    _, requested = models_json_schema([(model, "validation") for model in sorted(asked, key=_name)], ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Realtime Router: admin API",
            "version": __version__,
            "description": "Times are seconds, moments epoch seconds. With workers every document is that of all of them.",
        },
        "servers": [{"url": root_path or "/"}],
        "security": [{"bearer": []}, {"api_key": []}],
        "paths": paths,
        "components": {
            "schemas": {**answered["$defs"], **requested["$defs"]},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "The master key."},
                "api_key": {"type": "apiKey", "in": "header", "name": "api-key", "description": "The master key."},
            },
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {"operationId": operation.id, "summary": operation.summary}
    if parameters := [*_path_parameters(operation.path), *_query_parameters(operation.query)]:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(_schema(operation.body))}
    answer = {"type": "object"} if operation.answer is None else _schema(operation.answer)
    described["responses"] = {
        "200": {"description": "Done." if operation.method == "post" else "As it is.", "content": _json(answer)},
        **{
            str(status): {
                "description": _STATUS_TEXTS[status],
                "content": _json(_schema(operation.error_answers.get(status, documents.Error))),
            }
            for status in sorted({*_COMMON_ERRORS, *operation.errors})
        },
    }
    return described


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query_parameters(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    parameters = []
    for name, schema in model.model_json_schema()["properties"].items():
        description = schema.pop("description")
        schema.pop("title", None)
        parameters.append({"name": name, "in": "query", "required": False, "description": description, "schema": schema})
    return parameters


def _schema(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _name(model: type[BaseModel]) -> str:
    return model.__name__
