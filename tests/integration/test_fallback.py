"""From a call to an upstream that works, whatever the others do: the attempt loop over real sockets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from router.events import Admitted, Attempt, Ejected, Event, SessionRecord
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.running import (
    MODEL,
    PATIENCE_S,
    UPSTREAM_KEY,
    RunningRouter,
    closed_port,
    config_of,
    deployment_of,
    dialled,
    next_type,
    outcomes,
    raw_server,
    read_head,
    running_router,
)

# Every fault of the simulator that can strike before an upstream is ready, and how its attempt ends.
LOUD = {
    "refuse": "unreachable",
    "refuse,reset=true": None,  # a reset right after accept may meet the dial on either side of its request
    "status=500": "refused",
    "status=503": "refused",
    "status=404": "refused",
    "error_event=server_error": "error_event",
    "close_after_events=0": "early_close",
    "reset_after_events=0": "early_close",
    "garbage=frame": "protocol",
    "garbage=json": "protocol",
    "garbage=http": "refused",
}
SILENT = ("hang_before_101", "hang_after_101", "slow_first_event=60")
# No breaker in the way: each session meets the fault.
UNDETERRED = {"allowed_fails": 10_000}


async def many(router: RunningRouter, count: int, *, batch: int = 25, turn: bool = True) -> list[SessionRecord]:
    """Run sessions, a batch at a time, and return their records."""
    records: list[SessionRecord] = []
    while len(records) < count:
        records += await asyncio.gather(*(router.session(turn=turn) for _ in range(min(batch, count - len(records)))))
    return records


# --- 100 of 100 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "outcome"), LOUD.items(), ids=LOUD)
async def test_every_session_survives_a_fault_that_shows(
    simulator: SimulatorFactory, fault: str, outcome: str | None
) -> None:
    """100 of 100 sessions whose first deployment fails work on the second, each after exactly one failed attempt."""
    first, second = await simulator(name="first", faults=[fault]), await simulator(name="second")
    # A stagger as long as the total: only the failure itself can have started the second attempt.
    times = {"stagger_s": 7.9, "total_timeout_s": 8}
    async with running_router(config_of(first, second, router=UNDETERRED | times)) as router:
        records = await many(router, 100)
        assert {record.deployment for record in records} == {"second"}
        assert {tuple(dialled(record)) for record in records} == {("first", "second")}
        ended = {record.attempts[0].outcome for record in records}
        assert ended == {outcome} if outcome is not None else ended <= {"unreachable", "refused"}
        assert all(record.ready_s is not None and record.ready_s < 7.9 for record in records)
        assert second.stats.sessions_opened == 100 and first.stats.sessions_opened in (0, 100)


@pytest.mark.parametrize("fault", SILENT)
async def test_every_session_survives_a_fault_by_silence(simulator: SimulatorFactory, fault: str) -> None:
    """100 of 100 sessions whose first deployment says nothing work on the second before the first one's time-out."""
    first, second = await simulator(name="first", faults=[fault]), await simulator(name="second")
    times = {"stagger_s": 0.2, "connect_timeout_s": 7, "ready_timeout_s": 7}
    async with running_router(config_of(first, second, router=UNDETERRED | times)) as router:
        records = await many(router, 100)
        assert {record.deployment for record in records} == {"second"}
        # The silent attempt had not ended when its session was over: nobody waited for it, and the record says so.
        assert {tuple(outcomes(record)) for record in records} == {("ready", "under_way")}
        assert {event.attempts for event in router.readies} == {2}
        assert all(event.fallback and 0.2 <= event.seconds < 7 for event in router.readies)
        assert router.leases == 100 == router.deployment("first").sessions, "each silent dial still holds its place"


