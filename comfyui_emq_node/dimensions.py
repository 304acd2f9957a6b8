"""How large a picture and how long a recording is, read from the header by the libraries that ComfyUI has anyway."""

from __future__ import annotations

import asyncio
import importlib
import struct
from typing import Any

Dimensions = dict[str, Any]
"""``width`` and ``height`` in pixels, ``duration_s`` in seconds; what is not known is left out."""


async def dimensions(path: str, content_type: str, head: bytes = b"") -> Dimensions:
    """Read them; never raises. A PNG, by far the most common file, is not worth a thread; its ``head`` is all of it."""
    if content_type == "image/png":
        return _png(head) if head else _quietly(_read_png, path)
    read = {"image": _picture, "video": _recording, "audio": _recording}.get(content_type.partition("/")[0])
    if read is None:
        return {}
    return await asyncio.get_running_loop().run_in_executor(None, _quietly, read, path)


def _quietly(read: Any, path: str) -> Dimensions:
    try:
        found: Dimensions = read(path)
        return found
    except Exception:  # whatever a library says of a file that it cannot read: it is delivered all the same
        return {}


def _read_png(path: str) -> Dimensions:
    with open(path, "rb") as file:
        return _png(file.read(24))


def _png(head: bytes) -> Dimensions:
    if len(head) < 24 or head[12:16] != b"IHDR":
        return {}
    width, height = struct.unpack(">II", head[16:24])
    return {"width": width, "height": height}


def _picture(path: str) -> Dimensions:
    from PIL import Image

    with Image.open(path) as picture:
        return {"width": picture.width, "height": picture.height}


def _recording(path: str) -> Dimensions:
    av: Any = importlib.import_module("av")
    with av.open(path) as container:
        found: Dimensions = {}
        if container.streams.video and container.streams.video[0].width:
            stream = container.streams.video[0]
            found.update(width=stream.width, height=stream.height)
        seconds = _seconds(container)
        return {**found, "duration_s": round(seconds, 3)} if seconds is not None else found


def _seconds(container: Any) -> float | None:
    if container.duration:
        return float(container.duration) / 1_000_000
    lengths = [float(s.duration * s.time_base) for s in container.streams if s.duration and s.time_base]
    return max(lengths, default=None)
