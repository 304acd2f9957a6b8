"""Loads the queue's function library into Redis.

The files of ``functions/`` are one library: joined in name order under one ``#!lua`` line, each in a block of its own
(a chunk may have 200 local variables). A library is global to a server, so it carries a version and only a newer one
replaces it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.exceptions import ResponseError, WatchError

LIBRARY = "emq"
FOLDER = Path(__file__).parent / "functions"
HEAD = """\
local Q = {}
-- Globals are not there yet while a library is loaded, and later they are looked for in several tables at each use: the
-- first call makes them locals of the library.
local function globals()
  return redis.call, redis.setresp, tonumber, tostring, unpack, pairs, ipairs, next, select, type, setmetatable, rawget,
    rawset, pcall, math, string, table, cjson
end
local call, setresp, tonumber, tostring, unpack, pairs, ipairs, next, select, type, setmetatable, rawget,
  rawset, pcall, math, string, table, cjson
local function define(named)
  local callback = named.callback
  named.callback = function(keys, argv)
    if not call then
      call, setresp, tonumber, tostring, unpack, pairs, ipairs, next, select, type, setmetatable, rawget,
        rawset, pcall, math, string, table, cjson = globals()
    end
    return callback(keys, argv)
  end
  redis.register_function(named)
end
"""
_LINE = re.compile(r"user_function:(\d+)")
_VERSION = re.compile(r"^Q\.VERSION = (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Library:
    """The joined text, its version, and the file and first line behind each of its parts."""

    text: str
    version: int
    parts: tuple[tuple[int, str], ...]

    def explain(self, message: str) -> str:
        """An error of Redis with the library's lines turned into lines of files."""
        return _LINE.sub(lambda found: self._place(int(found[1])), message)

    def _place(self, line: int) -> str:
        first, name = next(part for part in reversed(self.parts) if part[0] <= line or part is self.parts[0])
        return f"{name}:{line - first + 1}"


@cache
def library() -> Library:
    """Read and join the files."""
    text = f"#!lua name={LIBRARY}\n{HEAD}"
    parts = []
    for path in sorted(FOLDER.glob("*.lua")):
        parts.append((text.count("\n") + 2, path.name))
        text += f"do\n{path.read_text(encoding='utf-8').rstrip()}\nend\n"
    found = _VERSION.search(text)
    assert found is not None, "broker/queue/functions names no version"
    return Library(text, int(found[1]), tuple(parts))


async def load(client: Redis | RedisCluster, prefix: str, force: bool = False) -> int:
    """See that every primary has this library or a newer one (``force``: this one); answers the version that is there.

    ``prefix`` is the key prefix of the pool whose ``meta`` guards a replacement against another broker's.
    """
    if not isinstance(client, RedisCluster):
        return await _load(client, f"{prefix}meta", force)
    await client.initialize()
    versions = []
    for node in client.get_primaries():
        options = {name: value for name, value in node.connection_kwargs.items() if name not in ("host", "port")}
        pool = ConnectionPool(connection_class=node.connection_class, host=node.host, port=node.port, **options)
        async with Redis.from_pool(pool) as single:
            versions.append(await _load(single, f"{prefix}meta", force))
    return min(versions)


async def _load(client: Redis, meta: str, force: bool) -> int:
    ours = library()
    while True:
        loaded = await _loaded(client)
        if loaded is not None and loaded >= ours.version and not force:
            return loaded
        try:
            if loaded is None:
                await client.function_load(ours.text)
            else:
                await _replace(client, meta, ours, loaded)
        except WatchError:
            continue
        except ResponseError as error:
            if "already exists" in str(error):
                continue
            raise ResponseError(ours.explain(str(error))) from None
        return ours.version


async def _loaded(client: Redis) -> int | None:
    """The version of the loaded library; ``None``: there is none."""
    try:
        answer = await client.fcall("emq_version", 0)
    except ResponseError as error:
        if "unction not found" in str(error):
            return None
        raise
    return int(answer[2])


async def _replace(client: Redis, meta: str, ours: Library, loaded: int) -> None:
    """Replace the library unless somebody does at the same time (``WatchError``)."""
    async with client.pipeline(transaction=True) as pipe:
        watched = True
        try:
            await pipe.watch(meta)
        except ResponseError as error:
            # A primary of a cluster that does not own the pool's slot: nothing there can be watched.
            if not str(error).startswith("MOVED"):
                raise
            watched = False
        if await _loaded(client) != loaded:
            raise WatchError("the library changed")
        pipe.multi()  # type: ignore[no-untyped-call]
        pipe.execute_command("FUNCTION LOAD", "REPLACE", ours.text)
        if watched:
            pipe.hset(meta, "library", str(ours.version))
        await pipe.execute()