@pytest.mark.parametrize("fault", [*LOUD, *SILENT])
async def test_the_third_failure_ejects_and_then_it_costs_nobody_anything(simulator: SimulatorFactory, fault: str) -> None:
    """Three sessions find out; all later ones make exactly one attempt and the first deployment is not even dialled."""
    first, second = await simulator(name="first", faults=[fault]), await simulator(name="second")
    impatient = deployment_of(first, connect_timeout_s=0.4, ready_timeout_s=0.4)
    config = config_of(impatient, second, router={"stagger_s": 0.1 if fault in SILENT else 5})
    async with running_router(config) as router:
        for number in range(1, 4):
            assert router.deployment("first").breaker.admits()
            assert (await router.session()).deployment == "second"
            # A silent attempt goes on alone after its session was served, until it is blamed.
            await router.until(Attempt, number, where=lambda attempt: attempt.deployment == "first")
        ejected = await router.until(Ejected)
        assert ejected.deployment == "first" and ejected.in_a_row == 1 and 24 <= ejected.seconds <= 36
        # On a busy machine the second one may take longer than so short a stagger, and that would dial the first one as well.
        router.group.settings = replace(router.group.settings, stagger_s=30)
        seen = first.stats.connections + first.stats.connections_reset
        records = await many(router, 10)
        assert {tuple(dialled(record)) for record in records} == {("second",)}
        assert first.stats.connections + first.stats.connections_reset == seen


async def test_one_alive_among_five_dead(simulator: SimulatorFactory) -> None:
    """With the default times, a session finds the one deployment that works within ``total_timeout_s``."""
    faults = ("refuse", "hang_before_101", "hang_after_101", "error_event=server_error", "hang_before_101")
    dead = [await simulator(name=f"dead{number}", faults=[fault]) for number, fault in enumerate(faults)]
    alive = await simulator(name="alive")
    async with running_router(config_of(*dead, alive)) as router:
        record = await router.session(turn=True)
        assert record.deployment == "alive"
        assert record.ready_s is not None and record.ready_s < router.group.settings.total_timeout_s
        assert router.readies[0].attempts == 6


async def test_one_alive_among_five_that_hang(simulator: SimulatorFactory) -> None:
    """Silence costs a stagger each, at most three at a time, and no session its whole time."""
    dead = [await simulator(name=f"dead{number}", faults=["hang_after_101"]) for number in range(5)]
    alive = await simulator(name="alive")
    times = {"stagger_s": 0.2, "ready_timeout_s": 0.6}
    async with running_router(config_of(*dead, alive, router=times)) as router:
        record = await router.session()
        assert record.deployment == "alive" and router.readies[0].attempts == 6


# --- racing -------------------------------------------------------------------------------------


async def test_a_loser_that_becomes_ready_is_sampled_and_closed(simulator: SimulatorFactory) -> None:
    """The slower one's time is measured, its session is closed with 1000, and its place is given back."""
    slow, fast = await simulator(name="slow", faults=["slow_first_event=0.8"]), await simulator(name="fast")
    async with running_router(config_of(slow, fast, router={"stagger_s": 0.1})) as router:
        record = await router.session()
        assert record.deployment == "fast"
        late = await router.until(Attempt, where=lambda attempt: attempt.deployment == "slow")
        assert late.outcome == "ready" and late.raced and late.seconds >= 0.8
        assert router.deployment("slow").ready_s is not None
        await slow.stats.wait_until(lambda stats: stats.close_codes[1000] == 1)
        await router.idle()
        assert not router.ejections and router.deployment("slow").breaker.failures == 0


async def test_a_loser_that_times_out_is_blamed(simulator: SimulatorFactory) -> None:
    """A dead deployment is found out although every session is served by another one."""
    dead, alive = await simulator(name="dead", faults=["hang_after_101"]), await simulator(name="alive")
    config = config_of(deployment_of(dead, ready_timeout_s=0.4), alive, router={"stagger_s": 0.05})
    async with running_router(config) as router:
        async with router.connect() as ws:
            assert await next_type(ws) == "session.created"
            late = await router.until(Attempt, where=lambda attempt: attempt.deployment == "dead")
            assert (late.outcome, late.raced) == ("timeout", True)
            assert router.deployment("dead").breaker.failures == 1
            assert router.deployment("dead").sessions == 0


