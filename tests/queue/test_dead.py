"""Dead letters: a job that its workers do not survive, and what is known of it."""

from __future__ import annotations

import json
from typing import Any

import redis

from broker.queue.queue import Queue
from tests.support.jobs import new_job
from tests.support.simulated import SimulatedWorker


async def crash(queue: Queue, name: str, job: str, node: dict[str, object] | None, **more: Any) -> None:
    """A worker claims the job, says which node it runs, and is lost."""
    worker = SimulatedWorker(queue, name)
    await worker.register()
    held = await worker.claim(job)
    assert held is not None
    await worker.report(held, 10, node=node, **more)
    await queue.call("gone", [("instance", worker.instance)])


async def test_three_crashes_make_a_dead_letter_with_its_evidence(queue: Queue, redis_client: redis.Redis) -> None:
    job = new_job("bomb")
    await queue.submit("ann", [job])
    await crash(queue, "w1", "bomb", {"id": "3", "class_type": "KSampler", "value": 2, "max": 20})
    record = await queue.job("bomb")
    assert (record.text("status"), record.number("crashes")) == ("pending", 1)
    await crash(queue, "w2", "bomb", {"id": 'odd "one"\n', "class_type": "x" * 500})
    await crash(queue, "w3", "bomb", None)
    record = await queue.job("bomb")
    assert (record.text("status"), record.text("error_code")) == ("failed", "worker_lost")
    assert record.flag("dead_letter")
    log = json.loads(f"[{record.text('crash_log')}]")
    assert [(entry["worker_id"], entry["attempt"]) for entry in log] == [("w1", 1), ("w2", 2), ("w3", 3)]
    assert [entry["node"] for entry in log] == [
        {"id": "3", "class_type": "KSampler"}, {"id": 'odd "one"\n', "class_type": "x" * 128}, None,
    ]  # fmt: skip
    assert json.loads(record.text("error"))["details"]["crash_log"] == log
    listed = await queue.list_jobs("ann", filters={"dead": 1})
    assert [row.text("job_id") for row in listed.rows] == ["bomb"]
    assert (await queue.list_jobs("bob", filters={"dead": 1})).rows == []
    assert (await queue.stats()).number("dead") == 1
    await queue.retry("bomb")
    record = await queue.job("bomb")
    assert (record.text("status"), record.number("round")) == ("pending", 2)
    assert not {"crash_log", "dead_letter", "crashes"} & record.pairs.keys()
    assert (await queue.list_jobs("ann", filters={"dead": 1})).rows == []
    assert (await queue.stats()).number("dead") == 0
    await queue.cancel("bomb")


async def test_progress_of_an_earlier_attempt_is_no_evidence(queue: Queue) -> None:
    await queue.submit("ann", [new_job("job")])
    await crash(queue, "w1", "job", {"id": "3", "class_type": "KSampler"})
    await crash(queue, "w2", "job", {"id": "9", "class_type": "Late"}, attempt=1)
    log = json.loads(f"[{(await queue.job('job')).text('crash_log')}]")
    assert [entry["node"] and entry["node"]["id"] for entry in log] == ["3", None]
    await queue.cancel("job")
