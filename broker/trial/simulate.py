"""``python -m broker simulate``: a fleet of simulated GPUs and people who give them work, against a running broker."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from broker.errors import ConfigurationError
from broker.trial.simulated_gpu import MODELS, SimulatedGpu, workflow
from comfyui_emq_node.gateway_queue import GatewayQueue
from comfyui_emq_node.queue import WorkQueue
from comfyui_emq_node.redis_queue import RedisQueue

SAY_EVERY_S = 10.0
MISSING = "sora-not-installed.safetensors"
"""A model that no simulated GPU has."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated: ``rate`` jobs a second on ``workers`` GPUs, all times divided by ``pace``."""

    broker: str
    key: str | None
    workers: int = 8
    rate: float = 1.0
    pace: float = 1.0
    failing: float = 0.03
    backlog: int = 0
    seconds: float | None = None
    redis: str | None = None
    pool: str = "default"
    stuck: int = 2
    name: str = "sim"


def jobs(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Jobs without end: models by how popular they are, priorities, orders."""
    dice = random.Random(seed)  # noqa: S311 - a simulation, no secret
    number = 0
    while True:
        number += 1
        model = dice.choices(MODELS, weights=(5, 3, 1))[0]
        yield {
            "payload": {"workflow": workflow(model.file, dice.randrange(1 << 31))},
            "priority": dice.choices((0, 5, -5, 10), weights=(12, 3, 2, 1))[0],
            "metadata": {"simulated": True, "order": number},
            "group": f"album-{number // 20}" if dice.random() < 0.3 else None,
        }


class Simulation:
    """The fleet and the submitter."""

    def __init__(self, plan: Plan, http: aiohttp.ClientSession) -> None:
        self.plan = plan
        self.http = http
        self.sent = self.refused = 0
        self.gpus = [
            SimulatedGpu(self._queue(number), number, http, plan.pace, plan.failing) for number in range(plan.workers)
        ]
        self._jobs = jobs()

    def _queue(self, number: int) -> WorkQueue:
        name = f"{self.plan.name}-{number:03}"
        if self.plan.redis:
            return RedisQueue(lambda: self.plan.redis, self.plan.pool, name, f"{name}-{time.time_ns():x}")
        return GatewayQueue(self.plan.broker, self.plan.key, name)

    async def run(self) -> None:
        """Simulate until the time is over or it is cancelled; the GPUs leave at the end."""
        await self._check()
        tasks = [asyncio.create_task(gpu.run(), name="simulated-gpu") for gpu in self.gpus]
        tasks += [asyncio.create_task(self._submit()), asyncio.create_task(self._say())]
        try:
            async with asyncio.timeout(self.plan.seconds):
                await asyncio.gather(*tasks)
        except TimeoutError:
            pass
        finally:
            for task in tasks:
                if not task.cancelling():  # a second time would end how it leaves
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self) -> None:
        """Raises ``ConfigurationError`` when there is no broker, or the key is not good enough."""
        try:
            async with self.http.get(f"{self.plan.broker}/stats", headers=self._headers()) as answer:
                if answer.status != 200:
                    raise ConfigurationError(f"{self.plan.broker} answers {answer.status}: a key with the scope admin?")
        except aiohttp.ClientError as error:
            raise ConfigurationError(f"There is no broker at {self.plan.broker}: {error}. Start one first.") from None

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.plan.key}"} if self.plan.key else {}

    async def _submit(self) -> None:
        """The backlog at once, then ``rate`` jobs a second."""
        for _ in range(self.plan.stuck):
            await self._send([{"payload": {"workflow": workflow(MISSING, 0)}, "metadata": {"simulated": True}}])
        left = self.plan.backlog
        while left > 0:
            await self._send([next(self._jobs) for _ in range(min(500, left))])
            left -= 500
        began, sent = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - began) * self.plan.rate) - sent
            if due > 0:
                await self._send([next(self._jobs) for _ in range(min(due, 500))])
                sent += min(due, 500)
            await asyncio.sleep(max(0.05, min(1.0, 1 / max(self.plan.rate, 0.01) / 2)))

    async def _send(self, some: list[dict[str, Any]]) -> None:
        body = {"jobs": some}
        try:
            async with self.http.post(f"{self.plan.broker}/api/jobs", json=body, headers=self._headers()) as answer:
                results = (await answer.json()).get("results", []) if answer.status == 200 else []
        except aiohttp.ClientError:
            results = []
        good = sum(result.get("type") == "job_accepted" for result in results)
        self.sent += good
        self.refused += len(some) - good

    async def _say(self) -> None:
        while True:
            await asyncio.sleep(SAY_EVERY_S)
            busy = sum(gpu.job is not None for gpu in self.gpus)
            ended = sum(gpu.ended for gpu in self.gpus)
            refused = f", {self.refused} refused" if self.refused else ""
            print(f"{self.sent} jobs sent{refused}; {busy} of {len(self.gpus)} simulated GPUs run, {ended} jobs ended")


async def simulate(plan: Plan) -> None:
    """Run a simulation until Ctrl-C, SIGTERM or its time."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        task = asyncio.ensure_future(Simulation(plan, http).run())
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(name, task.cancel)
        print(f"{plan.workers} simulated GPUs, {plan.rate:g} jobs/s; see {plan.broker}/ (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(asyncio.CancelledError):
            await task
    print("The simulation has ended.", file=sys.stderr)
