"""``EMQ_DURABILITY=replica``: a submit is accepted when a replica has it, and not before."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import redis
from redis.crc import key_slot

from broker.errors import ConfigurationError, Unavailable
from broker.queue import replicated, startup
from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.new_job import NewJob
from broker.queue.queue import Answer, Queue
from broker.settings import Settings
from tests.support.groups_of_servers import CLUSTER, joined, replicating
from tests.support.jobs import new_job
from tests.support.processes import state
from tests.support.servers import RedisServer, redis7_binary, valkey_binary
from tests.support.waiting import wait_until

SOON = ("--repl-diskless-sync-delay", "0")
INSIST = (*SOON, "--min-replicas-to-write", "1")


@dataclass
class Pair:
    """A primary that writes only with its replica."""

    primary: RedisServer
    replica: RedisServer

    def freeze(self, on: bool = True) -> None:
        """The replica stays connected and takes nothing any more."""
        assert self.replica.process is not None
        self.replica.process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)
        while on and state(self.replica.process.pid)[0] != "T":
            pass  # it may still be at work on the other core


@pytest.fixture
async def pair(serve: Callable[..., RedisServer], request: pytest.FixtureRequest) -> Pair:
    """Two Valkeys, or what ``on_both`` says."""
    binary = getattr(request, "param", valkey_binary)()
    primary, replica = (serve(*INSIST, binary=binary) for _ in range(2))
    await replicating(replica, primary)
    return Pair(primary, replica)


on_both = pytest.mark.parametrize("pair", [valkey_binary, redis7_binary], ids=["valkey", "redis7"], indirect=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on nobody waits long for a replica, where none will answer."""
    return lambda: monkeypatch.setattr(replicated, "WAIT_S", 0.3)


async def patiently(queue: Queue, job: NewJob) -> list[Answer]:
    """Submit as a client does, again and again until it is accepted."""

    async def accepted() -> list[Answer] | None:
        try:
            return await queue.submit("t", [job])
        except Unavailable:
            return None

    answers = await wait_until(accepted, 30, "a replica confirms")
    assert answers is not None
    return answers


@on_both
async def test_a_submit_is_accepted_when_a_replica_has_it(pair: Pair, connect: Callable[..., Connection]) -> None:
    queue = Queue(connect(pair.primary.url, replicated=True))
    await queue.configure()
    (answer,) = await queue.submit("t", [new_job("a")])
    with redis.Redis.from_url(pair.replica.url) as there:
        assert there.hget(f"{queue.prefix}j:a", "status") == b"pending"
    assert answer.outcome == "ok"


@on_both
async def test_without_its_confirmation_it_may_be_there_and_is_not_accepted(
    pair: Pair, connect: Callable[..., Connection], impatient: Callable[[], None]
) -> None:
    """Nor is its repetition, which writes nothing; once the replica is back the same submit has the same job."""
    connection = connect(pair.primary.url, replicated=True)
    queue = Queue(connection)
    await queue.configure()
    await queue.submit("t", [new_job("before")])
    pair.freeze()
    impatient()
    for job in ("a", "b"):
        with pytest.raises(Unavailable, match="No replica") as refused:
            await queue.submit("t", [new_job(job, idempotency_key="order-17")])
        assert refused.value.details["reason"] == replicated.UNCONFIRMED
    await queue.cancel("before")  # Redis itself is well, and only submits are promises
    pair.freeze(on=False)
    (answer,) = await patiently(queue, new_job("c", idempotency_key="order-17"))
    assert (answer.outcome, answer.text("job_id")) == ("duplicate", "a")
    assert (await queue.stats()).number("pending") == 1
    assert not await Check(connection, queue.prefix).run()


async def test_a_bulk_says_which_jobs_are_confirmed(
    pair: Pair, connect: Callable[..., Connection], impatient: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.queue.new_job.SUBMIT_CHUNK", 2)
    connection = connect(pair.primary.url, replicated=True)
    queue = Queue(connection)
    await queue.configure()
    confirm = replicated.confirm

    def confirm_and_freeze(replicas: int) -> None:
        confirm(replicas)
        pair.freeze()
        impatient()

    monkeypatch.setattr("broker.queue.connection.confirm", confirm_and_freeze)
    answers = await queue.submit("t", [new_job(f"j{number}") for number in range(6)])
    assert [answer.outcome for answer in answers] == ["ok"] * 2 + ["unavailable"] * 4
    pair.freeze(on=False)


async def test_without_any_replica_nothing_is_written(pair: Pair, connect: Callable[..., Connection]) -> None:
    queue = Queue(connect(pair.primary.url, replicated=True))
    await queue.configure()
    await queue.submit("t", [new_job("before")])
    pair.replica.kill()

    async def refused() -> bool:
        try:
            await queue.submit("t", [new_job("a")])
        except Unavailable as error:
            return str(error.details["reason"]).startswith("NOREPLICAS")
        return False

    await wait_until(refused, 10, "the primary has noticed that it is alone")
    assert (await queue.job("before")).text("status") == "pending"


async def test_a_server_that_writes_alone_is_refused_at_the_start(
    pair: Pair, connect: Callable[..., Connection]
) -> None:
    settings = Settings(redis_url=pair.primary.url, durability="replica")
    async with startup.redis(settings) as connection:
        await connection.ping()
    with redis.Redis.from_url(pair.primary.url) as admin:
        admin.config_set("min-replicas-to-write", 0)
    with pytest.raises(ConfigurationError, match="min-replicas-to-write 1"):
        async with startup.redis(settings):
            pass


async def test_a_cluster_confirms_by_the_owner_s_replica(
    serve: Callable[..., RedisServer], connect: Callable[..., Connection], impatient: Callable[[], None]
) -> None:
    nodes = [serve(*CLUSTER, *SOON) for _ in range(3)]
    await joined(nodes)
    queue = Queue(connect(f"redis+cluster://127.0.0.1:{nodes[0].port}", replicated=True), "a")
    await queue.configure()
    impatient()
    with pytest.raises(Unavailable, match="No replica"):
        await queue.submit("t", [new_job("a")])
    owner = nodes[key_slot(queue.prefix.encode()) // 5462]
    replica = serve(*CLUSTER)
    with redis.Redis(port=replica.port) as admin, redis.Redis(port=owner.port) as at_owner:
        admin.execute_command("CLUSTER MEET", "127.0.0.1", owner.port)
        name = at_owner.execute_command("CLUSTER MYID").decode()

        def follows() -> bool:
            try:
                admin.execute_command("CLUSTER REPLICATE", name)
            except redis.ResponseError:
                return False
            return True

        await wait_until(follows, 20, "the fourth server knows whose replica it is")
        await wait_until(lambda: admin.info("replication").get("master_link_status") == "up", 20, "it has all")
    (answer,) = await patiently(queue, new_job("a"))
    assert answer.outcome in ("ok", "duplicate")
