"""``/jobs/{job_id}``: everything about one job."""

from __future__ import annotations

import json
import shlex
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiohttp import web

from broker.api.services import Services
from broker.dashboard.frame import PAGES, Page, View, add_page
from broker.dashboard.job_files import deliveries, inputs
from broker.dashboard.previews import PREVIEWS
from broker.errors import NotFound
from broker.jobs.figures import number, shown_node
from broker.jobs.payloads import decode_payload
from broker.jobs.records import loads
from broker.protocol.base import TERMINAL, now_ms
from broker.queue.subscription import Event

MOST_NODES = 200
MOST_EVENTS = 60
KEPT = 256
MOST_TEXT = 60_000
"""Characters of a workflow that the page shows."""
_STEPS = (
    ("waited", "created_at", "claimed_at"),
    ("started", "claimed_at", "started_at"),
    ("executed", "started_at", "executed_at"),
    ("stored", "executed_at", "finished_at"),
)


def add_to(app: web.Application) -> None:
    """Register the page."""
    add_page(app, Page("job", "/jobs/{job_id}", "Job", "job.html", partial(read, app, Graphs())))


async def read(app: web.Application, graphs: Graphs, parts: Services, view: View) -> dict[str, Any]:
    """The record, what was submitted, the events, and what follows from them."""
    job_id, ops = view.get("job_id"), parts.operations
    job = await ops.record(job_id, view.sees)
    for name in ("progress", "nodes_done", "nodes_total", "eta_s"):
        job[name] = number(job[name])
    log = await parts.streams.hub.read_log(job_id)
    graph, payload = await graphs.of(parts, job, view)
    text = json.dumps(payload, indent=1, ensure_ascii=False) if payload is not None else ""
    return {
        "job": job,
        "now": now_ms() // 5000 * 5000,
        "steps": timeline(job, now_ms()),
        "nodes": nodes(job, graph.nodes),
        "events": [told(event) for event in reversed(log.events[-MOST_EVENTS:])],
        "attempts": attempts(log.events),
        "preview": app[PREVIEWS].version(job_id) if job["status"] == "processing" else None,
        "workflow": text[:MOST_TEXT],
        "cut": len(text) > MOST_TEXT,
        "curl": curl(view.address, job, payload),
        "inputs": graph.inputs,
        "outputs": outputs(job["result"], app[PAGES].addresses.steady),
        "deliveries": deliveries(await ops.queue.deliveries(job_id, view.sees)) if graph.hooked else [],
        "ended": job["status"] in TERMINAL,
    }


def timeline(job: dict[str, Any], now: int) -> list[dict[str, Any]]:
    """How long each part of the job's way took; the one that goes on has no end."""
    ended = job["status"] in TERMINAL
    out = []
    for index, (word, start, _) in enumerate(_STEPS):
        begin = job[start]
        if begin is None or (index and begin < (job["created_at"] or 0)):
            continue
        later = [job[name] for _, _, name in _STEPS[index:] if job[name] and job[name] >= begin]
        finish = min(later, default=job["finished_at"] if ended else None)
        out.append({"word": word, "start": begin, "end": finish, "ms": (finish or now) - begin})
    longest = max((step["ms"] for step in out), default=0) or 1
    for step in out:
        step["share"] = max(1, round(100 * step["ms"] / longest))
        if step["end"] is None:
            step["ms"], step["share"] = None, 100
    return out


def outputs(result: Any, address: Callable[[str], str] = str) -> list[dict[str, Any]]:
    """The files of a result, with every field there; a worker may have told anything."""
    told = result.get("outputs") if isinstance(result, dict) else None
    shown = []
    for output in told if isinstance(told, list) else ():
        if isinstance(output, dict) and isinstance(output.get("url"), str):
            fields = {name: output.get(name) for name in ("node_id", "kind", "filename", "size", "text", "url")}
            shown.append({**fields, "filename": str(fields["filename"] or "file"), "url": address(output["url"])})
    return shown


@dataclass(frozen=True, slots=True)
class Graph:
    """What stays the same of what a job was submitted with."""

    nodes: list[dict[str, str]] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    hooked: bool = False
    """Whether a webhook is told of the job."""


