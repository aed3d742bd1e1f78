"""Hot reload of a running process: by signal, by a change of the file however it is made, and what it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from router.events import DeploymentGone
from router.simulator import Simulator
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.processes import PATIENCE_S, RouterProcess, router_process, written
from tests.helpers.running import MODEL, config_of, deployment_of, load_config, run_turn, running_router

SECRET = "sk-rotated-0123456789abcdef"


@pytest.fixture
async def sim(simulator: SimulatorFactory) -> Simulator:
    """A provider."""
    return await simulator()


@asynccontextmanager
async def session(router: RouterProcess, model: str = MODEL, key: str | None = None) -> AsyncIterator[ClientConnection]:
    """A session that has got its first event."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    opening = connect(router.url(model), proxy=None, compression=None, additional_headers=headers)
    async with asyncio.timeout(PATIENCE_S), opening as ws:
        assert json.loads(await ws.recv())["type"] == "session.created"
        yield ws


async def metric(router: RouterProcess, name: str, **labels: str) -> float:
    """One sample of ``/metrics``."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(timeout=timeout) as client, client.get(f"{router.http}/metrics") as response:
        page = await response.text()
    wanted = "".join(rf'(?=[^}}]*{key}="{value}")' for key, value in labels.items())
    found = re.search(rf"^realtime_router_{name}(?:\{{{wanted}[^}}]*\}})? (\S+)$", page, re.MULTILINE)
    assert found is not None, f"no {name} {labels} in:\n{page}"
    return float(found[1])


def replace_file(path: Path, config: Mapping[str, Any] | str) -> None:
    """Write as editors do: another file takes the name."""
    text = config if isinstance(config, str) else yaml.safe_dump(json.loads(json.dumps(config)))
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def overwrite(path: Path, config: Mapping[str, Any]) -> None:
    """Write into the file that is there."""
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config))), encoding="utf-8")


@pytest.mark.parametrize("write", [replace_file, overwrite])
async def test_an_edited_file_is_followed(simulator: SimulatorFactory, tmp_path: Path, write: Any) -> None:
    """New sessions go where the new file says, the running one goes on, and what happened is in the log and the metrics."""
    first, second = await simulator(name="first"), await simulator(name="second")
    path = written(tmp_path, config_of(first))
    async with router_process(path) as router, session(router) as ws:
        write(path, config_of(second))
        line = await router.logged("configuration applied")
        assert (line["trigger"], line["generation"], line["added"], line["removed"]) == ("file", 2, ["second"], ["first"])
        async with session(router):
            assert second.stats.active == 1
        assert (await run_turn(ws))[-1] == "response.done"
        assert first.stats.active == 1 and await metric(router, "deployment_state", deployment="first", state="draining") == 1
        assert await metric(router, "config_generation") == 2
        assert await metric(router, "config_reloads_total", result="success", trigger="file") == 1
        async with aiohttp.ClientSession() as http, http.get(f"{router.http}/admin/deployments") as response:
            (group,) = (await response.json())["groups"]
        assert [(one["id"], one["removed"], one["sessions"]) for one in group["deployments"]] == [
            ("second", False, 0),
            ("first", True, 1),
        ]


async def test_a_config_map_is_followed(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """Kubernetes swaps a link that the file's name leads through."""
    first, second = await simulator(name="first"), await simulator(name="second")
    for number, sim in enumerate((first, second)):
        (tmp_path / f"..{number}").mkdir()
        written(tmp_path / f"..{number}", config_of(sim))
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    async with router_process(tmp_path / "config.yaml") as router:
        (tmp_path / "..data_tmp").symlink_to("..1")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        assert (await router.logged("configuration applied"))["added"] == ["second"]
        # And once more: what is watched has moved along.
        (tmp_path / "..2").mkdir()
        written(tmp_path / "..2", config_of(first))
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        assert (await router.logged("configuration applied", 2))["added"] == ["first"]


