"""The client: what one does with a queue, as methods."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote

import aiohttp
from blake3 import blake3

from broker.client.errors import BrokerUnreachable, refusal
from broker.client.feed import Listener
from broker.client.job import JobHandle
from broker.client.link import Link, Message
from broker.errors import EmqError
from broker.protocol.messages import JobAccepted
from broker.protocol.records import Job, Output, Stats, Worker

CHUNK = 1 << 16
AWAY = frozenset({502, 503, 504})
"""Answers of a proxy or broker that has nobody to ask: nothing was done."""


class Client:
    """A queue behind ``url`` (a broker, or a proxy before several), as the tenant of ``key``.

    ``patience_s``: how long a call goes on while no broker can be reached. Use it as a context manager.
    """

    def __init__(self, url: str, key: str | None = None, *, patience_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._patience_s = patience_s

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers=self._headers)
        self._link = Link(self._http, f"{self.url}/ws", self._patience_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()
        await self._http.close()

    # -- submitting ---------------------------------------------------------------------------------------------------

    async def submit(self, workflow: Message | None = None, *, follow: bool = True, **fields: Any) -> JobHandle:
        """Submit a workflow in ComfyUI's API format, or a whole ``payload``; ``fields`` are those of ``submit_job``.

        ``template`` (``name`` or ``name@version``) with ``params`` takes the place of a workflow.
        Without an ``idempotency_key`` one is drawn, so that a lost answer cannot make two jobs. ``follow`` has its
        events sent at once; without it they are asked for when somebody wants them. Raises the broker's refusal.
        """
        message = _submission(workflow, fields) | {"type": "submit_job", "subscribe": follow}
        message.setdefault("idempotency_key", secrets.token_hex(16))

        def accepted(reply: Message) -> None:
            if follow and reply.get("job_id"):
                self._link.follow(reply["job_id"])

        reply = await self._link.ask(message, accepted)
        return JobHandle(self, reply["job_id"], JobAccepted.model_validate(reply))

    async def submit_many(self, jobs: Sequence[Message], group: str | None = None) -> list[JobHandle | EmqError]:
        """Submit up to 1,000 jobs (fields of ``submit_job`` each) in one message; one answer each, in order."""
        prepared = [{"idempotency_key": secrets.token_hex(16), **job, "subscribe": False} for job in jobs]
        reply = await self._link.ask({"type": "submit_jobs", "jobs": prepared, "group": group})
        return [
            refusal(one) if one["type"] == "error" else JobHandle(self, one["job_id"], JobAccepted.model_validate(one))
            for one in reply["results"]
        ]

    async def try_submit(self, workflow: Message | None = None, **fields: Any) -> Message:
        """What a submit would say (``dry_run``), as the broker answers it."""
        message = _submission(workflow, fields) | {"type": "submit_job", "dry_run": True}
        return await self._link.ask(message)

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def handle(self, job_id: str) -> JobHandle:
        """A job that was submitted elsewhere or before."""
        return JobHandle(self, job_id)

    async def job(self, job_id: str) -> Job:
        """A job's record. Raises ``NotFound``."""
        return Job.model_validate(await self.request("GET", f"/api/jobs/{quote(job_id, safe='')}"))

    async def jobs(self, *, limit: int = 100, **filters: Any) -> AsyncIterator[Job]:
        """The jobs that every filter of ``list_jobs`` matches, newest first, page by page."""
        cursor = None
        while True:
            page = await self.request("GET", "/api/jobs", limit=limit, cursor=cursor, **filters)
            for job in page["jobs"]:
                yield Job.model_validate(job)
            cursor = page["next_cursor"]
            if cursor is None:
                return

    async def cancel(self, job_id: str, reason: str = "") -> None:
        """Ask for a job's end. Raises ``NotFound``, and ``Conflict`` when it has ended."""
        await self.request("POST", f"/api/jobs/{quote(job_id, safe='')}/cancel", {"reason": reason})

    async def retry(self, job_id: str) -> None:
        """Start a new round of a job that has ended."""
        await self.request("POST", f"/api/jobs/{quote(job_id, safe='')}/retry", {})

    async def set_priority(self, job_id: str, priority: int) -> None:
        """Move a waiting job: -100 to 100, higher first."""
        await self.request("POST", f"/api/jobs/{quote(job_id, safe='')}/priority", {"priority": priority})

    async def listen(self, job_id: str, after: str | None = None, previews: bool = False) -> Listener:
        """What :meth:`JobHandle.events` iterates; close it when done."""
        return await self._link.listen(job_id, after, previews)

    # -- the fleet ----------------------------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        """The queue's figures."""
        return Stats.model_validate(await self.request("GET", "/stats"))

    async def workers(self) -> list[Worker]:
        """The fleet."""
        return [Worker.model_validate(one) for one in (await self.request("GET", "/api/workers"))["workers"]]

    async def pause(self, scope: str = "pool", name: str | None = None) -> None:
        """Hand out no more jobs of the pool, a tenant, or to a worker."""
        await self.request("POST", "/api/pause", {"scope": scope, "id": name})

    async def resume(self, scope: str = "pool", name: str | None = None) -> None:
        """Undo :meth:`pause`."""
        await self.request("POST", "/api/resume", {"scope": scope, "id": name})

    # -- files --------------------------------------------------------------------------------------------------------

    async def upload(self, file: Path) -> str:
        """Store an input file, unless the broker has it; the answer (``blake3:…``) is an ``asset`` of ``inputs``."""
        name = await asyncio.to_thread(_hash, file)
        if not await self._has(name):
            await self._call("PUT", f"/api/assets/{name}", file, params={"filename": file.name})
        return name

    async def _has(self, asset: str) -> bool:
        """Whether the broker says that a file is there; it may not, to a key that is for submitting alone."""
        try:
            async with self._http.head(f"{self.url}/api/assets/{asset}") as response:
                return response.status < 400
        except aiohttp.ClientError:
            return False

    async def save(self, outputs: Sequence[Output], folder: Path) -> list[Path]:
        """Download outputs into a folder, each under its own name (numbered when that is taken)."""
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        return [await self._save(output, folder) for output in outputs if output.url]

    async def _save(self, output: Output, folder: Path) -> Path:
        path = free_name(folder, output.filename)
        with path.open("xb") as file:
            try:
                await self._download(absolute(self.url, output.url or ""), file)
            except BaseException:
                path.unlink()
                raise
        return path

    async def _download(self, url: str, file: BinaryIO) -> None:
        """Write what a URL gives; a connection that breaks is followed by another, for the rest."""
        clock = asyncio.get_running_loop().time
        end, pause, tag = clock() + self._patience_s, 0.1, ""
        while True:
            rest = {"Range": f"bytes={file.tell()}-", "If-Range": tag} if tag and file.tell() else {}
            try:
                async with self._http.get(url, headers=rest) as response:
                    if response.status >= 400 and (response.status not in AWAY or clock() >= end):
                        raise await _refused(response)
                    if response.status < 400:
                        tag = await _receive(response, file)
                        async for chunk in response.content.iter_chunked(CHUNK):
                            file.write(chunk)
                            end, pause = clock() + self._patience_s, 0.1
                        return
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                if clock() >= end:
                    raise BrokerUnreachable(f"{url} cannot be read: {error}") from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    async def request(self, method: str, path: str, body: Message | None = None, **query: Any) -> Any:
        """One HTTP request and its JSON answer; for what has no method here. Raises the broker's refusal.

        It is repeated while no broker can be reached (or one answers ``unavailable``: nothing was done then).
        """
        params = {name: str(value) for name, value in query.items() if value is not None}
        return await self._call(method, path, json=body, params=params)

    async def _call(self, method: str, path: str, file: Path | None = None, **options: Any) -> Any:
        clock = asyncio.get_running_loop().time
        end, pause = clock() + self._patience_s, 0.1
        while True:
            body: dict[str, Any] = {"data": file.open("rb")} if file is not None else {}
            try:
                async with self._http.request(method, self.url + path, **options, **body) as response:
                    if response.status < 400:
                        return await _json(response)
                    if response.status not in AWAY or clock() >= end:
                        raise await _refused(response)
            except aiohttp.ClientConnectionError as error:
                # A request that was sent may have been done: only what bears it is repeated then.
                repeatable = method in ("GET", "PUT") or isinstance(error, aiohttp.ClientConnectorError)
                if not repeatable or clock() >= end:
                    raise BrokerUnreachable(f"The broker at {self.url} cannot be reached: {error}") from None
            except (aiohttp.InvalidURL, ValueError) as error:
                raise BrokerUnreachable(f"{self.url} is not the URL of a broker: {error}") from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)