async def test_a_silent_attempt_may_still_win(simulator: SimulatorFactory) -> None:
    """The next one was started beside it, not instead of it: the first that is ready serves the session."""
    slow = await simulator(name="slow", faults=["slow_first_event=0.5"])
    dead = await simulator(name="dead", faults=["hang_after_101"])
    async with running_router(config_of(slow, dead, router={"stagger_s": 0.1})) as router:
        record = await router.session(turn=True)
        assert record.deployment == "slow" and router.readies[0].attempts == 2
        # The first deployment served it, and a second one was dialled: that is a fallback all the same.
        assert dead.stats.connections == 1


async def test_at_most_three_attempts_are_open(simulator: SimulatorFactory) -> None:
    """However silent the deployments are, the fourth is dialled only when one of the three has ended."""
    dead = [await simulator(name=f"d{number}", faults=["hang_after_101"]) for number in range(5)]
    times = {"stagger_s": 0.05, "ready_timeout_s": 0.5, "total_timeout_s": 1.5, "num_retries": 0}
    async with running_router(config_of(*dead, router=times)) as router:
        open_at_each_end: list[int] = []

        def look(event: Event) -> None:
            if isinstance(event, Attempt):
                open_at_each_end.append(router.leases)

        router.engine.tell.add(look)
        assert (await router.refused()).status in (503, 504)
        await router.idle()
        # One had just ended, and two were open beside it.
        assert open_at_each_end[0] == 2 and max(open_at_each_end) <= 2
        assert len(router.attempts) == 5


# --- what a failure means (DESIGN §3.5) ----------------------------------------------------------


async def test_nobody_listening_is_unreachable(simulator: SimulatorFactory) -> None:
    """ECONNREFUSED."""
    async with closed_port() as nowhere, running_router(config_of(nowhere, await simulator())) as router:
        assert outcomes(await router.session()) == ["unreachable", "ready"]


async def test_a_name_that_does_not_resolve_is_unreachable(simulator: SimulatorFactory) -> None:
    """RFC 6761 keeps ``.invalid`` free of addresses."""
    config = config_of("http://nobody.invalid/v1", await simulator())
    async with running_router(config) as router:
        assert (await router.session()).deployment == "d1"
        await router.until(Attempt, 2)
        # A resolver that does not answer at all makes it a time-out.
        assert {attempt.outcome for attempt in router.attempts if attempt.deployment == "d0"} <= {"unreachable", "timeout"}


@pytest.mark.parametrize("phase", ["upgrade", "first_event"])
async def test_each_phase_has_its_own_time_out(simulator: SimulatorFactory, phase: str) -> None:
    """``connect_timeout_s`` ends with the 101, ``ready_timeout_s`` with the first good event."""
    fault = {"upgrade": "hang_before_101", "first_event": "hang_after_101"}[phase]
    first = await simulator(name="first", faults=[fault])
    times: dict[str, Any] = {"upgrade": {"connect_timeout_s": 0.3}, "first_event": {"ready_timeout_s": 0.3}}[phase]
    async with running_router(config_of(deployment_of(first, **times), await simulator(name="second"))) as router:
        record = await router.session()
        assert outcomes(record) == ["timeout", "ready"]
        assert record.attempts[0].detail == "no answer within 0.3 s"


@pytest.mark.parametrize(("fault", "whole"), [("hang_before_101", True), ("hang_after_101", False)])
async def test_litellms_timeout_bounds_a_dial_as_a_whole(simulator: SimulatorFactory, fault: str, whole: bool) -> None:
    """``timeout`` shortens both phases together and lengthens neither."""
    first = await simulator(name="first", faults=[fault])
    config = config_of(deployment_of(first, timeout=0.4), await simulator(name="second"), router={"stagger_s": 5})
    async with running_router(config) as router:
        record = await router.session()
        assert outcomes(record) == ["timeout", "ready"]
        limit_s = float(record.attempts[0].detail.removeprefix("no answer within ").removesuffix(" s"))
        # What the handshake took is not there for the first event any more.
        assert limit_s == 0.4 if whole else limit_s < 0.4


