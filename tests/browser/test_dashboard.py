"""An operator's clicks through the dashboard, in a real browser; what the console complains of fails the test.

Most pages show documents that a test writes (``tests.helpers.operations``): states that are hard to bring about, and texts that
nobody should believe. The last ones stand before a real router.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from router.events import SessionRecord
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.operations import Operations, decision, deployment, operations, session
from tests.helpers.pages import DESKTOP, PHONE, axe_source, chromium, expect, findings, fits, opened
from tests.helpers.processes import router_process, written
from tests.helpers.running import RunningRouter, config_of, next_type, running_router

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, ViewportSize

MASTER = "sk-master-0123456789abcdef"
SESSION = "rs_00000000000000000001"
VIEWS = (
    *("deployments", "deployments/north", "sessions", f"sessions/{SESSION}"),
    *("decisions", "configuration", "fleet", "playground"),
)
SIZES = pytest.mark.parametrize("size", [pytest.param(DESKTOP, id="desktop"), pytest.param(PHONE, id="phone")])


@asynccontextmanager
async def stage(
    simulator: SimulatorFactory, *, general: dict[str, Any] | None = None, prefix: str = ""
) -> AsyncIterator[tuple[Operations, Browser, RunningRouter]]:
    """A dashboard over written documents, a browser, and the router that its playground talks to."""
    keys = {"master_key": MASTER} if general is None else general
    config = config_of(await simulator(), general=keys)
    async with running_router(config) as router, operations(router, prefix=prefix) as made, chromium() as browser:
        yield made, browser, router


def busy(made: Operations) -> None:
    """Write documents in which something of everything is going on."""
    drained, broken = {"state": "drain", "weight": None}, {"state": "misconfigured", "weight": 1.0}
    made.group(
        "voice",
        deployment("east", sessions=42, max_sessions=50, attempts={"ready": 1200, "refused": 14}, rpm=120, minute_starts=38),
        deployment("west", sessions=7, weight=2.0, override={"state": None, "weight": 2.0}),
        deployment("north", state="ejected", reason="refused", ejected_s=21.4, failures_in_a_row=3, ready_s=None),
        deployment("sweden", provider="azure", state="draining", obstacle="draining", override=drained, sessions=2),
        fallbacks=["backup"],
        aliases=["gpt-realtime"],
    )
    made.group(
        "backup",
        deployment("grok", provider="xai", state="cooling_down", obstacle="cooling_down", available_in_s=4.2),
        deployment("local", state="misconfigured", reason="OPENAI_KEY is not set", configured=broken),
        deployment("old", state="draining", obstacle="draining", removed=True, sessions=1),
    )
    phases = ("idle", "turn", "waiting")
    for number in range(8):
        phase = phases[number % 3]
        made.sessions.append(session(f"rs_{number:020}", phase=phase, deployment=None if phase == "waiting" else "east"))
    made.decisions = [
        decision(SESSION),
        decision(SESSION, attempt=2, chosen="west", why="only one eligible"),
        decision(f"rs_{2:020}", chosen=None, why="nothing eligible", in_group="backup", order=1, candidates=[]),
    ]
    made.config["restart_needed"] = ["general_settings.listen"]
    made.config["last_reload"] = {
        "at": time.time() - 20,
        "trigger": "file",
        "successful": False,
        "errors": [problem(14, "model_list[2].model_info.weight", "-1", "a number above 0")],
        "warnings": [problem(3, "router_settings.foo", "an unknown key", "a key of this section")],
    }
    made.fleet = {
        "fleet": {"member": "a1b2c3", "mode": "fresh", "members": 3, "picture_age_s": 0.8},
        "workers": [{"worker": number, "pid": 4211 + number, "sessions": 20, "serving": number == 0} for number in range(2)],
        "draining": True,
    }


def problem(line: int, path: str, found: str, expected: str) -> dict[str, Any]:
    """A fault of the configuration file."""
    return {"file": "config.yaml", "line": line, "path": path, "found": found, "expected": expected, "hint": "", "text": path}


async def log_in(page: Page, key: str = MASTER) -> None:
    """Enter the key and wait for the first view."""
    await page.get_by_label("Master key").fill(key)
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("heading", name="Deployments", level=1)).to_be_visible()


async def go(page: Page, view: str) -> None:
    """Show a view by the navigation."""
    await page.get_by_role("navigation").get_by_role("link", name=view).click()
    await expect(page.get_by_role("heading", name=view, level=1)).to_be_visible()


async def agree(page: Page, button: str) -> None:
    """Say yes to a dialog, and wait until it is gone."""
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name=button, exact=True).click()
    await expect(dialog).to_have_count(0)


def row(page: Page, name: str) -> Any:
    """A table's row by a link in it."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


