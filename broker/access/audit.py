"""Who did what, from where: every change by an administrator or a person, and every log-in, in Redis and in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from broker.access.identity import Identity, Role
from broker.access.store import AccessStore
from broker.errors import EmqError

log = logging.getLogger(__name__)

_CUT = 200


class AuditLog:
    """Writes entries; one that cannot be written is in the log at least, and what it tells of was done all the same."""

    def __init__(self, store: AccessStore) -> None:
        self._store = store

    async def note(self, who: Identity | None, ip: str, what: str, target: str = "", **more: str) -> None:
        """Note that ``who`` did ``what`` to ``target``; never raises."""
        entry = {
            "who": (who.key_id if who else "") or "nobody", "tenant": who.tenant if who else "", "ip": ip, "what": what,
            "target": target, **more,
        }  # fmt: skip
        entry = {name: value[:_CUT] for name, value in entry.items() if value}
        log.info("audit: %s", " ".join(f"{name}={value}" for name, value in entry.items()))
        try:
            await self._store.note(entry)
        except EmqError as error:
            log.warning("The audit log could not be written: %s", error.message)


AUDIT = web.AppKey("audit", AuditLog)


def is_audited(who: Identity) -> bool:
    """Whether what this identity changes is noted: administrators' changes, and those of people who logged in."""
    return who.role is Role.ADMIN or who.session != ""


def named(fields: Mapping[str, Any]) -> str:
    """What a request or message is about, as text."""
    return " ".join(str(value) for value in fields.values() if isinstance(value, str | int) and value != "")
