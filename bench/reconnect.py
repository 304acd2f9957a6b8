"""``python -m bench reconnect``: both brokers are restarted under thousands of sockets; when is the last one back?

The sockets come through NGINX, show a key and each follows a job. A client that lost its connection comes again after a
random part of five seconds, then with pauses of one second that double up to thirty, and goes on after its last event.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from bench.server import server
from bench.site import Site, counted, machine, site
from bench.sockets import RawSocket, Refused, allow_open_files, bearer, connect, sources
from bench.targets import Target, print_targets
from broker.access.store import AccessStore
from broker.queue.connection import Connection
from tests.api.conftest import submit
from tests.support.waiting import wait_until

JITTER_S, FIRST_S, LONGEST_S = 5.0, 1.0, 30.0
AT_ONCE = 200
SPARE = 2_000
WITHIN_S, GIVEN_UP_S = 30.0, 180.0


class Customer:
    """One client: a socket that follows a job, for as long as it takes."""

    def __init__(self, crowd: Crowd, job_id: str, source: str) -> None:
        self._crowd, self._job, self._source = crowd, job_id, source
        self._last: str | None = None
        self.socket: RawSocket | None = None
        self.back_at = 0.0
        """When its present subscription was confirmed."""
        self.tries = 0

    async def run(self) -> None:
        """Connect, follow, and come again whenever the connection ends."""
        pause = FIRST_S
        while True:
            try:
                await self._connect()
            except (Refused, OSError):
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, LONGEST_S)
                continue
            assert self.socket
            await self.socket.closed
            self.back_at, pause = 0.0, FIRST_S
            await asyncio.sleep(random.uniform(0, JITTER_S))

    async def _connect(self) -> None:
        self.tries += 1
        async with self._crowd.room:
            self.socket = await connect(
                self._crowd.port, key=self._crowd.key, path="/queue/ws", source=self._source, on_text=self._take
            )
        message = {"type": "subscribe_job", "job_id": self._job, "after": self._last}
        self.socket.send(json.dumps(message).encode())

    def _take(self, text: bytes) -> None:
        message = json.loads(text)
        if message["type"] == "subscription_confirmed":
            self.back_at = time.monotonic()
        elif "event_id" in message:
            self._last = message["event_id"]


class Crowd:
    """All of them."""

    def __init__(self, where: Site, key: str, jobs: list[str], count: int) -> None:
        self.port, self.key = where.port, key
        self.room = asyncio.Semaphore(AT_ONCE)
        jobs_of = itertools.cycle(jobs)
        self.customers = [Customer(self, next(jobs_of), source) for source in itertools.islice(sources(), count)]

    def missing(self) -> int:
        """How many do not follow their job now."""
        return sum(not customer.back_at for customer in self.customers)

    async def all_there(self, seconds: float) -> bool:
        """Wait until every one follows its job."""
        try:
            await wait_until(lambda: not self.missing(), seconds)
        except AssertionError:
            return False
        return True


def _some(jobs: int) -> Iterator[list[dict[str, object]]]:
    for start in range(0, jobs, 500):
        yield [submit() for _ in range(min(500, jobs - start))]


async def _jobs(where: Site, key: str, count: int) -> list[str]:
    found: list[str] = []
    async with aiohttp.ClientSession(headers=bearer(key)) as http:
        for some in _some(count):
            async with http.post(f"{where.url}/api/jobs", json={"jobs": some}) as answer:
                found += [one["job_id"] for one in (await answer.json())["results"]]
    return found


async def _key(redis_url: str) -> str:
    connection = Connection(redis_url)
    try:
        return (await AccessStore(connection).create("bench", ["submit", "read"]))[1]
    finally:
        await connection.close()


async def restart(where: Site, hard: bool) -> tuple[float, float]:
    """Both brokers at once; seconds until both have ended, and until both listen again."""
    began = time.monotonic()
    await asyncio.gather(*(asyncio.to_thread(broker.kill if hard else broker.end) for broker in where.brokers))
    ended = time.monotonic() - began
    await asyncio.gather(*(asyncio.to_thread(broker.start) for broker in where.brokers))
    return ended, time.monotonic() - began


async def measure(args: argparse.Namespace) -> list[Target]:
    """Bring them in, restart, wait."""
    allow_open_files(args.sockets + SPARE)
    with tempfile.TemporaryDirectory(prefix="emq-reconnect-") as name, server(args.fsync) as up:
        key = await _key(up.url)
        # A process of NGINX has two open files a socket: more than many machines let one have.
        async with site(Path(name), up.url, nginx_workers=2) as where:
            crowd = Crowd(where, key, await _jobs(where, key, args.jobs), args.sockets)
            began = time.monotonic()
            tasks = [asyncio.create_task(customer.run()) for customer in crowd.customers]
            assert await crowd.all_there(GIVEN_UP_S), f"{crowd.missing()} sockets are not there"
            print(f"{args.sockets:,} sockets opened in {time.monotonic() - began:.0f} s, {machine()}", flush=True)
            for customer in crowd.customers:
                customer.tries = 0
            began, cpu = time.monotonic(), time.process_time()
            ended, there = await restart(where, args.kill)
            await crowd.all_there(GIVEN_UP_S)
            took = max(customer.back_at for customer in crowd.customers) - began
            busy = (time.process_time() - cpu) / (time.monotonic() - began)
            missing, tries = crowd.missing(), sum(customer.tries for customer in crowd.customers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    how = "killed" if args.kill else "stopped"
    print(
        f"both brokers {how} after {ended:.1f} s, listening again after {there:.1f} s; {tries:,} connections were tried"
    )
    return counted(busy, [
        Target("after the restart the last socket is back, s", took, WITHIN_S, most=True),
        Target("sockets that are not back", missing, 0, most=True),
    ])  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench reconnect", description=__doc__)
    parser.add_argument("--sockets", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1_000, help="jobs that they follow")
    parser.add_argument("--kill", action="store_true", help="SIGKILL instead of SIGTERM")
    parser.add_argument("--fsync", default="always", choices=("always", "everysec"))
    print_targets(asyncio.run(measure(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