async def test_a_broken_file_changes_nothing(sim: Simulator, tmp_path: Path) -> None:
    """Every error is in the log with its line; sessions come and go as before; the next good file is taken."""
    good = config_of(sim)
    path = written(tmp_path, good)
    async with router_process(path) as router, session(router) as ws:
        replace_file(path, "model_list:\n  - model_name: 5\n    weight: x\ngeneral_settings: {wokers: 2}\n")
        line = await router.logged("configuration refused")
        assert (line["level"], line["generation"], line["trigger"]) == ("error", 1, "file")
        await router.logged("configuration", line["problems"])
        problems = [one["problem"] for one in router.lines("configuration")]
        assert len(problems) == line["problems"] and any("config.yaml:4: general_settings.wokers" in one for one in problems)
        assert await metric(router, "config_last_reload_successful") == 0
        assert await metric(router, "config_reloads_total", result="failure", trigger="file") == 1
        async with session(router):
            pass
        assert (await run_turn(ws))[-1] == "response.done"
        replace_file(path, {**good, "general_settings": {"expose_routing": True}})
        await router.logged("configuration applied")
        assert await metric(router, "config_last_reload_successful") == 1
        assert await metric(router, "config_generation") == 2


async def test_a_file_that_is_gone_changes_nothing(sim: Simulator, tmp_path: Path) -> None:
    """Deleted by mistake: said, and mended by putting it back."""
    path = written(tmp_path, config_of(sim))
    text = path.read_text(encoding="utf-8")
    async with router_process(path) as router:
        path.unlink()
        await router.logged("configuration refused")
        assert "no such file" in (await router.logged("configuration"))["problem"]
        async with session(router):
            pass
        path.write_text(text, encoding="utf-8")
        await router.logged("configuration applied")


async def test_a_secret_is_read_again(sim: Simulator, tmp_path: Path) -> None:
    """A rotated key of the router itself: the old one is refused, the new one admits, nobody is cut off."""
    secret = tmp_path / "master"
    secret.write_text("sk-before-0123456789abcdef\n", encoding="utf-8")
    path = written(tmp_path, config_of(sim, general={"master_key": "file:master"}))
    async with router_process(path) as router, session(router, key="sk-before-0123456789abcdef") as ws:
        new = secret.with_suffix(".new")
        new.write_text(SECRET, encoding="utf-8")
        new.replace(secret)
        # Its file is watched like the configuration itself.
        await router.logged("configuration applied")
        with pytest.raises(InvalidStatus, match="401"):
            async with session(router, key="sk-before-0123456789abcdef"):
                pass
        async with session(router, key=SECRET):
            pass
        assert (await run_turn(ws))[-1] == "response.done"
        assert SECRET.encode() not in router.err


async def test_what_needs_a_restart_is_named(sim: Simulator, tmp_path: Path) -> None:
    """The address stays; all else of the file is in force."""
    config = config_of(sim)
    path = written(tmp_path, config)
    general = {"ops_listen": "127.0.0.1:4999", "log_format": "console", "log_level": "debug"}
    async with router_process(path) as router:
        replace_file(path, {**config, "general_settings": general})
        await router.logged("configuration applied")
        await router.logged("configuration", 2)
        warnings = [line["warning"] for line in router.lines("configuration")]
        assert [warning.split(":")[0] for warning in warnings] == ["general_settings.ops_listen", "general_settings.log_format"]
        assert await metric(router, "config_restart_needed") == 1
        # The level is in force: a session's beginning is told of from debug on.
        async with session(router):
            await router.logged("session started")
        replace_file(path, config)
        await router.logged("configuration applied", 2)
        assert await metric(router, "config_restart_needed") == 0


async def test_watching_can_be_switched_off(sim: Simulator, tmp_path: Path) -> None:
    """Then a signal is what reloads."""
    path = written(tmp_path, config_of(sim, general={"watch": False}))
    async with router_process(path) as router:
        replace_file(path, config_of(sim, general={"watch": False, "expose_routing": True}))
        router.signal(signal.SIGHUP)
        assert (await router.logged("configuration applied"))["trigger"] == "signal"
        assert len(router.lines("configuration applied")) == 1
        # And on again, by a signal; what is written from then on is seen.
        replace_file(path, config_of(sim, general={"watch": True}))
        router.signal(signal.SIGHUP)
        await router.logged("configuration applied", 2)
        replace_file(path, config_of(sim, general={"watch": True, "expose_routing": True}))
        assert (await router.logged("configuration applied", 3))["trigger"] == "file"


