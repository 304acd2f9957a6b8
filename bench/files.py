"""Files: memory while a large output passes, and whether uploads keep the GPU waiting.

A real ComfyUI with EMQ's worker and a broker, each a process of its own. Memory is what a process and its children
have for themselves (PSS), sampled twenty times a second, against what they had before. The GPU's work is a node that
sleeps, so that the uploads of the job before have as much time as they would have; the gap is from one execution's end
to the next one's start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from bench.main_job import drained, gap_ms, pss_mb, registered, stamps
from bench.stack import broker, comfyui, until

SAMPLE_S = 0.05


def children(pid: int) -> Iterator[int]:
    """A process's children and theirs."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from children(int(child))


def running(word: bytes) -> list[int]:
    """Children of this process with a word in their command."""
    return [pid for pid in children(os.getpid()) if word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def memory_mb(pids: list[int]) -> float:
    """Memory of processes; one that has ended has none."""
    total = 0.0
    for pid in pids:
        try:
            total += pss_mb(pid)
        except (OSError, LookupError):
            continue
    return total


async def peak_mb(pids: list[int], work: Awaitable[Any]) -> float:
    """The most memory while something goes on."""
    task = asyncio.ensure_future(work)
    most = memory_mb(pids)
    while not task.done():
        most = max(most, memory_mb(pids))
        await asyncio.sleep(SAMPLE_S)
    await task
    return most


def graph(megabytes: int, seconds: float, seed: int) -> dict[str, Any]:
    """One node that takes its time and leaves a file."""
    return {"1": {"class_type": "EMQBenchFile", "inputs": {"megabytes": megabytes, "seconds": seconds, "seed": seed}}}


async def run(http: aiohttp.ClientSession, broker_url: str, work: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Submit jobs at once and wait for all; their records."""
    body = {"jobs": [{"payload": {"workflow": prompt}} for prompt in work]}
    async with http.post(broker_url + "/api/jobs", json=body) as answer:
        jobs = [result["job_id"] for result in (await answer.json())["results"]]
    records = []
    for job in jobs:

        async def ended(job: str = job) -> dict[str, Any] | None:
            async with http.get(f"{broker_url}/api/jobs/{job}") as answer:
                record = await answer.json()
            return record if record["status"] in ("completed", "failed", "cancelled") else None

        record = await until(ended, f"job {job} ends", 600)
        assert record["status"] == "completed", record["error"]
        records.append(record)
    return records


async def download(http: aiohttp.ClientSession, url: str) -> int:
    """Read a file and throw it away; its size."""
    size = 0
    async with http.get(url) as answer:
        answer.raise_for_status()
        async for piece in answer.content.iter_chunked(1 << 20):
            size += len(piece)
    return size


async def measure(args: argparse.Namespace) -> None:
    """One round on fresh processes."""
    timeout = aiohttp.ClientTimeout(total=None)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        async with aiohttp.ClientSession(timeout=timeout) as http, broker(folder, http) as broker_url:
            brokers = running(b"broker")
            async with comfyui(folder, http, worker=True) as (url, child):
                await until(lambda: registered(http, broker_url), "the worker registers")
                await run(http, broker_url, [graph(1, 0.1, seed) for seed in range(3)])
                worker = [child.pid, *children(child.pid)]
                await memory(args, http, broker_url, brokers, worker)
                await gaps(args, http, broker_url, url)


async def memory(
    args: argparse.Namespace, http: aiohttp.ClientSession, broker_url: str, brokers: list[int], worker: list[int]
) -> None:
    """Let one large file pass in both directions."""
    await asyncio.sleep(2)
    idle = {"broker": memory_mb(brokers), "worker": memory_mb(worker)}
    records: list[dict[str, Any]] = []

    async def upload() -> None:
        records.extend(await run(http, broker_url, [graph(args.megabytes, 0, 99)]))

    began = time.monotonic()
    peaks = await asyncio.gather(peak_mb(brokers, task := asyncio.ensure_future(upload())), peak_mb(worker, task))
    seconds = time.monotonic() - began
    timings = records[0]["result"]["timings"]
    (output,) = records[0]["result"]["outputs"]
    print(f"an output of {args.megabytes} MB: job {seconds:.1f} s, of that upload {timings['output_ms'] / 1000:.1f} s")
    for name, peak in zip(("broker", "worker"), peaks, strict=True):
        print(f"  {name}: idle {idle[name]:.0f} MB, at most {peak:.0f} MB: {peak - idle[name]:+.1f} MB")
    sizes: list[int] = []

    async def read() -> None:
        sizes.append(await download(http, broker_url + output["url"]))

    peak = await peak_mb(brokers, read())
    assert sizes == [args.megabytes << 20]
    print(f"  broker while it is downloaded: at most {peak:.0f} MB: {peak - idle['broker']:+.1f} MB")


async def gaps(args: argparse.Namespace, http: aiohttp.ClientSession, broker_url: str, url: str) -> None:
    """Time between executions, with files and without, in turns."""
    found: dict[int, list[float]] = {0: [], args.output: []}
    seeds = iter(range(1000, 1_000_000))
    for number in range(args.rounds):
        for megabytes in found if number % 2 == 0 else reversed(found):
            work = [graph(megabytes, args.seconds, next(seeds)) for _ in range(args.count)]
            await stamps(http, url)
            seen, _ = await asyncio.gather(drained(http, url, args.count), run(http, broker_url, work))
            found[megabytes].append(gap_ms(seen))
            await asyncio.sleep(1)
    for megabytes, values in found.items():
        rounds = ", ".join(f"{value:.1f}" for value in values)
        print(f"gap between jobs of {args.seconds:g} s with outputs of {megabytes} MB: "
              f"{statistics.median(values):.2f} ms at the median of medians (rounds: {rounds})")  # fmt: skip
    more = statistics.median(found[args.output]) - statistics.median(found[0])
    print(f"GPU idle time that outputs of {args.output} MB add: {more:+.2f} ms")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench files", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the large file")
    parser.add_argument("--output", type=int, default=50, help="size of the outputs of jobs in a row, MB")
    parser.add_argument("--count", type=int, default=12, help="jobs a round")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long an execution takes")
    parser.add_argument("--rounds", type=int, default=3)
    asyncio.run(measure(parser.parse_args(argv)))
    return 0
