"""``submit`` and ``watch``: run a workflow from the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from broker.cli import client, files, templates
from broker.cli.command import Command
from broker.cli.watch import Screen, describe, follow
from broker.client import Client, JobHandle
from broker.errors import BadMessage, EmqError
from broker.jobs import strict

WHOLE = frozenset({"workflow", "prompt", "template"})
"""What a payload has that is more than a graph."""


def _watch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help="save the job's files there")
    client.add_arguments(parser)


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", nargs="?", help="API-format workflow (a JSON file, - for stdin)")
    parser.add_argument("--template", metavar="NAME[@VERSION]", help="a stored template in place of a workflow")
    templates.add_values(parser)
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NODE.INPUT=FILE",
        help="an input file: its path, a URL, or blake3:… of one that is stored; repeatable",
    )
    parser.add_argument("--watch", action="store_true", help="follow the job until it ends")
    parser.add_argument("--priority", type=int, default=0, help="-100 to 100, higher first (0)")
    parser.add_argument("--tag", action="append", default=[], help="a tag that the worker must have; repeatable")
    parser.add_argument("--idempotency-key", help="the same key gives the same job")
    parser.add_argument("--timeout", type=float, metavar="S", help="limit of the execution in seconds")
    parser.add_argument("--strict", action="store_true", help="refuse when no live worker could run it")
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, submit nothing")
    _watch_arguments(parser)


def _read(path: str) -> dict[str, Any]:
    raw = templates.read(path)
    try:
        workflow = strict.parse(raw)
    except EmqError as error:
        raise BadMessage(f"{path}: {error.message}") from None
    if not isinstance(workflow, dict):
        raise BadMessage(f"{path} has no workflow: it must be a JSON object.")
    return workflow


async def _payload(emq: Client, args: argparse.Namespace) -> dict[str, Any]:
    if (args.workflow is None) == (args.template is None):
        raise BadMessage("Give either a workflow or --template.")
    payload = _read(args.workflow) if args.template is None else await _of_template(emq, args)
    if not args.input:
        return payload
    whole = payload if WHOLE & payload.keys() else {"workflow": payload}
    return {**whole, "inputs": {**whole.get("inputs", {}), **await files.sources(emq, args.input)}}


async def _of_template(emq: Client, args: argparse.Namespace) -> dict[str, Any]:
    return {"template": args.template, "params": await templates.values(emq, args.template, args.param)}


def _message(args: argparse.Namespace, payload: Any) -> dict[str, Any]:
    fields = {
        "payload": payload,
        "priority": args.priority,
        "requirements": {"tags": args.tag},
        "idempotency_key": args.idempotency_key,
        "timeout_s": args.timeout,
        "strict": args.strict,
        "dry_run": args.dry_run,
    }
    return {name: value for name, value in fields.items() if value is not None}


async def _submit(emq: Client, args: argparse.Namespace) -> int:
    message = _message(args, await _payload(emq, args))
    if args.dry_run:
        print(json.dumps(await emq.request("POST", "/api/jobs", message), indent=2, ensure_ascii=False))
        return 0
    follow = bool(args.watch or args.output)
    job = await emq.submit(follow=follow, **message)
    if job.accepted is not None:
        print("\n".join(describe(job.accepted)), flush=True)
    return await _follow(emq, job, args.output) if follow else 0


async def _watch(emq: Client, args: argparse.Namespace) -> int:
    return await _follow(emq, emq.handle(args.job), args.output)


async def _follow(emq: Client, job: JobHandle, output: Path | None) -> int:
    outputs = await follow(job, Screen())
    print(f"completed with {len(outputs)} output{'' if len(outputs) == 1 else 's'}")
    if output is not None:
        for path in await emq.save(outputs, output):
            print(path)
    else:
        for made in outputs:
            print(made.url or made.filename)
    return 0


def _job_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="the job's id")
    _watch_arguments(parser)


COMMANDS = {
    "submit": Command("submit a workflow", _submit_arguments, lambda args: client.run(_submit, args)),
    "watch": Command("follow a job", _job_argument, lambda args: client.run(_watch, args)),
}
