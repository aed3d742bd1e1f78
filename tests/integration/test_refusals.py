"""What a client is told that gets no session, in the form it can read, and what it is never told."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.running import (
    BROWSER,
    MODEL,
    PATIENCE_S,
    UPGRADE,
    UPSTREAM_KEY,
    RunningRouter,
    closed_port,
    config_of,
    deployment_of,
    leaks,
    next_event,
    next_type,
    running_router,
)

MASTER = "sk-master-0123456789abcdef"
TEAM = "rr-team-0123456789abcdef"
OTHER = "rr-other-0123456789abcdef"
# Fast failures only: each refusal must come from the failures, not from the clock.
QUICK = {"num_retries": 0}


def digest(key: str) -> str:
    """A virtual key as the configuration has it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


KEYS: dict[str, Any] = {
    "master_key": MASTER,
    "keys": [
        {"name": "team", "sha256": digest(TEAM), "models": [MODEL]},
        {"name": "other", "sha256": digest(OTHER), "models": ["elsewhere"]},
        {"name": "gone", "sha256": digest("rr-expired-0123456789"), "expires": "2020-01-01T00:00:00Z"},
    ],
}


def keyed(*targets: Any, general: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A configuration with a master key and three virtual ones, and a second group beside ``MODEL``."""
    elsewhere = deployment_of("http://127.0.0.1:9/v1", model="elsewhere", id="elsewhere-1")
    return config_of(*targets, elsewhere, general={**KEYS, **(general or {})}, **more)


def browser(router: RunningRouter, **more: str) -> dict[str, str]:
    """Headers of a page's script from the router's own host."""
    return {**BROWSER, "Origin": router.http, **more}


async def told(ws: ClientConnection) -> tuple[dict[str, Any], int, str]:
    """Read the one event that explains a refusal, and the close behind it: error, close code, close reason."""
    event = await next_event(ws)
    assert event["type"] == "error" and event["event_id"]
    with pytest.raises(ConnectionClosed):
        async with asyncio.timeout(PATIENCE_S):
            await ws.recv()
    assert ws.close_code is not None and ws.close_reason is not None
    error = event["error"]
    assert isinstance(error, dict)
    return error, ws.close_code, ws.close_reason


async def refused_browser(router: RunningRouter, model: str | None = MODEL, **options: Any) -> tuple[dict[str, Any], int]:
    """Connect as a browser does and return the error and the close code."""
    headers = browser(router, **options.pop("headers", {}))
    async with router.connect(model, headers=headers, **options) as ws:
        error, code, reason = await told(ws)
    assert reason == error["code"]
    return error, code


# --- both forms of each refusal -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "status", "code", "kind", "close"),
    [
        (("status=503", "refuse"), 503, "no_deployment_available", "server_error", 1013),
        (("error_event=server_error", "close_after_events=0"), 503, "no_deployment_available", "server_error", 1013),
        (("status=401", "status=500"), 503, "no_deployment_available", "server_error", 1013),
        (("status=429,retry_after=7", "status=503"), 429, "rate_limit_exceeded", "rate_limit_error", 1013),
        (("hang_before_101", "hang_after_101"), 504, "timeout", "server_error", 1013),
    ],
    ids=["down", "greet and fail", "key and down", "limited", "silent"],
)
async def test_with_both_failing_each_client_hears_it_in_its_form(
    simulator: SimulatorFactory, faults: tuple[str, str], status: int, code: str, kind: str, close: int
) -> None:
    """A program gets an HTTP status and JSON, a browser an ``error`` event and a close code, both with the router's words."""
    sims = [await simulator(name=f"d{number}", faults=[fault]) for number, fault in enumerate(faults)]
    times = {"total_timeout_s": 0.8, "stagger_s": 0.1} if status == 504 else QUICK
    async with running_router(config_of(*sims, router=times)) as router:
        answer = await router.refused()
        assert answer.status == status
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["x-router-session"].startswith("rs_")
        assert set(answer.error) == {"type", "code", "message", "param"}
        assert (answer.error["code"], answer.error["type"]) == (code, kind)
        if status != 504:
            assert 1 <= answer.retry_after_s <= 60
        error, closed = await refused_browser(router)
        assert (error["code"], error["type"], closed) == (code, kind, close)
        assert error["message"] == answer.error["message"]
        assert [record.status for record in router.records] == [status, status]
        assert all((record.who, record.phase, record.deployment) == ("router", "waiting", "") for record in router.records)


async def test_a_search_ends_with_its_total_time(simulator: SimulatorFactory) -> None:
    """Deployments that hang and re-dials that fail: neither makes a client wait beyond ``total_timeout_s``."""
    sims = [await simulator(faults=[fault]) for fault in ("hang_before_101", "status=503", "hang_after_101")]
    config = config_of(*sims, router={"total_timeout_s": 1, "stagger_s": 0.1, "connect_timeout_s": 0.3, "allowed_fails": 10_000})
    async with running_router(config) as router:
        answers = await asyncio.gather(*(router.refused() for _ in range(10)))
        assert {answer.status for answer in answers} <= {503, 504}
        # The total, and what a busy machine takes to notice: far from the next time-out, which would be 3 s.
        assert all(record.seconds < 2.5 for record in router.records)


@pytest.mark.parametrize(
    ("model", "key", "path", "status", "code", "close"),
    [
        (MODEL, None, "/v1/realtime", 401, "invalid_api_key", 1008),
        (MODEL, "wrong", "/v1/realtime", 401, "invalid_api_key", 1008),
        (MODEL, "rr-expired-0123456789", "/v1/realtime", 401, "invalid_api_key", 1008),
        (MODEL, OTHER, "/v1/realtime", 403, "permission_denied", 1008),
        ("unheard-of", TEAM, "/v1/realtime", 404, "model_not_found", 1008),
        (None, TEAM, "/v1/realtime", 400, "invalid_request", 1008),
        ("", TEAM, "/v1/realtime", 400, "invalid_request", 1008),
    ],
    ids=["no key", "wrong key", "expired key", "not allowed", "unknown model", "no model", "empty model"],
)
async def test_a_request_that_cannot_be_served_is_refused_in_both_forms(
    simulator: SimulatorFactory, model: str | None, key: str | None, path: str, status: int, code: str, close: int
) -> None:
    """The client's own fault: no upstream is dialled, no session begins, and there is nothing to retry after."""
    sim = await simulator()
    async with running_router(keyed(sim)) as router:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        answer = await router.refused(model, headers=headers)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert "Retry-After" not in answer.headers
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
        error, closed = await refused_browser(router, model, headers=headers, path=path)
        assert (error["code"], closed) == (code, close)
        assert [(refusal.status, refusal.code) for refusal in router.refusals] == [(status, code)] * 2
        assert not router.records and not sim.stats.requests


@pytest.mark.parametrize(
    "query", ["call_id=rtc_1&model=voice", "model=voice&intent=dance", "model=voice&model=other", "model=a&deployment=b"]
)
async def test_a_query_that_makes_no_sense_is_a_400(simulator: SimulatorFactory, query: str) -> None:
    """It would make no sense at any deployment."""
    sim = await simulator()
    async with running_router(config_of(sim)) as router:
        answer = await router.request(f"/v1/realtime?{query}", upgrade=True)
        assert answer.status == 400 and answer.error["code"] == "invalid_request"
        assert not sim.stats.requests


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Upgrade": "h2c"}, 426),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Connection": "keep-alive"}, 400),
    ],
)
async def test_what_is_no_upgrade_is_refused_as_http_whoever_asks(
    simulator: SimulatorFactory, change: dict[str, str], status: int
) -> None:
    """A browser's headers change nothing: what is no legal upgrade cannot be accepted to be told."""
    async with running_router(config_of(await simulator(), general={"handshake_errors": "close"})) as router:
        headers = {**UPGRADE, **browser(router), **change}
        answer = await router.request(f"/v1/realtime?model={MODEL}", headers=headers)
        assert answer.status == status
        assert answer.error["code"] == {426: "upgrade_required", 400: "invalid_request"}[status]
        if status == 426:
            assert answer.headers["Upgrade"] == "websocket" and answer.headers["Sec-WebSocket-Version"] == "13"


