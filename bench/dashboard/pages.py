"""Every page, asked for in the middle of a load: how long it takes, how large it is."""

from __future__ import annotations

import gzip
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

PATHS = (
    "/", "/?layout=table", "/queue", "/queue?priority=5", "/jobs", "/jobs?q=status:failed", "/jobs?q=model:model0*",
    "/jobs?q=age:<1h", "/jobs/{job}", "/workers", "/workers/gpu-007", "/timeline", "/timeline?span=720", "/failures",
    "/gallery", "/models", "/metrics-view", "/admin", "/help", "/style",
)  # fmt: skip


@dataclass(slots=True)
class Shown:
    """A page that was asked for."""

    path: str
    sent: int = 0
    """Bytes on the wire, compressed as for a browser."""
    bytes: int = 0
    times_ms: list[float] = field(default_factory=list)

    def percentile(self, share: int) -> float:
        """Milliseconds; the slowest of few."""
        ordered = sorted(self.times_ms)
        return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


async def ask_all(http: aiohttp.ClientSession, url: str, job: str, times: int) -> list[Shown]:
    """Each page so many times, in turns, as a browser asks."""
    shown = [Shown(path.format(job=job)) for path in PATHS]
    for _ in range(times):
        for page in shown:
            began = time.monotonic()
            async with http.get(
                url + page.path, headers={"Accept-Encoding": "gzip", "Accept": "text/html"}, auto_decompress=False
            ) as answer:
                body = await answer.read()
                assert answer.status == 200, (page.path, answer.status)
            page.times_ms.append((time.monotonic() - began) * 1000)
            unpacked = gzip.decompress(body) if answer.headers.get("Content-Encoding") == "gzip" else body
            page.sent, page.bytes = max(page.sent, len(body)), max(page.bytes, len(unpacked))
    return shown


def static_files(folder: Path) -> Iterator[str]:
    """What browsers fetch once."""
    for path in sorted([*folder.glob("*.js"), *folder.glob("*.css")]):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()[:12]
        yield f"static/{path.name}: {len(data):,} bytes, {len(gzip.compress(data)):,} gzipped (sha256 {digest}…)"
