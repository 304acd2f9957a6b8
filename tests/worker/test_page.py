"""EMQ in ComfyUI's own page: its routes, and the page itself in a real browser."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image
from playwright.async_api import Page

from broker.trial.workflows import plain_image
from tests.support.browser import browser_page, open_comfyui
from tests.support.comfyui import LONG, Client, ComfyProcess, node, slow
from tests.support.processes import listening
from tests.support.waiting import wait_until


@pytest.fixture
async def http(comfy: ComfyProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(comfy.url) as session:
        yield session


async def ask(http: aiohttp.ClientSession, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    method = "GET" if body is None else "POST"
    async with http.request(method, path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def until_over(http: aiohttp.ClientSession, job_id: str) -> dict[str, Any]:
    record: dict[str, Any] = {}

    async def over() -> bool:
        _, told = await ask(http, f"/emq/jobs/{job_id}")
        record.update(told)
        return told["status"] in ("completed", "failed", "cancelled")

    await wait_until(over, 60, f"job {job_id} ends")
    return record


# -- the routes -------------------------------------------------------------------------------------------------------


async def test_the_status_is_the_worker_s(http: aiohttp.ClientSession, client: Client, comfy: ComfyProcess) -> None:
    job = await client.submit(slow(LONG, seed=500), worker=comfy)
    await comfy.until_it_runs(job)
    status, told = await ask(http, "/emq/status")
    assert (status, told["worker_id"], told["state"], told["connected"]) == (
        200,
        comfy.worker_id,
        "busy",
        {"default": True},
    )
    assert [(each["job_id"], each["phase"]) for each in told["jobs"]] == [(job, "running")]
    assert set(told["queue"]) == {"queued", "running", "paused"}
    assert (await ask(http, f"/api/emq/jobs/{job}/cancel", {}))[0] == 200
    assert (await client.until(job))["status"] == "cancelled"


async def test_a_worker_is_paused_and_drained_where_it_is(
    http: aiohttp.ClientSession, client: Client, comfy: ComfyProcess
) -> None:
    for word, field in (("pause", "paused"), ("drain", "draining")):
        status, told = await ask(http, f"/emq/{word}", {})
        assert (status, told[field]) == (200, True)
        job = await client.submit(plain_image(0x55, 16), worker=comfy)
        worker = await client.worker(comfy.worker_id)
        assert worker is not None
        assert worker[field] is True
        assert (await client.job(job))["status"] == "pending"
        status, told = await ask(http, "/emq/resume", {})
        assert (status, told["paused"], told["draining"]) == (200, False, False)
        assert (await client.until(job))["status"] == "completed"


async def test_a_graph_of_the_page_runs_with_its_local_files(
    http: aiohttp.ClientSession, client: Client, comfy: ComfyProcess
) -> None:
    """Its pictures go along: another machine's input folder has none of them."""
    (comfy.base / "input" / "pasted").mkdir(exist_ok=True)
    Image.new("RGB", (12, 8), (9, 8, 7)).save(comfy.base / "input" / "pasted" / "mine.png")
    graph = {
        "1": node("LoadImage", image="pasted/mine.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="fleet"),
    }
    workflow = {"nodes": [], "links": [], "version": 0.4}
    status, told = await ask(http, "/emq/queue", {"prompt": graph, "workflow": workflow})
    assert (status, told.get("type")) == (200, "job_accepted"), told
    record = await until_over(http, told["job_id"])
    assert (record["status"], record["metadata"]["source"]) == ("completed", "comfyui"), record
    (output,) = record["result"]["outputs"]
    async with http.get(output["url"]) as answer:
        picture = Image.open(io.BytesIO(await answer.read()))
        assert (answer.headers["X-Content-Type-Options"], answer.content_type) == ("nosniff", "image/png")
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert picture.getpixel((0, 0)) == (9, 8, 7)
    assert "workflow" in picture.info
    async with http.get(output["url"], headers={"Range": "bytes=1-3"}) as answer:
        assert (answer.status, await answer.read()) == (206, b"PNG")
        assert answer.headers["Content-Range"] == f"bytes 1-3/{output['size']}"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
    ids=str,
)
async def test_other_sites_may_not_ask(http: aiohttp.ClientSession, headers: dict[str, str], status: int) -> None:
    for prefix in ("", "/api"):
        async with http.post(f"{prefix}/emq/resume", json={}, headers=headers) as answer:
            assert answer.status == status


