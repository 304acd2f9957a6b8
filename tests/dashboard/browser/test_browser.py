"""The pages in Chromium: live, by keyboard, without scripts, with hostile strings, for screen readers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Page, Route, expect

from broker.app import CONNECTION
from broker.jobs.history import Recorder
from broker.queue.series import Series
from tests.api.conftest import Broker, Start, submit
from tests.dashboard.browser.conftest import WATCH
from tests.dashboard.html import EVIL
from tests.support.browser import not_reloaded, open_live
from tests.support.pages import evil_jobs
from tests.support.servers import free_port
from tests.support.simulated import Held, SimulatedWorker

ROOT = Path(__file__).resolve().parents[3]
SHOTS = ROOT / "artifacts" / "dashboard"
AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
NODE = {"id": "3", "class_type": "KSampler", "value": 12, "max": 20}


NAMING = ("/workers", f"/workers/{quote(EVIL, safe='')}", "/timeline", "/failures")
"""Further pages that show a worker's name."""


async def new(broker: Broker, **fields: Any) -> str:
    return str((await broker.json("POST", "/api/jobs", json=submit(**fields)))[1]["job_id"])


async def working(broker: Broker, name: str = "gpu-7") -> tuple[SimulatedWorker, Held]:
    """A simulated worker in the middle of a job."""
    worker = broker.worker(name)
    await worker.register()
    await new(broker)
    held = await worker.claim()
    assert held is not None
    await worker.report(held, 40, node=NODE)
    await worker.heartbeat(gpus='[{"vram_free_mb": 8000}]')
    return worker, held


async def test_the_fleet_changes_while_it_is_open(desk: Broker, tab: Page) -> None:
    await open_live(tab, desk.url)
    await expect(tab.locator("#fleet")).to_contain_text("No worker is connected yet.")
    worker, held = await working(desk)
    await expect(tab.locator("article.gpu")).to_contain_text("KSampler 12/20")
    await worker.report(held, 60, node={**NODE, "value": 15})
    await expect(tab.locator("article.gpu")).to_contain_text("KSampler 15/20")
    await expect(tab.locator("article.gpu progress")).to_have_attribute("value", "60")
    await expect(tab.locator("#strip")).to_contain_text(re.compile(r"Workers\s*1 up"))
    await worker.finish(held)
    await worker.heartbeat()
    await expect(tab.locator("article.gpu")).to_contain_text("Waits for a job.")
    assert await not_reloaded(tab)


async def test_what_has_just_happened_is_no_future_however_long_the_page_took_to_load(desk: Broker, tab: Page) -> None:
    async def slowly(route: Route) -> None:
        await asyncio.sleep(3)
        await route.continue_()

    await tab.route("**/emq.js", slowly)
    await open_live(tab, desk.url)
    await tab.evaluate("document.querySelector('main').innerHTML = `<time id=new data-at=${Date.now()}>?</time>`")
    await expect(tab.locator("#new")).not_to_have_text("?")
    text, passed_s = await tab.evaluate(
        "(e => [e.textContent, (Date.now() - e.dataset.at) / 1000])(document.querySelector('#new'))"
    )
    assert text in {f"{s} s" for s in range(max(0, int(passed_s) - 2), int(passed_s) + 1)}


async def test_buttons_act_without_leaving_the_page(desk: Broker, tab: Page) -> None:
    _, held = await working(desk)
    await open_live(tab, desk.url)
    await tab.get_by_role("button", name="Pause", exact=True).click()
    await expect(tab.locator("#said")).to_have_text("gpu-7 takes no more jobs.")
    await expect(tab.locator("article.gpu .state.paused")).to_be_visible()
    await tab.get_by_role("button", name="Resume", exact=True).click()
    await expect(tab.locator("article.gpu .state.paused")).to_have_count(0)
    await tab.get_by_role("button", name="Drain").click()
    await expect(tab.locator("#said")).to_contain_text("takes nothing new")
    tab.once("dialog", lambda dialog: dialog.accept())
    await tab.get_by_role("button", name="Interrupt").click()
    await expect(tab.locator("#said")).to_contain_text("is told to stop")
    await tab.get_by_role("button", name="Pause all").click()
    await expect(tab.locator("#strip .state.paused")).to_be_visible()
    await tab.get_by_role("button", name="Resume all").click()
    await expect(tab.locator("#strip .state.paused")).to_have_count(0)
    assert await not_reloaded(tab)
    assert (await desk.queue.job(held.job_id)).text("cancel") == "from the dashboard"


