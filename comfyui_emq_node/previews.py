"""Previews made only when they are wanted: a gate in front of ComfyUI's sampler previews, and frames for who watches.

It is given ComfyUI's modules by ``comfy.py`` and imports none.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Wanted = Callable[[], bool]
Guard = Callable[..., Any]

PAUSE_S = 0.5
SIDE = 256
MAX_SIDE = 1024
FRAME_BYTES = 15 * 1024 - 512
"""A preview with its metadata stays under 15 KiB: larger messages escape the server's limits for slow readers."""
SOUNDS = {".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".wav": "audio/wav"}
MAX_SOUND = 256 << 10


@dataclass
class Tally:
    """What previews have cost this process; nothing while nobody watches."""

    decoded: int = 0
    """Pictures that a sampler made of its latents for us."""
    encoded: int = 0
    sent_bytes: int = 0


class Sound(NamedTuple):
    """A sound that a node has made for the page."""

    path: str


class Preview(NamedTuple):
    """Something to show: a PIL image, a text, or a :class:`Sound`."""

    content: Any
    node_id: str | None

    @property
    def kind(self) -> str:
        """``text``, ``sound`` or ``picture``."""
        return {str: "text", Sound: "sound"}.get(type(self.content), "picture")


class GatedPreviewer:
    """A sampler's previewer that works only when somebody wants the picture."""

    def __init__(self, previewer: Any, wanted: Wanted, tally: Tally) -> None:
        self._previewer, self._wanted, self._tally = previewer, wanted, tally

    def decode_latent_to_preview_image(self, preview_format: str, x0: Any) -> Any:
        """ComfyUI's callback of a sampling step."""
        if not self._wanted():
            return None
        self._tally.decoded += 1
        return self._previewer.decode_latent_to_preview_image(preview_format, x0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._previewer, name)


def gate(latent_preview: Any, cli_args: Any, running: Callable[[], Wanted | None], guard: Guard, tally: Tally) -> None:
    """Gate the previews of our prompts; ``running`` says whether one of them runs, and who decides for it.

    A ComfyUI that was started without previews makes them for our prompts too: somebody may come to watch.
    """
    real = latent_preview.get_previewer

    def forced(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        options = cli_args.args
        before, options.preview_method = options.preview_method, cli_args.LatentPreviewMethod.Latent2RGB
        try:
            return real(*args, **kwargs)
        finally:
            options.preview_method = before

    def get_previewer(*args: Any, **kwargs: Any) -> Any:
        wanted = guard("previews", running)
        previewer = real(*args, **kwargs)
        if wanted is None:
            return previewer
        previewer = previewer or guard("previews", forced, args, kwargs)
        return previewer and GatedPreviewer(previewer, wanted, tally)

    latent_preview.get_previewer = get_previewer


def parse_text(message: bytes) -> tuple[str, str]:
    """Node and text of ComfyUI's binary message for a node's text: length of the id, id, text."""
    (length,) = struct.unpack_from(">I", message)
    return message[4 : 4 + length].decode("utf-8", "replace"), message[4 + length :].decode("utf-8", "replace")


def shown_by(output: Any, file_of: Callable[[dict[str, Any]], str | None]) -> Any:
    """What a node that has run shows at ComfyUI's page besides pictures: a text, or a sound."""
    if not isinstance(output, Mapping):
        return None
    texts = output.get("text")
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
        return "\n".join(texts)
    for item in output.get("audio") or ():
        path = file_of(dict(item)) if isinstance(item, Mapping) and item.get("filename") else None
        if path is not None and os.path.splitext(path)[1].lower() in SOUNDS:
            return Sound(path)
    return None


def encode(preview: Preview, job_id: str, side: int = SIDE) -> bytes | None:
    """A frame in ComfyUI's format 4; takes milliseconds of a thread. None for a sound that is too long to show.

    A picture is shrunk to ``side`` pixels and, with the usual ones, to 15 KiB; a text is cut there.
    """
    if isinstance(preview.content, Sound):
        found = _sound(preview.content.path)
    elif isinstance(preview.content, str):
        found = "text/plain", _text(preview.content)
    else:
        found = "image/jpeg", _picture(preview.content, min(max(side, 64), MAX_SIDE))
    if found is None:
        return None
    meta = json.dumps({"job_id": job_id, "node_id": preview.node_id, "image_type": found[0]}).encode()
    return struct.pack(">II", 4, len(meta)) + meta + found[1]


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:FRAME_BYTES].decode("utf-8", "ignore").encode()


def _picture(image: Any, side: int) -> bytes:
    picture = image.convert("RGB")
    limit = FRAME_BYTES * max(1, side // SIDE) ** 2
    for share, quality in ((1.0, 75), (1.0, 55), (1.0, 35), (1.0, 15), (0.5, 30)):
        picture.thumbnail((round(side * share), round(side * share)))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= limit:
            break
    return buffer.getvalue()


def _sound(path: str) -> tuple[str, bytes] | None:
    with open(path, "rb") as file:
        content = file.read(MAX_SOUND + 1)
    return None if len(content) > MAX_SOUND else (SOUNDS[os.path.splitext(path)[1].lower()], content)
