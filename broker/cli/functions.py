"""``functions load``: put this release's function library onto the Redis server."""

from __future__ import annotations

import argparse
import asyncio

from broker.cli.command import Command
from broker.cli.serve import add_queue_arguments, settings_from
from broker.logging import configure
from broker.queue.queue import Queue
from broker.queue.startup import redis


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["load"], help="load the queue's functions")
    parser.add_argument("--force", action="store_true", help="replace a newer library too (the way back to a release)")
    add_queue_arguments(parser)


async def _load(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    async with redis(settings, supervise=False) as connection:
        queue = Queue(connection, settings.pool)
        await connection.load(queue.prefix, force=args.force)
        print(f"the server has library version {await queue.library()}")
    return 0


COMMANDS = {"functions": Command("load the queue's functions", _arguments, lambda args: asyncio.run(_load(args)))}
