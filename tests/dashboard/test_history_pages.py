"""Workers, timeline, failures, gallery, models, metrics, admin and the rest, as HTML."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from broker.dashboard.gantt import LABEL
from broker.dashboard.timeline import COLOURS, coarse, coloured
from broker.jobs.failures import grouped, shape
from broker.protocol.base import now_ms
from tests.api.conftest import Broker, Start, submit
from tests.dashboard.html import EVIL, Page, page, post
from tests.support.outputs import put
from tests.support.servers import RedisServer
from tests.support.simulated import SimulatedWorker

ADDRESSES = [
    "/workers", "/timeline", "/failures", "/gallery", "/models", "/metrics-view", "/admin", "/help", "/style",
]  # fmt: skip


async def job_of(broker: Broker, worker: SimulatedWorker, **fields: Any) -> Any:
    """A job that the worker has started."""
    await broker.json("POST", "/api/jobs", json=submit(**fields))
    held = await worker.claim()
    assert held is not None
    await worker.report(held, 10)
    return held


@pytest.mark.parametrize("address", ADDRESSES)
async def test_every_page_is_good_html_with_nothing_to_show(broker: Broker, address: str) -> None:
    shown = await page(broker, address)
    assert shown.one("h1").text
    here = [link.attrs["href"] for link in shown.one("nav").all("a", aria_current="page")]
    assert here == ([] if address == "/style" else [address])


@pytest.mark.parametrize("query", ["?span=x", "?span=120&worker=nobody", "?until=x&kind=image", "?q=%00&status=idle"])
async def test_strange_queries_are_taken_for_none(broker: Broker, query: str) -> None:
    for address in ADDRESSES:
        await page(broker, address + query)


async def test_workers_are_found_and_one_is_shown(broker: Broker) -> None:
    one, other = broker.worker("gpu-1"), broker.worker("gpu-2")
    await one.register()
    await other.register()
    await other.call("gone")
    shown = (await page(broker, "/workers")).one(id="workers")
    assert {row.one("a", class_="name").text for row in shown.one("tbody").all("tr")} == {"gpu-1", "gpu-2"}
    assert [link.text for link in shown.one("p", class_="facets").all("a")] == ["all 2", "idle 1", "offline 1"]
    gone = (await page(broker, "/workers?status=offline")).one(id="workers")
    assert [row.one("a", class_="name").text for row in gone.one("tbody").all("tr")] == ["gpu-2"]
    assert "No worker is like that" in (await page(broker, "/workers?q=zzz")).text
    held = await job_of(broker, one)
    await one.fail(held, message="It broke.", retry="no")
    closely = await page(broker, "/workers/gpu-1")
    assert "It broke." in closely.one(id="ended").text
    assert closely.one("h1").text.endswith("gpu-1")
    async with broker.http.get(broker.url + "/workers/nobody") as response:
        assert response.status == 404


async def test_timeline_has_a_bar_for_each_execution(broker: Broker) -> None:
    worker = broker.worker("gpu-1")
    await worker.register()
    held = await job_of(broker, worker)
    await worker.finish(held)
    failed = await job_of(broker, worker)
    await worker.fail(failed, retry="no")
    running = await job_of(broker, worker)
    svg = (await page(broker, "/timeline?span=5")).one("svg", role="group")
    links = {link.attrs["href"] for link in svg.all("a")}
    assert links == {"/workers/gpu-1", *(f"/jobs/{one.job_id}" for one in (held, failed, running))}
    assert len(svg.all("rect", class_="failed")) == 1
    assert len((await page(broker, "/timeline?span=5")).one("ul", class_="legend").all("li")) == 1
    rows = (await page(broker, "/timeline?span=5")).one("details").one("tbody").all("tr")
    assert [cell.text for cell in rows[0].all("td")][1:3] == ["3", "1"]


def test_before_the_single_executions_stands_how_busy_each_minute_was() -> None:
    minute = 60_000
    samples = [{"t": n * minute, "gpus": {"a": load}} for n, load in ((1, 100), (2, 90), (3, 0), (4, 30), (5, 10))]
    scale = 10 / minute
    cells = coarse("a", samples, 0, 4 * minute + minute // 2, scale)
    assert cells == [(LABEL, 20.0, 4), (LABEL + 30, 10.0, 2), (LABEL + 40, 5.0, 1)]
    assert coarse("b", samples, 0, minute, scale) == []


def test_kinds_keep_their_colours_and_share_none_while_there_are_enough() -> None:
    few = coloured([f"model{n}" for n in range(COLOURS)])
    assert sorted(few.values()) == list(range(COLOURS))
    assert coloured(["model3"])["model3"] == coloured(["model3", "zebra"])["model3"]
    assert set(coloured([f"model{n}" for n in range(30)]).values()) == set(range(COLOURS))


async def test_failures_of_one_kind_are_one_group_and_run_again(broker: Broker) -> None:
    worker = broker.worker("gpu-1")
    await worker.register()
    jobs = [await job_of(broker, worker) for _ in range(1)]
    await worker.fail(jobs[0], message="No file /data/models/a1.safetensors after 17 tries.", retry="no")
    jobs.append(await job_of(broker, worker))
    await worker.fail(jobs[1], message="No file /data/models/b2.safetensors after 9 tries.", retry="no")
    jobs.append(await job_of(broker, worker))
    await worker.fail(jobs[2], "out_of_memory", "Allocation failed.", retry="no")
    shown = (await page(broker, "/failures")).one(id="failures")
    groups = shown.all("article")
    assert [len(group.all("a", class_="id")) for group in groups] == [2, 1]
    retry, elsewhere = groups[0].all("form")
    assert elsewhere.one("input", name="elsewhere").attrs["value"] == "1"
    link = groups[0].one("a", class_="button").attrs["href"]
    [alone] = (await page(broker, link)).one(id="failures").all("article")
    assert {each.attrs["href"] for each in alone.all("a", class_="id")} == {f"/jobs/{job.job_id}" for job in jobs[:2]}
    assert len((await page(broker, "/failures?worker=gpu-1")).one(id="failures").all("article")) == 2
    assert "Nothing has failed" in (await page(broker, "/failures?worker=gpu-2")).text
    fields = {field.attrs["name"]: field.attrs["value"] for field in retry.all("input")}
    assert await post(broker, retry.attrs["action"], fields) == (303, "/failures", "")
    assert (await page(broker, "/failures")).one(id="said").text == "2 of 2 jobs run again."
    assert len((await page(broker, "/failures")).one(id="failures").all("article")) == 1
    assert "already" in (await post(broker, "/ui/failures/nothing/retry", fields, **{"HX-Request": "true"}))[2]


def test_what_differs_between_times_is_taken_out() -> None:
    assert shape("at 0x7f3a in C:\\a b\\c.py line 12") == shape("at 0x11 in C:\\z\\y.py line 9")
    assert shape("job 4f9d2c41a0b3 failed") == shape("job 77aa2c41a0b3 failed")
    assert shape("tensor 3") != shape("model 3")
    assert grouped([]) == []
    now = now_ms()
    job = {"job_id": "a", "error": None, "error_code": None, "worker_id": None, "finished_at": now}
    [group] = grouped([job, {**job, "job_id": "b", "finished_at": now - 5}])
    assert (group.jobs, group.first, group.last, group.code) == (["a", "b"], now - 5, now, "node_error")


async def test_gallery_shows_what_was_made(broker: Broker) -> None:
    worker = broker.worker("gpu-1")
    await worker.register()
    held = await job_of(broker, worker)
    _, stored = await put(broker, held)
    picture = {"node_id": "2", "kind": "image", "filename": "cat.png", **stored}
    words = {"node_id": "3", "kind": "text", "filename": "a.txt", "text": "some words"}
    await worker.finish(held, {"outputs": [picture, words], "timings": {}})
    tiles = (await page(broker, "/gallery")).one(id="gallery").all("li")
    assert len(tiles) == 2
    async with broker.http.get(broker.url + tiles[0].one("img").attrs["src"].replace(broker.url, "")) as response:
        assert response.status == 200
    assert tiles[1].one("pre").text == "some words"
    assert len((await page(broker, "/gallery?kind=text")).one(id="gallery").all("li")) == 1
    assert not (await page(broker, "/gallery?until=5")).one(id="gallery").all("li")


async def test_models_of_the_fleet(broker: Broker) -> None:
    worker = broker.worker("gpu-1", models=("sd15.safetensors", "flux.safetensors"))
    worker.loaded = ("sd15.safetensors",)
    await worker.register()
    await worker.heartbeat()
    rows = (await page(broker, "/models")).one(id="models").one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == ["sd15.safetensors", "flux.safetensors"]
    assert rows[0].one("a", class_="name").text == "gpu-1"
    await broker.worker("gpu-2", models=("sd15.safetensors",)).register()
    assert len((await page(broker, "/models?q=FLUX")).one(id="models").one("tbody").all("tr")) == 1


async def test_models_tell_who_has_them_who_waits_and_what_a_load_costs(broker: Broker) -> None:
    worker, other = broker.worker("gpu-1", models=("a.safetensors", "b.safetensors")), broker.worker("gpu-2")
    await worker.register()
    await other.register()
    needs = {"requirements": {"models": ["a.safetensors"]}}
    for cold, exec_ms in ((1, 9000), (0, 2000)):
        held = await job_of(broker, worker, **needs)
        result = json.dumps({"outputs": [], "timings": {}})
        await worker.call("finish", job=held.job_id, token=held.token, result=result, exec_ms=exec_ms, cold=cold)
    await broker.json("POST", "/api/jobs", json=submit(**needs))
    first, second = (await page(broker, "/models")).one(id="models").one("tbody").all("tr")
    cells = [cell.text for cell in first.all("td")]
    assert (first.one("th").text, cells[1], cells[3], cells[7]) == ("a.safetensors", "1 of 2", "1", "7.0 s")
    assert [cell.text for cell in second.all("td")][3:] == ["", "", "", "", ""]
    link = first.all("td")[1].one("a").attrs["href"]
    assert [name.text for name in (await page(broker, link)).one(id="workers").all("a", class_="name")] == ["gpu-1"]


async def test_admin_makes_keys_people_and_limits(start_broker: Start, own_valkey: RedisServer) -> None:
    broker = await start_broker(redis_url=own_valkey.url)
    assert "No key is configured" in (await page(broker, "/admin")).text
    assert await post(broker, "/ui/tenants/shop/limits", {"max_queued": "5", "submits_per_s": "2.5"}) == (303, "/", "")
    status, _, text = await post(broker, "/ui/tenants/shop/limits", {"max_queued": "-1"}, **{"HX-Request": "true"})
    assert (status, "a number from 0" in text) == (400, True)
    shown = (await page(broker, "/admin")).one("form", action="/ui/tenants/shop/limits")
    assert shown.one("input", name="max_queued").attrs["value"] == "5"
    status, _, text = await post(broker, "/ui/keys", {"tenant": "shop", "scopes": "admin", "name": "mine", "days": "2"})
    key = Page(text).root.one("pre", id="key").text
    assert (status, key.startswith("emq_")) == (200, True)
    broker.http.headers["Authorization"] = f"Bearer {key}"
    listed = (await page(broker, "/admin")).one(id="keys")
    assert "mine" in listed.text
    assert key.split("_", 2)[2] not in listed.text
    person = {"name": "ann", "tenant": "shop", "role": "operator", "password": "a long password"}
    assert (await post(broker, "/ui/users", person))[0] == 303
    assert "ann" in (await page(broker, "/admin")).one(id="users").text
    assert (await post(broker, "/ui/users/ann/remove"))[0] == 303
    assert "ann" not in (await page(broker, "/admin")).one(id="users").text
    assert "max_queued" not in (await page(broker, "/admin")).one(id="audit").text
    del broker.http.headers["Authorization"]
    async with broker.http.get(broker.url + "/admin") as response:
        assert response.status == 401 or "Log in" in await response.text()


async def test_hostile_names_are_text_on_every_page(broker: Broker) -> None:
    worker = broker.worker(EVIL[:60])
    await worker.register()
    held = await job_of(broker, worker, metadata={"x": EVIL})
    await worker.fail(held, "node_error", EVIL, retry="no")
    for address in [*ADDRESSES, f"/workers/{quote(worker.worker_id, safe='')}"]:
        async with broker.http.get(URL(broker.url + address, encoded=True)) as response:
            text = await response.text()
            assert response.status == 200, address
            assert "<img src=x" not in text, address
            assert "49" not in text.partition("{{7*7}}")[2][:3]
