"""The demo's picture: sheets of coloured paper, cut along the contours of what the sampler made."""

from __future__ import annotations

from typing import Any

from broker.trial.workflows import CHECKPOINT, Graph, text_to_image

PAPER = (0x12263A, 0x1F4E5F, 0x2F8F83, 0x9CC69B, 0xF4EBD0, 0xF2A65A, 0xD1495B)
"""From the lowest sheet to the highest."""
LEVELS = (0.12, 0.25, 0.4, 0.55, 0.7, 0.85)
"""How bright the sampled picture is where each sheet above the lowest lies."""
SHADE = 0x060B14
SIDE = 1024
"""Side of the sheets; the picture has half of it, which smooths the edges of the cuts."""
MARGIN = 32
"""Shadows fall down and to the right, so at the upper left edge they are missing: it is cut off."""

Link = list[Any]


def paper_cut(seed: int, steps: int = 20, checkpoint: str = CHECKPOINT) -> Graph:
    """A workflow of about 70 nodes, all of them ComfyUI's own; takes a few seconds on a CPU."""
    graph = text_to_image(seed, steps, 384, checkpoint)
    del graph["9"]
    # The decoder's border is dark, so the middle is taken. Made small and large again, it has smooth contours.
    middle = _add(graph, "ImageCrop", image=["8", 0], width=352, height=352, x=16, y=16)
    heights = _heights(graph, _scaled(graph, _scaled(graph, middle, 16, "area"), SIDE, "bicubic"))
    shade = _sheet(graph, SHADE)
    picture = _sheet(graph, PAPER[0])
    for level, color in zip(LEVELS, PAPER[1:], strict=True):
        picture = _laid(graph, picture, _add(graph, "ThresholdMask", mask=heights, value=level), shade, color)
    inner = SIDE - 2 * MARGIN
    cut = _add(graph, "ImageCrop", image=picture, width=inner, height=inner, x=MARGIN, y=MARGIN)
    _add(graph, "SaveImage", images=_scaled(graph, cut, SIDE // 2, "area"), filename_prefix="emq-demo")
    return graph


def _add(graph: Graph, class_type: str, **inputs: Any) -> Link:
    """Add a node under the next free id; answers its first output."""
    name = str(max(10, *map(int, graph)) + 1)
    graph[name] = {"class_type": class_type, "inputs": inputs}
    return [name, 0]


def _scaled(graph: Graph, image: Link, side: int, method: str) -> Link:
    return _add(graph, "ImageScale", image=image, upscale_method=method, width=side, height=side, crop="disabled")


def _sheet(graph: Graph, color: int) -> Link:
    return _add(graph, "EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=color)


def _mask(graph: Graph, image: Link, channel: str = "red") -> Link:
    return _add(graph, "ImageToMask", image=image, channel=channel)


def _heights(graph: Graph, image: Link) -> Link:
    """The mean of red and green: either alone is at its limit too often to have contours."""
    red, green = (_add(graph, "MaskToImage", mask=_mask(graph, image, channel)) for channel in ("red", "green"))
    return _mask(graph, _add(graph, "ImageBlend", image1=red, image2=green, blend_factor=0.5, blend_mode="normal"))


def _laid(graph: Graph, below: Link, shape: Link, shade: Link, color: int) -> Link:
    """Lay a sheet of this shape, with its soft shadow, on what is below."""
    hard = _add(graph, "MaskToImage", mask=shape)
    # A true blur of this radius takes minutes on a CPU.
    soft = _mask(graph, _scaled(graph, _scaled(graph, hard, 48, "area"), SIDE, "bilinear"))
    shadowed = _composite(graph, below, shade, soft, x=6, y=14)
    return _composite(graph, shadowed, _sheet(graph, color), shape, x=0, y=0)


def _composite(graph: Graph, below: Link, above: Link, mask: Link, *, x: int, y: int) -> Link:
    return _add(
        graph, "ImageCompositeMasked", destination=below, source=above, mask=mask, x=x, y=y, resize_source=False
    )
