"""The load under which things break: clients that submit all the time and follow a part of their jobs."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from broker.client import Client
from broker.errors import EmqError
from tests.api.conftest import GRAPH
from tests.chaos.judge import Promise
from tests.support.comfyui import slow

SETTLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Mixture:
    """What is submitted: jobs a second, and which share of them only a real ComfyUI can run (two seconds each)."""

    rate: float = 12.0
    real: float = 0.0
    followed: float = 0.3


class Load:
    """Clients that submit, and follow some of their jobs to the end."""

    def __init__(self, client: Client, rng: random.Random, mixture: Mixture) -> None:
        self._client, self._rng, self._mixture = client, rng, mixture
        self.promises: list[Promise] = []
        self._following: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Submit until cancelled; a submit that fails leaves it open whether there is a job."""
        while True:
            promise = Promise(len(self.promises))
            self.promises.append(promise)
            self._start(self._submit(promise))
            await asyncio.sleep(self._rng.expovariate(self._mixture.rate))

    async def settle(self) -> None:
        """Wait for every submit and follower."""
        while self._following:
            await asyncio.wait(set(self._following), timeout=SETTLE_S)

    def _start(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _submit(self, promise: Promise) -> None:
        graph = slow(20, 0.1, seed=promise.number) if self._rng.random() < self._mixture.real else GRAPH
        try:
            job = await self._client.submit(
                graph, max_attempts=20, metadata={"number": promise.number}, priority=self._rng.choice([0, 0, 0, 5]),
                idempotency_key=f"n{promise.number}", follow=False,
            )  # fmt: skip
        except EmqError:
            return
        promise.job_id = job.id
        if self._rng.random() < self._mixture.followed:
            promise.events = []
            try:
                async for event in job.events():
                    promise.events.append(event)
            except EmqError as error:
                promise.trouble = str(error)
