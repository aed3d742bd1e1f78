"""The admin API over real sockets: every operation against its own document, what acts do to sessions, and who may."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from router.admin.routes import MAX_BODY_BYTES
from router.events import Notice, SessionRecord
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.running import (
    MODEL,
    PATIENCE_S,
    UPSTREAM_KEY,
    Answer,
    RunningRouter,
    closed_port,
    config_of,
    leaks,
    next_event,
    next_type,
    raw_server,
    read_head,
    run_turn,
    running_router,
)

MASTER = "master-key-0123456789abcdef"
JSON = "application/json"


async def call(
    router: RunningRouter,
    method: str,
    path: str,
    body: object = None,
    *,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Answer:
    """Make a request of the admin API; ``body`` is sent as JSON."""
    sent = dict(headers or {})
    if body is not None or data is not None:
        sent.setdefault("Content-Type", JSON)
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    base = router.http if port is None else f"http://127.0.0.1:{port}"
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as session,
        session.request(
            method, base + path, headers=sent, data=orjson.dumps(body) if data is None and body is not None else data
        ) as response,
    ):
        return Answer(status=response.status, headers=dict(response.headers), body=await response.read())


def session_of(ws: ClientConnection) -> str:
    """Its id."""
    assert ws.response is not None
    return ws.response.headers["x-router-session"]


async def end_of(ws: ClientConnection) -> tuple[list[dict[str, Any]], int, str]:
    """Read to the end: the events, the close code and reason."""
    events: list[dict[str, Any]] = []
    try:
        while True:
            events.append(await next_event(ws))
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return events, closed.rcvd.code, closed.rcvd.reason


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """An ``api_base`` that takes connections and never answers."""

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await reader.read()

    async with raw_server(never) as base:
        yield base


# --- every operation against the document ---------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """A schema by which a field that is not described is an error."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if "properties" in made and made.get("additionalProperties") is True:
        made["additionalProperties"] = False
    return made


