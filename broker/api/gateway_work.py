"""A worker's jobs over the gateway: claims, and the reports that end something."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from broker.access.side_keys import MARK, SideKeys
from broker.api import gateway_jobs as jobs
from broker.api.gateway_link import Link
from broker.api.gateway_worker import GatewayWorker, name_lines
from broker.api.tickets import LeaseTicket
from broker.errors import Conflict, EmqError, NotFound
from broker.files.store import FileStore
from broker.jobs import strict
from broker.jobs.payloads import decode_payload
from broker.protocol import gateway as g
from broker.protocol.messages import Ack
from broker.queue.new_job import Value
from broker.queue.queue import Answer, require
from broker.settings import Settings

AGAIN = 20
"""How often a claim is repeated that had to park jobs of tenants at their limit first."""

KEYS_GONE = strict.dumps(
    {
        "code": "input_unavailable",
        "message": "The job's partner keys are gone: they wait a limited time and are handed out once. Submit again.",
        "node_id": None,
        "node_type": None,
        "details": {"reason": "partner_keys"},
    }
)


@dataclass(frozen=True, slots=True)
class Files:
    """Where outputs lie and how a worker gets them there. ``base`` is the broker's URL as this worker sees it."""

    outputs: FileStore
    settings: Settings
    base: str

    def uploads(self, held: jobs.Held) -> g.Uploads:
        """What a worker needs to upload a job's outputs: PUT to ``<url_prefix><n>/<name>``."""
        return g.Uploads(
            url_prefix=f"{self.base}/api/jobs/{held.job_id}/outputs/{held.attempt}/",
            authorization=LeaseTicket(held.job_id, held.attempt, held.token).header,
            max_bytes=self.settings.max_output_mb * 1024 * 1024,
        )

    async def checked(self, held: jobs.Held, result: dict[str, Any]) -> str:
        """A result as the queue keeps it."""
        return await jobs.result_json(self.outputs, held, result, self.settings.max_result_kb)


