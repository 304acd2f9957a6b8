"""From ComfyUI's events about one prompt to the progress of one job.

Events are noted on ComfyUI's prompt thread, cheaply and without waking anybody but at the start and the end; the
worker's loop looks at the notes five times a second and reports what has changed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .previews import PAUSE_S, Preview

REPORT_PAUSE_S = 0.2
STORE_PAUSE_S = 1.0
UNKNOWN_S = 0.1
STEP_S = 0.1
MAX_STEPS = 100
"""Nodes that are told of in a trace."""


class Durations:
    """Seconds that nodes of each class took here; they weigh a workflow's nodes against each other."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def note(self, class_type: str, seconds: float) -> None:
        """Learn from one execution; recent ones count most."""
        before = self._seconds.get(class_type)
        self._seconds[class_type] = seconds if before is None else before * 0.7 + seconds * 0.3

    def knows(self, class_type: str) -> bool:
        """Whether such a node was seen to run here."""
        return class_type in self._seconds

    def guess(self, node: Mapping[str, Any]) -> float:
        """What a node will take: as learned; else by its steps, if it has any."""
        known = self._seconds.get(str(node.get("class_type")))
        if known is not None:
            return max(known, 0.001)
        inputs = node.get("inputs")
        steps = inputs.get("steps") if isinstance(inputs, Mapping) else None
        return STEP_S * steps if isinstance(steps, int) and 0 < steps < 10_000 else UNKNOWN_S


def needed_nodes(graph: Mapping[str, Any], is_output: Callable[[str], bool]) -> list[str]:
    """The nodes that ComfyUI will run: the outputs and all they are linked to."""
    todo = [name for name, node in graph.items() if is_output(str(node.get("class_type")))]
    found: dict[str, None] = {}
    while todo:
        name = todo.pop()
        if name in found or name not in graph:
            continue
        found[name] = None
        for value in (graph[name].get("inputs") or {}).values():
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
                todo.append(value[0])
    return list(found) or list(graph)


class Progress:
    """How far a prompt is: 0 to 100 over all its nodes, never falling."""

    def __init__(self, graph: Mapping[str, Any], nodes: Iterable[str], durations: Durations) -> None:
        self._classes = {name: str(node.get("class_type")) for name, node in graph.items()}
        self._weights = {name: durations.guess(graph[name]) for name in nodes}
        self._total = sum(self._weights.values()) or 1.0
        self._durations = durations
        self._done: set[str] = set()
        self._cached: set[str] = set()
        self._node: str | None = None
        self._value, self._max = 0.0, 1.0
        self._node_since = self._since = time.monotonic()
        self._best = 0.0
        self._ran: list[tuple[str, float, float]] = []

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        """Take one of ComfyUI's events."""
        if name == "execution_start":
            self._since = time.monotonic()
        elif name == "execution_cached":
            self._cached = self._done = {_outer(node) for node in data.get("nodes") or ()} & set(self._weights)
        elif name == "executing":
            self._turn_to(data.get("display_node") or data.get("node"))
        elif name == "execution_success":
            self._turn_to(None)
        elif name == "progress":
            self._step(data)
        elif name == "executed":
            node = _outer(data.get("display_node") or data.get("node"))
            if node in self._weights and node != self._node:
                self._done = self._done | {node}

    def _turn_to(self, node: Any) -> None:
        """Another node runs now; the one before is done."""
        now, before = time.monotonic(), self._node
        node = None if node is None else _outer(node)
        if before is not None and before != node:
            self._done = self._done | {before}
            self._ran.append((before, self._node_since, now))
            if before in self._classes:
                self._durations.note(self._classes[before], now - self._node_since)
        if node != before:
            self._node, self._node_since, self._value, self._max = node, now, 0.0, 1.0

    def _step(self, data: Mapping[str, Any]) -> None:
        node = _outer(data["node"]) if data.get("node") is not None else self._node
        if node != self._node:
            self._turn_to(node)
        self._value, self._max = float(data.get("value") or 0), float(data.get("max") or 1) or 1.0

    def node(self) -> dict[str, Any] | None:
        """The node that runs now and its own steps."""
        if self._node is None:
            return None
        return {
            "id": self._node,
            "class_type": self._classes.get(self._node),
            "value": _plain(self._value),
            "max": _plain(self._max),
        }

    def snapshot(self) -> dict[str, Any]:
        """The fields of ``update_job_progress`` that come from here."""
        done, node = self._done, self._node
        share = sum(self._weights.get(each, 0.0) for each in done)
        if node is not None and node not in done:
            share += self._weights.get(node, 0.0) * min(1.0, max(0.0, self._value / self._max))
        self._best = max(self._best, min(99.9, 100 * share / self._total))
        found: dict[str, Any] = {
            "progress": round(self._best, 1),
            "node": self.node(),
            "nodes_done": len(done & set(self._weights)),
            "nodes_total": len(self._weights),
        }
        eta = self._eta()
        return found if eta is None else {**found, "eta_s": eta}

    def ran(self, until: float) -> list[tuple[str, str | None, float, float]]:
        """The nodes that took longest, by start: id, class, and when each began and ended (by ``time.monotonic``)."""
        ran = [*self._ran, (self._node, self._node_since, until)] if self._node is not None else self._ran
        longest = sorted(ran, key=lambda each: each[1] - each[2])[:MAX_STEPS]
        return [
            (node, self._classes.get(node), began, ended)
            for node, began, ended in sorted(longest, key=lambda each: each[1])
        ]

    def remaining(self) -> float | None:
        """Seconds to the end by what nodes took here before; None while a class is new."""
        left = [name for name in self._weights if name not in self._done]
        if not all(self._durations.knows(self._classes[name]) for name in left):
            return self._eta()
        running = time.monotonic() - self._node_since if self._node is not None else 0.0
        return max(0.0, sum(self._weights[name] for name in left) - running)

    def expected(self) -> float | None:
        """Seconds for all nodes by what they took here before; None while a class is new."""
        known = all(self._durations.knows(self._classes[name]) for name in self._weights)
        return self._total if known else None

    def _eta(self) -> float | None:
        """Seconds to the end, once enough has run to tell; what was cached tells nothing."""
        head = 100 * sum(self._weights.get(each, 0.0) for each in self._cached) / self._total
        ran, elapsed = self._best - head, time.monotonic() - self._since
        return round(elapsed * (100 - self._best) / ran, 1) if ran > 1 and elapsed > 0.5 else None


