"""The broker's one door to Redis: clients are built here, and redis-py's errors end here (``refusals``).

Two clients because redis-py's read time-out holds for blocking reads too: ``commands`` gives up on a silent server
after 5 s, ``blocking`` waits longer than any blocking read it makes. Repeating a call is safe: every writing function
of the queue gives a repeated call the same answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode, PipelineCommand
from redis.asyncio.connection import Connection as PlainConnection
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
)
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as Silent

from broker.errors import ConfigurationError, Unavailable
from broker.queue.address import Address, parse
from broker.queue.channels import Channels
from broker.queue.in_order import Args, Stream, in_order
from broker.queue.loader import load as load_library
from broker.queue.packing import packing
from broker.queue.refusals import LATER, Again, translated
from broker.queue.replicated import FUNCTIONS, UNCONFIRMED, confirm, confirmation

log = logging.getLogger(__name__)

COMMAND_S = 5.0
"""Read time-out of a command."""
CALL_S = 6.0
"""A call ends within this time, its repetitions included."""
AWAY_S = 1.0
"""The same once Redis is known to be away: a client that asks then hears so soon."""
BLOCK_S = 5.0
"""The longest blocking read."""
COMMANDS = 64
"""Connections for commands; a call beyond them waits."""

CROWDED = "No connection available."
"""What redis-py says when all connections were in use for too long."""

LONELY = (UNCONFIRMED, "NOREPLICAS")
"""Why a call failed at a primary that has no replica any more."""
ASK_S = 1.0
"""Sentinels are asked about it so often at most, and not for longer."""

Command = Sequence[bytes | str | int]
Client = Redis | RedisCluster


@dataclass(frozen=True, slots=True)
class Health:
    """What ``/health`` says about Redis."""

    redis: bool
    functions: bool
    detail: str = ""


class Connection:
    """A broker's connections to one Redis (a server, a sentinels' service or a cluster). Implements ``Caller``."""

    def __init__(self, url: str, *, replicated: bool = False) -> None:
        """Build the clients; nothing connects yet. Raises ``ConfigurationError`` for a URL that cannot be used.

        ``replicated``: the answer to a submit waits until a replica has it, too.
        """
        self.observe: Callable[[float], None] = lambda seconds: None
        """Told how long each call of a function took, its waiting for a connection included."""
        self.address: Address = parse(url)
        self._replicated = FUNCTIONS if replicated else frozenset()
        self._sentinels: list[Sentinel] = []
        self.commands: Client = self._build(COMMAND_S, retries=8, connections=COMMANDS)
        self.blocking: Client = self._build(BLOCK_S + 5, retries=0, connections=4096)
        self._loading = asyncio.Lock()
        self._away = False
        self._asked = 0.0

    # -- calls --------------------------------------------------------------------------------------------------------

    async def fcall(self, function: str, prefix: str, args: Args) -> Any:
        """Run a function of the queue, loading the library first when the server does not have it.

        Raises ``Unavailable`` while Redis is away (or no replica confirms what needs it), ``QueueFull`` when its memory
        is full, ``EmqError`` for a fault of the function.
        """

        run = self._confirmed if function in self._replicated else self._on_owner

        async def call() -> Any:
            return await run("FCALL", function, 1, prefix, *args, key=prefix)

        started = time.monotonic()
        answer = await self._guard(lambda: self._with_library(call, prefix))
        self.observe(time.monotonic() - started)
        return answer

    def fcalls(self, function: str, prefix: str, calls: Iterable[Args]) -> AsyncGenerator[Any]:
        """Run it for each of some arguments: see :func:`broker.queue.in_order.in_order`."""
        client, stream = self.commands, None
        # A cluster's connections are its nodes', and a promise takes a word after each call.
        if isinstance(client, Redis) and function not in self._replicated and not self._away:
            stream = Stream(client.connection_pool, ("FCALL", function, 1, prefix), self.observe)
        return in_order(partial(self.fcall, function, prefix), calls, stream)

    async def _with_library(self, call: Callable[[], Awaitable[Any]], prefix: str) -> Any:
        try:
            return await call()
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
        await self._load(prefix)
        return await call()

    async def load(self, prefix: str, *, force: bool = False) -> None:
        """See that every primary has the function library, in our version or a newer one."""
        await self._guard(lambda: self._load(prefix, force))

    async def _load(self, prefix: str, force: bool = False) -> None:
        async with self._loading:
            await load_library(self.commands, prefix, force)

    async def read(self, key: str, *commands: Command) -> list[Any]:
        """Answers of reading commands on keys of ``key``'s pool, all of one moment."""

        async def run() -> list[Any]:
            async with self.commands.pipeline(transaction=True) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return list(await pipe.execute())

        return list(await self._guard(run))

    async def write(self, key: str, *commands: Command) -> list[Any]:
        """The same for commands that write, all or none; the server may get them twice when an answer is lost."""
        return await self.read(key, *commands)

    async def scan(self, pattern: str, cursor: bytes) -> tuple[bytes, list[bytes]]:
        """One step through all keys of the server that has ``pattern``'s hash tag, for checks only."""
        args = ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        following, keys = await self._guard(lambda: self._on_owner(*args, key=pattern))
        return following, keys

    async def publish(self, channel: str, data: bytes) -> None:
        """Publish on a sharded channel."""
        await self._guard(lambda: self._on_owner("SPUBLISH", channel, data, key=channel))

    async def pop(self, key: str, block_s: float = BLOCK_S) -> bytes | None:
        """Take the first element of a list, waiting for one at most ``block_s`` (up to 5 s).

        An element can be lost with its reply, so a list may only hold hints.
        """
        with translated():
            answer = await self.blocking.execute_command("BLPOP", key, min(block_s, BLOCK_S))
        return answer[1] if answer else None

    async def ping(self) -> None:
        """Raises ``Unavailable`` unless Redis answers."""
        await self._guard(self._ping)

    async def _ping(self) -> None:
        await self.commands.execute_command("PING")

    async def health(self, prefix: str) -> Health:
        """Whether Redis answers within 2 s and has the functions (it does not load them)."""
        try:
            async with asyncio.timeout(2):
                await self._on_owner("FCALL", "emq_version", 1, prefix, key=prefix)
        except (TimeoutError, Silent, Disconnected, RedisClusterException):
            return Health(False, False, "Redis does not answer")
        except RedisError as error:
            word = str(error).partition(" ")[0]
            return Health(word not in LATER, False, "the functions are not loaded" if word not in LATER else word)
        return Health(True, True)

    async def info(self) -> list[dict[str, Any]]:
        """``INFO`` of every primary. Raises ``Unavailable``, ``ConfigurationError`` when the login is refused."""

        async def run() -> list[dict[str, Any]]:
            if not isinstance(self.commands, RedisCluster):
                return [await self.commands.info()]
            await self.commands.initialize()
            nodes = self.commands.get_primaries()
            return [await self.commands.execute_command("INFO", target_nodes=node) for node in nodes]

        return list(await self._guard(run, starting=True))

    async def is_open(self) -> bool:
        """Whether the server answers somebody who shows no password."""
        if isinstance(self.commands, RedisCluster):
            options = _options(self.address.base) | {"host": self.address.nodes[0][0], "port": self.address.nodes[0][1]}
        elif self.address.kind == "sentinel":
            return False  # whom the sentinels name is on the net of the sentinels
        else:
            options = _options(self.address.base)
        shown = {name: value for name, value in options.items() if name not in ("username", "password")}
        pool = ConnectionPool(**shown | _socket_options(COMMAND_S, 0))
        try:
            async with Redis.from_pool(pool) as stranger:
                await stranger.execute_command("PING")  # type: ignore[no-untyped-call]
        except (RedisError, OSError):
            return False
        return True

    async def info_of(self, key: str, *sections: str) -> dict[str, Any]:
        """``INFO`` of the server that has ``key``."""
        return dict(await self._guard(lambda: self._on_owner("INFO", *sections, key=key)))

    async def channels(self, key: str) -> Channels:
        """A pub/sub connection to the server that has ``key``; raises ``Unavailable``.

        In a cluster this is a plain connection to the owner of the slot: all keys and channels of a pool share one,
        and a break of one connection is easier to notice than one inside a client that holds many.
        """
        if not isinstance(self.commands, RedisCluster):
            client = self._build(COMMAND_S, retries=0, connections=4)
            assert isinstance(client, Redis)
            return await Channels.open(client)
        cluster = self.commands

        async def owner() -> ClusterNode:
            await cluster.nodes_manager.initialize()
            return _owner(cluster, key)

        node = await self._guard(owner)
        options = _options(self.address.base) | _socket_options(COMMAND_S, 0) | {"host": node.host, "port": node.port}
        return await Channels.open(Redis.from_pool(ConnectionPool(**options)))

    async def close(self) -> None:
        """Close every connection; never raises."""
        for client in (self.commands, self.blocking, *self._sentinels):
            with suppress(RedisError, OSError):
                await client.aclose()

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _on_owner(self, *args: bytes | str | int, key: str) -> Any:
        """Run a command at the server that has ``key``.

        In a cluster the node is named, because redis-py would ask the server for the keys of an FCALL first, sending
        all its arguments twice; with a named node it does not repeat, so that is done here.
        """
        client = self.commands
        if not isinstance(client, RedisCluster):
            return await client.execute_command(*args)  # type: ignore[no-untyped-call]

        async def once() -> Any:
            await client.initialize()
            return await client.execute_command(*args, target_nodes=_owner(client, key))

        return await _repeated(client, once)

    async def _confirmed(self, *args: bytes | str | int, key: str) -> Any:
        """The same for what counts only once a replica has it."""
        client, commands = self.commands, [args, *confirmation(key)]

        async def once() -> list[Any]:
            if not isinstance(client, RedisCluster):
                async with client.pipeline(transaction=False) as pipe:
                    for command in commands:
                        pipe.execute_command(*command)
                    return list(await pipe.execute(raise_on_error=False))
            await client.initialize()
            sent = [PipelineCommand(number, *command) for number, command in enumerate(commands)]
            await _owner(client, key).execute_pipeline(sent)
            return [_or_raise(command.result) for command in sent]

        answers = await (_repeated(client, once) if isinstance(client, RedisCluster) else once())
        answer, _, replicas = map(_or_raise, answers)
        confirm(replicas)
        return answer

    async def _guard(self, run: Callable[[], Awaitable[Any]], starting: bool = False) -> Any:
        """Run within the time limit, translate errors, and log when Redis goes and comes."""
        try:
            with translated(starting):
                async with asyncio.timeout(AWAY_S if self._away else CALL_S):
                    answer = await run()
        except Unavailable as error:
            reason = str(error.details.get("reason"))
            if reason.startswith(LONELY):
                await self._ask_sentinels()
            if reason in (CROWDED, UNCONFIRMED):
                raise  # Redis may be well: were it called away, those that wait would hear it after a second, too
            if not self._away:
                log.warning("Redis at %s is away: %s", self.address.shown, reason)
            self._away = True
            raise
        if self._away:
            log.info("Redis at %s is back", self.address.shown)
            self._away = False
        return answer

    async def _ask_sentinels(self) -> None:
        """Leave a primary that its replicas have left: a failover may have gone by it while this broker reaches it."""
        now = time.monotonic()
        if self.address.kind != "sentinel" or now - self._asked < ASK_S:
            return
        self._asked = now
        for client in (self.commands, self.blocking):
            assert isinstance(client, Redis)
            assert isinstance(client.connection_pool, SentinelConnectionPool)
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(ASK_S):
                    await client.connection_pool.get_master_address()  # type: ignore[no-untyped-call]

    def _build(self, timeout_s: float, retries: int, connections: int) -> Client:
        """A client of the address's kind."""
        try:
            options = _options(self.address.base) | _socket_options(timeout_s, retries)
            if self.address.kind == "cluster":
                return self._cluster(options, connections)
            if self.address.kind == "sentinel":
                return self._sentinel(options, connections)
            options["connection_class"] = packing(options.get("connection_class", PlainConnection))
            pool = BlockingConnectionPool(max_connections=connections, timeout=COMMAND_S, **options)
            pool.connection_class(**pool.connection_kwargs)
            return Redis.from_pool(pool)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"EMQ_REDIS_URL {self.address.shown!r} has an option that cannot be used: {error}."
            ) from None

    def _cluster(self, options: dict[str, Any], connections: int) -> RedisCluster:
        for name in ("host", "port", "db"):
            options.pop(name, None)
        if options.pop("connection_class", None) is SSLConnection:
            options["ssl"] = True
        nodes = [ClusterNode(host, port) for host, port in self.address.nodes]
        return RedisCluster(startup_nodes=nodes, max_connections=connections, **options)

    def _sentinel(self, options: dict[str, Any], connections: int) -> Redis:
        login = {
            name.removeprefix("sentinel_"): options.pop(name)
            for name in ("sentinel_username", "sentinel_password")
            if name in options
        }
        for name in ("host", "port"):
            options.pop(name, None)
        if options.pop("connection_class", None) is SSLConnection:
            options["ssl"] = True
        # A sentinel that does not answer is passed over soon: the next one knows as much.
        asking = _socket_options(1.0, 0) | {"socket_connect_timeout": 1.0} | login
        sentinel = Sentinel(self.address.nodes, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
        self._sentinels.append(sentinel)
        pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            self.address.service, sentinel, max_connections=connections, **options
        )
        return Redis.from_pool(pool)


