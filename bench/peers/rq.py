"""RQ with its ``SimpleWorker``, which runs jobs in its own process: one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker

from bench.peers import child

_notes: list[Callable[[str], None]] = []


def handle(payload: str) -> None:
    """The job; RQ imports it by name."""
    if not _notes:
        _notes.append(child.recorder())
    _notes[0](payload)


class Producer:
    def __init__(self, url: str) -> None:
        self.queue = Queue(connection=Redis.from_url(url))

    def enqueue(self, payload: str) -> None:
        self.queue.enqueue(handle, payload)

    def enqueue_many(self, payloads: list[str]) -> None:
        self.queue.enqueue_many([Queue.prepare_data(handle, args=(payload,)) for payload in payloads])

    def close(self) -> None:
        self.queue.connection.close()


def producer(url: str) -> Any:
    return Producer(url)


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    assert in_flight == 1
    connection = Redis.from_url(url)
    SimpleWorker([Queue(connection=connection)], connection=connection).work(logging_level="ERROR")
