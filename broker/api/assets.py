"""Input files over HTTP: content-addressed by blake3, so that a file travels once for each tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import BodyPartReader, web

from broker.api.serving import serve_file
from broker.api.tickets import FileAccess
from broker.api.uploads import Pace, body, expected_file, parse_hash
from broker.errors import BadMessage
from broker.files.meter import Expected
from broker.files.objects import CHUNK
from broker.files.outputs import tenant_folder
from broker.files.store import FileStore, StoredFile

MAX_PARTS = 100


@dataclass(frozen=True, slots=True)
class AssetRoutes:
    """The routes of input files; ``max_bytes`` is the largest one."""

    store: FileStore
    access: FileAccess
    max_bytes: int
    charge: Callable[[str, int], Awaitable[None]]
    """Counts bytes that a tenant uploads; raises ``RateLimited``."""

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_put("/api/assets/{hash}", self.put)
        app.router.add_get("/api/assets/{hash}", self.get)
        app.router.add_post("/api/assets", self.post)

    async def put(self, request: web.Request) -> web.Response:
        """Store a file under its hash: 201 when it is new, 200 when it is known, 409 when the content has another."""
        tenant = await self.access.writer(request)
        wanted = parse_hash(request.match_info["hash"])
        announced = expected_file(request, self.max_bytes)
        expected = Expected(announced.limit, announced.size, wanted)
        label = request.query.get("filename", "file")
        sent = body(request.content)
        if not await self._announced(tenant, request):
            sent = self._counted(tenant, sent)
        file, new = await self.store.put(tenant_folder(tenant), None, sent, label=label, expected=expected)
        return web.json_response(_described(file), status=201 if new else 200)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer a file that this tenant has uploaded."""
        tenant = await self.access.reader(request)
        digest = parse_hash(request.match_info["hash"]).removeprefix("blake3:")
        file = await self.store.stat(f"{tenant_folder(tenant)}/{digest}")
        return await serve_file(request, self.store, file)

    async def post(self, request: web.Request) -> web.Response:
        """Store the files of a multipart form; the answer describes each one, in order, under ``assets``."""
        tenant = await self.access.writer(request)
        if not request.content_type.startswith("multipart/"):
            raise BadMessage("Send the files as multipart/form-data, or PUT one to /api/assets/<blake3>.")
        expected_file(request, self.max_bytes * MAX_PARTS)
        known = await self._announced(tenant, request)
        files: list[StoredFile] = []
        any_new = False
        pace = Pace(request.content)
        async for part in _file_parts(request, pace):
            if len(files) == MAX_PARTS:
                raise BadMessage(f"A form may have at most {MAX_PARTS} files; the first {MAX_PARTS} were kept.")
            file, new = await self.store.put(
                tenant_folder(tenant),
                None,
                _chunks(part, pace) if known else self._counted(tenant, _chunks(part, pace)),
                label=part.filename or "file",
                expected=Expected(self.max_bytes),
            )
            files.append(file)
            any_new = any_new or new
        if not files:
            raise BadMessage("The form has no file.")
        answer = {**_described(files[0]), "assets": [_described(file) for file in files]}
        return web.json_response(answer, status=201 if any_new else 200)

    async def _announced(self, tenant: str, request: web.Request) -> bool:
        """Count what the headers announce; ``False``: they do not say."""
        if request.content_length is None:
            return False
        await self.charge(tenant, request.content_length)
        return True

    async def _counted(self, tenant: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            await self.charge(tenant, len(chunk))
            yield chunk


async def _file_parts(request: web.Request, pace: Pace) -> AsyncIterator[BodyPartReader]:
    """The parts of a form that have a file name."""
    with _well_formed():
        reader = await request.multipart()
        while (part := await pace.next(reader.next())) is not None:
            if isinstance(part, BodyPartReader) and part.filename is not None:
                yield part


async def _chunks(part: BodyPartReader, pace: Pace) -> AsyncIterator[bytes]:
    with _well_formed():
        while chunk := await pace.next(part.read_chunk(CHUNK)):
            yield bytes(chunk)


@contextmanager
def _well_formed() -> Iterator[None]:
    """Around reading a form; raises ``BadMessage`` for what is none."""
    try:
        yield
    except (ValueError, web.RequestPayloadError, ConnectionError) as error:
        raise BadMessage("The multipart form ended early or is malformed.") from error


def _described(file: StoredFile) -> dict[str, Any]:
    return {
        "asset": file.hash,
        "hash": file.hash,
        "size": file.size,
        "content_type": file.content_type,
        "filename": file.label,
    }
