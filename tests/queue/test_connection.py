"""The door to Redis: what it asks of a server, and what becomes of a server's faults."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from broker.errors import ConfigurationError, EmqError, QueueFull, Unavailable
from broker.queue.connection import Connection
from broker.queue.events import EventHub
from broker.queue.queue import Queue
from broker.queue.server import check_server
from tests.support.desk import an_event
from tests.support.groups_of_servers import joined, replicating, watching
from tests.support.jobs import new_job
from tests.support.proxy import proxy
from tests.support.servers import RedisServer, redis7_binary, valkey_binary
from tests.support.waiting import until_it_answers, wait_until

PREFIX = "emq:{default}:"


class Info:
    """What a server says of itself, for servers that are not at hand."""

    def __init__(self, **info: Any) -> None:
        self._info = {"redis_version": "7.2.4", "maxmemory_policy": "noeviction", "aof_enabled": 1} | info

    async def info(self) -> list[dict[str, Any]]:
        return [self._info]


# -- what is asked of a server ----------------------------------------------------------------------------------------


async def test_good_servers_are_named(redis_server: RedisServer, connect: Callable[[str], Connection]) -> None:
    name = await check_server(connect(redis_server.url))
    assert name.startswith({"valkey": "Valkey 9.", "redis7": "Redis 7."}[redis_server.name])


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"redis_version": "6.2.14"}, "Redis 6.2.14; EMQ needs Redis 7.0"),
        ({"redis_version": "7.2.4", "valkey_version": "7.1.0"}, "Valkey 7.1.0"),
        ({"redis_version": ""}, "needs Redis 7.0"),
    ],
)
async def test_older_servers_are_refused(info: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await check_server(Info(**info))


@pytest.mark.parametrize("info", [{"redis_version": "7.0.0"}, {"valkey_version": "7.2.0"}, {"redis_version": "8.2.1"}])
async def test_newer_servers_are_accepted(info: dict[str, Any]) -> None:
    assert await check_server(Info(**info))


@pytest.mark.parametrize("binary", [valkey_binary, redis7_binary])
async def test_eviction_is_refused(
    serve: Callable[..., RedisServer], connect: Callable[[str], Connection], binary: Callable[[], str]
) -> None:
    server = serve("--maxmemory-policy", "allkeys-lru", binary=binary())
    with pytest.raises(ConfigurationError, match=r"maxmemory-policy is allkeys-lru.*Set it to noeviction"):
        await check_server(connect(server.url))


@pytest.mark.parametrize("binary", [valkey_binary, redis7_binary])
async def test_volatile_servers_need_consent(
    serve: Callable[..., RedisServer], connect: Callable[[str], Connection], binary: Callable[[], str]
) -> None:
    connection = connect(serve("--appendonly", "no", binary=binary()).url)
    with pytest.raises(ConfigurationError, match=r"appendonly yes.*EMQ_ALLOW_VOLATILE=1"):
        await check_server(connection)
    assert await check_server(connection, allow_volatile=True)


async def test_managed_servers_that_refuse_config_are_judged_all_the_same(
    serve: Callable[..., RedisServer], connect: Callable[[str], Connection]
) -> None:
    server = serve()
    with redis.Redis.from_url(server.url) as admin:
        admin.acl_setuser(
            "app", enabled=True, passwords=["+pw"], categories=["+@all"], commands=["-config"], keys=["*"]
        )
    connection = connect(f"redis://app:pw@127.0.0.1:{server.port}/0")
    assert await check_server(connection)


async def test_wrong_password_is_said_at_start(
    serve: Callable[..., RedisServer], connect: Callable[[str], Connection]
) -> None:
    server = serve()
    with redis.Redis.from_url(server.url) as admin:
        admin.acl_setuser("default", enabled=True, reset_passwords=True, passwords=["+right"], nopass=False)
        with pytest.raises(ConfigurationError, match=r"refuses the login.*EMQ_REDIS_URL") as caught:
            await check_server(connect(f"redis://:wrong@127.0.0.1:{server.port}/0"))
        assert "wrong@" not in str(caught.value)
        with pytest.raises(ConfigurationError, match="refuses the login"):
            await check_server(connect(f"redis://127.0.0.1:{server.port}/0"))


async def test_nobody_there_is_unavailable(connect: Callable[[str], Connection]) -> None:
    connection = connect("redis://127.0.0.1:1/0")
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await check_server(connection)
    assert time.monotonic() - began < 7


# -- calls ------------------------------------------------------------------------------------------------------------


async def test_functions_are_loaded_when_they_are_missing(
    redis_server: RedisServer, connect: Callable[[str], Connection], pool: str
) -> None:
    queue = Queue(connect(redis_server.url), pool)
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.function_flush()
    versions = await asyncio.gather(*(queue.library() for _ in range(20)))
    assert len(set(versions)) == 1
    assert versions[0] >= 1


async def test_health(serve: Callable[..., RedisServer], connect: Callable[[str], Connection]) -> None:
    server = serve()
    connection = connect(server.url)
    health = await connection.health(PREFIX)
    assert (health.redis, health.functions) == (True, False)
    await connection.load(PREFIX)
    health = await connection.health(PREFIX)
    assert (health.redis, health.functions) == (True, True)
    server.kill()
    health = await connection.health(PREFIX)
    assert (health.redis, health.functions) == (False, False)


async def test_short_outage_is_waited_for(
    serve: Callable[..., RedisServer], connect: Callable[[str], Connection]
) -> None:
    server = serve()
    queue = Queue(connect(server.url))
    assert await queue.library()
    server.kill()
    call = asyncio.create_task(queue.library())
    await asyncio.sleep(0.3)
    assert not call.done()
    server.start()
    assert await call


async def test_dead_server_is_unavailable_in_time_and_comes_back(
    serve: Callable[..., RedisServer], connect: Callable[[str], Connection], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server = serve()
    queue = Queue(connect(server.url))
    assert await queue.library()
    server.kill()
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await queue.library()
    with pytest.raises(Unavailable):
        await queue.library()
    assert time.monotonic() - began < 13
    server.start()
    await until_it_answers(queue)
    said = [record.getMessage() for record in caplog.records if record.name == "broker.queue.connection"]
    assert [("is away" in line, "is back" in line) for line in said] == [(True, False), (False, True)]


async def test_hung_server_is_unavailable_in_time(
    serve: Callable[..., RedisServer], connect: Callable[[str], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In that of a whole call, which ends long before its connection is given up."""
    monkeypatch.setattr("broker.queue.connection.CALL_S", 1.0)
    monkeypatch.setattr("broker.queue.connection.COMMAND_S", 30.0)
    server = serve()
    queue = Queue(connect(server.url))
    assert await queue.library()
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await queue.library()
        assert time.monotonic() - began < 20
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await until_it_answers(queue)


