"""``estimated_start`` in what clients get, and how its calibration is told."""

from __future__ import annotations

from broker.api.services import SERVICES
from broker.dashboard.queue import Starts
from broker.jobs.estimates import DISPATCH_MS
from broker.protocol.base import now_ms
from tests.api.conftest import Broker, Client, submit
from tests.support.waiting import wait_until


async def measured(client: Client) -> None:
    """Wait until the broker knows how long runs take: it asks the queue at most once a second."""

    async def known() -> bool:
        return (await client.ask(submit(dry_run=True)))["estimated_start"] is not None

    await wait_until(known, what="an estimate")


async def test_a_waiting_job_says_when_it_is_expected_to_start(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        first = await client.ask(submit(subscribe=False))
        assert first["estimated_start"] is None
        for _ in range(4):
            await client.ask(submit(subscribe=False))
        for _ in range(5):
            held = await worker.claim()
            assert held is not None
            await worker.report(held)
            await worker.finish(held, exec_ms=20_000)
        await measured(client)
        began = now_ms()
        soon = await client.ask(submit(subscribe=False))
        now = soon["timestamp"]
        assert began <= soon["estimated_start"]["p50"] <= soon["estimated_start"]["p90"] <= now + 2000
        assert await worker.claim() is not None
        began = now_ms()
        rehearsed = await client.ask(submit(dry_run=True, priority=1))
        waits = [await client.ask(submit(subscribe=False, priority=1)) for _ in range(3)]
        starts = [answer["estimated_start"] for answer in (rehearsed, *waits)]
        assert all(start["p50"] <= start["p90"] for start in starts)
        record = await client.ask({"type": "request_job_status", "job_id": waits[2]["job_id"]})
        late = now_ms() - began  # each start is told from its own moment on
        assert abs(starts[0]["p50"] - starts[1]["p50"]) < 1000 + late, "a rehearsal is told what the job itself is told"
        assert 15_000 - late <= starts[2]["p50"] - starts[1]["p50"] <= 22_000 + late
        assert 15_000 - late <= starts[3]["p50"] - starts[2]["p50"] <= 22_000 + late
        assert abs(record["estimated_start"]["p50"] - starts[3]["p50"]) < 2000 + late
        later = await client.ask(submit(subscribe=False, delay_s=500))
        assert later["estimated_start"]["p50"] >= now + 499_000
        child = await client.ask(submit(subscribe=False, depends_on=[waits[0]["job_id"]]))
        assert child["estimated_start"] is None
    _, stats = await broker.json("GET", "/stats")
    _, started = await broker.json("GET", f"/api/jobs/{soon['job_id']}")
    within = [int(started["claimed_at"] - started["created_at"] <= ms) for ms in DISPATCH_MS]
    assert stats["estimates"] == {"total": 1, "within_p50": within[0], "within_p90": within[1]}


async def test_a_bulk_submit_counts_its_own_jobs(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        await client.ask({"type": "submit_jobs", "jobs": [submit(subscribe=False) for _ in range(5)]})
        for _ in range(5):
            held = await worker.claim()
            assert held is not None
            await worker.finish(held, exec_ms=10_000)
        await measured(client)
        bulk = await client.ask({"type": "submit_jobs", "jobs": [submit(subscribe=False) for _ in range(4)]})
        starts = [answer["estimated_start"]["p50"] for answer in bulk["results"]]
        assert starts == sorted(starts)
        assert 25_000 <= starts[3] - starts[0] <= 32_000


async def test_an_open_queue_page_asks_for_a_few_starts_at_a_look(broker: Broker) -> None:
    worker, parts, starts = broker.worker(), broker.server.app[SERVICES], Starts()
    await worker.register()
    async with broker.client() as client:
        for _ in range(5):
            await client.ask(submit(subscribe=False))
            held = await worker.claim()
            assert held is not None
            await worker.report(held)
            await worker.finish(held, exec_ms=20_000)
        await measured(client)
        jobs = [(await client.ask(submit(subscribe=False)))["job_id"] for _ in range(7)]
    assert [*await starts.of(parts, jobs, 5)] == jobs[:5], "those first that start first"
    assert [*await starts.of(parts, jobs, 5)] == jobs
