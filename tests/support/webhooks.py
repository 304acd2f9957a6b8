"""What webhooks are sent to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook


@dataclass
class Receiver:
    """A receiver of webhooks that answers as it is told."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def take(self, request: web.Request) -> web.Response:
        """Keep a delivery, and answer it."""
        body = await request.read()
        if self.hold is not None:
            await self.hold.wait()
        self.got.append((dict(request.headers), body))
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    def events(self, secret: str) -> list[dict[str, Any]]:
        """What came, every signature checked."""
        return [Webhook(secret).verify(body, {k.lower(): v for k, v in headers.items()}) for headers, body in self.got]
