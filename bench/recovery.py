"""``python -m bench recovery``: a hundred workers are killed at one moment; when do their jobs wait again?"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from bench.server import server
from bench.site import machine, site
from bench.targets import Target, print_targets
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from broker.trial.simulated_gpu import MODELS, workflow
from tests.support.comfyui import ROOT, Process
from tests.support.waiting import wait_until

PROCESSES = 5
"""Each holds an equal part of the workers of one way."""
PACE = "0.005"
"""So slow that no job ends meanwhile."""
START_S = 240
AFTER_S = 5.0


@contextmanager
def fleet(folder: Path, url: str, ways: dict[str, list[str]], workers: int) -> Iterator[list[Process]]:
    """Simulated workers over each way, in processes that can be killed."""
    found: list[Process] = []
    try:
        for way, options in ways.items():
            for number in range(PROCESSES):
                process = Process(folder / f"{way}-{number}.log")
                said = ["--rate", "0", "--stuck", "0", "--pace", PACE, "--name", f"{way}-{number}", *options]
                said += ["--workers", str(workers // PROCESSES // len(ways))]
                command = [sys.executable, "-m", "broker", "simulate", "--broker", url, *said]
                process.launch(command, ROOT, {**os.environ, "LOG_LEVEL": "WARNING"})
                found.append(process)
        yield found
    finally:
        for process in found:
            process.kill()


async def measure(args: argparse.Namespace) -> list[Target]:
    """Kill them all, and wait for the last job."""
    with tempfile.TemporaryDirectory(prefix="emq-recovery-") as name, server(args.fsync) as up:
        folder = Path(name)
        async with site(folder, up.url, EMQ_LEASE_S=str(args.lease)) as where, aiohttp.ClientSession() as http:
            connection = Connection(up.url)
            queue = Queue(connection, "default")
            ways = {"redis": ["--redis", up.url], "gateway": []}
            with fleet(folder, where.url, ways, args.workers) as processes:
                jobs = [{"payload": {"workflow": workflow(MODELS[0].file, n)}} for n in range(args.workers)]
                async with http.post(f"{where.url}/api/jobs", json={"jobs": jobs}) as answer:
                    answer.raise_for_status()

                async def running() -> int:
                    stats = await queue.stats()
                    return stats.number("claimed") + stats.number("processing")

                async def all_run() -> bool:
                    return bool((await queue.stats()).number("processing") == args.workers)

                async def none_held() -> bool:
                    return not await running()

                await wait_until(all_run, START_S, f"{args.workers} jobs run")
                print(f"{args.workers} workers, half of them at the gateway, lease {args.lease:g} s, {machine()}")
                began = time.monotonic()
                for process in processes:
                    assert process.child
                    process.child.kill()
                await wait_until(none_held, 4 * args.lease + 30, "no dead worker holds a job")
                took, stats = time.monotonic() - began, await queue.stats()
            waiting = stats.number("pending")
            await connection.close()
    return [
        Target("the last job is back, s", took, args.lease + AFTER_S, most=True),
        Target("jobs that wait again", waiting, args.workers),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench recovery", description=__doc__)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--lease", type=float, default=30.0, help="EMQ_LEASE_S")
    parser.add_argument("--fsync", default="always", choices=("always", "everysec"))
    print_targets(asyncio.run(measure(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
