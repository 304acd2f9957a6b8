"""Files: memory while a large one passes, out and in, and whether uploads keep the GPU waiting.

A real ComfyUI with EMQ's worker and a broker, each a process of its own. Memory is what a process and its children
have allocated (anonymous pages; those of files are shared with whoever else runs), sampled twenty times a second,
against what they had before. The GPU's work is a node that sleeps, so that the uploads of the job before have as much
time as they would have; the gap is from one execution's end to the next one's start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from blake3 import blake3

from bench.main_job import drained, gap_ms, registered
from bench.stack import broker, comfyui, until
from bench.targets import Target, print_targets

SAMPLE_S = 0.05
OVER_IDLE_MB = 64.0
MORE_GAP_MS = 5.0


def children(pid: int) -> Iterator[int]:
    """A process's children and theirs."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from children(int(child))


def running(word: bytes) -> list[int]:
    """Children of this process with a word in their command."""
    return [pid for pid in children(os.getpid()) if word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def allocated_mb(pid: int) -> float:
    """Memory that a process has allocated."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
    raise LookupError("no line of anonymous pages")


def memory_mb(pids: list[int]) -> float:
    """Memory of processes; one that has ended has none."""
    total = 0.0
    for pid in pids:
        try:
            total += allocated_mb(pid)
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


class Fleet:
    """A broker and its worker as a client sees them, and the processes that they are."""

    def __init__(self, http: aiohttp.ClientSession, url: str, worker: list[int]) -> None:
        self.http, self.url = http, url
        self._pids = {"broker": running(b"broker"), "worker": worker}
        self._idle: dict[str, float] = {}

    async def run(self, work: list[dict[str, Any]], inputs: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Submit jobs at once and wait for all; their records."""
        body = {"jobs": [{"payload": {"workflow": prompt, "inputs": inputs or {}}} for prompt in work]}
        async with self.http.post(self.url + "/api/jobs", json=body) as answer:
            jobs = [result["job_id"] for result in (await answer.json())["results"]]
        records = []
        for job in jobs:
            record = await until(partial(self._ended, job), f"job {job} ends", 600)
            assert record["status"] == "completed", record["error"]
            records.append(record)
        return records

    async def _ended(self, job: str) -> dict[str, Any] | None:
        async with self.http.get(f"{self.url}/api/jobs/{job}") as answer:
            record: dict[str, Any] = await answer.json()
        return record if record["status"] in ("completed", "failed", "cancelled") else None

    async def download(self, path: str) -> int:
        """Read a file and throw it away; its size."""
        size = 0
        async with self.http.get(self.url + path) as answer:
            answer.raise_for_status()
            async for piece in answer.content.iter_chunked(1 << 20):
                size += len(piece)
        return size

    async def upload(self, megabytes: int) -> str:
        """Store an input file; its hash."""
        chunk, hasher = os.urandom(1 << 20), blake3()
        for _ in range(megabytes):
            hasher.update(chunk)

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(megabytes):
                yield chunk

        digest = hasher.hexdigest()
        async with self.http.put(f"{self.url}/api/assets/{digest}", data=pieces()) as answer:
            answer.raise_for_status()
        return f"blake3:{digest}"

    async def rest(self) -> None:
        """Remember what the processes have when nothing goes on."""
        await asyncio.sleep(2)
        self._idle = {name: memory_mb(pids) for name, pids in self._pids.items()}

    async def over_idle(self, what: str, work: Awaitable[Any], sides: tuple[str, ...]) -> list[Target]:
        """The most memory that processes have over their idle one while something goes on."""
        began = time.monotonic()
        task = asyncio.ensure_future(work)
        peaks = await asyncio.gather(*(peak_mb(self._pids[side], task) for side in sides))
        print(f"{what}: {time.monotonic() - began:.1f} s")
        found = []
        for side, peak in zip(sides, peaks, strict=True):
            print(f"  {side}: idle {self._idle[side]:.0f} MB, at most {peak:.0f} MB: {peak - self._idle[side]:+.1f} MB")
            found.append(Target(f"{what}: {side}, MB over idle", peak - self._idle[side], OVER_IDLE_MB, most=True))
        return found


async def measure(args: argparse.Namespace) -> list[Target]:
    """One round on fresh processes."""
    timeout = aiohttp.ClientTimeout(total=None)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            broker(folder, http) as broker_url,
            comfyui(folder, http, worker=True) as (url, child),
        ):
            await until(lambda: registered(http, broker_url), "the worker registers")
            fleet = Fleet(http, broker_url, [child.pid, *children(child.pid)])
            await fleet.run([graph(1, 0.1, seed) for seed in range(3)])
            return [*await memory(fleet, args.megabytes), await gaps(args, fleet, url)]


async def memory(fleet: Fleet, megabytes: int) -> list[Target]:
    """Let one large file pass in every direction."""
    await fleet.rest()
    outgoing = asyncio.ensure_future(fleet.run([graph(megabytes, 0, 99)]))
    found = await fleet.over_idle(f"output, {megabytes} MB", outgoing, ("broker", "worker"))
    (record,) = outgoing.result()
    (output,) = record["result"]["outputs"]
    print(f"  of that upload {record['result']['timings']['output_ms'] / 1000:.1f} s")
    read = asyncio.ensure_future(fleet.download(output["url"]))
    found += await fleet.over_idle("its download", read, ("broker",))
    assert read.result() == megabytes << 20
    sent = asyncio.ensure_future(fleet.upload(megabytes))
    found += await fleet.over_idle(f"input file, {megabytes} MB", sent, ("broker",))
    inputs = {"1.file": {"asset": sent.result(), "filename": "x.bin"}}
    take = {"1": {"class_type": "EMQBenchTake", "inputs": {"file": ""}}}
    taken = asyncio.ensure_future(fleet.run([take], inputs))
    found += await fleet.over_idle("its way to the worker", taken, ("broker", "worker"))
    assert taken.result()[0]["result"]["outputs"][0]["text"] == str(megabytes << 20)
    return found


async def gaps(args: argparse.Namespace, fleet: Fleet, url: str) -> Target:
    """Time between executions, with files and without, in turns."""
    found: dict[int, list[float]] = {0: [], args.output: []}
    seeds = iter(range(1000, 1_000_000))
    for number in range(args.rounds):
        for megabytes in found if number % 2 == 0 else reversed(found):
            work = [graph(megabytes, args.seconds, next(seeds)) for _ in range(args.count)]
            await drained(fleet.http, url, 0)
            seen, _ = await asyncio.gather(drained(fleet.http, url, args.count), fleet.run(work))
            found[megabytes].append(gap_ms(seen))
            await asyncio.sleep(1)
    for megabytes, values in found.items():
        rounds = ", ".join(f"{value:.1f}" for value in values)
        print(f"gap between jobs of {args.seconds:g} s with outputs of {megabytes} MB: "
              f"{statistics.median(values):.2f} ms at the median of medians (rounds: {rounds})")  # fmt: skip
    more = statistics.median(found[args.output]) - statistics.median(found[0])
    return Target(f"GPU idle between jobs, added by {args.output} MB, ms", more, MORE_GAP_MS, most=True)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench files", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the large file")
    parser.add_argument("--output", type=int, default=50, help="size of the outputs of jobs in a row, MB")
    parser.add_argument("--count", type=int, default=12, help="jobs a round")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long an execution takes")
    parser.add_argument("--rounds", type=int, default=3)
    print_targets(asyncio.run(measure(parser.parse_args(argv))))
    return 0