class Contract:
    """The router's own document, and which of its operations have been driven."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.driven: set[str] = set()
        self._components = closed(document["components"])

    def check(self, method: str, path: str, answer: Answer) -> Any:
        """Validate an answer of an operation; return its body."""
        described = self.document["paths"][path][method]
        assert str(answer.status) in described["responses"], (path, answer.status, answer.body)
        schema = described["responses"][str(answer.status)]["content"][JSON]["schema"]
        validator = OAS31Validator({**schema, "components": self._components})
        problems = [f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(answer.json)]
        assert problems == [], f"{method} {path} {answer.status}"
        if answer.status == 200:
            self.driven.add(described["operationId"])
        return answer.json

    @property
    def operations(self) -> set[str]:
        """Every one that is described."""
        return {one["operationId"] for methods in self.document["paths"].values() for one in methods.values()}


class Reloading:
    """A configuration whose reload does what the test says."""

    def __init__(self) -> None:
        self.successful = True
        self.triggers: list[str] = []

    async def describe(self) -> dict[str, Any]:
        """As the contract wants it."""
        problem = {"file": "f", "line": 3, "path": "x", "found": "1", "expected": "2", "hint": "", "text": "f:3: x: found 1"}
        last = {"at": 1.0, "trigger": "api", "successful": self.successful, "errors": [], "warnings": []}
        return {
            "generation": 4,
            "file": "config.yaml",
            "loaded_at": 1.0,
            "watching": True,
            "restart_needed": ["general_settings.listen"],
            "last_reload": last if self.successful else {**last, "errors": [problem]},
        }

    async def reload(self, trigger: str) -> dict[str, Any]:
        """Note it."""
        self.triggers.append(trigger)
        return await self.describe()


async def test_every_documented_operation_answers_as_documented(simulator: SimulatorFactory) -> None:
    """The document is legal OpenAPI 3.1, and each operation's answers, good and bad, fit their schemas to the last field."""
    first, second = await simulator(name="first"), await simulator(name="second")
    async with running_router(config_of(first, second, router={"model_group_alias": {"alias": MODEL}})) as router:
        contract = Contract((await call(router, "GET", "/admin/openapi.json")).json)
        validate(contract.document)
        contract.check("get", "/admin/openapi.json", await call(router, "GET", "/admin/openapi.json"))
        configuration = router.server._surface._admin._configuration = Reloading()
        async with router.connect() as ws:
            assert await next_type(ws) == "session.created"
            await run_turn(ws)
            mine = session_of(ws)
            view = contract.check("get", "/admin/deployments", await call(router, "GET", "/admin/deployments"))
            assert view["groups"][0]["aliases"] == ["alias"]
            assert view["groups"][0]["deployments"][0]["attempts"] == {"ready": 1}
            sessions = contract.check("get", "/admin/sessions", await call(router, "GET", "/admin/sessions"))
            assert [one["session"] for one in sessions["sessions"]] == [mine] and sessions["total"] == 1
            detail = await call(router, "GET", f"/admin/sessions/{mine}")
            shown = contract.check("get", "/admin/sessions/{session}", detail)
            assert shown["turns"] == 1 and shown["usage"]["total"] > 0 and shown["ended"] is None
            assert [attempt["outcome"] for attempt in shown["attempts"]] == ["ready"]
            decisions = contract.check("get", "/admin/decisions", await call(router, "GET", "/admin/decisions"))
            assert decisions["decisions"] == shown["decisions"]
            contract.check("get", "/admin/config", await call(router, "GET", "/admin/config"))
            contract.check("get", "/admin/fleet", await call(router, "GET", "/admin/fleet"))
            answer = await call(router, "POST", "/admin/deployments/set", {"id": "first", "state": "drain", "weight": 3})
            changed = contract.check("post", "/admin/deployments/set", answer)["deployment"]
            assert (changed["state"], changed["weight"]) == ("draining", 3.0)
            assert changed["override"] == {"state": "drain", "weight": 3.0}
            assert changed["configured"] == {"state": "ready", "weight": 1.0}
            answer = await call(router, "POST", "/admin/deployments/readmit", {"id": "first"})
            contract.check("post", "/admin/deployments/readmit", answer)
            contract.check("post", "/admin/reload", await call(router, "POST", "/admin/reload"))
            configuration.successful = False
            refused = contract.check("post", "/admin/reload", await call(router, "POST", "/admin/reload", {}))
            assert refused["config"]["last_reload"]["errors"][0]["line"] == 3 and "f:3" in refused["error"]["message"]
            assert configuration.triggers == ["api", "api"]
            answer = await call(router, "POST", f"/admin/sessions/{mine}/end", {})
            contract.check("post", "/admin/sessions/{session}/end", answer)
            await end_of(ws)
        await router.record_of(ws)
        ended = contract.check("get", "/admin/sessions/{session}", await call(router, "GET", f"/admin/sessions/{mine}"))
        assert (ended["ended"]["who"], ended["ended"]["cause"], ended["turns"]) == ("router", "admin", 1)
        for method, template, path, body in (
            ("post", "/admin/deployments/set", "/admin/deployments/set", {"id": "nobody", "state": "drain"}),
            ("post", "/admin/deployments/set", "/admin/deployments/set", {"id": "first", "weight": -1}),
            ("post", "/admin/deployments/readmit", "/admin/deployments/readmit", {"id": "nobody"}),
            ("post", "/admin/sessions/{session}/end", "/admin/sessions/rs_x/end", {}),
            ("get", "/admin/sessions/{session}", "/admin/sessions/rs_x", None),
            ("get", "/admin/sessions", "/admin/sessions?limit=0", None),
            ("get", "/admin/decisions", "/admin/decisions?limit=x", None),
        ):
            answer = await call(router, method.upper(), path, body)
            assert answer.status in (400, 404)
            contract.check(method, template, answer)
        assert contract.driven == contract.operations


