"""Puts right what a check of a pool found, one atomic call a finding, and says what it cannot."""

from __future__ import annotations

from collections.abc import Iterable

from broker.queue import invariants as must
from broker.queue.fsck import Check, Reader
from broker.queue.invariants import Finding
from broker.queue.new_job import Value
from broker.queue.queue import Queue

Call = dict[str, Value | None]
ROUNDS = 3
"""A repair can show what it had hidden; after this many checks the rest is left."""


async def repair(queue: Queue, reader: Reader) -> tuple[list[Finding], list[Finding]]:
    """Check and repair until nothing that can be repaired is left.

    Answers what was found at first and what is left. Raises ``Unavailable`` while Redis is away.
    """
    check = Check(reader, queue.prefix)
    first = left = await check.run()
    for _ in range(ROUNDS):
        calls = _calls(left, check)
        if not calls:
            break
        for pairs in calls:
            await queue.call("repair", pairs.items())
        check = Check(reader, queue.prefix)
        left = await check.run()
    return first, left


def _calls(findings: Iterable[Finding], check: Check) -> list[Call]:
    """What to call, in an order in which each call finds what it needs done: from jobs to counters."""
    calls: dict[str, list[Call]] = {"job": [], "entry": [], "match": [], "order": [], "count": []}
    for finding in findings:
        stage, call = _call(finding, check)
        if call is not None and call not in calls[stage]:
            calls[stage].append(call)
    # A job that was put back, or an entry that went, moves counters.
    if any(calls.values()):
        workers: list[Call] = [{"worker": worker} for worker in check.workers]
        lanes = "\n".join(f"{name}:{tenant}" for name, tenant in sorted(check.lanes))
        levels: list[Call] = [{"level": level, "lanes": lanes} for level in sorted(check.levels)]
        tenants: list[Call] = [{"count": tenant} for tenant in sorted(check.tenants)]
        calls["count"] = [*workers, {"fleet": "\n".join(check.workers)}, *levels, *tenants, {"count": ""}]
    return [call for stage in calls.values() for call in stage]


def _call(finding: Finding, check: Check) -> tuple[str, Call | None]:
    """The stage and the call; an empty call asks for a recount only, ``None`` says that nothing can be done."""
    kind, _, name = finding.key.partition(":")
    if finding.rule == "order":
        return "order", _order_call(kind, name, finding.member)
    if finding.rule == "life":
        return "entry", _life_call(finding.key, check)
    if finding.rule == "match":
        return "match", {"class": finding.member, "known": "1"} if kind == "classes" else {"profile": name}
    if finding.rule in ("state", "lease", "dependency") and kind == "j":
        return "job", {"job": name}
    if finding.rule == "state":
        return "entry", {"key": finding.key, "member": finding.member}
    return "count", {} if finding.rule in ("count", "lease") else None


def _order_call(kind: str, name: str, member: str) -> Call:
    if kind == "h":
        return {"class": name, "tenant": member}
    if kind == "parked":
        return {"class": member, "tenant": name}
    if kind in ("i", "k"):
        return {"class": member}
    return {"worker": member}


def _life_call(key: str, check: Check) -> Call:
    job = must.OF_A_JOB.fullmatch(key)
    return {"job": job[1]} if job and job[1] in check.known else {"key": key}
