"""Sample workflows of ComfyUI's own nodes alone, in its API format."""

from __future__ import annotations

from typing import Any

CHECKPOINT = "emq-tiny.safetensors"
"""The name under which the trial runtime's checkpoint is put into ``models/checkpoints``."""

Graph = dict[str, dict[str, Any]]


def text_to_image(seed: int = 0, steps: int = 20, size: int = 512, checkpoint: str = CHECKPOINT) -> Graph:
    """ComfyUI's default workflow: prompt, sampler, decoder, saved picture."""
    return {
        "3": _node(
            "KSampler", model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0], seed=seed,
            steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "4": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "5": _node("EmptySD3LatentImage", width=size, height=size, batch_size=1),
        "6": _node("CLIPTextEncode", clip=["4", 1], text="a picture of plane waves"),
        "7": _node("CLIPTextEncode", clip=["4", 1], text=""),
        "8": _node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": _node("SaveImage", images=["8", 0], filename_prefix="emq"),
    }  # fmt: skip


def plain_image(color: int = 0x3366CC, size: int = 64) -> Graph:
    """The lightest workflow with a saved picture; needs no model."""
    return {
        "1": _node("EmptyImage", width=size, height=size, batch_size=1, color=color),
        "2": _node("SaveImage", images=["1", 0], filename_prefix="emq"),
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