async def test_what_is_documented_is_what_is_served(simulator: SimulatorFactory) -> None:
    """No path under /admin/ is without a description, and none is described that is not there."""
    async with running_router(config_of(await simulator())) as router:
        document = (await call(router, "GET", "/admin/openapi.json")).json
        described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        served = {(route.method, route.path) for route in router.server._surface._admin.routes()}
        assert described == served


# --- what acts do -----------------------------------------------------------------------------------------------


async def test_an_operators_state_and_weight_win_until_given_back(simulator: SimulatorFactory) -> None:
    """Drain, maint, weight: the next session goes by them, the running one stays; null gives them back to the file."""
    first, second = await simulator(name="first"), await simulator(name="second")
    async with running_router(config_of(first, second)) as router, router.connect() as ws:
        assert await next_type(ws) == "session.created"
        for state, word in (("drain", "draining"), ("maint", "maint")):
            answer = await call(router, "POST", "/admin/deployments/set", {"id": "first", "state": state})
            assert (answer.json["deployment"]["state"], answer.json["deployment"]["obstacle"]) == (word, word)
            record = await router.session()
            assert record.deployment == "second"
        assert (await run_turn(ws))[-1] == "response.done"
        answer = await call(router, "POST", "/admin/deployments/set", {"id": "first", "state": None, "weight": 2.5})
        assert answer.json["deployment"]["override"] == {"state": None, "weight": 2.5}
        assert (await router.session()).deployment == "first"
        answer = await call(router, "POST", "/admin/deployments/set", {"id": "first", "weight": None})
        assert (answer.json["deployment"]["weight"], answer.json["deployment"]["state"]) == (1.0, "admitting")
        acts = [notice for notice in router.of(Notice) if notice.event == "operator acted"]
        assert [notice.facts["status"] for notice in acts] == [200] * 4
        said = dict(acts[0].facts)
        assert said == {
            "act": "set", "principal": "anonymous", "client": "127.0.0.1", "deployment": "first", "state": "drain", "status": 200
        }  # fmt: skip


async def test_a_file_may_say_ready_against_an_operators_word(simulator: SimulatorFactory) -> None:
    """A deployment that the file drains is made ready by an operator; one without its key is not, and the answer says why."""
    sim = await simulator(name="first")
    config = config_of(sim, await simulator(name="second"))
    config["model_list"][0]["model_info"]["state"] = "drain"
    config["model_list"][1]["litellm_params"]["api_key"] = "os.environ/NOT_THERE"
    async with running_router(config) as router:
        assert (await router.refused()).status == 503
        assert (await call(router, "POST", "/admin/deployments/set", {"id": "first", "state": "ready"})).status == 200
        assert (await router.session()).deployment == "first"
        answer = await call(router, "POST", "/admin/deployments/set", {"id": "second", "state": "ready"})
        assert answer.status == 409 and "NOT_THERE" in answer.error["message"]


async def test_readmitting_ends_an_ejection(simulator: SimulatorFactory) -> None:
    """A deployment that is out is in again at once, with its full weight and no failures to its name."""
    sim = await simulator(name="second")
    async with closed_port() as nowhere, running_router(config_of(nowhere, sim, router={"allowed_fails": 1})) as router:
        assert (await router.session()).deployment == "second"
        view = (await call(router, "GET", "/admin/deployments")).json["groups"][0]["deployments"][0]
        assert (view["state"], view["reason"]) == ("ejected", "unreachable") and 0 < view["ejected_s"] < 60
        assert view["attempts"] == {"unreachable": 1}
        answer = await call(router, "POST", "/admin/deployments/readmit", {"id": "d0"})
        view = answer.json["deployment"]
        assert (view["state"], view["ejected_s"], view["failures_in_a_row"], view["weight"]) == ("admitting", None, 0, 1.0)
        await router.session()
        assert len([attempt for attempt in router.attempts if attempt.deployment == "d0"]) == 2


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ({}, 1001, ""),
        ({"code": 1013, "reason": "move on"}, 1013, "move on"),
        ({"code": 4999, "reason": "ü" * 61}, 4999, "ü" * 61),
    ],
)
async def test_a_session_is_ended_politely(simulator: SimulatorFactory, body: dict[str, Any], code: int, reason: str) -> None:
    """Its client gets an ``error`` event and the code; the record and the other session say so."""
    async with running_router(config_of(await simulator())) as router, router.connect() as other, router.connect() as ws:
        assert await next_type(ws) == await next_type(other) == "session.created"
        answer = await call(router, "POST", f"/admin/sessions/{session_of(ws)}/end", body)
        assert answer.json == {"session": session_of(ws), "ended": True}
        events, got, why = await end_of(ws)
        assert [event["type"] for event in events] == ["error"] and events[0]["error"]["code"] == "ended_by_operator"
        assert (got, why) == (code, reason)
        record = await router.record_of(ws)
        assert (record.who, record.cause, record.client_code, record.upstream_code) == ("router", "admin", code, 1001)
        assert (await run_turn(other))[-1] == "response.done"
        assert (await call(router, "POST", f"/admin/sessions/{session_of(ws)}/end", body)).status == 404