async def test_litellms_timeout_never_lengthens(simulator: SimulatorFactory) -> None:
    """A chat's ``timeout: 600`` leaves the dial's own limits as they are."""
    first = await simulator(name="first", faults=["hang_after_101"])
    config = config_of(deployment_of(first, ready_timeout_s=0.3), await simulator(name="second"), router={"timeout": 600})
    async with running_router(config) as router:
        assert (await router.session()).attempts[0].detail == "no answer within 0.3 s"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_never_followed(simulator: SimulatorFactory, status: int) -> None:
    """The key must not travel to whatever host an upstream names."""
    trap = await simulator(name="trap")
    first = await simulator(name="first", faults=[f"status={status},location={trap.url}/v1/realtime?model=m"])
    async with running_router(config_of(first, await simulator(name="second"))) as router:
        record = await router.session()
        assert outcomes(record) == ["refused", "ready"]
        assert first.stats.last_request is not None
        assert first.stats.last_request.headers["Authorization"] == f"Bearer {UPSTREAM_KEY}"
        assert trap.stats.connections == 0 and not trap.stats.requests


async def test_a_101_that_is_none_moves_on(simulator: SimulatorFactory) -> None:
    """A wrong ``Sec-WebSocket-Accept`` means that nobody there read the request (RFC 6455 §4.1)."""

    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n"
        )
        await reader.read()

    async with raw_server(wrong) as base, running_router(config_of(base, await simulator())) as router:
        record = await router.session()
        assert outcomes(record) == ["refused", "ready"] and "Sec-WebSocket-Accept" in record.attempts[0].detail


async def test_a_400_about_a_forwarded_parameter_is_told_to_the_client(simulator: SimulatorFactory) -> None:
    """Any deployment would refuse it: the client hears 400 at once, and nobody is blamed."""
    fault = "status=400,code=invalid_value,message=Invalid value for conversation_id."
    first, second = await simulator(name="first", faults=[fault]), await simulator(name="second")
    async with running_router(config_of(first, second)) as router:
        answer = await router.refused(conversation_id="conv_gone")
        assert answer.status == 400 and answer.error["code"] == "invalid_request"
        assert "Retry-After" not in answer.headers
        assert outcomes(router.records[0]) == ["client_request"]
        assert not second.stats.requests and router.deployment("first").breaker.failures == 0


async def test_the_same_400_without_the_parameter_moves_on(simulator: SimulatorFactory) -> None:
    """The client did not send what the upstream complains about."""
    fault = "status=400,code=invalid_value,message=Invalid value for conversation_id."
    first = await simulator(name="first", faults=[fault])
    async with running_router(config_of(first, await simulator(name="second"))) as router:
        assert outcomes(await router.session()) == ["refused", "ready"]
        assert router.deployment("first").breaker.failures == 1


@pytest.mark.parametrize("fault", ["status=400", "garbage=http"])
async def test_a_bare_400_does_not_end_a_session_that_forwards_something(simulator: SimulatorFactory, fault: str) -> None:
    """A gateway's 400 page, or bytes that are no HTTP (aiohttp's word for them is 400), say nothing about the client.

    Both were taken for the client's fault when it had sent a safety identifier, and the second deployment was never dialled.
    """
    first = await simulator(name="first", faults=[fault])
    async with running_router(config_of(first, await simulator(name="second"))) as router:
        async with router.connect(headers={"OpenAI-Safety-Identifier": "user-1"}) as ws:
            assert await next_type(ws) == "session.created"
        assert outcomes(await router.record_of(ws)) == ["refused", "ready"]
        # The page may be the client's doing after all; bytes that are no HTTP cannot be.
        assert router.deployment("first").breaker.failures == (0 if fault == "status=400" else 1)


