"""A mix of faults under load: ``python -m tests.chaos.mix --seconds 180``; what became of every job at the end."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from broker.client import Client
from broker.errors import EmqError
from broker.queue.fsck import Check
from tests.api.conftest import GRAPH
from tests.chaos.faults import FAULTS, OFTEN
from tests.chaos.fleet import Drill
from tests.chaos.judge import Promise, Verdict, judge

HEAL_S = 180.0
"""How long the queue may take to empty after the last fault: leases, back-off, and a slow machine."""


class Load:
    """Clients that submit, and follow some of their jobs to the end."""

    def __init__(self, client: Client, rng: random.Random, rate: float) -> None:
        self._client, self._rng, self._rate = client, rng, rate
        self.promises: list[Promise] = []
        self._following: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Submit until cancelled; a submit that fails leaves it open whether there is a job."""
        while True:
            promise = Promise(len(self.promises))
            self.promises.append(promise)
            self._start(self._submit(promise))
            await asyncio.sleep(self._rng.expovariate(self._rate))

    async def settle(self) -> None:
        """Wait for every submit and follower."""
        while self._following:
            await asyncio.wait(set(self._following), timeout=HEAL_S)

    def _start(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _submit(self, promise: Promise) -> None:
        try:
            job = await self._client.submit(
                GRAPH, max_attempts=20, metadata={"number": promise.number}, priority=self._rng.choice([0, 0, 0, 5]),
                idempotency_key=f"n{promise.number}", follow=False,
            )  # fmt: skip
        except EmqError:
            return
        promise.job_id = job.id
        if self._rng.random() < 0.3:
            promise.events = []
            try:
                async for event in job.events():
                    promise.events.append(event)
            except EmqError as error:
                promise.trouble = str(error)


async def drill(folder: Path, seconds: float, seed: int, rate: float = 12.0, faults: int = 0) -> Verdict:
    """Run a mix for ``seconds`` (or until there were ``faults``), heal, and judge."""
    rng, verdict, started = random.Random(seed), Verdict(), time.monotonic()
    names = [name for name in FAULTS for _ in range(OFTEN.get(name, 1))]
    first = rng.sample(sorted(FAULTS), len(FAULTS))  # each once, then as often as it is drawn
    scene = Drill(folder)
    try:
        await scene.start()
        async with Client(scene.url, patience_s=60) as client:
            load = Load(client, rng, rate)
            loading = asyncio.create_task(load.run())
            while time.monotonic() - started < seconds or sum(verdict.faults.values()) < faults:
                await asyncio.sleep(rng.uniform(0.1, 1.0))
                name = first.pop() if first else rng.choice(names)
                if name == "cut_power" and not scene.power.possible:
                    name = "kill_redis"
                await FAULTS[name](scene, rng)
                verdict.faults[name] = verdict.faults.get(name, 0) + 1
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await _heal(scene, load)
            await judge(client, load.promises, scene.ledger, verdict)
        connection, queue = scene.new_client()
        verdict.findings = [str(finding) for finding in await Check(connection, queue.prefix).run()]
        await connection.close()
    finally:
        await scene.stop()
    verdict.seconds = round(time.monotonic() - started, 1)
    return verdict


async def _heal(scene: Drill, load: Load) -> None:
    """Wait until every submit has its answer and the queue is empty."""
    connection, queue = scene.new_client()
    end = time.monotonic() + HEAL_S
    settling = asyncio.create_task(load.settle())
    try:
        while time.monotonic() < end:
            stats = await queue.stats()
            open_ = sum(stats.number(s) for s in ("scheduled", "blocked", "pending", "claimed", "processing"))
            if open_ == 0 and settling.done():
                return
            await asyncio.sleep(0.2)
    finally:
        settling.cancel()
        await connection.close()


def main() -> int:
    """0 when every promise was kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--faults", type=int, default=0, help="go on until there were so many")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rate", type=float, default=12, help="submits a second")
    parser.add_argument("--keep", type=Path, help="a file for the verdict, as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="emq-chaos-") as folder:
        verdict = asyncio.run(drill(Path(folder), args.seconds, args.seed, args.rate, args.faults))
    print(f"seed {args.seed}: {'good' if verdict.good else 'BROKEN'}\n{verdict.text()}")
    if args.keep:
        args.keep.parent.mkdir(parents=True, exist_ok=True)
        args.keep.write_text(json.dumps({"seed": args.seed, **asdict(verdict)}, indent=1))
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
