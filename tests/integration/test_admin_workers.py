"""The admin API of a router with several workers: one view of all, acts on all, and what becomes of them when a worker goes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.processes import PATIENCE_S, RouterProcess, router_process, written
from tests.helpers.running import config_of, run_turn
from tests.integration.test_workers import DEBUG, WORKERS, a_session_of_each, close_code, open_session, pids, pytestmark

__all__ = ["pytestmark"]  # only Linux spreads connections over SO_REUSEPORT


@pytest.fixture
async def sim(simulator: SimulatorFactory) -> Simulator:
    """A provider."""
    return await simulator(name="first")


async def call(router: RouterProcess, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """A request of its own connection, so that any worker may get it."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        async with client.request(method, f"{router.http}/admin/{path}", json=body) as response:
            return response.status, await response.json()


async def first_answer(router: RouterProcess, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Of several such requests the answer that comes first; those that a stopped worker got are given up."""
    requests = [asyncio.create_task(call(router, method, path, body)) for _ in range(12)]
    try:
        done, _ = await asyncio.wait(requests, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()
    finally:
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


async def until(router: RouterProcess, path: str, condition: Callable[[Any], bool]) -> Any:
    """Ask until an answer fulfils a condition."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status, document = await call(router, "GET", path)
            if status == 200 and condition(document):
                return document
            await asyncio.sleep(0.02)


async def test_views_are_of_all_workers(sim: Simulator, tmp_path: Path) -> None:
    """Sessions and decisions of all, each with its worker's number; one session's detail from wherever it runs."""
    async with router_process(written(tmp_path, config_of(sim, general=DEBUG))) as router, AsyncExitStack() as stack:
        await a_session_of_each(router, stack)
        ready = {line["session"]: line["worker"] for line in router.lines("session ready")}
        for _ in range(4):
            status, view = await call(router, "GET", "sessions")
            assert status == 200 and view["total"] == len(ready)
            assert {one["session"]: one["worker"] for one in view["sessions"]} == ready
            began = [one["began_at"] for one in view["sessions"]]
            assert began == sorted(began, reverse=True)
            _, view = await call(router, "GET", "sessions?limit=1")
            assert len(view["sessions"]) == 1 and view["total"] == len(ready)
            _, decisions = await call(router, "GET", "decisions?limit=1000")
            assert Counter(one["worker"] for one in decisions["decisions"]) == Counter(ready.values())
            # A beat that is late on a busy machine is heard of later.
            fleet = await until(router, "fleet", lambda view: view["fleet"]["members"] == 2)
            assert [worker["pid"] for worker in fleet["workers"]] == await pids(router)
            assert all(worker["serving"] for worker in fleet["workers"])
            for session, worker in ready.items():
                status, detail = await call(router, "GET", f"sessions/{session}")
                assert (status, detail["worker"], detail["session"]) == (200, worker, session)
                assert [one["worker"] for one in detail["decisions"]] == [worker]
        status, error = await call(router, "GET", "sessions/rs_nobody")
        assert status == 404 and error["error"]["param"] == "session"


async def test_a_session_is_ended_wherever_it_runs(sim: Simulator, tmp_path: Path) -> None:
    """The worker that has it ends it, whichever is asked; no other session notices."""
    async with router_process(written(tmp_path, config_of(sim, general=DEBUG))) as router, AsyncExitStack() as stack:
        held = await a_session_of_each(router, stack)
        stays = await open_session(router, stack)
        for ws in held.values():
            assert ws.response is not None
            session = ws.response.headers["x-router-session"]
            status, answer = await call(router, "POST", f"sessions/{session}/end", {"code": 4000})
            assert (status, answer) == (200, {"session": session, "ended": True})
            assert await close_code(ws) == (4000, ["error"])
            _, detail = await call(router, "GET", f"sessions/{session}")
            assert detail["ended"]["cause"] == "admin"
            status, error = await call(router, "POST", f"sessions/{session}/end", {})
            assert status == 404 and f"found '{session}', which has ended" in error["error"]["message"]
        assert (await run_turn(stays))[-1] == "response.done"
        acts = router.lines("operator acted")
        assert [(act["act"], act["status"]) for act in acts] == [("end", 200), ("end", 404)] * 2


async def test_places_that_all_workers_hold_together(sim: Simulator, tmp_path: Path) -> None:
    """A deployment is full when its workers have its places between them, though none of them has all."""
    config = config_of(sim, max_sessions=2, general=DEBUG)
    async with router_process(written(tmp_path, config)) as router, AsyncExitStack() as stack:
        for _ in range(2):
            await open_session(router, stack)

        def full(view: Any) -> bool:
            (deployment,) = view["groups"][0]["deployments"]
            return (deployment["sessions"], deployment["obstacle"]) == (2, "full")

        await until(router, "deployments", full)


async def test_workers_that_drain_do_not_serve(sim: Simulator, tmp_path: Path) -> None:
    """From the signal on, as a router without workers says of itself."""
    config = config_of(sim, general={**WORKERS, "drain": {"grace_s": PATIENCE_S}})
    async with router_process(written(tmp_path, config)) as router, AsyncExitStack() as stack:
        await open_session(router, stack)
        os.kill(router.pid, signal.SIGTERM)
        await router.logged("draining")
        fleet = await until(router, "fleet", lambda view: view["draining"])
        assert [worker["serving"] for worker in fleet["workers"]] == [False, False]


async def test_a_word_is_every_workers_and_outlives_them(sim: Simulator, tmp_path: Path) -> None:
    """A drained deployment is so in each worker, and in the one that takes a dead one's place, from its first session on."""
    async with router_process(written(tmp_path, config_of(sim, general=WORKERS))) as router:
        status, answer = await call(router, "POST", "deployments/set", {"id": "first", "state": "drain", "weight": 4})
        assert status == 200 and [one["state"] for one in answer["deployment"]["workers"]] == ["draining"] * 2
        os.kill((await pids(router))[0], signal.SIGKILL)
        await router.logged("worker replaced")
        view = await until(router, "deployments", lambda view: len(view["groups"][0]["deployments"][0]["workers"]) == 2)
        (deployment,) = view["groups"][0]["deployments"]
        assert [one["state"] for one in deployment["workers"]] == ["draining"] * 2
        assert deployment["override"] == {"state": "drain", "weight": 4} and deployment["weight"] == 4
        assert not router.lines("question not answered") and not router.lines("worker not understood")
        status, answer = await call(router, "POST", "deployments/set", {"id": "first", "state": None, "weight": None})
        assert status == 200 and [one["state"] for one in answer["deployment"]["workers"]] == ["admitting"] * 2
        status, error = await call(router, "POST", "deployments/readmit", {"id": "frist"})
        assert status == 404 and "'first'" in error["error"]["message"]


async def test_what_a_hanging_worker_does_to_views_and_acts(sim: Simulator, tmp_path: Path) -> None:
    """Views say who is missing; an act that must be everybody's is 503, and is done there as well when it goes on."""
    async with router_process(written(tmp_path, config_of(sim, general=DEBUG))) as router, AsyncExitStack() as stack:
        held = await a_session_of_each(router, stack)
        ready = {line["session"]: line["worker"] for line in router.lines("session ready")}
        hung = (await pids(router))[1]
        os.kill(hung, signal.SIGSTOP)
        try:
            status, view = await first_answer(router, "GET", "sessions")
            assert status == 200 and [one["answered"] for one in view["workers"]] == [True, False]
            assert {one["session"] for one in view["sessions"]} == {id for id, worker in ready.items() if worker == 0}
            assert held[1].response is not None
            missing = held[1].response.headers["x-router-session"]
            status, error = await first_answer(router, "GET", f"sessions/{missing}")
            assert status == 503 and "worker 1 did not answer" in error["error"]["message"]
            status, error = await first_answer(router, "POST", "deployments/set", {"id": "first", "state": "maint"})
            assert status == 503 and "the others have done it" in error["error"]["message"]
        finally:
            os.kill(hung, signal.SIGCONT)
        view = await until(
            router, "deployments", lambda view: _states(view) == ["maint"] * 2
        )
        assert (await run_turn(held[1]))[-1] == "response.done"
        assert not router.lines("worker ended") and not router.lines("worker not understood")


async def test_many_who_look_at_once(sim: Simulator, tmp_path: Path) -> None:
    """Dozens of the same and of different questions are all answered."""
    async with router_process(written(tmp_path, config_of(sim, general=WORKERS))) as router:
        paths = [f"sessions?limit={number}" for number in range(1, 31)] + ["deployments", "decisions", "fleet"] * 10
        answers = await asyncio.gather(*(call(router, "GET", path) for path in paths))
        assert {status for status, _ in answers} == {200}


def _states(view: Any) -> list[str]:
    """What each worker sees of the one deployment."""
    return [one["state"] for one in view["groups"][0]["deployments"][0]["workers"]]
