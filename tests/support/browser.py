"""A real Chromium with a page of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Page, async_playwright, expect
from playwright.async_api import TimeoutError as PageTimeout

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
           "--disable-sync", "--no-first-run", "--disable-dev-shm-usage")  # fmt: skip
SLOW_MS = 60_000
"""How long a step may take on a machine that does much else."""


@asynccontextmanager
async def browser_page(faults: list[str]) -> AsyncIterator[Page]:
    """A page in a new browser; errors of scripts are added to ``faults``."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=list(OPTIONS), timeout=SLOW_MS)
        try:
            page = await browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(SLOW_MS)
            page.on("pageerror", lambda error: faults.append(str(error)))
            yield page
        finally:
            await browser.close()


async def open_comfyui(page: Page, url: str, faults: list[str]) -> None:
    """ComfyUI's own page has been seen to load and never get ready; then it is visited again, as a person would."""
    ready = "window.app?.extensionManager?.command && window.app.graph"
    await page.goto(url)
    try:
        await page.wait_for_function(ready, timeout=SLOW_MS / 2)
    except PageTimeout:
        print("the first visit:", faults)
        faults.clear()
        await page.reload()
        await page.wait_for_function(ready)


async def open_live(page: Page, url: str) -> None:
    """Open one of EMQ's pages and wait until it is live; a mark shows later that it was never loaded again."""
    await page.goto(url)
    await expect(page.locator("#live")).to_have_text("live")
    await page.evaluate("window.mark = 1")


async def not_reloaded(page: Page) -> bool:
    """Whether the page is the one that ``open_live`` marked."""
    return bool(await page.evaluate("window.mark === 1"))
