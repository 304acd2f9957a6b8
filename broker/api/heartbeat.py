"""Whether clients are still there: who says nothing is pinged, who then still says nothing is cut."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Iterator

from aiohttp import web

from broker.api.frames import transport_of

log = logging.getLogger(__name__)

VISIT_S = 9.0
"""How often each socket is looked at. A client is pinged at the second visit since it was heard, and cut at the third:
one that idles is pinged every 18 s, one that is gone is cut within 27."""
SLICES = 90
"""Parts in which the sockets are visited, one behind the other: if thousands were pinged together, or cut together,
everybody else would wait for that."""
MADE_UP_S = 1.0
"""A delay up to this is made up for; after a longer one, such as a machine's sleep, clients have their time anew."""
_PING = b"\x89\x00"


class ListenedSocket(web.WebSocketResponse[bool]):
    """Notes that something came, be it the middle of a message, in the place of aiohttp's own heartbeat.

    That has two timers a socket, each rounded to a whole second.
    """

    heard = True
    pinged = False

    def _on_data_received(self) -> None:
        self.heard = True

    def _reset_heartbeat(self) -> None:
        pass


class Heartbeat:
    """Visits the sockets of one replica."""

    def __init__(self) -> None:
        self._pause_s = VISIT_S / SLICES
        self._slices: list[set[ListenedSocket]] = [set() for _ in range(SLICES)]
        self._turns = itertools.cycle(self._slices)

    @contextlib.contextmanager
    def watch(self, ws: ListenedSocket) -> Iterator[None]:
        """Look after an open socket."""
        mine = next(self._turns)  # in turns, so that those that came together are not visited together
        mine.add(ws)
        try:
            yield
        finally:
            mine.discard(ws)

    async def run(self) -> None:
        """Visit everybody, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        for sockets in itertools.cycle(self._slices):
            due = max(due + self._pause_s, loop.time() - MADE_UP_S)
            await asyncio.sleep(max(0.0, due - loop.time()))
            for ws in sockets:
                _visit(ws)


def _visit(ws: ListenedSocket) -> None:
    transport = transport_of(ws)
    if ws.heard:
        ws.heard = ws.pinged = False
    elif transport is None or transport.is_closing() or ws.closed:
        pass  # it ends by itself
    elif not ws.pinged:
        ws.pinged = True
        transport.write(_PING)  # as ``ws.ping`` would, which may wait for a client that takes nothing
    else:
        log.info("A client said nothing for %s s: cut off", 2 * VISIT_S)
        transport.abort()


HEARTBEAT = web.AppKey("heartbeat", Heartbeat)


async def heartbeat(app: web.Application) -> AsyncIterator[None]:
    """The application's heartbeat."""
    app[HEARTBEAT] = Heartbeat()
    beating = asyncio.create_task(app[HEARTBEAT].run(), name="heartbeat")
    yield
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
