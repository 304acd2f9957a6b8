"""The same operations over HTTP: same field names, same error codes, statuses of ``broker/errors.py``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from aiohttp import web

from broker.access.identity import Identity, Scope, current
from broker.api import commands, sse
from broker.api.errors import dumps, response
from broker.api.services import services
from broker.api.streams import wished_px
from broker.errors import BadMessage, EmqError
from broker.jobs import listing, strict
from broker.jobs.operations import Operations
from broker.protocol import messages as m
from broker.protocol.base import Message, Reply

M = TypeVar("M", bound=Message)
BODY_S = 60.0


def add_to(app: web.Application) -> None:
    """Register the routes of jobs, groups, workers, figures and health."""
    app.add_routes([
        web.post("/api/jobs", submit),
        web.get("/api/jobs", list_jobs),
        web.get("/api/jobs/{job_id}", show_job),
        web.delete("/api/jobs/{job_id}", delete),
        web.post("/api/jobs/{job_id}/cancel", cancel),
        web.post("/api/jobs/{job_id}/retry", retry),
        web.post("/api/jobs/{job_id}/priority", priority),
        web.get("/api/jobs/{job_id}/events", sse.events),
        web.get("/api/jobs/{job_id}/preview", preview),
        web.get("/api/dead", list_dead),
        web.post("/api/dead/retry", retry_dead),
        web.get("/api/groups/{group}", show_group),
        web.post("/api/groups/{group}/cancel", cancel_group),
        web.get("/api/workers", list_workers),
        web.get("/api/workers/{worker_id}", show_worker),
        web.post("/api/workers/{worker_id}/pause", pause_worker),
        web.post("/api/workers/{worker_id}/resume", resume_worker),
        web.post("/api/workers/{worker_id}/drain", drain_worker),
        web.post("/api/pause", pause),
        web.post("/api/resume", resume),
        web.get("/stats", stats),
        web.get("/health", health),
        web.get("/health/live", live),
    ])  # fmt: skip


def answer(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response."""
    return web.json_response(body, status=status, headers=headers, dumps=dumps)


def asks(request: web.Request, scope: Scope) -> tuple[Operations, Identity]:
    """Operations and the identity of a request that needs ``scope``."""
    return services(request).operations, current(request).require(scope)


@contextlib.asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Around reading a whole body; raises ``BadMessage`` when its sender takes longer than a minute, or leaves."""
    try:
        async with asyncio.timeout(BODY_S):
            yield
    except TimeoutError:
        raise BadMessage(f"The body did not arrive within {BODY_S:g} seconds; send it again.") from None
    except (web.RequestPayloadError, ConnectionError):
        raise BadMessage("The body ended early; send it again.") from None


async def read_body(request: web.Request) -> bytes:
    """The whole body; raises ``BadMessage`` when it does not come in time."""
    async with in_time():
        return await request.read()


async def read_json(request: web.Request, *, empty: bool = False) -> dict[str, Any]:
    """The body as an object; raises ``BadJson``, ``BadMessage``. ``empty`` lets no body pass as ``{}``."""
    raw = await read_body(request)
    if empty and not raw.strip():
        return {}
    body = strict.parse(raw)
    if not isinstance(body, dict):
        raise BadMessage("The body must be a JSON object.")
    return body


async def read_message(request: web.Request, model: type[M], **fields: Any) -> M:
    """The body (may be empty) as a message, with the fields that the address names."""
    body = await read_json(request, empty=True)
    return commands.read(model, {**body, "type": model.model_fields["type"].default, **fields})


def _ack(reply: Reply, message: Message | None = None) -> web.Response:
    return answer(commands.wire(reply, message.message_id if message else None))


async def submit(request: web.Request) -> web.Response:
    """Submit a job (201, or 200 for one that is known already), or many with ``{"jobs": […]}``."""
    ops, who = asks(request, Scope.SUBMIT)
    body = await read_json(request)
    echo = commands.message_id(body)
    trace = {"traceparent": header[:256]} if (header := request.headers.get("traceparent")) else {}
    try:
        if "jobs" in body and "payload" not in body:
            return await _submit_many(ops, who, body, echo, trace)
        key = request.headers.get("Idempotency-Key")
        if key is not None:
            body.setdefault("idempotency_key", key)
        accepted = await ops.submitter.submit(
            who.tenant, {**trace, **body, "type": body.get("type", "submit_job")}, key_id=who.key_id
        )
    except EmqError as error:
        return response(error, echo)
    fresh = not accepted.duplicate and not accepted.dry_run
    reply = answer(commands.wire(accepted, echo), 201 if fresh else 200)
    if accepted.job_id:
        reply.headers["Location"] = f"/api/jobs/{accepted.job_id}"
    return reply


async def _submit_many(
    ops: Operations, who: Identity, body: dict[str, Any], echo: str | None, trace: dict[str, str]
) -> web.Response:
    bulk = commands.read(m.SubmitJobs, {**body, "type": "submit_jobs"})
    jobs = [{**trace, **job} for job in bulk.jobs] if trace else bulk.jobs
    outcomes = await ops.submitter.submit_many(who.tenant, jobs, bulk.group, key_id=who.key_id)
    return answer(commands.wire(m.JobsAccepted(results=commands.bulk_results(bulk, outcomes)), echo))


async def list_jobs(request: web.Request) -> web.Response:
    """A page of jobs, newest first; ``metadata[name]=value`` among the filters."""
    ops, who = asks(request, Scope.READ)
    msg = commands.read(m.ListJobs, listing.from_query(request.query))
    return answer(await ops.list_jobs(commands.listed_tenant(who, msg), msg))


async def list_dead(request: web.Request) -> web.Response:
    """A page of dead letters with their evidence, newest first; the filters of a listing."""
    ops, who = asks(request, Scope.READ)
    msg = commands.read(m.ListJobs, {**listing.from_query(request.query), "dead": True})
    return answer(await ops.list_jobs(commands.listed_tenant(who, msg), msg))


async def retry_dead(request: web.Request) -> web.Response:
    """Replay dead letters: all, or ``{"job_ids": […]}``."""
    ops, who = asks(request, Scope.SUBMIT)
    msg = await read_message(request, m.RetryDead)
    return _ack(await ops.retry_dead(who.tenant, msg.job_ids), msg)


async def show_job(request: web.Request) -> web.Response:
    """A job's public record."""
    ops, who = asks(request, Scope.READ)
    return answer(await ops.record(request.match_info["job_id"], who.tenant))