async def test_a_flood_of_signals_is_worked_off(sim: Simulator, tmp_path: Path) -> None:
    """One reload after the other, and the end is not held up."""
    async with router_process(written(tmp_path, config_of(sim))) as router, session(router):
        for _ in range(20):
            os.kill(router.pid, signal.SIGHUP)
            await asyncio.sleep(0)
        await router.logged("configuration applied")
        async with session(router):
            pass


async def test_a_search_that_was_under_way_follows_the_new_file(simulator: SimulatorFactory) -> None:
    """The old file's only deployment hangs; the one that came meanwhile serves the session that waits."""
    silent, good = await simulator(name="silent", faults=["hang_after_101"]), await simulator(name="good")
    before = config_of(silent, router={"stagger_s": 0.5})
    async with running_router(before) as router:
        session = asyncio.ensure_future(router.session(turn=True))
        await router.until_true(lambda: router.leases == 1)
        change = router.engine.apply(load_config(config_of(good, router={"stagger_s": 0.5})).settings, generation=2)
        assert (change.added, change.removed) == (("good",), ("silent",))
        record = await session
        assert record.deployment == "good" and record.generation == 2


async def test_a_session_of_the_old_key_says_nothing_about_the_new_one(simulator: SimulatorFactory) -> None:
    """The provider limits the old key in a session that runs on; the mended one is not left alone for it."""
    sim = await simulator(name="sim", faults=["fail_turn=rate_limit_exceeded,type=requests,next=1"])
    async with running_router(config_of(sim)) as router, router.connect(MODEL) as ws:
        mended = config_of(deployment_of(sim, id="sim", api_key="sk-mended-0123456789"))
        assert router.engine.apply(load_config(mended).settings, generation=2).changed == ("sim",)
        assert "response.done" in await run_turn(ws)
        assert (await run_turn(ws))[-1] == "response.done"
        deployment = router.deployment("sim")
        assert not router.cool_downs and deployment.state == "admitting" and deployment.first_audio_s is None
        assert (await router.session()).deployment == "sim"


