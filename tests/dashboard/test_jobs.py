"""Queue, jobs and a job's own page as HTML, and everything that is done to jobs."""

from __future__ import annotations

import re
from typing import Any

import aiohttp
import pytest

from tests.access.conftest import Guarded, bearer, guarded, own_valkey
from tests.api.conftest import Broker, submit
from tests.dashboard.conftest import start_broker
from tests.dashboard.html import Element, page, post
from tests.support.pages import evil_jobs

__all__ = ["guarded", "own_valkey", "start_broker"]


async def new(broker: Broker, **fields: Any) -> str:
    answer = (await broker.json("POST", "/api/jobs", json=submit(**fields)))[1]
    assert "job_id" in answer, answer
    return str(answer["job_id"])


async def status(broker: Broker, job: str) -> str:
    return str((await broker.json("GET", f"/api/jobs/{job}"))[1]["status"])


def rows(shown: Element) -> list[Element]:
    return shown.one("tbody", id="rows").all("tr")


def ids(shown: Element) -> list[str]:
    return [row.one("th").one("a").attrs["href"].rpartition("/")[2] for row in rows(shown)]


def actions(shown: Element) -> set[str]:
    return {form.attrs["action"].rpartition("/")[2] for form in shown.all("form", class_="act")}


async def test_the_queue_is_shown_in_claim_order(broker: Broker) -> None:
    await broker.worker("gpu-7").register()
    low, high = await new(broker, priority=0), await new(broker, priority=5)
    shown = await page(broker, "/queue")
    assert ids(shown) == [high, low]
    assert [row.all("td")[1].text for row in rows(shown)] == ["1", "2"]
    assert ids(await page(broker, "/queue?priority=0")) == [low]
    await post(broker, f"/ui/jobs/{low}/priority", {"by": "7"})
    assert ids(await page(broker, "/queue")) == [low, high]
    assert (await broker.json("GET", f"/api/jobs/{low}"))[1]["priority"] == 7
    await post(broker, f"/ui/jobs/{high}/priority", {"priority": "100"})
    await post(broker, f"/ui/jobs/{high}/priority", {"by": "1"})
    assert (await broker.json("GET", f"/api/jobs/{high}"))[1]["priority"] == 100
    assert (await post(broker, f"/ui/jobs/{low}/priority", {"by": "x"}))[0] == 400


async def test_a_long_queue_has_pages(broker: Broker) -> None:
    await broker.worker("gpu-7").register()
    await broker.json("POST", "/api/jobs", json={"type": "submit_jobs", "jobs": [submit() for _ in range(60)]})
    first = await page(broker, "/queue")
    (more,) = [link for link in first.all("a") if link.text == "Further back"]
    second = await page(broker, more.attrs["href"])
    assert len(ids(first)) == 50
    assert len(set(ids(first) + ids(second))) == 60
    assert rows(second)[0].all("td")[1].text == "51"


async def test_what_cannot_run_anywhere_says_why(broker: Broker) -> None:
    await broker.worker("gpu-7").register()
    for _ in range(3):
        await new(broker, requirements={"models": ["flux-dev.safetensors"]})
    shown = await page(broker, "/queue")
    assert "Nothing waits." in shown.one(id="waiting").text
    stuck = shown.one(id="stuck")
    assert "3 jobs, not counted as backlog" in stuck.text
    assert "No live worker has the model file flux-dev.safetensors." in stuck.text


async def test_jobs_are_found_and_paged(broker: Broker) -> None:
    worker = broker.worker("gpu-7")
    await worker.register()
    for number in range(53):
        await new(broker, metadata={"order": number % 2})
    held = await worker.claim()
    assert held is not None
    await worker.fail(held, "out_of_memory", "No memory.", retry="no")
    first = await page(broker, "/jobs")
    (older,) = [link for link in first.all("a") if link.text == "Older"]
    assert len(set(ids(first) + ids(await page(broker, older.attrs["href"])))) == 53
    for query in ("status:failed", "error:out_of_memory", "worker:gpu-*", held.job_id):
        assert ids(await page(broker, f"/jobs?q={query}")) == [held.job_id], query
    assert len(ids(await page(broker, "/jobs?q=order:1"))) == 26
    assert "No job matches." in (await page(broker, "/jobs?q=order:7")).text
    assert "means nothing here" in (await page(broker, "/jobs?q=status:odd")).text
    facets = first.one(id="facets")
    assert "out_of_memory 1" in facets.text
    assert re.search(r"pending\s*52", facets.text)


