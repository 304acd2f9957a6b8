"""The tests' own tools do what they say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import redis

from tests.support.dump import dump
from tests.support.leaks import leaks
from tests.support.servers import RedisServer, redis7_binary, valkey_binary
from tests.support.waiting import wait_until


async def test_wait_until_gives_what_came_and_says_what_did_not() -> None:
    seen: list[int] = []
    asyncio.get_running_loop().call_later(0.02, seen.append, 7)
    assert await wait_until(lambda: seen, 2) == [7]
    started = time.monotonic()
    with pytest.raises(AssertionError, match="the moon rises"):
        await wait_until(lambda: None, 0.05, "the moon rises")
    assert time.monotonic() - started < 5, "half of what it would wait by itself"


@pytest.mark.parametrize("binary", [valkey_binary, redis7_binary], ids=["valkey", "redis7"])
def test_a_server_keeps_its_data_over_a_kill(serve: Callable[..., RedisServer], binary: Callable[[], str]) -> None:
    server = serve(binary=binary())
    with redis.Redis.from_url(server.url) as client:
        client.set("a", "kept")
        server.kill()
        server.start()
        assert client.get("a") == b"kept"


async def test_a_key_whose_life_has_ended_is_no_difference(redis_client: redis.Redis, pool: str) -> None:
    prefix = f"emq:{{{pool}}}:"
    redis_client.set(f"{prefix}lapses", "1", px=50)
    for name in ("deleted", "changed"):
        redis_client.set(f"{prefix}{name}", "1", px=60_000)
    before = dump(redis_client, prefix)
    await wait_until(lambda: not redis_client.exists(f"{prefix}lapses"), what="the key's life has ended")
    redis_client.delete(f"{prefix}deleted")
    redis_client.set(f"{prefix}changed", "2", px=60_000)
    changed = before.differences(dump(redis_client, prefix))
    assert changed == ["changed: b'1' -> b'2'", "deleted: b'1' -> None"]
    redis_client.delete(f"{prefix}changed")


def test_keys_left_behind_are_found(redis_client: redis.Redis, pool: str) -> None:
    prefix = f"emq:{{{pool}}}:"
    job = {"done": "completed", "waiting": "pending"}
    for name, status in job.items():
        redis_client.hset(f"{prefix}j:{name}", "status", status)
        redis_client.set(f"{prefix}b:{name}", "payload")
    redis_client.set(f"{prefix}q:a:b", "job")
    redis_client.set(f"{prefix}strange", "1")
    redis_client.set(f"{prefix}watch:x", "1", px=60_000)
    redis_client.zadd(f"{prefix}workers", {"w": 1})
    assert leaks(redis_client, prefix) == ["b:done", "j:done", "q:a:b", "strange"]
    redis_client.delete(*redis_client.keys(f"{prefix}*"))