@pytest.mark.parametrize("path", ["/v1/realtime", "/realtime", "/openai/v1/realtime", "/openai/realtime", "/v1/realtime/"])
async def test_a_plain_request_on_a_websocket_path_is_told_so(simulator: SimulatorFactory, path: str) -> None:
    """Whoever opens the URL in a browser's address bar learns what it is for."""
    async with running_router(config_of(await simulator())) as router:
        answer = await router.request(path)
        assert answer.status == 426 and "WebSocket" in answer.error["message"]


async def test_other_methods_and_paths(simulator: SimulatorFactory) -> None:
    """POST is a 405 that names what is allowed, HEAD has no body, and what is nowhere is a 404: all of them JSON."""
    async with running_router(config_of(await simulator())) as router:
        post = await router.request(f"/v1/realtime?model={MODEL}", method="POST")
        assert post.status == 405 and "GET" in post.headers["Allow"] and post.error["code"] == "method_not_allowed"
        head = await router.request(f"/v1/realtime?model={MODEL}", method="HEAD")
        assert head.status in (400, 405, 426) and head.body == b""
        for path in ("/v1", "/v1/realtime/translations", "/v1/realtime/client_secrets", "/admin"):
            method = "POST" if path.endswith("secrets") else "GET"
            answer = await router.request(path, method=method)
            assert answer.status == 404 and answer.error["code"] == "not_found", path
        for path in ("/health/live", "/v1/models"):
            answer = await router.request(path, method="HEAD")
            assert answer.status == 200 and answer.body == b""


