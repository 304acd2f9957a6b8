"""Between replicas without a common store: one reads, or removes, files on another's disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from broker.api.serving import serve_file
from broker.errors import NotFound
from broker.files.replicas import FILE_HEADER, ReplicatedStore
from broker.files.store import FileStore
from broker.files.urls import UrlSigner


@dataclass(frozen=True, slots=True)
class InternalRoutes:
    """The routes for other replicas, which sign each request."""

    stores: Mapping[str, FileStore]
    signer: UrlSigner

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_get("/internal/files/{area}/{key:.+}", self.get)
        app.router.add_delete("/internal/files/{area}/{key:.+}", self.delete)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer a file of this replica's own disk, with all that is known of it."""
        store = self._store(request, "HEAD" if request.method == "HEAD" else "GET")
        file = await store.stat_here(request.match_info["key"])
        return await serve_file(request, store, file, more={FILE_HEADER: file.document().decode()})

    async def delete(self, request: web.Request) -> web.Response:
        """Remove a folder from this replica's own disk."""
        await self._store(request, "DELETE").delete_folder(request.match_info["key"])
        return web.Response(status=204)

    def _store(self, request: web.Request, method: str) -> ReplicatedStore:
        self.signer.verify(request.path, request.query, method=method)
        store = self.stores.get(request.match_info["area"])
        if not isinstance(store, ReplicatedStore):
            raise NotFound("There is no such file.")
        return store
