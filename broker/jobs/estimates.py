"""When a waiting job is expected to start."""

from __future__ import annotations

from typing import Any


def estimated_start(job_class: str, position: int | None) -> dict[str, Any] | None:
    """The expected start of a job of ``job_class``, or ``None`` while too little is known to say."""
    return None
