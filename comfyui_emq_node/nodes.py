"""The pack's own nodes: none yet. ComfyUI wants the mapping to be there, empty or not."""

from __future__ import annotations

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