@pytest.mark.parametrize(
    "fault",
    [
        "status=401",
        "status=403",
        "status=401,code=invalid_api_key",
        "status=429,code=insufficient_quota,retry_after=1",
        "error_event=invalid_api_key,close=3000",
        "error_event=insufficient_quota,type=insufficient_quota",
    ],
)
async def test_a_refused_key_ejects_for_minutes_and_raises_an_alarm(simulator: SimulatorFactory, fault: str) -> None:
    """One is enough; the sessions are served by the next one, and a quota error is no rate limit though it is a 429."""
    first, second = await simulator(name="first", faults=[fault]), await simulator(name="second")
    async with running_router(config_of(first, second)) as router:
        assert outcomes(await router.session()) == ["authentication", "ready"]
        assert [(alarm.deployment, alarm.group) for alarm in router.alarms] == [("first", MODEL)]
        ejected = router.ejections[0]
        assert ejected.reason == "authentication" and ejected.seconds >= 240
        assert not router.cool_downs
        assert dialled(await router.session()) == ["second"]
        metrics = (await router.request("/metrics")).body.decode()
        alarms = [line for line in metrics.splitlines() if "alarm" in line and 'deployment="first"' in line]
        assert any(line.endswith(" 1.0") for line in alarms), "no metric tells of the alarm"


async def test_a_wrong_key_of_a_real_handshake_is_an_authentication_failure(simulator: SimulatorFactory) -> None:
    """Not only as a fault: a simulator that knows another key answers 101, ``error`` and close 3000, as OpenAI does."""
    first = await simulator(name="first", api_keys=["sk-other"])
    async with running_router(config_of(first, await simulator(name="second", api_keys=[UPSTREAM_KEY]))) as router:
        assert outcomes(await router.session(turn=True)) == ["authentication", "ready"]


async def test_an_abnormal_end_soon_after_ready_counts(simulator: SimulatorFactory) -> None:
    """An upstream that greets and drops every session is ejected by the third; the clients got its code."""
    first = await simulator(name="first", faults=["close_after_events=1,code=1011"])
    async with running_router(config_of(first, await simulator(name="second"))) as router:
        for _ in range(3):
            async with router.connect() as ws:
                assert await next_type(ws) == "session.created"
                with pytest.raises(ConnectionClosed):
                    await ws.recv()
            assert ws.close_code == 1011
            record = await router.record_of(ws)
            assert (record.who, record.upstream_code, outcomes(record)) == ("upstream", 1011, ["ready"])
        assert [event.reason for event in router.ejections] == ["early_close"]
        assert (await router.session()).deployment == "second"


@pytest.mark.parametrize("code", [1000, 1008, 1009])
async def test_an_end_that_a_client_can_provoke_does_not_count(simulator: SimulatorFactory, code: int) -> None:
    """Else one hostile client could eject a deployment for everyone."""
    first = await simulator(name="first", faults=[f"close_after_events=1,code={code}"])
    async with running_router(config_of(first, router={"allowed_fails": 1})) as router:
        async with router.connect() as ws:
            await next_type(ws)
            with pytest.raises(ConnectionClosed):
                await ws.recv()
        await router.record_of(ws)
        assert not router.ejections and router.deployment("first").breaker.failures == 0


async def test_an_abnormal_end_later_on_does_not_count(simulator: SimulatorFactory) -> None:
    """A session that lived longer than ``early_close_s`` proves the deployment; its end is told, not blamed."""
    first = await simulator(name="first")
    async with running_router(config_of(first, router={"early_close_s": 0.2, "allowed_fails": 1})) as router:
        async with router.connect() as ws:
            await next_type(ws)
            await asyncio.sleep(0.3)  # the session's age is what this is about
            first.reset_sessions()
            with pytest.raises(ConnectionClosed):
                await ws.recv()
        record = await router.record_of(ws)
        assert record.who == "upstream" and not router.ejections


# --- all ejected, and back ------------------------------------------------------------------------


