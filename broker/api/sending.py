"""The sending half of a client's socket."""

from __future__ import annotations

import asyncio
import logging

from broker.api.frames import Socket
from broker.api.outbox import Outbox

log = logging.getLogger(__name__)

STALLED_S = 10.0
"""A client that takes nothing for this long is cut off."""
SMALL = 8192
"""Characters of a message that never fills the connection's buffer by itself."""


async def send_all(ws: Socket, outbox: Outbox) -> None:
    """Send what comes into ``outbox``, in order; cuts off a client that takes nothing or has gone."""
    request = ws._req  # aiohttp shows the transport of a socket nowhere else
    transport = request.transport if request is not None else None
    if transport is None:
        return
    try:
        while True:
            data = await outbox.get()
            if len(data) < SMALL and not transport.get_write_buffer_size():
                await _send(ws, data)  # it cannot wait, so it needs no timer
                continue
            async with asyncio.timeout(STALLED_S):
                await _send(ws, data)
    except TimeoutError:
        log.info("A client took nothing for %s s: cut off", STALLED_S)
        transport.abort()  # a close frame would wait behind what the client does not take
    except (ConnectionError, RuntimeError):
        transport.abort()  # the client has gone; the reading side ends too


async def _send(ws: Socket, data: str | bytes) -> None:
    await (ws.send_str(data) if isinstance(data, str) else ws.send_bytes(data))