async def test_a_session_that_searches_is_ended_with_503(silent: str) -> None:
    """It is seen while it waits, with its dial under way; its client is told, nobody is blamed, nothing is left."""
    async with running_router(config_of(silent)) as router:
        refused = asyncio.create_task(router.refused())
        await router.until_true(lambda: router.leases == 1)
        (waiting,) = (await call(router, "GET", "/admin/sessions")).json["sessions"]
        assert (waiting["phase"], waiting["deployment"], waiting["attempts"]) == ("waiting", None, 1)
        detail = (await call(router, "GET", f"/admin/sessions/{waiting['session']}")).json
        assert [attempt["outcome"] for attempt in detail["attempts"]] == ["under_way"]
        assert (await call(router, "POST", f"/admin/sessions/{waiting['session']}/end", {})).status == 200
        answer = await refused
        assert (answer.status, answer.error["code"], answer.retry_after_s) == (503, "ended_by_operator", 5)
        record = await router.until(SessionRecord)
        assert (record.who, record.cause, record.status) == ("router", "admin", 503)
        assert [attempt.outcome for attempt in record.attempts] == ["client_gone"]
        assert router.deployment("d0").breaker.failures == 0
        ended = (await call(router, "GET", f"/admin/sessions/{waiting['session']}")).json["ended"]
        assert (ended["cause"], ended["status"]) == ("admin", 503)


