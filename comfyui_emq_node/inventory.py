"""What this ComfyUI can do: versions, devices, node classes, model files, and which of them are loaded.

It is given ComfyUI's modules by ``comfy.py`` and imports none.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from .ranges import Document, judges_combos

log = logging.getLogger("emq")

MODEL_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".sft")
UPLOADS = {
    "image_upload": "image", "animated_image_upload": "image", "video_upload": "video", "audio_upload": "audio",
}  # fmt: skip
"""How a class tells what kind of file an input takes: by the upload button that the page gives it."""
KINDS = {("LoadLatent", "latent"): "latent"}
"""Those that have no button."""
NO_MODELS = frozenset({"custom_nodes", "configs"})
"""Folders that ComfyUI lists beside those with models."""


class _Listing(list[str]):
    """A folder's files that remember their folder while input types are read."""

    folder = ""


def slashed(name: str) -> str:
    """A file's name with the separator that all machines share."""
    return name.replace("\\", "/")


class Inventory:
    """Reads ComfyUI's modules; none of its methods keeps ComfyUI's loop waiting, but reading cold disks takes time."""

    def __init__(self, nodes: Any, folder_paths: Any, management: Any) -> None:
        self._nodes, self._folders, self._management = nodes, folder_paths, management
        self._recent: dict[str, None] = {}

    def comfyui_version(self) -> str:
        """ComfyUI's version; ``unknown`` before 2025."""
        return str(getattr(sys.modules.get("comfyui_version"), "__version__", "") or self._imported_version())

    @staticmethod
    def _imported_version() -> str:
        try:
            from comfyui_version import __version__
        except ImportError:
            return "unknown"
        return str(__version__)

    def manager_version(self) -> str:
        """ComfyUI-Manager's version, from its package or its folder's ``pyproject.toml``; empty without one."""
        try:
            return metadata.version("comfyui-manager")
        except metadata.PackageNotFoundError:
            pass
        for folder in self._folders.get_folder_paths("custom_nodes"):
            for path in Path(folder).glob("*[Mm]anager*/pyproject.toml"):
                text = path.read_text("utf-8", "replace")
                if "comfyui-manager" in text.lower() and (found := re.search(r'^version\s*=\s*"([^"]+)"', text, re.M)):
                    return found[1]
        return ""

    def manager_security(self) -> str:
        """ComfyUI-Manager's ``security_level`` in the settings that it reads; ``normal``, its default, where none is.

        They lie in ``user/__manager`` since 3.38, before that in ``user/default/ComfyUI-Manager``, before 3.0 in its
        own folder. Empty without a manager.
        """
        if not self.manager_version():
            return ""
        user = Path(self._folders.get_user_directory())
        own = [
            path for root in self._folders.get_folder_paths("custom_nodes") for path in Path(root).glob("*[Mm]anager*")
        ]
        for folder in (user / "__manager", user / "default" / "ComfyUI-Manager", *own):
            try:
                text = (folder / "config.ini").read_text("utf-8", "replace")
            except OSError:
                continue
            if found := re.search(r"^\s*security_level\s*[=:]\s*([\w-]+)", text, re.MULTILINE):
                return found[1].lower()
        return "normal"

    def versions(self) -> dict[str, str]:
        """Versions of what runs here."""
        return {
            "comfyui_version": self.comfyui_version(),
            "manager_version": self.manager_version(),
            "manager_security": self.manager_security(),
            "python_version": platform.python_version(),
            "torch_version": str(getattr(self._management, "torch_version", "")),
            "os": sys.platform,
        }

    def gpus(self) -> list[dict[str, Any]]:
        """Each device's name and memory; a CPU has no video memory."""
        return [
            {"name": str(self._management.get_torch_device_name(device)), "vram_mb": self._total_mb(device)}
            for device in self._devices()
        ]

    def gpu_state(self) -> list[dict[str, Any]]:
        """Free video memory of each device, now."""
        return [{"vram_free_mb": self._free_mb(device)} for device in self._devices()]

    def _devices(self) -> list[Any]:
        every = getattr(self._management, "get_all_torch_devices", None)
        devices = list(every()) if every is not None else []
        return devices or [self._management.get_torch_device()]

    def _total_mb(self, device: Any) -> int:
        return 0 if device.type == "cpu" else int(self._management.get_total_memory(device)) >> 20

    def _free_mb(self, device: Any) -> int:
        return 0 if device.type == "cpu" else int(self._management.get_free_memory(device)) >> 20

    def node_classes(self) -> list[str]:
        """Every class that a graph may name."""
        return sorted(str(name) for name in self._nodes.NODE_CLASS_MAPPINGS)

    def has_class(self, name: str) -> bool:
        """Whether a graph may name this class here."""
        return name in self._nodes.NODE_CLASS_MAPPINGS

    def is_output(self, name: str) -> bool:
        """Whether a class ends a graph (saves or shows something)."""
        return bool(getattr(self._nodes.NODE_CLASS_MAPPINGS.get(name), "OUTPUT_NODE", False))

    def models(self) -> dict[str, list[str]]:
        """Model files by folder, with ``/`` between folders. Reads disks: call it on a thread of its own."""
        found: dict[str, list[str]] = {}
        for folder in list(self._folders.folder_names_and_paths):
            if folder in NO_MODELS:
                continue
            try:
                names = [slashed(name) for name in self._folders.get_filename_list(folder)]
            except Exception as error:
                log.warning("cannot list the models in %s: %s", folder, error)
                continue
            if names:
                found[str(folder)] = sorted(names)
        return found

    def read_inputs(self) -> tuple[dict[str, dict[str, str]], Document]:
        """Which inputs of which classes name a file of which folder, and which values inputs take.

        Files are found by watching where the lists of choices come from.
        """
        real = self._folders.get_filename_list

        def watched(folder: str, *args: Any, **kwargs: Any) -> list[str]:
            names = _Listing(real(folder, *args, **kwargs))
            names.folder = folder
            return names

        self._folders.get_filename_list = watched
        try:
            document = Document(judges_combos())
            classes = list(self._nodes.NODE_CLASS_MAPPINGS.items())
            found = {str(name): self._inputs_of(str(name), node, document) for name, node in classes}
        finally:
            self._folders.get_filename_list = real
        return {name: inputs for name, inputs in found.items() if inputs}, document

    @staticmethod
    def _inputs_of(name: str, node: Any, document: Document) -> dict[str, str]:
        found: dict[str, str] = {}
        try:
            groups = node.INPUT_TYPES()
            for group in ("required", "optional"):
                for key, spec in (groups.get(group) or {}).items():
                    options = spec[0] if isinstance(spec, list | tuple) and spec else None
                    if not isinstance(options, _Listing) and len(spec) > 1 and isinstance(spec[1], dict):
                        options = spec[1].get("options")
                    if isinstance(options, _Listing):
                        found[str(key)] = options.folder
            document.add(name, node, groups, found)
        except Exception as error:  # a pack's own mistake; ComfyUI logs it when its page asks
            log.debug("cannot read the inputs of %s: %s", node, error)
        return found

    def file_kind(self, class_type: str, name: str) -> str | None:
        """What kind of file an input of a class takes (image, video, audio, latent); None when it does not say."""
        if (class_type, name) in KINDS:
            return KINDS[class_type, name]
        try:
            groups = self._nodes.NODE_CLASS_MAPPINGS[class_type].INPUT_TYPES()
            spec = (groups.get("required") or {}).get(name) or (groups.get("optional") or {})[name]
            return next((UPLOADS[mark] for mark in spec[1] if spec[1][mark] and mark in UPLOADS), None)
        except Exception:  # a pack may do anything when it is asked; ComfyUI judges the value then
            return None

    def input_file(self, name: str) -> str | None:
        """The path of a file that an input names, as loaders read it (``x.png``, ``x.png [output]``)."""
        try:
            path = os.path.realpath(self._folders.get_annotated_filepath(name))
        except Exception:  # what is no name at all is none of a file
            return None
        roots = (self._folders.get_directory_by_type(kind) for kind in ("input", "output", "temp"))
        inside = any(path.startswith(os.path.realpath(root) + os.sep) for root in roots if root)
        return path if inside and os.path.isfile(path) else None

    def note_used(self, files: Iterable[str]) -> None:
        """Remember which model files a prompt has just used, the latest last."""
        for name in files:
            self._recent.pop(name, None)
            self._recent[name] = None
        for name in list(self._recent)[:-32]:
            del self._recent[name]

    def loaded_models(self) -> list[str]:
        """Names of the model files in memory.

        ComfyUI tells them since 0.20; before, what was used last is taken for loaded while anything is.
        """
        loaded = [each.model for each in list(self._management.current_loaded_models)]
        told = [name for model in loaded for name in self._told(model)]
        if told:
            return sorted(set(told))
        return list(self._recent) if any(model is not None for model in loaded) else []

    def _told(self, patcher: Any) -> list[str]:
        """File names in what a model remembers of its loading, relative to the folders of models."""
        init = getattr(patcher, "cached_patcher_init", None)
        if not isinstance(init, tuple) or len(init) < 2 or not isinstance(init[1], tuple):
            return []
        return [self._relative(path) for path in init[1] if isinstance(path, str) and path.endswith(MODEL_ENDINGS)]

    def _relative(self, path: str) -> str:
        path = slashed(path)
        for paths, *_ in list(self._folders.folder_names_and_paths.values()):
            for root in map(slashed, paths):
                if path.startswith(root.rstrip("/") + "/"):
                    return path[len(root.rstrip("/")) + 1 :]
        return path.rsplit("/", 1)[-1]
