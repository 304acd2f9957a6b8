"""``jobs`` and ``stats``: look at the queue and change it."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any
from urllib.parse import quote

from broker.cli import client
from broker.cli.client import table
from broker.cli.command import Command
from broker.client import Client
from broker.errors import BadMessage


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the newest jobs")
    _filters(listing)
    for name, text in (("show", "a job's record"), ("cancel", "cancel jobs"), ("retry", "run ended jobs again")):
        actions.add_parser(name, help=text).add_argument("jobs", nargs="+", metavar="JOB")
    actions.choices["cancel"].add_argument("--reason", default="")
    dead = actions.add_parser("dead", help="jobs that their workers did not survive, with the evidence")
    dead.add_argument("--retry", nargs="*", metavar="JOB", help="run them again: these, or all")
    dead.add_argument("--limit", type=int, default=20)
    moving = actions.add_parser("priority", help="move a waiting job")
    moving.add_argument("jobs", nargs=1, metavar="JOB")
    moving.add_argument("priority", help="-100 to 100, or front")
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", help="print the broker's answers as they are")
        client.add_arguments(action)


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--status", help="only these states, comma-separated")
    parser.add_argument("--worker", help="held or ended by this worker")
    parser.add_argument("--error", metavar="CODE", help="failed with this code")
    parser.add_argument("--model", metavar="FILE", help="needs this checkpoint or diffusion model")
    parser.add_argument("--group", help="of this group")
    parser.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE", help="has this label")
    parser.add_argument("--since", metavar="AGE", help="submitted within this time: 90s, 15m, 2h, 7d")
    parser.add_argument("--until", metavar="AGE", help="submitted before this time")
    parser.add_argument("--tenant", help="another tenant's, or * for everybody's (administrators)")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--cursor", help="go on where a page ended")


def _query(args: argparse.Namespace) -> dict[str, Any]:
    """The filters as the broker's query; raises ``BadMessage`` for what cannot be read."""
    names = ("status", "worker", "error", "model", "group", "tenant", "limit", "cursor")
    query = {name: getattr(args, name) for name in names}
    query |= {name: _ago(getattr(args, name)) for name in ("since", "until") if getattr(args, name)}
    for text in args.metadata:
        name, given, value = text.partition("=")
        if not given:
            raise BadMessage(f"--metadata takes NAME=VALUE, not {text!r}.")
        query[f"metadata[{name}]"] = value
    return query


def _ago(text: str) -> int:
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        return round((time.time() - float(text[:-1]) * seconds[text[-1]]) * 1000)
    except (KeyError, ValueError):
        raise BadMessage(f"{text!r} is no time like 90s, 15m, 2h or 7d.") from None


async def _jobs(emq: Client, args: argparse.Namespace) -> int:
    if args.action == "list":
        page = await emq.request("GET", "/api/jobs", **_query(args))
        print(json.dumps(page, ensure_ascii=False) if args.json else _listing(page["jobs"]))
        if page["next_cursor"] and not args.json:
            print(f"more: --cursor {page['next_cursor']}")
        return 0
    if args.action == "dead":
        return await _dead(emq, args)
    for job in args.jobs:
        path = f"/api/jobs/{quote(job, safe='')}"
        if args.action == "show":
            answer = await emq.request("GET", path)
            print(json.dumps(answer, indent=None if args.json else 2, ensure_ascii=False))
            continue
        answer = await emq.request("POST", f"{path}/{args.action}", _change(args))
        print(json.dumps(answer, ensure_ascii=False) if args.json else f"{job}: {answer.get('status') or 'done'}")
    return 0


async def _dead(emq: Client, args: argparse.Namespace) -> int:
    if args.retry is not None:
        answer = await emq.request("POST", "/api/dead/retry", {"job_ids": args.retry or None})
        print(json.dumps(answer) if args.json else f"{answer['retried']} run again")
        return 0
    page = await emq.request("GET", "/api/dead", limit=args.limit)
    print(json.dumps(page, ensure_ascii=False) if args.json else _evidence(page["jobs"]))
    return 0


def _evidence(jobs: list[dict[str, Any]]) -> str:
    if not jobs:
        return "no dead letters"
    rows = [[job["job_id"], _age(job["finished_at"]), ", ".join(map(_crash, job["crash_log"]))] for job in jobs]
    return table(rows, ["JOB", "DIED", "LOST WORKERS"])


def _crash(crash: dict[str, Any]) -> str:
    node = crash["node"]
    return f"{crash['worker_id']}{' at ' + str(node['id']) + ' ' + str(node['class_type']) if node else ''}"


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


async def _stats(emq: Client, args: argparse.Namespace) -> int:
    print(json.dumps(await emq.request("GET", "/stats"), indent=2))
    return 0


COMMANDS = {
    "jobs": Command("list, show, cancel, retry, move jobs", _arguments, lambda args: client.run(_jobs, args)),
    "stats": Command("the queue's figures", client.add_arguments, lambda args: client.run(_stats, args)),
}
