"""A job's input files and webhook deliveries on its page."""

from __future__ import annotations

import pytest
from blake3 import blake3

from broker.jobs import webhooks
from tests.api.conftest import Start, submit
from tests.dashboard.html import page, post
from tests.support.pages import page_stream
from tests.support.waiting import wait_until
from tests.support.webhooks import Receiver

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


async def test_inputs_are_shown_as_pictures(start_broker: Start) -> None:
    broker = await start_broker()
    digest = blake3(PNG).hexdigest()
    async with broker.http.put(f"{broker.url}/api/assets/{digest}?filename=cat.png", data=PNG) as answer:
        assert answer.status == 201
    inputs = {"1.image": {"asset": f"blake3:{digest}", "filename": "cat.png"}}
    made = submit(graph=GRAPH)
    made["payload"]["inputs"] = inputs
    status, accepted = await broker.json("POST", "/api/jobs", json=made)
    assert status == 201, accepted
    [figure] = (await page(broker, f"/jobs/{accepted['job_id']}")).one(id="job-inputs").all("figure")
    assert "1.image" in figure.text
    assert "cat.png" in figure.text
    async with broker.http.get(broker.url + figure.one("img").attrs["src"]) as answer:
        assert (answer.status, answer.content_type, await answer.read()) == (200, "image/png", PNG)


async def test_deliveries_are_listed_and_made_again(
    start_broker: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PAUSES_S", (600.0,))  # by itself it is not made again meanwhile
    broker = await start_broker(webhook_urls="any", reap_s=0.05)
    receiver.answers = [500]
    job = (await broker.json("POST", "/api/jobs", json=submit(webhook_url=receiver.url)))[1]["job_id"]
    assert not (await page(broker, f"/jobs/{job}")).one(id="job-webhooks").all("tr")
    await broker.queue.cancel(job)

    async def tried(times: int) -> bool:
        return len((await page(broker, f"/jobs/{job}")).one(id="job-webhooks").all("form")) == times

    await wait_until(lambda: tried(1), what="the first try is listed")
    section = (await page(broker, f"/jobs/{job}")).one(id="job-webhooks")
    assert "job.cancelled" in section.text or "cancelled" in section.text
    assert "answered 500" in section.text
    form = section.one("form")
    fields = {field.attrs["name"]: field.attrs["value"] for field in form.all("input")}
    assert await post(broker, form.attrs["action"], fields) == (303, f"/jobs/{job}", "")
    await wait_until(lambda: tried(2), what="the second try is listed")
    first, second = [row.text for row in (await page(broker, f"/jobs/{job}")).one(id="job-webhooks").all("tr")[1:]]
    assert "delivered 204" in first
    assert "not delivered" in second
    assert (await post(broker, form.attrs["action"], {"entry": "x"}))[0] == 404


async def test_an_open_job_hears_of_its_deliveries(start_broker: Start, receiver: Receiver) -> None:
    broker = await start_broker(webhook_urls="any", reap_s=0.05)
    job = (await broker.json("POST", "/api/jobs", json=submit(webhook_url=receiver.url)))[1]["job_id"]
    async with page_stream(broker, f"job&job_id={job}") as open_page:
        await open_page.until(lambda _, __, data: 'id="job-webhooks"' in data)
        await broker.queue.cancel(job)
        await open_page.until(lambda _, __, data: "/redeliver" in data)
