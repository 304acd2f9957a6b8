"""``python -m bench dashboard``: the pages with many jobs, workers and open tabs, and whether their figures are true.

A Redis server with queued and finished jobs, one broker, simulated workers that report in real time, jobs that come in
over HTTP, and tabs that are streams as browsers hold them. The tabs' pages are mixed as people mix them. Then each page
is asked for in the middle of that load, and the figures are compared with a count over the records.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.dashboard.fleet import PAYLOAD
from bench.dashboard.pages import Shown, ask_all, static_files
from bench.dashboard.tabs import Tabs
from bench.dashboard.truth import PREFIX, check
from bench.server import Server, server
from bench.stack import ROOT, free_port, process, until
from bench.targets import Target, print_targets
from broker.queue.queue import parse

MIX = (
    ("page=fleet", 70), ("page=fleet&layout=table", 10), ("page=queue", 25), ("page=queue&priority=5", 5),
    ("page=jobs", 20), ("page=jobs&q=status:failed", 10), ("page=jobs&q=status:processing", 5), ("job", 20),
    ("page=workers", 10), ("page=timeline", 8), ("page=failures", 5), ("page=gallery", 5), ("page=models", 3),
    ("page=metrics", 3), ("page=admin", 1),
)  # fmt: skip
"""Of 200 tabs; ``job`` are running jobs, five of them."""
MOST_CPU = 0.8
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU that a process has used, with its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@asynccontextmanager
async def fleet(up: Server, args: argparse.Namespace, folder: Path) -> AsyncIterator[None]:
    """The filled pool and its workers, in a process of their own."""
    command = [sys.executable, "-m", "bench.dashboard.fleet", up.url]
    for name in ("queued", "finished", "gpus", "rate", "events"):
        command += [f"--{name}", str(getattr(args, name))]
    child_log = folder / "fleet.log"
    async with process(command, ROOT, dict(os.environ), child_log) as child:

        async def ready() -> bool:
            assert child.returncode is None, child_log.read_text()
            return "ready" in child_log.read_text()

        await until(ready, "the pool is filled", 240)
        yield


@asynccontextmanager
async def broker(up: Server, folder: Path, http: aiohttp.ClientSession) -> AsyncIterator[tuple[str, int]]:
    """One broker; gives its URL and its process."""
    port = free_port()
    command = [sys.executable, "-m", "broker", "serve", "--port", str(port), "--redis", up.url,
               "--data", str(folder / "data")]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith(("EMQ_", "REDIS_"))}
    async with process(command, ROOT, env, folder / "broker.log") as child:

        async def healthy() -> bool:
            async with http.get(f"http://127.0.0.1:{port}/health") as answer:
                return answer.status == 200

        await until(healthy, "the broker is healthy")
        yield f"http://127.0.0.1:{port}", child.pid


async def submitting(http: aiohttp.ClientSession, url: str, rate: float) -> None:
    """Jobs come in, one a request, at their times whether or not earlier ones are answered."""
    async with asyncio.TaskGroup() as group:
        began = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            body = {"payload": json.loads(PAYLOAD), "metadata": {"order": number}}
            group.create_task(_submit(http, url, body))


async def _submit(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> None:
    async with http.post(f"{url}/api/jobs", json=body) as answer:
        assert answer.status == 201, await answer.text()


def running_jobs(up: Server, most: int) -> list[str]:
    """Jobs that run, those first that have not run for long."""
    raw: Any = up.redis.fcall("emq_workers", 1, PREFIX, "jobs", "1", "limit", "1000")
    jobs = [job for worker in parse(raw).rows for job in worker.rows if job.number("started_at")]
    return [job.text("job_id") for job in sorted(jobs, key=lambda job: -job.number("started_at"))][:most]


@asynccontextmanager
async def opened(tabs: Tabs, jobs: list[str], count: int) -> AsyncIterator[None]:
    """``count`` tabs, every page among them, that all have their page."""
    waiting: asyncio.Queue[str] = asyncio.Queue()
    mix = [name for name, share in MIX for _ in range(max(1, round(share * count / 200)))]
    turn = itertools.cycle(jobs)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(tabs.tab(f"page=job&job_id={next(turn)}" if name == "job" else name, waiting))
            for name in mix
        ]
        async with asyncio.timeout(60):
            for _ in tasks:
                await waiting.get()
        print(f"{len(tasks)} tabs are open", flush=True)
        yield
        for task in tasks:
            task.cancel()


async def watch(tabs: Tabs, up: Server, pid: int, seconds: float) -> list[Target]:
    """The load with its tabs for a time: how old updates are, and what it costs."""
    heard, began = tabs.listen(), time.monotonic()
    before, own = cpu_s(pid), time.process_time()
    with up.spent() as spent:
        await asyncio.sleep(seconds)
    took = time.monotonic() - began
    busy, client = (cpu_s(pid) - before) / took, (time.process_time() - own) / took
    redis = spent[0].cpu_us / spent[0].seconds / 1e6
    kinds = sorted(what for what, ages in heard.ages.items() if len(ages) > 1)
    for what in kinds:
        p50, p99 = heard.percentile(50, what), heard.percentile(99, what)
        print(f"{what}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, at most {max(heard.ages[what]):.0f} ms "
              f"({len(heard.ages[what]):,} seen)")  # fmt: skip
    print(f"{sum(heard.messages.values()) / took:.0f} messages/s, {heard.bytes / took / 1e6:.1f} MB/s to all tabs "
          f"({heard.unpacked / took / 1e6:.1f} MB/s unpacked); "
          f"broker {busy:.0%} of a core, Redis {redis:.0%}, this client {client:.0%}", flush=True)  # fmt: skip
    assert not heard.lost, f"{heard.lost} tabs lost their stream"
    if client > MOST_CPU:
        print("DOES NOT COUNT: this client was too busy to hear in time")
        return []
    return [
        *(Target(f"{what}, p99 ms", heard.percentile(99, what), 1000, most=True) for what in kinds),
        Target("broker, share of a core", busy, 0.3, most=True),
    ]


def pages_targets(shown: list[Shown]) -> list[Target]:
    """The pages as a table, and the worst of them."""
    print(f"\n{'page':34}{'p50 ms':>8}{'p99 ms':>8}{'sent, bytes':>13}{'unpacked':>11}")
    for page in shown:
        print(f"{page.path[:33]:34}{page.percentile(50):8.0f}{page.percentile(99):8.0f}{page.sent:13,}{page.bytes:11,}")
    return [
        Target("slowest page, p50 ms", max(page.percentile(50) for page in shown), 300, most=True),
        Target("slowest page, p99 ms", max(page.percentile(99) for page in shown), 300, most=True),
        Target("largest page as sent, KB", max(page.sent for page in shown) / 1000, 100, most=True),
    ]


async def measure(args: argparse.Namespace) -> list[Target]:
    """All of it."""
    targets: list[Target] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="emq-dashboard-") as name, server("everysec") as up:
        folder = Path(name)
        http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(None))
        async with http, fleet(up, args, folder), broker(up, folder, http) as (url, pid):
            took = time.monotonic() - began
            print(f"{args.queued:,} queued and {args.finished:,} finished jobs after {took:.0f} s", flush=True)
            submits = asyncio.create_task(submitting(http, url, args.rate))
            tabs = Tabs(http, url)
            async with opened(tabs, running_jobs(up, 5), args.tabs):
                await asyncio.sleep(args.warm_up)
                targets += await watch(tabs, up, pid, args.seconds)
                job = running_jobs(up, 1)[0]
                targets += pages_targets(await ask_all(http, url, job, args.asks))
                targets += await check(http, url, up.redis, args.checks)
            assert not submits.done(), submits.exception()
            submits.cancel()
            await asyncio.gather(submits, return_exceptions=True)
    for line in static_files(ROOT / "static"):
        print(line)
    return targets


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench dashboard", description=__doc__)
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--gpus", type=int, default=300, help="simulated workers")
    parser.add_argument("--rate", type=float, default=20, help="jobs a second that come and that end")
    parser.add_argument("--events", type=int, default=5, help="reports a second of each worker: 1, 2, 4, 5, 10 or 20")
    parser.add_argument("--tabs", type=int, default=200)
    parser.add_argument("--warm-up", type=float, default=8, help="seconds before anything is measured")
    parser.add_argument("--seconds", type=float, default=30, help="how long updates are listened to")
    parser.add_argument("--asks", type=int, default=20, help="how often each page is asked for")
    parser.add_argument("--checks", type=int, default=3, help="how often figures are compared with a count")
    print_targets(asyncio.run(measure(parser.parse_args(argv))))
    return 0
