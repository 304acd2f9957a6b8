"""Search over the socket, HTTP and the command line."""

from __future__ import annotations

import json
from typing import Any

from tests.api.conftest import Broker, submit
from tests.support.commands import emq_at


async def jobs(broker: Broker) -> list[str]:
    """Three jobs with metadata, of which the first two are done and failed by one worker."""
    worker = broker.worker("gpu-7")
    await worker.register()
    async with broker.client() as client:
        metadata: list[Any] = [{"order": 17, "env": "prod"}, {"order": "17"}, {"order": 18, "rush": True, "deep": {}}]
        made = [await client.ask(submit(metadata=each, max_attempts=1, subscribe=False)) for each in metadata]
    for end in (worker.finish, worker.fail):
        held = await worker.claim()
        assert held is not None
        await end(held)
    return [answer["job_id"] for answer in made]


async def test_jobs_are_found_by_their_metadata(broker: Broker) -> None:
    first, second, third = await jobs(broker)

    async def find(**query: Any) -> list[str]:
        status, page = await broker.json("GET", "/api/jobs", params=query)
        assert status == 200, page
        assert page["next_cursor"] is None
        return [job["job_id"] for job in page["jobs"]]

    assert await find() == [third, second, first]
    assert await find(**{"metadata[order]": "17"}) == [second, first]
    assert await find(**{"metadata[order]": "17", "metadata[env]": "prod"}) == [first]
    assert await find(**{"metadata[rush]": "true"}) == [third]
    assert await find(**{"metadata[deep]": "{}"}) == []
    assert await find(worker="gpu-7") == [second, first]
    assert await find(error="node_error") == [second]
    assert await find(status="pending", age_s="3600") == [third]
    assert await find(until="1000") == []
    assert await find(tenant="*", error="node_error") == [second]
    assert await find(tenant="nobody") == []
    async with broker.client() as client:
        page = await client.ask({"type": "list_jobs", "metadata": {"order": 18}, "since": 0})
        assert [job["job_id"] for job in page["jobs"]] == [third]


async def test_what_is_no_filter_is_refused(broker: Broker) -> None:
    for query in ({"since": "yesterday"}, {"age_s": "-1"}, {"dead": "maybe"}, {"limit": "0"}, {"cursor": "x"}):
        status, body = await broker.json("GET", "/api/jobs", params=query)
        assert (status, body["code"]) == (400, "bad_message"), query
        assert next(iter(query)) in body["error"]


async def test_the_command_line_lists_by_the_same_filters(broker: Broker) -> None:
    first, second, third = await jobs(broker)
    code, out = await emq_at(broker, "jobs", "list", "--metadata", "order=17", "--worker", "gpu-7", "--json")
    assert code == 0, out
    assert [job["job_id"] for job in json.loads(out)["jobs"]] == [second, first]
    code, out = await emq_at(broker, "jobs", "list", "--limit", "1", "--since", "2h")
    assert code == 0
    assert third in out
    cursor = out.split("--cursor ")[1].strip()
    code, out = await emq_at(broker, "jobs", "list", "--cursor", cursor, "--error", "node_error")
    assert code == 0
    assert second in out
    assert first not in out
    code, out = await emq_at(broker, "jobs", "list", "--since", "soon")
    assert code == 1
    assert "90s, 15m" in out
