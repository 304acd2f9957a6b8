"""What lies before a job, and whether jobs start when that says: the real functions at a clock that the tests move."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from broker.jobs.estimates import Forecast
from broker.queue.loader import library
from broker.queue.new_job import NewJob, Value, flatten
from broker.queue.queue import Answer, parse
from tests.support.jobs import class_of, new_job, profile
from tests.support.servers import RedisServer

START = 1_800_000_000_000


@dataclass
class Pool:
    """A pool that lives at a clock of its own, with workers that run what they are given for as long as told."""

    client: redis.Redis
    prefix: str = "emq:{forecast}:"
    now: int = START
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def call(self, function: str, **pairs: Value | None) -> Answer:
        return parse(self.client.fcall(f"emq_{function}", 1, self.prefix, *flatten(pairs.items())))

    def clock(self, now: int) -> None:
        self.now = now
        self.client.hset(f"{self.prefix}config", "test_clock", now)

    def register(self, *names: str, **more: Any) -> None:
        for name in names:
            self.call("register", worker=name, instance=name, profile=profile(**more), info="{}", status="idle")

    def submit(self, job: NewJob, tenant: str = "ann") -> Answer:
        return parse(self.client.fcall("emq_submit", 1, self.prefix, "tenant", tenant, *job.arguments())[0])

    def forecast(self, job: NewJob, tenant: str = "ann") -> Answer:
        return self.call("forecast", tenant=tenant, **{"class": job.job_class}, priority=job.priority)

    def claim(self, worker: str) -> Answer:
        self.call("heartbeat", worker=worker, instance=worker, status="idle", jobs="", loaded="")
        token = f"{next(self.numbers):032x}"
        answer = self.call("claim", worker=worker, instance=worker, token=token, loaded="")
        if answer.outcome == "job":
            self.call("report", job=answer.text("job_id"), token=token, p=1, data='{"progress":0}')
        return answer

    def finish(self, answer: Answer, ms: int) -> None:
        self.call("finish", job=answer.text("job_id"), token=answer.text("lease"), result="{}", exec_ms=ms, cold=0)

    def run(self, worker: str, ms: int, **needs: Any) -> None:
        """Submit a job and have it done in ``ms``."""
        self.submit(new_job(**needs))
        answer = self.claim(worker)
        self.clock(self.now + ms)
        self.finish(answer, ms)


@pytest.fixture
def clocked(redis_server: RedisServer) -> Iterator[Pool]:
    with redis.Redis.from_url(redis_server.socket_url, db=8) as client:
        client.flushdb()
        client.function_load(library().text, replace=True)
        pool = Pool(client)
        pool.clock(START)
        pool.call("configure", lease_ms=10**9)
        yield pool
        client.flushdb()


def test_unknown_until_five_runs_were_measured(clocked: Pool) -> None:
    job = new_job()
    assert clocked.forecast(job).text("why") == "class"
    clocked.register("w1")
    for _ in range(4):
        clocked.run("w1", 1000)
    assert clocked.forecast(job).text("why") == "samples"
    clocked.run("w1", 1000)
    assert clocked.forecast(job).outcome == "ok"


def test_unknown_without_a_worker_and_in_a_pause(clocked: Pool) -> None:
    clocked.register("w1")
    for _ in range(5):
        clocked.run("w1", 1000)
    clocked.call("pause", scope="tenant", id="ann", on=1)
    assert clocked.forecast(new_job()).text("why") == "paused"
    clocked.call("pause", scope="tenant", id="ann", on=0)
    clocked.call("bye", worker="w1", instance="w1")
    assert clocked.forecast(new_job()).text("why") == "worker"


def test_what_is_ahead_is_counted_over_classes_tenants_and_priorities(clocked: Pool) -> None:
    clocked.register("w1", models=("A",))
    for needs in ((), ("A",)):
        for _ in range(5):
            clocked.run("w1", 2000, models=needs)
    clocked.submit(new_job(priority=5, models=("A",)))
    clocked.submit(new_job())
    clocked.submit(new_job(models=("ghost",)))
    last = new_job()
    said = clocked.forecast(last)
    assert float(said.text("ahead")) == 2
    assert said.number("ahead_ms") == 4000
    clocked.submit(last)
    asked = clocked.call("forecast", tenant="ann", job=last.job_id)
    assert (float(asked.text("ahead")), asked.number("ahead_ms")) == (2, 4000)
    assert clocked.call("forecast", tenant="bob", job=last.job_id).outcome == "not_found"


def test_what_runs_is_known_as_long_as_it_is_little(clocked: Pool) -> None:
    clocked.register("w1")
    for _ in range(5):
        clocked.run("w1", 4000)
    assert Forecast.read(clocked.forecast(new_job())).predict().p50 < 100  # type: ignore[union-attr]
    clocked.submit(new_job())
    clocked.claim("w1")
    clocked.clock(clocked.now + 1500)
    said = clocked.forecast(new_job())
    assert (said.number("busy"), said.number("rest_ms")) == (1, 2500)
    expected = Forecast.read(said).predict()  # type: ignore[union-attr]
    assert 2500 <= expected.p50 <= 2700
    assert expected.p50 < expected.p90 <= 3600


def test_each_gpu_has_a_pace_of_its_own(clocked: Pool) -> None:
    for name, gpu in (("fast", "RTX 4090"), ("slow", "GTX 1060")):
        text = profile().replace('{"job_types"', f'{{"gpu": "{gpu}", "job_types"')
        clocked.call("register", worker=name, instance=name, profile=text, info="{}", status="idle")
    for _ in range(5):
        clocked.run("fast", 1000)
        clocked.run("slow", 9000)
    fields = clocked.client.hgetall(f"{clocked.prefix}c:{class_of(['t:comfyui'])}")
    assert fields[b"g:RTX 4090"] == b"1000.0 5"
    both = clocked.forecast(new_job()).number("run_ms")
    assert both == pytest.approx(1800, abs=2)  # two workers do 1/1000 + 1/9000 jobs a ms
    clocked.call("bye", worker="fast", instance="fast")
    assert clocked.forecast(new_job()).number("run_ms") == 9000


@pytest.mark.parametrize("workers", [1, 3])
def test_half_of_the_jobs_start_within_p50_and_nine_of_ten_within_p90(clocked: Pool, workers: int) -> None:
    """A random stream: what was predicted at each submit against what the queue counted at the claim."""
    rng = random.Random(workers)
    names = [f"w{i}" for i in range(workers)]
    clocked.register(*names)
    for _ in range(5):
        clocked.run("w0", rng.randint(600, 1400))
    busy: list[tuple[int, str, Answer, int]] = []
    free = list(names)
    arrivals = [
        clocked.now + round(at) for at in itertools.accumulate(rng.expovariate(workers / 1100) for _ in range(400))
    ]
    for at in arrivals:
        while busy and busy[0][0] <= at:
            end, name, held, ms = heapq.heappop(busy)
            clocked.clock(end)
            clocked.finish(held, ms)
            free.append(name)
            _start(clocked, free, busy, rng)
        clocked.clock(at)
        forecast = Forecast.read(clocked.forecast(new_job()))
        assert forecast is not None
        clocked.submit(new_job(estimate=forecast.predict().stored()))
        _start(clocked, free, busy, rng)
    stats = clocked.call("stats", tenant="")
    total, half, most = (stats.number(f"est_{name}total") for name in ("", "within_p50_", "within_p90_"))
    assert total >= 300
    assert 0.35 <= half / total <= 0.8, f"{half} of {total} within p50"
    assert 0.8 <= most / total <= 1, f"{most} of {total} within p90"


def _start(pool: Pool, free: list[str], busy: list[tuple[int, str, Answer, int]], rng: random.Random) -> None:
    while free:
        answer = pool.claim(free[0])
        if answer.outcome != "job":
            return
        ms = rng.randint(600, 1400)
        heapq.heappush(busy, (pool.now + ms, free.pop(0), answer, ms))


def test_several_jobs_are_answered_as_each_alone(clocked: Pool) -> None:
    clocked.register("w1")
    for _ in range(5):
        clocked.run("w1", 2000)
    jobs = [new_job() for _ in range(6)]
    for job in jobs:
        clocked.submit(job)
    names = [jobs[4].job_id, "nobody", *(job.job_id for job in jobs)]
    rows = clocked.call("forecast", jobs="\n".join(names)).rows
    assert rows == [clocked.call("forecast", job=name) for name in names[:5]], "no more, so that no call is long"
    assert [row.outcome for row in rows] == ["ok", "not_found", "ok", "ok", "ok"]
