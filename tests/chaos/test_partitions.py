"""What a network may do to hosts of a fleet: packets vanish, for longer than a lease, one way or both."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import redis

from broker.access.store import AccessStore
from broker.client import Client
from broker.errors import Unavailable
from broker.queue import replicated
from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.queue import Answer, Queue
from tests.api.conftest import GRAPH
from tests.chaos.fleet import WorkerProcess
from tests.chaos.judge import Promise, gaps
from tests.support.comfyui import BrokerProcess
from tests.support.groups_of_servers import replicating, watching
from tests.support.jobs import new_job
from tests.support.network import Host, Network, NoNetwork, network
from tests.support.nginx import nginx
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

# Brokers, servers and workers start in each, and time-outs of a network pass.
pytestmark = pytest.mark.timeout(300)
POOL = "default"
LEASE_MS = 2000
NODES = ("EmptyImage",)


@pytest.fixture
def net() -> Iterator[Network]:
    """A network, where this machine can make one."""
    try:
        with network() as made:
            yield made
    except NoNetwork as missing:
        pytest.skip(str(missing))


@pytest.fixture
def at(serve: Callable[..., RedisServer]) -> Callable[..., RedisServer]:
    """Starts a Redis on a host."""

    def start(host: Host, *options: str) -> RedisServer:
        return serve(*options, host=host.address, through=host.through, port=6379)

    return start


@dataclass
class Watched:
    """A simulated worker on a host, and the ledger in which it notes each job that it was told it had completed."""

    process: WorkerProcess
    ledger: Path

    def completed(self) -> list[str]:
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [entry["job"] for line in lines if (entry := json.loads(line))["answer"] == "ok"]


@pytest.fixture
def work_at(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Starts a worker on a host."""
    started: list[Watched] = []

    def start(host: Host, url: str, name: str, least_s: float = 0.01, step_s: float = 0.1) -> Watched:
        ledger = tmp_path / f"{name}.jsonl"
        said = ["--url", url, "--pool", POOL, "--name", name, "--ledger", str(ledger)]
        said += ["--least-s", str(least_s), "--step-s", str(step_s)]
        said += ["--failing", "0"]  # or an attempt more than the network's fault explains
        command = [*host.through, sys.executable, "-m", "tests.chaos.worker", *said]
        started.append(Watched(WorkerProcess(name, command, tmp_path / f"{name}.log"), ledger))
        started[-1].process.start()
        return started[-1]

    yield start
    for worker in started:
        worker.process.kill()


@pytest.fixture
def broker_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Awaitable[BrokerProcess]]]:
    """Starts a broker on a host; clients soon notice where one does not answer."""
    monkeypatch.setattr("broker.client.link.HEARTBEAT_S", 2.0)
    started: list[BrokerProcess] = []

    async def start(host: Host, url: str) -> BrokerProcess:
        env = {"EMQ_REDIS_URL": url, "EMQ_ALLOW_OPEN_REDIS": "1", "EMQ_SECRET": "the secret of these tests"}
        name, where = f"broker-{len(started)}", {"host": host.address, "through": host.through}
        broker = BrokerProcess(tmp_path / f"{name}.log", data=tmp_path / name, port=8000, settings=env, **where)  # type: ignore[arg-type]
        started.append(broker)
        return await asyncio.to_thread(broker.start)

    yield start
    for broker in started:
        broker.kill()


async def state(queue: Queue, job: str) -> tuple[str, str]:
    """Where a job is, and with whom."""
    record = await queue.job(job, "t")
    return record.text("status"), record.text("worker_id")


@pytest.mark.parametrize("one_way", [False, True], ids=["both_ways", "only_what_it_says"])
async def test_a_worker_s_host_that_is_cut_off_loses_its_job_to_another(
    net: Network,
    at: Callable[..., RedisServer],
    work_at: Callable[..., Watched],
    connect: Callable[..., Connection],
    one_way: bool,
) -> None:
    """It computes on, and what it tells after the network is well again is refused."""
    server, first_host, second_host = at(net.host()), net.host(), net.host()
    connection = connect(server.url)
    queue = Queue(connection, POOL)
    await queue.configure(lease_ms=LEASE_MS, backoff_ms=100)
    await queue.submit("t", [new_job("j", nodes=NODES, max_attempts=5)])
    first = work_at(first_host, server.url, "first", least_s=10, step_s=12)

    async def held() -> bool:
        return await state(queue, "j") == ("processing", "first")

    await wait_until(held, 60, "the first worker runs the job")
    if one_way:
        net.swallow(first_host, "")
    else:
        net.cut(first_host)
    assert await held(), "it was cut off in the middle of the job"
    second = work_at(second_host, server.url, "second")

    async def completed() -> bool:
        status, worker = await state(queue, "j")
        if worker != "second":
            await queue.sweep()  # no longer: where a busy machine holds the second one up, its lease would be over, too
        return status == "completed"

    await wait_until(completed, 60, "another worker has done the job")
    await wait_until(lambda: second.completed() == ["j"], 10, "it was told so")
    record = await queue.job("j", "t")
    net.heal()

    async def back() -> bool:
        await queue.sweep()
        (row,) = (await queue.workers("first")).rows
        return row.text("status") == "idle"

    await wait_until(back, 60, "the first worker has come back, and knows that the job is not its own any more")
    after = await queue.job("j", "t")
    for pairs in (record.pairs, after.pairs):
        del pairs["now"]
    assert after.pairs == record.pairs, "its result changed nothing"
    assert (record.text("worker_id"), record.number("attempt"), record.number("crashes")) == ("second", 2, 1)
    assert not first.completed()
    assert second.completed() == ["j"]
    assert not await Check(connection, queue.prefix).run()


