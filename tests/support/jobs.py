"""Jobs and worker profiles for tests, as the broker and a worker would describe them."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

from broker.queue.new_job import NewJob

PAYLOAD = b'{"workflow":{"1":{"class_type":"EmptyImage","inputs":{"width":64}}},"big":9007199254740993,"none":[]}'


def class_of(atoms: Sequence[str], vram_mb: int = 0) -> str:
    """A class's name: equal requirements, equal name."""
    return hashlib.blake2b("\n".join([*sorted(atoms), str(vram_mb)]).encode(), digest_size=8).hexdigest()


def new_job(
    job_id: str | None = None,
    *,
    models: Sequence[str] = (),
    nodes: Sequence[str] = (),
    tags: Sequence[str] = (),
    **more: Any,
) -> NewJob:
    """A job that needs these model files, node classes and tags; ``more`` are fields of ``NewJob``."""
    atoms = [f"t:{more.get('job_type', 'comfyui')}", *(f"n:{n}" for n in nodes)]
    atoms = sorted([*atoms, *(f"m:{m}" for m in models), *(f"g:{t}" for t in tags)])
    values: dict[str, Any] = {
        "job_id": job_id or secrets.token_hex(8),
        "payload": PAYLOAD,
        "spec": b"{}",
        "job_class": class_of(atoms, more.get("vram_mb", 0)),
        "atoms": atoms,
        "kind": sorted(models),
    }
    return NewJob(**{**values, **more})


def profile(
    models: Sequence[str] = (), nodes: Sequence[str] = (), tags: Sequence[str] = (), vram_mb: int = 24_000
) -> str:
    """What a worker says that it can run, as ``emq_register`` takes it."""
    return json.dumps(
        {
            "job_types": ["comfyui"],
            "node_classes": list(nodes),
            "models": {"checkpoints": list(models)},
            "model_inputs": {},
            "tags": list(tags),
            "vram_mb": vram_mb,
        }
    )
