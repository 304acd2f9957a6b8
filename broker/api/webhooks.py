"""Webhooks: the tenant's signing secret, and a job's deliveries."""

from __future__ import annotations

import json

from aiohttp import web

from broker.access.identity import Scope, current
from broker.access.webhook_secrets import WebhookSecrets
from broker.api.rest import answer, asks, read_message
from broker.protocol.webhooks import Redeliver

SECRETS = web.AppKey("webhook_secrets", WebhookSecrets)


def add_to(app: web.Application) -> None:
    """Register the routes."""
    app.add_routes(
        [
            web.get("/api/webhooks/secret", show_secret),
            web.post("/api/webhooks/secret/rotate", rotate_secret),
            web.get("/api/jobs/{job_id}/webhooks", deliveries),
            web.post("/api/jobs/{job_id}/webhooks/redeliver", redeliver),
        ]
    )


async def show_secret(request: web.Request) -> web.Response:
    """The secret that this tenant's webhooks are signed with."""
    who = current(request).require(Scope.SUBMIT)
    return answer({"secret": await request.config_dict[SECRETS].current(who.tenant)})


async def rotate_secret(request: web.Request) -> web.Response:
    """Draw another secret; for a day deliveries carry the old signature too."""
    who = current(request).require(Scope.SUBMIT)
    return answer({"secret": await request.config_dict[SECRETS].rotate(who.tenant)})


async def deliveries(request: web.Request) -> web.Response:
    """What was tried for a job, oldest first."""
    ops, who = asks(request, Scope.READ)
    found = await ops.queue.deliveries(request.match_info["job_id"], who.tenant)
    return answer({"deliveries": [json.loads(line) for line in found.lines("log")]})


async def redeliver(request: web.Request) -> web.Response:
    """Deliver once more what the log has, with the same ``webhook-id``."""
    ops, who = asks(request, Scope.SUBMIT)
    job_id = request.match_info["job_id"]
    await ops.queue.deliveries(job_id, who.tenant)  # whose job it is comes before what is said of it
    msg = await read_message(request, Redeliver)
    await ops.queue.deliveries(job_id, who.tenant, redeliver=msg.entry)
    return answer({"job_id": job_id, "entry": msg.entry}, 202)