# --- login ---------------------------------------------------------------------------------------


async def test_login_and_logout(simulator: SimulatorFactory) -> None:
    """A wrong key is told of; the right one opens the page, holds over a reload, and ends with the logout; no script sees it."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url) as page:
        made.group("voice", deployment("east"))
        await page.get_by_label("Master key").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("This is not the master key.")
        await log_in(page)
        await page.reload()
        await expect(page.get_by_role("link", name="east")).to_be_visible()
        assert await page.evaluate("document.cookie") == ""
        assert await page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("Master key")).to_be_focused()
        await page.reload()
        await expect(page.get_by_label("Master key")).to_be_visible()


async def test_a_login_that_has_ended_asks_for_the_key_again(simulator: SimulatorFactory) -> None:
    """The poll finds out, and the page says why."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url) as page:
        await log_in(page)
        await page.context.clear_cookies()
        await expect(page.get_by_role("alert")).to_have_text("The login has ended.")
        await expect(page.get_by_label("Master key")).to_be_visible()


async def test_without_keys_there_is_no_login(simulator: SimulatorFactory) -> None:
    """The page opens at once, and has no button to log out."""
    async with stage(simulator, general={}) as (made, browser, _), opened(browser, made.url) as page:
        made.group("voice", deployment("east"))
        await expect(page.get_by_role("link", name="east")).to_be_visible()
        await expect(page.get_by_role("button", name="Log out")).to_have_count(0)


@pytest.mark.parametrize("fragment", ["#/constructor", "#/__proto__/x", "#/%ff"])
async def test_an_address_that_is_none_shows_the_first_view(simulator: SimulatorFactory, fragment: str) -> None:
    """Somebody's link to a name that every object has is no view either; it once left the page waiting for ever."""
    async with stage(simulator, general={}) as (made, browser, _):
        busy(made)
        async with opened(browser, made.url + fragment) as page:
            await expect(page.get_by_role("heading", name="Deployments", level=1)).to_be_visible()


async def test_behind_a_path_prefix(simulator: SimulatorFactory) -> None:
    """Every address is relative: files, requests, and the playground's socket."""
    async with stage(simulator, prefix="/voice/ops", general={}) as (made, browser, router), opened(browser, made.url) as page:
        made.group("voice", deployment("east"))
        await expect(page.get_by_role("link", name="east")).to_be_visible()
        await go(page, "Playground")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.get_by_text("Connected", exact=True)).to_be_visible()
        await page.get_by_role("button", name="Disconnect").click()
        await router.until(SessionRecord)


# --- what is shown -------------------------------------------------------------------------------


@SIZES
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_every_view_is_accessible_and_fits(simulator: SimulatorFactory, size: ViewportSize, dark: bool) -> None:
    """axe-core finds nothing serious or critical in any view, and nothing is wider than the window."""
    axe = axe_source()
    found: list[str] = []
    async with stage(simulator) as (made, browser, _), opened(browser, made.url, size=size, dark=dark) as page:
        busy(made)
        found += await findings(page, axe)
        await log_in(page)
        for view in VIEWS:
            await page.evaluate(f"location.hash = '#/{view}'")
            await expect(page.get_by_text("Loading…")).to_have_count(0)
            await expect(page.get_by_role("heading", level=1)).to_be_visible()
            found += [f"{view}: {finding}" for finding in await findings(page, axe)]
            if not await fits(page):
                found.append(f"{view}: wider than the window")
        await page.evaluate("location.hash = '#/deployments/east'")
        await page.get_by_role("button", name="Drain").click()
        found += [f"dialog: {finding}" for finding in await findings(page, axe)]
    assert found == []