async def test_a_refusal_is_said_on_the_page(desk: Broker, tab: Page) -> None:
    job = await new(desk)
    await open_live(tab, f"{desk.url}/jobs/{job}")
    # From here on the page is old, and keeps the button: whatever its stream brings is not shown any more.
    await tab.evaluate("document.querySelectorAll('#stream').forEach(e => e.remove())")
    await desk.queue.cancel(job)
    await tab.get_by_role("button", name="Front").click()
    await expect(tab.locator("#said .problem")).to_be_visible()


async def test_jobs_are_moved_cancelled_retried_and_copied(desk: Broker, tab: Page) -> None:
    await desk.worker("gpu-7").register()
    job = await new(desk)
    await open_live(tab, f"{desk.url}/jobs/{job}")
    await tab.get_by_role("button", name="Priority +1").click()
    await expect(tab.locator("#said")).to_contain_text("has priority 1")
    await tab.get_by_role("button", name="Cancel").click()
    await expect(tab.locator("#job-head .state")).to_contain_text("cancelled")
    await tab.get_by_role("button", name="Retry", exact=True).click()
    await expect(tab.locator("#job-head .state")).to_contain_text("pending")
    assert await not_reloaded(tab)
    await tab.get_by_role("button", name="Duplicate").click()
    await expect(tab.locator("#said")).to_contain_text("This is a copy of job")
    assert tab.url != f"{desk.url}/jobs/{job}"


async def test_focus_ticks_and_typed_text_outlive_updates(desk: Broker, tab: Page) -> None:
    await desk.worker("gpu-7").register()
    first, second = await new(desk), await new(desk)
    await open_live(tab, f"{desk.url}/queue")
    box = tab.get_by_label(f"select {first[:12]}")
    await box.check()
    await box.focus()
    await desk.queue.set_priority(second, priority=5)
    await expect(tab.locator("#rows tr").first).to_contain_text(second[:12])
    assert await box.is_checked()
    assert await box.evaluate("e => e === document.activeElement")
    await desk.queue.set_priority(first, priority=6)
    await expect(tab.locator("#rows tr").first).to_contain_text(first[:12])
    assert await box.is_checked()
    await open_live(tab, f"{desk.url}/jobs")
    await tab.keyboard.press("/")
    await tab.keyboard.type("status:fai")
    await new(desk)
    await expect(tab.locator("#rows tr")).to_have_count(3)
    assert await tab.locator("#q").input_value() == "status:fai"
    assert await tab.locator("#q").evaluate("e => e === document.activeElement")


async def test_the_jobs_page_is_searched_and_acts_on_what_it_finds(desk: Broker, tab: Page) -> None:
    for number in range(4):
        await new(desk, metadata={"shop": "eu" if number else "us"})
    await open_live(tab, f"{desk.url}/jobs")
    await tab.locator("#q").fill("shop:eu")
    await tab.keyboard.press("Enter")
    await expect(tab.locator("#rows tr")).to_have_count(3)
    await tab.get_by_role("button", name="Count them first…").click()
    await tab.get_by_role("button", name="Cancel: 3 jobs").click()
    await expect(tab.locator("#said")).to_have_text("Cancel: 3 of 3 jobs.")
    await tab.goto(f"{desk.url}/jobs")
    await tab.get_by_label("all on this page").check()
    await tab.get_by_role("button", name="Retry", exact=True).click()
    await expect(tab.locator("#said")).to_have_text("Retry: 3 of 4 jobs; 1 in another state.")


async def test_a_broker_that_goes_and_comes_back_is_seen_without_a_reload(start: Start, tab: Page) -> None:
    port = free_port()
    first = await start(port=port)
    await open_live(tab, first.url)
    await first.server.close()
    await expect(tab.locator("#live")).to_contain_text("reconnecting since")
    second = await start(port=port)
    await expect(tab.locator("#live")).to_have_text("live")
    await working(second, "gpu-new")
    await expect(tab.locator("#fleet")).to_contain_text("gpu-new")
    assert await not_reloaded(tab)


async def test_the_keyboard_is_enough(desk: Broker, tab: Page) -> None:
    await working(desk)
    await open_live(tab, desk.url)
    await tab.keyboard.press("Tab")
    await expect(tab.locator(".skip")).to_be_focused()
    await tab.keyboard.press("Enter")
    await expect(tab).to_have_url(re.compile("#main$"))
    for _ in range(12):
        await tab.keyboard.press("Tab")
        if await tab.evaluate("document.activeElement.textContent === 'Pause'"):
            break
    await tab.keyboard.press("Enter")
    await expect(tab.locator("#said")).to_have_text("gpu-7 takes no more jobs.")


