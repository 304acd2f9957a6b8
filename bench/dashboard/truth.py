"""Whether the figures of ``/stats`` and of the strip are true: compared with a count over the records, under load.

The queue's figures and the count over all records are taken in one transaction, so they are of the same moment. What
the broker says is compared with the queue's figures where these are the same before and after it was asked.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from typing import Any

import aiohttp
from redis import Redis

from bench.targets import Target
from broker.jobs.figures import public_stats
from broker.protocol.base import ACTIVE, WAITING, JobStatus
from broker.queue.queue import parse

PREFIX = "emq:{default}:"
TRIES = 400
COUNT = """
local out, cursor, now = {}, '0', redis.call('TIME')
local hour = now[1] * 1000 - 3600000
local function add(name) out[name] = (out[name] or 0) + 1 end
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', ARGV[1] .. 'j:*', 'COUNT', 5000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    local r = redis.call('HMGET', key, 'status', 'priority', 'finished_at', 'dead_letter')
    if r[1] then
      add(r[1])
      if r[1] == 'pending' then add('depth ' .. (r[2] or '0')) end
      if r[1] == 'failed' and tonumber(r[3]) >= hour then add('failed_last_hour') end
      if r[4] == '1' then add('dead') end
    end
  end
until cursor == '0'
for _, worker in ipairs(redis.call('ZRANGE', ARGV[1] .. 'workers', 0, -1)) do
  add(redis.call('HGET', ARGV[1] .. 'wk:' .. worker, 'gone') and 'down' or 'up')
end
local flat = {}
for name, number in pairs(out) do flat[#flat + 1] = name flat[#flat + 1] = number end
return flat
"""
LABELS = ("Waiting", "Running", "Workers", "Failed in 1 h")


def figures(redis: Redis) -> dict[str, Any]:
    """The queue's own figures, as ``/stats`` tells them."""
    raw: Any = redis.fcall("emq_stats", 1, PREFIX, "tenant", "")
    return public_stats(parse(raw))


def counted(redis: Redis) -> tuple[dict[str, Any], Counter[str]]:
    """The queue's figures and what the records are, at one moment."""
    pipe = redis.pipeline(transaction=True)
    pipe.fcall("emq_stats", 1, PREFIX, "tenant", "")
    pipe.eval(COUNT, 0, PREFIX)
    raw, flat = pipe.execute()
    names = [name.decode() for name in flat[::2]]
    return public_stats(parse(raw)), Counter(dict(zip(names, flat[1::2], strict=True)))


def differences(stats: dict[str, Any], found: Counter[str]) -> list[str]:
    """Where the figures are not what was counted."""
    pairs = [(f"jobs.{state}", stats["jobs"][state], found[state]) for state in JobStatus]
    pairs += [
        ("queued", stats["queued"], sum(found[state] for state in WAITING)),
        ("running", stats["running"], sum(found[state] for state in ACTIVE)),
        ("failed_last_hour", stats["failed_last_hour"], found["failed_last_hour"]),
        ("dead", stats["dead"], found["dead"]),
        ("workers.total", stats["workers"]["total"], found["up"]),
        ("workers.down", stats["workers"]["down"], found["down"]),
    ]
    depth = stats["depth_by_priority"]
    levels = {*depth, *(name.removeprefix("depth ") for name in found if name.startswith("depth "))}
    pairs += [(f"depth {level}", depth.get(level, 0), found[f"depth {level}"]) for level in levels]
    return [f"{name}: {told} told, {counted} counted" for name, told, counted in pairs if told != counted]


def strip_figures(page: str) -> dict[str, list[int]]:
    """The numbers of the strip, by its labels."""
    text = page[page.index('<section id="strip"') :]
    parts = re.findall(r"<dt>([^<]+)</dt><dd>(.*?)</dd>", text[: text.index("</section>")], re.DOTALL)
    plain = {
        name: html.unescape(re.sub(r"<[^>]*>", " ", inside)).replace("\N{NARROW NO-BREAK SPACE}", "")
        for name, inside in parts
    }
    return {name: [int(number) for number in re.findall(r"-?\d+", plain[name])] for name in LABELS if name in plain}


def _numbers(inside: str) -> list[int]:
    plain = html.unescape(re.sub(r"<[^>]*>", " ", inside)).replace("\N{NARROW NO-BREAK SPACE}", "")
    return [int(number) for number in re.findall(r"-?\d+", plain)]


def strip_of(stats: dict[str, Any]) -> dict[str, list[int]]:
    """What the strip has to show."""
    levels = [[int(level), number] for level, number in stats["depth_by_priority"].items()][:6]
    workers = [stats["workers"]["total"], stats["workers"]["down"]]
    return {
        "Waiting": [stats["queued"], *(number for level in levels for number in level)],
        "Running": [stats["running"]],
        "Workers": workers if workers[1] else workers[:1],
        "Failed in 1 h": [stats["failed_last_hour"]],
    }


def _still(stats: dict[str, Any]) -> str:
    return json.dumps({**stats, "oldest_wait_ms": None}, sort_keys=True)


async def told(http: aiohttp.ClientSession, url: str, redis: Redis) -> list[str]:
    """Where ``/stats`` and the strip differ from the queue's figures at a moment in which these did not change."""
    wrong: list[str] = []
    for path in ("/stats", "/help"):
        for _ in range(TRIES):
            before = figures(redis)
            async with http.get(url + path, headers={"Accept": "*/*"}) as answer:
                text = await answer.text()
            if _still(before) == _still(figures(redis)):
                break
        else:
            wrong.append(f"{path}: the figures never stood still")
            continue
        if path == "/stats" and _still(json.loads(text)) != _still(before):
            wrong.append(f"/stats: {text}, not {before}")
        if path == "/help" and strip_figures(text) != strip_of(before):
            wrong.append(f"strip: {strip_figures(text)}, not {strip_of(before)}")
    return wrong


async def check(http: aiohttp.ClientSession, url: str, redis: Redis, times: int) -> list[Target]:
    """All of it, a few times."""
    wrong: list[str] = []
    for _ in range(times):
        stats, found = counted(redis)
        wrong += differences(stats, found) + await told(http, url, redis)
    records = sum(found[state] for state in JobStatus)
    print(f"\nfigures compared {times} times with a count over {records:,} records: {'; '.join(wrong) or 'all equal'}")
    return [Target("figures that are not what was counted", len(wrong), 0, most=True)]
