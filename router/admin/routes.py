"""Requests under ``/admin/``: who asks, what is asked, and the answer. What it means is ``desk``'s.

``openapi.OPERATIONS`` lists the same operations; a test compares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl

import orjson
from aiohttp import web

from router.admin.contract import AdminError, Args, Ask, Configuration, Document
from router.config.report import quoted
from router.errors import RouterError, Unavailable
from router.events import Notice, Observers

#: Longest body; the longest that means something has some hundred bytes.
MAX_BODY_BYTES: Final = 16 * 1024
#: How long a body may take to come.
BODY_TIMEOUT_S: Final = 10.0
_MAX_QUERY_FIELDS: Final = 32
# A key may stand in the query, as everywhere; it has been looked at by then.
_QUERY_KEYS: Final = frozenset({"api-key", "api_key"})
_JSON: Final = "application/json"

_Handler = Callable[[web.Request, "Operator"], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who asks.

    Attributes:
        name: of the key.
        client: address.
    """

    name: str
    client: str


class Door(Protocol):
    """Lets operators in."""

    def operator(self, request: web.Request, *, acts: bool) -> Operator:
        """Return who makes a request.

        Args:
            request: it.
            acts: it changes something, so that no foreign page may have made it.

        Raises:
            RouterError: nobody who may.
        """


