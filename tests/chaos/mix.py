"""A mix of faults under load: ``python -m tests.chaos.mix --seconds 180``; what became of every job at the end."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from broker.client import Client
from broker.queue.fsck import Check
from tests.chaos.faults import FAULTS, OFTEN, kill_comfyui, kill_worker
from tests.chaos.fleet import Drill
from tests.chaos.judge import Verdict, judge
from tests.chaos.load import Load, Mixture

HEAL_S = 300.0
"""How long the queue may take to empty after the last fault: leases, back-off, and a slow machine."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: for ``seconds``, and until there were ``faults``."""

    seconds: float
    seed: int
    faults: int = 0
    mixture: Mixture = field(default_factory=Mixture)
    comfyuis: int = 0
    """Real ComfyUIs beside the simulated workers; each is killed again and again, in mid-job mostly."""
    kill_every_s: float = 0.0
    """Beside the mix a simulated worker is killed so often; 0: not."""
    wanted: Mapping[str, int] = field(default_factory=dict)
    """How often each kind is wanted: those that miss most are drawn most."""


class Draw:
    """Which fault comes next: each once, then those that are missing, else as often as it is drawn."""

    def __init__(self, rng: random.Random, wanted: Mapping[str, int]) -> None:
        self._rng, self._wanted = rng, wanted
        self._first = rng.sample(sorted(FAULTS), len(FAULTS))
        self._names = [name for name in FAULTS for _ in range(OFTEN.get(name, 1))]

    def next(self, done: Mapping[str, int]) -> str:
        missing = {
            name: left for name, n in self._wanted.items() if name in FAULTS and (left := n - done.get(name, 0)) > 0
        }
        if self._first:
            return self._first.pop()
        if missing and self._rng.random() < 0.6:
            return self._rng.choices(list(missing), list(missing.values()))[0]
        return self._rng.choice(self._names)


async def drill(folder: Path, plan: Plan) -> Verdict:
    """Run a mix, heal, and judge."""
    rng, verdict, started = random.Random(plan.seed), Verdict(), time.monotonic()
    scene = Drill(folder)
    try:
        await scene.start(comfyuis=plan.comfyuis)
        # Nobody gives up: that is no broken promise, but on a busy machine Redis may read its file for a while.
        async with Client(scene.url, patience_s=HEAL_S) as client:
            load = Load(client, rng, plan.mixture)
            async with _beside(scene, load, plan, verdict):
                await _break(scene, plan, rng, verdict, started)
            await _heal(scene, load)
            await judge(client, load.promises, scene.ledger, verdict)
        connection, queue = scene.new_client()
        verdict.findings = [str(finding) for finding in await Check(connection, queue.prefix).run()]
        await connection.close()
    finally:
        await scene.stop()
    verdict.seconds = round(time.monotonic() - started, 1)
    return verdict


async def _break(scene: Drill, plan: Plan, rng: random.Random, verdict: Verdict, started: float) -> None:
    draw = Draw(rng, plan.wanted)
    while time.monotonic() - started < plan.seconds or sum(verdict.faults.values()) < plan.faults:
        await asyncio.sleep(rng.uniform(0.1, 1.0))
        name = draw.next(verdict.faults)
        if name == "cut_power" and not scene.power.possible:
            name = "kill_redis"
        await FAULTS[name](scene, rng)
        verdict.count(name)


@asynccontextmanager
async def _beside(scene: Drill, load: Load, plan: Plan, verdict: Verdict) -> AsyncIterator[None]:
    """What goes on beside the mix: the load, and the killing of workers."""
    tasks = [asyncio.create_task(load.run())]
    tasks += [asyncio.create_task(_kill_comfyuis(scene, n, plan.seed, verdict)) for n in range(len(scene.comfyuis))]
    if plan.kill_every_s:
        tasks.append(asyncio.create_task(_kill_workers(scene, plan, verdict)))
    try:
        yield
    finally:
        early = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in early:
            task.result()


async def _kill_workers(scene: Drill, plan: Plan, verdict: Verdict) -> None:
    rng = random.Random(plan.seed + 1)
    while True:
        await asyncio.sleep(plan.kill_every_s * rng.uniform(0.5, 1.5))
        await kill_worker(scene, rng)
        verdict.count("kill_worker")


async def _kill_comfyuis(scene: Drill, number: int, seed: int, verdict: Verdict) -> None:
    rng = random.Random(seed + 2 + number)
    while True:
        await kill_comfyui(scene, rng, number)
        verdict.count("kill_comfyui")


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
    plan = Plan(args.seconds, args.seed, args.faults, Mixture(args.rate))
    with tempfile.TemporaryDirectory(prefix="emq-chaos-") as folder:
        verdict = asyncio.run(drill(Path(folder), plan))
    print(f"seed {args.seed}: {'good' if verdict.good else 'BROKEN'}\n{verdict.text()}")
    if args.keep:
        args.keep.parent.mkdir(parents=True, exist_ok=True)
        args.keep.write_text(json.dumps({"seed": args.seed, **asdict(verdict)}, indent=1))
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