def _backoff() -> ExponentialWithJitterBackoff:
    return ExponentialWithJitterBackoff(base=0.05, cap=0.5)


def _options(url: str) -> dict[str, Any]:
    return dict(parse_url(url))


def _socket_options(timeout_s: float, retries: int) -> dict[str, Any]:
    """What every connection is built with; RESP 2 has all the queue needs, and one shape of answers."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": 2.0,
        "retry": Again(_backoff(), retries),
        "protocol": 2,
        "legacy_responses": False,
        "client_name": "emq-broker",
        "driver_info": None,  # CLIENT SETINFO, which Redis 7.0 does not know, so that no user can be allowed it there
    }


def _owner(cluster: RedisCluster, key: str) -> ClusterNode:
    node = cluster.get_node_from_key(key)
    if node is None:
        raise SlotNotCoveredError("The cluster has no node for the pool's slot.")
    return node


async def _repeated(client: RedisCluster, once: Callable[[], Awaitable[Any]]) -> Any:
    """Run until the cluster's present owner has answered, a few times at most."""

    async def again(error: Exception) -> None:
        if isinstance(error, ClusterDownError | SlotNotCoveredError | ReadOnlyError | MovedError):
            await client.nodes_manager.initialize()

    errors = (Disconnected, Silent, ClusterDownError, SlotNotCoveredError, ReadOnlyError, MovedError)
    return await Retry(_backoff(), 8, errors).call_with_retry(once, again)  # type: ignore[arg-type]


def _or_raise(answer: Any) -> Any:
    """An answer in a pipeline, which may be an error."""
    if isinstance(answer, Exception):
        raise answer
    return answer
