"""What a job needs of a worker: given by the client, completed from the graph.

The result is a set of *atoms* (``docs/queue.md``) and a VRAM figure; jobs with the same ones form a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from broker.jobs.fleet import FleetView, slashes
from broker.jobs.strict import canonical
from broker.jobs.workflow import Graph

MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".sft")
HEAVY_FOLDERS = frozenset({"checkpoints", "diffusion_models", "unet", "unet_gguf"})
"""Folders whose files are what takes time to load; loras, VAEs and text encoders ride along."""
_HEAVY_LOADERS = ("checkpoint", "ckpt", "unet", "diffusion")


@dataclass(frozen=True, slots=True)
class ModelUse:
    """One model file that a job names; ``folder`` is ``None`` when only ComfyUI knows it."""

    file: str
    folder: str | None
    heavy: bool

    @property
    def atom(self) -> str:
        """How the queue asks for it."""
        return f"m:{self.folder}/{self.file}" if self.folder else f"m:{self.file}"


@dataclass(frozen=True, slots=True)
class Requirement:
    """A class of jobs: everything that decides which workers may run them."""

    class_id: str
    atoms: tuple[str, ...]
    kind: tuple[str, ...]
    vram_mb: int
    files: dict[str, str]
    """Model atom → the file's name, for people."""

    def public(self) -> dict[str, Any]:
        """As records show it."""
        return {
            "models": sorted(set(self.files.values())),
            "node_classes": [atom[2:] for atom in self.atoms if atom.startswith("n:")],
            "min_vram_mb": self.vram_mb,
            "tags": [atom[2:] for atom in self.atoms if atom.startswith("g:")],
        }


def complete(job_type: str, given: dict[str, Any], graph: Graph | None, fleet: FleetView) -> Requirement:
    """The requirement of a job: ``given`` has ``models``, ``node_classes``, ``min_vram_mb`` and ``tags``."""
    uses = {use.atom: use for use in _model_uses(graph or {}, fleet)}
    named = {use.file for use in uses.values()}
    named |= {f"{use.folder}/{use.file}" for use in uses.values() if use.folder}
    for name in map(slashes, given["models"]):
        if name not in named:
            use = _given_model(name, fleet)
            uses[use.atom] = use
    classes = {node["class_type"] for node in (graph or {}).values()} | set(given["node_classes"])
    atoms = {f"t:{job_type}", *uses, *(f"n:{name}" for name in classes), *(f"g:{tag}" for tag in given["tags"])}
    ordered, kind, vram = tuple(sorted(atoms)), _kind(uses), given["min_vram_mb"]
    return Requirement(class_id(ordered, kind, vram), ordered, kind, vram, {a: u.file for a, u in uses.items()})


def class_id(atoms: tuple[str, ...], kind: tuple[str, ...], vram_mb: int) -> str:
    """16 hex digits that name a class."""
    return blake3(canonical({"atoms": atoms, "kind": kind, "vram_mb": vram_mb})).hexdigest()[:16]


def _given_model(name: str, fleet: FleetView) -> ModelUse:
    folders = fleet.folders(name)
    folder, _, rest = name.partition("/")
    heavy = bool(folders & HEAVY_FOLDERS) if folders else (folder in HEAVY_FOLDERS if rest else True)
    return ModelUse(name, None, heavy)


def _kind(uses: dict[str, ModelUse]) -> tuple[str, ...]:
    return tuple(sorted({use.file for use in uses.values() if use.heavy}))


def _model_uses(graph: Graph, fleet: FleetView) -> Iterator[ModelUse]:
    for node in graph.values():
        known = fleet.model_inputs(node["class_type"])
        for name, value in node["inputs"].items():
            if isinstance(value, str) and 0 < len(value) <= 512 and value.isprintable():
                use = _model_use(node["class_type"], name, slashes(value), known, fleet)
                if use is not None:
                    yield use


def _model_use(
    class_type: str, name: str, value: str, known: dict[str, str] | None, fleet: FleetView
) -> ModelUse | None:
    """The model file an input names, if any; ``None`` or ``taesd`` in a loader's list is no file."""
    looks = value.lower().endswith(MODEL_SUFFIXES)
    if known is not None and name in known:
        folder = known[name]
        if not looks and folder not in fleet.folders(value):
            return None
        return ModelUse(value, folder, folder in HEAVY_FOLDERS)
    if not looks or (known is not None and not fleet.folders(value)):
        return None
    folders = fleet.folders(value)
    heavy = bool(folders & HEAVY_FOLDERS) if folders else _is_heavy_loader(class_type)
    return ModelUse(value, None, heavy)


def _is_heavy_loader(class_type: str) -> bool:
    lowered = class_type.lower()
    return any(word in lowered for word in _HEAVY_LOADERS)
