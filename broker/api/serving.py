"""Answers that are files: one range, entity tags, and headers that let a browser show only what is safe to show."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing

from aiohttp import hdrs, web

from broker.files.names import content_disposition
from broker.files.store import FileStore, StoredFile

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE)
Span = tuple[int, int]
SAFE = {
    hdrs.CACHE_CONTROL: "private, no-cache",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Referrer-Policy": "no-referrer",
}
"""What keeps a file that somebody else made from acting in a reader's browser."""


class Unsatisfiable(Exception):
    """The range lies wholly outside of the file."""


async def serve_file(
    request: web.Request,
    store: FileStore,
    file: StoredFile,
    *,
    cross_origin: bool = False,
    more: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Answer GET or HEAD for ``file``; ``cross_origin`` lets other sites' pages embed it (signed URLs).

    ``more`` are further headers.
    """
    headers = {**_headers(file, cross_origin), **(more or {})}
    if _matches(request.headers.get(hdrs.IF_NONE_MATCH), file.etag):
        return web.Response(status=304, headers=headers)
    if await _goes_direct(request, store, file, headers):
        return web.Response(status=302, headers=headers)
    try:
        span = _wanted(request, file)
    except Unsatisfiable:
        headers[hdrs.CONTENT_RANGE] = f"bytes */{file.size}"
        return web.Response(status=416, headers=headers)
    start, end = span or (0, file.size)
    if span:
        headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/{file.size}"
    response = web.StreamResponse(status=206 if span else 200, headers=headers)
    response.content_length = end - start
    if request.method == hdrs.METH_HEAD:
        await response.prepare(request)
        return response
    async with aclosing(store.read(file, start, end)) as chunks:
        await _send(request, response, chunks)
    return response


async def _goes_direct(request: web.Request, store: FileStore, file: StoredFile, headers: dict[str, str]) -> bool:
    """Whether the reader is to go to the store itself (which ``headers`` then say); the broker's own pages may not."""
    if request.method != hdrs.METH_GET or request.headers.get("Sec-Fetch-Site") == "same-origin":
        return False
    url = await store.direct_url(file)
    if url is None:
        return False
    headers[hdrs.LOCATION] = url
    return True


async def send_download(
    request: web.Request, content_type: str, name: str, chunks: AsyncGenerator[bytes, None]
) -> web.StreamResponse:
    """Answer with something that is made while it is sent, to be saved under ``name``."""
    headers = {
        **SAFE,
        hdrs.CONTENT_TYPE: content_type,
        hdrs.CONTENT_DISPOSITION: content_disposition("attachment", name),
    }
    response = web.StreamResponse(headers=headers)
    async with aclosing(chunks):
        if request.method == hdrs.METH_HEAD:
            await response.prepare(request)
        else:
            await _send(request, response, chunks)
    return response


async def _send(request: web.Request, response: web.StreamResponse, chunks: AsyncIterator[bytes]) -> None:
    """Send the first chunk only once it is there: a file that has gone is still a clean 404 then."""
    first = await anext(chunks, b"")
    await response.prepare(request)
    await response.write(first)
    async for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()


def parse_range(text: str, size: int) -> Span | None:
    """``(start, end)``, end exclusive, of a single byte range (RFC 9110).

    ``None`` means the whole file (no range, one that is malformed, or several: a server may ignore those). Raises
    ``Unsatisfiable``.
    """
    found = _RANGE.fullmatch(text)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start = int(found[1])
        if found[2] and int(found[2]) < start:
            return None
        end = min(int(found[2]) + 1, size) if found[2] else size
    if start >= end:
        raise Unsatisfiable
    return start, end


def _wanted(request: web.Request, file: StoredFile) -> Span | None:
    text = request.headers.get(hdrs.RANGE)
    if text is None or request.method != hdrs.METH_GET:
        return None
    condition = request.headers.get(hdrs.IF_RANGE)
    if condition is not None and condition.strip() != file.etag:
        return None
    return parse_range(text, file.size)


def _matches(condition: str | None, etag: str) -> bool:
    if condition is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return "*" in tags or etag in tags


def _headers(file: StoredFile, cross_origin: bool) -> dict[str, str]:
    return {
        **SAFE,
        **file.headers,
        hdrs.ETAG: file.etag,
        hdrs.ACCEPT_RANGES: "bytes",
        "Cross-Origin-Resource-Policy": "cross-origin" if cross_origin else "same-origin",
    }