async def test_clients_move_away_from_a_replica_whose_host_is_cut_off(
    net: Network,
    at: Callable[..., RedisServer],
    work_at: Callable[..., Watched],
    connect: Callable[..., Connection],
    broker_at: Callable[..., Awaitable[BrokerProcess]],
) -> None:
    """Through NGINX, with every event of what they follow, though nobody was told that a connection is gone."""
    server, hosts = at(net.host()), [net.host(), net.host()]
    connection = connect(server.url)
    async with AsyncExitStack() as stack:
        _, key = await AccessStore(connection).create("t", ("submit", "read"))
        brokers = await asyncio.gather(*(broker_at(host, server.url) for host in hosts))
        upstream = [f"{broker.host}:{broker.port}" for broker in brokers]
        front = await stack.enter_async_context(nginx("nginx.conf", brokers[0].data.parent / "nginx", upstream))
        clients = [await stack.enter_async_context(Client(front.url, key, patience_s=60)) for _ in range(4)]
        jobs = [await client.submit(GRAPH, max_attempts=20) for client in clients for _ in range(3)]
        promises = [Promise(number, job.id, events=[]) for number, job in enumerate(jobs)]

        async def follow(number: int) -> None:
            async for event in jobs[number].events():
                promises[number].events.append(event)  # type: ignore[union-attr]

        following = [asyncio.ensure_future(follow(number)) for number in range(len(jobs))]
        await wait_until(lambda: all(promise.events for promise in promises), 60, "every client follows its jobs")
        net.cut(hosts[0])
        work_at(net.host(), server.url, "w")
        async with asyncio.timeout(60):
            await asyncio.gather(*following)
        assert [problem for promise in promises for problem in gaps(promise)] == []
        again = [await client.submit(GRAPH, max_attempts=20, follow=False) for client in clients]
        net.heal()
        async with Client(brokers[0].url, key, patience_s=60) as straight:
            for job in [*jobs, *again]:
                await wait_until(partial(has_ended, straight, job.id), 60, f"{job.id} has ended")
            listed = [job.job_id async for job in straight.jobs()]
        assert sorted(listed) == sorted(job.id for job in [*jobs, *again])
        assert not await Check(connection, f"emq:{{{POOL}}}:").run()


async def has_ended(client: Client, job: str) -> bool:
    return (await client.job(job)).status in ("completed", "failed")


async def accepted(queue: Queue, job: str) -> bool:
    """Submit a job under its own name; whether somebody would have been told that it is in."""
    try:
        (answer,) = await queue.submit("t", [new_job(job, idempotency_key=job)])
    except Unavailable:
        return False
    return answer.outcome in ("ok", "duplicate")


@pytest.fixture
async def three(net: Network, at: Callable[..., RedisServer]) -> list[RedisServer]:
    """A primary and two replicas on hosts of their own; each writes only with a replica."""
    options = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "10", "--repl-diskless-sync-delay", "0")
    servers = [at(net.host(), *options, "--repl-ping-replica-period", "1") for _ in range(3)]
    for replica in servers[1:]:
        await replicating(replica, servers[0])
    return servers


async def test_two_primaries_lose_nothing_that_was_accepted(
    net: Network, three: list[RedisServer], connect: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``EMQ_DURABILITY=replica``: the old one, which some still reach, takes jobs and promises nothing."""
    watcher, old = net.host(), three[0]
    sentinel = await watching(old, watcher.address, watcher.through)
    try:
        await wait_until(lambda: sentinel.knows_replica(2), 20, "the sentinel knows both replicas")
        way = f"redis+sentinel://{watcher.address}:{sentinel.port}/main/0"
        left, right = (Queue(connect(url, replicated=True), POOL) for url in (old.url, way))
        await left.configure()
        promised = [f"before-{number}" for number in range(20)]
        for job in promised:
            await wait_until(partial(accepted, left, job), 30, f"{job} is accepted")
        net.cut(Host(old.host, ()), off=watcher)
        for other in three[1:]:
            net.cut(Host(old.host, ()), off=Host(other.host, ()))
        monkeypatch.setattr(replicated, "WAIT_S", 0.3)
        tried: list[str] = []

        async def taken_over() -> bool:
            tried.append(f"cut-{len(tried)}")
            assert not await accepted(left, tried[-1]), "no replica can have it"
            return await accepted(right, "after-0")

        await wait_until(taken_over, 60, "the new primary takes jobs")
        monkeypatch.undo()
        with redis.Redis.from_url(old.url) as alone:
            alone_has = [job for job in tried if alone.exists(f"{left.prefix}j:{job}")]
            assert alone_has, "the old primary did take some"
        promised += [f"after-{number}" for number in range(20)]
        for job in promised[20:]:
            await wait_until(partial(accepted, right, job), 30, f"{job} is accepted")
        net.heal()

        def demoted() -> bool:
            said: dict[str, object] = {}
            with redis.Redis.from_url(old.url) as admin, suppress(redis.ConnectionError):
                said = admin.info("replication")  # the sentinel closes all connections of a server that it demotes
            return (said.get("role"), said.get("master_link_status")) == ("slave", "up")

        await wait_until(demoted, 60, "the old primary is a replica again")
        there: dict[str, Answer] = {job: await right.job(job, "t") for job in promised}
        assert {record.text("status") for record in there.values()} == {"pending"}
        for job in tried:
            await wait_until(partial(accepted, right, job), 30, "what nobody promised can be submitted again")
        assert (await right.stats()).number("pending") == len(promised) + len(tried)
        assert not await Check(connect(way), right.prefix).run()
    finally:
        sentinel.end()
