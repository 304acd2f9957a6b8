"""The requests of a client's socket that have one direct reply, by ``type``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from broker.access.identity import Identity, Scope
from broker.api.errors import frame
from broker.errors import BadMessage, EmqError, UnknownType
from broker.jobs.operations import Operations
from broker.jobs.payloads import message_errors
from broker.protocol import messages as m
from broker.protocol.base import Message, Reply, now_ms

M = TypeVar("M", bound=Message)
Handler = Callable[[Operations, Identity, M], Awaitable[Reply | dict[str, Any]]]

MODELS: dict[str, type[Message]] = {model.model_fields["type"].default: model for model in m.CLIENT_MESSAGES}


def message_id(message: Any) -> str | None:
    """The ``message_id`` to answer with, when the message has a usable one."""
    value = message.get("message_id") if isinstance(message, dict) else None
    return value if isinstance(value, str) and len(value) <= 128 else None


def type_of(message: Any) -> str:
    """The message's type; raises ``BadMessage`` or ``UnknownType``."""
    if not isinstance(message, dict):
        raise BadMessage("A message must be a JSON object with a type.")
    kind = message.get("type")
    if not isinstance(kind, str):
        raise BadMessage("type: every message needs one, for example submit_job.")
    if kind not in MODELS:
        raise UnknownType(f"No message has the type {kind[:64]!r}.", known=sorted(MODELS))
    return kind


def read(model: type[M], message: dict[str, Any]) -> M:
    """The message as its model; raises ``BadMessage``."""
    try:
        return model.model_validate(message)
    except ValidationError as exc:
        raise message_errors(exc) from None


def wire(reply: Reply | dict[str, Any], echo: str | None) -> dict[str, Any]:
    """A reply as it goes out, with the request's ``message_id``."""
    if isinstance(reply, Reply):
        reply.message_id = echo
        return reply.wire()
    return {**reply, "message_id": echo, "timestamp": now_ms()}


def bulk_results(bulk: m.SubmitJobs, outcomes: list[m.JobAccepted | EmqError]) -> list[dict[str, Any]]:
    """One answer a job, in order."""
    return [
        frame(outcome, message_id(job)) if isinstance(outcome, EmqError) else wire(outcome, message_id(job))
        for job, outcome in zip(bulk.jobs, outcomes, strict=True)
    ]


CHANGES = frozenset(
    model.model_fields["type"].default
    for model in (
        m.CancelJob, m.ForceRetryJob, m.RetryDead, m.SetPriority, m.CancelGroup, m.Pause, m.Resume, m.DrainWorker,
    )
)  # fmt: skip
"""Messages that change what is there already; the audit log has them where administrators and people send them."""


async def run(kind: str, message: dict[str, Any], ops: Operations, who: Identity) -> Reply | dict[str, Any]:
    """Do what a message asks; raises ``EmqError``."""
    scope, handler = _HANDLERS[kind]
    who.require(scope)
    return await handler(ops, who, read(MODELS[kind], message))


async def _status(ops: Operations, who: Identity, msg: m.RequestJobStatus) -> dict[str, Any]:
    return {"type": "response_job_status", **await ops.record(msg.job_id, who.tenant)}


async def _list(ops: Operations, who: Identity, msg: m.ListJobs) -> dict[str, Any]:
    return {"type": "job_list", **await ops.list_jobs(listed_tenant(who, msg), msg)}


def listed_tenant(who: Identity, msg: m.ListJobs) -> str:
    """Whose jobs are listed: one's own, or what an administrator names (``*``: everybody's)."""
    if msg.tenant is None or msg.tenant == who.tenant:
        return who.tenant
    who.require(Scope.ADMIN)
    return "" if msg.tenant == "*" else msg.tenant


async def _cancel(ops: Operations, who: Identity, msg: m.CancelJob) -> Reply:
    return await ops.cancel(msg.job_id, who.tenant, msg.reason)


async def _retry(ops: Operations, who: Identity, msg: m.ForceRetryJob) -> Reply:
    return await ops.retry(msg.job_id, who.tenant)


async def _retry_dead(ops: Operations, who: Identity, msg: m.RetryDead) -> Reply:
    return await ops.retry_dead(who.tenant, msg.job_ids)


async def _priority(ops: Operations, who: Identity, msg: m.SetPriority) -> Reply:
    return await ops.set_priority(msg.job_id, who.tenant, msg.priority, msg.front)


async def _cancel_group(ops: Operations, who: Identity, msg: m.CancelGroup) -> Reply:
    return await ops.cancel_group(who.tenant, msg.group, msg.reason)


async def _group(ops: Operations, who: Identity, msg: m.RequestGroup) -> Reply:
    return await ops.group(who.tenant, msg.group)


async def _drain(ops: Operations, who: Identity, msg: m.DrainWorker) -> Reply:
    return await ops.drain(msg.worker_id)


async def _stats(ops: Operations, who: Identity, msg: m.RequestStats) -> dict[str, Any]:
    return {"type": "response_stats", "stats": await ops.stats(who.sees)}


async def _pause(ops: Operations, who: Identity, msg: m.Pause) -> Reply:
    return await pause(ops, who, msg.scope, msg.id, True)


async def _resume(ops: Operations, who: Identity, msg: m.Resume) -> Reply:
    return await pause(ops, who, msg.scope, msg.id, False)


async def pause(ops: Operations, who: Identity, scope: str, target: str | None, on: bool) -> Reply:
    """Pause or resume; a tenant may do so with itself, the rest is an administrator's."""
    if scope == "tenant":
        target = target or who.tenant
    if scope != "tenant" or target != who.tenant:
        who.require(Scope.ADMIN)
    return await ops.pause(scope, target or "", on)


def _handler(model: type[M], scope: Scope, function: Handler[M]) -> tuple[str, tuple[Scope, Handler[Any]]]:
    return cast(str, model.model_fields["type"].default), (scope, function)


_HANDLERS: dict[str, tuple[Scope, Handler[Any]]] = dict([
    _handler(m.RequestJobStatus, Scope.READ, _status),
    _handler(m.ListJobs, Scope.READ, _list),
    _handler(m.RequestStats, Scope.READ, _stats),
    _handler(m.RequestGroup, Scope.READ, _group),
    _handler(m.CancelJob, Scope.SUBMIT, _cancel),
    _handler(m.ForceRetryJob, Scope.SUBMIT, _retry),
    _handler(m.RetryDead, Scope.SUBMIT, _retry_dead),
    _handler(m.SetPriority, Scope.SUBMIT, _priority),
    _handler(m.CancelGroup, Scope.SUBMIT, _cancel_group),
    _handler(m.Pause, Scope.SUBMIT, _pause),
    _handler(m.Resume, Scope.SUBMIT, _resume),
    _handler(m.DrainWorker, Scope.ADMIN, _drain),
])  # fmt: skip
