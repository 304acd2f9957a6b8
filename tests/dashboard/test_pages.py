"""What holds for all pages and files of the dashboard, and the fleet's page as HTML."""

from __future__ import annotations

import gc
import hashlib
import re
import time
import weakref
from pathlib import Path

import pytest

from broker.access.identity import Role
from broker.dashboard import fleet
from broker.dashboard.frame import Frame, Page, View, environment
from broker.dashboard.parts import Parts
from broker.dashboard.strip import Strip
from broker.dashboard.words import age
from tests.api.conftest import Broker, Start, submit
from tests.dashboard.html import EVIL, page, post

ROOT = Path(__file__).resolve().parents[2]


async def test_an_empty_fleet_tells_a_newcomer_what_to_do(broker: Broker) -> None:
    text = (await page(broker)).text
    assert f"python install.py /path/to/ComfyUI --broker-url {broker.url}" in text
    assert "python -m broker simulate" in text


async def test_the_strip_counts_and_links(broker: Broker) -> None:
    worker = broker.worker("gpu-7")
    await worker.register()
    jobs = [
        (await broker.json("POST", "/api/jobs", json=submit(priority=priority)))[1]["job_id"] for priority in (9, 9, 0)
    ]
    held = await worker.claim()
    assert held is not None
    assert held.job_id == jobs[0]
    strip = (await page(broker)).one(id="strip")
    shown = {each.one("dt").text: each.one("dd") for each in strip.all("div")}
    assert shown["Waiting"].text.startswith("2")
    assert [chip.attrs["href"] for chip in shown["Waiting"].all("a", class_="chip")] == [
        "/queue?priority=9", "/queue?priority=0",
    ]  # fmt: skip
    assert shown["Oldest wait"].one("a").attrs["href"] == f"/jobs/{jobs[1]}"
    assert shown["Running"].text == "1"
    assert shown["Workers"].text == "1 up"
    assert shown["Failed in 1 h"].text == "0"
    assert shown["Redis"].text.endswith(" ms")
    await worker.fail(held, retry="no")
    later = (await page(broker)).one(id="strip")
    assert re.search(r"Failed in 1 h\s*1", later.text)


@pytest.mark.parametrize("layout", ["", "?layout=table"])
async def test_the_fleet_shows_what_each_worker_does(broker: Broker, layout: str) -> None:
    worker = broker.worker("gpu-7")
    await worker.register()
    job = (await broker.json("POST", "/api/jobs", json=submit()))[1]["job_id"]
    held = await worker.claim()
    assert held is not None
    await worker.report(held, 40, node={"id": "3", "class_type": "KSampler", "value": 12, "max": 20})
    await worker.heartbeat(gpus='[{"vram_free_mb": 8000}]')
    fleet = (await page(broker, f"/{layout}")).one(id="fleet")
    assert "KSampler 12/20" in fleet.text
    assert [bar.attrs["value"] for bar in fleet.all("progress")] == ["40"]
    assert [(bar.attrs["max"], bar.attrs["value"]) for bar in fleet.all("meter")] == [("24000", "16000")]
    assert f"/jobs/{job}" in [link.attrs["href"] for link in fleet.all("a")]
    assert "simulated" in fleet.text
    assert {form.attrs["action"] for form in fleet.all("form")} == {
        "/ui/workers/gpu-7/pause", "/ui/workers/gpu-7/drain", f"/ui/jobs/{job}/cancel",
    }  # fmt: skip


async def test_workers_are_paused_and_drained_by_plain_forms(broker: Broker) -> None:
    await broker.worker("gpu 7/ü").register()
    fleet = (await page(broker)).one(id="fleet")
    (pause,) = [form for form in fleet.all("form") if form.attrs["action"].endswith("/pause")]
    fields = {field.attrs["name"]: field.attrs["value"] for field in pause.all("input")}
    assert await post(broker, pause.attrs["action"], fields) == (303, "/", "")
    said = await page(broker)
    assert said.one(id="said").text == "gpu 7/ü takes no more jobs."
    assert said.one(id="fleet").all("span", class_="paused")
    assert (await page(broker)).one(id="said").text == "", "it is said once"
    htmx = await post(broker, pause.attrs["action"].replace("pause", "resume"), fields, **{"HX-Request": "true"})
    assert htmx == (200, "", '<span class="done">gpu 7/ü takes jobs again.</span>')
    missing = await post(broker, "/ui/workers/nobody/drain", fields, **{"HX-Request": "true"})
    assert missing[0] == 404
    assert 'class="problem"' in missing[2]


