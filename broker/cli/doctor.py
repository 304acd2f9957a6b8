"""``doctor``: is everything as it should be, and what to do where it is not."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict

from broker.cli import checks
from broker.cli.checks import Line
from broker.cli.command import Command
from broker.cli.serve import add_queue_arguments, settings_from
from broker.errors import ConfigurationError, EmqError, Unavailable
from broker.files.opening import open_stores
from broker.jobs.figures import public_worker
from broker.logging import configure
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from broker.queue.startup import redis
from broker.settings import Settings

HELP = "check Redis, brokers, the way through the proxy, workers, files and clocks, and say what to do"
MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--broker", action="append", default=[], metavar="URL",
        help="a broker, or the address clients use, through the proxy; may be given again (also asked: EMQ_PUBLIC_URL "
        "and every broker that the pool knows)",
    )  # fmt: skip
    parser.add_argument("--key", help="an API key of scope read, for the look through the brokers (EMQ_API_KEY)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_queue_arguments(parser)


async def _doctor(args: argparse.Namespace) -> int:
    """Exit code 0: nothing has failed; 1: something has. A warning is no failure."""
    settings = settings_from(args)
    configure("ERROR", settings.log_format)
    found = []
    async for line in examine(settings, args.broker, args.key):
        found.append(line)
        if not args.json:
            print(
                f"{MARKS[line.level]}  {line.what}: {line.said}" + (f"\n      -> {line.do}" if line.do else ""),
                flush=True,
            )
    if args.json:
        print(json.dumps({"checks": [asdict(line) for line in found]}, ensure_ascii=False))
    return 1 if any(line.level == "fail" for line in found) else 0


async def examine(settings: Settings, brokers: list[str], key: str | None) -> AsyncIterator[Line]:
    """Every check, one after the other."""
    urls = [url.rstrip("/") for url in [*brokers, *([settings.public_url] if settings.public_url else [])]]
    try:
        async with redis(settings, supervise=False) as connection:
            queue = Queue(connection, settings.pool)
            async for line in _inside(connection, queue, settings):
                yield line
            urls += [url.rstrip("/") for url in await _known_brokers(connection, queue)]
    except (ConfigurationError, Unavailable) as error:
        yield Line("redis", "fail", str(error), "start Redis, or set EMQ_REDIS_URL to where it is")
    yield await _store(settings)
    if not urls:
        yield Line("brokers", "warn", "none is known", "start one, or name it with --broker URL")
    for url in dict.fromkeys(urls):
        for line in await checks.broker(url, key):
            yield line


async def _inside(connection: Connection, queue: Queue, settings: Settings) -> AsyncIterator[Line]:
    """What is seen at Redis itself."""
    for info in await connection.info():
        for line in checks.server(info):
            yield line
    yield await checks.latency(connection, queue.prefix)
    loaded = await checks.functions(connection, queue.prefix)
    yield loaded
    if loaded.level != "ok":
        return  # a call would load them
    stats = await queue.stats()
    for line in checks.pool(stats):
        yield line
    for line in checks.workers([public_worker(row) for row in (await queue.workers()).rows]):
        yield line
    yield checks.secret(settings)


async def _known_brokers(connection: Connection, queue: Queue) -> list[str]:
    """Where the pool's live brokers say that they are."""
    names = (f"{queue.prefix}brokers", f"{queue.prefix}replicas")
    rows = await connection.read(queue.prefix, *(("ZRANGE", name, 0, -1) for name in names))
    return [url.decode() for row in rows for url in row]


async def _store(settings: Settings) -> Line:
    where = settings.store_url or f"the folder {settings.data}"
    try:
        outputs, _ = open_stores(settings)
        await outputs.check()
    except (ConfigurationError, EmqError) as error:
        return Line("files", "fail", str(error), "see docs/deployment.md: where files lie")
    if not settings.store_url:
        return Line("files", "ok", f"{where} can be written; several brokers forward what others hold")
    return Line("files", "ok", f"{where} can be used")


COMMANDS = {"doctor": Command(HELP, _arguments, lambda args: asyncio.run(_doctor(args)))}
