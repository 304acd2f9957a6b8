"""``tenants``: what each tenant may use, in the queue's Redis itself; brokers that run honour it within a second."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from pydantic import ValidationError

from broker.access.policies import Policies
from broker.access.store import AccessStore
from broker.cli.client import table
from broker.cli.command import Command
from broker.cli.serve import add_queue_arguments, settings_from
from broker.errors import BadMessage
from broker.jobs.payloads import message_errors
from broker.logging import configure
from broker.protocol.access import TenantPolicy
from broker.queue.startup import redis

LISTS = {"node_allow", "node_deny", "model_allow"}
UNSAID = {"type", "message_id", "timestamp"}
FIELDS = {name: field for name, field in TenantPolicy.model_fields.items() if name not in UNSAID}


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="what was set for tenants").add_argument("--json", action="store_true")
    show = actions.add_parser("show", help="a tenant's limits, the settings' defaults included")
    change = actions.add_parser("set", help="set limits; the others stay. `default` takes one back, 0 means none")
    for action in (show, change):
        action.add_argument("tenant")
    for name, field in FIELDS.items():
        change.add_argument("--" + name.replace("_", "-"), metavar="N", help=field.description)
    for action in actions.choices.values():
        add_queue_arguments(action)


async def _run(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    async with redis(settings, supervise=False) as connection:
        store, policies = AccessStore(connection), Policies(settings)
        if args.action == "set":
            await _set(store, args)
        found = await store.tenants()
    policies.update(found, {})
    if args.action == "list":
        print(_list(found, args.json))
    else:
        print("\n".join(f"{name} {value}" for name, value in _shown(policies, args.tenant).items()))
    return 0


async def _set(store: AccessStore, args: argparse.Namespace) -> None:
    old = (await store.tenants()).get(args.tenant, TenantPolicy())
    given = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    if not given:
        raise BadMessage("Say what to set, for example --max-queued 1000.")
    changed = {name: None if text == "default" else _value(name, text) for name, text in given.items()}
    try:
        policy = TenantPolicy.model_validate({**old.model_dump(exclude=UNSAID), **changed})
    except ValidationError as error:
        raise message_errors(error) from None
    await store.set_tenant(args.tenant, policy)


def _value(name: str, text: str) -> Any:
    if name in LISTS:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(policies: Policies, tenant: str) -> dict[str, Any]:
    limits, rules = policies.limits(tenant), policies.rules(tenant)
    shown = {name: getattr(limits if hasattr(limits, name) else rules, name) for name in FIELDS}
    return {name: _listed(value) if name in LISTS else value for name, value in shown.items()}


def _listed(names: tuple[str, ...] | None) -> str:
    return "all" if names is None else ", ".join(names) or "none"


def _list(found: dict[str, TenantPolicy], as_json: bool) -> str:
    rows = {tenant: policy.model_dump(exclude_none=True, exclude=UNSAID) for tenant, policy in found.items()}
    if as_json:
        return json.dumps({"tenants": rows}, ensure_ascii=False)
    lines = [[name, " ".join(f"{key}={value}" for key, value in row.items())] for name, row in rows.items() if row]
    return table(lines, ["TENANT", "SET"]) if lines else "nothing is set: every tenant has the settings' defaults"


COMMANDS = {
    "tenants": Command("what each tenant may use: list, show, set", _arguments, lambda args: asyncio.run(_run(args)))
}
