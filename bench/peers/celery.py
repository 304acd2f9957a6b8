"""Celery without a result backend: threads with 32 in flight, the solo pool with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery


def _app(url: str, note: Callable[[str], None]) -> tuple[Celery, Any]:
    app = Celery("bench", broker=url)
    app.conf.broker_connection_retry_on_startup = True

    @app.task(name="handle", ignore_result=True)
    def handle(payload: str) -> None:
        note(payload)

    return app, handle


class Producer:
    def __init__(self, url: str) -> None:
        self.app, self.task = _app(url, lambda _: None)

    def enqueue(self, payload: str) -> None:
        self.task.delay(payload)

    def close(self) -> None:
        self.app.close()


def producer(url: str) -> Producer:
    return Producer(url)


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    app, _ = _app(url, note)
    pool = "solo" if in_flight == 1 else "threads"
    app.worker_main(["worker", f"--pool={pool}", f"--concurrency={in_flight}", "--loglevel=ERROR"])
