"""The limits on what a submit may carry are settings."""

from __future__ import annotations

from tests.api.conftest import GRAPH, Start, submit


async def test_payload_and_metadata_have_limits_of_their_own(start_broker: Start) -> None:
    broker = await start_broker(max_payload_kb=2, max_metadata_kb=1)
    note = "x" * 1500
    for fields, limit in (
        ({"payload": {"workflow": GRAPH, "note": note * 2}}, 2048),
        ({"metadata": {"a": note}}, 1024),
    ):
        status, body = await broker.json("POST", "/api/jobs", json={**submit(), **fields})
        assert (status, body["code"], body["details"]["limit"]) == (413, "payload_too_large", limit)
        assert body["details"]["size"] > limit
    fits = {**submit(metadata={"a": "x" * 900}), "payload": {"workflow": GRAPH, "note": note}}
    status, _ = await broker.json("POST", "/api/jobs", json=fits)
    assert status == 201
