"""A submit in several calls, each sent while Redis works on the one before it; and what becomes of it in a fault."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from broker.errors import QueueFull, Unavailable
from broker.queue import in_order
from broker.queue.connection import Connection
from broker.queue.new_job import SUBMIT_CHUNK, NewJob, submission
from broker.queue.queue import Answer, Queue, parse
from broker.queue.seal import Seal
from tests.support.jobs import new_job
from tests.support.proxy import Proxy, proxy
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

CALLS = 4
Serve = Callable[..., RedisServer]
Connect = Callable[..., Connection]


def bulk() -> list[NewJob]:
    return [new_job(f"job-{number:03}") for number in range(CALLS * SUBMIT_CHUNK)]


def marks(between: Proxy) -> set[int]:
    """Which of a bulk's calls have been sent through a proxy, from now on."""
    seen = set[int]()
    before = bytearray()

    def look(data: bytes) -> bytes:
        before.extend(data)
        seen.update(number for number in range(CALLS) if b"job-%03d" % (number * SUBMIT_CHUNK) in before)
        return data

    between.requests = look
    return seen


@asynccontextmanager
async def standing(server: RedisServer, queue: Queue, sent: set[int]) -> AsyncIterator[asyncio.Task[list[Answer]]]:
    """A bulk of which two calls are sent and none can be answered, as the server stands still for so long."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        submit = asyncio.create_task(queue.submit("t", bulk()))
        await wait_until(lambda: len(sent) >= 2, 10, "two calls are sent")
        yield submit
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


async def waiting(queue: Queue) -> list[str]:
    """The jobs of the pool in the order of their submit."""
    found, before = list[str](), ""
    while True:
        page = await queue.call("list", [("tenant", ""), ("status", "pending"), ("limit", 250), ("before", before)])
        found += [row.text("job_id") for row in page.rows]
        if not (before := page.text("next")):
            return found[::-1]


async def test_calls_are_sent_before_others_are_answered(serve: Serve, connect: Connect, pool: str) -> None:
    server = serve()
    async with proxy(server.port) as between:
        queue = Queue(connect(between.url), pool)
        await queue.configure()
        async with standing(server, queue, sent := marks(between)) as submit:
            assert not submit.done()
        answers = await submit
        assert sent == set(range(CALLS))
        assert [answer.text("job_id") for answer in answers] == [job.job_id for job in bulk()]
        assert await waiting(queue) == [job.job_id for job in bulk()]


@pytest.mark.parametrize("cut_at", range(CALLS))
async def test_a_connection_that_breaks_loses_and_doubles_nothing(
    serve: Serve, connect: Connect, pool: str, cut_at: int
) -> None:
    """Its calls were made, but some answers are lost: the calls are made again."""
    server = serve()
    async with proxy(server.port) as between:
        queue = Queue(connect(between.url), pool)
        await queue.configure()
        lost = between.lose(b"job-%03d" % (cut_at * SUBMIT_CHUNK))
        answers = await queue.submit("t", bulk())
        assert lost
        assert {answer.outcome for answer in answers} == {"ok"}
        assert [answer.text("job_id") for answer in answers] == [job.job_id for job in bulk()]
        assert await waiting(queue) == [job.job_id for job in bulk()]


async def test_a_bulk_finds_no_functions(redis_client: redis.Redis, queue: Queue) -> None:
    await queue.configure()
    redis_client.function_flush()
    answers = await queue.submit("t", bulk())
    assert {answer.outcome for answer in answers} == {"ok"}
    assert await waiting(queue) == [job.job_id for job in bulk()]


async def test_a_bulk_fills_the_memory(serve: Serve, connect: Connect, pool: str) -> None:
    """What was accepted before is accepted; no call begins after the one that was refused."""
    server = serve()
    connection = connect(server.url)
    queue = Queue(connection, pool)
    await queue.configure()
    with redis.Redis.from_url(server.url) as admin:

        def calls() -> Iterator[list[bytes | str]]:
            for number in range(CALLS):
                if number == 2:  # the first one has its answer, the second is under way
                    admin.config_set("maxmemory", "1")
                yield submission("t", None, bulk()[number * SUBMIT_CHUNK :][:SUBMIT_CHUNK], Seal())

        left = calls()
        raws = [raw async for raw in connection.fcalls("emq_submit", queue.prefix, left)]
        told = ["full" if isinstance(raw, QueueFull) else parse(raw[0]).outcome for raw in raws]
        assert told in (["ok", "full", "full"], ["ok", "ok", "full"], ["ok", "ok", "full", "full"])
        assert len(told) + len(list(left)) == CALLS
        admin.config_set("maxmemory", "0")
        assert len(await waiting(queue)) == told.count("ok") * SUBMIT_CHUNK


async def test_answers_of_a_cancelled_bulk_are_nobody_s(serve: Serve, connect: Connect, pool: str) -> None:
    server = serve()
    async with proxy(server.port) as between:
        queue = Queue(connect(between.url), pool)
        await queue.configure()
        async with standing(server, queue, marks(between)) as submit:
            submit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submit
        others = await asyncio.gather(*(queue.submit("t", [new_job(f"own-{number}")]) for number in range(5)))
        assert [answer.text("job_id") for [answer] in others] == [f"own-{number}" for number in range(5)]
        assert (len(await waiting(queue)) - 5) % SUBMIT_CHUNK == 0


async def test_each_call_that_was_sent_is_asked_again() -> None:
    """Though the first is refused: the second may be in. None of the rest is begun."""

    class Broken:
        """Sends two calls, and fails."""

        async def answers(self, calls: Iterator[Any], sent: deque[Any]) -> Any:
            sent += [next(calls), next(calls)]
            raise ConnectionError
            yield

    async def ask(args: Any) -> str:
        if args == ["a"]:
            raise Unavailable("Redis is away.")
        return f"answer to {args[0]}"

    left = iter([["a"], ["b"], ["c"]])
    first, second = [answer async for answer in in_order.in_order(ask, left, Broken())]  # type: ignore[arg-type]
    assert isinstance(first, Unavailable)
    assert second == "answer to b"
    assert list(left) == [["c"]]
