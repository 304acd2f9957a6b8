"""taskiq-redis, ``RedisStreamBroker``."""

from __future__ import annotations

from collections.abc import Callable

from taskiq_redis import RedisStreamBroker

from bench.peers import taskiq_common


async def producer(url: str) -> taskiq_common.Producer:
    return await taskiq_common.produce_with(RedisStreamBroker(url))


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    taskiq_common.work_with(lambda: RedisStreamBroker(url), in_flight, note)
