"""Input files: fetched, checked, put into ComfyUI's input folder by the hash of their content, named in the graph."""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import ipaddress
import os
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import aiohttp
from aiohttp.resolver import ThreadedResolver

from .files import CHUNK, lease_ticket
from .queue import Claimed, Failure, QueueAway

MAX_BYTES = 4 << 30
REDIRECTS = 5
TRIES = 3
EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")
TYPES = {
    "image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif", "video/mp4": ".mp4",
    "video/webm": ".webm", "audio/mpeg": ".mp3", "audio/wav": ".wav", "audio/x-wav": ".wav", "audio/flac": ".flac",
    "audio/ogg": ".ogg", "model/gltf-binary": ".glb",
}  # fmt: skip


class InputUnavailable(Exception):
    """An input file cannot be had; carries what the job fails with."""

    def __init__(self, place: str, message: str, retry: bool = True, code: str = "input_unavailable") -> None:
        super().__init__(message)
        self.failure = Failure(code, f"Input {place}: {message}", details={"input": place}, retry=retry)


class _PublicOnly(ThreadedResolver):
    """Resolves names to public addresses only, so that a name cannot lead into the worker's own network."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        found = await super().resolve(host, port, family)
        allowed = [each for each in found if ipaddress.ip_address(each["host"].split("%")[0]).is_global]
        if not allowed:
            raise OSError(f"{host} is no public address")
        return allowed


class Inputs:
    """Fetches the files that jobs name."""

    def __init__(self, brokers: Callable[[str], Sequence[str]], folder: Callable[[], str]) -> None:
        self._brokers, self._folder = brokers, folder
        self.policy = "public"
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        """Close connections."""
        for session in self._sessions.values():
            await session.close()

    async def place(self, job: Claimed, graph: dict[str, Any], wanted: Mapping[str, Any]) -> None:
        """Fetch every file of ``payload.inputs`` and name it in the graph.

        Raises:
            InputUnavailable: a file is not to be had.
        """
        for place, source in wanted.items():
            node, _, name = str(place).partition(".")
            inputs = graph.get(node, {}).get("inputs")
            if not name or not isinstance(inputs, dict) or not isinstance(source, Mapping):
                raise InputUnavailable(place, "it is not node_id.input_name of this workflow.", retry=False)
            inputs[name] = await self._fetch(job, place, source)

    async def _fetch(self, job: Claimed, place: str, source: Mapping[str, Any]) -> str:
        for attempt in range(TRIES):
            try:
                return await self._fetch_once(job, place, source)
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, QueueAway) as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise InputUnavailable(place, f"{error}.", code="worker_disk_full") from error
                if attempt + 1 == TRIES:
                    raise InputUnavailable(place, f"{error or type(error).__name__}.") from error
                await asyncio.sleep(0.3 * 2**attempt)
        raise AssertionError("unreachable")

    async def _fetch_once(self, job: Claimed, place: str, source: Mapping[str, Any]) -> str:
        label = str(source.get("filename") or "")
        if "base64" in source:
            return await self._store(_one(_decoded(place, source["base64"])), _ending(label, ""), None)
        if "asset" in source:
            digest = str(source["asset"]).removeprefix("blake3:").lower()
            return await self._from_broker(job, place, f"/api/assets/{quote(digest)}", label, digest)
        if "output" in source:
            path = _output_path(place, source["output"])
            return await self._from_broker(job, place, path, label, None)
        if "url" in source:
            return await self._from_web(place, str(source["url"]), label)
        raise InputUnavailable(place, "it names neither url, asset, base64 nor output.", retry=False)

    # -- where files come from ----------------------------------------------------------------------------------------

    async def _from_broker(self, job: Claimed, place: str, path: str, label: str, digest: str | None) -> str:
        headers = {"Authorization": job.uploads.authorization if job.uploads else lease_ticket(job)}
        brokers = self._brokers(job.pool)
        if not brokers:
            raise QueueAway("no broker has told its address")
        known = self._known(digest, _ending(label, "")) if digest else None
        if known:
            return known
        async with self._session(False).get(f"{brokers[0].rstrip('/')}{path}", headers=headers) as response:
            if response.status in (404, 409) and response.content_type == "application/json":
                reason = (await response.json()).get("error")
                raise InputUnavailable(place, str(reason), retry=False)
            return await self._take(place, response, label, digest)

    async def _from_web(self, place: str, url: str, label: str) -> str:
        if self.policy == "off":
            raise InputUnavailable(place, "this queue takes no URLs (EMQ_INPUT_URLS is off).", retry=False)
        for _ in range(REDIRECTS + 1):
            self._check(place, url)
            async with self._session(self.policy != "any").get(url, allow_redirects=False) as response:
                target = response.headers.get("Location")
                if response.status not in (301, 302, 303, 307, 308) or not target:
                    return await self._take(place, response, label or urlsplit(url).path, None)
                url = urljoin(url, target)
        raise InputUnavailable(place, f"more than {REDIRECTS} redirects.", retry=False)

    def _check(self, place: str, url: str) -> None:
        """Refuse a URL that the queue's policy does not allow. Names are judged once they are resolved."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputUnavailable(place, "only http and https URLs are fetched.", retry=False)
        if self.policy.startswith("allow:"):
            if parts.hostname.lower() not in {host.strip().lower() for host in self.policy[6:].split(",")}:
                raise InputUnavailable(place, f"host {parts.hostname} is not on this queue's list.", retry=False)
            return
        try:
            address = ipaddress.ip_address(parts.hostname)
        except ValueError:
            return
        if self.policy != "any" and not address.is_global:
            raise InputUnavailable(place, f"{parts.hostname} is no public address.", retry=False)

    def _session(self, public: bool) -> aiohttp.ClientSession:
        public = public and self.policy == "public"
        if public not in self._sessions:
            connector = aiohttp.TCPConnector(resolver=_PublicOnly()) if public else aiohttp.TCPConnector()
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
            self._sessions[public] = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._sessions[public]

    async def _take(self, place: str, response: aiohttp.ClientResponse, label: str, digest: str | None) -> str:
        if response.status != 200:
            final = 400 <= response.status < 500 and response.status not in (408, 429)
            raise InputUnavailable(place, f"HTTP {response.status}.", retry=not final)
        ending = _ending(label, response.content_type)
        return await self._store(response.content.iter_chunked(CHUNK), ending, digest)

    # -- the input folder ---------------------------------------------------------------------------------------------

    def _known(self, digest: str, ending: str) -> str | None:
        name = f"emq_{digest}{ending}"
        return name if ending and os.path.isfile(os.path.join(self._folder(), name)) else None

    async def _store(self, pieces: AsyncIterator[bytes], ending: str, digest: str | None) -> str:
        """Write a file under its hash; the name that goes into the graph."""
        from blake3 import blake3

        loop, hasher, size = asyncio.get_running_loop(), blake3(), 0
        os.makedirs(self._folder(), exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=".emq_", dir=self._folder())
        try:
            with os.fdopen(handle, "wb") as file:
                async for piece in pieces:
                    size += len(piece)
                    if size > MAX_BYTES:
                        raise OSError("the file is too large")
                    hasher.update(piece)
                    await loop.run_in_executor(None, file.write, piece)
            if digest is not None and hasher.hexdigest() != digest:
                raise OSError("the content has another hash")
            name = f"emq_{hasher.hexdigest()}{ending}"
            os.replace(part, os.path.join(self._folder(), name))
        except BaseException:
            os.unlink(part)
            raise
        return name


def _ending(label: str, content_type: str) -> str:
    found = EXTENSION.search(label)
    return found.group().lower() if found else TYPES.get(content_type, "")


def _decoded(place: str, text: Any) -> bytes:
    try:
        return base64.b64decode(str(text).partition("base64,")[2] or str(text), validate=True)
    except (binascii.Error, ValueError):
        raise InputUnavailable(place, "it is not base64.", retry=False) from None


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _output_path(place: str, output: Any) -> str:
    """Where the broker has another job's output, by the node that made it."""
    if not isinstance(output, Mapping) or not output.get("job_id") or not output.get("node_id"):
        raise InputUnavailable(place, "an output is named by job_id, node_id and index.", retry=False)
    job, node = (quote(str(output[name]), safe="") for name in ("job_id", "node_id"))
    return f"/api/jobs/{job}/outputs/by-node/{node}/{int(output.get('index') or 0)}"
