"""A pub/sub connection of the broker's to one Redis server."""

from __future__ import annotations

from contextlib import suppress

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError

from broker.queue.refusals import translated

_KINDS = {b"smessage": "message", b"ssubscribe": "subscribed", b"sunsubscribe": "unsubscribed"}


class Channels:
    """One sharded pub/sub connection. It never reconnects by itself: whoever reads it must know of every break.

    redis-py's own ``PubSub`` does, from reading and from sending at once, so this uses the connection below it.
    """

    def __init__(self, client: Redis, link: AbstractConnection) -> None:
        self._client = client
        self._link = link

    @classmethod
    async def open(cls, client: Redis) -> Channels:
        """Connect. Raises ``Unavailable``."""
        try:
            with translated():
                return cls(client, await client.connection_pool.get_connection())  # type: ignore[no-untyped-call]
        except BaseException:
            # Also when this task is cancelled while it connects.
            with suppress(RedisError, OSError):
                await client.aclose()
            raise

    async def subscribe(self, channel: str) -> None:
        """Ask for a channel; the server's confirmation comes out of :meth:`read`."""
        await self._send("SSUBSCRIBE", channel)

    async def unsubscribe(self, channel: str) -> None:
        """Give a channel back."""
        await self._send("SUNSUBSCRIBE", channel)

    async def _send(self, *command: str) -> None:
        with translated():
            self._check()
            try:
                await self._link.send_command(*command, check_health=False)
            except AttributeError:
                # Who reads has found it broken and closed it, between redis-py's own look at it and its use.
                raise Disconnected("The connection is closed.") from None

    async def read(self, timeout_s: float) -> tuple[str, str, bytes] | None:
        """The next ``(kind, channel, data)``, kind being message, subscribed or unsubscribed; ``None``: nothing came.

        Raises ``Unavailable`` when the connection broke or the channel's slot lives elsewhere now.
        """
        with translated():
            self._check()
            reply = await self._link.read_response(timeout=timeout_s)
        kind = _KINDS.get(reply[0]) if reply else None
        return (kind, reply[1].decode(), reply[2] if isinstance(reply[2], bytes) else b"") if kind else None

    def _check(self) -> None:
        # A connection that was closed would open itself again, without its subscriptions.
        if not self._link.is_connected:
            raise Disconnected("The connection is closed.")

    async def close(self) -> None:
        """Close the connection; never raises."""
        with suppress(RedisError, OSError):
            await self._link.disconnect(nowait=True)
            await self._client.aclose()
