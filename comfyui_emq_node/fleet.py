"""The worker's place in the fleet: what it says of itself, its heartbeats, and what they answer."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import random
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .comfy import Comfy
from .queue import Beat, QueueAway, Refused, Registration, Terms, Unregistered, WorkQueue
from .settings import Settings
from .version import VERSION

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("emq")

REFRESH_S = 60.0
LOST_PAUSE_S = 0.3
MAX_PAUSE_S = 10.0


def give_back() -> None:
    """Return to the system what it took to read every node's inputs and to tell of them; only glibc can do it.

    It would stay with the worker's thread for as long as ComfyUI runs: 16 MB of 26 that a worker added to ComfyUI
    (``python -m bench main-job``).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Membership:
    """Registers with every queue and keeps the leases."""

    def __init__(self, settings: Settings, comfy: Comfy, worker: Worker, worker_id: str) -> None:
        self._settings, self._comfy, self._worker, self._worker_id = settings, comfy, worker, worker_id
        self.terms = Terms()
        self.model_inputs: dict[str, dict[str, str]] = {}
        self._profile: dict[str, Any] = {}
        self._info: dict[str, Any] = {}
        self._ranges = b""
        self._registered: set[str] = set()
        self._paused: dict[str, bool] = {}
        self._draining: dict[str, bool] = {}
        self._brokers: dict[str, tuple[str, ...]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._away: set[str] = set()
        self._is_told_dead = False
        self._has_read = False

    # -- what the worker asks ---------------------------------------------------------------------------------------

    def may_work(self, queue: WorkQueue) -> bool:
        """Whether jobs may be claimed from a queue: registered, not paused, not draining."""
        return queue.pool in self._registered and not self._paused.get(queue.pool) and not self.is_draining

    @property
    def is_draining(self) -> bool:
        """Whether an operator has asked this worker to finish what it has."""
        return any(self._draining.values())

    @property
    def is_paused(self) -> bool:
        """Whether no pool gives this worker a job because it, or the pool, is paused."""
        return bool(self._paused) and all(self._paused.values())

    def connected(self) -> dict[str, bool]:
        """Whether each pool's queue knows this worker and answered last time."""
        return {pool: pool in self._registered and pool not in self._away for pool in self._news}

    def brokers(self, pool: str) -> Sequence[str]:
        """Addresses of a pool's brokers, those of the latest heartbeat."""
        return self._brokers.get(pool, ())

    def beat_now(self) -> None:
        """Send a heartbeat without waiting for its time."""
        for news in self._news.values():
            news.set()

    # -- capabilities -----------------------------------------------------------------------------------------------

    async def read_capabilities(self) -> bool:
        """Look at this ComfyUI; says whether anything has changed. Disks are read on another thread.

        The nodes' inputs are read only where models or nodes have changed: a pack may do anything when it is asked.
        """
        loop, inventory = asyncio.get_running_loop(), self._comfy.inventory
        models = await loop.run_in_executor(None, inventory.models)
        classes = inventory.node_classes()
        if (models, classes) == (self._profile.get("models"), self._profile.get("node_classes")):
            return False
        self._profile, self.model_inputs = await loop.run_in_executor(None, self._look, models, classes)
        self._info = self._describe()
        self._has_read = True
        return True

    def _look(
        self, models: dict[str, list[str]], classes: list[str]
    ) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
        inventory = self._comfy.inventory
        gpus = inventory.gpus()
        inputs, document = inventory.read_inputs()
        digest, self._ranges = document.packed()
        profile = {
            "supported_job_types": list(self._settings.job_types),
            "job_types": list(self._settings.job_types),
            "node_classes": classes,
            "models": models,
            "model_inputs": inputs,
            "tags": list(self._settings.tags),
            "vram_mb": max((gpu["vram_mb"] for gpu in gpus), default=0),
            "gpu": gpus[0]["name"] if gpus else "",
            "ranges": digest,
        }
        return profile, inputs

    def _describe(self) -> dict[str, Any]:
        gpus = self._comfy.inventory.gpus()
        return {
            "version": VERSION,
            **self._comfy.inventory.versions(),
            "labels": dict(self._settings.labels),
            "supported_job_types": list(self._settings.job_types),
            "tags": list(self._settings.tags),
            "gpus": gpus,
            "gpu_count": len(gpus) if self._settings.gpu_count is None else self._settings.gpu_count,
            "port": self._comfy.port(),
        }

    async def refresh(self) -> None:
        """Notice new model files and tell the queues."""
        while True:
            await asyncio.sleep(REFRESH_S * (0.9 + 0.2 * random.random()))  # noqa: S311
            if await self.read_capabilities():
                log.info("the models or nodes of this ComfyUI have changed")
                self._registered.clear()
                self.beat_now()

    # -- heartbeats -------------------------------------------------------------------------------------------------

    async def keep(self, queue: WorkQueue) -> None:
        """Register and send heartbeats for ever; wait out a queue that is away."""
        self._news[queue.pool] = asyncio.Event()
        pause = LOST_PAUSE_S
        while True:
            try:
                if queue.pool not in self._registered:
                    await self._register(queue)
                await self.beat(queue)
            except (QueueAway, Refused) as error:
                self._tell_away(queue, error)
                await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311
                pause = min(pause * 2, MAX_PAUSE_S)
                continue
            except Unregistered:
                self._registered.discard(queue.pool)
                continue
            pause = LOST_PAUSE_S
            await self._pause(queue)

    async def _pause(self, queue: WorkQueue) -> None:
        news = self._news[queue.pool]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(news.wait(), min(5.0, max(0.1, self.terms.lease_s / 6)))
        news.clear()

    def _tell_away(self, queue: WorkQueue, error: Exception) -> None:
        """One line for each outage: ComfyUI's log is a person's."""
        if queue.pool not in self._away:
            self._away.add(queue.pool)
            log.warning("the queue cannot be reached: %s; ComfyUI goes on, and the worker keeps trying", error)

    async def _register(self, queue: WorkQueue) -> None:
        machine = self._settings.machine_id or socket.gethostname()
        jobs = [run.job for run in self._worker.held(queue)]
        said = Registration(machine, self._profile, self._info, self._worker.status, jobs, self._ranges)
        self.terms = await queue.register(said)
        if self._has_read:
            self._has_read = False
            await asyncio.get_running_loop().run_in_executor(None, give_back)
        self._worker.set_input_policy(self.terms.input_urls)
        self._brokers[queue.pool] = self.terms.brokers
        self._registered.add(queue.pool)
        self._away.discard(queue.pool)
        log.info("worker %s serves pool %s", self._worker_id, queue.pool)

    async def beat(self, queue: WorkQueue) -> None:
        """Send one heartbeat and do what its answer says."""
        self._look_at_prompt_thread()
        runs = self._worker.held(queue)
        inventory = self._comfy.inventory
        beat = await queue.heartbeat(
            self._worker.status, [run.job for run in runs], inventory.loaded_models(), inventory.gpu_state()
        )
        self._away.discard(queue.pool)
        self._worker.side.keep(queue.pool, await queue.guard(self.terms.lease_s))
        self._take(queue, beat)
        for run in runs:
            word = beat.jobs.get(run.job.job_id, ("ok", ""))[0]
            if word in ("cancel", "lost"):
                self._worker.told(run.job.job_id, word)
            if beat.watched is not None:
                run.watch(run.job.job_id in beat.watched)

    def _look_at_prompt_thread(self) -> None:
        """Tell once of its end, whoever's prompt it was: the fleet hears ``unhealthy`` with each heartbeat."""
        if not self._is_told_dead and not self._comfy.is_prompt_thread_alive():
            self._is_told_dead = True
            log.error("ComfyUI's prompt thread has ended; it runs nothing more, and no job is taken: restart ComfyUI")

    def _take(self, queue: WorkQueue, beat: Beat) -> None:
        if beat.brokers:
            self._brokers[queue.pool] = beat.brokers
        before = self.may_work(queue)
        self._paused[queue.pool], self._draining[queue.pool] = beat.paused, beat.drain
        # Beside a person's prompts the queue counts this worker as busy and tells it of nothing; between two of them it
        # has its turn all the same.
        if beat.work or (self.may_work(queue) and not before) or self._comfy.foreign()[1]:
            self._worker.wake()