async def test_when_all_are_ejected_the_least_recently_ejected_is_tried_anyway(simulator: SimulatorFactory) -> None:
    """Fail open: an outage that has ended is noticed by the next session, not half a minute later."""
    first, second = await simulator(name="first", faults=["status=503"]), await simulator(name="second", faults=["status=503"])
    config = config_of(first, second, router={"allowed_fails": 1, "num_retries": 0})
    async with running_router(config) as router:
        assert (await router.refused()).status == 503
        assert [event.deployment for event in router.ejections] == ["first", "second"]
        for sim in (first, second):
            sim.clear_faults()
        record = await router.session(turn=True)
        assert dialled(record) == ["first"], "it was ejected before the other one"
        assert (await router.until(Admitted)).deployment == "first"


async def test_one_ejected_for_its_key_is_not_tried_anyway(simulator: SimulatorFactory) -> None:
    """Hammering a provider with a refused key helps nobody: 503 with a Retry-After, and no dial."""
    first = await simulator(name="first", faults=["status=401"])
    async with running_router(config_of(first)) as router:
        assert (await router.refused()).status == 503
        first.clear_faults()
        answer = await router.refused()
        assert answer.status == 503 and answer.retry_after_s >= 1
        assert len(first.stats.requests) == 1 and outcomes(router.records[1]) == []


async def test_after_its_time_one_session_probes(simulator: SimulatorFactory) -> None:
    """While the probing session waits for its upstream, all others go elsewhere; when it is ready, the deployment is back."""
    first, second = await simulator(name="first", faults=["status=503,next=3"]), await simulator(name="second")
    times = {"cooldown_time": 0.3, "cooldown_jitter": 0, "slow_start_s": 0, "stagger_s": 5}
    async with running_router(config_of(first, second, router=times)) as router:
        for _ in range(3):
            assert (await router.session()).deployment == "second"
        assert router.deployment("first").state == "ejected"
        first.set_fault("slow_first_event=1")
        await router.until_true(lambda: router.deployment("first").state == "probing")
        probing = asyncio.create_task(router.session())
        await router.until_true(lambda: router.deployment("first").sessions == 1)
        assert {record.deployment for record in await many(router, 5, turn=False)} == {"second"}
        assert (await probing).deployment == "first"
        assert (await router.until(Admitted)).deployment == "first"
        first.clear_faults()
        assert (await router.session()).deployment == "first"


async def test_a_failed_probe_ejects_for_longer(simulator: SimulatorFactory) -> None:
    """One failure is enough then, and the second ejection lasts twice as long."""
    first, second = await simulator(name="first", faults=["status=503"]), await simulator(name="second")
    times = {"cooldown_time": 0.2, "cooldown_jitter": 0}
    async with running_router(config_of(first, second, router=times)) as router:
        for _ in range(3):
            await router.session()
        await router.until_true(lambda: router.deployment("first").state == "probing")
        assert dialled(await router.session()) == ["first", "second"]
        assert [(event.in_a_row, event.seconds) for event in router.ejections] == [(1, 0.2), (2, 0.4)]


async def test_a_readmitted_deployment_starts_slowly(simulator: SimulatorFactory) -> None:
    """Its weight begins at a tenth, so that a strategy by weights gives it few of the next sessions."""
    first, second = await simulator(name="first", faults=["status=503,next=1"]), await simulator(name="second")
    times = {
        "routing_strategy": "weighted-random",
        "allowed_fails": 1,
        "cooldown_time": 0.1,
        "cooldown_jitter": 0,
        "slow_start_s": 3600,
    }
    async with running_router(config_of(first, second, router=times)) as router:
        while not router.ejections:
            await router.session()
        await router.until_true(lambda: router.deployment("first").state == "probing")
        while not router.of(Admitted):
            await router.session()
        assert router.deployment("first").weight == pytest.approx(0.1, rel=0.2)
        served = [record.deployment for record in await many(router, 60, turn=False)]
        # Half of them without a slow start; one in eleven with it.
        assert served.count("first") <= 18