# --- which form --------------------------------------------------------------------------------------


async def test_a_program_with_an_origin_gets_a_status(simulator: SimulatorFactory) -> None:
    """Some libraries send ``Origin``: without a browser's ``User-Agent`` that makes no browser."""
    async with running_router(config_of(await simulator())) as router:
        answer = await router.refused("nope", headers={"Origin": router.http, "User-Agent": "ws/8"})
        assert answer.status == 404


async def test_a_key_in_the_subprotocols_means_a_browser(simulator: SimulatorFactory) -> None:
    """Only who cannot set headers puts it there; and the answer selects ``realtime``, or a browser would drop the socket."""
    async with running_router(keyed(await simulator())) as router:
        offered = ["realtime", "openai-insecure-api-key.wrong"]
        async with router.connect(subprotocols=offered) as ws:
            assert ws.subprotocol == "realtime"
            error, code, _ = await told(ws)
        assert (error["code"], code) == ("invalid_api_key", 1008)


@pytest.mark.parametrize("form", ["http", "close"])
async def test_the_form_can_be_fixed(simulator: SimulatorFactory, form: str) -> None:
    """``handshake_errors`` overrules the guess, both ways."""
    async with running_router(config_of(await simulator(), general={"handshake_errors": form})) as router:
        if form == "http":
            with pytest.raises(InvalidStatus) as caught:
                async with router.connect("nope", headers=browser(router)):
                    pass
            assert caught.value.response.status_code == 404
            assert orjson.loads(caught.value.response.body or b"")["error"]["code"] == "model_not_found"
        else:
            async with router.connect("nope") as ws:
                error, code, _ = await told(ws)
            assert (error["code"], code) == ("model_not_found", 1008)


async def test_a_browser_that_leaves_while_it_is_told_does_no_harm(simulator: SimulatorFactory) -> None:
    """The refusal's handler ends, and the router goes on."""
    async with running_router(config_of(await simulator())) as router:
        head = [f"GET /v1/realtime?model=nope HTTP/1.1\r\nHost: 127.0.0.1:{router.port}"]
        head += [f"{name}: {value}" for name, value in {**UPGRADE, **browser(router)}.items()]
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write("\r\n".join([*head, "", ""]).encode())
            await writer.drain()
            writer.transport.abort()
        assert (await router.session()).status == 101


