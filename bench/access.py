"""``python -m bench access``: what keys cost, 10,000 idle sockets with a key, and 500 clients that read nothing.

Real brokers, each a process, on a real Valkey; the sockets come from several loopback addresses.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench import crowd, deaf
from bench.server import Server, server
from bench.sockets import RawSocket, allow_open_files, connect, connect_many
from bench.stack import Replica, replica
from bench.targets import Target, print_targets
from broker.access.store import AccessStore
from broker.queue.connection import Connection
from tests.access import test_messages, test_routes
from tests.api import test_malformed, test_malformed_gateway
from tests.support.malformed import BAD_TEXTS
from tests.support.servers import valkey_binary

KEYS = 100
"""Keys that a broker knows while it is measured."""
MESSAGE = b'{"type":"unsubscribe_job","job_id":"0123456789abcdef0123456789abcdef"}'
"""One that a broker answers without asking Redis, so that nothing else blurs what is measured."""
MESSAGES, SENDERS, CONNECTIONS = 10_000, 10, 400


def counts() -> list[Target]:
    """What the tests walk through, from the tests' own tables."""
    routes, messages = len(test_routes.NEEDS), len(test_messages.NEEDS)
    scopes = len(test_routes.SCOPES)
    entrances = {
        "the socket": len(test_malformed.SUBMITS) + len(test_malformed.MESSAGES) + len(BAD_TEXTS),
        "HTTP": len(test_malformed.SUBMITS) + len(BAD_TEXTS),
        "the gateway": sum(
            len(getattr(test_malformed_gateway, table)) for table in ("MESSAGES", "BAD_TEXTS", "FRAMES")
        ),
    }
    corpus = sum(
        1 for path in Path(test_routes.__file__).parents[1].joinpath("fuzz/corpus").rglob("*") if path.is_file()
    )
    print(
        f"{routes} routes and {messages} messages, each by {scopes} scopes; the fuzzer's corpus has {corpus:,} inputs"
    )
    return [Target(f"malformed messages at {name}", count, 80) for name, count in entrances.items()]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two brokers that are compared."""

    replica: Replica
    key: str | None


async def make_keys(url: str, count: int) -> str:
    """So many keys in this Redis; the last one's text."""
    connection = Connection(url)
    try:
        store = AccessStore(connection)
        for _ in range(count):
            _, text = await store.create("bench", ["submit", "read"])
        return text
    finally:
        await connection.close()


async def message_us(side: Side) -> float:
    """Broker CPU of one message (µs), sockets open already."""
    waiting = MESSAGES
    done = asyncio.Event()

    def answered(_: bytes) -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            done.set()

    ports = [side.replica.port] * SENDERS
    sockets = await connect_many(ports, key=side.key, on_text=answered)
    before = side.replica.cpu_s
    for number in range(MESSAGES):
        sockets[number % SENDERS].send(MESSAGE)
    async with asyncio.timeout(60):
        await done.wait()
    spent = side.replica.cpu_s - before
    await _leave(sockets)
    return spent * 1e6 / MESSAGES


async def connection_us(side: Side) -> float:
    """Broker CPU of one connection from the upgrade to the farewell (µs)."""
    before = side.replica.cpu_s
    for _ in range(CONNECTIONS // 20):
        await _leave(await asyncio.gather(*(connect(side.replica.port, key=side.key) for _ in range(20))))
    await asyncio.sleep(0.1)
    return (side.replica.cpu_s - before) * 1e6 / CONNECTIONS


async def _leave(sockets: list[RawSocket]) -> None:
    for one in sockets:
        one.leave()
    async with asyncio.timeout(20):
        await asyncio.gather(*(one.closed for one in sockets))


async def costs(folder: Path, http: aiohttp.ClientSession, rounds: int) -> list[Target]:
    """Messages and connections at a broker without keys and at one with, in turns; medians."""
    with server(binary=valkey_binary()) as plain, server(binary=valkey_binary()) as keyed:
        key = await make_keys(keyed.url, KEYS)
        async with replica(folder / "plain", plain.url, http) as a, replica(folder / "keyed", keyed.url, http) as b:
            sides = (Side(a, None), Side(b, key))
            found = []
            for what, measure, most in (("message", message_us, 1.05), ("connection", connection_us, 1.15)):
                for side in sides:
                    await measure(side)  # warm
                taken = [[await measure(side) for side in sides] for _ in range(rounds)]
                without, with_key = (statistics.median(column) for column in zip(*taken, strict=True))
                ratio = statistics.median(row[1] / row[0] for row in taken)
                print(
                    f"a {what}: {without:.1f} us of broker CPU without keys, {with_key:.1f} us with {KEYS} "
                    f"({with_key - without:+.1f} us; medians of {rounds} rounds in turns)",
                    flush=True,
                )
                found.append(Target(f"a {what} with a key / without", ratio, most, most=True))
    return found


@asynccontextmanager
async def two_brokers(folder: Path, http: aiohttp.ClientSession) -> AsyncIterator[tuple[Server, list[Replica], str]]:
    """Two replicas on one Valkey, and a key."""
    with server(binary=valkey_binary()) as up:
        key = await make_keys(up.url, KEYS)
        async with replica(folder / "one", up.url, http) as one, replica(folder / "two", up.url, http) as two:
            yield up, [one, two], key


async def measure(args: argparse.Namespace) -> list[Target]:
    """Everything, one after the other."""
    found = counts()
    allow_open_files(args.sockets + crowd.SPARE)
    with tempfile.TemporaryDirectory(prefix="emq-access-") as name:
        folder = Path(name)
        for part in ("plain", "keyed", "one", "two"):
            (folder / part).mkdir()
        async with aiohttp.ClientSession() as http:
            if "costs" in args.parts:
                found += await costs(folder, http, args.rounds)
            if "idle" in args.parts:
                async with two_brokers(folder, http) as (_, replicas, key):
                    found += await crowd.idle(replicas, key, args.sockets, args.seconds)
            if "deaf" in args.parts:
                async with two_brokers(folder, http) as (up, replicas, key):
                    found += await deaf.measure(up.url, replicas[0], key, args.deaf, args.deaf_rounds)
    return found


PARTS = ("costs", "idle", "deaf")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench access", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="of the comparison with and without keys")
    parser.add_argument("--sockets", type=int, default=10_000, help="idle sockets, over two brokers")
    parser.add_argument("--seconds", type=float, default=40, help="how long they idle")
    parser.add_argument("--deaf", type=int, default=500, help="clients that read nothing")
    parser.add_argument("--deaf-rounds", type=int, default=3, help="of the comparison with them and without")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="only these measurements")
    args = parser.parse_args(argv)
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    print_targets(asyncio.run(measure(args)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