async def test_a_session_is_ended_while_its_101_is_sent(simulator: SimulatorFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither searched for nor relayed in that moment; it is ended as soon as it is, and just as politely."""
    async with running_router(config_of(await simulator())) as router:
        surface = router.server._surface
        accept = surface._accept

        async def ending(*arguments: Any) -> Any:
            (session,) = router.engine.live
            assert router.engine.end_session(session, code=4000, reason="now")
            # The first word counts.
            assert router.engine.end_session(session, code=4001, reason="later")
            return await accept(*arguments)

        monkeypatch.setattr(surface, "_accept", ending)
        async with router.connect() as ws:
            events, code, reason = await end_of(ws)
        assert (code, reason) == (4000, "now") and events[-1]["error"]["code"] == "ended_by_operator"
        assert (await router.record_of(ws)).cause == "admin"


async def test_a_client_that_takes_nothing_is_cut(simulator: SimulatorFactory) -> None:
    """Ending is bounded: whoever does not answer the CLOSE is gone after the relay's own few seconds."""
    async with running_router(config_of(await simulator())) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        head = "".join(
            f"{name}: {value}\r\n"
            for name, value in {
                "Host": f"127.0.0.1:{router.port}",
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            }.items()
        )
        writer.write(f"GET /v1/realtime?model={MODEL} HTTP/1.1\r\n{head}\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        await router.until_true(lambda: len(router.engine.relays) == 1)
        (session,) = router.engine.live
        began = time.monotonic()
        assert (await call(router, "POST", f"/admin/sessions/{session}/end", {})).status == 200
        record = await router.until(SessionRecord)
        assert record.cause == "admin" and time.monotonic() - began < PATIENCE_S
        writer.close()


# --- what is seen -----------------------------------------------------------------------------------------------


async def test_sessions_are_filtered_and_the_newest_come_first(simulator: SimulatorFactory) -> None:
    """By group, deployment, principal and words; what is not shown is counted."""
    sim = await simulator(name="first")
    async with running_router(config_of(sim)) as router:
        sockets = [await router.connect() for _ in range(3)]
        try:
            for ws in sockets:
                await next_type(ws)
            ids = [session_of(ws) for ws in reversed(sockets)]

            async def found(query: str) -> tuple[list[str], int]:
                view = (await call(router, "GET", f"/admin/sessions?{query}")).json
                return [one["session"] for one in view["sessions"]], view["total"]

            assert await found("") == (ids, 3)
            assert await found("limit=1") == (ids[:1], 3)
            assert await found(f"group={MODEL}&deployment=first&principal=anonymous&search=") == (ids, 3)
            assert await found("deployment=second") == await found("group=x") == await found("principal=x") == ([], 0)
            assert await found(f"search={ids[1][3:].upper()}") == (ids[1:2], 1)
            assert await found("search=FIRST") == await found("search=127.0") == (ids, 3)
            answer = await call(router, "GET", f"/admin/sessions/{ids[1][:12]}")
            assert answer.status == 404 and ids[1] in answer.error["message"]
        finally:
            for ws in sockets:
                await ws.close()


async def test_decisions_say_why(simulator: SimulatorFactory) -> None:
    """Candidates, those passed over with the reason, the choice, and which dial it was: through a failure to a fallback."""
    limited, last = await simulator(name="limited"), await simulator(name="last")
    config = config_of(limited, router={"fallbacks": [{MODEL: ["spare"]}], "allowed_fails": 1, "num_retries": 0})
    async with closed_port() as nowhere:
        config["model_list"] += config_of(nowhere)["model_list"]
        config["model_list"][1]["model_info"]["id"] = "dead"
        config["model_list"] += config_of(last)["model_list"]
        config["model_list"][2]["model_name"] = "spare"
        config["model_list"][0]["model_info"]["state"] = "maint"
        async with running_router(config) as router:
            record = await router.session()
            assert record.deployment == "last"
            decisions = (await call(router, "GET", f"/admin/decisions?session={record.session}")).json["decisions"]
            assert [(one["chosen"], one["in_group"], one["attempt"], one["why"]) for one in decisions] == [
                ("last", "spare", 2, "only one eligible"),
                ("dead", MODEL, 1, "only one eligible"),
            ]
            newest, oldest = decisions
            assert oldest["passed_over"] == [{"id": "limited", "reason": "maint"}]
            assert newest["passed_over"] == [{"id": "limited", "reason": "maint"}, {"id": "dead", "reason": "tried in this pass"}]
            assert oldest["candidates"] == [{"id": "dead", "sessions": 0, "weight": 1.0}]
            assert {one["group"] for one in decisions} == {MODEL}
            second = await router.session()
            (decision,) = (await call(router, "GET", f"/admin/decisions?session={second.session}")).json["decisions"]
            assert {"id": "dead", "reason": "ejected: unreachable"} in decision["passed_over"]
            shown = (await call(router, "GET", "/admin/decisions?deployment=last&limit=1")).json["decisions"]
            assert [one["session"] for one in shown] == [second.session]
            assert (await call(router, "GET", "/admin/decisions?group=nobody")).json == {"decisions": []}


async def test_that_nothing_was_found_is_a_decision(simulator: SimulatorFactory) -> None:
    """An ejected one is tried when there is no other, and then there is nothing left."""
    settings = {"allowed_fails": 1, "num_retries": 0}
    async with closed_port() as nowhere, running_router(config_of(nowhere, router=settings)) as router:
        for _ in range(2):
            assert (await router.refused()).status == 503
        shown = (await call(router, "GET", "/admin/decisions")).json["decisions"]
        # Within a session one that was ejected by it is not tried again in the same pass.
        assert [(one["chosen"], one["why"]) for one in shown] == [
            (None, "nothing eligible"), ("d0", "fail open"), (None, "nothing eligible"), ("d0", "only one eligible")
        ]  # fmt: skip
        assert all(decision["at"] > 1_700_000_000 for decision in shown)


# --- who may, and what may be said -------------------------------------------------------------------------------


GETS = ("deployments", "sessions", "sessions/rs_x", "decisions", "config", "fleet", "openapi.json")
POSTS = ("deployments/set", "deployments/readmit", "sessions/rs_x/end", "reload")


async def test_every_operation_needs_the_master_key(simulator: SimulatorFactory) -> None:
    """None, a wrong one, a virtual one: refused, before anything of the request is looked at; nothing of the inside is told."""
    team = "team-key-0123456789abcdef"
    keys = [{"name": "team", "sha256": sha256(team.encode()).hexdigest()}]
    async with running_router(config_of(await simulator(), general={"master_key": MASTER, "keys": keys})) as router:
        for method, path in [*(("GET", path) for path in GETS), *(("POST", path) for path in POSTS)]:
            for headers, status in (({}, 401), ({"api-key": "wrong"}, 401), ({"Authorization": f"Bearer {team}"}, 403)):
                answer = await call(router, method, f"/admin/{path}", headers=headers)
                assert answer.status == status, (path, headers)
            for headers in ({"Authorization": f"Bearer {MASTER}"}, {"api-key": MASTER}):
                answer = await call(router, method, f"/admin/{path}", headers=headers)
                assert answer.status not in (401, 403, 500), path
                assert not leaks(answer.body, secrets=[UPSTREAM_KEY, MASTER]) or path == "openapi.json"
        assert (await call(router, "GET", f"/admin/config?api-key={MASTER}")).status == 200


async def test_a_foreign_page_does_nothing_to_a_router_without_keys(simulator: SimulatorFactory) -> None:
    """A page can make its browser send a request here; the router's own page may."""
    async with running_router(config_of(await simulator())) as router:
        for origin, status in (("https://evil.example", 403), ("null", 403), (router.http, 503)):
            assert (await call(router, "POST", "/admin/reload", headers={"Origin": origin})).status == status
        assert (await call(router, "GET", "/admin/config", headers={"X-Forwarded-For": "203.0.113.9"})).status == 403


async def test_another_host_gets_nothing_from_a_router_without_keys(
    simulator: SimulatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that systemd or another router handed in may be open to other hosts, whatever the configuration says.

    Only the peer's address is played here: that of a connection on loopback is always this host's.
    """
    async with running_router(config_of(await simulator())) as router:
        for module in ("router.app", "router.dashboard.pages"):
            monkeypatch.setattr(f"{module}.peer_address", lambda request: "203.0.113.9")
        for path in ("/admin/config", "/metrics", "/v1/models", "/", "/dashboard/login"):
            assert (await call(router, "GET", path)).status == 403, path
        for path in ("/admin/reload", "/dashboard/tickets", "/dashboard/logout"):
            assert (await call(router, "POST", path, {})).status == 403, path
        assert (await router.refused()).status == 403
        assert (await call(router, "GET", "/health/ready")).status == 200


BAD_BODIES = [
    ("set", {}, "id: found nothing, expected a deployment's id", "id"),
    ("set", {"id": "d0"}, "found neither state nor weight", None),
    ("set", {"id": 3, "state": "drain"}, "id: found 3, expected", "id"),
    ("set", {"id": "d0", "state": "up"}, "state: found 'up', expected ready, drain, maint, or null", "state"),
    ("set", {"id": "d0", "state": "misconfigured"}, "state: found 'misconfigured'", "state"),
    ("set", {"id": "d0", "weight": 0}, "weight: found 0, expected a number above 0", "weight"),
    ("set", {"id": "d0", "weight": -1}, "weight: found -1", "weight"),
    ("set", {"id": "d0", "weight": 1e7}, "weight: found 10000000.0", "weight"),
    ("set", {"id": "d0", "weight": True}, "weight: found true", "weight"),
    ("set", {"id": "d0", "weight": "1"}, "weight: found '1'", "weight"),
    ("set", {"id": "d0", "weight": [1]}, "weight: found a list", "weight"),
    ("set", {"id": "d0", "wait": 1}, "'wait': found an unknown name, expected some of id, state, weight", "wait"),
    ("set", {"id": "d0", "wieght": 1}, "did you mean weight?", "wieght"),
    ("end", {"code": 1005}, "code: found 1005, expected a close code that may be sent", "code"),
    ("end", {"code": 1015}, "code: found 1015", "code"),
    ("end", {"code": 999}, "code: found 999", "code"),
    ("end", {"code": 5000}, "code: found 5000", "code"),
    ("end", {"code": 10**30}, "", None),
    ("end", {"code": 1000.5}, "code: found 1000.5", "code"),
    ("end", {"reason": "x" * 124}, "reason: found ", "reason"),
    ("end", {"reason": "ü" * 62}, "expected a close reason of at most 123 bytes", "reason"),
    ("end", {"code": 1, "reason": 2}, "code: found 1, expected a close code that may be sent: 1000 to 1014", "code"),
    ("readmit", {"id": ""}, "id: found '', expected a deployment's id", "id"),
    ("readmit", {"id": "d" * 300}, "id: found 'dd", "id"),
    ("readmit", [], "body: found a list, expected an object", None),
    ("readmit", None, "body: found null, expected an object", None),
]
PATHS = {"set": "/admin/deployments/set", "readmit": "/admin/deployments/readmit", "end": "/admin/sessions/rs_x/end"}


async def test_what_a_body_may_not_say(simulator: SimulatorFactory) -> None:
    """400 with the place, what was found and what was expected; nothing changes."""
    async with running_router(config_of(await simulator())) as router:
        before = (await call(router, "GET", "/admin/deployments")).json
        for act, body, message, param in BAD_BODIES:
            data = b"null" if body is None else (b'{"code":1' + b"0" * 30 + b"}" if body == {"code": 10**30} else None)
            answer = await call(router, "POST", PATHS[act], body, data=data)
            assert answer.status == 400, (act, body, answer.body)
            if message:
                assert message in answer.error["message"]
                assert answer.error["param"] == param
            assert answer.error["type"] == "invalid_request_error"
        odd = (b'{"id": "d0", "weight": NaN}', b'{"id": "d0", "weight": 1e999}', b'{"id":"\\ud800"}')
        for data in (b"", b"{", b"{'id': 1}", b"\xff", *odd):
            answer = await call(router, "POST", PATHS["set"], data=data)
            assert answer.status == 400, data
        assert (await call(router, "GET", "/admin/deployments")).json == before
        assert not [notice for notice in router.of(Notice) if notice.event == "operator acted"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "limit: found '0', expected the most entries to be shown, from 1 to 1000"),
        ("limit=1001", "limit: found '1001'"),
        ("limit=-1", "limit: found '-1'"),
        ("limit=1.5", "limit: found '1.5'"),
        ("limit=" + "9" * 5000, "limit: found "),
        ("limit=NaN", "limit: found 'NaN'"),
        ("limit=1&limit=2", "'limit': found it twice"),
        ("gruop=x", "did you mean group?"),
        ("group=" + "x" * 257, "group: found 'xx"),
        ("&".join(f"a{number}=1" for number in range(40)), "more than 32 parameters"),
        ("search=%ff%00", ""),
    ],
)
async def test_what_a_query_may_not_say(simulator: SimulatorFactory, query: str, message: str) -> None:
    """The same form; bytes that are no text are looked for like any other, and not found."""
    async with running_router(config_of(await simulator())) as router:
        answer = await call(router, "GET", f"/admin/sessions?{query}")
        if message:
            assert answer.status == 400 and message in answer.error["message"]
        else:
            assert answer.json == {"sessions": [], "total": 0}


async def test_an_unknown_deployment_is_told_the_nearest(simulator: SimulatorFactory) -> None:
    """404 with ids that look like it, or with some that there are."""
    async with running_router(config_of(await simulator(name="voice-1"), await simulator(name="other"))) as router:
        answer = await call(router, "POST", PATHS["readmit"], {"id": "voice1"})
        assert answer.status == 404 and answer.error["param"] == "id"
        assert answer.error["message"] == "id: found 'voice1', expected one of 'voice-1'"
        answer = await call(router, "POST", PATHS["set"], {"id": "zzzzzzzz", "state": "drain"})
        assert answer.error["message"] == "id: found 'zzzzzzzz', expected one of 'voice-1', 'other'"


async def test_methods_types_and_lengths(simulator: SimulatorFactory) -> None:
    """405 with Allow, 415 for what is no JSON, 413 for what is too long, whatever the head says of its length."""
    async with running_router(config_of(await simulator())) as router:
        for method, path, allow in (("DELETE", "/admin/sessions", "GET,HEAD"), ("GET", "/admin/reload", "POST")):
            answer = await call(router, method, path)
            assert (answer.status, answer.error["code"], answer.headers["Allow"]) == (405, "method_not_allowed", allow)
        good = orjson.dumps({"id": "d0", "state": "drain"})
        for headers in (
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "application/json; charset=latin-1"},
            {"Content-Type": JSON, "Content-Encoding": "gzip"},
        ):
            answer = await call(router, "POST", PATHS["set"], data=good, headers=headers)
            assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type"), headers
        answer = await call(router, "POST", PATHS["set"], data=good + b" " * MAX_BODY_BYTES)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        for piece in (b"10000\r\n" + b" " * 65536 + b"\r\n0\r\n\r\n", b"zz\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            head = f"POST {PATHS['set']} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {JSON}\r\n"
            writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + piece)
            got = await asyncio.wait_for(reader.read(), PATIENCE_S)
            assert got.startswith((b"HTTP/1.1 413 ", b"HTTP/1.0 400 ")), got[:80]
            writer.close()
        headers = {"Content-Type": "application/json; charset=UTF-8"}
        assert (await call(router, "POST", PATHS["set"], data=good, headers=headers)).status == 200


async def test_a_body_that_does_not_come_is_given_up(simulator: SimulatorFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that says it will send more and does not keeps nothing busy for ever."""
    monkeypatch.setattr("router.admin.routes.BODY_TIMEOUT_S", 0.05)
    async with running_router(config_of(await simulator())) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        head = f"POST {PATHS['set']} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {JSON}\r\nContent-Length: 40\r\n\r\n"
        writer.write(head.encode() + b"{")
        assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.parametrize("session", ["rs_x", "%00", "%ff%fe", "..%2f..", "x" * 2000, "ünïcode"])
async def test_a_session_that_cannot_be(simulator: SimulatorFactory, session: str) -> None:
    """404 in the same form, whatever stands in the path."""
    async with running_router(config_of(await simulator())) as router:
        path = f"/admin/sessions/{session if '%' in session else quote(session)}"
        answer = await call(router, "GET", path)
        assert answer.status == 404 and answer.error["type"] == "invalid_request_error"


async def test_operators_have_an_address_of_their_own(simulator: SimulatorFactory) -> None:
    """With ``ops_listen`` nothing of this is on the clients' address."""
    async with running_router(config_of(await simulator(), general={"ops_listen": "127.0.0.1:0"})) as router:
        for path in GETS:
            assert (await call(router, "GET", f"/admin/{path}")).error["code"] == "not_found"
            assert (await call(router, "GET", f"/admin/{path}", port=router.server.addresses[1][1])).status in (200, 404)
