"""Hints for one worker instance: a list in Redis with one blocking reader."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from broker.errors import Unavailable

log = logging.getLogger(__name__)
AWAY_S = 1.0


class Hint(NamedTuple):
    """A word (``work``, ``cancel``, ``pause``, ``resume``, ``drain``, ``watch``, ``superseded``) and its subject."""

    word: str
    subject: str = ""


class Popper(Protocol):
    """Waits for the first element of a list; ``broker.queue.connection.Connection`` is the real one."""

    async def pop(self, key: str, block_s: float = ...) -> bytes | None:
        """The element, or ``None`` after ``block_s``; raises ``Unavailable``."""


class Inbox:
    """The inboxes of one pool's instances."""

    def __init__(self, popper: Popper, prefix: str) -> None:
        self._popper = popper
        self._prefix = prefix

    async def hints(self, instance: str) -> AsyncGenerator[Hint, None]:
        """Every hint for an instance, for ever; while Redis is away it waits."""
        key = f"{self._prefix}in:{instance}"
        while True:
            try:
                raw = await self._popper.pop(key)
            except Unavailable:
                await asyncio.sleep(AWAY_S)
                continue
            if raw is not None:
                word, _, subject = raw.decode("utf-8", "replace").partition(" ")
                yield Hint(word, subject)