async def test_removed_deployments_are_forgotten_after_their_last_session(
    simulator: SimulatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics keep no series of what is gone, and lose none while a session runs."""
    monkeypatch.setattr("router.engine.TRAFFIC_INTERVAL_S", 0.05)
    first, second = await simulator(name="first"), await simulator(name="second")
    async with running_router(config_of(first)) as router:
        async with router.connect(MODEL) as ws:
            await run_turn(ws)
            router.engine.apply(load_config(config_of(deployment_of(second, id="second", model="new"))).settings, generation=2)
            assert not router.of(DeploymentGone)
        gone = await router.until(DeploymentGone)
        assert (gone.deployment, gone.group, gone.with_group) == ("first", MODEL, True)
        page = router.metrics.render("")[0].decode()
        assert 'deployment="first"' not in page and f'group="{MODEL}"' not in page


async def test_what_moved_to_another_group_leaves_nothing_behind(
    simulator: SimulatorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id stays, so nothing is removed by name; the old one's sessions end, and it is forgotten with its series."""
    monkeypatch.setattr("router.engine.TRAFFIC_INTERVAL_S", 0.05)
    sim = await simulator(name="sim")
    async with running_router(config_of(deployment_of(sim, id="d"), deployment_of(sim, id="stays"))) as router:
        router.deployment("stays").override(state="drain")
        async with router.connect(MODEL) as ws:
            await run_turn(ws)
            moved = config_of(deployment_of(sim, id="d", model="new"), deployment_of(sim, id="stays"))
            router.engine.apply(load_config(moved).settings, generation=2)
            assert len(router.engine.pool.leaving) == 1
        gone = await router.until(DeploymentGone)
        assert (gone.deployment, gone.group, gone.with_group) == ("d", MODEL, False)
        assert not list(router.engine.pool.leaving)
        page = router.metrics.render("")[0].decode()
        assert f'deployment="d",group="{MODEL}"' not in page and f'group="{MODEL}",deployment="d"' not in page
        assert re.search(r'attempts_total\{[^}]*(?:deployment="d"[^}]*group="new"|group="new"[^}]*deployment="d")', page)


async def test_what_operators_said_of_an_id_goes_with_it_to_another_group(simulator: SimulatorFactory) -> None:
    """Who put it in maintenance meant the deployment, wherever it serves; what the file says anew wins, key by key."""
    sim = await simulator(name="sim")
    async with running_router(config_of(deployment_of(sim, id="d"), deployment_of(sim, id="stays"))) as router:
        router.deployment("d").override(state="maint", weight=5.0)

        def moved(model: str, **keys: Any) -> tuple[str, float]:
            config = config_of(deployment_of(sim, id="d", model=model, **keys), deployment_of(sim, id="stays"))
            router.engine.apply(load_config(config).settings, generation=2)
            deployment = router.deployment("d")
            return deployment.state, deployment.weight

        assert moved("new") == ("maint", 5.0)
        assert moved("newer", weight=3) == ("maint", 3.0)
        assert moved("newer", weight=3, info={"state": "drain"}) == ("draining", 3.0)
        # Back to what the file said at first: that word is forgotten.
        assert moved("new") == ("admitting", 1.0)


async def test_a_reload_at_the_end_starts_nothing(simulator: SimulatorFactory) -> None:
    """What runs in the background is closed already: the generation is in force, and nobody complains."""
    sim = await simulator(name="sim")
    async with running_router(config_of(sim)) as router:
        await router.engine.close()
        probed = config_of(deployment_of(sim, id="new", health_check={"interval_s": 60, "timeout_s": 5}))
        assert router.engine.apply(load_config(probed).settings, generation=2).removed == ("sim",)


async def test_a_probe_does_not_begin_anew_with_every_edit(simulator: SimulatorFactory) -> None:
    """Place, weight and limits are nothing to it: edits would make probes more frequent, or keep them off."""
    sim = await simulator(name="sim")
    probed: dict[str, Any] = {"id": "d", "health_check": {"interval_s": 60, "timeout_s": 5}}
    async with running_router(config_of(deployment_of(sim, **probed))) as router:
        (before,) = [task for task in asyncio.all_tasks() if task.get_name() == "health check d"]
        edited = config_of(deployment_of(sim, id="e"), deployment_of(sim, **probed, weight=3, rpm=5))
        router.engine.apply(load_config(edited).settings, generation=2)
        await asyncio.sleep(0)
        assert [task for task in asyncio.all_tasks() if task.get_name() == "health check d"] == [before]
        mended = config_of(deployment_of(sim, **probed, api_key="sk-mended-0123456789"))
        router.engine.apply(load_config(mended).settings, generation=3)
        await router.until_true(before.cancelled)
        (after,) = [task for task in asyncio.all_tasks() if task.get_name() == "health check d"]
        assert after is not before


# --- several workers -----------------------------------------------------------------------------


async def sessions_in_all(router: RouterProcess, model: str, count: int = 12) -> None:
    """Hold so many sessions at once that every worker has some."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(session(router, model))


async def test_all_workers_follow_or_none(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """One line in the log for all of them, one count in the metrics; what one refuses is in force nowhere."""
    first, second = await simulator(name="first"), await simulator(name="second")
    path = written(tmp_path, config_of(first, general={"workers": 2}))
    async with router_process(path) as router, session(router) as ws:
        replace_file(path, config_of(deployment_of(second, id="second", model="new"), general={"workers": 2}))
        line = await router.logged("configuration applied")
        assert (line["trigger"], line["generation"], line["added"], line["removed"]) == ("file", 2, ["second"], ["first"])
        await sessions_in_all(router, "new")
        with pytest.raises(InvalidStatus, match="404"):
            async with session(router):
                pass
        assert (await run_turn(ws))[-1] == "response.done"
        assert await metric(router, "config_generation") == 2
        assert await metric(router, "config_reloads_total", result="success", trigger="file") == 1
        replace_file(path, "model_list: [\n")
        line = await router.logged("configuration refused")
        assert line["generation"] == 2
        assert await metric(router, "config_last_reload_successful") == 0
        await sessions_in_all(router, "new", 4)
        assert len(router.lines("configuration applied")) == 1


async def test_the_parent_follows_the_log_level(sim: Simulator, tmp_path: Path) -> None:
    """It tells of reloads, deaths and the end: one process at another level than the rest would hide half of what happens."""
    quiet = {"workers": 2, "log_level": "error"}
    path = written(tmp_path, config_of(sim, general=quiet))
    async with router_process(path) as router:
        router.signal(signal.SIGHUP)
        replace_file(path, config_of(sim, general={**quiet, "log_level": "info"}))
        assert (await router.logged("configuration applied"))["generation"] >= 2


async def test_a_replaced_worker_begins_with_the_newest(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """And with what operators have said; not with what the parent loaded when it started."""
    first, second = await simulator(name="first"), await simulator(name="second")
    path = written(tmp_path, config_of(first, general={"workers": 2}))
    async with router_process(path) as router:
        general = {"workers": 2, "log_level": "debug"}
        replace_file(path, config_of(deployment_of(second, id="second", model="new"), general=general))
        await router.logged("configuration applied")
        (pids,) = (line["workers"] for line in router.lines("listening"))
        for count, pid in enumerate(pids, 1):
            os.kill(pid, signal.SIGKILL)
            await router.logged("worker replaced", count)
        await sessions_in_all(router, "new")
        assert await metric(router, "config_generation") == 2
        router.signal(signal.SIGHUP)
        assert (await router.logged("configuration applied", 2))["generation"] == 3
        assert await metric(router, "config_generation") == 3
        assert await metric(router, "config_reloads_total", result="success", trigger="start") == 1


async def test_a_replaced_worker_has_the_secrets_that_are_in_force(sim: Simulator, tmp_path: Path) -> None:
    """Those of the generation, as the others have them: a file that is gone, or not yet looked at, changes nothing for it."""
    secret = tmp_path / "master"
    secret.write_text("sk-before-0123456789abcdef\n", encoding="utf-8")
    general: dict[str, Any] = {"workers": 2, "master_key": "file:master"}
    path = written(tmp_path, config_of(sim, general=general))
    async with router_process(path) as router:
        secret.write_text(SECRET, encoding="utf-8")
        await router.logged("configuration applied")
        # From here on nobody looks at the files by himself.
        replace_file(path, config_of(sim, general={**general, "watch": False}))
        await router.logged("configuration applied", 2)
        secret.unlink()
        (pids,) = (line["workers"] for line in router.lines("listening"))
        for count, pid in enumerate(pids, 1):
            os.kill(pid, signal.SIGKILL)
            await router.logged("worker replaced", count)
        async with session(router, key=SECRET) as ws:
            assert (await run_turn(ws))[-1] == "response.done"
        assert not router.lines("worker not started")
        assert SECRET.encode() not in router.err


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_by_the_admin_api(simulator: SimulatorFactory, tmp_path: Path, workers: int) -> None:
    """The answer comes when it is in force, or says why it is not."""
    first, second = await simulator(name="first"), await simulator(name="second")
    general = {"workers": workers, "watch": False}
    path = written(tmp_path, config_of(first, general=general))
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with router_process(path) as router, aiohttp.ClientSession(timeout=timeout) as http:
        async with http.get(f"{router.http}/admin/config") as response:
            before = await response.json()
        assert (before["generation"], before["file"], before["watching"]) == (1, str(path), False)
        replace_file(path, config_of(deployment_of(second, id="second", model="new"), general=general))
        async with http.post(f"{router.http}/admin/reload") as response:
            document = await response.json()
            assert response.status == 200 and document["generation"] == 2
        assert document["last_reload"]["trigger"] == "api" and document["last_reload"]["successful"]
        await sessions_in_all(router, "new", 6)
        replace_file(path, "model_list: 5\n")
        async with http.post(f"{router.http}/admin/reload") as response:
            refused = await response.json()
            assert response.status == 422 and refused["config"]["generation"] == 2
        (error,) = refused["config"]["last_reload"]["errors"]
        assert (error["line"], error["path"], error["expected"]) == (1, "model_list", "a list of deployments")
        async with http.get(f"{router.http}/admin/config") as response:
            assert await response.json() == refused["config"]