async def test_what_the_router_says_is_text(simulator: SimulatorFactory) -> None:
    """Markup and addresses in names, reasons, sessions, errors and events are shown as they are, and nothing of them runs."""
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    async with stage(simulator) as (made, browser, _), opened(browser, made.url) as page:
        made.group(evil, deployment(evil, reason=evil, model=evil, state="ejected", ejected_s=3.0), aliases=[evil], strategy=evil)
        made.sessions = [session(evil, group=evil, client=evil, principal=evil, deployment=evil, phase=evil)]
        made.decisions = [decision(evil, group=evil, chosen=evil, why=evil, passed_over=[{"id": evil, "reason": evil}])]
        made.config.update(file=evil, restart_needed=[evil])
        made.config["last_reload"].update(successful=False, trigger=evil, errors=[problem(1, evil, evil, evil)])
        made.fleet["fleet"] = {"member": evil, "mode": evil, "members": 1, "picture_age_s": None}
        await log_in(page)
        for view in ("Deployments", "Sessions", "Decisions", "Configuration", "Fleet", "Playground"):
            await go(page, view)
            await expect(page.get_by_text("<img src=x").first).to_be_attached()
            assert await page.locator("img, main script").count() == 0
        await go(page, "Deployments")
        await page.get_by_role("link", name="<img").first.click()
        await expect(page.get_by_role("heading", level=1)).to_contain_text("<img")
        assert "owned" not in await page.title()


async def test_the_deployments_follow_the_router(simulator: SimulatorFactory) -> None:
    """States, counts and limits change with the next poll, without the page being loaded anew or the focus being lost."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url) as page:
        busy(made)
        await log_in(page)
        east = row(page, "east")
        await expect(east).to_contain_text("42 / 50")
        await expect(east).to_contain_text("14 failed")
        await expect(row(page, "north")).to_contain_text("probed in 21 s")
        await expect(row(page, "sweden")).to_contain_text("set here")
        await expect(row(page, "old").get_by_role("button")).to_have_count(0)
        await east.get_by_role("button", name="Drain east").focus()
        made.find("east").update(sessions=50, obstacle="full")
        await expect(east).to_contain_text("50 / 50")
        await expect(east).to_contain_text("full")
        await expect(east.get_by_role("button", name="Drain east")).to_be_focused()
        await expect(east.locator(".spark canvas")).to_have_count(2)


async def test_a_hidden_page_asks_for_nothing(simulator: SimulatorFactory) -> None:
    """While nobody looks the poll rests, and goes on at once when somebody does."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url) as page:
        made.group("voice", deployment("east"))
        await log_in(page)
        hide = """hidden => {
            Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
            document.dispatchEvent(new Event('visibilitychange'));
        }"""
        await page.evaluate(hide, True)
        asked = asyncio.create_task(made.asked("deployments"))
        # Twice the interval of the poll: one that ran on would be seen.
        done, _ = await asyncio.wait([asked], timeout=4.5)
        assert not done
        await page.evaluate(hide, False)
        await asked


async def test_a_router_that_does_not_answer_is_said_to(simulator: SimulatorFactory) -> None:
    """What was known stays in sight with a warning, and the warning goes when the router is back."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url) as page:
        made.group("voice", deployment("east"))
        await log_in(page)
        made.fails["deployments"] = (503, "The workers cannot be asked.")
        await expect(page.get_by_text("The workers cannot be asked.")).to_be_visible()
        await expect(page.get_by_role("link", name="east")).to_be_visible()
        del made.fails["deployments"]
        await expect(page.get_by_text("The workers cannot be asked.")).to_have_count(0)


async def test_reload_errors_stand_with_their_lines(simulator: SimulatorFactory) -> None:
    """Every view tells of a refused file, and the configuration's says line, place, what was found and what was expected."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url) as page:
        busy(made)
        await log_in(page)
        await page.get_by_role("link", name="See what is wrong").click()
        errors = page.get_by_role("table", name="Errors")
        for text in ("14", "model_list[2].model_info.weight", "-1", "a number above 0"):
            await expect(errors).to_contain_text(text)
        await expect(page.get_by_text("general_settings.listen", exact=True)).to_be_visible()
        made.fails["reload"] = (422, "The file was refused for 1 problem.")
        await page.get_by_role("button", name="Reload…").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_role("button", name="Reload").click()
        await expect(dialog.get_by_role("alert")).to_have_text("The file was refused for 1 problem.")
        del made.fails["reload"]
        made.config["last_reload"] = {**made.config["last_reload"], "successful": True, "errors": [], "warnings": []}
        await agree(page, "Reload")
        await expect(page.get_by_text("taken")).to_be_visible()
        assert made.acts == [("reload", {}), ("reload", {})]


