"""``fsck``: check that records, indexes and counters of the queue agree, and repair them."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from broker.cli.command import Command
from broker.cli.serve import add_queue_arguments, settings_from
from broker.logging import configure
from broker.queue.fsck import Check
from broker.queue.invariants import Finding
from broker.queue.queue import Queue
from broker.queue.repair import repair
from broker.queue.startup import redis

HELP = "check that records, indexes and counters of the queue agree; also while it works"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="put right what can be: the records are believed")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_queue_arguments(parser)


async def _fsck(args: argparse.Namespace) -> int:
    """Exit code 0: nothing is wrong (any more); 1: something is."""
    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    async with redis(settings, supervise=False) as connection:
        queue = Queue(connection, settings.pool)
        if args.repair:
            await connection.load(queue.prefix)
            found, left = await repair(queue, connection)
        else:
            found = left = await Check(connection, queue.prefix).run()
    if args.json:
        print(json.dumps({"found": [asdict(f) for f in found], "left": [asdict(f) for f in left]}, ensure_ascii=False))
    else:
        _print(found, left, args.repair)
    return 1 if left else 0


def _print(found: Sequence[Finding], left: Sequence[Finding], repaired: bool) -> None:
    for finding in found:
        print(finding)
    if not found:
        print("nothing is wrong")
        return
    print(f"{len(found)} findings" + (f", {len(left)} left after the repair" if repaired else ""), file=sys.stderr)
    if repaired:
        for finding in left:
            print(f"left: {finding}", file=sys.stderr)
    else:
        print("python -m broker fsck --repair puts right what can be", file=sys.stderr)


COMMANDS = {"fsck": Command(HELP, _arguments, lambda args: asyncio.run(_fsck(args)))}
