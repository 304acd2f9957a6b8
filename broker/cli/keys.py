"""``keys``: make, list, rotate and revoke API keys, in the queue's Redis itself.

That works before the first start and while brokers run, and needs no key: who reaches the data folder or Redis may do
anything already.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

from broker.access.keys import Key, split
from broker.access.limits import KeyLimits
from broker.access.store import AccessStore
from broker.cli.client import table
from broker.cli.command import Command
from broker.cli.serve import add_queue_arguments, settings_from
from broker.logging import configure
from broker.queue.startup import redis

ADVICE = "Keep this key: only its hash is stored, nobody can show it again."


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key; it is printed once, alone on the last line")
    create.add_argument("--tenant", required=True, help="whose jobs it sees")
    create.add_argument("--scopes", required=True, help="comma-separated: submit, read, worker, admin")
    create.add_argument("--expires-s", type=float, metavar="N", help="seconds until it ends (default: never)")
    create.add_argument("--name", default="", help="a label for the list")
    create.add_argument("--submits-per-s", type=float, default=0, metavar="N", help="jobs a second (default: setting)")
    create.add_argument("--max-sockets", type=int, default=0, metavar="N", help="open at once (default: setting)")
    actions.add_parser("list", help="every key").add_argument("--json", action="store_true")
    actions.add_parser("revoke", help="end a key and what it has opened").add_argument("key", metavar="ID")
    rotate = actions.add_parser("rotate", help="give a key another secret; it is printed once, alone on the last line")
    rotate.add_argument("key", metavar="ID")
    rotate.add_argument("--grace-s", type=float, default=0, metavar="N", help="how long the old one still counts")
    for action in actions.choices.values():
        add_queue_arguments(action)


async def _keys(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    async with redis(settings, supervise=False) as connection:
        lines = await _ACTIONS[args.action](AccessStore(connection), args)
    # After the embedded Valkey's farewell in the log: the key is to be the last line of all.
    print("\n".join(lines), flush=True)
    return 0


async def _create(store: AccessStore, args: argparse.Namespace) -> list[str]:
    scopes = [name.strip() for name in args.scopes.split(",") if name.strip()]
    limits = KeyLimits(max(0, args.submits_per_s), max(0, args.max_sockets))
    key, text = await store.create(args.tenant, scopes, expires_s=args.expires_s, name=args.name, limits=limits)
    return [f"Key {key.key_id} of tenant {key.tenant}: {', '.join(key.public()['scopes'])}.", ADVICE, text]


async def _list(store: AccessStore, args: argparse.Namespace) -> list[str]:
    _, found = await store.load()
    keys = sorted(found.values(), key=lambda key: (key.created_at, key.key_id))
    if args.json:
        return [json.dumps({"keys": [key.public() for key in keys]}, ensure_ascii=False)]
    rows = [_row(key) for key in keys]
    return [table(rows, ["ID", "TENANT", "SCOPES", "STATE", "LAST USED", "NAME"]) if rows else "no keys"]


async def _revoke(store: AccessStore, args: argparse.Namespace) -> list[str]:
    key = await store.revoke(_id(args.key))
    return [f"Key {key.key_id} of tenant {key.tenant} is revoked; brokers close what it has opened within seconds."]


async def _rotate(store: AccessStore, args: argparse.Namespace) -> list[str]:
    key, text = await store.rotate(_id(args.key), max(0, args.grace_s))
    old = f"counts for {args.grace_s:g} s more" if args.grace_s > 0 else "has ended"
    return [f"Key {key.key_id} has a new secret, the old one {old}.", ADVICE, text]


def _id(text: str) -> str:
    """The id, also out of a whole key."""
    found = split(text)
    return found[0] if found else text


def _row(key: Key) -> list[Any]:
    return [key.key_id, key.tenant, ",".join(key.public()["scopes"]), _state(key), when(key.used_at), key.name]


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {when(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'valid until' if key.live(time.time_ns() // 1_000_000) else 'expired'} {when(key.expires_at)}"


def when(moment_ms: int | None) -> str:
    """A moment for people."""
    return "" if moment_ms is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(moment_ms / 1000))


_ACTIONS = {"create": _create, "list": _list, "revoke": _revoke, "rotate": _rotate}

COMMANDS = {
    "keys": Command("API keys: create, list, rotate, revoke", _arguments, lambda args: asyncio.run(_keys(args)))
}