class Work:
    """Handles the messages about jobs."""

    def __init__(self, link: Link, worker: GatewayWorker, held: jobs.HeldJobs, files: Files, side: SideKeys) -> None:
        self._link = link
        self._worker = worker
        self._jobs = held
        self._files = files
        self._settings = files.settings
        self._reports = jobs.Reports(worker, self._progress_later)
        self._side = side

    # -- claiming -----------------------------------------------------------------------------------------------------

    async def claim(self, message: g.ClaimJob, echo: str | None) -> None:
        """Claim the best job, or a named one."""
        args: dict[str, Value | None] = {
            "token": message.claim_token or secrets.token_hex(16),
            "job": message.job_id,
            "loaded": name_lines(message.loaded_models),
            "ahead": message.ahead or None,
        }
        for _ in range(AGAIN):
            answer = await self._worker.as_worker("claim", args)
            if answer.outcome != "again":
                break
        await self._link.send(await self._assigned(answer, message.job_id), echo)

    async def _payload(self, held: jobs.Held, answer: Answer) -> dict[str, Any]:
        """A claimed job's payload, with its partner keys, which lie beside it and are handed out once.

        Raises ``NotFound`` after failing a job whose keys are gone.
        """
        payload: dict[str, Any] = decode_payload(answer.pairs.get("payload", b"{}"))
        extra = payload.get("extra_data")
        if not isinstance(extra, dict) or MARK not in extra:
            return payload
        if held.partner_keys is None:
            held.partner_keys = await self._side.take(held.job_id)
        if held.partner_keys is None:
            await self._worker.call(
                "fail",
                {
                    "job": held.job_id,
                    "token": held.token,
                    "code": "input_unavailable",
                    "error": KEYS_GONE,
                    "retry": "no",
                },
            )
            self._jobs.drop(held.job_id, held.token)
            raise NotFound("There is no job for this worker now.", reason="no_job")
        rest = {name: value for name, value in extra.items() if name != MARK}
        return {**payload, "extra_data": {**rest, **held.partner_keys}}

    async def _assigned(self, answer: Answer, wanted: str | None = None) -> g.JobAssigned:
        """The message for a claimed job; raises what a claim that got none means."""
        if answer.outcome in ("none", "again"):
            raise NotFound("There is no job for this worker now.", reason="no_job")
        if answer.outcome in ("paused", "busy"):
            raise Conflict(f"The worker gets no job now: it is {answer.outcome}.", reason=answer.outcome)
        require(answer, f"job {wanted}")
        if answer.outcome != "job":
            raise Conflict("The worker must register again before it claims.", reason=answer.outcome)
        held = self._jobs.add(answer)
        timeout = answer.text("timeout_s")
        return g.JobAssigned(
            job_id=held.job_id,
            attempt=held.attempt,
            lease=held.token,
            lease_s=self._lease_s(answer),
            job_type=answer.text("job_type"),
            priority=answer.number("priority"),
            payload=await self._payload(held, answer),
            timeout_s=float(timeout) if timeout else None,
            round=answer.number("round", 1),
            watch=answer.flag("watch"),
            preview_px=answer.number("watch") if answer.number("watch") > 1 else None,
            input_urls=answer.text("input_urls") or None,
            queued_ms=held.queued_ms,
            rules=answer.text("rules"),
            traceparent=answer.text("trace") or None,
            uploads=self._files.uploads(held),
        )

    def _fused(self, message: g.ClaimFields) -> dict[str, Value | None]:
        """The arguments of a claim that rides on a report."""
        if not message.claim:
            return {}
        self._worker.require_registered()
        return {
            "worker": self._worker.worker_id,
            "instance": self._worker.instance,
            "claim": True,
            "claim_token": message.claim_token or secrets.token_hex(16),
            "loaded": name_lines(message.loaded_models),
        }

    async def _after(self, answer: Answer, echo: str | None) -> None:
        """What follows the answer to a report that ends something: the next job, or a hint at one."""
        if answer.next is not None and answer.next.outcome == "job":
            await self._link.send(await self._assigned(answer.next), echo)
        elif answer.next is None or answer.next.outcome not in ("none", "busy", "paused"):
            await self.offer()

    async def offer(self) -> None:
        """Tell an idle worker of the job it would get now, if there is one."""
        if self._worker.registration is None or self._worker.superseded:
            return
        answer = await self._worker.as_worker("offer", {})
        if answer.outcome == "job":
            await self._link.send(
                g.JobAvailable(
                    job_id=answer.text("job_id"),
                    job_type=answer.text("job_type"),
                    priority=answer.number("priority"),
                )
            )

    # -- reporting ----------------------------------------------------------------------------------------------------

    async def progress(self, message: g.WorkerProgress, echo: str | None) -> None:
        """Pass progress on; there is no answer, only errors."""
        held = self._jobs.get(message.job_id, message.lease)
        answer = await self._reports.progress(held, message)
        if answer is not None:
            await self._reported(held, answer)

    async def _progress_later(self, held: jobs.Held, message: g.WorkerProgress) -> None:
        try:
            await self._reported(held, await self._reports.send(held, message))
        except EmqError as error:
            await self._link.fail(error, message.message_id, job_id=held.job_id)

    async def _reported(self, held: jobs.Held, answer: Answer) -> None:
        self._still_held(held, answer)
        if answer.text("cancel"):
            await self.tell_cancel(held, answer.text("cancel"))

    def _still_held(self, held: jobs.Held, answer: Answer) -> None:
        if answer.outcome == "stale_lease":
            self._jobs.drop(held.job_id, held.token)
        require(answer, f"job {held.job_id}")

    def _ended(self, held: jobs.Held, answer: Answer, *impossible: str) -> None:
        """A report that ends a claim was taken; ``impossible`` states say that the claim had ended otherwise before."""
        self._still_held(held, answer)
        self._jobs.drop(held.job_id, held.token)
        if answer.text("status") in impossible:
            raise Conflict(f"The lease on job {held.job_id} is no longer held.", reason="stale_lease")

    async def executed(self, message: g.JobExecuted, echo: str | None) -> None:
        """The GPU is free: note it, and claim the next job."""
        held = self._jobs.get(message.job_id, message.lease)
        jobs.forget_progress(held)
        answer = await self._worker.call(
            "executed",
            {
                "job": held.job_id,
                "token": held.token,
                "timings": strict.dumps(message.timings),
                "exec_ms": jobs.exec_ms(message.timings),
                "cold": message.cold or None,
                **self._fused(message),
            },
        )
        self._still_held(held, answer)
        await self._link.send(g.JobExecutedAck(job_id=held.job_id), echo)
        await self._after(answer, echo)

    async def complete(self, message: g.WorkerComplete, echo: str | None) -> None:
        """Check the result, complete the job, claim the next one."""
        held = await self._jobs.complete(self._jobs.get(message.job_id, message.lease))
        jobs.forget_progress(held)
        try:
            result = await self._files.checked(held, message.result)
        except EmqError:
            require(await self._worker.call("lease", _ticket(held)), f"job {held.job_id}")
            raise
        answer = await self._worker.call(
            "finish",
            {
                "job": held.job_id,
                "token": held.token,
                "result": result,
                "exec_ms": jobs.exec_ms(message.result.get("timings")),
                "cold": message.cold or None,
                "spans": message.trace.model_dump_json(exclude_none=True) if message.trace else None,
                **self._fused(message),
            },
        )
        self._ended(held, answer, "pending", "failed")
        await self._link.send(g.CompleteJobAck(job_id=held.job_id, status=answer.text("status") or None), echo)
        await self._after(answer, echo)

    async def fail(self, message: g.WorkerFail, echo: str | None) -> None:
        """End the attempt, claim the next job."""
        held = self._jobs.get(message.job_id, message.lease)
        jobs.forget_progress(held)
        answer = await self._worker.call(
            "fail",
            {
                "job": held.job_id,
                "token": held.token,
                "code": message.error.code,
                "error": jobs.error_json(message.error, self._settings.max_result_kb),
                "hand_back": message.hand_back,
                "missing": "\n".join(message.missing),
                "retry": message.retry,
                "spans": message.trace.model_dump_json(exclude_none=True) if message.trace else None,
                **self._fused(message),
            },
        )
        self._ended(held, answer, "completed")
        ack = g.JobFailedAck(
            job_id=held.job_id, status=answer.text("status") or None, will_retry=answer.flag("will_retry")
        )
        await self._link.send(ack, echo)
        await self._after(answer, echo)

    async def release(self, message: g.ReleaseJob, echo: str | None) -> None:
        """Give a job back that has not started."""
        held = self._jobs.get(message.job_id, message.lease)
        answer = await self._worker.call("release", {"job": held.job_id, "token": held.token, "reason": message.reason})
        self._ended(held, answer, "completed", "failed")
        await self._link.send(Ack(job_id=held.job_id), echo)

    async def tell_cancel(self, held: jobs.Held, reason: str) -> None:
        """Tell the worker once to stop a job."""
        if not held.cancel_told:
            held.cancel_told = True
            await self._link.send(g.CancelOrder(job_id=held.job_id, lease=held.token, reason=reason or None))

    async def preview(self, frame: bytes) -> None:
        """Pass a preview on."""
        await self._reports.preview(self._jobs, frame)

    async def show_again(self, job_id: str) -> None:
        """Somebody watches from now on: what was sent last need not be made once more."""
        if (held := self._jobs.find(job_id)) is not None:
            await self._reports.show(held)

    def _lease_s(self, answer: Answer) -> float:
        return answer.number("lease_ms", int(self._settings.lease_s * 1000)) / 1000


def _ticket(held: jobs.Held) -> dict[str, Value | None]:
    return {"job": held.job_id, "attempt": held.attempt, "token": held.token}
