"""Asks the queue that a worker would serve whether it is there and lets the worker in: for ``install.py --check``.

It runs in ComfyUI's Python without ComfyUI, with the worker's own settings and clients: what they reach, a worker does.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

from .queue import QueueAway, Refused
from .settings import Settings, SettingsError

Finding = tuple[str, str]
"""``ok``, ``warn`` or ``fail``, and what was found."""
ANSWER_S = 10.0
OLDEST = {"Redis": (7, 0), "Valkey": (7, 2)}


def shown(url: str) -> str:
    """An address without its password."""
    return re.sub(r"(?<=password=)[^&]*", "***", re.sub(r"//[^/@]*@", "//***@", url))


async def find_queue(file: Path, given: str = "") -> Finding:
    """Look at the queue of these settings, or at the one that is ``given`` in place of theirs."""
    try:
        settings = Settings.load(file=file)
    except SettingsError as error:
        return "fail", str(error)
    url = given or settings.redis_url or settings.broker_url or settings.local_redis_url()
    if not url:
        return "warn", "no broker or Redis is set, and no broker has its default data folder on this machine (yet)"
    try:
        if re.match(r"(http|ws)s?://", url):
            return await look_at_broker(re.sub(r"^ws", "http", url).rstrip("/"), settings.api_key)
        return await look_at_redis(url, settings.pools[0])
    except (QueueAway, Refused) as error:
        return "fail", str(error)
    except (OSError, asyncio.TimeoutError) as error:
        return "fail", f"{shown(url)} does not answer: {error or type(error).__name__}"


async def look_at_broker(url: str, key: str | None) -> Finding:
    """Whether a broker answers, has its Redis, and takes the key for its workers' gateway."""
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S)) as http:
            async with http.get(f"{url}/health") as answer:
                health: dict[str, Any] = await answer.json()
            if answer.status != 200:
                return "fail", f"the EMQ broker at {url} has no Redis now"
            async with http.ws_connect(f"{url}/ws/worker", headers=headers):
                return "ok", f"EMQ broker {health['version']} answers at {url}"
    except aiohttp.WSServerHandshakeError as error:
        if error.status not in (401, 403):
            return "fail", f"{url}/ws/worker answers {error.status}: does a proxy pass WebSockets on?"
        given = "the key is refused" if key else "the broker wants a key"
        return "fail", f"{url} does not let this worker in, {given}: --api-key KEY, one with the scope worker"
    except (aiohttp.ContentTypeError, KeyError, TypeError, ValueError):
        return "fail", f"{url} is not an EMQ broker: its /health tells no version"
    except aiohttp.ClientError as error:
        raise QueueAway(f"{url} does not answer: {error}") from None


async def look_at_redis(url: str, pool: str) -> Finding:
    """Whether a Redis answers, is recent enough, and has the queue's functions."""
    from redis.exceptions import AuthenticationError, RedisError

    from .redis_client import close_client, open_client, open_wire, words
    from .resp import ReplyError, pack

    key = f"emq:{{{pool}}}:"
    client = open_client(url, ANSWER_S, 0)
    try:
        wire = await open_wire(client, key)
        told, library = await wire.ask([pack(["INFO", "server"]), pack(["FCALL", "emq_version", 1, key])])
        await wire.close()
    except RedisError as error:
        # Over a Unix socket a wrong password is one more failed connection to redis-py.
        refused = isinstance(error, AuthenticationError) or "username-password" in str(error)
        return "fail", f"{shown(url)} {'refuses the login' if refused else 'does not answer'}: {words(error)}"
    finally:
        await close_client(client)
    name = server_of(told)
    if too_old(name):
        return "fail", f"{name} answers at {shown(url)}; EMQ needs Redis 7.0 or Valkey 7.2 or newer"
    if not isinstance(library, ReplyError):
        return "ok", f"{name} answers at {shown(url)}"
    if "unction not found" in str(library):
        return "warn", f"{name} answers at {shown(url)}; no broker has been started on it yet"
    return "fail", f"{name} at {shown(url)} does not let this user call the queue's functions: {library}"


def server_of(told: object) -> str:
    """Name and version out of ``INFO``, which a worker's user need not be allowed: then the name alone."""
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else ""
    for name, field in (("Valkey", "valkey_version"), ("Redis", "redis_version")):
        if found := re.search(rf"^{field}:(\S+)", text, re.MULTILINE):
            return f"{name} {found[1]}"
    return "Redis"


def too_old(server: str) -> bool:
    """Whether this server has not what the queue needs."""
    name, _, version = server.partition(" ")
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    return bool(numbers) and numbers < OLDEST[name]


def main() -> None:
    """Read ``{"file", "url"}`` from stdin (a command line can be read by other users) and print the finding."""
    asked = json.load(sys.stdin)
    print(json.dumps(asyncio.run(find_queue(Path(asked["file"]), asked["url"]))))