@pytest.mark.parametrize("place", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:1", ""])
async def test_a_form_leads_back_to_own_pages_only(broker: Broker, place: str) -> None:
    assert (await post(broker, "/ui/pause", {"next": place}))[:2] == (303, "/")


async def test_everything_is_paused_and_goes_on(broker: Broker) -> None:
    await post(broker, "/ui/pause")
    strip = (await page(broker)).one(id="strip")
    assert strip.all("span", class_="paused")
    assert [form.attrs["action"] for form in strip.all("form")] == ["/ui/resume"]
    await post(broker, "/ui/resume")
    assert not (await page(broker)).one(id="strip").all("span", class_="paused")


async def test_the_theme_is_kept_without_scripts(broker: Broker) -> None:
    await post(broker, "/ui/theme", {"theme": "dark", "next": "/"})
    assert (await page(broker)).one("html").attrs["data-theme"] == "dark"
    await post(broker, "/ui/theme", {"theme": EVIL, "next": "/"})
    assert (await page(broker)).one("html").attrs["data-theme"] == "auto"


async def test_read_only_mode_has_no_buttons_and_refuses_all_actions(start_broker: Start) -> None:
    broker = await start_broker(dashboard_read_only=True)
    await broker.worker("gpu-7").register()
    shown = await page(broker)
    assert [form.attrs["action"] for form in shown.all("form")] == ["/ui/theme"]
    assert "read-only" in shown.text
    app = broker.server.app
    posts = {r.resource.canonical for r in app.router.routes() if r.method == "POST" and r.resource}
    actions = [path for path in posts if not path.startswith("/api/")]
    assert len(actions) > 5
    for path in actions:
        if path in ("/login", "/logout", "/ui/theme"):
            continue
        status, _, text = await post(broker, re.sub(r"\{\w+\}", "x", path))
        assert (status, "read-only mode" in text) == (403, True), path


async def test_what_does_not_exist_is_a_page_for_people_and_json_for_machines(broker: Broker) -> None:
    shown = await page(broker, "/nowhere", 404, headers={"Accept": "text/html"})
    assert "There is nothing at this address." in shown.text
    status, body = await broker.json("GET", "/nowhere")
    assert (status, body["code"]) == (404, "not_found")


async def test_whatever_a_worker_or_job_says_is_text(broker: Broker) -> None:
    worker = broker.worker(EVIL)
    await worker.register()
    await broker.json("POST", "/api/jobs", json=submit(group=EVIL, max_attempts=1))
    held = await worker.claim()
    assert held is not None
    await worker.report(held, 3, node={"id": EVIL, "class_type": EVIL, "value": 1, "max": 2})
    for path in ("/", "/?layout=table"):
        seen = await page(broker, path)
        assert [e for e in seen.all("img") if e.attrs.get("src") == "x"] == []
        assert "{{7*7}}" in seen.text
        assert all(not name.startswith("on") for e in seen.inside for name in e.attrs)


def test_a_name_in_a_mapping_is_found_and_hides_no_method() -> None:
    text = "{{ told.name }} {% for name, value in told.items() %}{{ name }}={{ value }} {% endfor %}"
    assert environment().from_string(text).render(told={"name": "a", "items": "b"}) == "a name=a items=b "


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


@pytest.mark.parametrize(
    ("file", "digest"),
    [
        ("htmx.min.js", "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"),
        ("hx-sse.min.js", "18ef2761356ec1fe0bb6d92612315b37517a7c1e9856b661c5ae81fef239d103"),
    ],
)
def test_what_is_vendored_is_what_was_published(file: str, digest: str) -> None:
    """htmx.org 4.0.1 of the npm registry."""
    assert hashlib.sha256((ROOT / "static" / file).read_bytes()).hexdigest() == digest


def test_own_files_are_small() -> None:
    assert (ROOT / "static" / "htmx.LICENSE").exists()
    assert (ROOT / "static" / "emq.css").stat().st_size <= 20_000
    assert len((ROOT / "static" / "emq.js").read_text().splitlines()) <= 40


async def test_a_form_of_our_own_page_may_come_without_an_origin(broker: Broker) -> None:
    """Browsers post it with ``Origin: null``, because pages send no referrer; what another site sends says so."""
    own = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}
    assert (await post(broker, "/ui/pause", {}, **own))[0] == 303
    for site in ("cross-site", "same-site", "none"):
        assert (await post(broker, "/ui/pause", {}, **{**own, "Sec-Fetch-Site": site}))[0] == 403
    assert (await post(broker, "/ui/pause", Origin="null"))[0] == 403


@pytest.mark.parametrize(
    ("ago_ms", "words"), [(-3500, "in 3 s"), (-700, "0 s"), (0, "0 s"), (1500, "1 s"), (125_000, "2 min")]
)
def test_what_has_just_happened_is_not_told_as_a_future(
    ago_ms: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis' clock may be a little ahead of the broker's."""
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    assert f">{words}</time>" in age(1_800_000_000_000 - ago_ms)


def test_a_drawn_page_goes_at_once_when_nobody_has_it() -> None:
    part, view = Parts(), View("fleet", (), "", "default", Role.ADMIN, read_only=False, address="http://emq")
    frame = Frame(Page("fleet", "/", "Fleet", "fleet.html", fleet.read), [], view, "1.0", Strip())  # type: ignore[arg-type]
    seen = weakref.ref(part)
    gc.disable()
    try:
        environment().draw("fleet.html", {"frame": frame, "part": part, "workers": [], "hidden": 0, "layout": "grid"})
        assert part.bodies["fleet"]
        del part
        assert seen() is None  # its macros do not hold it: no ring that Python must look for
    finally:
        gc.enable()
