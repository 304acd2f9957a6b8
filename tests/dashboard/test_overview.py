"""The first page, as HTML."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.api.conftest import Broker, submit

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


async def page(broker: Broker) -> Page:
    async with broker.http.get(broker.url + "/") as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert response.headers["Cache-Control"] == "no-store"
        return Page(await response.text())


async def test_an_empty_queue_tells_a_newcomer_what_to_do(broker: Broker) -> None:
    text = (await page(broker)).text
    assert f"python install.py /path/to/ComfyUI --broker-url {broker.url}" in text
    assert f"python -m broker submit workflow.json --watch --broker {broker.url}" in text


async def test_depth_workers_and_jobs_are_shown(broker: Broker) -> None:
    worker = broker.worker("gpu-7")
    await worker.register()
    jobs = [(await broker.json("POST", "/api/jobs", json=submit(priority=9)))[1]["job_id"] for _ in range(25)]
    held = await worker.claim()
    assert held is not None
    await worker.report(held, 40)
    seen = await page(broker)
    rows = [attrs["id"] for tag, attrs in seen.tags if tag == "tr" and (attrs.get("id") or "").startswith("job-")]
    assert rows == [f"job-{job}" for job in jobs[:4:-1]], "the last 20, newest first"
    assert "gpu-7" in seen.text
    assert "9: 24" in seen.text
    assert re.search(r"waiting\s*24", seen.text)
    assert re.search(r"running\s*1", seen.text)


async def test_whatever_a_worker_or_job_says_is_text(broker: Broker) -> None:
    evil = '"><img src=x onerror=alert(1)>{{7*7}}\u202e'
    worker = broker.worker(evil)
    await worker.register()
    job = (await broker.json("POST", "/api/jobs", json=submit(group=evil, max_attempts=1)))[1]["job_id"]
    held = await worker.claim()
    assert held is not None
    assert held.job_id == job
    await worker.fail(held, evil, evil)
    seen = await page(broker)
    assert [tag for tag, _ in seen.tags if tag == "img"] == []
    assert "{{7*7}}" in seen.text
    assert all(not name.startswith("on") for _, attrs in seen.tags for name in attrs)


@pytest.mark.parametrize("template", sorted((ROOT / "templates").glob("*.html")), ids=lambda p: p.name)
def test_templates_need_no_exception_to_the_policy(template: Path) -> None:
    text = template.read_text()
    for forbidden in (
        r"\son[a-z]+=",
        r"style=",
        r"hx-on",
        r"js:",
        r"\|\s*safe",
        r"<script(?![^>]* src=)",
        r"https?://",
    ):
        assert not re.search(forbidden, text), forbidden
    assert len(text.splitlines()) <= 120


def test_what_is_vendored_is_what_was_published() -> None:
    """htmx.org 4.0.1 of the npm registry."""
    digest = hashlib.sha256((ROOT / "static" / "htmx.min.js").read_bytes()).hexdigest()
    assert digest == "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"
    assert (ROOT / "static" / "htmx.LICENSE").exists()
    assert (ROOT / "static" / "emq.css").stat().st_size <= 20_000