# --- what is done --------------------------------------------------------------------------------


@SIZES
async def test_acts_on_a_deployment(simulator: SimulatorFactory, size: ViewportSize) -> None:
    """Each asks first, does what it says, and shows what came of it; a dialog that is left does nothing."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url, size=size) as page:
        busy(made)
        await log_in(page)
        await page.get_by_role("button", name="Drain west").click()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(page.get_by_role("button", name="Drain west")).to_be_focused()
        assert made.acts == []
        await page.get_by_role("button", name="Drain west").click()
        await expect(page.get_by_role("dialog")).to_contain_text("7 sessions run there now")
        await expect(page.get_by_role("dialog")).not_to_contain_text("No other deployment")
        await agree(page, "Drain")
        await expect(row(page, "west")).to_contain_text("draining")
        await page.get_by_role("button", name="Drain east").click()
        last = "No other deployment of voice takes sessions now: new ones go to backup."
        await expect(page.get_by_role("dialog")).to_contain_text(last)
        await page.keyboard.press("Escape")

        await page.get_by_role("link", name="west", exact=True).click()
        await page.get_by_role("button", name="As the file says", exact=True).click()
        await agree(page, "As the file says")
        await expect(page.get_by_role("heading", level=1)).to_contain_text("admitting")
        await page.get_by_role("button", name="Maintenance").click()
        await agree(page, "Maintenance")
        await page.get_by_role("button", name="Make ready").click()
        await agree(page, "Make ready")
        await page.get_by_role("button", name="Weight…").click()
        await page.get_by_role("dialog").get_by_label("Weight").fill("0.5")
        await agree(page, "Set weight")
        await page.get_by_role("button", name="Weight as the file says").click()
        await agree(page, "Give up the weight set here")

        await page.evaluate("location.hash = '#/deployments/north'")
        await page.get_by_role("button", name="Readmit").click()
        await agree(page, "Readmit")
        await expect(page.get_by_role("heading", level=1)).to_contain_text("admitting")
        assert made.acts == [
            ("deployments/set", {"id": "west", "state": "drain"}),
            ("deployments/set", {"id": "west", "state": None}),
            ("deployments/set", {"id": "west", "state": "maint"}),
            ("deployments/set", {"id": "west", "state": "ready"}),
            ("deployments/set", {"id": "west", "weight": 0.5}),
            ("deployments/set", {"id": "west", "weight": None}),
            ("deployments/readmit", {"id": "north"}),
        ]


async def test_an_act_that_fails_says_why(simulator: SimulatorFactory) -> None:
    """The dialog stays open with the router's words."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url) as page:
        made.group("voice", deployment("east"))
        made.fails["deployments/set"] = (404, "There is no such deployment any more.")
        await log_in(page)
        await page.get_by_role("button", name="Drain east").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_role("button", name="Drain", exact=True).click()
        await expect(dialog.get_by_role("alert")).to_have_text("There is no such deployment any more.")


