"""The janitor, and the way from settings to a Redis that may be trusted."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from broker.errors import ConfigurationError
from broker.queue import startup
from broker.queue.connection import Connection
from broker.queue.janitor import Janitor
from broker.queue.queue import Queue
from broker.queue.startup import pool_config
from broker.settings import Settings
from tests.support.jobs import new_job
from tests.support.servers import RedisServer
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import wait_until


@asynccontextmanager
async def janitor(connection: Connection, queue: Queue, **settings: object) -> AsyncIterator[None]:
    config = Settings.model_validate({"reap_s": 0.05, **settings})
    one = Janitor(queue, connection, pool_config(config, "http://broker:1"), reap_s=config.reap_s)
    one.start()
    try:
        yield
    finally:
        await one.stop()


async def test_lapsed_leases_and_due_jobs_are_taken_care_of(
    connection: Connection, queue: Queue, redis_client: redis.Redis
) -> None:
    clock = itertools.count(1_800_000_000_000, 100)

    def tick() -> None:
        """A tenth of a second passes: were it a whole lease at once, all would have another one of grace."""
        redis_client.hset(f"{queue.prefix}config", "test_clock", next(clock))

    tick()
    await queue.configure(**pool_config(Settings.model_validate({"lease_s": 0.3})))
    worker = SimulatedWorker(queue)
    await worker.register()
    await queue.submit("t", [new_job("lost"), new_job("later", delay_ms=300)])
    assert await worker.claim("lost")

    async def states() -> list[str]:
        return [(await queue.job(job)).text("status") for job in ("lost", "later")]

    async def both_wait() -> bool:
        tick()
        return await states() == ["pending", "pending"]

    assert await states() == ["claimed", "scheduled"]
    async with janitor(connection, queue, lease_s=0.3):
        await wait_until(both_wait, what="the lost and the late job wait for a worker")


async def test_more_than_one_sweep_takes_goes_on_at_once(
    connection: Connection, queue: Queue, redis_client: redis.Redis
) -> None:
    redis_client.hset(f"{queue.prefix}config", "test_clock", 1_800_000_000_000)
    await queue.submit("t", [new_job(f"j{i}", expires_ms=1) for i in range(450)])
    redis_client.hset(f"{queue.prefix}config", "test_clock", 1_800_000_000_002)
    async with janitor(connection, queue, reap_s=3600):

        async def expired() -> bool:
            return (await queue.stats()).number("failed") == 450

        await wait_until(expired, 10, "all have expired in one go")


async def test_lost_functions_and_a_flushed_pool_come_back(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.queue.janitor.LIBRARY_S", 0.1)
    monkeypatch.setattr("broker.queue.janitor.PRESENT_S", 0.1)
    connection = Connection(own_server.url)
    queue = Queue(connection)
    with redis.Redis.from_url(own_server.url) as admin:
        async with janitor(connection, queue, lease_s=7, reap_s=3600):
            await wait_until(lambda: admin.zscore("emq:{default}:brokers", "http://broker:1"), what="it is announced")
            admin.function_flush()
            await wait_until(admin.function_list, what="the functions are back")
            admin.flushall()
            await wait_until(
                lambda: admin.hget("emq:{default}:config", "lease_ms") == b"7000", what="settings are back"
            )
            # A server that goes away and comes back ends nothing.
            own_server.kill()
            own_server.start()
            admin.flushall()
            await wait_until(lambda: admin.exists("emq:{default}:meta"), 15, "it goes on")
    await connection.close()


def test_every_setting_reaches_the_functions() -> None:
    config = pool_config(
        Settings.model_validate({"lease_s": 1.5, "backoff_s": 0.25, "max_finishing": 2, "input_urls": "off"}),
        "http://b",
        "http://r",
    )
    assert config["lease_ms"] == 1500
    assert config["backoff_ms"] == 250
    assert config["max_finishing"] == 2
    assert config["input_urls"] == "off"
    assert (config["broker_url"], config["replica_url"]) == ("http://b", "http://r")
    assert None not in config.values()
    assert pool_config(Settings())["deployment"] != pool_config(Settings())["deployment"]


async def test_without_redis_settings_the_embedded_valkey_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_HOST", "EMQ_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    data = Path(tempfile.mkdtemp(prefix="emq-data-"))
    monkeypatch.setenv("EMQ_DATA", str(data))
    monkeypatch.setenv("EMQ_APPENDFSYNC", "everysec")
    async with startup.redis(Settings(), supervise=False) as connection:
        assert await Queue(connection).library()
        (info,) = await connection.info()
        assert info["aof_enabled"] == 1
        with redis.Redis.from_url((data / "valkey.json").read_text().split('"url": "')[1].split('"')[0]) as admin:
            assert admin.config_get("appendfsync")["appendfsync"] == "everysec"
    assert not (data / "valkey" / "valkey.sock").exists()
    shutil.rmtree(data)


async def test_redis_settings_are_used(own_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EMQ_REDIS_URL", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", str(own_server.port))
    monkeypatch.setenv("REDIS_DB", "3")
    async with startup.redis(Settings()) as connection:
        await Queue(connection).configure()
    with redis.Redis(port=own_server.port, db=3) as admin:
        assert admin.exists("emq:{default}:meta")
        admin.config_set("appendonly", "no")
    with pytest.raises(ConfigurationError, match="EMQ_ALLOW_VOLATILE"):
        async with startup.redis(Settings()):
            pass
    monkeypatch.setenv("EMQ_ALLOW_VOLATILE", "1")
    async with startup.redis(Settings()) as connection:
        await connection.ping()
