"""``users``: add, list and remove people, change their passwords; ``audit``: who did what. Both in Redis itself."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from broker.access.store import AccessStore
from broker.access.users import new_password
from broker.cli.client import table
from broker.cli.command import Command
from broker.cli.keys import when
from broker.cli.serve import add_queue_arguments, settings_from
from broker.logging import configure
from broker.queue.startup import redis

ROLES = {"read": "viewer", "submit": "operator", "admin": "admin"}
"""The role that the widest scope amounts to."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="add a person; a drawn password is printed once, alone on the last line")
    create.add_argument("name")
    create.add_argument("--tenant", default="default", help="whose jobs they see (default: default)")
    what = create.add_mutually_exclusive_group(required=True)
    what.add_argument("--role", choices=sorted(ROLES.values()), help="viewer sees, operator acts, admin may everything")
    what.add_argument("--scopes", help="the same as scopes: read, read,submit or admin")
    change = actions.add_parser("password", help="change a password, which ends the person's sessions")
    change.add_argument("name")
    for action in (create, change):
        action.add_argument("--password-stdin", action="store_true", help="read the password instead of drawing one")
    actions.add_parser("remove", help="remove a person and end what they have opened").add_argument("name")
    actions.add_parser("list", help="everybody").add_argument("--json", action="store_true")
    for action in actions.choices.values():
        add_queue_arguments(action)


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="how many entries, newest first (50)")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(action="audit")
    add_queue_arguments(parser)


async def _run(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    async with redis(settings, supervise=False) as connection:
        lines = await _ACTIONS[args.action](AccessStore(connection), args)
    print("\n".join(lines), flush=True)
    return 0


def _password(args: argparse.Namespace) -> str:
    return sys.stdin.readline().rstrip("\r\n") if args.password_stdin else new_password()


def _told(args: argparse.Namespace, line: str, password: str) -> list[str]:
    return [line] if args.password_stdin else [line, "This password is shown once:", password]


def _role(args: argparse.Namespace) -> str:
    if args.role:
        return str(args.role)
    names = {name.strip() for name in args.scopes.split(",")}
    return next((role for scope, role in reversed(ROLES.items()) if scope in names), args.scopes)


async def _create(store: AccessStore, args: argparse.Namespace) -> list[str]:
    password = _password(args)
    user = await store.create_user(args.name, args.tenant, _role(args), password)
    return _told(args, f"User {user.name} of tenant {user.tenant}: {user.role}.", password)


async def _change(store: AccessStore, args: argparse.Namespace) -> list[str]:
    password = _password(args)
    user = await store.set_password(args.name, password)
    return _told(args, f"User {user.name} has a new password; sessions of the old one end within seconds.", password)


async def _remove(store: AccessStore, args: argparse.Namespace) -> list[str]:
    user = await store.remove_user(args.name)
    return [f"User {user.name} is removed; brokers close what they have opened within seconds."]


async def _list(store: AccessStore, args: argparse.Namespace) -> list[str]:
    found = [user.public() for user in (await store.users()).values()]
    if args.json:
        return [json.dumps({"users": found}, ensure_ascii=False)]
    rows = [[user["name"], user["tenant"], user["role"], when(user["created_at"])] for user in found]
    return [table(rows, ["NAME", "TENANT", "ROLE", "CREATED"]) if rows else "no users"]


async def _audit(store: AccessStore, args: argparse.Namespace) -> list[str]:
    entries, _ = await store.audit(max(1, min(args.limit, 1000)))
    if args.json:
        return [json.dumps({"entries": entries}, ensure_ascii=False)]
    rows: list[list[Any]] = [
        [_moment(e["at"]), *(e.get(n, "") for n in ("who", "ip", "what", "target"))] for e in entries
    ]
    return [table(rows, ["WHEN", "WHO", "FROM", "WHAT", "TARGET"]) if rows else "nothing"]


def _moment(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at / 1000))


_ACTIONS = {"create": _create, "password": _change, "remove": _remove, "list": _list, "audit": _audit}

COMMANDS = {
    "users": Command("people: create, list, password, remove", _arguments, lambda args: asyncio.run(_run(args))),
    "audit": Command("who did what", _audit_arguments, lambda args: asyncio.run(_run(args))),
}
