"""``pause``, ``resume`` and ``drain``: hand out no more work. They work on the queue itself and need no broker."""

from __future__ import annotations

import argparse
import asyncio
import time

from broker.cli.command import Command
from broker.cli.serve import add_queue_arguments, settings_from
from broker.logging import configure
from broker.queue.queue import Queue
from broker.queue.startup import redis

LOOK_S = 0.5


def _arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tenant", metavar="T", help="only the jobs of this tenant")
    which.add_argument("--worker", metavar="W", help="only this worker")
    add_queue_arguments(parser)


def _drain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=float, default=3600, metavar="S", help="wait so long at most (3600)")
    add_queue_arguments(parser)


async def _pause(args: argparse.Namespace, on: bool) -> int:
    scope = "tenant" if args.tenant else "worker" if args.worker else "pool"
    target = args.tenant or args.worker or ""
    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    async with redis(settings, supervise=False) as connection:
        queue = Queue(connection, settings.pool)
        await connection.load(queue.prefix)
        await queue.pause(scope, target, on)
    print(f"{scope} {target or settings.pool} {'is paused; what runs goes on' if on else 'goes on'}")
    return 0


async def _drain(args: argparse.Namespace) -> int:
    """Exit code 0: nothing runs any more; 1: after the time limit something still does."""
    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    until = time.monotonic() + args.limit
    async with redis(settings, supervise=False) as connection:
        queue = Queue(connection, settings.pool)
        await connection.load(queue.prefix)
        await queue.pause("pool", "", True)
        while left := await _running(queue):
            if time.monotonic() > until:
                print(f"pool {settings.pool} is paused; {left} jobs still run")
                return 1
            await asyncio.sleep(LOOK_S)
    print(f"pool {settings.pool} is paused, and nothing runs")
    return 0


async def _running(queue: Queue) -> int:
    # Without a broker nobody else takes back what lost workers hold.
    await queue.sweep()
    stats = await queue.stats()
    return stats.number("claimed") + stats.number("processing")


COMMANDS = {
    "pause": Command("hand out no more jobs", _arguments, lambda args: asyncio.run(_pause(args, True))),
    "resume": Command("hand jobs out again", _arguments, lambda args: asyncio.run(_pause(args, False))),
    "drain": Command("pause, and wait until nothing runs", _drain_arguments, lambda args: asyncio.run(_drain(args))),
}
