"""A pool on the real functions, seen by simulated brokers and workers: calls over one connection, time set by hand."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from broker.queue.loader import library
from broker.queue.new_job import NewJob
from broker.queue.queue import Answer, parse

Call = tuple[str, list[bytes | str]]


def class_of(atoms: Iterable[str]) -> str:
    """A class's name: equal requirements, equal name."""
    return hashlib.blake2b("\n".join(sorted(atoms)).encode(), digest_size=8).hexdigest()


def profile(models: Sequence[str], vram_mb: int = 24_000) -> str:
    """What a simulated worker says that it can run."""
    kinds = {"job_types": ["comfyui"], "node_classes": [], "tags": [], "vram_mb": vram_mb}
    return json.dumps({**kinds, "models": {"checkpoints": list(models)}, "model_inputs": {}})


def job(payload: bytes, models: Sequence[str] = (), **more: Any) -> NewJob:
    """A job that needs these model files, the first of which is its heavy one."""
    atoms = sorted(["t:comfyui", *(f"m:{model}" for model in models)])
    return NewJob(secrets.token_hex(16), payload, b"{}", class_of(atoms), atoms, kind=models[:1], **more)


@dataclass(slots=True)
class Worker:
    """A simulated worker."""

    name: str
    loaded: str = ""

    @property
    def who(self) -> list[bytes | str]:
        """The arguments that name it."""
        return ["worker", self.name, "instance", self.name]


class Pool:
    """One pool."""

    def __init__(self, redis: Redis, name: str = "default", *, lease_ms: int = 30_000) -> None:
        self.redis = redis
        self.prefix = f"emq:{{{name}}}:"
        redis.function_load(library().text, replace=True)
        self.call("configure", "deployment", "bench", "lease_ms", str(lease_ms), "max_queued", "0")

    def at(self, now_ms: int) -> None:
        """Set the pool's clock."""
        self.redis.hset(f"{self.prefix}config", "test_clock", str(now_ms))

    def raw(self, function: str, args: Sequence[bytes | str]) -> Any:
        """Call a function."""
        return self.redis.fcall(f"emq_{function}", 1, self.prefix, *args)

    def call(self, function: str, *args: bytes | str) -> Answer:
        """Call a function and read its answer."""
        return parse(self.raw(function, args))

    def calls(self, calls: Sequence[Call]) -> list[Any]:
        """Many calls in one trip; raw answers."""
        pipe = self.redis.pipeline(transaction=False)
        for function, args in calls:
            pipe.fcall(f"emq_{function}", 1, self.prefix, *args)
        return list(pipe.execute())

    def submit(self, tenant: str, jobs: Sequence[NewJob]) -> list[Answer]:
        """Submit jobs in one call."""
        return [parse(row) for row in self.raw("submit", submission(tenant, jobs))]

    def register(self, worker: Worker, capabilities: str, slots: int = 1) -> None:
        """Make a worker known."""
        answer = self.call(
            "register", *worker.who, "machine", "m", "profile", capabilities, "info", "{}", "slots", str(slots)
        )
        assert answer.outcome == "ok", answer

    def claim(self, worker: Worker) -> Answer | None:
        """Claim a job."""
        answer = self.call("claim", *claiming(worker))
        assert answer.outcome in ("job", "none"), answer
        return answer if answer.outcome == "job" else None

    def finish(self, worker: Worker, done: Answer, exec_ms: int, cold: bool, *, claim: bool = True) -> Answer | None:
        """Finish a job, and claim the next in the same call."""
        answer = self.call("finish", *finishing(worker, done, exec_ms, cold, claim=claim))
        assert answer.outcome == "ok", answer
        return answer.next if answer.next and answer.next.outcome == "job" else None

    def hinted(self, worker: Worker) -> bool:
        """Whether there is a hint of work in the worker's inbox; takes it."""
        return self.redis.lpop(f"{self.prefix}in:{worker.name}") == b"work"


def submission(tenant: str, jobs: Sequence[NewJob]) -> list[bytes | str]:
    """The arguments of a submit."""
    return ["tenant", tenant, *(arg for job in jobs for arg in job.arguments())]


def claiming(worker: Worker) -> list[bytes | str]:
    """The arguments of a claim."""
    return [*worker.who, "token", secrets.token_hex(16), "loaded", worker.loaded]


def finishing(worker: Worker, done: Answer, exec_ms: int, cold: bool, *, claim: bool = True) -> list[bytes | str]:
    """The arguments of a finish."""
    args: list[bytes | str] = ["job", done.text("job_id"), "token", done.text("lease"), "result", "{}"]
    args += ["exec_ms", str(exec_ms), "cold", "1" if cold else "0"]
    if claim:
        args += [*worker.who, "claim", "1", "claim_token", secrets.token_hex(16), "loaded", worker.loaded]
    return args
