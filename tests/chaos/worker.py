"""A simulated worker in a process of its own, to be killed and frozen: ``python -m tests.chaos.worker``.

It notes each job that it finished, with the answer's word, in a ledger that the run is judged by.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from broker.errors import EmqError
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from tests.support.jobs import profile
from tests.support.simulated import Held, SimulatedWorker

NODES = ("EmptyImage", "SaveImage")
T = TypeVar("T")


class Note:
    """The ledger: one line a finished job, written at once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, **entry: Any) -> None:
        os.write(self._file, (json.dumps(entry) + "\n").encode())


@dataclass(frozen=True, slots=True)
class Manner:
    """How it runs a job."""

    least_s: float
    step_s: float
    """The shortest and the longest time between two reports."""
    failing: float
    """The share of attempts that fail as planned."""


async def run(worker: SimulatedWorker, held: Held, note: Note, manner: Manner) -> None:
    """A job: some reports, and an end. Like the real worker it tells everything until it is answered."""
    steps = random.randrange(1, 5)
    for step in range(steps):
        answer = await _told(partial(worker.report, held, 100 * step / steps))
        if answer.outcome != "ok":
            worker.held.pop(held.job_id, None)
            return
        if held.cancelled is not None:
            await _told(partial(worker.fail, held, "interrupted", "Cancelled.", retry="no"))
            return
        await asyncio.sleep(random.uniform(manner.least_s, manner.step_s))
    if random.random() < manner.failing:
        await _told(partial(worker.fail, held, "node_error", "A planned failure."))
        return
    answer, _ = await _told(partial(worker.finish, held))
    note.write(job=held.job_id, attempt=held.attempt, token=held.token, answer=answer.outcome)


async def _told(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await call()
        except EmqError:
            await asyncio.sleep(0.1)


async def serve(url: str, pool: str, name: str, note: Note, manner: Manner) -> None:
    """Work for ever; whatever goes wrong with the connection is tried again."""
    connection = Connection(url)
    queue = Queue(connection, pool)
    worker = SimulatedWorker(queue, name, profile=profile(nodes=NODES), instance=secrets.token_hex(8))
    beating = asyncio.create_task(_beat(worker))
    while True:
        try:
            answer = await worker.register()
            if answer.outcome == "ok":
                await _work(worker, note, manner)
        except EmqError:
            await asyncio.sleep(0.1)
        if beating.done():
            beating.result()


async def _beat(worker: SimulatedWorker) -> None:
    while True:
        await asyncio.sleep(worker.lease_ms / 6000)
        try:
            await worker.heartbeat()
        except EmqError:
            continue


async def _work(worker: SimulatedWorker, note: Note, manner: Manner) -> None:
    """Claim and run until the queue does not know this instance any more."""
    while True:
        held = await worker.claim()
        if held is None:
            await asyncio.sleep(0.05)
            answer = await worker.heartbeat()
            if answer.outcome != "ok":
                worker.held.clear()
                return
            continue
        await run(worker, held, note, manner)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("url", "pool", "name", "ledger"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--least-s", type=float, default=0.01, help="the shortest time between two reports")
    parser.add_argument("--step-s", type=float, default=0.1, help="the longest time between two reports")
    parser.add_argument("--failing", type=float, default=0.03, help="the share of attempts that fail as planned")
    args = parser.parse_args()
    manner = Manner(args.least_s, args.step_s, args.failing)
    asyncio.run(serve(args.url, args.pool, args.name, Note(Path(args.ledger)), manner))


if __name__ == "__main__":
    main()
