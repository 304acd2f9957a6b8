"""One prompt between ComfyUI and whoever gave it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


class Listener(Protocol):
    """What a prompt's owner is told. Calls come on ComfyUI's prompt thread: they may only take notes."""

    def event(self, name: str, data: dict[str, Any]) -> None:
        """One of ComfyUI's events about this prompt."""

    def wants_preview(self) -> bool:
        """Whether a preview made now would be used."""

    @property
    def is_watched(self) -> bool:
        """Whether somebody watches at all."""

    def preview(self, content: Any, node_id: str | None) -> None:
        """A preview (a PIL image, a text, or a ``Sound``)."""

    def final_image(self, image: Any, node_id: str | None) -> None:
        """An image that a node delivers through the socket instead of a file."""

    def end(self, entry: dict[str, Any] | None) -> None:
        """The prompt is over: its history entry, or None when it was taken out of the queue before it ran."""


@dataclass(slots=True)
class Submitted:
    """ComfyUI's answer to a prompt: its HTTP status and body."""

    status: int
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def node_errors(self) -> dict[str, Any]:
        """Errors by node (a list in old versions counts as none)."""
        errors = self.body.get("node_errors")
        return errors if isinstance(errors, dict) else {}
