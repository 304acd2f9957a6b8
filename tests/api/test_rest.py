"""The same operations over HTTP."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from broker.api import openapi
from broker.api.edge import CSP
from broker.protocol.messages import JobAccepted
from tests.api.conftest import Broker, Start, submit
from tests.support.waiting import wait_until


async def new_job(broker: Broker, **fields: Any) -> str:
    status, body = await broker.json("POST", "/api/jobs", json=submit(**fields))
    assert status == 201, body
    job: str = body["job_id"]
    return job


async def test_submit_answers_201_and_200_for_a_duplicate(broker: Broker) -> None:
    body = submit(idempotency_key="k1", message_id="m1")
    async with broker.http.post(f"{broker.url}/api/jobs", json=body) as response:
        first = await response.json()
        assert response.status == 201
        assert response.headers["Location"] == f"/api/jobs/{first['job_id']}"
    JobAccepted.model_validate(first, strict=False)
    assert (first["type"], first["message_id"]) == ("job_accepted", "m1")
    status, again = await broker.json("POST", "/api/jobs", json=submit(idempotency_key="k1"))
    assert (status, again["duplicate"], again["job_id"]) == (200, True, first["job_id"])
    status, other = await broker.json("POST", "/api/jobs", json=submit(idempotency_key="k1", max_attempts=1))
    assert (status, other["code"]) == (409, "conflict")


async def test_the_idempotency_key_may_be_a_header(broker: Broker) -> None:
    for expected in (201, 200):
        status, _ = await broker.json("POST", "/api/jobs", json=submit(), headers={"Idempotency-Key": "k2"})
        assert status == expected


async def test_a_body_without_type_is_a_submit(broker: Broker) -> None:
    body = {"payload": submit()["payload"]}
    assert (await broker.json("POST", "/api/jobs", json=body))[0] == 201
    assert (await broker.json("POST", "/api/jobs", json={**body, "dry_run": True}))[0] == 200


async def test_many_jobs_in_one_request(broker: Broker) -> None:
    status, body = await broker.json("POST", "/api/jobs", json={"jobs": [submit(), {"payload": {}}], "group": "g"})
    assert status == 200
    assert [one["type"] for one in body["results"]] == ["job_accepted", "error"]
    status, group = await broker.json("GET", "/api/groups/g")
    assert (status, group["total"]) == (200, 1)
    status, ack = await broker.json("POST", "/api/groups/g/cancel")
    assert (status, ack["cancelled"]) == (200, 1)


async def test_list_show_cancel_retry_priority(broker: Broker) -> None:
    jobs = [await new_job(broker) for _ in range(3)]
    status, page = await broker.json("GET", "/api/jobs", params={"limit": "2", "status": "pending,claimed"})
    assert [job["job_id"] for job in page["jobs"]] == jobs[:0:-1]
    status, rest = await broker.json("GET", "/api/jobs", params={"cursor": page["next_cursor"]})
    assert ([job["job_id"] for job in rest["jobs"]], rest["next_cursor"]) == (jobs[:1], None)
    status, ack = await broker.json("POST", f"/api/jobs/{jobs[2]}/priority", json={"front": True})
    assert (status, ack["type"]) == (200, "ack")
    assert (await broker.json("GET", f"/api/jobs/{jobs[2]}"))[1]["position"] == 1
    status, ack = await broker.json("POST", f"/api/jobs/{jobs[0]}/cancel", json={"reason": "no"})
    assert (status, ack["status"]) == (200, "cancelled")
    status, record = await broker.json("GET", f"/api/jobs/{jobs[0]}")
    assert (record["status"], record["reason"]) == ("cancelled", "no")
    status, _ = await broker.json("POST", f"/api/jobs/{jobs[0]}/cancel")
    assert status in (200, 409)
    status, ack = await broker.json("POST", f"/api/jobs/{jobs[0]}/retry")
    assert (status, ack["round"]) == (200, 2)
    status, refused = await broker.json("POST", f"/api/jobs/{jobs[1]}/retry")
    assert (status, refused["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/jobs/nope", 404, "not_found"),
        ("POST", "/api/jobs/nope/cancel", 404, "not_found"),
        ("POST", "/api/jobs/nope/retry", 404, "not_found"),
        ("GET", "/api/jobs/nope/events", 404, "not_found"),
        ("GET", "/api/groups/nope", 404, "not_found"),
        ("GET", "/api/workers/nope", 404, "not_found"),
        ("POST", "/api/workers/nope/pause", 404, "not_found"),
        ("POST", "/api/workers/nope/drain", 404, "not_found"),
        ("GET", "/api/jobs?limit=0", 400, "bad_message"),
        ("GET", "/api/jobs?limit=many", 400, "bad_message"),
        ("GET", "/api/jobs?limit=-1", 400, "bad_message"),
        ("GET", "/api/jobs?status=asleep", 400, "bad_message"),
        ("GET", "/api/jobs?cursor=x", 400, "bad_message"),
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/api/jobs", 405, "bad_message"),
        ("POST", "/health", 405, "bad_message"),
        ("POST", "/api/jobs", 400, "bad_json"),
    ],
)
async def test_errors_have_one_form(broker: Broker, method: str, path: str, status: int, code: str) -> None:
    found, body = await broker.json(method, path)
    assert (found, body["type"], body["code"]) == (status, "error", code)
    assert body["error"]


async def test_workers(broker: Broker) -> None:
    worker = broker.worker("gpu-1", tags=["eu"])
    await worker.register()
    status, body = await broker.json("GET", "/api/workers")
    assert status == 200
    [one] = body["workers"]
    assert (one["worker_id"], one["status"], one["paused"], one["draining"]) == ("gpu-1", "idle", False, False)
    for action, field in (("pause", "paused"), ("drain", "draining")):
        assert (await broker.json("POST", f"/api/workers/gpu-1/{action}"))[0] == 200
        assert (await broker.json("GET", "/api/workers/gpu-1"))[1][field] is True
    assert (await broker.json("POST", "/api/workers/gpu-1/resume"))[0] == 200
    one = (await broker.json("GET", "/api/workers/gpu-1"))[1]
    assert (one["paused"], one["draining"]) == (False, False)
    await new_job(broker)
    held = await worker.claim()
    assert held is not None
    one = (await broker.json("GET", "/api/workers/gpu-1"))[1]
    assert [job["job_id"] for job in one["jobs"]] == [held.job_id]
    await worker.bye()
    assert (await broker.json("GET", "/api/workers/gpu-1"))[1]["status"] == "offline"


async def test_pause_and_resume_the_pool(broker: Broker) -> None:
    assert (await broker.json("POST", "/api/pause", json={"scope": "pool"}))[0] == 200
    assert (await broker.json("GET", "/stats"))[1]["paused"] is True
    assert (await broker.json("POST", "/api/resume"))[0] == 200
    assert (await broker.json("GET", "/stats"))[1]["paused"] is False


async def test_health(broker: Broker) -> None:
    status, body = await broker.json("GET", "/health")
    assert (status, body["status"], body["redis"]) == (200, "ok", "ok")
    assert {"version", "uptime_s"} <= set(body)
    assert (await broker.json("GET", "/health/live"))[0] == 200


@pytest.mark.parametrize("path", ["/", "/health", "/nowhere", "/api/jobs", "/static/emq.css", "/openapi.json"])
async def test_every_response_has_the_security_headers(broker: Broker, path: str) -> None:
    async with broker.http.get(broker.url + path) as response:
        assert response.headers["Content-Security-Policy"] == CSP
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_compressed_bodies_are_refused(broker: Broker) -> None:
    headers = {"Content-Encoding": "gzip"}
    status, body = await broker.json("POST", "/api/jobs", data=b"\x1f\x8b", headers=headers)
    assert (status, body["code"]) == (400, "bad_message")


async def test_get_changes_nothing(broker: Broker) -> None:
    job = await new_job(broker)
    before = (await broker.json("GET", f"/api/jobs/{job}"))[1]
    for path in ("/", "/stats", "/api/jobs", f"/api/jobs/{job}", "/api/workers", "/openapi.json", "/health"):
        async with broker.http.get(broker.url + path) as response:
            assert response.status == 200
    assert (await broker.json("GET", f"/api/jobs/{job}"))[1] == before


async def test_openapi_names_every_route_and_its_schemas_fit(broker: Broker) -> None:
    status, document = await broker.json("GET", "/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in broker.server.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    own = {(m, p) for m, p in routes if p == "/metrics" or p.startswith(("/api/", "/stats", "/health"))}
    told = {(method, path) for path, methods in document["paths"].items() for method in methods}
    uploads = {(m, p) for m, p in own if p.startswith("/api/jobs/{job_id}/outputs/{attempt}")}
    assert own - uploads == told, "every route but that of lease holders"
    text = json.dumps(document)
    for part in text.split('"$ref": "')[1:]:
        name = part.split('"')[0].rsplit("/", 1)[1]
        assert name in document["components"]["schemas"], name
    accepted = (await broker.json("POST", "/api/jobs", json=submit()))[1]
    schema = {"$ref": "#/components/schemas/JobAccepted", "components": document["components"]}
    jsonschema.validate(accepted, schema)
    assert openapi.document("x")["info"]["version"] == "x"


async def test_redis_away_is_told_and_nothing_is_accepted(start_broker: Start, own_valkey: Any) -> None:
    broker = await start_broker(redis_url=own_valkey.url)
    async with broker.client() as client:
        assert (await client.ask(submit()))["type"] == "job_accepted"
        own_valkey.kill()
        answer = await client.ask(submit())
        assert (answer["type"], answer["code"]) == ("error", "unavailable")
        status, body = await broker.json("GET", "/health")
        assert (status, body["status"], body["redis"]) == (503, "unavailable", "unavailable")
        assert (await broker.json("GET", "/health/live"))[0] == 200
        async with broker.http.post(f"{broker.url}/api/jobs", json=submit()) as response:
            assert (response.status, (await response.json())["code"]) == (503, "unavailable")
            assert int(response.headers["Retry-After"]) >= 1
        async with broker.http.get(broker.url) as page:
            assert (page.status, page.content_type) == (503, "text/html")
        own_valkey.start()

        async def served() -> bool:
            return bool((await client.ask(submit(idempotency_key="again")))["type"] == "job_accepted")

        # While Redis counts as away, it has a second to answer.
        await wait_until(served, what="the same socket serves again")
        status, page = await broker.json("GET", "/api/jobs")
        assert len(page["jobs"]) == 2