def absolute(base: str, url: str) -> str:
    """Where an output is: its URL as it stands, or, where it is a path, below the broker's."""
    return f"{base}{url}" if url.startswith("/") else url


async def _receive(response: aiohttp.ClientResponse, file: BinaryIO) -> str:
    """Make a file ready for what comes, which may be the rest of it; the tag by which the rest may be asked for."""
    if response.status != 206:
        file.seek(0)
        file.truncate()
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else ""


def free_name(folder: Path, label: str) -> Path:
    """A new file's path in ``folder``, close to what an output calls itself."""
    name = re.sub(r"[^\w.\- ]", "_", Path(label).name).lstrip(".") or "output"
    path, number = folder / name, 1
    while path.exists():
        path, number = folder / f"{Path(name).stem}-{number}{Path(name).suffix}", number + 1
    return path


def _submission(workflow: Message | None, fields: dict[str, Any]) -> Message:
    given = {name: value for name, value in fields.items() if value is not None}
    if workflow is not None:
        given["payload"] = {"workflow": workflow, **given.get("payload", {})}
    named = {name: given.pop(name) for name in ("template", "params") if name in given}
    if named:
        given["payload"] = {**named, **given.get("payload", {})}
    return given


def _hash(file: Path) -> str:
    return f"blake3:{blake3(max_threads=1).update_mmap(file).hexdigest()}"


async def _json(response: aiohttp.ClientResponse) -> Any:
    text = await response.text()
    try:
        return json.loads(text) if text else None
    except ValueError:
        raise BrokerUnreachable(f"{response.url} answers {response.status}, not JSON: is this EMQ?") from None


async def _refused(response: aiohttp.ClientResponse) -> EmqError:
    body = await _json(response)
    if not isinstance(body, dict):
        return BrokerUnreachable(f"{response.url} answers {response.status}: is this EMQ?")
    return refusal(body)
