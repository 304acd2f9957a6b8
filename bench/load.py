"""``python -m bench load``: submits through NGINX (``deploy/nginx.conf``) and two brokers on one Redis."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.server import server
from bench.site import MOST_CPU, machine, site
from bench.stack import until
from bench.targets import Target, print_targets

WORKFLOW = {"1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}}
SOCKETS = 20


@dataclass
class Run:
    """What one load did: from when a message was due to its answer, so a late generator counts too."""

    jobs: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    waits_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    """Share of a core that the generator itself used."""

    @property
    def per_s(self) -> float:
        """Jobs accepted a second, until the last answer."""
        return self.jobs / self.seconds

    def percentile(self, share: int) -> float:
        """Milliseconds that this share (1-99, per cent) of the messages needed at most."""
        return statistics.quantiles(self.waits_ms, n=100)[share - 1]

    def line(self, what: str) -> str:
        """One line to print; says so when the run does not count."""
        void = "" if self.cpu <= MOST_CPU else "  DOES NOT COUNT: the generator was too busy"
        return (
            f"{what}: {self.jobs:,} jobs, {self.per_s:.0f}/s, p50 {self.percentile(50):.0f} ms, "
            f"p99 {self.percentile(99):.0f} ms, refused {self.refused or 0}, generator {self.cpu:.0%} of a core{void}"
        )

    def take(self, answer: dict[str, Any], due: float) -> None:
        """Note the answer to a message."""
        self.waits_ms.append((time.monotonic() - due) * 1000)
        for reply in answer.get("results", [answer]):
            if reply.get("type") == "job_accepted":
                self.jobs += 1
            else:
                code = str(reply.get("code", reply.get("type")))
                self.refused[code] = self.refused.get(code, 0) + 1


async def load(url: str, http: aiohttp.ClientSession, per_s: float, seconds: float, bulk: int) -> Run:
    """Send messages at their times whether or not earlier ones are answered; ``bulk`` jobs in each (1: submit_job)."""
    run, waiting = Run(), dict[str, float]()
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(http.ws_connect(f"{url}/ws/client/load-{n}")) for n in range(SOCKETS)
        ]
        readers = [asyncio.create_task(_read(socket, run, waiting)) for socket in sockets]
        start, cpu = time.monotonic(), time.process_time()
        for number, socket in zip(range(int(per_s * seconds / bulk)), itertools.cycle(sockets)):
            due = start + number * bulk / per_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            waiting[f"m{number}"] = due
            await socket.send_str(json.dumps(message(f"m{number}", bulk)))
        await until(lambda: _empty(waiting, readers), "every message is answered", 300)
        run.seconds = time.monotonic() - start
        run.cpu = (time.process_time() - cpu) / run.seconds
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return run


def message(message_id: str, bulk: int) -> dict[str, Any]:
    """One submit or many."""
    one = {"job_type": "comfyui", "payload": {"workflow": WORKFLOW}}
    if bulk == 1:
        return {"type": "submit_job", "message_id": message_id, **one}
    return {"type": "submit_jobs", "message_id": message_id, "jobs": [one] * bulk}


async def _empty(waiting: dict[str, float], readers: list[asyncio.Task[None]]) -> bool:
    for reader in readers:
        if reader.done():
            raise RuntimeError("a socket was closed in the middle of the load") from reader.exception()
    return not waiting


async def _read(socket: aiohttp.ClientWebSocketResponse, run: Run, waiting: dict[str, float]) -> None:
    async for frame in socket:
        if frame.type is aiohttp.WSMsgType.TEXT:
            answer = json.loads(frame.data)
            due = waiting.pop(str(answer.get("message_id")), None)
            if due is not None:
                run.take(answer, due)


async def measure(args: argparse.Namespace) -> list[Target]:
    """Both loads, on one server."""
    found: list[Target] = []
    with tempfile.TemporaryDirectory(prefix="emq-load-") as name, server(args.fsync) as up:
        async with aiohttp.ClientSession() as http, site(Path(name), up.url) as where:
            print(f"NGINX, 2 brokers, Redis {up.redis.info()['redis_version']}, appendfsync {args.fsync}, {machine()}")
            for per_s, bulk in ((args.submits, 1), (args.jobs, args.bulk)):
                what = f"{per_s}/s in messages of {bulk}"
                run = await load(where.url, http, per_s, args.seconds, bulk)
                print(run.line(what), flush=True)
                if run.cpu <= MOST_CPU:
                    found += [Target(f"{what}: accepted a second", run.per_s, per_s * 0.99)]
                    found += [Target(f"{what}: p99 ms", run.percentile(99), 100, most=True)] if bulk == 1 else []
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench load", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="length of each load")
    parser.add_argument("--submits", type=int, default=500, help="submits a second, one a message")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs a second in bulk messages")
    parser.add_argument("--bulk", type=int, default=100, help="jobs in a bulk message")
    parser.add_argument("--fsync", default="always", choices=("always", "everysec"))
    print_targets(asyncio.run(measure(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
