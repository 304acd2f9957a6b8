"""The checks of ``doctor``, each giving lines of what was found and what to do."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import aiohttp

from broker.queue.connection import Connection
from broker.queue.queue import Answer
from broker.settings import Settings

SLOW_MS, TOO_SLOW_MS = 10.0, 100.0
MEMORY = 0.85
SKEW_S = 2.0
"""Links and webhooks carry times of the brokers' clocks, to the second."""
COMFYUI = (0, 28, 0)
MANAGER = {3: (3, 39, 2), 4: (4, 0, 5)}
"""The first releases without known holes."""
TIMEOUT = aiohttp.ClientTimeout(total=10)


@dataclass(frozen=True, slots=True)
class Line:
    """One finding; ``do`` is what a person may do about it."""

    what: str
    level: Literal["ok", "warn", "fail"]
    said: str
    do: str = ""


def server(info: Mapping[str, Any]) -> Iterator[Line]:
    """A primary's ``INFO``: version, persistence, memory, clock (what a broker refuses has been refused before)."""
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info.get('redis_version')}"
    yield Line("redis version", "ok", name)
    yield _policy(info)
    yield _file(info)
    yield _memory(info)
    now_us = info.get("server_time_usec")
    if now_us:
        yield _clock("redis clock", time.time() - float(now_us) / 1e6)


def _policy(info: Mapping[str, Any]) -> Line:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return Line("redis policy", "ok", "noeviction: no job is thrown away for want of memory")
    return Line("redis policy", "fail", f"{policy} throws jobs away", "CONFIG SET maxmemory-policy noeviction")


def _file(info: Mapping[str, Any]) -> Line:
    what = "redis append-only file"
    if str(info.get("aof_enabled")) != "1":
        return Line(what, "warn", "there is none: a restart loses accepted jobs", "appendonly yes in redis.conf")
    states = (info.get("aof_last_write_status", "ok"), info.get("aof_last_bgrewrite_status", "ok"))
    if states != ("ok", "ok"):
        return Line(what, "fail", f"last write {states[0]}, last rewrite {states[1]}", "free its disk; see its log")
    return Line(what, "ok", f"written, {int(info.get('aof_current_size', 0)) / 1e6:.1f} MB")


def _memory(info: Mapping[str, Any]) -> Line:
    used, most = float(info.get("used_memory", 0)), float(info.get("maxmemory", 0))
    if not most:
        return Line(
            "redis memory", "warn", f"{used / 1e6:.0f} MB, without a limit", "set maxmemory under the machine's"
        )
    share = f"{used / 1e6:.0f} of {most / 1e6:.0f} MB"
    if used > MEMORY * most:
        return Line("redis memory", "warn", share, "raise maxmemory, or shorten EMQ_TTL_COMPLETED_S")
    return Line("redis memory", "ok", share)


def _clock(what: str, skew_s: float) -> Line:
    said = f"differs by {abs(skew_s):.1f} s from this machine's"
    if abs(skew_s) > SKEW_S:
        return Line(what, "warn", said, "run an NTP client (timedatectl set-ntp true)")
    return Line(what, "ok", said)


async def latency(connection: Connection, prefix: str) -> Line:
    """Twenty calls of a function that does nothing."""
    times = []
    for _ in range(20):
        started = time.perf_counter()
        await connection.health(prefix)
        times.append((time.perf_counter() - started) * 1000)
    middle, worst = statistics.median(times), max(times)
    said = f"median {middle:.1f} ms, worst of 20 {worst:.1f} ms"
    if middle > SLOW_MS:
        level: Literal["warn", "fail"] = "fail" if middle > TOO_SLOW_MS else "warn"
        return Line("redis latency", level, said, "bring brokers and Redis nearer; see LATENCY DOCTOR and SLOWLOG GET")
    return Line("redis latency", "ok", said)


async def functions(connection: Connection, prefix: str) -> Line:
    """Whether the queue's functions are loaded."""
    health = await connection.health(prefix)
    if health.functions:
        return Line("queue functions", "ok", "loaded")
    return Line("queue functions", "fail", health.detail, "start a broker, or python -m broker functions load")


