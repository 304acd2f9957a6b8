"""A job that takes files another one made."""

from __future__ import annotations

import json
from typing import Any

from tests.api.conftest import NODES, Broker, submit
from tests.support.outputs import fetch, put, ticket
from tests.support.simulated import Held

CHILD = {
    "7": {"class_type": "LoadImage", "inputs": {"image": "comes later"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "x"}},
}


def child(job_id: str, node_id: str = "2", index: int = 0, **fields: Any) -> dict[str, Any]:
    source = {"output": {"job_id": job_id, "node_id": node_id, "index": index}}
    return {"type": "submit_job", "payload": {"workflow": CHILD, "inputs": {"7.image": source}}, **fields}


async def test_a_job_depends_on_those_whose_outputs_it_takes(broker: Broker) -> None:
    async with broker.client() as client:
        parents = [(await client.ask(submit(subscribe=False)))["job_id"] for _ in range(2)]
        taking = await client.ask(child(parents[0], depends_on=[parents[1], parents[0]], subscribe=False))
        assert taking["status"] == "blocked"
        record = await client.ask({"type": "request_job_status", "job_id": taking["job_id"]})
        assert record["depends_on"] == [parents[1], parents[0]]
        alone = await client.ask(child(parents[0], subscribe=False))
        record = await client.ask({"type": "request_job_status", "job_id": alone["job_id"]})
        assert (record["status"], record["depends_on"]) == ("blocked", [parents[0]])
        unknown = await client.ask(child("nobody"))
        assert (unknown["type"], unknown["code"]) == ("error", "not_found")
        assert "nobody" in unknown["error"]
        rehearsed = await client.ask(child("nobody", dry_run=True))
        assert rehearsed["code"] == "not_found"
        many = {f"7.image{i}": {"output": {"job_id": f"j{i}", "node_id": "2"}} for i in range(60)}
        payload = {"workflow": CHILD, "inputs": many}
        refused = await client.ask(
            {"type": "submit_job", "payload": payload, "depends_on": [f"k{i}" for i in range(990)]}
        )
        assert (refused["code"], "at most 1000" in refused["error"]) == ("bad_message", True)


async def made(broker: Broker, contents: list[bytes]) -> tuple[str, Held]:
    """A completed job whose node 2 made these files; and a running one, whose lease may read them."""
    parent = await broker.json("POST", "/api/jobs", json=submit())
    worker = broker.worker(nodes=(*NODES, "LoadImage"))
    await worker.register()
    held = await worker.claim(parent[1]["job_id"])
    assert held is not None
    await worker.report(held, 1)
    outputs: list[dict[str, Any]] = [{"node_id": "9", "kind": "text", "text": "words"}]
    for number, content in enumerate(contents):
        _, stored = await put(broker, held, number, content)
        outputs.append({"node_id": "2", "kind": "image", **stored})
    await worker.finish(held, {"outputs": outputs})
    _, answer = await broker.json("POST", "/api/jobs", json=child(held.job_id, index=len(contents) - 1))
    assert answer["status"] == "pending"
    running = await worker.claim(answer["job_id"])
    assert running is not None
    return held.job_id, running


async def test_a_worker_finds_the_file_by_its_node(broker: Broker) -> None:
    png = b"\x89PNG\r\n\x1a\n"
    job, running = await made(broker, [png + b"first", png + b"second"])
    for index, content in enumerate((png + b"first", png + b"second")):
        path = f"/api/jobs/{job}/outputs/by-node/2/{index}"
        response, body = await fetch(broker, path, **ticket(running))
        assert (response.status, body) == (200, content)
        assert response.headers["Content-Type"] == "image/png"
    for node, index, word in (("2", 2, "made 2 files"), ("9", 0, "made 0 files"), ("x", 0, "made 0 files")):
        response, body = await fetch(broker, f"/api/jobs/{job}/outputs/by-node/{node}/{index}", **ticket(running))
        assert response.status == 404
        assert word in json.loads(body)["error"]
    response, body = await fetch(broker, f"/api/jobs/{running.job_id}/outputs/by-node/2/0", **ticket(running))
    assert (response.status, "it is claimed" in json.loads(body)["error"]) == (404, True)
    stale = {"Authorization": f"Lease {running.job_id}.1.{'0' * 32}"}
    response, _ = await fetch(broker, f"/api/jobs/{job}/outputs/by-node/2/0", **stale)
    assert response.status == 409
