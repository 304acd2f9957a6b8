"""``waiting_for`` in a waiting job's record: true at the moment it is asked for."""

from __future__ import annotations

from typing import Any

from tests.api.conftest import NODES, Broker, submit


async def reasons(broker: Broker, job_id: str) -> list[tuple[str, str | None]]:
    status, record = await broker.json("GET", f"/api/jobs/{job_id}")
    assert status == 200
    return [(reason["code"], reason["detail"]) for reason in record["waiting_for"]]


async def accepted(broker: Broker, **fields: Any) -> dict[str, Any]:
    status, answer = await broker.json("POST", "/api/jobs", json=submit(**fields))
    assert status == 201, answer
    assert isinstance(answer, dict)
    return answer


async def test_the_reasons_follow_the_fleet(broker: Broker) -> None:
    job = (await accepted(broker, requirements={"models": ["flux.safetensors"]}))["job_id"]
    assert await reasons(broker, job) == [("no_worker", None)]
    await (bare := broker.worker("bare")).register()
    assert await reasons(broker, job) == [("no_worker_has_model", "flux.safetensors")]
    await (model := broker.worker("model", nodes=(), models=("flux.safetensors",))).register()
    assert [code for code, _ in await reasons(broker, job)] == ["no_single_worker"]
    await (able := broker.worker("able", models=("flux.safetensors",))).register()
    assert await reasons(broker, job) == []
    await able.bye()
    assert [code for code, _ in await reasons(broker, job)] == ["no_single_worker"]
    await model.bye()
    assert await reasons(broker, job) == [("no_worker_has_model", "flux.safetensors")]
    await bare.bye()
    assert await reasons(broker, job) == [("no_worker", None)]


async def test_a_submit_s_answer_knows_a_worker_that_came_or_left_a_moment_ago(broker: Broker) -> None:
    sure, maybe = submit(strict=True), submit(dry_run=True)
    assert (await broker.json("POST", "/api/jobs", json=sure))[0] == 400
    await (worker := broker.worker()).register()
    assert (await broker.json("POST", "/api/jobs", json=maybe))[1]["waiting_for"] == []
    assert (await broker.json("POST", "/api/jobs", json=sure))[0] == 201
    tagged = submit(requirements={"tags": ["eu"]})
    _, job = await broker.json("POST", "/api/jobs", json=tagged)
    assert [reason["code"] for reason in job["waiting_for"]] == ["no_worker_has_tag"]
    await worker.bye()
    assert (await broker.json("POST", "/api/jobs", json=sure))[0] == 400
    assert (await broker.json("POST", "/api/jobs", json=maybe))[1]["waiting_for"][0]["code"] == "no_worker"


async def test_so_do_those_of_jobs_that_are_not_due_or_wait_for_others(broker: Broker) -> None:
    parent = (await accepted(broker))["job_id"]
    for fields in ({"delay_s": 1000}, {"depends_on": [parent]}):
        job = (await accepted(broker, **fields))["job_id"]
        assert await reasons(broker, job) == [("no_worker", None)]
        await (worker := broker.worker()).register()
        assert await reasons(broker, job) == []
        await worker.bye()


async def test_a_job_that_was_handed_back_says_what_turned_out_to_be_missing(broker: Broker) -> None:
    await (worker := broker.worker()).register()
    job = (await accepted(broker))["job_id"]
    held = await worker.claim()
    assert held is not None
    await worker.fail(held, "validation_failed", hand_back=1, missing="m:vae/odd.safetensors")
    assert await reasons(broker, job) == [("no_worker_has_model", "vae/odd.safetensors")]
    await (other := broker.worker("other")).register()
    assert await reasons(broker, job) == [("no_worker_has_model", "vae/odd.safetensors")]
    await other.bye()


async def test_pauses_and_limits_are_reasons_too(broker: Broker) -> None:
    await (worker := broker.worker(nodes=NODES)).register()
    jobs = [(await accepted(broker))["job_id"] for _ in range(2)]
    await broker.json("POST", "/api/pause", json={"scope": "pool"})
    assert await reasons(broker, jobs[0]) == [("pool_paused", None)]
    await broker.json("POST", "/api/resume", json={"scope": "pool"})
    await broker.json("POST", "/api/pause", json={"scope": "tenant"})
    assert await reasons(broker, jobs[0]) == [("tenant_paused", None)]
    await broker.json("POST", "/api/resume", json={"scope": "tenant"})
    assert await reasons(broker, jobs[0]) == []
    await broker.queue.call("tenant", [("tenant", "default"), ("max_running", 1)])
    assert await worker.claim() is not None
    assert await reasons(broker, jobs[1]) == [("tenant_at_limit", None)]
