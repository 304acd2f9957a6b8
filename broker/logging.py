"""Log lines on stderr: for people or as JSON, with job, worker and client ids, without secrets and payloads."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from structlog.typing import EventDict, Processor

from broker.errors import ConfigurationError

_SECRETS = re.compile(
    r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|lease|basic)?\s*|bearer[ .]|lease +|"
    r"(?:password|token|api_key_comfy_org|auth_token_comfy_org)[\"']?\s*[:=]\s*[\"']?|"
    r"ticket=|emq(?:_|%5f)[0-9a-f]{16}(?:_|%5f)|://[^\s:/@]*:|whsec_|__Host-emq=|\bemq=)[^\s\"'@&,;]+"
)


def redact(text: str) -> str:
    """The text without what stands after a password, key or token."""
    return _SECRETS.sub(lambda found: found[1] + "…", text)


def _redact_event(_: Any, __: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redact(value)
    return event


def _one_line(_: Any, __: str, event: EventDict) -> EventDict:
    """One record, one line, whatever a client put into it."""
    text = event.get("event")
    if isinstance(text, str) and not text.isprintable():
        event["event"] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return event


class _NoTraceOfBadHttp(logging.Filter):
    """What is no HTTP is nobody's fault here; and aiohttp's trace of it quotes what came, a key perhaps."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.msg, record.args, record.exc_info = "Refused a request that is no good HTTP", (), None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def configure(level: str = "INFO", style: str = "console") -> None:
    """Send the standard library's log to stderr. Raises ``ConfigurationError`` for an unknown level."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigurationError(f"LOG_LEVEL {level!r} is unknown; use DEBUG, INFO, WARNING or ERROR.")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    last: list[Processor]
    if style == "json":
        last = [structlog.processors.format_exc_info, _redact_event, structlog.processors.JSONRenderer()]
    else:
        # The trace is text before it is redacted: an exception quotes what it met.
        plain = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        last = [_one_line, structlog.processors.format_exc_info, _redact_event, plain]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    logging.getLogger("aiohttp.server").addFilter(_NoTraceOfBadHttp())
    logging.getLogger("aiohttp.access").setLevel(logging.DEBUG if number <= logging.DEBUG else logging.WARNING)


@contextmanager
def bind_client(client_id: str | None) -> Iterator[None]:
    """Name the client on every line within."""
    with structlog.contextvars.bound_contextvars(**({"client": client_id[:128]} if client_id else {})):
        yield


@contextmanager
def bind_job(job_id: str) -> Iterator[None]:
    """Name the job on every line within."""
    with structlog.contextvars.bound_contextvars(job=job_id[:128]):
        yield
