"""A real Chromium, the system's, one a test session; each test has a tab of its own and the policy's verdict."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.api.conftest import Broker, Start, brokers
from tests.support.servers import RedisServer

ARGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip
PATIENCE_MS = 30_000
WATCH = """
window.violations = [];
document.addEventListener(
  'securitypolicyviolation', e => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`)
);
"""

expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here shares the browser's loop."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Chromium."""
    binary = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.fail("The pages are tested in Chromium: apt-get install chromium", pytrace=False)
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=binary, args=list(ARGS))
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="session")
async def start(valkey_server: RedisServer, pool: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts brokers on one pool, with a lease that no page uses up: few workers here send heartbeats."""
    async with brokers(pool=pool, redis_url=valkey_server.url, data=tmp_path, lease_s=600.0) as starter:
        yield starter


@pytest_asyncio.fixture(loop_scope="session")
async def desk(start: Start) -> Broker:
    """A broker."""
    return await start()


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Browser) -> AsyncIterator[Page]:
    """A tab. The test fails when a page breaks the content policy, throws, or opens a dialog that no test expects."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    await context.add_init_script(WATCH)
    page = await context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    yield page
    wrong += await page.evaluate("window.violations ?? []")
    await context.close()
    assert not wrong