async def test_lost_reply_is_asked_for_again(
    serve: Callable[..., RedisServer], connect: Callable[[str], Connection], pool: str
) -> None:
    server = serve()
    async with proxy(server.port) as between:
        queue = Queue(connect(between.url), pool)
        await queue.configure()
        lost = between.lose(b"job_id")
        (answer,) = await queue.submit("t", [new_job("a")])
        assert lost
        assert answer.text("job_id") == "a"
        (found,) = await queue.submit("t", [new_job("b")])
        assert found.outcome == "ok"
        assert (await queue.job("a")).text("status") == "pending"
        assert (await queue.stats()).number("pending") == 2


async def test_full_memory_refuses_work_but_not_its_end(
    serve: Callable[..., RedisServer], connect: Callable[[str], Connection], pool: str
) -> None:
    server = serve()
    queue = Queue(connect(server.url), pool)
    await queue.configure()
    await queue.submit("t", [new_job("a")])
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory", "1")
        with pytest.raises(QueueFull) as caught:
            await queue.submit("t", [new_job("b")])
        assert caught.value.details["retry_after_s"] >= 1
        assert (await queue.cancel("a")).outcome == "ok"


async def test_replica_is_unavailable(serve: Callable[..., RedisServer], connect: Callable[[str], Connection]) -> None:
    server = serve()
    queue = Queue(connect(server.url))
    await queue.configure()
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", 1)
        admin.config_set("replica-serve-stale-data", "yes")
        with pytest.raises(Unavailable):
            await queue.submit("t", [new_job("a")])


