"""``export``, ``import`` and ``replay``: waiting jobs out of the queue, back into one, or past it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from broker.cli.command import Command
from broker.cli.serve import add_queue_arguments, settings_from
from broker.files.opening import open_stores
from broker.jobs.archive import Archive
from broker.jobs.export import Exporter, Importer, Stores
from broker.jobs.fleet import Fleet
from broker.jobs.replay import Replay
from broker.jobs.submission import Submitter
from broker.logging import configure
from broker.protocol.base import now_ms
from broker.queue.queue import Queue
from broker.queue.seal import Seal
from broker.queue.startup import redis
from broker.settings import Settings


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the export")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--take", action="store_true", help="also cancel them here, with the reason `exported`")
    parser.add_argument("--tenant", default="", help="only this tenant's")
    add_queue_arguments(parser)


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    add_queue_arguments(parser)


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--comfyui", required=True, metavar="URL", help="the ComfyUI, such as http://127.0.0.1:8188")
    parser.add_argument("--output", type=Path, metavar="DIR", help="save results there, a folder a job")
    parser.add_argument("--limit", type=float, default=3600, metavar="S", help="longest time of one job (3600)")
    parser.add_argument("--fetch-urls", action="store_true", help="fetch inputs from the URLs that jobs name")


@asynccontextmanager
async def _queue(args: argparse.Namespace) -> AsyncIterator[tuple[Queue, Stores, Settings]]:
    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    async with redis(settings, supervise=False) as connection:
        queue = Queue(connection, settings.pool, Seal.of(settings.payload_key))
        await connection.load(queue.prefix)
        outputs, assets = open_stores(settings)
        yield queue, Stores(outputs, assets), settings


async def _export(args: argparse.Namespace) -> int:
    """Exit code 0: everything that waits is in the folder; 1: files are missing."""
    async with _queue(args) as (queue, stores, _):
        done = await Exporter(queue, stores, Archive.create(args.folder)).run(args.tenant, args.take)
    print(f"{done.written} jobs exported to {args.folder}, {done.known} were there already")
    if args.take:
        print(f"{done.taken} of them left the queue (cancelled, reason: exported)")
    for line in done.missing:
        print(f"missing: {line}")
    return 1 if done.missing else 0


async def _import(args: argparse.Namespace) -> int:
    """Exit code 0: every job of the folder is in the queue; 1: some were refused."""
    archive = Archive.open(args.folder)
    async with _queue(args) as (queue, stores, settings):
        submitter = Submitter(queue, Fleet(queue), settings)
        done = await Importer(queue, submitter, stores.assets, archive).run(now_ms())
    print(f"{done.submitted} jobs submitted, {done.returned} put back, {done.known} were there already")
    for line in done.refused:
        print(f"refused: {line}")
    return 1 if done.refused else 0


async def _replay(args: argparse.Namespace) -> int:
    """Exit code 0: every job was completed; 1: some were not."""
    failed = total = 0
    async with Replay(Archive.open(args.folder), args.comfyui, args.output, args.fetch_urls) as replay:
        async for outcome in replay.run(args.limit):
            total += 1
            failed += outcome.status != "completed"
            rest = outcome.reason or " ".join(outcome.files)
            print(f"{outcome.job_id} {outcome.status}{': ' + rest if rest else ''}", flush=True)
    print(f"{total - failed} of {total} jobs completed")
    return 1 if failed else 0


COMMANDS = {
    "export": Command("write the waiting jobs and their files", _export_arguments, lambda a: asyncio.run(_export(a))),
    "import": Command("submit exported jobs again", _import_arguments, lambda a: asyncio.run(_import(a))),
    "replay": Command("run exported jobs on a plain ComfyUI", _replay_arguments, lambda a: asyncio.run(_replay(a))),
}
