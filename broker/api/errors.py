"""Errors at the edge: a frame for a socket, a response for a request."""

from __future__ import annotations

import json
import logging
from typing import Any

from aiohttp import web

from broker.errors import EmqError
from broker.protocol.base import now_ms

log = logging.getLogger(__name__)

_BY_STATUS = {400: "bad_message", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "bad_message",
              409: "conflict", 413: "payload_too_large", 429: "rate_limited", 503: "unavailable"}  # fmt: skip
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Internal(EmqError):
    """A fault of EMQ's own; the log has the trace."""


def frame(error: EmqError, message_id: str | None = None) -> dict[str, Any]:
    """The error as protocol's ``error`` message."""
    body: dict[str, Any] = {
        "type": "error",
        "message_id": message_id,
        "code": error.code,
        "error": error.message,
        "details": error.details,
        "timestamp": now_ms(),
    }
    if "retry_after_s" in error.details:
        body["retry_after_s"] = error.details["retry_after_s"]
    return body


def response(error: EmqError, message_id: str | None = None) -> web.Response:
    """The error as an HTTP response with the same body."""
    answer = web.json_response(frame(error, message_id), status=error.http_status, dumps=dumps)
    retry = error.details.get("retry_after_s", 1 if error.http_status == 503 else None)
    if retry is not None:
        answer.headers["Retry-After"] = str(max(1, round(retry)))
    if error.http_status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def from_http(exc: web.HTTPException) -> web.Response:
    """aiohttp's own refusals (no such route, body too large …) in the same form."""
    text = {
        404: "There is nothing at this address.",
        405: "This address does not take this method.",
        413: "The body is too large.",
    }.get(exc.status, exc.reason)
    body: dict[str, Any] = {
        "type": "error",
        "message_id": None,
        "code": _BY_STATUS.get(exc.status, "bad_message"),
        "error": text,
        "details": {},
        "timestamp": now_ms(),
    }
    headers = {name: exc.headers[name] for name in ("Allow", "Location") if name in exc.headers}
    return web.json_response(body, status=exc.status, headers=headers, dumps=dumps)


def unexpected(exc: Exception, where: str) -> Internal:
    """Log a fault of our own; what the client hears has nothing of it."""
    log.error("Unexpected error in %s", where, exc_info=exc)
    return Internal("EMQ made a mistake; the broker's log says more.")


def dumps(value: Any) -> str:
    """Compact JSON for the wire."""
    return _COMPACT.encode(value)
