"""A simulated worker: it calls the queue's functions as a real one does, but runs no ComfyUI.

It is for load and for tests of the broker; what a worker does inside ComfyUI is tested with real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from broker.queue.new_job import Value
from broker.queue.queue import Answer, Queue
from tests.support.jobs import profile as make_profile

Run = Callable[["SimulatedWorker", "Held"], Awaitable[None]]


@dataclass(slots=True)
class Held:
    """A job that the simulated worker has claimed."""

    job_id: str
    token: str
    attempt: int
    payload: bytes
    answer: Answer
    reports: int = 0
    cancelled: str | None = None


@dataclass
class SimulatedWorker:
    """One worker; ``run`` is what it does with a job (default: two reports and an empty result)."""

    queue: Queue
    worker_id: str = "sim-1"
    profile: str = field(default_factory=make_profile)
    machine: str = "simulated"
    slots: int = 1
    loaded: tuple[str, ...] = ()
    run: Run | None = None
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    held: dict[str, Held] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    lease_ms: int = 30_000
    draining: bool = False

    async def call(self, function: str, **pairs: Value | None) -> Answer:
        """One function call as this instance."""
        return await self.queue.worker_call(function, {"worker": self.worker_id, "instance": self.instance, **pairs})

    async def register(self, **more: Value | None) -> Answer:
        """Say hello; ``more`` overrides what it says."""
        said: dict[str, Value | None] = {
            "machine": self.machine, "profile": self.profile, "slots": self.slots, "via": "redis", "status": "idle",
            "info": json.dumps({"simulated": True, "version": "0", "gpus": [{"name": "simulated", "vram_mb": 24_000}]}),
        }  # fmt: skip
        answer = await self.call("register", **{**said, **more})
        self.lease_ms = answer.number("lease_ms", self.lease_ms)
        return answer

    async def heartbeat(self, **more: Value | None) -> Answer:
        """Name the jobs held; drops the lost ones and notes the cancelled ones."""
        said: dict[str, Value | None] = {
            "status": "busy" if self.held else "idle",
            "jobs": "\n".join(f"{held.job_id} {held.token}" for held in self.held.values()),
            "loaded": "\n".join(self.loaded),
        }
        answer = await self.call("heartbeat", **{**said, **more})
        for line in answer.lines("jobs"):
            job_id, word, *reason = line.split(" ", 2)
            if word == "lost":
                self.held.pop(job_id, None)
            elif word == "cancel" and job_id in self.held:
                self.held[job_id].cancelled = " ".join(reason)
        self.draining = answer.flag("drain")
        return answer

    async def claim(self, job_id: str | None = None, token: str | None = None, **more: Value | None) -> Held | None:
        """Take the best job (or the named one); ``None`` when there is none for this worker."""
        token = token or secrets.token_hex(16)
        while True:
            answer = await self.call("claim", token=token, job=job_id, loaded="\n".join(self.loaded), **more)
            if answer.outcome != "again":
                return self._take(answer)

    def _take(self, answer: Answer | None) -> Held | None:
        if answer is None or answer.outcome != "job":
            return None
        held = Held(
            answer.text("job_id"), answer.text("lease"), answer.number("attempt"), answer.pairs["payload"], answer
        )
        self.held[held.job_id] = held
        return held

    async def report(self, held: Held, progress: float = 0, store: bool = True, **more: Any) -> Answer:
        """Report progress; the first report starts the job."""
        held.reports += 1
        data = {"progress": progress, "worker_id": self.worker_id, "attempt": held.attempt, **more}
        answer = await self._about(held, "report", p=held.reports, data=json.dumps(data), store=store)
        if answer.text("cancel"):
            held.cancelled = answer.text("cancel")
        return answer

    async def preview(self, held: Held, frame: bytes, number: int = 1) -> Answer:
        """Send one preview frame."""
        return await self._about(held, "preview", frame=number, data=frame)

    async def executed(self, held: Held, claim: bool = False, exec_ms: int = 100) -> tuple[Answer, Held | None]:
        """The GPU is free, outputs are still uploading; may claim the next job in the same call."""
        answer = await self._about(
            held, "executed", timings=json.dumps({"execution_ms": exec_ms}), exec_ms=exec_ms, **self._claims(claim)
        )
        return answer, self._take(answer.next)

    async def finish(
        self, held: Held, result: dict[str, Any] | None = None, claim: bool = False, exec_ms: int = 100
    ) -> tuple[Answer, Held | None]:
        """Complete the job; may claim the next in the same call."""
        result = {"outputs": [], "timings": {"execution_ms": exec_ms}} if result is None else result
        answer = await self._about(
            held, "finish", result=json.dumps(result), exec_ms=exec_ms, cold=0, **self._claims(claim)
        )
        return self._ended(held, answer), self._take(answer.next)

    async def fail(
        self, held: Held, code: str = "node_error", message: str = "It failed.", **more: Value | None
    ) -> Answer:
        """Fail the job; ``hand_back=1``, ``missing`` and ``retry`` as in the contract."""
        error: dict[str, Any] = {"code": code, "message": message, "node_id": None, "node_type": None, "details": {}}
        return self._ended(held, await self._about(held, "fail", code=code, error=json.dumps(error), **more))

    async def release(self, held: Held, reason: str = "shutdown") -> Answer:
        """Give back a job that was not started."""
        return self._ended(held, await self._about(held, "release", reason=reason))

    async def bye(self) -> Answer:
        """Leave; what it holds goes back."""
        self.held.clear()
        return await self.call("bye")

    def _claims(self, claim: bool) -> dict[str, Value | None]:
        if not claim:
            return {}
        return {"claim": 1, "claim_token": secrets.token_hex(16), "loaded": "\n".join(self.loaded)}

    async def _about(self, held: Held, function: str, **pairs: Value | None) -> Answer:
        return await self.call(function, job=held.job_id, token=held.token, **pairs)

    def _ended(self, held: Held, answer: Answer) -> Answer:
        self.held.pop(held.job_id, None)
        if answer.outcome == "ok":
            self.done.append(held.job_id)
        return answer

    # -- running by itself ------------------------------------------------------------------------------------------

    async def work_one(self) -> Held | None:
        """Claim one job and do it; ``None`` when there was none."""
        held = await self.claim()
        if held is not None:
            await (self.run or run_to_the_end)(self, held)
        return held

    async def serve(self, client: Any) -> None:
        """Work until cancelled: jobs while there are any, else one blocking read on the inbox.

        ``client`` is a ``redis.asyncio.Redis`` without a read time-out (see :meth:`running`).
        """
        await self.register()
        inbox = f"{self.queue.prefix}in:{self.instance}"
        while True:
            if not self.draining and await self.work_one() is not None:
                continue
            await client.blpop([inbox], timeout=max(0.05, min(1.0, self.lease_ms / 6000)))
            await self.heartbeat()

    @contextlib.asynccontextmanager
    async def running(self, redis_url: str) -> AsyncIterator[SimulatedWorker]:
        """Serve (with a heartbeat beside) inside the ``async with``; says bye at its end."""
        import redis.asyncio

        client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=None)
        serving = asyncio.create_task(self.serve(client))
        beating = asyncio.create_task(self._beat())
        try:
            yield self
        finally:
            for task in (serving, beating):
                task.cancel()
            ends = await asyncio.gather(serving, beating, return_exceptions=True)
            await self.bye()
            await client.aclose()
            for end in ends:
                if isinstance(end, Exception):
                    raise end

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.lease_ms / 6000)
            await self.heartbeat()


async def run_to_the_end(worker: SimulatedWorker, held: Held) -> None:
    """What a simulated worker does with a job unless told otherwise."""
    await worker.report(held, 0)
    if held.cancelled is not None:
        await worker.fail(held, "interrupted", "Cancelled.", retry="no")
        return
    await worker.report(held, 100)
    await worker.finish(held)
