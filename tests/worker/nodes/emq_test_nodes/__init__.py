"""ComfyUI nodes that behave badly on purpose, and slowly."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import time
from typing import Any

import comfy.utils
import folder_paths
import torch
from PIL import Image
from server import PromptServer


class Progress:
    """Takes its time in steps, each of which looks at interrupts."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "emq/test", "go", True
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "steps": ("INT", {"default": 4, "min": 1, "max": 10000}),
                "delay": ("FLOAT", {"default": 0.05, "min": 0.0, "max": 100.0, "step": 0.001}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31}),
            },
            "optional": {
                "preview": ("BOOLEAN", {"default": False}),
                "until": ("STRING", {"default": ""}),
                "still": ("STRING", {"default": ""}),
                "say": ("STRING", {"default": ""}),
                "image": ("IMAGE",),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def go(  # noqa: PLR0917 - ComfyUI calls it
        self,
        steps: int,
        delay: float,
        seed: int,
        preview: bool = False,
        until: str = "",
        still: str = "",
        say: str = "",
        image: Any = None,
        unique_id: Any = None,
    ) -> tuple[Any]:
        """``until`` and ``still`` are files: with the one it ends, with the other it shows no more pictures.

        ``say`` is a text that it sends to the page.
        """
        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            if os.path.exists(until):
                break
            time.sleep(delay)
            if say:
                PromptServer.instance.send_progress_text(f"{say} {step}", unique_id)
            shown = preview and not os.path.exists(still)
            picture = Image.effect_noise((800, 600), 90).convert("RGB") if shown else None
            bar.update_absolute(step + 1, steps, ("JPEG", picture, 512) if picture else None)
        return (torch.zeros(1, 8, 8, 3),)


class Sleep:
    """Sleeps without looking at interrupts."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "emq/test", "go", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seconds": ("FLOAT", {"default": 1.0, "max": 1000.0}), "seed": ("INT", {"default": 0})}}

    def go(self, seconds: float, seed: int) -> dict[str, Any]:
        time.sleep(seconds)
        return {"ui": {}}


class Hold:
    """Holds Python's interpreter, as C code may that does not release it: no thread of ComfyUI runs meanwhile."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "emq/test", "go", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seconds": ("INT", {"default": 1, "max": 1000}), "seed": ("INT", {"default": 0})}}

    def go(self, seconds: int, seed: int) -> dict[str, Any]:
        ctypes.PyDLL(None).sleep(seconds)
        return {"ui": {}}


class Fail:
    """Ends in one of the ways that nodes end in."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "emq/test", "go", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"kind": (["ValueError", "OOM", "SystemExit", "kill"],), "message": ("STRING", {})}}

    def go(self, kind: str, message: str) -> None:
        if kind == "OOM":
            raise torch.cuda.OutOfMemoryError(message)
        if kind == "SystemExit":
            sys.exit(message)
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(message)


class Text:
    """Shows a text."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "emq/test", "go", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"multiline": True})}}

    def go(self, text: str) -> dict[str, Any]:
        return {"ui": {"text": (text,)}}


class File:
    """Saves bytes under a name and lists them under a key that no core node uses, as packs do."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "emq/test", "go", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "name": ("STRING", {}),
                "head": ("STRING", {"default": ""}),
                "size": ("INT", {"default": 0, "max": 2**31}),
                "key": ("STRING", {"default": "gifs"}),
            }
        }

    def go(self, name: str, head: str, size: int, key: str) -> dict[str, Any]:
        folder = os.path.join(folder_paths.get_output_directory(), "deep", "er")
        os.makedirs(folder, exist_ok=True)
        content = bytes.fromhex(head)
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content + b"\0" * max(0, size - len(content)))
        item = {"filename": name, "subfolder": "deep/er", "type": "output", "format": "who/knows"}
        return {"ui": {key: [item], "animated": (True,)}}


class PartnerKey:
    """Says by a digest which partner key reached it."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "emq/test", "go", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}, "hidden": {"key": "API_KEY_COMFY_ORG", "token": "AUTH_TOKEN_COMFY_ORG"}}

    def go(self, key: str | None = None, token: str | None = None) -> dict[str, Any]:
        said = hashlib.sha256(f"{key} {token}".encode()).hexdigest()
        return {"ui": {"text": [said]}}


NODE_CLASS_MAPPINGS = {
    "EMQTestPartnerKey": PartnerKey,
    "EMQTestProgress": Progress,
    "EMQTestSleep": Sleep,
    "EMQTestHold": Hold,
    "EMQTestFail": Fail,
    "EMQTestText": Text,
    "EMQTestFile": File,
}
