"""Figures of the queue, groups and workers in their public form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from broker.jobs.records import loads
from broker.protocol.base import ACTIVE, TERMINAL, WAITING, JobStatus
from broker.protocol.messages import GroupDone, GroupStatus
from broker.queue.queue import Answer


def _counts(answer: Answer) -> dict[str, int]:
    return {status.value: answer.number(status.value) for status in JobStatus}


def public_stats(answer: Answer) -> dict[str, Any]:
    """The body of ``response_stats.stats``."""
    jobs = _counts(answer)
    return {
        "jobs": jobs,
        "queued": sum(jobs[status] for status in WAITING),
        "running": sum(jobs[status] for status in ACTIVE),
        "depth_by_priority": _depth(answer.lines("depth")),
        "oldest_wait_ms": answer.number("oldest_ms") or None,
        "oldest_job_id": answer.text("oldest_job") or None,
        "workers": _workers(answer),
        "totals": _totals(answer),
        "estimates": _estimates(answer),
        "dead": answer.number("dead"),
        "failed_last_hour": answer.number("failed_hour") if "failed_hour" in answer.pairs else None,
        "paused": answer.flag("paused"),
    }


def _depth(lines: list[str]) -> dict[str, int]:
    """Waiting jobs by priority, the highest first; levels without any are left out."""
    pairs = (line.split(" ") for line in lines)
    levels = {int(level): int(float(count)) for level, count in pairs}
    return {str(level): levels[level] for level in sorted(levels, reverse=True) if levels[level]}


def _totals(answer: Answer) -> dict[str, int]:
    names = [name for name in answer.pairs if name.endswith("_total") and not name.startswith("est_")]
    return {name.removesuffix("_total"): answer.number(name) for name in names}


def _estimates(answer: Answer) -> dict[str, int]:
    """How good the predictions of starts were."""
    return {
        "total": answer.number("est_total"),
        "within_p50": answer.number("est_within_p50_total"),
        "within_p90": answer.number("est_within_p90_total"),
    }


def _workers(answer: Answer) -> dict[str, int]:
    """Live workers by state, and all of them as ``total``."""
    if "workers" not in answer.pairs:
        return {}
    names = sorted(name for name in answer.pairs if name.startswith("workers_"))
    return {"total": answer.number("workers")} | {name.removeprefix("workers_"): answer.number(name) for name in names}


def group_figures(group: str, answer: Answer) -> GroupStatus:
    """A group's answer."""
    jobs = _counts(answer)
    total = sum(jobs.values())
    ended = sum(jobs[status] for status in TERMINAL)
    progress = round(100 * ended / total, 1) if total else 0.0
    return GroupStatus(group=group, total=total, jobs=jobs, done=0 < total == ended, progress=progress)


def group_summary(group: str, answer: Answer) -> GroupDone:
    """What subscribers hear when a group's last open job has ended."""
    figures = group_figures(group, answer)
    return GroupDone(group=group, total=figures.total, jobs=figures.jobs, ended=answer.number("ended"))


def public_worker(answer: Answer, sees: str = "") -> dict[str, Any]:
    """A worker's public record. ``sees``: jobs of other tenants are left out (needs ``emq_workers`` with ``jobs``)."""
    own = {row.text("job_id") for row in answer.rows if row.text("tenant") == sees}
    held = [_held(line) for line in answer.lines("held")]
    info = loads(answer.text("info"), {})
    gone = answer.text("gone") != ""
    return {
        "worker_id": answer.text("worker_id") or answer.outcome,
        "machine_id": answer.text("machine") or info.get("machine_id"),
        "status": "offline" if gone else answer.text("status", "idle"),
        "paused": answer.flag("paused"),
        "draining": answer.flag("drain"),
        "via": answer.text("via") or None,
        "jobs": [job for job in held if not sees or job["job_id"] in own],
        "gpus": _gpus(info.get("gpus"), loads(answer.text("gpus"))),
        "loaded_models": answer.lines("loaded"),
        "version": info.get("version"),
        "comfyui_version": info.get("comfyui_version"),
        "manager_version": info.get("manager_version") or None,
        "manager_security": info.get("manager_security") or None,
        "python_version": _text(info.get("python_version")),
        "torch_version": _text(info.get("torch_version")),
        "gpu_count": number(info.get("gpu_count")),
        "labels": _labels(info.get("labels")),
        "supported_job_types": _texts(info.get("supported_job_types")),
        "tags": _texts(info.get("tags")),
        "simulated": info.get("simulated") is True,
        "slots": answer.number("slots", 1),
        "last_heartbeat": answer.number("beat") or None,
        "registered_at": answer.number("registered_at") or None,
    }