def pool(stats: Answer) -> Iterator[Line]:
    """The queue itself."""
    waiting = sum(stats.number(name) for name in ("scheduled", "blocked", "pending"))
    said = f"{waiting} jobs wait, the oldest for {stats.number('oldest_ms') // 1000} s"
    if stats.flag("paused"):
        yield Line("queue", "warn", f"paused; {said}", "python -m broker resume, or on the dashboard")
    elif waiting and not stats.number("workers"):
        yield Line("queue", "warn", f"{said}, and there is no worker", "start one: docs/worker.md")
    else:
        yield Line("queue", "ok", said)
    if dead := stats.number("dead"):
        yield Line("dead letters", "warn", f"{dead} jobs ended their workers too often", "python -m broker jobs dead")


OPEN_LEVELS = ("weak", "normal-", "unknown")
"""ComfyUI-Manager's levels that let its page install any code: always, or while ComfyUI listens on loopback alone."""


def workers(found: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Each live worker's state and versions."""
    live = [worker for worker in found if worker["status"] != "offline"]
    if not live:
        yield Line("workers", "warn", "none is connected", "python install.py COMFYUI_DIR --check tells why")
    for worker in live:
        problems = list(_old(worker))
        if worker["status"] == "unhealthy":
            problems.append(("is unhealthy", "see its log, then restart its ComfyUI"))
        what = f"worker {worker['worker_id']}"
        if not problems:
            yield Line(what, "ok", f"{worker['status']}, ComfyUI {worker.get('comfyui_version')}")
        for said, do in problems:
            yield Line(what, "warn", said, do)


def _old(worker: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    comfyui, manager = worker.get("comfyui_version") or "", worker.get("manager_version") or ""
    if numbers(comfyui) and numbers(comfyui) < COMFYUI:
        least = ".".join(map(str, COMFYUI))
        yield f"ComfyUI {comfyui} is older than {least}, which closed known holes", "update its ComfyUI"
    if not manager:
        return
    fixed = MANAGER.get(numbers(manager)[0] if numbers(manager) else 0, MANAGER[3])
    if numbers(manager) < fixed:
        least = ".".join(map(str, fixed))
        yield f"ComfyUI-Manager {manager} is older than {least}, which closed known holes", "update ComfyUI-Manager"
    level = worker.get("manager_security") or "unknown"
    if level in OPEN_LEVELS:
        yield (
            f"has ComfyUI-Manager {manager} with security_level {level}: whoever reaches its page may install code",
            "set security_level = strong (or normal) in its config.ini, or take it out; restart ComfyUI",
        )


def numbers(text: str) -> tuple[int, ...]:
    """A version's first three numbers."""
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def secret(settings: Settings) -> Line:
    """What signs links."""
    if settings.secret:
        return Line("signing secret", "ok", "EMQ_SECRET is set here; all brokers need the same")
    return Line("signing secret", "ok", "not set: brokers share the first one's through Redis")


async def broker(url: str, key: str | None) -> list[Line]:
    """One broker, or the proxy before it: health, clock, the upgrade to a WebSocket."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=TIMEOUT) as http:
            return [*await _health(http, url), await _upgrade(http, url)]
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        said = str(error) or type(error).__name__
        return [Line(f"broker {url}", "fail", f"does not answer: {said}", "start it, or see docs/operations.md")]


async def _health(http: aiohttp.ClientSession, url: str) -> list[Line]:
    async with http.get(f"{url}/health") as response:
        body = await response.json(content_type=None)
        date = response.headers.get("Date")
    what, detail = f"broker {url}", body.get("detail") or body.get("error")
    if response.status != 200:
        return [Line(what, "fail", f"answers {response.status}: {detail}", "is its Redis there? see its log")]
    lines = [Line(what, "ok", f"version {body.get('version')}, up for {body.get('uptime_s', 0):.0f} s")]
    if date:
        lines.append(_clock(f"clock of {url}", time.time() - parsedate_to_datetime(date).timestamp()))
    return lines


async def _upgrade(http: aiohttp.ClientSession, url: str) -> Line:
    what = f"WebSocket {url}/ws"
    try:
        async with http.ws_connect(f"{url}/ws"):
            return Line(what, "ok", "opens")
    except aiohttp.WSServerHandshakeError as error:
        if error.status in (401, 403):
            return Line(what, "warn", f"the upgrade arrives, but is refused ({error.status})", "give --key a valid key")
        do = "the proxy must pass Upgrade and Connection on, with HTTP/1.1: deploy/nginx.conf"
        return Line(what, "fail", f"no upgrade, {error.status} instead", do)
