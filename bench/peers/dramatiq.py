"""dramatiq, its worker's threads in this process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker


def _actor(url: str, note: Callable[[str], None]) -> tuple[RedisBroker, Any]:
    broker = RedisBroker(url=url)
    dramatiq.set_broker(broker)

    @dramatiq.actor(actor_name="handle")
    def handle(payload: str) -> None:
        note(payload)

    return broker, handle


class Producer:
    def __init__(self, url: str) -> None:
        self.broker, self.actor = _actor(url, lambda _: None)

    def enqueue(self, payload: str) -> None:
        self.actor.send(payload)

    def close(self) -> None:
        self.broker.close()


def producer(url: str) -> Producer:
    return Producer(url)


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    broker, _ = _actor(url, note)
    dramatiq.Worker(broker, worker_threads=in_flight).start()
    signal.pause()
