"""Simulated workers on the real functions, in real time; runs as a process of its own.

``python -m bench.dashboard.fleet REDIS_URL`` fills the pool, prints ``ready``, and works until it is ended. A report
carries the moment at which it was sent where the step of the node stands, so whoever reads it knows how old it is.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import secrets
import time
from dataclasses import dataclass
from typing import Any

from redis import Redis

from bench.simulation import Call, Pool, Worker, claiming, finishing, job
from broker.queue.new_job import NewJob
from broker.queue.queue import Answer, parse

MOST_STEP = 999_999_999
"""The steps of the simulated sampler; its current one is the time in ms, without the leading digits."""
MODELS = [f"model{number:02}.safetensors" for number in range(12)]
MISSING = "not-installed.safetensors"
TENANTS, PRIORITIES, FAILING = 20, (0, 0, 0, 0, 5, 5, -5, 10), 0.03
BULK, TICKS_PER_S, BEAT_S, HISTORY_S = 500, 20, 10.0, 86_400
PAYLOAD = json.dumps({"workflow": {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": MODELS[0]}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a simulated picture", "clip": ["1", 1]}},
    "3": {"class_type": "KSampler", "inputs": {"seed": 17, "steps": 20, "model": ["1", 0], "positive": ["2", 0]}},
    "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
    "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "simulated"}},
}}).encode()  # fmt: skip
OUTPUT = {
    "node_id": "5", "kind": "image", "filename": "simulated.png", "content_type": "image/png", "size": 123_456,
    "hash": "blake3:" + "0" * 64, "key": "out/t/j/1/0", "name": "1-0.png",
}  # fmt: skip
RESULT = json.dumps({"outputs": [OUTPUT], "timings": {"execution_ms": 15_000}})
ERRORS = (
    ("out_of_memory", "CUDA out of memory. Tried to allocate 2.50 GiB.", "KSampler"),
    ("node_error", "ValueError: Prompt is empty", "CLIPTextEncode"),
    ("node_error", "RuntimeError: Given groups=1, weight of size [320, 4, 3, 3]", "KSampler"),
)
PROFILE = json.dumps({
    "job_types": ["comfyui"], "tags": [], "vram_mb": 24_564, "models": {"checkpoints": MODELS},
    "node_classes": ["CheckpointLoaderSimple", "CLIPTextEncode", "KSampler", "VAEDecode", "SaveImage"],
    "model_inputs": {"CheckpointLoaderSimple": {"ckpt_name": "checkpoints"}},
})  # fmt: skip
INFO = {
    "simulated": True, "version": "0.1.0", "comfyui_version": "0.0.0-simulated", "tags": ["simulated"],
    "gpus": [{"name": "Simulated GPU", "vram_mb": 24_564}],
}  # fmt: skip


def step_now() -> int:
    """The moment, as the step of a sampler."""
    return time.time_ns() // 1_000_000 % (MOST_STEP + 1)


def new_job(dice: random.Random) -> NewJob:
    """One job: the first models are asked for most."""
    model = MODELS[min(len(MODELS) - 1, int(dice.paretovariate(0.7)) - 1)]
    return job(PAYLOAD, [model], priority=dice.choice(PRIORITIES))


def submit(pool: Pool, count: int, dice: random.Random) -> None:
    """Submit many jobs."""
    for start in range(0, count, BULK):
        jobs = [new_job(dice) for _ in range(min(BULK, count - start))]
        pool.submit(f"tenant{dice.randrange(TENANTS)}", jobs)


def ending(worker: Worker, done: Answer, dice: random.Random, *, claim: bool) -> Call:
    """The call that ends a job and may claim the next: now and then it has failed."""
    if dice.random() >= FAILING:
        args = finishing(worker, done, 15_000, cold=False, claim=claim)
        args[args.index("result") + 1] = RESULT
        return "finish", args
    code, message, node_type = dice.choice(ERRORS)
    error = {"code": code, "message": message, "node_id": "3", "node_type": node_type, "details": {}}
    args = ["job", done.text("job_id"), "token", done.text("lease"), "code", code, "error", json.dumps(error)]
    claims = [*worker.who, "claim", "1", "claim_token", secrets.token_hex(16), "loaded", worker.loaded]
    return "fail", [*args, "retry", "no", *(claims if claim else [])]


def following_job(raw: Any) -> Answer | None:
    """What a worker does next whose job has ended."""
    answer = parse(raw)
    assert answer.outcome == "ok", answer
    return answer.next


def fill(pool: Pool, queued: int, finished: int, gpus: int, dice: random.Random) -> None:
    """Jobs that ended over the last day, then those that wait; some of these can run nowhere."""
    workers = [Worker(f"gpu-{number:03}") for number in range(gpus)]
    rounds = max(1, -(-finished // gpus))
    start, step = round(time.time() * 1000) - HISTORY_S * 1000, HISTORY_S * 1000 // rounds
    pool.at(start)
    submit(pool, finished, dice)
    for worker in workers:
        pool.register(worker, PROFILE)
    held = [parse(raw) for raw in pool.calls([("claim", claiming(worker)) for worker in workers])]
    for number in range(1, rounds + 1):
        pool.at(start + number * step)
        last = number == rounds
        pairs = [(worker, done) for worker, done in zip(workers, held, strict=True) if done.outcome == "job"]
        answers = pool.calls([ending(worker, done, dice, claim=not last) for worker, done in pairs])
        following = {worker.name: following_job(raw) for (worker, _), raw in zip(pairs, answers, strict=True)}
        held = [following.get(worker.name) or Answer("none", {}, []) for worker in workers]
    pool.redis.hdel(f"{pool.prefix}config", "test_clock")
    submit(pool, queued, dice)
    pool.submit("tenant0", [job(PAYLOAD, [MISSING]) for _ in range(50)])


@dataclass(slots=True)
class Gpu:
    """A simulated worker and what it runs."""

    worker: Worker
    running: Answer | None = None
    began: float = 0.0
    took_s: float = 1.0
    reports: int = 0


class Fleet:
    """The fleet at work: each GPU reports ``events`` times a second, all together end ``rate`` jobs a second."""

    def __init__(self, pool: Pool, gpus: int, rate: float, events: int, dice: random.Random) -> None:
        self.pool, self.events, self.dice = pool, events, dice
        self.run_s = gpus / rate
        self.gpus = [Gpu(Worker(f"gpu-{number:03}", loaded=MODELS[0])) for number in range(gpus)]
        self.ends: list[tuple[float, int]] = []
        self.ticks = 0

    def start(self) -> None:
        """All say hello and take a job, in the middle of which they are."""
        info = json.dumps(INFO)
        calls: list[Call] = [
            ("register", [*gpu.worker.who, "machine", f"rack-{number // 8}", "profile", PROFILE, "info", info,
                          "slots", "1", "via", "redis", "status", "busy"])
            for number, gpu in enumerate(self.gpus)
        ]  # fmt: skip
        self.pool.calls(calls)
        self._beat(range(len(self.gpus)))
        claims = self.pool.calls([("claim", claiming(gpu.worker)) for gpu in self.gpus])
        for number, raw in enumerate(claims):
            self._begin(number, parse(raw), self.dice.random())

    def tick(self) -> None:
        """A twentieth of a second."""
        now = time.monotonic()
        ended: list[int] = []
        while self.ends and self.ends[0][0] <= now:
            ended.append(heapq.heappop(self.ends)[1])
        calls = [ending(self.gpus[n].worker, self._held(n), self.dice, claim=True) for n in ended]
        for number, raw in zip(ended, self.pool.calls(calls), strict=True):
            self._begin(number, following_job(raw))
        parts = TICKS_PER_S // self.events
        self._report(range(self.ticks % parts, len(self.gpus), parts), now)
        self._beat(range(self.ticks % round(BEAT_S * TICKS_PER_S), len(self.gpus), round(BEAT_S * TICKS_PER_S)))
        self.ticks += 1

    def run(self) -> None:
        """Tick until the process is ended."""
        due = time.monotonic()
        while True:
            self.tick()
            due = max(due + 1 / TICKS_PER_S, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))

    def _held(self, number: int) -> Answer:
        running = self.gpus[number].running
        assert running is not None
        return running

    def _begin(self, number: int, answer: Answer | None, part_done: float = 0.0) -> None:
        gpu = self.gpus[number]
        gpu.running, gpu.reports, gpu.began = None, 0, time.monotonic()
        if answer is None or answer.outcome != "job":
            return
        gpu.running, gpu.took_s = answer, self.dice.uniform(0.5, 1.5) * self.run_s
        heapq.heappush(self.ends, (gpu.began + gpu.took_s * (1 - part_done), number))

    def _report(self, numbers: range, now: float) -> None:
        calls: list[Call] = []
        for gpu in (self.gpus[number] for number in numbers):
            if gpu.running:
                gpu.reports += 1
                store = "1" if (gpu.reports - 1) % self.events == 0 else "0"
                calls.append(("report", [
                    "job", gpu.running.text("job_id"), "token", gpu.running.text("lease"), "p", str(gpu.reports),
                    "data", json.dumps(self._progress(gpu, now)), "store", store,
                ]))  # fmt: skip
        self.pool.calls(calls)

    def _progress(self, gpu: Gpu, now: float) -> dict[str, Any]:
        node = {"id": "3", "class_type": "KSampler", "value": step_now(), "max": MOST_STEP}
        share = round(100 * min(1.0, (now - gpu.began) / gpu.took_s), 1)
        return {"progress": share, "node": node, "nodes_done": 2, "nodes_total": 5, "attempt": 1,
                "worker_id": gpu.worker.name}  # fmt: skip

    def _beat(self, numbers: range) -> None:
        calls: list[Call] = []
        for gpu in (self.gpus[number] for number in numbers):
            jobs = f"{gpu.running.text('job_id')} {gpu.running.text('lease')}" if gpu.running else ""
            gpus = json.dumps([{"vram_free_mb": self.dice.randrange(2_000, 14_000), "utilisation": 97}])
            calls.append(("heartbeat", [*gpu.worker.who, "status", "busy" if gpu.running else "idle", "jobs", jobs,
                                        "loaded", gpu.worker.loaded, "gpus", gpus]))  # fmt: skip
        self.pool.calls(calls)


def main() -> None:
    """Fill, then work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("redis")
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--gpus", type=int, default=300)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--events", type=int, default=5)
    args = parser.parse_args()
    dice = random.Random(7)
    pool = Pool(Redis.from_url(args.redis), lease_ms=30_000)
    fill(pool, args.queued, args.finished, args.gpus, dice)
    fleet = Fleet(pool, args.gpus, args.rate, args.events, dice)
    fleet.start()
    print("ready", flush=True)
    fleet.run()


if __name__ == "__main__":
    main()