@SIZES
async def test_sessions_are_found_looked_at_and_ended(simulator: SimulatorFactory, size: ViewportSize) -> None:
    """Search, one session with its attempts and decisions, and its end with a code and a reason."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url, size=size) as page:
        busy(made)
        await log_in(page)
        await go(page, "Sessions")
        await expect(page.get_by_text("8 sessions", exact=True)).to_be_visible()
        await page.get_by_role("searchbox", name="Search").fill("0001")
        await expect(page.get_by_text("1 session", exact=True)).to_be_visible()
        await page.get_by_role("link", name=SESSION).click()
        await expect(page.get_by_role("table", name="Attempts")).to_contain_text("status 503")
        await expect(page.get_by_role("table", name="Decisions")).to_contain_text("strategy p2c")
        await page.get_by_role("button", name="End session…").click()
        await page.get_by_label("Close code").fill("4001")
        await page.get_by_label("Reason").fill("moving house")
        await agree(page, "End session")
        await expect(page.get_by_text("There is no such session")).to_be_visible()
        assert made.acts == [(f"sessions/{SESSION}/end", {"code": 4001, "reason": "moving house"})]


# --- the playground ------------------------------------------------------------------------------


async def heard(page: Page) -> None:
    """Wait until the page has played a part of the answer."""
    await expect(page.locator("#played")).to_have_text(re.compile(r"^(0\.[3-9]|[1-9]\d*\.\d) s played$"))


@SIZES
async def test_a_turn_by_text_is_heard(simulator: SimulatorFactory, size: ViewportSize) -> None:
    """Text goes up, the answer is read and heard, the latencies are measured, and the events can be looked into."""
    async with stage(simulator) as (made, browser, router), opened(browser, made.url, size=size) as page:
        made.group("voice", deployment("east"))
        await log_in(page)
        await go(page, "Playground")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.get_by_text("Connected", exact=True)).to_be_visible()
        await page.get_by_label("Text to send").fill("What is the capital of France?")
        await page.keyboard.press("Enter")
        conversation = page.get_by_role("log")
        await expect(conversation).to_contain_text("You said: What is the capital of France?")
        await expect(page.get_by_role("cell", name="completed")).to_be_visible()
        await heard(page)
        for name in ("Ready", "First audio", "Turn"):
            figure = page.locator(".side dl div").filter(has=page.get_by_text(name, exact=True)).locator("dd")
            await expect(figure).to_have_text(re.compile(r"^[\d.]+ m?s$"))
        await page.get_by_label("Filter").fill("response.created")
        await page.get_by_text("response.created", exact=True).click()
        await expect(page.locator("pre")).to_contain_text('"type": "response.created"')
        await page.get_by_role("button", name="Disconnect").click()
        record = await router.until(SessionRecord)
        assert (record.principal, record.turns, record.client_code) == ("dashboard", 1, 1000)


async def test_the_microphone_is_heard_and_speech_interrupts(simulator: SimulatorFactory) -> None:
    """The browser's made-up microphone beeps: that arrives as speech, and the answer that is heard falls silent for it.

    The provider learns how much of the answer was heard, so that its memory of the conversation is the operator's.
    """
    async with stage(simulator) as (made, browser, router), opened(browser, made.url, permissions=["microphone"]) as page:
        made.group("voice", deployment("east"))
        await log_in(page)
        await go(page, "Playground")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.get_by_text("Connected", exact=True)).to_be_visible()
        # A long answer, so that it is still heard when the microphone is on.
        await page.get_by_label("Text to send").fill("one two three four five six seven eight nine ten " * 12)
        await page.get_by_role("button", name="Send").click()
        await heard(page)
        await page.get_by_role("button", name="Microphone").click()
        await expect(page.get_by_role("button", name="Microphone is on")).to_be_visible()
        for type in ("input_audio_buffer.speech_started", "conversation.item.truncate"):
            await expect(page.get_by_text(type, exact=True).first).to_be_attached()
        await page.get_by_label("sound pieces").check()
        await expect(page.get_by_text("input_audio_buffer.append", exact=True).first).to_be_attached()
        await page.get_by_role("button", name="Microphone is on").click()
        await expect(page.get_by_role("button", name="Microphone", exact=True)).to_be_visible()
        await page.get_by_label("Filter").fill("truncate")
        await page.get_by_text("conversation.item.truncate", exact=True).first.click()
        told = re.search(r'"audio_end_ms": (\d+)', await page.locator("pre").inner_text())
        assert told is not None and 0 < int(told[1]) < 60_000
        await page.get_by_role("button", name="Disconnect").click()
        await router.until(SessionRecord)


async def test_a_refused_session_says_why(simulator: SimulatorFactory) -> None:
    """The router's error event and its close code are shown."""
    async with stage(simulator) as (made, browser, _), opened(browser, made.url) as page:
        made.group("nobody", deployment("east"))
        await log_in(page)
        await go(page, "Playground")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.get_by_role("alert")).to_contain_text("1008")
        await expect(page.get_by_text("Disconnected", exact=True)).to_be_visible()
        await expect(page.get_by_role("button", name="Connect", exact=True)).to_be_enabled()


