"""What clients do at brokers that ask for keys: log in, set limits, submit."""

from __future__ import annotations

from typing import Any

from tests.access.conftest import Guarded, bearer
from tests.api.conftest import Broker, submit
from tests.support.waiting import wait_until


async def log_in_with(broker: Broker, key: str, **headers: str) -> tuple[int, str | None]:
    """The status of a log-in with a key, and its Set-Cookie."""
    url = broker.url + "/login"
    async with broker.http.post(url, data={"key": key}, allow_redirects=False, headers=headers) as response:
        return response.status, response.headers.get("Set-Cookie")


async def session_of(broker: Broker, key: str) -> dict[str, str]:
    """A request's headers in a fresh session of a key."""
    status, text = await log_in_with(broker, key)
    assert (status, text is not None) == (303, True)
    return {"Cookie": str(text).partition(";")[0]}


async def with_limits(guarded: Guarded, tenant: str = "own", **limits: Any) -> list[Broker]:
    """Two brokers that know a tenant's limits."""
    brokers = [guarded.broker, await guarded.another()] if len(guarded.brokers) == 1 else guarded.brokers
    admin = bearer(await guarded.key("admin", tenant="ops"))
    # Its answer comes when the queue knows, too.
    assert (await brokers[0].json("PUT", f"/api/tenants/{tenant}", json=limits, headers=admin))[0] == 200

    async def known() -> bool:
        seen = [(await broker.json("GET", f"/api/tenants/{tenant}", headers=admin))[1]["set"] for broker in brokers]
        return seen == [limits, limits]

    await wait_until(known, 5, "both brokers know the limits")
    return brokers


async def submit_with(broker: Broker, key: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    """Submit a small job with a key: status and answer."""
    return await broker.json("POST", "/api/jobs", json=submit(**fields), headers=bearer(key))
