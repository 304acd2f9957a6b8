"""Outputs of jobs over HTTP: workers PUT them with their lease as the ticket, clients GET them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from aiohttp import web

from broker.api.serving import serve_file
from broker.api.tickets import FileAccess, lease_ticket
from broker.api.uploads import body, expected_file
from broker.errors import BadMessage, Forbidden, NotFound, Unauthorized
from broker.files.outputs import MAX_OUTPUTS, attempt_folder, find_output, server_name
from broker.files.store import FileStore
from broker.files.urls import is_signed

FRESH_S = 0.5
"""A lease that was held so short a time ago counts as held."""


@dataclass(frozen=True, slots=True)
class OutputRoutes:
    """The two routes of outputs; ``max_bytes`` is the largest file."""

    store: FileStore
    access: FileAccess
    max_bytes: int

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_put("/api/jobs/{job_id}/outputs/{attempt}/{slash:/?}{number}/{name:.*}", self.put)
        app.router.add_get("/api/jobs/{job_id}/outputs/{name}", self.get)
        app.router.add_get("/api/jobs/{job_id}/outputs/by-node/{node_id}/{index}", self.get_by_node)

    async def put(self, request: web.Request) -> web.Response:
        """Store one file of a running attempt; the same number again replaces it, the same content changes nothing.

        The lease is asked for before the body and, unless that was just now, again after it: a worker that lost the
        job meanwhile leaves nothing.
        """
        ticket = lease_ticket(request)
        if ticket is None:
            raise Unauthorized(
                "Uploading an output needs the job's lease: Authorization: Lease <job>.<attempt>.<token>."
            )
        attempt, number = _index(request, "attempt"), _index(request, "number")
        if ticket.job_id != request.match_info["job_id"] or ticket.attempt != attempt:
            raise Forbidden("The lease is not this job's and attempt's.")
        tenant, limit = await self.access.holder(ticket)
        asked = time.monotonic()

        async def still_held() -> None:
            if time.monotonic() - asked > FRESH_S:
                await self.access.holder(ticket)

        expected = expected_file(request, min(self.max_bytes, limit or self.max_bytes))
        file, new = await self.store.put(
            attempt_folder(tenant, ticket.job_id, attempt),
            str(number),
            body(request.content),
            label=request.match_info["name"],
            expected=expected,
            before_commit=still_held,
        )
        answer = {
            "key": file.key,
            "size": file.size,
            "hash": file.hash,
            "content_type": file.content_type,
            "name": server_name(attempt, number, file),
            "filename": file.label,
        }
        return web.json_response(answer, status=201 if new else 200)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer an output file, or a part of it."""
        tenant = await self.access.reader(request)
        file = await find_output(self.store, tenant, request.match_info["job_id"], request.match_info["name"])
        return await serve_file(request, self.store, file, cross_origin=is_signed(request.query))

    async def get_by_node(self, request: web.Request) -> web.StreamResponse:
        """Answer a file by the node that made it, as ``payload.inputs`` of another job names it."""
        tenant, job_id = await self.access.reader(request), request.match_info["job_id"]
        index = _index(request, "index")
        name = await self.access.output_name(tenant, job_id, request.match_info["node_id"], index)
        file = await find_output(self.store, tenant, job_id, name)
        return await serve_file(request, self.store, file, cross_origin=False)


def _index(request: web.Request, field: str) -> int:
    text = request.match_info[field]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise NotFound("There is no such output.")
    value = int(text)
    if field == "number" and value >= MAX_OUTPUTS:
        raise BadMessage(f"A job has at most {MAX_OUTPUTS} outputs.")
    return value
