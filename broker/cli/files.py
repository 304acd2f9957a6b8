"""Input files as the command line names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broker.client import Client
from broker.errors import BadMessage, EmqError
from broker.jobs import strict


async def source(emq: Client, text: str) -> dict[str, Any]:
    """What ``payload.inputs`` says of a file: a URL, a stored one (``blake3:…``), JSON, or an uploaded path."""
    if text.startswith(("http://", "https://")):
        return {"url": text}
    if text.startswith("blake3:"):
        return {"asset": text}
    if text.startswith("{"):
        return _parsed(text)
    path = Path(text)
    try:
        return {"asset": await emq.upload(path), "filename": path.name}
    except (OSError, ValueError) as error:  # ValueError: what cannot be mapped into memory
        raise BadMessage(f"Cannot read {text}: {getattr(error, 'strerror', None) or error}.") from None


async def sources(emq: Client, given: list[str]) -> dict[str, Any]:
    """``payload.inputs`` of arguments ``NODE.INPUT=FILE``; raises ``BadMessage``."""
    found: dict[str, Any] = {}
    for text in given:
        place, is_given, value = text.partition("=")
        if not is_given:
            raise BadMessage(f"--input takes NODE.INPUT=FILE, not {text!r}.")
        found[place] = await source(emq, value)
    return found


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = strict.parse(text)
    except EmqError as error:
        raise BadMessage(f"{text[:100]}: {error.message}") from None
    if not isinstance(value, dict):
        raise BadMessage(f"{text[:100]} is no JSON object.")
    return value
