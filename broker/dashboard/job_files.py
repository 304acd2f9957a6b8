"""What a job was given and what it told others: input files and webhook deliveries, as its page shows them."""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp import web

from broker.access.identity import Role, current
from broker.api.services import services
from broker.dashboard.forms import done, field, read_form
from broker.dashboard.frame import add_action
from broker.errors import BadMessage
from broker.queue.queue import Answer

MOST_INPUTS = 60
_ASSET = re.compile(r"blake3:[0-9a-f]{64}")


def add_to(app: web.Application) -> None:
    """Register the action."""
    add_action(app, "/ui/jobs/{job_id}/redeliver", redeliver, Role.OPERATOR)


def inputs(payload: Any, *, own: bool) -> list[dict[str, Any]]:
    """The input files: where each goes and where it is from; pictures of the tenant's ``own`` are shown."""
    told = payload.get("inputs") if isinstance(payload, dict) else None
    shown = []
    for name, source in list(told.items())[:MOST_INPUTS] if isinstance(told, dict) else ():
        if isinstance(source, dict):
            asset = source.get("asset")
            known = own and isinstance(asset, str) and _ASSET.fullmatch(asset) is not None
            made_by = source.get("output")
            shown.append({
                "name": str(name),
                "label": str(source.get("filename") or source.get("url") or asset or "file")[:200],
                "asset": f"/api/assets/{asset}" if known else "",
                "job_id": str(made_by.get("job_id") or "") if isinstance(made_by, dict) else "",
            })  # fmt: skip
    return shown


def deliveries(answer: Answer) -> list[dict[str, Any]]:
    """The tries to tell the job's webhook, the latest first."""
    return [json.loads(line) for line in reversed(answer.lines("log"))]


async def redeliver(request: web.Request) -> web.StreamResponse:
    """Tell the webhook once more, with the same ``webhook-id``."""
    form, job_id = await read_form(request), request.match_info["job_id"]
    ops, sees = services(request).operations, current(request).sees
    await ops.queue.deliveries(job_id, sees)  # whose job it is comes before what is asked of it
    if not field(form, "entry"):
        raise BadMessage("entry: the delivery, as the job's log names it.")
    await ops.queue.deliveries(job_id, sees, redeliver=field(form, "entry"))
    return done(request, form, "The webhook is told again.")
