"""Partner keys (of ComfyUI's API nodes): never in the job, encrypted beside it for a while, gone at the claim."""

from __future__ import annotations

import json
from typing import Any

from broker.access.store import AccessStore
from broker.errors import BadMessage
from broker.queue.seal import Seal

NAMES = ("api_key_comfy_org", "auth_token_comfy_org")
"""What ComfyUI itself treats as secrets in ``extra_data``."""
MARK = "emq_partner_keys"
"""Stands in ``extra_data`` for keys that lie beside the job."""


def split(payload: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The payload without its partner keys, and they. Raises ``BadMessage`` where they are no texts."""
    for name in NAMES:
        if payload.get(name) is not None:
            raise BadMessage(f"payload.{name}: this belongs into payload.extra_data.")
    extra = payload.get("extra_data")
    if not isinstance(extra, dict):
        return payload, {}
    found = {name: extra[name] for name in NAMES if extra.get(name) is not None}
    if any(not isinstance(value, str) or not 0 < len(value) <= 4096 for value in found.values()):
        raise BadMessage("payload.extra_data: a partner key is a text of at most 4096 characters.")
    rest = {name: value for name, value in extra.items() if name not in (*NAMES, MARK)}
    if found:
        rest[MARK] = True
    return ({**payload, "extra_data": rest} if found or len(rest) < len(extra) else payload), found


class SideKeys:
    """Keeps partner keys until a worker of the gateway claims their job."""

    def __init__(self, store: AccessStore, seal: Seal, pool: str, life_s: float) -> None:
        """``life_s``: how long a job may wait with its keys; 0: partner keys are refused."""
        self._store = store
        self._seal = seal
        self._pool = pool
        self._life_s = life_s

    def check(self) -> None:
        """Raise ``BadMessage`` when partner keys are not taken."""
        if not self._life_s:
            raise BadMessage(
                "payload.extra_data has a partner key, which this broker does not take: leave it out, or have "
                "EMQ_PARTNER_KEYS_S set."
            )

    async def put(self, job_id: str, keys: dict[str, str]) -> None:
        """Keep a job's keys."""
        sealed = self._seal.close(json.dumps(keys).encode(), self._about(job_id))
        await self._store.put_side(self._name(job_id), sealed, round(self._life_s * 1000))

    async def take(self, job_id: str) -> dict[str, str] | None:
        """A job's keys, once; ``None`` when they are gone."""
        sealed = await self._store.take_side(self._name(job_id))
        if sealed is None:
            return None
        found: dict[str, str] = json.loads(self._seal.open(sealed, self._about(job_id)))
        return found

    async def drop(self, job_id: str) -> None:
        """Forget a job's keys: it was not taken."""
        await self._store.take_side(self._name(job_id))

    def _name(self, job_id: str) -> str:
        return f"{self._pool}:{job_id}"

    def _about(self, job_id: str) -> str:
        return f"side:{self._name(job_id)}"
