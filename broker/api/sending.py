"""The sending half of a client's socket."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from broker.api.frames import Socket, transport_of
from broker.api.outbox import Outbox

log = logging.getLogger(__name__)

STALLED_S = 10.0
"""A client that takes nothing for this long is cut off."""
SMALL = 8192
"""Characters of a message that does not fill a connection's buffer by itself."""


def outbox_of(ws: Socket) -> Outbox:
    """What is to be sent on a socket; :func:`send_all` sends what cannot go at once."""
    transport = transport_of(ws)
    return Outbox(partial(_write_now, ws, transport) if transport is not None else None)


async def send_all(ws: Socket, outbox: Outbox) -> None:
    """Send what lies in ``outbox``, in order; cuts off a client that takes nothing or has gone."""
    transport = transport_of(ws)
    if transport is None:
        return
    try:
        while True:
            data = await outbox.get()
            async with asyncio.timeout(STALLED_S):
                await (ws.send_str(data) if isinstance(data, str) else ws.send_bytes(data))
    except TimeoutError:
        log.info("A client took nothing for %s s: cut off", STALLED_S)
        transport.abort()  # a close frame would wait behind what the client does not take
    except (ConnectionError, RuntimeError):
        transport.abort()  # the client has gone; the reading side ends too


def _write_now(ws: Socket, transport: asyncio.Transport, data: str | bytes) -> bool:
    """Send a message if it is small and the client has taken all before it, so that it cannot wait; whether it went."""
    if len(data) >= SMALL or transport.get_write_buffer_size() or ws.closed or transport.is_closing():
        return False
    transport.write(_frame(data))
    return True


def _frame(data: str | bytes) -> bytes:
    """A message of less than 64 KiB as a server sends it."""
    kind, payload = (0x81, data.encode()) if isinstance(data, str) else (0x82, data)
    size = len(payload)
    return (bytes((kind, size)) if size < 126 else bytes((kind, 126)) + size.to_bytes(2, "big")) + payload
