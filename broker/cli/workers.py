"""``workers``: look at the fleet, pause, resume and drain."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import quote

from broker.cli import client
from broker.cli.client import table
from broker.cli.command import Command
from broker.client import Client


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the fleet")
    texts = {
        "pause": "hand a worker no more jobs",
        "resume": "undo pause and drain",
        "drain": "let a worker finish what it has and take nothing new",
    }
    for name, text in texts.items():
        actions.add_parser(name, help=text).add_argument("workers", nargs="+", metavar="WORKER")
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", help="print the broker's answers as they are")
        client.add_arguments(action)


async def _workers(emq: Client, args: argparse.Namespace) -> int:
    if args.action == "list":
        answer = await emq.request("GET", "/api/workers")
        print(json.dumps(answer, ensure_ascii=False) if args.json else _listing(answer["workers"]))
        return 0
    for worker in args.workers:
        answer = await emq.request("POST", f"/api/workers/{quote(worker, safe='')}/{args.action}")
        print(json.dumps(answer, ensure_ascii=False) if args.json else f"{worker}: done")
    return 0


def _listing(workers: list[dict[str, Any]]) -> str:
    if not workers:
        return "no workers; python install.py COMFYUI_DIR puts one into a ComfyUI"
    rows = [[w["worker_id"], _state(w), len(w["jobs"]), _gpus(w), w["comfyui_version"]] for w in workers]
    return table(rows, ["WORKER", "STATE", "JOBS", "GPU", "COMFYUI"])


def _state(worker: dict[str, Any]) -> str:
    marks = [name for name in ("paused", "draining") if worker[name] and name != worker["status"]]
    return ", ".join([worker["status"], *marks])


def _gpus(worker: dict[str, Any]) -> str:
    return ", ".join(str(gpu.get("name", "GPU")) for gpu in worker["gpus"] or [] if isinstance(gpu, dict))


COMMANDS = {"workers": Command("list, pause, resume, drain workers", _arguments, lambda a: client.run(_workers, a))}