# --- subprotocols, keys, names -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        ([], None),
        (["realtime"], "realtime"),
        (["realtime", f"openai-insecure-api-key.{TEAM}", "openai-beta.realtime-v1"], "realtime"),
        ([f"openai-insecure-api-key.{TEAM}", "realtime"], "realtime"),
        ([f"xai-client-secret.{TEAM}"], f"xai-client-secret.{TEAM}"),
    ],
)
async def test_the_subprotocol_that_clients_insist_on_is_answered(
    simulator: SimulatorFactory, offered: list[str], selected: str | None
) -> None:
    """``realtime`` when offered; an only offered key is answered as it is; none when none was offered."""
    sim = await simulator()
    async with running_router(keyed(sim)) as router:
        key = None if any(TEAM in item for item in offered) else TEAM
        async with router.connect(key=key, subprotocols=offered) as ws:
            assert ws.subprotocol == selected
            assert await next_type(ws) == "session.created"
        assert (await router.record_of(ws)).principal == "team"
        seen = sim.stats.last_request
        assert seen is not None and not seen.protocols and "OpenAI-Beta" not in seen.headers


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {TEAM}"}, {"api-key": TEAM}, {"Authorization": "Bearer placeholder", "api-key": TEAM}],
)
async def test_a_key_is_found_wherever_clients_put_it(simulator: SimulatorFactory, headers: dict[str, str]) -> None:
    """And it never travels upstream."""
    sim = await simulator(api_keys=[UPSTREAM_KEY])
    async with running_router(keyed(sim)) as router:
        async with router.connect(headers=headers) as ws:
            assert await next_type(ws) == "session.created"
        seen = sim.stats.last_request
        assert seen is not None and not any(TEAM in value for value in seen.headers.values())
        assert TEAM not in seen.query_string


async def test_default_model_and_aliases(simulator: SimulatorFactory) -> None:
    """A request without a model gets the default one; an alias stands for its group, in ``deployment=`` as well."""
    config = config_of(
        await simulator(), router={"model_group_alias": {"gpt-4o-realtime": MODEL}}, general={"default_model": MODEL}
    )
    async with running_router(config) as router:
        requests: tuple[tuple[str | None, str, dict[str, Any]], ...] = (
            (None, "/v1/realtime", {}),
            ("gpt-4o-realtime", "/realtime", {}),
            (None, "/openai/realtime", {"deployment": "gpt-4o-realtime", "api-version": "2025-04-01-preview"}),
            (MODEL, "/openai/v1/realtime", {}),
        )
        for model, path, query in requests:
            async with router.connect(model, path=path, **query) as ws:
                assert await next_type(ws) == "session.created"
            assert (await router.record_of(ws)).group == MODEL


async def test_models_lists_what_the_key_may_use(simulator: SimulatorFactory) -> None:
    """Groups and aliases, hidden ones excepted, in OpenAI's form."""
    aliases = {"alias": MODEL, "hidden": {"model": MODEL, "hidden": True}}
    async with running_router(keyed(await simulator(), router={"model_group_alias": aliases})) as router:
        for key, names in ((MASTER, ["alias", "elsewhere", MODEL]), (TEAM, ["alias", MODEL]), (OTHER, ["elsewhere"])):
            answer = await router.request("/v1/models", key=key)
            assert answer.status == 200 and answer.json["object"] == "list"
            assert [item["id"] for item in answer.json["data"]] == names
            assert not leaks(answer.body, hosts=["127.0.0.1"], secrets=[UPSTREAM_KEY])
        assert (await router.request("/v1/models")).status == 401


async def test_routing_is_shown_only_when_exposed(simulator: SimulatorFactory) -> None:
    """Deployments' names are internal unless the operator says otherwise."""
    for expose in (False, True):
        sims = await simulator(name="first", faults=["status=503"]), await simulator(name="second")
        async with running_router(config_of(*sims, general={"expose_routing": expose})) as router:
            async with router.connect() as ws:
                assert ws.response is not None
                headers = ws.response.headers
            assert headers["x-router-session"].startswith("rs_")
            shown = headers.get("x-router-deployment"), headers.get("x-router-attempts")
            assert shown == (("second", "2") if expose else (None, None))
            refused = await router.refused("nope")
            assert "x-router-deployment" not in refused.headers