async def test_a_page_that_may_have_no_microphone_says_so(simulator: SimulatorFactory) -> None:
    """Browsers give it to https and localhost only; text works nevertheless."""
    async with stage(simulator) as (made, browser, _):
        made.group("voice", deployment("east"))
        async with opened(browser, made.url) as page:
            await log_in(page)
            await page.evaluate("Object.defineProperty(window, 'isSecureContext', {value: false})")
            await go(page, "Playground")
            await expect(page.get_by_text("A microphone needs https or localhost")).to_be_visible()
            await page.get_by_role("button", name="Connect").click()
            await expect(page.get_by_text("Connected", exact=True)).to_be_visible()
            await expect(page.get_by_role("button", name="Microphone")).to_be_disabled()


# --- a real router -------------------------------------------------------------------------------


@SIZES
async def test_an_operator_s_round_on_a_real_router(simulator: SimulatorFactory, size: ViewportSize) -> None:
    """Log in, drain a deployment and see it drained in the admin API, end a session, look at why it went there, talk to it."""
    first, second = await simulator(name="east"), await simulator(name="west")
    config = config_of(first, second, general={"master_key": MASTER})
    async with (
        running_router(config) as router,
        chromium() as browser,
        router.connect(key=MASTER) as client,
        opened(browser, f"http://localhost:{router.port}/", size=size) as page,
    ):
        assert await next_type(client) == "session.created"
        id = client.response.headers["x-router-session"]
        await log_in(page)
        await expect(row(page, "east")).to_contain_text("admitting")

        await page.get_by_role("button", name="Drain east").click()
        await agree(page, "Drain")
        await expect(row(page, "east")).to_contain_text("draining")
        groups = (await router.request("/admin/deployments", key=MASTER)).json["groups"]
        assert {one["id"]: one["state"] for one in groups[0]["deployments"]} == {"east": "draining", "west": "admitting"}

        await go(page, "Sessions")
        await page.get_by_role("link", name=id).click()
        await expect(page.get_by_role("table", name="Attempts")).to_contain_text("east")
        await expect(page.get_by_role("table", name="Decisions")).to_contain_text("strategy first")
        await page.get_by_role("button", name="End session…").click()
        await agree(page, "End session")
        record = await router.record_of(client)
        assert (record.who, record.client_code) == ("router", 1001)
        await expect(page.get_by_role("heading", level=1)).to_contain_text("ended")

        for view in ("Decisions", "Configuration", "Fleet", "Playground"):
            await go(page, view)
        await page.get_by_role("button", name="Connect").click()
        await page.get_by_label("Text to send").fill("Hello")
        await expect(page.get_by_role("button", name="Send")).to_be_enabled()
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_role("cell", name="completed")).to_be_visible()
        await heard(page)
        await page.get_by_role("button", name="Disconnect").click()
        spoken = await router.until(SessionRecord, where=lambda one: one.principal == "dashboard")
        assert (spoken.deployment, spoken.turns) == ("west", 1)


@SIZES
async def test_a_refused_file_of_a_real_router(simulator: SimulatorFactory, tmp_path: Path, size: ViewportSize) -> None:
    """A reload of a broken file is refused in the dialog, the error stands with its line, and goes with the next good file."""
    config = config_of(await simulator(name="east"), general={"master_key": MASTER, "watch": False})
    file = written(tmp_path, yaml.safe_dump(config, sort_keys=False))
    async with (
        router_process(file) as router,
        chromium() as browser,
        opened(browser, f"{router.http}/", size=size) as page,
    ):
        await log_in(page)
        await go(page, "Configuration")
        good = file.read_text(encoding="utf-8")
        file.write_text(good + "router_setings: {}\n", encoding="utf-8")
        await page.get_by_role("button", name="Reload…").click()
        await page.get_by_role("dialog").get_by_role("button", name="Reload").click()
        await expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("router_setings")
        await page.get_by_role("button", name="Cancel").click()
        errors = page.get_by_role("table", name="Errors")
        await expect(errors).to_contain_text(str(good.count("\n") + 1))
        await expect(errors).to_contain_text("router_setings")
        await expect(page.get_by_text("The last reload was refused (1 error); generation 1 stays in force.")).to_be_visible()

        file.write_text(good.replace("east", "west"), encoding="utf-8")
        await page.get_by_role("button", name="Reload…").click()
        await agree(page, "Reload")
        await expect(errors).to_have_count(0)
        await go(page, "Deployments")
        await expect(page.get_by_role("link", name="west")).to_be_visible()
