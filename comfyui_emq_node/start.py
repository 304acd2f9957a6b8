"""Starts the worker inside ComfyUI, and ends it with ComfyUI."""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from .comfy import Comfy
from .settings import Settings, default_worker_id

if TYPE_CHECKING:
    from .queue import WorkQueue
    from .worker import Worker

log = logging.getLogger("emq")

T = TypeVar("T")

LEAVE_S = 2.0


def install(settings: Settings) -> None:
    """Hook ComfyUI; the worker starts with its server. Called while ComfyUI imports its nodes."""
    log.setLevel(settings.log_level)
    missing = [name for name in ("redis", "blake3") if importlib.util.find_spec(name) is None]
    if missing:
        log.error(
            "the worker does not start: this Python has no %s; install it with: pip install -r requirements.txt "
            "(in the worker's folder, with the Python that runs ComfyUI)",
            " and no ".join(missing),
        )
        return
    comfy = Comfy()
    host = Host(settings, comfy)
    comfy.hook(host.start)
    if settings.page:
        from .page import Page

        comfy.add_routes(Page(settings, comfy.inventory, host).routes())


class Host:
    """The worker's thread."""

    def __init__(self, settings: Settings, comfy: Comfy) -> None:
        self._settings, self._comfy = settings, comfy
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: Worker | None = None
        self._ready = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._serve, name="emq-worker", daemon=True)

    @property
    def worker(self) -> Worker | None:
        """The worker, once it runs."""
        return self._worker

    async def on_worker(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something on the worker's loop, from ComfyUI's; the worker has to run."""
        assert self._loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._loop))

    async def start(self) -> None:
        """Start the thread; runs in ComfyUI's loop when its server starts."""
        self._thread.start()
        atexit.register(self._leave)
        if not self._comfy.on_signal(self._on_signal):
            log.debug("signals cannot be handled here; the worker leaves at exit")

    def _serve(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception:
            log.exception("the worker has ended; ComfyUI goes on without it")

    async def _main(self) -> None:
        import secrets

        from .worker import Worker

        self._loop = asyncio.get_running_loop()
        worker_id = self._settings.worker_id or default_worker_id(self._comfy.port())
        instance = secrets.token_hex(16)
        worker = self._worker = Worker(self._settings, self._comfy, self._queues(worker_id, instance), worker_id)
        loop = self._loop

        def foreign_end() -> None:
            loop.call_soon_threadsafe(worker.wake)

        self._comfy.on_foreign_end = foreign_end
        self._ready.set()
        await worker.run()

    def _queues(self, worker_id: str, instance: str) -> list[WorkQueue]:
        settings = self._settings
        if settings.by_gateway:
            from .gateway_queue import GatewayQueue

            assert settings.broker_url is not None
            return [GatewayQueue(settings.broker_url, settings.api_key, worker_id)]
        from .redis_queue import RedisQueue

        def url() -> str | None:
            return settings.redis_url or settings.local_redis_url()

        return [RedisQueue(url, pool, worker_id, instance) for pool in settings.pools]

    # -- the end ------------------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        """The first signal drains, the second ends at once; runs in ComfyUI's loop."""
        if self._ending:
            self._comfy.end()
            return
        self._ending = True
        threading.Thread(target=self._drain, name="emq-drain", daemon=True).start()

    def _drain(self) -> None:
        try:
            self._stop(self._settings.drain_s, self._settings.drain_s + 10)
        finally:
            self._comfy.end()

    def _leave(self) -> None:
        """At exit, where no signal came first: say goodbye without waiting for anything."""
        if not self._ending:
            self._ending = True
            self._stop(0.0, LEAVE_S)

    def _stop(self, drain_s: float, within_s: float) -> None:
        worker, loop = self._worker, self._loop
        if worker is None or loop is None or not loop.is_running():
            return
        future = asyncio.run_coroutine_threadsafe(worker.stop(drain_s), loop)
        try:
            future.result(within_s)
        except Exception as error:
            log.debug("the worker did not leave in good order: %r", error)
        self._thread.join(LEAVE_S)