# --- who may connect -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
        {"Via": "1.1 proxy"},
        {"X-Real-IP": "203.0.113.9"},
        {"Host": "rebound.example.com"},
    ],
)
async def test_a_keyless_router_serves_its_own_host_only(simulator: SimulatorFactory, headers: dict[str, str]) -> None:
    """Behind a proxy the whole world comes from loopback, and a page's name can be made to resolve to it: 403 everywhere."""
    async with running_router(config_of(await simulator())) as router:
        assert (await router.refused(headers=headers)).status == 403
        for path in ("/v1/models", "/metrics", "/admin/deployments"):
            assert (await router.request(path, headers=headers)).status == 403, path
        assert (await router.request("/health/live", headers=headers)).status == 200
        assert (await router.session()).status == 101


async def test_a_router_with_keys_may_be_behind_a_proxy(simulator: SimulatorFactory) -> None:
    """And believes only trusted ones about the client's address."""
    for trusted, address in (([], "127.0.0.1"), (["127.0.0.0/8"], "203.0.113.9")):
        async with running_router(keyed(await simulator(), general={"trusted_proxies": trusted})) as router:
            async with router.connect(key=TEAM, headers={"X-Forwarded-For": "203.0.113.9"}) as ws:
                await next_type(ws)
            assert (await router.record_of(ws)).client == address


async def test_a_foreign_page_may_not_connect(simulator: SimulatorFactory) -> None:
    """``ws://localhost`` is open to every page a browser shows: the origin decides, and the page is told by a close."""
    sim = await simulator()
    for allowed, origin, works in (
        ([], "https://evil.example", False),
        ([], "null", False),
        ([], None, True),
        (["https://app.example"], "https://app.example", True),
        (["https://app.example"], "https://app.example.evil", False),
        (["*"], "https://evil.example", True),
    ):
        async with running_router(config_of(sim, general={"allowed_origins": allowed})) as router:
            headers = {**BROWSER, "Origin": origin or router.http}
            async with router.connect(headers=headers) as ws:
                if works:
                    assert await next_type(ws) == "session.created"
                    continue
                error, code, _ = await told(ws)
            assert (error["code"], code) == ("permission_denied", 1008)
            assert (await router.refused(headers={"Origin": headers["Origin"]})).status == 403


# --- operators' paths ----------------------------------------------------------------------------------------


async def test_health_needs_no_key_and_no_provider(simulator: SimulatorFactory) -> None:
    """Liveness and readiness say what this process can do, under LiteLLM's names as well."""
    async with closed_port() as nowhere, running_router(keyed(nowhere)) as router:
        for path in ("/health/live", "/health/liveliness", "/health/ready", "/health/readiness"):
            answer = await router.request(path)
            assert answer.status == 200 and answer.json["status"] == "ok"
        router.engine.stopping = True
        assert (await router.request("/health/ready")).status == 503
        assert (await router.request("/health/live")).status == 200
        answer = await router.refused(headers={"Authorization": f"Bearer {TEAM}"})
        assert (answer.status, answer.error["code"]) == (503, "router_shutting_down") and answer.retry_after_s == 1


async def test_metrics_ask_for_a_key_only_when_told_to(simulator: SimulatorFactory) -> None:
    """With ``metrics_auth`` for the master key; a virtual key is not enough."""
    sim = await simulator()
    for asks in (False, True):
        async with running_router(keyed(sim, general={"metrics_auth": asks})) as router:
            assert (await router.request("/metrics")).status == (401 if asks else 200)
            assert (await router.request("/metrics", key=TEAM)).status == (403 if asks else 200)
            answer = await router.request("/metrics", key=MASTER)
            assert answer.status == 200 and b"realtime_router_" in answer.body
            assert not leaks(answer.body, secrets=[UPSTREAM_KEY, MASTER, TEAM])


async def test_admin_is_the_master_keys(simulator: SimulatorFactory) -> None:
    """It tells the state of every deployment, and no key and no address even then."""
    sim = await simulator(name="first")
    async with running_router(keyed(sim)) as router:
        assert (await router.request("/admin/deployments")).status == 401
        assert (await router.request("/admin/deployments", key=TEAM)).status == 403
        answer = await router.request("/admin/deployments", key=MASTER)
        assert answer.status == 200
        assert {group["group"] for group in answer.json["groups"]} == {MODEL, "elsewhere"}
        assert not leaks(answer.body, hosts=[str(sim.port)], secrets=[UPSTREAM_KEY, MASTER])


