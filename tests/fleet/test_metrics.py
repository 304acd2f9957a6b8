"""``/metrics``: right figures, bounded labels, text and rules that Prometheus' own tool accepts."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import redis
from prometheus_client.parser import text_string_to_metric_families

from broker.jobs.metrics import SHOWN
from broker.queue.queue import Queue
from tests.access.conftest import Guarded, bearer
from tests.api.conftest import Broker, submit
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def promtool(*args: str, stdin: str = "") -> str:
    """Run Debian's promtool; what it says."""
    done = subprocess.run(
        ["promtool", *args], input=stdin, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


async def text(broker: Broker, **options: Any) -> str:
    async with broker.http.get(broker.url + "/metrics", **options) as response:
        assert response.status == 200
        return await response.text()


async def samples(broker: Broker) -> Samples:
    """Every sample by name and labels, after what was read before has become old."""
    await asyncio.sleep(1.01)
    families = text_string_to_metric_families(await text(broker))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def of(found: Samples, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    values = [v for (n, have), v in found.items() if n == name and set(labels.items()) <= set(have)]
    assert values, f"{name} {labels} is not there"
    return sum(values)


async def test_the_figures_of_a_job_s_life(broker: Broker) -> None:
    """Waiting by class and priority, running, workers, times, attempts, loads, events, sockets, Redis."""
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        for priority in (0, 5):
            await client.ask(submit(priority=priority))
        found = await samples(broker)
        assert of(found, "emq_queue_depth", priority="0") == of(found, "emq_queue_depth", priority="5") == 1
        assert of(found, "emq_class_depth") == 2
        assert of(found, "emq_class_oldest_seconds", priority="5") > 0
        assert of(found, "emq_queue_oldest_seconds", priority="0") > 0
        assert of(found, "emq_workers", state="idle") == 1
        assert of(found, "emq_broker_sockets", kind="client") == 1
        assert of(found, "emq_broker_tasks") > 3
        assert of(found, "emq_broker_allocated_blocks") > 100_000
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 0)
        await worker.call("executed", job=held.job_id, token=held.token, timings="{}", exec_ms=700, cold=1)
        found = await samples(broker)
        assert of(found, "emq_jobs_running") == of(found, "emq_workers", state="busy") == 1
        assert of(found, "emq_job_run_seconds_bucket", le="1.0") == 1
        assert of(found, "emq_job_run_seconds_bucket", le="0.5") == 0
        assert of(found, "emq_job_run_seconds_sum") == 0.7
        assert of(found, "emq_model_loads_total") == of(found, "emq_attempts_total") == 1
        assert of(found, "emq_job_wait_seconds_count") == 1
        assert of(found, "emq_job_upload_seconds_count") == 0
        await worker.finish(held)
        await client.until("complete_job")
        found = await samples(broker)
    assert of(found, "emq_job_upload_seconds_count") == 1
    assert of(found, "emq_jobs_finished_total", status="completed") == 1
    assert of(found, "emq_jobs_submitted_total") == 2
    assert of(found, "emq_broker_events_total", type="complete_job") == 1
    assert of(found, "emq_broker_redis_call_seconds_count") > 5
    assert of(found, "emq_redis_up") == of(found, "emq_redis_aof_enabled") == of(found, "emq_redis_aof_ok") == 1
    assert of(found, "emq_redis_memory_used_bytes") > 1e6
    assert of(found, "emq_redis_clients") >= 1
    assert of(found, "emq_redis_published_total") > 0


async def test_a_lapsed_lease_is_counted(queue: Queue, redis_client: redis.Redis) -> None:
    worker = SimulatedWorker(queue, profile=profile())
    config = f"{queue.prefix}config"
    redis_client.hset(config, "test_clock", 1_800_000_000_000)
    await worker.register()
    for later in (20_000, 40_000, 60_000, 80_000):
        redis_client.hset(config, "test_clock", 1_800_000_000_000 + later)
        await queue.sweep()
    assert (await queue.stats()).number("lapsed_total") == 1


async def test_a_job_that_was_delayed_waits_from_when_it_could_start(queue: Queue, redis_client: redis.Redis) -> None:
    worker, start = SimulatedWorker(queue, profile=profile()), 1_800_000_000_000
    config = f"{queue.prefix}config"
    redis_client.hset(config, "test_clock", start)
    await queue.submit("ann", [new_job(delay_ms=3_600_000)])
    await worker.register()
    redis_client.hset(config, "test_clock", start + 3_600_000)
    await queue.sweep()
    redis_client.hset(config, "test_clock", start + 3_602_000)
    row = (await queue.metrics()).rows[0]
    assert row.lines("levels") == ["0 1 2000"]
    held = await worker.claim()
    assert held is not None
    assert (await queue.metrics()).number("wait_ms") == 2000
    await worker.finish(held)


async def test_many_classes_and_tenants_are_told_within_bounds(queue: Queue) -> None:
    """What is told stays small, whatever clients send; the sums by priority are exact all the same."""
    for number in range(40):
        jobs = [new_job(nodes=[f"Node{number}"], priority=n) for n in range(3)]
        await queue.submit(f"tenant-{number % 4}", jobs)
    more = await queue.metrics()
    assert len(more.rows) == SHOWN
    known = more.rows[-1].text("class")
    assert (await queue.metrics([known])).rows[0].text("class") == known
    assert all(len(row.lines("levels")) == 3 for row in more.rows)
    levels = dict(line.split() for line in (await queue.stats()).lines("depth"))
    assert levels == {"0": "40", "1": "40", "2": "40"}
    for answer in (await queue.list_jobs(limit=200)).rows:
        await queue.cancel(answer.text("job_id") or answer.outcome)


async def test_figures_need_the_scope_read(guarded: Guarded) -> None:
    reader, sender = await guarded.key("read"), await guarded.key("submit")
    assert "emq_jobs" in await text(guarded.broker, headers=bearer(reader))
    for key, status in ((sender, 403), (None, 401)):
        assert (await guarded.ask(key, "GET", "/metrics"))[0] == status


async def test_no_label_has_what_a_client_chose(broker: Broker) -> None:
    """Job ids, tenants, groups, model names that no worker has."""
    _, answer = await broker.json(
        "POST", "/api/jobs", json=submit(group="canary-group", requirements={"models": ["canary.safetensors"]})
    )
    shown = await text(broker)
    assert "canary" not in shown
    assert answer["job_id"] not in shown


async def test_models_are_named_where_a_worker_has_them(broker: Broker) -> None:
    await broker.worker(models=("sd15.safetensors",)).register()
    await broker.json("POST", "/api/jobs", json=submit(requirements={"models": ["sd15.safetensors"]}))

    async def named() -> bool:
        return 'models="sd15.safetensors"' in await text(broker)

    await wait_until(named, 15, "the class is named")


async def test_without_redis_a_replica_still_tells_its_own_figures(guarded: Guarded, own_valkey: Any) -> None:
    own_valkey.kill()
    shown = await text(guarded.broker)
    assert "emq_redis_up 0.0" in shown
    assert "emq_broker_sockets" in shown
    assert "emq_jobs" not in shown


async def test_promtool_accepts_the_text(broker: Broker) -> None:
    await broker.json("POST", "/api/jobs", json=submit())
    promtool("check", "metrics", stdin=await text(broker))


def test_promtool_accepts_the_rules_and_they_fire() -> None:
    promtool("check", "rules", "deploy/prometheus/alerts.yml")
    promtool("test", "rules", "deploy/prometheus/alerts_test.yml")


def test_each_alert_leads_to_a_part_of_the_runbook() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    heads = {re.sub(r"[^a-z0-9 ]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.+)$", page, re.M)}
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    named = re.findall(r"runbook: docs/operations\.md#(\S+)", rules)
    assert len(named) == rules.count("- alert:")
    assert set(named) <= heads


async def test_rules_dashboard_and_page_name_what_there_is(broker: Broker) -> None:
    """Each metric in the files exists, and the page describes every one."""
    await broker.worker(models=("sd15.safetensors",)).register()
    families = {family.name for family in text_string_to_metric_families(await text(broker))}
    families = {name for name in families if name.startswith("emq_") and not name.endswith("_created")}
    dashboard = json.loads((ROOT / "deploy/grafana/emq.json").read_text())
    used = json.dumps(dashboard) + (ROOT / "deploy/prometheus/alerts.yml").read_text()
    page = set(re.findall(r"`(emq_\w*?[a-z0-9])(?:_total)?`", (ROOT / "docs/metrics.md").read_text()))
    known = re.compile("|".join(f"{name}(_total|_bucket|_sum|_count)?" for name in families))
    assert not [name for name in set(re.findall(r"\bemq_\w+", used)) if not known.fullmatch(name)]
    assert page == families
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