def _outer(node: Any) -> str:
    """A node of the graph itself: nodes that a node unfolds into are named ``<node>.…``."""
    return str(node).split(".", 1)[0]


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


@dataclass
class Ending:
    """How a prompt ended. ``entry`` is None when it was taken out of the queue before it ran."""

    entry: dict[str, Any] | None

    @property
    def messages(self) -> list[tuple[str, dict[str, Any]]]:
        """ComfyUI's record of the execution."""
        status = (self.entry or {}).get("status") or {}
        return [(str(name), data) for name, data in status.get("messages") or ()]

    @property
    def succeeded(self) -> bool:
        """Whether every output was made."""
        status = (self.entry or {}).get("status") or {}
        return status.get("status_str") == "success"

    def message(self, name: str) -> dict[str, Any] | None:
        """The latest message of a kind."""
        return next((data for kind, data in reversed(self.messages) if kind == name), None)


class Relay:
    """Listens to one prompt for one job."""

    def __init__(self, loop: asyncio.AbstractEventLoop, progress: Progress, watched: bool) -> None:
        self.progress = progress
        self.watched = watched
        self.over: asyncio.Future[Ending | None] = loop.create_future()
        """How the prompt ended; None when it was given up before it had."""
        self.ended = asyncio.Event()
        self.started_at = self.ended_at = 0.0
        self.last_event = time.monotonic()
        self.final_images: list[tuple[str | None, Any]] = []
        self._loop = loop
        self._changed = False
        self._previews: dict[str, Preview] = {}
        """The latest picture, text and sound that were not taken yet."""
        self._preview_at = 0.0
        self._lock = threading.Lock()

    # -- on ComfyUI's prompt thread -----------------------------------------------------------------------------------

    def event(self, name: str, data: dict[str, Any]) -> None:
        """Take note of an event."""
        self.last_event = time.monotonic()
        if name == "progress_state":
            return
        if name == "execution_start":
            self.started_at = self.last_event
        with self._lock:
            self.progress.event(name, data)
            self._changed = True

    @property
    def is_watched(self) -> bool:
        """Whether somebody watches at all."""
        return self.watched

    def wants_preview(self) -> bool:
        """Whether somebody watches and the last preview is old enough."""
        return self.watched and time.monotonic() - self._preview_at >= PAUSE_S

    def preview(self, content: Any, node_id: str | None) -> None:
        """Keep the latest preview."""
        self._preview_at = time.monotonic()
        preview = Preview(content, node_id)
        with self._lock:
            self._previews[preview.kind] = preview

    def final_image(self, image: Any, node_id: str | None) -> None:
        """Keep an image that has no file."""
        self.final_images.append((node_id, image))

    def end(self, entry: dict[str, Any] | None) -> None:
        """The prompt is over (also called when there never was one)."""
        self.ended_at = time.monotonic()
        self._loop.call_soon_threadsafe(self._set_ended, Ending(entry))

    # -- on the worker's loop -----------------------------------------------------------------------------------------

    def _set_ended(self, ending: Ending) -> None:
        self.ended.set()
        if not self.over.done():
            self.over.set_result(ending)

    def give_up(self) -> None:
        """Wait for the prompt's end no longer; it is still told by :attr:`ended`."""
        if not self.over.done():
            self.over.set_result(None)

    def take_changes(self) -> dict[str, Any] | None:
        """The progress, if it has changed since the last call."""
        with self._lock:
            if not self._changed:
                return None
            self._changed = False
            return self.progress.snapshot()

    def take_preview(self) -> Preview | None:
        """The latest preview that was not taken yet; where there are several kinds, in turn."""
        with self._lock:
            return self._previews.pop(next(iter(self._previews))) if self._previews else None

    @property
    def is_started(self) -> bool:
        """Whether the prompt ran at all."""
        return self.started_at > 0

    def seconds(self) -> float:
        """How long the prompt ran."""
        return max(0.0, self.ended_at - self.started_at) if self.started_at else 0.0
