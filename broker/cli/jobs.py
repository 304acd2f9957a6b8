"""``jobs`` and ``stats``: look at the queue and change it."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any
from urllib.parse import quote

from broker.cli import client
from broker.cli.client import Broker, table
from broker.cli.command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the newest jobs")
    listing.add_argument("--status", help="only these states, comma-separated")
    listing.add_argument("--limit", type=int, default=20)
    for name, text in (("show", "a job's record"), ("cancel", "cancel jobs"), ("retry", "run ended jobs again")):
        actions.add_parser(name, help=text).add_argument("jobs", nargs="+", metavar="JOB")
    actions.choices["cancel"].add_argument("--reason", default="")
    moving = actions.add_parser("priority", help="move a waiting job")
    moving.add_argument("jobs", nargs=1, metavar="JOB")
    moving.add_argument("priority", help="-100 to 100, or front")
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", help="print the broker's answers as they are")
        client.add_arguments(action)


async def _jobs(broker: Broker, args: argparse.Namespace) -> int:
    if args.action == "list":
        page = await broker.ask("GET", "/api/jobs", status=args.status, limit=args.limit)
        print(json.dumps(page, ensure_ascii=False) if args.json else _listing(page["jobs"]))
        return 0
    for job in args.jobs:
        path = f"/api/jobs/{quote(job, safe='')}"
        if args.action == "show":
            answer = await broker.ask("GET", path)
            print(json.dumps(answer, indent=None if args.json else 2, ensure_ascii=False))
            continue
        answer = await broker.ask("POST", f"{path}/{args.action}", _change(args))
        print(json.dumps(answer, ensure_ascii=False) if args.json else f"{job}: {answer.get('status') or 'done'}")
    return 0


def _change(args: argparse.Namespace) -> dict[str, Any]:
    if args.action == "priority":
        return {"front": True} if args.priority == "front" else {"priority": _number(args.priority)}
    return {"reason": args.reason} if args.action == "cancel" else {}


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return text  # the broker says what it may be


def _listing(jobs: list[dict[str, Any]]) -> str:
    if not jobs:
        return "no jobs"
    rows = [
        [job["job_id"], job["status"], _percent(job), job["priority"], job["worker_id"], _age(job["created_at"])]
        for job in jobs
    ]
    return table(rows, ["JOB", "STATUS", "DONE", "PRIORITY", "WORKER", "AGE"])


def _percent(job: dict[str, Any]) -> str:
    return "" if job["progress"] is None else f"{job['progress']:.0f} %"


def _age(created_ms: int | None) -> str:
    return "" if not created_ms else f"{max(0, time.time() - created_ms / 1000):.0f} s"


async def _stats(broker: Broker, args: argparse.Namespace) -> int:
    print(json.dumps(await broker.ask("GET", "/stats"), indent=2))
    return 0


COMMANDS = {
    "jobs": Command("list, show, cancel, retry, move jobs", _arguments, lambda args: client.run(_jobs, args)),
    "stats": Command("the queue's figures", client.add_arguments, lambda args: client.run(_stats, args)),
}
