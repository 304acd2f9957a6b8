"""``/openapi.json``: the HTTP interface, generated from the models of the wire contract."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from broker.api.openapi_schemas import QUERY, REF, body_schemas, path_schema
from broker.api.services import services
from broker.protocol import access
from broker.protocol import gateway as g
from broker.protocol import messages as m
from broker.protocol import records as r
from broker.protocol import templates as t
from broker.protocol import webhooks as w

ERRORS = {
    400: "The request is not what the contract says.",
    401: "No credential, or one that is not valid.",
    403: "The credential or the origin does not allow this.",
    404: "There is no such thing, or it is another tenant's.",
    409: "The thing is in a state that does not allow this.",
    413: "Too large.",
    429: "Too many requests, or the queue is full.",
    503: "Redis is away; nothing was accepted.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path; ``media`` is the answer's type when it is not JSON, ``also`` are further statuses."""

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    status: int = 200
    query: tuple[str, ...] = ()
    media: str = "application/json"
    also: tuple[int, ...] = ()
    sends: tuple[str, ...] = ()
    """Media types of a body that is a file."""


ALSO = {
    204: "There is none.",
    206: "The range that was asked for.",
    302: "The file is in the store; go there.",
    304: "It is the one that the client has.",
    416: "The range lies outside of the file.",
}
FILE = (206, 302, 304, 416)
LIST_QUERY = (
    "status", "limit", "cursor", "worker", "error", "model", "group", "since", "until", "age_s", "dead", "tenant",
    "metadata[name]",
)  # fmt: skip

OPERATIONS: tuple[Operation, ...] = (
    Operation("post", "/api/jobs", 'Submit a job, or many with {"jobs": […]}', m.SubmitJob, m.JobAccepted, 201),
    Operation("get", "/api/jobs", "The newest jobs", None, m.JobList, query=LIST_QUERY),
    Operation("get", "/api/jobs/{job_id}", "A job", None, r.Job),
    Operation("delete", "/api/jobs/{job_id}", "Forget a job that has ended, with its files", None, m.Ack),
    Operation("post", "/api/jobs/{job_id}/cancel", "Cancel a job", m.CancelJob, m.Ack),
    Operation("post", "/api/jobs/{job_id}/retry", "Start a new round of an ended job", m.ForceRetryJob, m.Ack),
    Operation("post", "/api/jobs/{job_id}/priority", "Move a waiting job", m.SetPriority, m.Ack),
    Operation(
        "get",
        "/api/jobs/{job_id}/events",
        "A job's events",
        query=("after", "previews", "px"),
        media="text/event-stream",
    ),
    Operation(
        "get",
        "/api/jobs/{job_id}/preview",
        "The latest preview; 204: none",
        query=("px",),
        media="image/*",
        also=(204,),
    ),
    Operation("get", "/api/jobs/{job_id}/outputs/{name}", "An output file", media="*/*", also=FILE),
    Operation("get", "/api/jobs/{job_id}/outputs.zip", "All outputs of a job", media="application/zip"),
    Operation(
        "get",
        "/api/jobs/{job_id}/outputs/by-node/{node_id}/{index}",
        "An output file by the node that made it",
        media="*/*",
        also=FILE,
    ),
    Operation("get", "/api/jobs/{job_id}/webhooks", "A job's webhook deliveries", None, w.DeliveryList),
    Operation("post", "/api/jobs/{job_id}/webhooks/redeliver", "Deliver once more", w.Redeliver, status=202),
    Operation("get", "/api/webhooks/secret", "What webhooks are signed with", None, w.WebhookSecret),
    Operation("post", "/api/webhooks/secret/rotate", "Draw another secret", None, w.WebhookSecret),
    Operation(
        "get",
        "/api/dead",
        "Dead letters with their evidence",
        None,
        m.JobList,
        query=tuple(name for name in LIST_QUERY if name != "dead"),
    ),
    Operation("post", "/api/dead/retry", "Replay dead letters", m.RetryDead, m.Ack),
    Operation("get", "/api/groups/{group}", "A group's figures", None, m.GroupStatus),
    Operation("post", "/api/groups/{group}/cancel", "Cancel a group", m.CancelGroup, m.Ack),
    Operation("get", "/api/workers", "The fleet"),
    Operation("get", "/api/workers/{worker_id}", "A worker", None, r.Worker),
    Operation("post", "/api/workers/{worker_id}/pause", "Hand a worker no more jobs", None, m.Ack),
    Operation("post", "/api/workers/{worker_id}/resume", "Undo a worker's pause and drain", None, m.Ack),
    Operation("post", "/api/workers/{worker_id}/drain", "Let a worker finish what it has", None, m.Ack),
    Operation("post", "/api/workers/{worker_id}/gone", "Say that a worker's process has died", g.WorkerGone, m.Ack),
    Operation("post", "/api/pause", "Pause the pool, a tenant or a worker", m.Pause, m.Ack),
    Operation("post", "/api/resume", "Undo a pause", m.Resume, m.Ack),
    Operation(
        "put",
        "/api/assets/{hash}",
        "Store an input file under its blake3 hash",
        status=201,
        query=("filename",),
        sends=("application/octet-stream",),
    ),
    Operation("get", "/api/assets/{hash}", "An input file", media="*/*", also=FILE),
    Operation("post", "/api/assets", "Store the files of a multipart form", status=201, sends=("multipart/form-data",)),
    Operation("get", "/api/templates", "The tenant's templates and the shared ones", None, t.TemplateList),
    Operation("get", "/api/templates/{template}", "A template's version, or its latest", None, t.Template),
    Operation(
        "put",
        "/api/templates/{template}",
        "Store a version of a template",
        t.PutTemplate,
        t.TemplateStored,
        201,
        query=("shared",),
        sends=("image/png", "image/webp"),
    ),
    Operation(
        "delete", "/api/templates/{template}", "Remove a version or all", None, t.TemplatesRemoved, query=("shared",)
    ),
    Operation(
        "post",
        "/api/templates/{template}/test",
        "What a job with these parameters would run",
        t.TestTemplate,
        t.BoundTemplate,
    ),
    Operation("get", "/api/keys", "Every API key", None, access.KeyList),
    Operation("post", "/api/keys", "Make an API key; this answer alone has it", access.NewKey, access.MadeKey, 201),
    Operation("delete", "/api/keys/{key_id}", "Revoke a key", None, access.KeyRecord),
    Operation("post", "/api/keys/{key_id}/rotate", "Give a key another secret", access.RotateKey, access.MadeKey),
    Operation("get", "/api/users", "Every person who may log in", None, access.UserList),
    Operation("post", "/api/users", "Add a person", access.NewUser, access.UserRecord, 201),
    Operation("delete", "/api/users/{user}", "Remove a person", None, access.UserRecord),
    Operation("post", "/api/users/{user}/password", "Change a password", access.NewPassword, access.UserRecord),
    Operation("get", "/api/tenants", "Every tenant and its limits", None, access.TenantList),
    Operation("get", "/api/tenants/{tenant}", "A tenant's limits and what it has", None, access.Tenant),
    Operation("put", "/api/tenants/{tenant}", "Set a tenant's limits", access.TenantPolicy, access.Tenant),
    Operation("get", "/api/audit", "Who did what", None, access.AuditPage, query=("limit", "before")),
    Operation("post", "/api/tickets", "A ticket for one connection of a browser", None, access.Ticket, 201),
    Operation("get", "/stats", "The queue's figures", None, r.Stats),
    Operation("get", "/metrics", "Figures for Prometheus", media="text/plain"),
    Operation("get", "/health", "Whether the queue works", None, r.Health),
    Operation("get", "/health/live", "Whether this process lives"),
)


