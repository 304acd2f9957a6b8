"""One hierarchy of errors, each with a stable ``code``.

They are raised deep and turned into a WebSocket frame, an HTTP response or a page at the edge
(``broker/api/errors.py``). A message is one sentence a person can act on.
"""

from __future__ import annotations

from typing import Any, ClassVar


class EmqError(Exception):
    """Base of every error that a client may see."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class BadJson(EmqError):
    """The text is not JSON as EMQ reads it (UTF-8, finite numbers, bounded depth)."""

    code = "bad_json"
    http_status = 400


class BadMessage(EmqError):
    """A field is missing or has the wrong type or value; ``details.errors`` names each one."""

    code = "bad_message"
    http_status = 400


class UnknownType(EmqError):
    """No message has this ``type``."""

    code = "unknown_type"
    http_status = 400


class InvalidWorkflow(EmqError):
    """The graph cannot be a ComfyUI prompt; ``details.node_errors`` has ComfyUI's own form."""

    code = "invalid_workflow"
    http_status = 400


class PayloadTooLarge(EmqError):
    """A message, payload or metadata is over its limit."""

    code = "payload_too_large"
    http_status = 413


class NotFound(EmqError):
    """No such thing, or it is another tenant's."""

    code = "not_found"
    http_status = 404


class Conflict(EmqError):
    """The thing is in a state that does not allow this (``details.reason`` says which)."""

    code = "conflict"
    http_status = 409


class Unauthorized(EmqError):
    """No credential, or one that is not valid."""

    code = "unauthorized"
    http_status = 401


class Forbidden(EmqError):
    """The credential lacks the scope."""

    code = "forbidden"
    http_status = 403


class RateLimited(EmqError):
    """Too many requests; ``details.retry_after_s`` says when to come back."""

    code = "rate_limited"
    http_status = 429


class QueueFull(EmqError):
    """The queue takes no more work now; ``details.retry_after_s`` says when to come back."""

    code = "queue_full"
    http_status = 429


class Unavailable(EmqError):
    """Redis is away: nothing was accepted, the caller may retry."""

    code = "unavailable"
    http_status = 503


class StorageFull(Unavailable):
    """The disk under the object store is full: nothing was kept."""

    http_status = 507


class ConfigurationError(Exception):
    """EMQ refuses to start; the message says what to change."""