async def test_forms_and_bad_bodies_are_refused(http: aiohttp.ClientSession) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        for path in ("/emq/queue", "/emq/pause"):
            async with http.post(path, data=b'{"prompt": {}}', headers={"Content-Type": kind}) as answer:
                assert answer.status == 415
    broken: list[Any] = [{}, [], {"prompt": {}}, {"prompt": "x"}, {"prompt": {"1": 5}}]
    for body in broken:
        assert (await ask(http, "/emq/queue", body))[0] == 400
    for path in ("/emq/jobs/..%2f..%2fstats", "/emq/jobs/x%3fy", f"/emq/jobs/{'0' * 32}", "/emq/jobs/a/outputs/x"):
        async with http.get(path) as answer:
            assert answer.status == 404


def test_nothing_new_listens(comfy: ComfyProcess) -> None:
    """ComfyUI's port is the only one, with the worker in it or not."""
    assert comfy.child is not None
    assert listening(comfy.child.pid) == {comfy.port}


# -- the page ---------------------------------------------------------------------------------------------------------

EVIL = "\"><img src=x onerror='window.hit=1'>{{7*7}}\u202e"
STATE = "document.querySelector('[data-emq=state]').textContent"
LOADED = "(() => { const i = document.querySelector('.emq img'); return i.complete && i.naturalWidth === 64 })()"


async def test_the_page_in_a_browser(comfy: ComfyProcess, client: Client, tmp_path: Path) -> None:
    """One visit, because a browser is slow to start: the tab, steering, a job to its picture, and a hostile text."""
    await comfy.post("/settings", {"Comfy.TutorialCompleted": True})
    faults: list[str] = []
    async with browser_page(faults) as page:
        await open_comfyui(page, comfy.url, faults)
        await page.evaluate("window.app.extensionManager.sidebarTab.toggleSidebarTab('emq')")
        await page.wait_for_function(f"document.querySelector('.emq') && {STATE} === 'idle'")
        assert await page.text_content("[data-emq=worker]") == comfy.worker_id
        await page.wait_for_function("document.querySelector('[data-emq=queue]').textContent.includes('waiting')")
        await _steers(page, client, comfy)
        await _queues(page)
        await _shows_previews(page)
        await page.screenshot(path=os.environ.get("EMQ_SCREENSHOT") or tmp_path / "page.png")
        await _shows_text_as_text(page)
    assert faults == []


async def _steers(page: Page, client: Client, comfy: ComfyProcess) -> None:
    await page.click(".emq button:text-is('Pause')")
    await page.wait_for_function(f"{STATE}.startsWith('paused')")
    worker = await client.worker(comfy.worker_id)
    assert worker is not None
    assert worker["paused"] is True
    await page.click(".emq button:text-is('Resume')")
    await page.wait_for_function(f"{STATE} === 'idle'")


async def _queues(page: Page) -> None:
    await page.evaluate("graph => window.app.loadApiJson(graph, 'test')", plain_image(0x3366CC, 64))
    await page.evaluate("window.app.extensionManager.command.execute('emq.queueOnFleet')")
    await page.wait_for_selector(".emq article[data-status=completed] img")
    await page.wait_for_function(LOADED)


async def _shows_previews(page: Page) -> None:
    """While the job runs the tab has its latest picture; it is cancelled there, too."""
    running = ".emq article[data-status=processing]"
    await page.evaluate("graph => window.app.loadApiJson(graph, 'test')", slow(LONG, seed=77, preview=True))
    await page.click(".emq button:text-is('Queue on fleet')")
    await page.wait_for_function(f"document.querySelector('{running} img')?.naturalWidth > 0")
    await page.click(f"{running} button:text-is('Cancel')")
    await page.wait_for_selector(".emq article[data-status=cancelled]")
    assert await page.query_selector(".emq article[data-status=cancelled] img") is None


async def _shows_text_as_text(page: Page) -> None:
    graph = {"1": node("EMQTestFail", kind="ValueError", message=EVIL)}
    await page.evaluate("graph => window.app.loadApiJson(graph, 'test')", graph)
    await page.click(".emq button:text-is('Queue on fleet')")
    await page.wait_for_selector(".emq article[data-status=failed] .emq-error")
    assert EVIL in (await page.text_content(".emq article[data-status=failed] .emq-error") or "")
    assert await page.evaluate("window.hit === undefined && !document.querySelector('.emq img[src=x]')")
