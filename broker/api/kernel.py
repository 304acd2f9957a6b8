"""What the kernel watches on connections, where the broker itself would not notice or would wait for ever."""

from __future__ import annotations

import socket

from aiohttp import web

UNTAKEN_S = 60
"""A peer that takes nothing of what waits for it for so long is gone: a download, or a worker that hangs."""
UNTAKEN_LIVE_S = 20
"""The same for clients that follow something live."""
DEAD_S = 27
"""A worker's host that confirms nothing for so long is gone."""


def end_untaken(connection: socket.socket, seconds: int = UNTAKEN_S) -> None:
    """Let the kernel end a connection (of a listener: each one) whose peer takes nothing for so long.

    Closing would not do: what is still to be sent keeps a closed connection open for as long as the peer's kernel
    answers, and whoever waits to send more is never told.
    """
    _set(connection, ("TCP_USER_TIMEOUT", seconds * 1000))


def end_untaken_soon(request: web.Request) -> None:
    """The same, sooner, for the connection of a client that follows something live."""
    if (connection := _connection(request)) is not None:
        end_untaken(connection, UNTAKEN_LIVE_S)


def find_dead_hosts(request: web.Request) -> None:
    """Let the kernel end a connection whose other host is gone, within some half a minute.

    A missed pong says nothing: a worker whose interpreter is held by C code answers none and is well. Its kernel
    confirms pings all the same. While one is not confirmed no probes are sent, so the time for what is not taken
    counts; and with probes that time counts, too, not their number.
    """
    if (connection := _connection(request)) is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _set(connection, ("TCP_KEEPIDLE", 12), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
        end_untaken(connection, DEAD_S)


def _connection(request: web.Request) -> socket.socket | None:
    connection: socket.socket | None = request.transport.get_extra_info("socket") if request.transport else None
    return connection if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6) else None


def _set(connection: socket.socket, *options: tuple[str, int]) -> None:
    for name, value in options:
        if hasattr(socket, name):  # not every system has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
