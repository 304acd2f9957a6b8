"""Dead letters over HTTP, the socket and the command line."""

from __future__ import annotations

import json

from tests.api.conftest import Broker, submit
from tests.support.commands import emq_at


async def bury(broker: Broker) -> str:
    """A job that three workers did not survive."""
    status, answer = await broker.json("POST", "/api/jobs", json=submit())
    assert status == 201
    for name in ("w1", "w2", "w3"):
        worker = broker.worker(name)
        await worker.register()
        held = await worker.claim(answer["job_id"])
        assert held is not None
        await worker.report(held, 10, node={"id": "1", "class_type": "EmptyImage"})
        await broker.queue.call("gone", [("instance", worker.instance)])
    return str(answer["job_id"])


async def test_dead_letters_are_listed_with_evidence_and_replayed(broker: Broker) -> None:
    first, second, third = [await bury(broker) for _ in range(3)]
    status, page = await broker.json("GET", "/api/dead")
    assert status == 200
    assert [job["job_id"] for job in page["jobs"]] == [third, second, first]
    evidence = page["jobs"][0]["crash_log"]
    assert [(crash["worker_id"], crash["node"]["class_type"]) for crash in evidence] == [
        ("w1", "EmptyImage"), ("w2", "EmptyImage"), ("w3", "EmptyImage"),
    ]  # fmt: skip
    assert page["jobs"][0]["dead_letter"] is True
    _, page = await broker.json("GET", "/api/dead", params={"worker": "w1"})
    assert page["jobs"] == []  # a job is found by its last worker
    status, ack = await broker.json("POST", "/api/dead/retry", json={"job_ids": [second, "unknown"]})
    assert (status, ack["retried"]) == (200, 1)
    _, record = await broker.json("GET", f"/api/jobs/{second}")
    assert (record["status"], record["round"], record["crash_log"]) == ("pending", 2, [])
    async with broker.client() as client:
        ack = await client.ask({"type": "retry_dead"})
        assert (ack["type"], ack["retried"]) == ("ack", 2)
    _, page = await broker.json("GET", "/api/dead")
    assert page["jobs"] == []


async def test_the_command_line_shows_and_replays_them(broker: Broker) -> None:
    job = await bury(broker)
    code, out = await emq_at(broker, "jobs", "dead")
    assert code == 0, out
    assert job in out
    assert "w1 at 1 EmptyImage, w2 at 1 EmptyImage, w3 at 1 EmptyImage" in out
    code, out = await emq_at(broker, "jobs", "dead", "--retry", "--json")
    assert (code, json.loads(out)["retried"]) == (0, 1)
    code, out = await emq_at(broker, "jobs", "dead")
    assert (code, out.strip()) == (0, "no dead letters")