async def test_ticked_jobs_are_acted_on_together(broker: Broker) -> None:
    jobs = [await new(broker) for _ in range(3)]
    async with broker.http.post(
        f"{broker.url}/ui/jobs/selected",
        data=aiohttp.FormData(
            [("do", "cancel"), ("next", "/jobs"), ("job_id", jobs[0]), ("job_id", jobs[1]), ("job_id", "gone")]
        ),
    ) as answer:
        text = await answer.text()
    assert "Cancel: 2 of 3 jobs; 1 gone." in text
    assert [await status(broker, job) for job in jobs] == ["cancelled", "cancelled", "pending"]
    assert (await post(broker, "/ui/jobs/selected", {"do": "cancel"}))[0] == 400
    assert (await post(broker, "/ui/jobs/selected", {"do": "explode", "job_id": jobs[2]}))[0] == 400


async def test_all_of_a_search_is_counted_first_and_then_acted_on(broker: Broker) -> None:
    jobs = [await new(broker, metadata={"shop": "eu" if number < 3 else "us"}) for number in range(5)]
    shown = await page(broker, "/jobs/bulk?q=shop:eu&do=cancel")
    assert "finds 3 jobs" in shown.text
    form = shown.one("form", action="/ui/jobs/search")
    fields = {field.attrs["name"]: field.attrs["value"] for field in form.all("input")}
    late = await new(broker, metadata={"shop": "eu"})
    assert int(fields["until"]) < (await broker.json("GET", f"/api/jobs/{late}"))[1]["created_at"] + 1000
    assert (await post(broker, "/ui/jobs/search", fields))[:2] == (303, "/jobs?q=shop%3Aeu")
    assert "Cancel: " in (await page(broker, "/jobs")).one(id="said").text
    assert [await status(broker, job) for job in jobs] == ["cancelled"] * 3 + ["pending"] * 2
    for broken in ({}, {"until": "x", "q": "shop:us", "do": "cancel"}, {**fields, "q": "status:odd"}):
        assert (await post(broker, "/ui/jobs/search", broken))[0] == 400


async def test_a_job_is_shown_from_its_submit_to_its_end(broker: Broker) -> None:
    worker = broker.worker("gpu-7")
    await worker.register()
    job = await new(broker, metadata={"order": 17}, max_attempts=2)
    waiting = await page(broker, f"/jobs/{job}")
    assert actions(waiting) == {"pause", "front", "priority", "cancel", "duplicate"}
    assert {"EmptyImage", "SaveImage"} <= {cell.text for cell in waiting.one(id="job-nodes").all("td")}
    assert waiting.one(id="curl").text.startswith(f"curl -X POST {broker.url}/api/jobs")
    held = await worker.claim()
    assert held is not None
    await worker.report(
        held, 40, node={"id": "1", "class_type": "EmptyImage", "value": 3, "max": 4}, nodes_done=0, nodes_total=2
    )
    running = await page(broker, f"/jobs/{job}")
    assert "3/4" in running.one(id="job-nodes").text
    assert "40 %" in running.one(id="job-now").text
    assert running.all("img", class_="large")
    await worker.fail(held, "node_error", "Bad colour.")
    await broker.queue.set_priority(job, front=True)
    failed = await page(broker, f"/jobs/{job}")
    assert "retried" in failed.one(id="job-attempts").text
    await broker.queue.cancel(job)
    await post(broker, f"/ui/jobs/{job}/retry")
    held = await worker.claim(job)
    assert held is not None
    await worker.report(held, 1)
    output = {
        "node_id": "2",
        "kind": "image",
        "filename": "x.png",
        "content_type": "image/png",
        "size": 5,
        "key": "k",
        "name": "1-0.png",
    }
    await worker.finish(held, {"outputs": [output], "timings": {}})
    ended = await page(broker, f"/jobs/{job}")
    assert actions(ended) == {"pause", "retry", "elsewhere", "duplicate"}
    assert [image.attrs["alt"] for image in ended.one(id="job-outputs").all("img")] == ["x.png"]
    assert [step.one("span", class_="word").text for step in ended.one(id="job-now").all("li")] == [
        "waited",
        "started",
        "executed",
    ]