async def test_operators_paths_can_have_an_address_of_their_own(simulator: SimulatorFactory) -> None:
    """With ``ops_listen`` the clients' address serves no metrics and no admin API, and the other one no sessions."""
    async with running_router(config_of(await simulator(), general={"ops_listen": "127.0.0.1:0"})) as router:
        assert len(router.server.addresses) == 2
        for path in ("/metrics", "/admin/deployments"):
            assert (await router.request(path)).status == 404
        router.server.addresses.reverse()
        for path in ("/metrics", "/admin/deployments", "/health/live"):
            assert (await router.request(path)).status == 200
        assert (await router.refused()).status == 404


# --- hostile requests -----------------------------------------------------------------------------------------


async def raw(router: RunningRouter, *pieces: bytes, patience_s: float = PATIENCE_S) -> bytes:
    """Send bytes and return everything that comes until the router closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    try:
        for piece in pieces:
            writer.write(piece)
        await writer.drain()
        async with asyncio.timeout(patience_s):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


async def test_an_oversized_request_is_refused(simulator: SimulatorFactory) -> None:
    """A header or a line of 64 KiB, or a thousand headers: an answer or an end, never a session, and nothing of the inside."""
    sim = await simulator()
    async with running_router(config_of(sim)) as router:
        host = f"Host: 127.0.0.1:{router.port}\r\n".encode()
        upgrade = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items()).encode()
        start = f"GET /v1/realtime?model={MODEL}".encode()
        for request in (
            start + b" HTTP/1.1\r\n" + host + upgrade + b"X-Big: " + b"a" * 65536 + b"\r\n\r\n",
            start + b"&x=" + b"a" * 65536 + b" HTTP/1.1\r\n" + host + upgrade + b"\r\n",
            start + b" HTTP/1.1\r\n" + host + upgrade + b"".join(b"X-%d: a\r\n" % n for n in range(100_000)) + b"\r\n",
        ):
            answer = await raw(router, request)
            assert not answer or answer.startswith((b"HTTP/1.0 4", b"HTTP/1.1 4")), answer[:100]
            assert not leaks(answer, hosts=[str(sim.port)], secrets=[UPSTREAM_KEY, "python", "aaaa"])
        assert not sim.stats.requests
        assert (await router.session()).status == 101


async def test_a_key_in_an_oversized_header_is_not_logged(
    simulator: SimulatorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp logs a header that is too long with the beginning of its value, which may be a key, at level ERROR."""
    async with running_router(config_of(await simulator())) as router:
        key = b"Bearer sk-oversized-0123456789" + b"0" * 20_000
        answer = await raw(router, b"GET /v1/realtime HTTP/1.1\r\nHost: a\r\nAuthorization: " + key + b"\r\n\r\n")
        assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
        assert b"sk-oversized" not in answer and "sk-oversized" not in caplog.text