# --- re-dials and their limits ---------------------------------------------------------------------


async def test_what_fails_for_a_passing_reason_is_dialled_again(simulator: SimulatorFactory) -> None:
    """A single deployment that answers 503 twice serves the session at the third dial."""
    first = await simulator(name="first", faults=["status=503,next=2"])
    async with running_router(config_of(first)) as router:
        assert outcomes(await router.session(turn=True)) == ["refused", "refused", "ready"]


async def test_num_retries_counts_re_dials_only(simulator: SimulatorFactory) -> None:
    """Every deployment is tried once whatever it says; then that many rounds more."""
    dead = [await simulator(faults=["status=503"]) for _ in range(3)]
    for retries, dials in ((0, 3), (1, 6)):
        config = config_of(*dead, router=UNDETERRED | {"num_retries": retries}, general={"retry_budget_min_per_s": 100})
        async with running_router(config) as router:
            assert (await router.refused()).status == 503
            assert len(router.attempts) == dials


async def test_max_attempts_bounds_all_dials(simulator: SimulatorFactory) -> None:
    """First attempts and re-dials together."""
    dead = [await simulator(faults=["status=503"]) for _ in range(3)]
    for most in (2, 5):
        config = config_of(*dead, router=UNDETERRED | {"max_attempts": most}, general={"retry_budget_min_per_s": 100})
        async with running_router(config) as router:
            assert (await router.refused()).status == 503
            assert len(router.attempts) == most


async def test_the_retry_budget_limits_re_dials_and_never_first_attempts(simulator: SimulatorFactory) -> None:
    """Without any budget, 20 sessions dial each of 3 deployments exactly once: an outage is not multiplied."""
    dead = [await simulator(name=f"d{number}", faults=["status=503"]) for number in range(3)]
    config = config_of(*dead, router=UNDETERRED, general={"retry_budget_ratio": 0, "retry_budget_min_per_s": 0})
    async with running_router(config) as router:
        answers = await asyncio.gather(*(router.refused() for _ in range(20)))
        assert {answer.status for answer in answers} == {503}
        assert {tuple(dialled(record)) for record in router.records} == {("d0", "d1", "d2")}


async def test_the_retry_budget_limits_failing_open(simulator: SimulatorFactory) -> None:
    """When all are ejected, a few sessions try anyway and the rest are refused at once."""
    first = await simulator(name="first", faults=["status=503"])
    config = config_of(
        first,
        router={"allowed_fails": 1, "num_retries": 0},
        general={"retry_budget_ratio": 0, "retry_budget_min_per_s": 0.001},
    )
    async with running_router(config) as router:
        for _ in range(10):
            assert (await router.refused()).status == 503
        # One first attempt, and one more from the minimum that is always saved up.
        assert len(router.attempts) <= 2 < len(router.records) == 10


async def test_a_key_that_is_refused_is_not_dialled_again_in_the_same_session(simulator: SimulatorFactory) -> None:
    """Only what may pass is: the session goes on with the other one until its time is used up."""
    first = await simulator(name="first", faults=["status=401"])
    second = await simulator(name="second", faults=["status=503,next=2"])
    async with running_router(config_of(first, second)) as router:
        assert dialled(await router.session()) == ["first", "second", "second", "second"]


# --- order and fallback groups ----------------------------------------------------------------------


async def test_the_lowest_order_serves_and_its_failure_spills_over(simulator: SimulatorFactory) -> None:
    """The place in the file does not matter, the order does."""
    backup, main = await simulator(name="backup"), await simulator(name="main")
    config = config_of(deployment_of(backup, order=2), deployment_of(main, order=1))
    async with running_router(config) as router:
        assert {record.deployment for record in await many(router, 5, turn=False)} == {"main"}
        main.set_fault("status=503")
        assert dialled(await router.session()) == ["main", "backup"]