def _text(told: Any) -> str | None:
    return told if isinstance(told, str) and told else None


def _texts(told: Any) -> list[str]:
    return [each for each in told if isinstance(each, str)] if isinstance(told, list) else []


def _labels(told: Any) -> dict[str, str]:
    pairs = told.items() if isinstance(told, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}


def _gpus(registered: Any, now: Any) -> list[dict[str, Any]]:
    """What a worker told of its GPUs when it registered (name, VRAM), with what its last heartbeat says of each."""
    told: list[Any] = registered if isinstance(registered, list) else []
    latest: list[Any] = now if isinstance(now, list) else []
    pairs: zip_longest[tuple[Any, Any]] = zip_longest(told, latest, fillvalue={})
    return [{**known, **fresh} for known, fresh in pairs if isinstance(known, dict) and isinstance(fresh, dict)]


def _held(line: str) -> dict[str, str]:
    job_id, _, phase = line.partition(" ")
    return {"job_id": job_id, "phase": phase}


def working(answer: Answer) -> dict[str, Any]:
    """A worker's public record with ``doing``: what it does with each of its jobs (``emq_workers`` with ``jobs``).

    ``record`` is all of it but what its jobs do.
    """
    worker = public_worker(answer)
    worker["gpus"] = shown_gpus(worker)
    return {**worker, "record": worker, "doing": [Doing.of(row).shown for row in answer.rows]}


@dataclass(frozen=True, slots=True)
class Doing:
    """What a worker does with one job."""

    job_id: bytes
    held: tuple[bytes | None, ...]
    """What is told of the job, all but how far it is."""
    shown: dict[str, Any]
    """Its state, since when, and how far it is."""

    @classmethod
    def of(cls, row: Answer, before: Doing | None = None) -> Doing:
        """From a row of ``emq_workers``; ``before``: what it was, of which most is so still."""
        held = tuple(map(row.pairs.get, _HELD))
        fixed = before.shown if before is not None and before.held == held else _fixed(row)
        known = loads(row.text("progress"), {})
        known = known if isinstance(known, dict) else {}
        shown = {
            **fixed,
            "progress": number(known.get("progress")),
            "node": shown_node(known.get("node")),
            "nodes_done": number(known.get("nodes_done")),
            "nodes_total": number(known.get("nodes_total")),
        }
        return cls(row.pairs["job_id"], held, shown)


_HELD = (
    "status", "phase", "tenant", "attempt", "priority", "claimed_at", "started_at", "models", "class", "run_ms",
)  # fmt: skip


def _fixed(row: Answer) -> dict[str, Any]:
    return {
        "job_id": row.text("job_id"),
        "status": row.text("status"),
        "phase": row.text("phase") or "running",
        "tenant": row.text("tenant"),
        "attempt": row.number("attempt"),
        "priority": row.number("priority"),
        "claimed_at": row.number("claimed_at") or None,
        "started_at": row.number("started_at") or None,
        "expected_ms": float(row.text("run_ms") or 0) or None,
        "models": row.lines("models"),
        "class": row.text("class"),
    }


def number(value: Any) -> float | None:
    """A finite number that a worker told; ``None`` for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def shown_node(told: Any) -> dict[str, Any] | None:
    """The node that a worker says it executes, with every field there."""
    if not isinstance(told, dict):
        return None
    step, most = number(told.get("value")), number(told.get("max"))
    return {"id": told.get("id"), "class_type": told.get("class_type"), "value": step or 0, "max": most}


def shown_gpus(worker: dict[str, Any]) -> list[dict[str, Any]]:
    """A worker's GPUs with every field there."""
    numbers = ("vram_mb", "vram_free_mb", "utilisation")
    return [
        {"name": str(gpu.get("name") or "GPU"), **{name: number(gpu.get(name)) for name in numbers}}
        for gpu in worker["gpus"]
    ]


def waiting_job(row: Answer) -> dict[str, Any]:
    """One job of ``emq_waiting``."""
    return {
        "job_id": row.text("job_id"),
        "tenant": row.text("tenant"),
        "priority": row.number("priority"),
        "created_at": row.number("created_at") or None,
        "attempt": row.number("attempt"),
        "group": row.text("group") or None,
        "models": row.lines("kind"),
        "run_ms": row.number("run_ms") or None,
        "workers": row.number("workers"),
        "held": row.text("held") or None,
    }