async def test_a_job_is_duplicated_and_retried(broker: Broker) -> None:
    job = await new(broker, metadata={"order": 17}, priority=4)
    code, place, _ = await post(broker, f"/ui/jobs/{job}/duplicate")
    assert code == 303
    copy = (await broker.json("GET", f"/api{place}"))[1]
    assert copy["job_id"] != job
    assert (copy["metadata"], copy["priority"]) == ({"order": 17}, 4)
    assert (await post(broker, f"/ui/jobs/{job}/retry"))[0] == 409
    await post(broker, f"/ui/jobs/{job}/cancel")
    assert await status(broker, job) == "cancelled"
    await post(broker, f"/ui/jobs/{job}/elsewhere")
    assert await status(broker, job) == "pending"


async def test_a_job_that_is_not_there_is_said(broker: Broker) -> None:
    assert "There is no job nothing" in (await page(broker, "/jobs/nothing", 404)).text


async def test_whoever_may_only_look_has_no_buttons_and_another_tenants_jobs_do_not_exist(guarded: Guarded) -> None:
    broker = guarded.broker
    owner, viewer, other, admin = [
        await guarded.key(*scopes, tenant=tenant)
        for scopes, tenant in (
            (("submit", "read"), "own"),
            (("read",), "own"),
            (("submit", "read"), "foreign"),
            (("admin",), "x"),
        )
    ]
    job = (await guarded.ask(owner, "POST", "/api/jobs", json=submit()))[1]["job_id"]
    for path in ("/queue", "/jobs", f"/jobs/{job}"):
        seen = await page(broker, path, headers=bearer(viewer))
        assert [form.attrs["action"] for form in seen.all("form") if form.attrs["method"] == "post"] == ["/ui/theme"]
        assert job in str(seen)
    for path in ("/queue", "/jobs", "/jobs?q=tenant:own"):
        assert job not in str(await page(broker, path, headers=bearer(other)))
    await page(broker, f"/jobs/{job}", 404, headers=bearer(other))
    assert actions(await page(broker, f"/jobs/{job}", headers=bearer(admin))) >= {"cancel", "duplicate"}
    for verb in ("cancel", "front", "retry", "elsewhere", "priority", "duplicate"):
        assert (await post(broker, f"/ui/jobs/{job}/{verb}", {"by": "1"}, **bearer(viewer)))[0] == 403
        assert (await post(broker, f"/ui/jobs/{job}/{verb}", {"by": "1"}, **bearer(other)))[0] == 404
    assert (await post(broker, f"/ui/jobs/{job}/duplicate", {}, **bearer(admin)))[0] == 303
    tenants = [each["tenant"] for each in (await guarded.ask(owner, "GET", "/api/jobs"))[1]["jobs"]]
    assert tenants == ["own", "own"], "a copy is its owner's"


@pytest.mark.parametrize(
    "told", [{"outputs": "x"}, {"outputs": [1, {}, {"url": 3}]}, {"outputs": [{"url": "u"}], "timings": 3}]
)
async def test_a_result_of_any_form_is_shown(broker: Broker, told: dict[str, Any]) -> None:
    worker = broker.worker("gpu-7")
    await worker.register()
    job = await new(broker)
    held = await worker.claim()
    assert held is not None
    await worker.report(held, 1, node={"id": [], "max": "x", "value": {}}, nodes_done="many", eta_s=[])
    await page(broker, f"/jobs/{job}")
    await page(broker)
    await worker.finish(held, told)
    await page(broker, f"/jobs/{job}")


async def test_whatever_a_job_says_is_text_everywhere(broker: Broker) -> None:
    jobs = await evil_jobs(broker)
    paths = ["/", "/?layout=table", "/queue", "/jobs", "/jobs?q=status:failed", *(f"/jobs/{job}" for job in jobs)]
    for path in [*paths, "/jobs?q=%22%3E%3Cimg%20src=x%3E:1", "/jobs/bulk?do=cancel&q=%3Cimg%20src=x%3E"]:
        seen = await page(broker, path)
        assert [e for e in seen.all("img") if e.attrs.get("src") == "x"] == [], path
        assert all(not name.startswith("on") for e in seen.inside for name in e.attrs), path
