"""The version that is installed; ``comfyui_emq_node/version.py`` says which it is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def emq_version() -> str:
    """The installed version."""
    try:
        return version("emq")
    except PackageNotFoundError:
        return "0+unknown"