def add_to(app: web.Application) -> None:
    """Register the route."""
    app.router.add_get("/openapi.json", show)


async def show(request: web.Request) -> web.Response:
    """The document."""
    return web.json_response(document(services(request).version))


def document(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "EMQ", "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _schemas() -> dict[str, Any]:
    bodies: dict[type[BaseModel], set[str]] = {}
    for op in OPERATIONS:
        if op.body:
            # The address says which message it is; a submit's type may stand there, but then it must be right.
            own: set[str] = set() if op.body is m.SubmitJob else {"type"}
            bodies[op.body] = own | set(re.findall(r"{(\w+)}", op.path))
    bodies[m.SubmitJobs] = {"type"}
    answers: set[type[BaseModel]] = {op.answer for op in OPERATIONS if op.answer} | {r.ErrorBody, m.JobsAccepted}
    modes: list[tuple[type[BaseModel], Any]] = [(model, "serialization") for model in sorted(answers, key=_name)]
    _, found = models_json_schema(modes, ref_template=REF)
    return {**found["$defs"], **body_schemas(bodies)}


def _name(model: type[BaseModel]) -> str:
    return model.__name__


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}


def _operation(op: Operation) -> dict[str, Any]:
    result: dict[str, Any] = {
        "summary": op.summary,
        "operationId": re.sub(r"\W+", "_", f"{op.method}{op.path}").strip("_"),
        "responses": _responses(op),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": path_schema(name)}
        for name in re.findall(r"{(\w+)}", op.path)
    ]
    parameters += [{"name": name, "in": "query", "required": False, "schema": QUERY[name]} for name in op.query]
    if parameters:
        result["parameters"] = parameters
    if op.body or op.sends:
        result["requestBody"] = _request(op)
    return result


def _responses(op: Operation) -> dict[str, Any]:
    content = {op.media: {"schema": _ref(op.answer) if op.answer else {}}}
    found: dict[str, Any] = {str(op.status): {"description": "Done.", "content": content}}
    if op.status == 201:
        found["200"] = {"description": "Known already.", "content": content}
    if op.body is m.SubmitJob:
        either = {"anyOf": [_ref(m.JobAccepted), _ref(m.JobsAccepted)]}
        found["200"] = {
            "description": "Known already, a dry run, or many jobs.", "content": {op.media: {"schema": either}},
        }  # fmt: skip
    found |= {str(status): {"description": ALSO[status]} for status in op.also}
    body = {"application/json": {"schema": _ref(r.ErrorBody)}}
    return found | {str(status): {"description": text, "content": body} for status, text in ERRORS.items()}


def _request(op: Operation) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"file": {"type": "array", "items": file, "minItems": 1}}}
    content: dict[str, Any] = {
        media: {"schema": {**form, "required": ["file"]} if media.startswith("multipart") else file}
        for media in op.sends
    }
    required = bool(op.sends)
    if op.body:
        schema: dict[str, Any] = _ref(op.body)
        if op.body is m.SubmitJob:
            schema = {"anyOf": [schema, _ref(m.SubmitJobs)]}
        content = {"application/json": {"schema": schema, **_example(op.body)}, **content}
        addressed = {*re.findall(r"{(\w+)}", op.path)}
        required = any(field.is_required() and n not in addressed for n, field in op.body.model_fields.items())
    return {"required": required, "content": content}


def _example(body: type[BaseModel]) -> dict[str, Any]:
    """A body to start from, where one is not obvious."""
    if body not in (m.SubmitJob, t.PutTemplate):
        return {}
    size = {"width": 64, "height": 64, "batch_size": 1, "color": 255}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "example"}},
    }
    return {"example": {"payload": {"workflow": graph}} if body is m.SubmitJob else {"workflow": graph}}