async def cancel(request: web.Request) -> web.Response:
    """Cancel a job; ``{"reason"}`` is optional."""
    ops, who = asks(request, Scope.SUBMIT)
    msg = await read_message(request, m.CancelJob, job_id=request.match_info["job_id"])
    return _ack(await ops.cancel(msg.job_id, who.tenant, msg.reason), msg)


async def delete(request: web.Request) -> web.Response:
    """Forget a job that has ended, and remove its files."""
    ops, who = asks(request, Scope.SUBMIT)
    return _ack(await ops.delete(request.match_info["job_id"], who.tenant))


async def retry(request: web.Request) -> web.Response:
    """Start a new round of a job that has ended."""
    ops, who = asks(request, Scope.SUBMIT)
    msg = await read_message(request, m.ForceRetryJob, job_id=request.match_info["job_id"])
    return _ack(await ops.retry(msg.job_id, who.tenant), msg)


async def priority(request: web.Request) -> web.Response:
    """Move a waiting job: ``{"priority"}`` or ``{"front": true}``."""
    ops, who = asks(request, Scope.SUBMIT)
    msg = await read_message(request, m.SetPriority, job_id=request.match_info["job_id"])
    return _ack(await ops.set_priority(msg.job_id, who.tenant, msg.priority, msg.front), msg)


async def preview(request: web.Request) -> web.Response:
    """The job's latest preview (a picture, a text or a sound), 204 when there is none."""
    ops, who = asks(request, Scope.READ)
    job_id = request.match_info["job_id"]
    await ops.queue.job(job_id, who.tenant)
    found = await services(request).streams.picture(job_id, wished_px(request.query.get("px")))
    if found is None:
        return web.Response(status=204)
    return web.Response(body=found.image, content_type=found.content_type, headers={"Cache-Control": "no-store"})


async def show_group(request: web.Request) -> web.Response:
    """A group's figures."""
    ops, who = asks(request, Scope.READ)
    return _ack(await ops.group(who.tenant, request.match_info["group"]))


async def cancel_group(request: web.Request) -> web.Response:
    """Cancel every job of a group that has not ended."""
    ops, who = asks(request, Scope.SUBMIT)
    msg = await read_message(request, m.CancelGroup, group=request.match_info["group"])
    return _ack(await ops.cancel_group(who.tenant, msg.group, msg.reason), msg)


async def list_workers(request: web.Request) -> web.Response:
    """The fleet; of the jobs that it runs, a tenant is told its own."""
    ops, who = asks(request, Scope.READ)
    return answer({"workers": await ops.workers(who.sees)})


async def show_worker(request: web.Request) -> web.Response:
    """One worker."""
    ops, who = asks(request, Scope.READ)
    return answer(await ops.worker(request.match_info["worker_id"], who.sees))


async def pause_worker(request: web.Request) -> web.Response:
    """Hand no more jobs to a worker."""
    ops, _ = asks(request, Scope.ADMIN)
    return _ack(await ops.pause("worker", request.match_info["worker_id"], True))


async def resume_worker(request: web.Request) -> web.Response:
    """Undo a worker's pause and drain."""
    ops, _ = asks(request, Scope.ADMIN)
    return _ack(await ops.pause("worker", request.match_info["worker_id"], False))


async def drain_worker(request: web.Request) -> web.Response:
    """Let a worker finish what it has and take nothing new."""
    ops, _ = asks(request, Scope.ADMIN)
    return _ack(await ops.drain(request.match_info["worker_id"]))


async def pause(request: web.Request) -> web.Response:
    """Pause the pool, a tenant or a worker: ``{"scope", "id"}``."""
    ops, who = asks(request, Scope.SUBMIT)
    msg = await read_message(request, m.Pause)
    return _ack(await commands.pause(ops, who, msg.scope, msg.id, True), msg)


async def resume(request: web.Request) -> web.Response:
    """Undo a pause."""
    ops, who = asks(request, Scope.SUBMIT)
    msg = await read_message(request, m.Resume)
    return _ack(await commands.pause(ops, who, msg.scope, msg.id, False), msg)


async def stats(request: web.Request) -> web.Response:
    """The queue's figures."""
    ops, who = asks(request, Scope.READ)
    return answer(await ops.stats(who.sees))


async def health(request: web.Request) -> web.Response:
    """200 only while Redis answers and the queue's functions are loaded."""
    parts = services(request)
    found = await parts.health()
    good = found.redis and found.functions
    body = {
        "status": "ok" if good else "unavailable",
        "redis": "ok" if found.redis else "unavailable",
        "version": parts.version,
        "uptime_s": round(time.monotonic() - parts.started, 1),
        "detail": found.detail or None,
    }
    return answer(body, 200 if good else 503)


async def live(request: web.Request) -> web.Response:
    """200 while this process lives."""
    parts = services(request)
    uptime = round(time.monotonic() - parts.started, 1)
    return answer({"status": "ok", "version": parts.version, "uptime_s": uptime})