async def test_fault_of_a_function_is_not_shown_to_clients(
    valkey_url: str, connect: Callable[[str], Connection], caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(valkey_url)
    with redis.Redis.from_url(valkey_url) as admin:
        admin.function_load(
            "#!lua name=emq_fault\nredis.register_function('emq_fault', function() error('SECRET detail') end)", True
        )
        try:
            with pytest.raises(EmqError) as caught:
                await connection.fcall("emq_fault", PREFIX, ["token", "s3cret"])
        finally:
            admin.function_delete("emq_fault")
    assert type(caught.value) is EmqError
    assert "SECRET" not in str(caught.value)
    assert "SECRET detail" in caplog.text
    assert "s3cret" not in caplog.text


async def test_blocking_read_waits_longer_than_a_command_may(
    valkey_url: str, connect: Callable[[str], Connection], pool: str
) -> None:
    connection = connect(valkey_url)
    key = f"emq:{{{pool}}}:in:i"
    assert await connection.pop(key, 0.05) is None
    waiting = asyncio.create_task(connection.pop(key))
    with redis.Redis.from_url(valkey_url) as client:
        await wait_until(lambda: client.info("clients")["blocked_clients"], what="the read blocks")
        client.rpush(key, "work")
    assert await waiting == b"work"


async def test_more_calls_than_connections_wait(
    valkey_url: str, connect: Callable[[str], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.queue.connection.COMMANDS", 4)
    queue = Queue(connect(valkey_url))
    versions = await asyncio.gather(*(queue.library() for _ in range(100)))
    assert len(versions) == 100


# -- sentinel and cluster ---------------------------------------------------------------------------------------------


async def test_closed_events_connection_is_unavailable_whenever_it_is_closed(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between redis-py's look at it and its use."""
    line = await connection.channels(PREFIX)
    await line._link.disconnect()
    with pytest.raises(Unavailable):
        await line.subscribe("somewhere")
    monkeypatch.setattr(type(line._link), "is_connected", property(lambda _: True))
    with pytest.raises(Unavailable):
        await line.subscribe("somewhere")
    monkeypatch.undo()
    await line.close()


async def test_sentinel_failover(serve: Callable[..., RedisServer], connect: Callable[[str], Connection]) -> None:
    first, second = serve("--repl-diskless-sync-delay", "0"), serve()
    await replicating(second, first)
    sentinel = await watching(first, down_ms=60_000)
    try:
        connection = connect(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/main/0")
        queue = Queue(connection)
        assert await check_server(connection)
        await queue.configure()
        await wait_until(sentinel.knows_replica, 20, "the sentinel knows the replica")
        await queue.submit("t", [new_job("a")])
        with redis.Redis.from_url(second.url) as admin:
            await wait_until(lambda: admin.exists("emq:{default}:j:a"), what="replicated")
        first.kill()
        with sentinel.asked() as admin:  # no sooner: a primary that is slow for a moment is not to be left
            admin.sentinel_set("main", "down-after-milliseconds", 500)

        async def again() -> bool:
            try:
                return (await queue.cancel("a")).outcome == "ok"
            except Unavailable:
                return False

        await wait_until(again, 30, "the new primary is used")
        line = await connection.channels(PREFIX)
        await line.subscribe(f"{PREFIX}x")
        assert await line.read(5) == ("subscribed", f"{PREFIX}x", b"")
        await line.close()
    finally:
        sentinel.end()


async def test_cluster(serve: Callable[..., RedisServer], connect: Callable[[str], Connection]) -> None:
    nodes = [serve("--cluster-enabled", "yes", "--cluster-node-timeout", "2000") for _ in range(3)]
    whole = await joined(nodes)
    connection = connect(f"redis+cluster://127.0.0.1:1,127.0.0.1:{nodes[0].port}")
    assert await check_server(connection)
    for pool in ("a", "b", "c", "d"):
        queue = Queue(connection, pool)
        await queue.configure()
        await queue.submit("t", [new_job("x")])
        job, missing = await connection.read(
            queue.prefix, ("HGET", f"{queue.prefix}j:x", "status"), ("HGET", f"{queue.prefix}j:y", "status")
        )
        assert (job, missing) == (b"pending", None)
        line = await connection.channels(queue.prefix)
        await line.subscribe(f"{queue.prefix}x")
        assert await line.read(5) == ("subscribed", f"{queue.prefix}x", b"")
        await connection.publish(f"{queue.prefix}x", b"hello")
        assert await line.read(5) == ("message", f"{queue.prefix}x", b"hello")
        await line.close()
        assert await connection.pop(f"{queue.prefix}in:i", 0.05) is None
    hub = EventHub(connection, Queue(connection, "a"))
    await hub.start()
    async with hub.subscribe("x") as listener:
        assert an_event(await anext(listener)).data["status"] == "pending"
        await hub.queue.cancel("x")
        async with asyncio.timeout(10):
            assert an_event(await anext(listener)).data["status"] == "cancelled"
    await hub.stop()
    # A primary that lost its functions (or came later and never had any) gets them.
    with redis.Redis(port=nodes[1].port) as admin:
        admin.function_flush()
    for pool in ("a", "b", "c", "d"):
        assert await Queue(connection, pool).library()
    slot = key_slot(b"emq:{a}:")
    victim = nodes[slot // 5462]
    victim.kill()
    assert not (await connection.health("emq:{a}:")).redis
    victim.start("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    await wait_until(whole, 20, "the cluster is whole again")
    assert (await Queue(connection, "a").job("x")).text("status") == "cancelled"


async def test_calls_that_wait_too_long_for_a_connection_do_not_say_that_redis_is_away(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else those that wait behind them would get a second only, and a crowd would refuse itself for ever."""
    monkeypatch.setattr("broker.queue.connection.COMMAND_S", 0.2)
    monkeypatch.setattr("broker.queue.connection.COMMANDS", 1)
    connection = Connection(valkey_url)
    try:
        assert isinstance(connection.commands, redis.asyncio.Redis)
        taken = await connection.commands.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        with pytest.raises(Unavailable):
            await connection.ping()
        await connection.commands.connection_pool.release(taken)
        await connection.ping()
    finally:
        await connection.close()
    assert "is away" not in caplog.text
