"""Clients of every kind at a modest pace, in a process of their own: ``python -m tests.chaos.traffic --url URL``.

Submits alone and in bulk, followers over WebSocket and Server-Sent Events, cancels, delays, downloads, monitors, open
pages and a scraper. Every ten seconds it writes a line of JSON to standard output: what it did and what went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import aiohttp

from broker.client import Client, JobHandle, Preview
from broker.errors import EmqError
from broker.memory import tidied
from broker.trial.simulate import jobs
from tests.chaos.judge import Promise, gaps

SAY_S = 10.0
PAGES = {"fleet": "/", "queue": "/queue", "jobs": "/jobs", "timeline": "/timeline", "failures": "/failures"}


class Traffic:
    """All clients."""

    def __init__(self, client: Client, http: aiohttp.ClientSession, url: str, rate: float, seed: int = 1) -> None:
        self._client, self._http, self._url, self._rate = client, http, url, rate
        self._rng = random.Random(seed)
        self._jobs = jobs(seed)
        self._doing: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        self.wrong: deque[str] = deque(maxlen=50)
        self.waits_ms: deque[float] = deque(maxlen=1000)

    async def run(self) -> None:
        """Go on until cancelled."""
        loops: list[Coroutine[Any, Any, None]] = [self._submit(), self._scrape(), self._say()]
        loops += [self._again("bulk", self._bulk, 20.0)]
        loops += [self._again("tab", partial(self._tab, name), 1.0) for name in PAGES]
        loops += [self._again("monitor", self._monitor, 2.0) for _ in range(3)]
        try:
            await asyncio.gather(*loops)
        finally:
            for task in self._doing:
                task.cancel()

    def report(self) -> dict[str, Any]:
        """What was done so far."""
        p99 = statistics.quantiles(self.waits_ms, n=100)[98] if len(self.waits_ms) > 1 else 0.0
        return {"counts": dict(sorted(self.counts.items())), "submit_p99_ms": round(p99, 1), "wrong": list(self.wrong)}

    async def _say(self) -> None:
        while True:
            await asyncio.sleep(SAY_S)
            print(json.dumps(self.report()), flush=True)

    async def _again(self, what: str, one: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            await self._guarded(what, one())
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * pause_s)

    async def _guarded(self, what: str, one: Awaitable[None]) -> None:
        """Nothing is broken on purpose here, so whatever goes wrong is noted."""
        try:
            await one
            self.counts[what] += 1
        except (EmqError, aiohttp.ClientError, OSError, AssertionError) as error:
            self.wrong.append(f"{what}: {type(error).__name__}: {error}")
            self.counts["wrong"] += 1

    async def _submit(self) -> None:
        ways = ((self._follow, 5), (self._stream, 2), (self._cancel, 1), (self._fetch, 2), (self._leave, 4))
        while True:
            way = self._rng.choices([way for way, _ in ways], [weight for _, weight in ways])[0]
            task = asyncio.create_task(self._guarded(way.__name__.strip("_"), self._one(way)))
            self._doing.add(task)
            task.add_done_callback(self._doing.discard)
            await asyncio.sleep(self._rng.expovariate(self._rate))

    async def _one(self, way: Callable[[JobHandle], Awaitable[None]]) -> None:
        fields, began = next(self._jobs), time.monotonic()
        if self._rng.random() < 0.1:
            fields["delay_s"] = self._rng.uniform(0.5, 3.0)
        job = await self._client.submit(follow=False, **fields)
        self.waits_ms.append((time.monotonic() - began) * 1000)
        await way(job)

    async def _leave(self, job: JobHandle) -> None:
        """Nobody asks for it any more."""

    async def _follow(self, job: JobHandle) -> None:
        promise = Promise(0, job.id, [])
        assert promise.events is not None
        async for event in job.events(previews=self._rng.random() < 0.5):
            if isinstance(event, Preview):
                self.counts["previews"] += 1
            else:
                promise.events.append(event)
        assert not (found := gaps(promise)), found

    async def _stream(self, job: JobHandle) -> None:
        async with self._http.get(f"{self._url}/api/jobs/{job.id}/events", params={"previews": "1"}) as answer:
            assert answer.status in (200, 204), answer.status
            async for _ in answer.content:
                self.counts["lines"] += 1

    async def _cancel(self, job: JobHandle) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 1.0))
        with contextlib.suppress(EmqError):
            await job.cancel("changed my mind")

    async def _fetch(self, job: JobHandle) -> None:
        with contextlib.suppress(EmqError):  # it failed, or was cancelled
            for output in (await job.result()).outputs:
                async with self._http.get(str(output.url)) as answer:
                    assert answer.status == 200, answer.status
                    await answer.read()

    async def _bulk(self) -> None:
        answers = await self._client.submit_many([next(self._jobs) for _ in range(20)])
        assert all(isinstance(answer, JobHandle) for answer in answers), answers

    async def _tab(self, name: str) -> None:
        """Somebody opens a page and looks at it for a while."""
        async with self._http.get(self._url + PAGES[name]) as answer:
            assert answer.status == 200, (name, answer.status)
            await answer.read()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rng.uniform(10, 60)):
                async with self._http.get(f"{self._url}/ui/events", params={"page": name}) as answer:
                    assert answer.status == 200, (name, answer.status)
                    async for _ in answer.content.iter_any():
                        pass

    async def _monitor(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rng.uniform(5, 30)):
                async with self._http.ws_connect(f"{self._url}/ws/monitor/soak") as socket:
                    async for _ in socket:
                        pass

    async def _scrape(self) -> None:
        while True:
            for path in ("/stats", "/health", "/api/workers", "/api/jobs?limit=50"):
                await self._guarded("scrape", self._get(path))
            await asyncio.sleep(15)

    async def _get(self, path: str) -> None:
        async with self._http.get(self._url + path) as answer:
            assert answer.status == 200, (path, answer.status)
            await answer.read()


async def main() -> None:
    """Until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, default=2.0)
    args = parser.parse_args()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
    async with tidied(), aiohttp.ClientSession(timeout=timeout) as http, Client(args.url) as client:
        traffic = Traffic(client, http, args.url, args.rate)
        running = asyncio.ensure_future(traffic.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await running
        print(json.dumps(traffic.report()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
