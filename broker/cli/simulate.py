"""``simulate``: a fleet that needs no GPU, for load and for looking at the dashboard."""

from __future__ import annotations

import argparse
import asyncio

from broker.cli import client
from broker.cli.command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="simulated GPUs (8)")
    parser.add_argument("--rate", type=float, default=1.0, metavar="N", help="jobs a second (1)")
    parser.add_argument("--pace", type=float, default=1.0, metavar="N", help="so many times as fast as real ones (1)")
    parser.add_argument("--failing", type=float, default=0.03, metavar="SHARE", help="share of runs that fail (0.03)")
    parser.add_argument("--backlog", type=int, default=0, metavar="N", help="jobs that are sent at once (0)")
    parser.add_argument("--stuck", type=int, default=2, metavar="N", help="jobs that no GPU can run (2)")
    parser.add_argument("--name", default="sim", help="what the workers' names begin with (sim)")
    parser.add_argument("--seconds", type=float, metavar="N", help="end after this time")
    parser.add_argument("--redis", metavar="URL", help="let the GPUs use Redis instead of the broker's gateway")
    parser.add_argument("--pool", default="default", help="with --redis: the pool")
    client.add_arguments(parser)


def _run(args: argparse.Namespace) -> int:
    # Not needed by any other command, and it imports the worker's client.
    from broker.trial.simulate import Plan, simulate  # noqa: PLC0415

    plan = Plan(
        args.broker.rstrip("/"), args.key, args.workers, args.rate, max(0.01, args.pace), args.failing, args.backlog,
        args.seconds, args.redis, args.pool, args.stuck, args.name,
    )  # fmt: skip
    asyncio.run(simulate(plan))
    return 0


COMMANDS = {"simulate": Command("simulated GPUs and jobs, for load and for looking", _arguments, _run)}
