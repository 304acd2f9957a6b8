"""What lets a request at a file: a signed URL, a job's lease, or a credential."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import hdrs, web

from broker.errors import Conflict, NotFound, Unauthorized
from broker.files.urls import UrlSigner, is_signed
from broker.jobs.records import loads
from broker.queue.queue import Answer, Queue

_LEASE = re.compile(r"Lease +([A-Za-z0-9_-]{1,128})\.([1-9][0-9]{0,8})\.([\x21-\x7e]{1,128})", re.IGNORECASE)
_FILES = re.compile(r"/api/(jobs/[^/]+/outputs(/.+|\.zip)|assets/[^/]+)")

_BETWEEN_REPLICAS = re.compile(r"/internal/files/.+")

Authorise = Callable[[web.Request, str], str]
"""Answers the tenant of a request's credential if it has the scope; raises ``Unauthorized`` or ``Forbidden``."""


@dataclass(frozen=True, slots=True)
class LeaseTicket:
    """The holder of a job's lease may write this attempt's outputs and read the tenant's files."""

    job_id: str
    attempt: int
    token: str

    @property
    def header(self) -> str:
        """The ticket as an ``Authorization`` header."""
        return f"Lease {self.job_id}.{self.attempt}.{self.token}"


def lease_ticket(request: web.Request) -> LeaseTicket | None:
    """The lease that a request brings, ``None`` when it brings none; raises ``Unauthorized`` for a malformed one."""
    header = request.headers.get(hdrs.AUTHORIZATION, "")
    if header[:6].lower() != "lease ":
        return None
    found = _LEASE.fullmatch(header.strip())
    if found is None:
        raise Unauthorized("The Authorization header must be: Lease <job>.<attempt>.<token>.")
    return LeaseTicket(found[1], int(found[2]), found[3])


def brings_ticket(request: web.Request) -> bool:
    """Whether a request is for a file and brings a signature or a lease, which its handler checks.

    Such a request needs no credential.
    """
    if _BETWEEN_REPLICAS.fullmatch(request.path) is not None:
        return is_signed(request.query)
    if _FILES.fullmatch(request.path) is None:
        return False
    reads = request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
    has_lease = request.headers.get(hdrs.AUTHORIZATION, "")[:6].lower() == "lease "
    return has_lease or (reads and is_signed(request.query))


class FileAccess:
    """Finds the tenant that a request may read or write for."""

    def __init__(self, queue: Queue, signer: UrlSigner, authorise: Authorise) -> None:
        self._queue = queue
        self._signer = signer
        self._authorise = authorise

    async def holder(self, ticket: LeaseTicket) -> tuple[str, int | None]:
        """Tenant of the job whose lease is held, and its limit in bytes, if any; raises ``Conflict``."""
        answer = await self._queue.lease(ticket.job_id, ticket.attempt, ticket.token)
        return answer.text("tenant"), answer.number("max_bytes") or None

    async def reader(self, request: web.Request) -> str:
        """The tenant whose files a request may read."""
        if is_signed(request.query):
            return self._signer.verify(request.path, request.query)
        ticket = lease_ticket(request)
        if ticket is not None:
            return (await self.holder(ticket))[0]
        return self._authorise(request, "read")

    async def outputs(self, tenant: str, job_id: str) -> tuple[list[dict[str, Any]], Answer]:
        """The files that a job's result names (none before its end), and its record; raises ``NotFound``."""
        answer = await self._queue.job(job_id, tenant)
        result = loads(answer.text("result"), {})
        outputs = result.get("outputs") if isinstance(result, dict) else None
        listed = outputs if isinstance(outputs, list) else []
        return [o for o in listed if isinstance(o, dict) and isinstance(o.get("name"), str)], answer

    async def output_name(self, tenant: str, job_id: str, node_id: str, index: int) -> str:
        """The name of the ``index``-th file that a node of a completed job made; raises ``NotFound``."""
        outputs, answer = await self.outputs(tenant, job_id)
        made = [output for output in outputs if str(output.get("node_id")) == node_id]
        if index < len(made):
            return str(made[index]["name"])
        state = answer.text("status")
        what = f"its node {node_id[:64]} made {len(made)} files" if state == "completed" else f"it is {state}"
        raise NotFound(f"Job {job_id} has no file {index} of node {node_id[:64]}: {what}.")

    async def writer(self, request: web.Request) -> str:
        """The tenant whose input files a request may add."""
        ticket = lease_ticket(request)
        if ticket is not None:
            raise Conflict("A lease lets a worker upload outputs only.", reason="not_an_output")
        return self._authorise(request, "submit")