async def test_all_of_a_tier_are_tried_before_the_next(simulator: SimulatorFactory) -> None:
    """Order by order, and only then the fallback groups, in turn."""
    sims = {name: await simulator(name=name, faults=["status=503"]) for name in ("a1", "a2", "b1", "c1")}
    last = await simulator(name="d1")
    entries = [
        deployment_of(sims["b1"], order=1),
        deployment_of(sims["a1"]),
        deployment_of(sims["a2"]),
        deployment_of(sims["c1"], model="other"),
        deployment_of(last, model="last"),
    ]
    config = config_of(*entries, router={"fallbacks": [{MODEL: ["other", "last"]}]})
    async with running_router(config) as router:
        record = await router.session(turn=True)
        assert dialled(record) == ["a1", "a2", "b1", "c1", "d1"]
        assert record.group == MODEL and record.deployment == "d1"
        assert [attempt.group for attempt in record.attempts] == [MODEL, MODEL, MODEL, "other", "last"]


async def test_a_fallback_group_forwards_by_its_own_rules(simulator: SimulatorFactory) -> None:
    """What one group may send upstream is not what another one may."""
    first, second = await simulator(name="first", faults=["status=503"]), await simulator(name="second")
    config = config_of(
        deployment_of(first),
        deployment_of(second, model="other"),
        router={"fallbacks": [{MODEL: ["other"]}]},
        groups={MODEL: {"forward_query": ["tenant"], "forward_headers": ["X-Tenant"]}},
    )
    async with running_router(config) as router:
        async with router.connect(tenant="acme", headers={"X-Tenant": "acme"}) as ws:
            assert await next_type(ws) == "session.created"
        seen = first.stats.last_request, second.stats.last_request
        assert seen[0] is not None and seen[1] is not None
        assert seen[0].query.get("tenant") == "acme" == seen[0].headers.get("X-Tenant")
        assert "tenant" not in seen[1].query and "X-Tenant" not in seen[1].headers


async def test_an_ejected_group_costs_its_fallback_nothing(simulator: SimulatorFactory) -> None:
    """Eligible deployments of a fallback group come before ejected ones of the group itself."""
    first, second = await simulator(name="first", faults=["status=503"]), await simulator(name="second")
    entries = [deployment_of(first), deployment_of(second, model="other")]
    config = config_of(*entries, router={"fallbacks": [{MODEL: ["other"]}], "allowed_fails": 1})
    async with running_router(config) as router:
        assert dialled(await router.session()) == ["first", "second"]
        assert dialled(await router.session()) == ["second"]


async def test_mixed_dialects_serve_one_name(simulator: SimulatorFactory) -> None:
    """xAI first, OpenAI next, under one name: the documented example's shape."""
    grok, gpt = await simulator(dialect="xai", name="grok"), await simulator(dialect="openai", name="gpt")
    async with running_router(config_of(grok, gpt)) as router:
        async with router.connect() as ws:
            assert await next_type(ws) == "conversation.created"
        assert (await router.record_of(ws)).deployment == "grok"
        grok.set_fault("refuse")
        async with router.connect() as ws:
            assert await next_type(ws) == "session.created"
        assert (await router.record_of(ws)).deployment == "gpt"


async def test_a_silent_server_is_ready_after_its_grace(simulator: SimulatorFactory) -> None:
    """``auto`` takes silence on an open socket for ready, which ``first_event`` does not."""
    silent = await simulator(dialect="echo", name="echo")
    for ready, works in (("auto", True), ("handshake", True), ("first_event", False)):
        times = {"ready_grace_s": 0.2, "ready_timeout_s": 0.5, "num_retries": 0}
        async with running_router(config_of(silent, router=times, ready=ready)) as router:
            if not works:
                assert (await router.refused()).status == 503
                continue
            async with router.connect() as ws:
                await ws.send('{"type":"anything"}')
                async with asyncio.timeout(PATIENCE_S):
                    assert await ws.recv() == '{"type":"anything"}'
