"""The system's Chromium, driven by playwright, which brings no browser of its own here."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.helpers.parts import NODE_DIR, require

if TYPE_CHECKING:  # not made for every machine: ``chromium`` says so where it is missing
    from playwright.async_api import Browser, ConsoleMessage, Locator, Page, ViewportSize

FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync disable-dev-shm-usage disable-extensions no-default-browser-check no-proxy-server "
    "autoplay-policy=no-user-gesture-required use-fake-device-for-media-stream use-fake-ui-for-media-stream"
)
# A busy machine's browser is slow, not wrong.
PATIENCE_MS = 30_000
DESKTOP: ViewportSize = {"width": 1280, "height": 860}
PHONE: ViewportSize = {"width": 360, "height": 740}


@dataclass
class Complaints:
    """What a page's console said that it should not have."""

    found: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        """Keep errors and warnings. A request that failed is told there too, and is the test's own business."""
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.found.append(f"{message.type}: {message.text}")


def expect(locator: Locator) -> Any:
    """What a part of a page must come to show; each claim waits for it. Of a type that the library does not export."""
    from playwright.async_api import expect as expect_of

    expect_of.set_options(timeout=PATIENCE_MS)
    return expect_of(locator)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser until the block ends; the test is skipped where there is none."""
    path = require("chromium")
    require("playwright")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[f"--{flag}" for flag in FLAGS.split()])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser, url: str, *, size: ViewportSize = DESKTOP, dark: bool = False, **options: Any
) -> AsyncIterator[Page]:
    """A page in a context of its own, with the console listened to: what it complains of fails the test.

    Args:
        browser: see ``chromium``.
        url: to be opened.
        size: of the window.
        dark: which colours the system has.
        options: more of playwright's ``new_context``.
    """
    context = await browser.new_context(
        viewport=size, color_scheme="dark" if dark else "light", reduced_motion="reduce", **options
    )
    context.set_default_timeout(PATIENCE_MS)
    complaints = Complaints()
    try:
        page = await context.new_page()
        page.on("console", complaints.hear)
        page.on("pageerror", lambda error: complaints.found.append(f"uncaught: {error}"))
        await page.goto(url)
        yield page
        assert complaints.found == []
    finally:
        await context.close()


def axe_source() -> str:
    """The script of axe-core, or skip the test."""
    require("axe")
    return (NODE_DIR / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


async def findings(page: Page, source: str) -> list[str]:
    """What axe-core finds serious or critical in a page as it is now, one line each."""
    # The page's own policy refuses scripts from elsewhere, and the browser's tools do not go through it.
    await page.evaluate(source)
    result = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {node['target']} {re.sub(chr(10), ' ', node['html'])[:160]} {node['failureSummary'][:300]}"
        for violation in result["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


async def fits(page: Page) -> bool:
    """Whether nothing makes the page wider than the window."""
    return bool(await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))
