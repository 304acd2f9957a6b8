"""What the live workers can do, read from the queue and kept for a few seconds."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from broker.jobs.ranges import Known, Ranges, parse
from broker.queue.queue import Answer, Queue

log = logging.getLogger(__name__)

MAX_AGE_S = 3.0
_KEPT_RANGES = 200
_MOST_ALIKE = 2000


@dataclass(frozen=True, slots=True)
class Profile:
    """One set of capabilities and what a class is matched against (see ``docs/queue.md``: atoms)."""

    profile_id: str
    atoms: frozenset[str]
    vram_mb: int
    node_classes: frozenset[str]
    models: dict[str, list[str]]
    model_inputs: dict[str, dict[str, str]] | None
    without: frozenset[str]
    ranges: Ranges | None = None


@dataclass(slots=True)
class FleetView:
    """All live profiles together."""

    profiles: list[Profile] = field(default_factory=list)
    taken_at: float = 0.0
    workers: dict[str, int] = field(default_factory=dict)
    """Live workers by profile."""
    _known: frozenset[str] | None = None
    _folders: dict[str, set[str]] | None = None
    _values: Known | None = None
    _near: dict[str, str | None] = field(default_factory=dict)

    @property
    def values(self) -> Known:
        """What values the inputs of node classes take."""
        if self._values is None:
            self._values = Known((profile.node_classes, profile.ranges) for profile in self.profiles)
        return self._values

    @property
    def atoms(self) -> frozenset[str]:
        """Every atom that some worker has."""
        if self._known is None:
            self._known = frozenset().union(*(p.atoms for p in self.profiles))
        return self._known

    def folders(self, file: str) -> set[str]:
        """The model folders in which some worker has ``file``."""
        if self._folders is None:
            self._folders = {}
            for profile in self.profiles:
                for folder, files in profile.models.items():
                    for name in files:
                        self._folders.setdefault(name, set()).add(folder)
        return self._folders.get(file, set())

    def with_model(self, file: str) -> set[str]:
        """The profiles that have ``file``."""
        return {profile.profile_id for profile in self.profiles if f"m:{file}" in profile.atoms}

    def nearest(self, atom: str) -> str | None:
        """The name that some worker has and that is most like this one of its kind, if one is."""
        if atom not in self._near:
            prefix, size = atom[:2], len(atom)
            alike = [known for known in self.atoms if known.startswith(prefix) and abs(len(known) - size) <= 8]
            matches = get_close_matches(atom, alike[:_MOST_ALIKE], n=1, cutoff=0.75)
            self._near[atom] = matches[0][2:] if matches else None
        return self._near[atom]

    def model_inputs(self, class_type: str) -> dict[str, str] | None:
        """Which inputs of a class name files of which folder; ``None`` when no worker that has it says so."""
        for profile in self.profiles:
            if profile.model_inputs is not None and class_type in profile.node_classes:
                return profile.model_inputs.get(class_type, {})
        return None


def slashes(name: str) -> str:
    """A model file's name with ``/`` between folders, whatever system wrote it."""
    return name.replace("\\", "/")


def _strings(value: Any) -> Iterable[str]:
    return (item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def parse_profile(
    profile_id: str, text: str, without: frozenset[str] = frozenset(), ranges: Ranges | None = None
) -> Profile:
    """A profile from its JSON (the fields of ``emq_register``), less the atoms it turned out not to have."""
    data = json.loads(text)
    lacking = {atom[2:] for atom in without if atom.startswith("n:")}
    models = {folder: [slashes(n) for n in _strings(names)] for folder, names in (data.get("models") or {}).items()}
    classes = frozenset(_strings(data.get("node_classes")))
    atoms = {f"t:{name}" for name in _strings(data.get("job_types"))} | {f"n:{name}" for name in classes}
    atoms |= {f"g:{name}" for name in _strings(data.get("tags"))}
    for folder, names in models.items():
        atoms.update(f"m:{name}" for name in names)
        atoms.update(f"m:{folder}/{name}" for name in names)
    inputs = data.get("model_inputs") or None
    vram_mb = int(data.get("vram_mb") or 0)
    return Profile(profile_id, frozenset(atoms) - without, vram_mb, classes - lacking, models, inputs, without, ranges)


class Fleet:
    """The cached view; a profile's JSON is parsed once, when it first appears."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._view = FleetView(taken_at=float("-inf"))
        self._parsed: dict[str, Profile] = {}
        self._ranges: dict[str, Ranges] = {}
        self._lock = asyncio.Lock()

    async def view(self, max_age_s: float = MAX_AGE_S, *, since: float | None = None) -> FleetView:
        """The fleet, at most ``max_age_s`` old, or as it was at ``since`` (``time.monotonic``) or later.

        Raises ``Unavailable`` while Redis is away.
        """
        wanted = time.monotonic() - max_age_s if since is None else since
        if self._view.taken_at >= wanted:
            return self._view
        async with self._lock:
            if self._view.taken_at < wanted:
                now = time.monotonic()
                answer = await self._queue.fleet(list(self._parsed))
                live = {row.text("profile") or row.outcome: row.number("workers", 1) for row in answer.rows}
                self._view = FleetView(
                    [await self._profile(row) for row in answer.rows if row.number("workers", 1)], now, live
                )
                self._parsed = {profile.profile_id: profile for profile in self._view.profiles}
        return self._view

    async def _profile(self, row: Answer) -> Profile:
        profile_id = row.text("profile") or row.outcome
        without = frozenset(row.lines("without"))
        known = self._parsed.get(profile_id)
        if known is None:
            try:
                known = parse_profile(profile_id, row.text("json"), without, await self._ranges_of(profile_id, row))
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                # What a worker wrote into Redis itself must not stop everybody's submits.
                log.warning("The profile %s of a worker cannot be read: %s", profile_id, type(error).__name__)
                known = parse_profile(profile_id, "{}", without)
        return known

    async def _ranges_of(self, profile_id: str, row: Answer) -> Ranges | None:
        """What values a profile takes, read once for all that say the same."""
        digest = json.loads(row.text("json")).get("ranges")
        if not isinstance(digest, str):
            return None
        if digest not in self._ranges:
            data = await self._queue.ranges(profile_id)
            if not data:
                return None
            self._ranges[digest] = parse(data)
            if len(self._ranges) > _KEPT_RANGES:
                del self._ranges[next(iter(self._ranges))]
        return self._ranges[digest]