async def test_what_is_no_http_is_refused(simulator: SimulatorFactory) -> None:
    """TLS on the plain port, an HTTP/2 preface, noise: no traceback, no program's name, no harm."""
    sim = await simulator()
    async with running_router(config_of(sim)) as router:
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64
        for noise in (hello, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00\xff\r\n\r\n"):
            answer = await raw(router, noise)
            assert not answer or answer.startswith((b"HTTP/1.0 4", b"HTTP/1.1 4")), answer[:100]
            assert not leaks(answer, words=["python"])
        assert (await router.session()).status == 101


async def test_a_head_that_trickles_in_is_cut_off(simulator: SimulatorFactory) -> None:
    """``handshake_timeout_s`` bounds the whole head: a byte now and then does not extend it."""
    async with running_router(config_of(await simulator(), general={"handshake_timeout_s": 0.5})) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        ended = asyncio.create_task(reader.read())
        head = f"GET /v1/realtime?model={MODEL} HTTP/1.1\r\nHost: 127.0.0.1:{router.port}\r\n".encode()
        writer.write(head)
        sent = 0
        # 200 bytes, one each 50 ms, would take 10 s.
        while sent < 200 and not ended.done():
            writer.write(b"X-%d: a\r\n" % sent)
            sent += 1
            await asyncio.wait([ended], timeout=0.05)
        assert ended.done() and sent < 200, "the head went on for 20 times the limit"
        writer.transport.abort()


async def test_an_idle_connection_is_cut_off(simulator: SimulatorFactory) -> None:
    """A connection that sends nothing at all is closed as well, and a session is not, however quiet it is."""
    async with running_router(config_of(await simulator(), general={"handshake_timeout_s": 0.3})) as router:
        async with router.connect() as ws:
            assert await next_type(ws) == "session.created"
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            async with asyncio.timeout(PATIENCE_S):
                assert await reader.read() == b""
            writer.transport.abort()
            # The session is older than that connection was when it was cut.
            await ws.send('{"type":"input_audio_buffer.clear"}')
            assert await next_type(ws) == "input_audio_buffer.cleared"


async def test_a_slow_search_outlives_the_handshakes_time(simulator: SimulatorFactory) -> None:
    """``handshake_timeout_s`` is for the request's head: a search that takes longer is not cut off."""
    config = config_of(await simulator(faults=["slow_first_event=0.8"]), general={"handshake_timeout_s": 0.3})
    async with running_router(config) as router:
        assert (await router.session()).status == 101


# --- nothing internal ---------------------------------------------------------------------------------------------

WORDS = ("Simulated", "sim-secret-word")
FAULTS = (
    "refuse",
    "refuse,reset=true",
    "status=500,code=sim_code,message=sim-secret-word",
    "status=401,code=invalid_api_key,message=sim-secret-word",
    "status=429,code=rate_limit_exceeded,message=sim-secret-word,retry_after=3",
    "status=302,location=http://internal.example/sim-secret-word",
    "status=400,message=sim-secret-word conversation_id,code=invalid_value",
    "hang_before_101",
    "hang_after_101",
    "error_event=server_error,message=sim-secret-word,reason=sim-secret-word",
    "close_after_events=0,reason=sim-secret-word",
    "garbage=http",
    "garbage=json",
    "garbage=frame",
)


@pytest.mark.parametrize("page", [False, True], ids=["program", "browser"])
async def test_no_byte_of_the_inside_reaches_a_refused_client(simulator: SimulatorFactory, page: bool) -> None:
    """Every byte of every refusal is searched for upstreams' hosts, ports, keys, ids and words."""
    sims = [await simulator(name=f"inner-{number}", faults=[fault]) for number, fault in enumerate(FAULTS)]
    entries = [deployment_of(sim, model=f"m{number}", api_key=f"sk-inner-{number}") for number, sim in enumerate(sims)]
    times = {"total_timeout_s": 0.6, "num_retries": 0}
    async with closed_port() as nowhere, running_router(config_of(*entries, nowhere, router=times)) as router:
        headers = {**UPGRADE, "Host": f"127.0.0.1:{router.port}", **(browser(router) if page else {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

        async def everything(model: str) -> bytes:
            request = f"GET /v1/realtime?model={model}&conversation_id=c HTTP/1.1\r\n{lines}\r\n"
            return await raw(router, request.encode())

        models = [f"m{number}" for number in range(len(FAULTS))] + [MODEL, "unknown"]
        answers = await asyncio.gather(*(everything(model) for model in models))
        assert len(router.records) == len(FAULTS) + 1
        for model, answer in zip(models, answers, strict=True):
            expected = b"HTTP/1.1 101 " if page else b"HTTP/1.1 "
            assert answer.startswith(expected) and b'"error"' in answer, model
            found = leaks(
                answer,
                hosts=[*(str(sim.port) for sim in sims), nowhere.rpartition(":")[2].removesuffix("/v1"), "internal.example"],
                secrets=[UPSTREAM_KEY, "sk-inner"],
                words=[*WORDS, "inner-", "upstream-model", "sim_code"],
            )
            assert not found, (model, found)