class AdminRoutes:
    """The handlers.

    Args:
        ask: of all processes.
        configuration: which one is in force.
        door: decides who may.
        tell: observers; they are told of every act.
        root_path: what all paths begin with, for the document.
    """

    def __init__(self, *, ask: Ask, configuration: Configuration, door: Door, tell: Observers, root_path: str = "") -> None:
        self._ask = ask
        self._configuration = configuration
        self._door = door
        self._tell = tell
        self._root_path = root_path

    def routes(self) -> list[web.RouteDef]:
        """Of the address for operators."""
        look, act = self._looking, self._acting
        return [
            web.get("/admin/deployments", look(self._deployments)),
            web.post("/admin/deployments/set", act("set", self._set)),
            web.post("/admin/deployments/readmit", act("readmit", self._readmit)),
            web.get("/admin/sessions", look(self._sessions)),
            web.get("/admin/sessions/{session}", look(self._session)),
            web.post("/admin/sessions/{session}/end", act("end", self._end)),
            web.get("/admin/decisions", look(self._decisions)),
            web.get("/admin/config", look(self._config)),
            web.post("/admin/reload", act("reload", self._reload)),
            web.get("/admin/fleet", look(self._fleet)),
            web.get("/admin/openapi.json", look(self._openapi)),
        ]

    # --- around every handler -----------------------------------------------------------------------

    def _looking(self, handler: _Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handled(request: web.Request) -> web.Response:
            operator = self._door.operator(request, acts=False)
            return await self._answered(handler, request, operator)

        return handled

    def _acting(self, act: str, handler: _Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handled(request: web.Request) -> web.Response:
            operator = self._door.operator(request, acts=True)
            return await self._answered(handler, request, operator, act=act)

        return handled

    async def _answered(self, handler: _Handler, request: web.Request, operator: Operator, *, act: str = "") -> web.Response:
        try:
            return await handler(request, operator)
        except AdminError as error:
            return _answer(error.body(), status=error.status)
        except OSError as error:
            # Numbers of one process in the place of those of all would be wrong ones.
            facts = {"what": act or request.path.rpartition("/")[2], "error": error}
            self._tell(Notice(level="warning", event="other workers not asked", facts=facts))
            return _answer(_unavailable().body(), status=503)

    # --- what can be seen ---------------------------------------------------------------------------

    async def _deployments(self, request: web.Request, operator: Operator) -> web.Response:
        self._query(request, "NoQuery")
        return _answer(await self._asked("deployments", {}))

    async def _sessions(self, request: web.Request, operator: Operator) -> web.Response:
        return _answer(await self._asked("sessions", self._query(request, "SessionsQuery")))

    async def _session(self, request: web.Request, operator: Operator) -> web.Response:
        self._query(request, "NoQuery")
        return _answer(await self._asked("session", {"session": _session_id(request)}))

    async def _decisions(self, request: web.Request, operator: Operator) -> web.Response:
        return _answer(await self._asked("decisions", self._query(request, "DecisionsQuery")))

    async def _config(self, request: web.Request, operator: Operator) -> web.Response:
        self._query(request, "NoQuery")
        return _answer(await self._configuration.describe())

    async def _fleet(self, request: web.Request, operator: Operator) -> web.Response:
        self._query(request, "NoQuery")
        return _answer(await self._asked("fleet", {}))

    async def _openapi(self, request: web.Request, operator: Operator) -> web.Response:
        self._query(request, "NoQuery")
        # Loaded on need: its models take longer to build than all else here.
        from router.admin import openapi

        return _answer(openapi.document(self._root_path))

    # --- what can be done ---------------------------------------------------------------------------

    async def _set(self, request: web.Request, operator: Operator) -> web.Response:
        args = await self._body(request, "Set")
        if len(args) == 1:
            raise AdminError("found neither state nor weight, expected one of them at least", status=400, code="invalid_request")
        done = await self._done("set", args, operator)
        return _answer({"deployment": done["deployment"]})

    async def _readmit(self, request: web.Request, operator: Operator) -> web.Response:
        done = await self._done("readmit", await self._body(request, "Readmit"), operator)
        return _answer({"deployment": done["deployment"]})

    async def _end(self, request: web.Request, operator: Operator) -> web.Response:
        args = await self._body(request, "End", whole=True)
        return _answer(await self._done("end", {"session": _session_id(request), **args}, operator))

    async def _reload(self, request: web.Request, operator: Operator) -> web.Response:
        if request.can_read_body:
            await self._body(request, "NoBody")
        try:
            document = await self._configuration.reload("api")
        except RouterError as error:
            self._acted("reload", {}, operator, status=error.http_status)
            raise AdminError(f"The configuration was not read again: {error}", status=503, code="unavailable") from None
        refused = _refusal(document)
        self._acted("reload", {}, operator, status=200 if refused is None else refused.status)
        if refused is None:
            return _answer(document)
        return _answer({**refused.body(), "config": document}, status=refused.status)

    async def _done(self, act: str, args: Args, operator: Operator) -> Document:
        """Do it, and tell who did."""
        try:
            document = await self._asked(act, args)
        except AdminError as error:
            self._acted(act, args, operator, status=error.status)
            raise
        except OSError:
            self._acted(act, args, operator, status=503)
            raise
        self._acted(act, args, operator, status=200)
        return document

    def _acted(self, act: str, args: Args, operator: Operator, *, status: int) -> None:
        # ``id`` and ``reason`` have other meanings in the log.
        said = {{"id": "deployment", "reason": "close_reason"}.get(name, name): value for name, value in args.items()}
        facts = {"act": act, "principal": operator.name, "client": operator.client, **said, "status": status}
        self._tell(Notice(level="info" if status == 200 else "warning", event="operator acted", facts=facts))

    async def _asked(self, name: str, args: Args) -> Document:
        document = await self._ask(name, args)
        error = AdminError.read(document)
        if error is not None:
            raise error
        return document

    # --- what a request says ------------------------------------------------------------------------

    def _query(self, request: web.Request, model: str) -> Args:
        # Loaded on need: a router that nobody looks at does not pay for it.
        from router.admin import bodies

        try:
            # An empty filter is none: a form sends all its fields.
            pairs = parse_qsl(request.rel_url.raw_query_string, max_num_fields=_MAX_QUERY_FIELDS, errors="replace")
        except ValueError:
            text = f"query: found more than {_MAX_QUERY_FIELDS} parameters, expected fewer"
            raise AdminError(text, status=400, code="invalid_request") from None
        values: dict[str, str] = {}
        for name, value in pairs:
            if name in _QUERY_KEYS:
                continue
            if name in values:
                text = f"{quoted(name)}: found it twice, expected it once"
                raise AdminError(text, status=400, code="invalid_request", param=name[:64])
            values[name] = value
        return bodies.read(bodies.MODELS[model], values).model_dump()

    async def _body(self, request: web.Request, model: str, *, whole: bool = False) -> dict[str, Any]:
        """Return what a body says, checked; with its defaults when it is wanted ``whole``."""
        from router.admin import bodies

        self._query(request, "NoQuery")
        encoding = request.headers.get("Content-Encoding", "identity")
        if request.content_type != _JSON or (request.charset or "utf-8").lower() != "utf-8" or encoding.lower() != "identity":
            found = quoted(request.headers.get("Content-Type", "nothing"))
            text = f"Content-Type: found {found}, expected {_JSON} in UTF-8 without Content-Encoding"
            raise AdminError(text, status=415, code="unsupported_media_type")
        data = await _read(request)
        try:
            values = orjson.loads(data)
        except orjson.JSONDecodeError:
            text = f"body: found {len(data)} bytes that are no JSON, expected an object"
            raise AdminError(text, status=400, code="invalid_request") from None
        if not isinstance(values, dict):
            kind = {list: "a list", str: "a text", type(None): "null"}.get(type(values), "a number or a boolean")
            raise AdminError(f"body: found {kind}, expected an object", status=400, code="invalid_request")
        return bodies.read(bodies.MODELS[model], values).model_dump(exclude_unset=not whole)


async def _read(request: web.Request) -> bytes:
    data = bytearray()
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_long()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while chunk := await request.content.readany():
                data += chunk
                if len(data) > MAX_BODY_BYTES:
                    raise _too_long()
    except TimeoutError:
        text = f"body: found no end of it within {BODY_TIMEOUT_S:g} s, expected all of it"
        raise AdminError(text, status=408, code="request_timeout") from None
    except web.RequestPayloadError:
        text = "body: found no legal HTTP, expected Content-Length bytes or chunks"
        raise AdminError(text, status=400, code="invalid_request") from None
    return bytes(data)


def _too_long() -> AdminError:
    text = f"body: found more than {MAX_BODY_BYTES} bytes, expected fewer"
    return AdminError(text, status=413, code="request_too_large")


def _unavailable() -> AdminError:
    return AdminError(Unavailable().public_message, status=503, code=Unavailable.code)


def _session_id(request: web.Request) -> str:
    # Its bytes may have been anything; what is no UTF-8 arrives as unpaired surrogates, which no JSON can hold.
    return request.match_info["session"][:256].encode("utf-8", "replace").decode()


def _refusal(document: Document) -> AdminError | None:
    """Why a file was refused; ``None``: it was not."""
    last = document["last_reload"]
    if last["successful"]:
        return None
    errors: list[Mapping[str, Any]] = last["errors"]
    first = f" The first: {errors[0]['text']}" if errors else ""
    problems = f"{len(errors)} problem{'s' * (len(errors) != 1)}"
    text = f"The file was refused for {problems}; generation {document['generation']} stays in force.{first}"
    return AdminError(text, status=422, code="invalid_configuration")


def _answer(document: Mapping[str, Any], *, status: int = 200) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    if status == 503:
        headers["Retry-After"] = "1"
    response = web.Response(body=orjson.dumps(document), status=status, content_type=_JSON, headers=headers)
    if status in (408, 413, 415):
        # The rest of the body is not read.
        response.force_close()
    return response
