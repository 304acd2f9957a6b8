"""Values that no worker takes, as a submit, a rehearsal and a record tell them."""

from __future__ import annotations

import json
from typing import Any

from broker.jobs.ranges import pack
from tests.api.conftest import GRAPH, NODES, Broker, submit
from tests.support.jobs import profile
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import wait_until

DOCUMENT: dict[str, Any] = {
    "lists": [["euler", "heun"]],
    "classes": {
        "EmptyImage": {"r": ["width", "height"], "n": {"width": ["INT", 1, 4096], "height": ["INT", 1, 4096]}},
        "SaveImage": {"r": ["images"], "o": 1},
    },
}


def graph(**inputs: Any) -> dict[str, Any]:
    """The small graph with other inputs of its first node."""
    return {**GRAPH, "1": {**GRAPH["1"], "inputs": {**GRAPH["1"]["inputs"], **inputs}}}


async def telling(broker: Broker, name: str = "sim-1", document: dict[str, Any] = DOCUMENT) -> SimulatedWorker:
    """A worker that says what values it takes."""
    digest, data = pack(document)
    said = json.loads(profile(nodes=NODES))
    worker = SimulatedWorker(broker.queue, name, profile=json.dumps({**said, "ranges": digest}))
    await worker.register(ranges=data)
    return worker


async def test_a_value_out_of_range_is_told_and_refused_when_strict(broker: Broker) -> None:
    await telling(broker)
    async with broker.client() as client:
        told = await client.ask(submit(graph(width=9000), subscribe=False))
        assert (told["type"], told["status"]) == ("job_accepted", "pending")
        (reason,) = told["waiting_for"]
        assert (reason["code"], reason["detail"]) == ("value_out_of_range", "1.width")
        assert "4096" in reason["message"]
        rehearsed = await client.ask(submit(graph(width=9000), dry_run=True))
        assert rehearsed["waiting_for"] == told["waiting_for"]
        refused = await client.ask(submit(graph(width="wide", height=0), strict=True))
        assert (refused["type"], refused["code"]) == ("error", "invalid_workflow")
        errors = refused["details"]["node_errors"]["1"]
        assert [e["type"] for e in errors["errors"]] == ["invalid_input_type", "value_smaller_than_min"]
        assert errors["errors"][1]["extra_info"] == {"input_name": "height", "received_value": 0}
        good = await client.ask(submit(strict=True, subscribe=False))
        assert (good["type"], good["waiting_for"]) == ("job_accepted", [])
        record = await client.ask({"type": "request_job_status", "job_id": told["job_id"]})
        assert record["waiting_for"] == told["waiting_for"]
        # A worker that takes it joins: the reason is gone from the record.
        wide = {"lists": [], "classes": {**DOCUMENT["classes"], "EmptyImage": {"n": {"width": ["INT", 1, 16384]}}}}
        await telling(broker, "sim-2", wide)

        async def explained() -> bool:
            record = await client.ask({"type": "request_job_status", "job_id": told["job_id"]})
            return bool(record["waiting_for"] == [])

        await wait_until(explained, what="the reason is gone")


async def test_a_worker_behind_the_gateway_tells_its_ranges_too(broker: Broker) -> None:
    async with broker.client("/ws/worker") as socket:
        answer = await socket.ask(
            {
                "type": "register_worker",
                "worker_id": "far",
                "capabilities": {"node_classes": list(NODES), "ranges": DOCUMENT},
            }
        )
        assert answer["type"] == "worker_registered"
        status, told = await broker.json("POST", "/api/jobs", json=submit(graph(width=-1)))
        assert status == 201
        assert [reason["code"] for reason in told["waiting_for"]] == ["value_out_of_range"]