class Graphs:
    """The workflows of the jobs that are open: a page that is open shows nothing else of what was submitted."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, str], Graph] = OrderedDict()

    async def of(self, parts: Services, job: dict[str, Any], view: View) -> tuple[Graph, Any]:
        """A job's graph, and its payload where it is read (``None``: it is not, or has gone)."""
        name = job["job_id"], view.sees, view.tenant
        if view.live and name in self._known:
            return self._known[name], None
        try:
            stored = await parts.operations.queue.payload(job["job_id"], view.sees)
        except NotFound:
            return Graph(), None
        payload = decode_payload(stored.pairs.get("payload", b"{}"))
        hooked = bool(loads(stored.text("spec"), {}).get("webhook_url"))
        graph = Graph(_nodes(payload), inputs(payload, own=job["tenant"] == view.tenant), hooked)
        self._known[name] = graph
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return graph, payload


def _nodes(payload: Any) -> list[dict[str, str]]:
    """The workflow's nodes."""
    graph = payload.get("workflow") if isinstance(payload, dict) else None
    out = []
    for node_id, node in list(graph.items())[:MOST_NODES] if isinstance(graph, dict) else ():
        meta = node.get("_meta")
        out.append({
            "id": node_id,
            "class": str(node.get("class_type", "")),
            "title": str(meta.get("title", "")) if isinstance(meta, dict) else "",
            "inputs": _inputs(node.get("inputs")),
        })  # fmt: skip
    return out


def nodes(job: dict[str, Any], graph: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The nodes, with the one that runs and the one that failed marked."""
    failed, now = (
        (job["error"] or {}).get("node_id"),
        shown_node(job["node"]) if job["status"] == "processing" else None,
    )
    out = []
    for node in graph:
        state = "failed" if node["id"] == failed else "processing" if now and node["id"] == now["id"] else ""
        if job["status"] == "completed":
            state = "completed"
        out.append({**node, "state": state, "step": now if state == "processing" else None})
    return out


def _inputs(inputs: Any) -> str:
    """A node's own values in one line; what comes from other nodes is left out."""
    own = inputs.items() if isinstance(inputs, dict) else ()
    shown = [f"{name}={str(value)[:60]}" for name, value in own if not isinstance(value, list | dict)]
    return ", ".join(shown)[:200]


def told(event: Event) -> dict[str, Any]:
    """One event in a line."""
    data = event.data
    error = data.get("error")
    error = error if isinstance(error, dict) else {}
    words = [
        data.get("status"), f"attempt {data['attempt']}" if data.get("attempt") else "", data.get("worker_id"),
        data.get("reason"), error.get("code"), error.get("message"), "retried" if data.get("will_retry") else "",
    ]  # fmt: skip
    return {"n": event.n, "type": event.type, "text": " · ".join(str(word) for word in words if word)}


def attempts(events: list[Event]) -> list[dict[str, Any]]:
    """Each claim: by whom, and how it ended."""
    out: list[dict[str, Any]] = []
    for event in events:
        data = event.data
        status = data.get("status")
        if event.type == "job_update" and status == "claimed":
            out.append({"attempt": data.get("attempt"), "worker_id": data.get("worker_id"), "end": "", "error": None})
        elif out and event.type == "fail_job":
            out[-1] |= {"end": "retried" if data.get("will_retry") else "failed", "error": data.get("error")}
        elif (
            out
            and event.type == "job_update"
            and not out[-1]["end"]
            and status in ("pending", "completed", "cancelled")
        ):
            out[-1]["end"] = data.get("reason") or status
    return out


def curl(address: str, job: dict[str, Any], payload: Any) -> str:
    """A command that submits the same job again."""
    if payload is None:
        return ""
    body: dict[str, Any] = {"payload": payload, "priority": job["priority"]}
    for name in ("requirements", "metadata", "group"):
        if job[name]:
            body[name] = job[name]
    text = json.dumps(body, ensure_ascii=False)
    if len(text) > MOST_TEXT:
        return ""
    head = f"curl -X POST {shlex.quote(address + '/api/jobs')} -H 'Content-Type: application/json' "
    return head + '-H "Authorization: Bearer $EMQ_API_KEY" -d ' + shlex.quote(text)
