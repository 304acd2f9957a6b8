"""Outputs of jobs over HTTP: workers PUT them with their lease as the ticket, clients GET them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import hdrs, web

from broker.api.serving import send_download, serve_file
from broker.api.tickets import FileAccess, lease_ticket
from broker.api.uploads import ask_later, body, expected_file, go_on
from broker.errors import BadMessage, Forbidden, NotFound, Unauthorized, Unavailable
from broker.files.archive import zipped
from broker.files.outputs import MAX_OUTPUTS, attempt_folder, find_output, parse_name, server_name
from broker.files.store import FileStore, StoredFile
from broker.files.urls import is_signed

STATS_AT_ONCE = 32
FRESH_S = 0.5
"""A lease that was held so short a time ago counts as held."""


@dataclass(frozen=True, slots=True)
class OutputRoutes:
    """The routes of outputs; ``max_bytes`` is the largest file."""

    store: FileStore
    access: FileAccess
    max_bytes: int

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_put(
            "/api/jobs/{job_id}/outputs/{attempt:(?!by-node/)[^/]+}/{slash:/?}{number}/{name:.*}",
            self.put,
            expect_handler=ask_later,
        )
        app.router.add_get("/api/jobs/{job_id}/outputs/{name}", self.get)
        app.router.add_get("/api/jobs/{job_id}/outputs.zip", self.get_all)
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
        folder, label = attempt_folder(tenant, ticket.job_id, attempt), request.match_info["name"]
        if self.store.takes_directly(expected):
            file, url = await self.store.promise(folder, str(number), label=label, expected=expected)
            answer = self._described(file, attempt, number)
            return _sent_on(answer, url) if url else web.json_response(answer)
        await go_on(request)
        file, new = await self.store.put(
            folder, str(number), body(request.content), label=label, expected=expected, before_commit=still_held
        )
        return web.json_response(self._described(file, attempt, number), status=201 if new else 200)

    def _described(self, file: StoredFile, attempt: int, number: int) -> dict[str, Any]:
        answer = {
            "key": file.key,
            "size": file.size,
            "hash": file.hash,
            "content_type": file.content_type,
            "name": server_name(attempt, number, file),
            "filename": file.label,
        }
        return {**answer, "replica": self.store.replica} if self.store.replica else answer

    async def get_all(self, request: web.Request) -> web.StreamResponse:
        """Answer all files of a completed job as one zip."""
        tenant, job_id = await self.access.reader(request), request.match_info["job_id"]
        outputs, record = await self.access.outputs(tenant, job_id)
        if not outputs:
            raise NotFound(f"Job {job_id} has no files; it is {record.text('status')}.")
        files: list[StoredFile] = []
        for start in range(0, len(outputs), STATS_AT_ONCE):
            some = outputs[start : start + STATS_AT_ONCE]
            found = (find_output(self.store, tenant, job_id, output["name"]) for output in some)
            files += await asyncio.gather(*found)
        labels = [str(output.get("filename") or file.label) for output, file in zip(outputs, files, strict=True)]
        at = datetime.fromtimestamp(record.number("finished_at") / 1000, UTC)
        return await send_download(request, "application/zip", f"{job_id}.zip", zipped(self.store, files, labels, at))

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer an output file, or a part of it."""
        tenant = await self.access.reader(request)
        job_id, name = request.match_info["job_id"], request.match_info["name"]
        try:
            file = await find_output(self.store, tenant, job_id, name)
        except NotFound:
            await self._may_come_back(tenant, job_id, name)
            raise
        return await serve_file(request, self.store, file, cross_origin=is_signed(request.query))

    async def _may_come_back(self, tenant: str, job_id: str, name: str) -> None:
        """Raise ``Unavailable`` for a file that a replica stored which is away."""
        parse_name(name)
        outputs, _ = await self.access.outputs(tenant, job_id)
        holders = [str(output["replica"]) for output in outputs if output["name"] == name and output.get("replica")]
        if holders and await self.store.is_away(holders[0]):
            raise Unavailable("The replica that holds this file is away; try again, or ask its operator.")

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


def _sent_on(answer: dict[str, Any], url: str) -> web.Response:
    """Have the sender repeat its PUT at the store itself."""
    return web.json_response(answer, status=307, headers={hdrs.LOCATION: url})