async def test_all_of_it_works_without_scripts(desk: Broker, browser: Browser) -> None:
    await working(desk)
    job = await new(desk)
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(desk.url)
    await page.get_by_role("button", name="Pause", exact=True).click()
    await expect(page.locator("#said")).to_have_text("gpu-7 takes no more jobs.")
    await page.goto(f"{desk.url}/queue")
    await page.get_by_label(f"select {job[:12]}").check()
    await page.locator("#bulk").get_by_role("button", name="Cancel").click()
    await expect(page.locator("#said")).to_have_text("Cancel: 1 of 1 jobs.")
    await page.get_by_role("button", name="Theme auto").click()
    await expect(page.locator("html")).to_have_attribute("data-theme", "light")
    await context.close()


async def test_hostile_strings_stay_text_on_every_page(desk: Broker, tab: Page) -> None:
    jobs = await evil_jobs(desk)
    dialogs: list[str] = []
    tab.on("dialog", lambda dialog: dialogs.append(dialog.message))
    named = ("", "/?layout=table", "/queue", "/jobs", *(f"/jobs/{job}" for job in jobs), *NAMING)
    for path in (*named, "/gallery", "/models", "/metrics-view", "/admin"):
        await open_live(tab, desk.url + path)
        if path in named:
            await expect(tab.locator("main")).to_contain_text("{{7*7}}")
        assert await tab.locator("img[src=x]").count() == 0
    assert dialogs == []


async def settled(tab: Page) -> dict[str, Any]:
    """What axe finds, by rule, with the elements."""
    await tab.evaluate(AXE)
    found = await tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return {rule["id"]: [node["html"][:200] for node in rule["nodes"]] for rule in found["violations"]}


async def something_of_everything(desk: Broker) -> tuple[dict[str, str], list[SimulatedWorker]]:
    """Work that every page has something to show of: the address of each page, and the workers."""
    worker, held = await working(desk)
    failed = await new(desk, max_attempts=1, metadata={"order": 17})
    await new(desk, requirements={"models": ["flux-dev.safetensors"]})
    other = desk.worker("gpu-8")
    await other.register()
    taken = await other.claim(failed)
    assert taken is not None
    await other.report(taken, 1, node=NODE)
    await other.fail(taken, "out_of_memory", "No memory is left.", retry="no")
    made = await new(desk)
    taken = await other.claim(made)
    assert taken is not None
    await other.report(taken, 1, node=NODE)
    words = {"node_id": "3", "kind": "text", "filename": "a.txt", "text": "some words"}
    await other.finish(taken, {"outputs": [words], "timings": {}})
    await new(desk)
    now = round(time.time() * 1000)
    series = Series(desk.server.app[CONNECTION], desk.queue.prefix)
    sample = await Recorder(desk.queue, series).sample(now)
    for minutes in (3, 2, 1):
        await series.add({**sample, "t": now - minutes * 60_000})
    paths = {
        "fleet": "/", "fleet-table": "/?layout=table", "queue": "/queue", "jobs": "/jobs", "error": "/nowhere",
        "job-running": f"/jobs/{held.job_id}", "job-failed": f"/jobs/{failed}", "job-completed": f"/jobs/{made}",
        "bulk": "/jobs/bulk?q=status:failed&do=retry", "workers": "/workers", "worker": "/workers/gpu-7",
        "timeline": "/timeline?span=5", "failures": "/failures", "gallery": "/gallery", "models": "/models",
        "metrics": "/metrics-view", "admin": "/admin", "help": "/help", "style": "/style",
    }  # fmt: skip
    return paths, [worker, other]


@pytest.mark.timeout(300)
async def test_pages_are_accessible_fit_a_phone_and_are_kept_as_pictures(desk: Broker, browser: Browser) -> None:
    paths, workers = await something_of_everything(desk)
    SHOTS.mkdir(parents=True, exist_ok=True)
    wrong: dict[str, Any] = {}
    for theme, width in (("light", 1280), ("dark", 1280), ("light", 375)):
        context = await browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
        await context.add_init_script(WATCH)
        page = await context.new_page()
        for name, path in paths.items():
            for worker in workers:
                await worker.heartbeat()
            await page.goto(desk.url + path)
            if name not in ("bulk", "error"):
                await expect(page.locator("#live")).to_have_text("live")
            await page.screenshot(path=SHOTS / f"{name}-{theme}-{width}.png", full_page=True)
            if await page.evaluate("document.documentElement.scrollWidth") > width:
                wrong[f"{name} {width}"] = {"too wide": []}
            if width == 1280 and (found := await settled(page)):
                wrong[f"{name} {theme}"] = found
            wrong |= {f"{name} {theme}: {what}": {} for what in await page.evaluate("window.violations")}
        await context.close()
    assert not wrong, json.dumps(wrong, indent=1)
