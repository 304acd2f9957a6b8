"""What a function of the queue answers, as Redis gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .queue import Claimed, StaleLease, Superseded, Unregistered

RAISED = {"superseded": Superseded, "unknown": Unregistered, "stale_lease": StaleLease}


class Answer:
    """A function's answer: its outcome word, its pairs, and the answer of a fused claim."""

    def __init__(self, raw: Sequence[Any]) -> None:
        self.outcome = raw[0].decode()
        self._pairs: dict[bytes, Any] = dict(zip(raw[1::2], raw[2::2], strict=False))
        following = self._pairs.pop(b"next", None)
        self.next = Answer(following) if following else None

    def raw(self, name: str) -> bytes:
        """A pair as it is; an absent one is empty."""
        value = self._pairs.get(name.encode(), b"")
        return value if isinstance(value, bytes) else b""

    def text(self, name: str) -> str:
        """A pair as text."""
        return self.raw(name).decode()

    def number(self, name: str, default: float) -> float:
        """A pair as a number."""
        value = self.raw(name)
        return float(value) if value else default

    def flag(self, name: str) -> bool:
        """A pair as a boolean."""
        return self.raw(name) not in (b"", b"0")

    def lines(self, name: str) -> tuple[str, ...]:
        """A pair as a list."""
        text = self.text(name)
        return tuple(text.split("\n")) if text else ()


def preview_px(answer: Answer) -> int | None:
    """How large previews are wished for; None: as usual."""
    return int(answer.number("watch", 0)) if answer.number("watch", 0) > 1 else None


def claimed_of(pool: str, answer: Answer, *, given: bool = False) -> Claimed | None:
    """The job that a claim got; None when it got none. ``given``: the answer came in a hint."""
    if answer.outcome in RAISED:
        raise RAISED[answer.outcome]("claim")
    if answer.outcome != "job":
        return None
    return Claimed(
        pool=pool,
        job_id=answer.text("job_id"),
        given=given,
        attempt=int(answer.number("attempt", 1)),
        lease=answer.text("lease"),
        payload=answer.raw("payload"),
        job_type=answer.text("job_type") or "comfyui",
        priority=int(answer.number("priority", 0)),
        timeout_s=answer.number("timeout_s", 0) or None,
        watched=answer.flag("watch"),
        rules=answer.text("rules"),
        traced=bool(answer.text("trace")),
        input_urls=answer.text("input_urls"),
        preview_px=preview_px(answer),
        queued_ms=int(answer.number("queued_ms", -1)) if answer.text("queued_ms") else None,
    )
