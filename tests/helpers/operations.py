"""The dashboard in front of documents that a test writes: what the page does with what the admin API says, whatever it says.

The pages, the login and the playground's sessions are the product's own; only ``/admin/…`` is made up, in the form that
``docs/admin.md`` describes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
from aiohttp import web

from router.app import Surface
from router.config.settings import ServerSettings
from router.dashboard.login import principal_of
from router.dashboard.pages import Dashboard
from router.errors import AuthenticationFailed
from router.web import in_json, json_response, request_head
from tests.helpers.running import RunningRouter

Document = dict[str, Any]


def deployment(id: str, **facts: Any) -> Document:
    """A deployment as ``/admin/deployments`` shows it: well and idle, unless said otherwise."""
    return {
        "id": id,
        "provider": "openai",
        "model": "gpt-realtime",
        "state": "admitting",
        "obstacle": None,
        "reason": None,
        "order": 0,
        "weight": 1.0,
        "sessions": 0,
        "sessions_elsewhere": None,
        "max_sessions": None,
        "ready_s": 0.182,
        "first_audio_s": 0.41,
        "minute_starts": 0,
        "minute_tokens": 0,
        "headroom": 1.0,
        "available_in_s": 0.0,
        "configured": {"state": "ready", "weight": 1.0},
        "override": {"state": None, "weight": None},
        "removed": False,
        "failures_in_a_row": 0,
        "ejected_s": None,
        "attempts": {"ready": 12},
        "started": 12,
        "rpm": None,
        "tpm": None,
        **facts,
    }


def session(id: str, **facts: Any) -> Document:
    """A running session as ``/admin/sessions`` shows it."""
    return {
        "session": id,
        "group": "voice",
        "deployment": "east",
        "principal": "team-a",
        "client": "198.51.100.7",
        "phase": "idle",
        "began_at": time.time() - 75.0,
        "seconds": 75.0,
        "ready_s": 0.2,
        "attempts": 1,
        "turns": 4,
        "first_audio_s": 0.38,
        "client_events": 120,
        "upstream_events": 480,
        "client_bytes": 900_000,
        "upstream_bytes": 5_400_000,
        "worker": None,
        **facts,
    }


def decision(session: str, **facts: Any) -> Document:
    """A decision as ``/admin/decisions`` shows it."""
    return {
        "at": time.time() - 75.0,
        "session": session,
        "group": "voice",
        "in_group": "voice",
        "order": 0,
        "pass": 0,
        "attempt": 1,
        "candidates": [{"id": "east", "sessions": 3, "weight": 1.0}, {"id": "west", "sessions": 1, "weight": 2.0}],
        "passed_over": [{"id": "north", "reason": "ejected"}],
        "chosen": "east",
        "why": "strategy p2c",
        "worker": None,
        **facts,
    }


class Operations:
    """What the made-up admin API says, and what was asked of it.

    Attributes:
        groups, sessions, decisions, config, fleet: the documents; a test changes them.
        acts: requests that are no GET, as path and body.
        fails: path → status and message of what is refused.
        url: of the page.
    """

    def __init__(self) -> None:
        self.url = ""
        self.acts: list[tuple[str, Document]] = []
        self.fails: dict[str, tuple[int, str]] = {}
        self.sessions: list[Document] = []
        self.decisions: list[Document] = []
        self.groups: list[Document] = []
        self.config: Document = {
            "generation": 7,
            "file": "config.yaml",
            "loaded_at": time.time() - 3600,
            "watching": True,
            "restart_needed": [],
            "last_reload": {"at": time.time() - 3600, "trigger": "file", "successful": True, "errors": [], "warnings": []},
        }
        self.fleet: Document = {"fleet": None, "workers": [], "draining": False}
        self._asked: list[tuple[Callable[[str], bool], asyncio.Future[None]]] = []

    def group(self, name: str, *deployments: Document, **facts: Any) -> None:
        """Add a group."""
        group = {"group": name, "strategy": "p2c", "fallbacks": [], "aliases": [], "deployments": list(deployments)}
        self.groups.append({**group, **facts})

    def find(self, id: str) -> Document:
        """A deployment by its id."""
        return next(one for group in self.groups for one in group["deployments"] if one["id"] == id)

    async def asked(self, path: str, *, count: int = 1) -> None:
        """Wait until a path is asked for so many times from now on."""
        for _ in range(count):
            future = asyncio.get_running_loop().create_future()
            self._asked.append((path.__eq__, future))
            await asyncio.wait_for(future, 20)

    # --- the answers ---

    def answer(self, request: web.Request, body: Document) -> web.Response:
        """The answer to a request of the admin API."""
        path = request.match_info["path"]
        for matches, future in list(self._asked):
            if matches(path):
                self._asked.remove((matches, future))
                if not future.done():
                    future.set_result(None)
        if request.method != "GET":
            self.acts.append((path, body))
        if path in self.fails:
            status, message = self.fails[path]
            more = {"config": self.config} if path == "reload" else {}
            error = {"type": "invalid_request_error", "code": "refused", "message": message, "param": None}
            return json_response({"error": error, **more}, status=status)
        return self._answer(path, body, request)

    def _answer(self, path: str, body: Document, request: web.Request) -> web.Response:
        query = request.query
        match path.split("/"):
            case ["deployments"]:
                return json_response({"generation": 7, "fleet": self.fleet["fleet"], "groups": self.groups})
            case ["deployments", "set"]:
                return json_response({"deployment": self._set(body)})
            case ["deployments", "readmit"]:
                self.find(body["id"]).update(state="admitting", ejected_s=None, reason=None, failures_in_a_row=0)
                return json_response({"deployment": self.find(body["id"])})
            case ["sessions"]:
                found = [
                    one
                    for one in self.sessions
                    if query.get("search", "") in f"{one['session']} {one['client']} {one['principal']} {one['deployment']}"
                    and query.get("group", one["group"]) == one["group"]
                ]
                return json_response({"sessions": found[: int(query["limit"])], "total": len(found)})
            case ["sessions", id]:
                if all(one["session"] != id for one in self.sessions):
                    error = {"type": "invalid_request_error", "code": "not_found", "message": "No such session.", "param": None}
                    return json_response({"error": error}, status=404)
                return json_response(self._one(id))
            case ["sessions", id, "end"]:
                self.sessions = [one for one in self.sessions if one["session"] != id]
                return json_response({"session": id, "ended": True})
            case ["decisions"]:
                wanted = query.get("deployment")
                found = [one for one in self.decisions if wanted is None or one["chosen"] == wanted]
                return json_response({"decisions": found})
            case ["fleet"]:
                return json_response(self.fleet)
            case ["config"] | ["reload"]:
                return json_response(self.config)
        raise web.HTTPNotFound

    def _one(self, id: str) -> Document:
        found = next(one for one in self.sessions if one["session"] == id)
        attempts = [
            {"deployment": "north", "outcome": "refused", "seconds": 0.08, "detail": "status 503", "raced": False},
            {"deployment": "east", "outcome": "ready", "seconds": 0.2, "detail": "", "raced": False},
        ]
        decisions = [one for one in self.decisions if one["session"] == id]
        more = {"usage": {"total": 900, "input": 300, "output": 600}, "generation": 7, "ended": None}
        return {**found, **more, "attempts": attempts, "decisions": decisions}

    def _set(self, body: Document) -> Document:
        one = self.find(body["id"])
        for name in ("state", "weight"):
            if name in body:
                one["override"][name] = body[name]
        state = one["override"]["state"] or one["configured"]["state"]
        one["state"] = {"drain": "draining", "maint": "maint"}.get(state, "admitting")
        one["obstacle"] = None if state == "ready" else one["state"]
        one["weight"] = one["override"]["weight"] or one["configured"]["weight"]
        return one


@asynccontextmanager
async def operations(router: RunningRouter, *, prefix: str = "") -> AsyncIterator[Operations]:
    """Serve the dashboard of a router, with an admin API that a test writes.

    Args:
        router: whose settings decide about the login, and whose engine serves the playground.
        prefix: of all paths, as behind a proxy.
    """
    made = Operations()
    surface = Surface(router.engine, render_metrics=router.metrics.render)

    def settings() -> ServerSettings:
        return router.engine.settings.server

    dashboard = Dashboard(settings, serve=surface.serve, tell=router.engine.tell)

    async def admin(request: web.Request) -> web.StreamResponse:
        if principal_of(request_head(request), settings(), now_s=time.time()) is None and not settings().keyless:
            raise AuthenticationFailed("no login")
        body = orjson.loads(await request.read()) if request.can_read_body else {}
        return made.answer(request, body)

    inner = web.Application(middlewares=[in_json(router.engine.tell)])
    inner.add_routes(dashboard.routes())
    inner.add_routes([web.route("*", "/admin/{path:.+}", admin)])
    app = inner
    if prefix:
        app = web.Application()
        app.add_subapp(prefix, inner)
    # As the product has it: a handler whose client has left is cancelled.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = cast(tuple[str, int], runner.addresses[0])[1]
        made.url = f"http://localhost:{port}{prefix}/"
        yield made
    finally:
        await runner.cleanup()
