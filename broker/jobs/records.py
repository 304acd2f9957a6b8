"""A job's or worker's public record, made from the queue's answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from broker.protocol.base import TERMINAL, JobStatus
from broker.queue.queue import Answer

Deliver = Callable[[str, str, dict[str, Any]], dict[str, Any]]
"""Turns a stored result of a tenant's job into what a client gets: each file with a fresh URL."""

_TIMES = ("created_at", "due_at", "expires_at", "claimed_at", "started_at", "executed_at", "finished_at")


def loads(text: str, default: Any = None) -> Any:
    """JSON that the queue keeps, or ``default`` when there is none."""
    if not text:
        return default
    try:
        return json.loads(text)
    except ValueError:
        return default


def public_result(result: Any, tenant: str, job_id: str, deliver: Deliver) -> Any:
    """A result as a client gets it; ``outputs`` is always there."""
    return deliver(tenant, job_id, result if isinstance(result, dict) else {})


def _time(answer: Answer, name: str) -> int | None:
    return answer.number(name) or None


def _timeout(answer: Answer) -> float | None:
    text = answer.text("timeout_s")
    return float(text) if text else None


def public_job(answer: Answer, deliver: Deliver, *, result: bool = True) -> dict[str, Any]:
    """The flat record of protocol's ``response_job_status`` without its type; ``result=False`` for lists."""
    job_id, tenant = answer.text("job_id"), answer.text("tenant")
    status = JobStatus(answer.text("status"))
    spec = loads(answer.text("spec"), {})
    failures, crashes = answer.number("failures"), answer.number("crashes")
    record: dict[str, Any] = {
        "job_id": job_id,
        "status": status.value,
        "phase": answer.text("phase") or None,
        "job_type": answer.text("job_type", "comfyui"),
        "priority": answer.number("priority"),
        "attempt": answer.number("attempt"),
        "max_attempts": answer.number("max_attempts", 3),
        "failures": failures,
        "crashes": crashes,
        "dead_letter": answer.flag("dead_letter"),
        "crash_log": loads(f"[{answer.text('crash_log')}]", []),
        "round": answer.number("round", 1),
        "worker_id": answer.text("worker_id") or None,
        "position": answer.number("position") or None,
        "position_exact": answer.flag("exact") if answer.text("position") else None,
        "estimated_start": None,
        **_progress(answer, status),
        "result": None,
        "error": loads(answer.text("error")),
        "reason": answer.text("reason") or None,
        "cancel_requested": status not in TERMINAL and "cancel" in answer.pairs,
        "waiting_for": [],
        "metadata": spec.get("metadata"),
        "requirements": spec.get("requirements"),
        "template": spec.get("template"),
        "params": spec.get("params"),
        "models": answer.lines("models"),
        "group": answer.text("group") or None,
        "depends_on": spec.get("depends_on", []),
        "timeout_s": _timeout(answer),
        "tenant": tenant or None,
        **{name: _time(answer, name) for name in _TIMES},
    }
    if not result:
        del record["result"]
    elif status is JobStatus.COMPLETED:
        record["result"] = public_result(loads(answer.text("result")), tenant, job_id, deliver)
    return record


def _progress(answer: Answer, status: JobStatus) -> dict[str, Any]:
    """The latest stored progress, spread over the record's fields."""
    data = loads(answer.text("progress"), {})
    value = 100 if status is JobStatus.COMPLETED else data.get("progress")
    return {
        "progress": value,
        "node": data.get("node"),
        "nodes_done": data.get("nodes_done"),
        "nodes_total": data.get("nodes_total"),
        "eta_s": data.get("eta_s"),
    }
