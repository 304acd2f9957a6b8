"""The pack's own nodes: they declare a template's parameters and outputs in the graph, and work as plain nodes too.

A template's parameter replaces an input node's ``value`` (or ``image``) before the graph runs, so nothing here knows of
templates. ComfyUI wants these two mappings.
"""

from __future__ import annotations

import random
import re
from typing import Any

CATEGORY = "EMQ"
MAX_SEED = 2**64 - 1
DRAWN_BELOW = 2**53
UNBOUND = 1e9
"""Where a number's limits stand until somebody sets them; the broker takes them for none."""

_NAME = ("STRING", {"default": "", "tooltip": "The parameter's name: a letter, then letters, digits, _ or -."})
_DESCRIPTION = ("STRING", {"default": "", "tooltip": "What the parameter is for."})


class _Any(str):
    """A type that every input takes."""

    def __ne__(self, other: object) -> bool:
        return False


class TextInput:
    """A text."""

    CATEGORY, FUNCTION = CATEGORY, "give"
    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("text",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows."""
        value = ("STRING", {"default": "", "multiline": True})
        return {"required": {"name": _NAME, "value": value}, "optional": {"description": _DESCRIPTION}}

    def give(self, value: str, **_: Any) -> tuple[str]:
        """The text."""
        return (value,)


class NumberInput:
    """A number, as float and as integer."""

    CATEGORY, FUNCTION = CATEGORY, "give"
    RETURN_TYPES, RETURN_NAMES = ("FLOAT", "INT"), ("float", "int")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows."""
        limits = {"min": -UNBOUND, "max": UNBOUND, "step": 0.01, "round": False}
        return {
            "required": {"name": _NAME, "value": ("FLOAT", {"default": 0.0, **limits})},
            "optional": {
                "minimum": ("FLOAT", {"default": -UNBOUND, **limits}),
                "maximum": ("FLOAT", {"default": UNBOUND, **limits}),
                "whole": ("BOOLEAN", {"default": False, "tooltip": "Integers only."}),
                "description": _DESCRIPTION,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, value: float | None = None, minimum: float | None = None, maximum: float | None = None
    ) -> bool | str:
        """Refuse a value outside its limits; what comes from another node is not known yet."""
        if value is not None and minimum is not None and value < minimum:
            return f"value is {value}; the least is {minimum}"
        if value is not None and maximum is not None and value > maximum:
            return f"value is {value}; the most is {maximum}"
        return True

    def give(self, value: float, whole: bool = False, **_: Any) -> tuple[float, int]:
        """The number twice."""
        return (float(round(value)) if whole else value, round(value))


class SeedInput:
    """A seed; -1 draws one at every run."""

    CATEGORY, FUNCTION = CATEGORY, "give"
    RETURN_TYPES, RETURN_NAMES = ("INT",), ("seed",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows."""
        value = ("INT", {"default": -1, "min": -1, "max": MAX_SEED, "control_after_generate": True})
        return {"required": {"name": _NAME, "value": value}, "optional": {"description": _DESCRIPTION}}

    @classmethod
    def IS_CHANGED(cls, value: int, **_: Any) -> float | int:
        """A seed that will be drawn is never the one of before."""
        return float("nan") if value == -1 else value

    def give(self, value: int, **_: Any) -> tuple[int]:
        """The seed."""
        return (random.SystemRandom().randrange(DRAWN_BELOW) if value == -1 else value,)


class ChoiceInput:
    """One of some values; goes to any input, lists of choices too."""

    CATEGORY, FUNCTION = CATEGORY, "give"
    RETURN_TYPES, RETURN_NAMES = (_Any("*"),), ("choice",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows."""
        choices = ("STRING", {"default": "", "multiline": True, "tooltip": "One a line."})
        required = {"name": _NAME, "value": ("STRING", {"default": ""}), "choices": choices}
        return {"required": required, "optional": {"description": _DESCRIPTION}}

    @classmethod
    def VALIDATE_INPUTS(cls, value: str | None = None, choices: str | None = None) -> bool | str:
        """Refuse a value that is no choice; what comes from another node is not known yet."""
        known = [line.strip() for line in (choices or "").splitlines() if line.strip()]
        return value is None or choices is None or value in known or f"{value!r} is not one of {known}"

    def give(self, value: str, **_: Any) -> tuple[str]:
        """The value."""
        return (value,)


class ImageInput:
    """A picture and its mask, as ComfyUI's own LoadImage gives them."""

    CATEGORY, FUNCTION = CATEGORY, "give"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "MASK"), ("image", "mask")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows: LoadImage's list of files and button."""
        image = _core("LoadImage").INPUT_TYPES()["required"]["image"]
        return {"required": {"name": _NAME, "image": image}, "optional": {"description": _DESCRIPTION}}

    @classmethod
    def IS_CHANGED(cls, image: str, **_: Any) -> Any:
        """The file's content decides."""
        return _core("LoadImage").IS_CHANGED(image)

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> Any:
        """Refuse a file that is not there."""
        return _core("LoadImage").VALIDATE_INPUTS(image)

    def give(self, image: str, **_: Any) -> Any:
        """The picture and its mask."""
        return _core("LoadImage")().load_image(image)


class Output:
    """An output of the template by name: saves pictures as ComfyUI's own SaveImage does, shows a text."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "keep", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows."""
        return {
            "required": {"name": _NAME},
            "optional": {"images": ("IMAGE",), "text": ("STRING", {"forceInput": True})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def keep(
        self, name: str, images: Any = None, text: str | None = None, prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        """Save and show what there is."""
        shown: dict[str, Any] = {}
        if images is not None:
            prefix = re.sub(r"[^A-Za-z0-9_-]", "_", name) or "emq"
            shown = dict(_core("SaveImage")().save_images(images, prefix, prompt, extra_pnginfo)["ui"])
        if text is not None:
            shown["text"] = (str(text),)
        return {"ui": shown}


def _core(name: str) -> Any:
    # ComfyUI's own classes are there once its start is over.
    from .comfy import node_class

    return node_class(name)


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "EMQTextInput": TextInput,
    "EMQNumberInput": NumberInput,
    "EMQSeedInput": SeedInput,
    "EMQChoiceInput": ChoiceInput,
    "EMQImageInput": ImageInput,
    "EMQOutput": Output,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "EMQTextInput": "EMQ Text Input",
    "EMQNumberInput": "EMQ Number Input",
    "EMQSeedInput": "EMQ Seed Input",
    "EMQChoiceInput": "EMQ Choice Input",
    "EMQImageInput": "EMQ Image Input",
    "EMQOutput": "EMQ Output",
}
