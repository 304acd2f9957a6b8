"""Commands are packed by hiredis: redis-py does it in Python on its asyncio connections, at half a µs an argument."""

from __future__ import annotations

from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.connection import HiredisRespSerializer

_hiredis = HiredisRespSerializer()


def packing(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """The same kind of connection, whose commands hiredis packs."""

    def pack_command(_: AbstractConnection, *args: Any) -> list[bytes]:
        return list(_hiredis.pack(*args))

    return type(kind.__name__, (kind,), {"pack_command": pack_command})
