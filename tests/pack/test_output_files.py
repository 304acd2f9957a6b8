"""What the worker reads off output files, and takes out of them."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comfyui_emq_node.carrier import HEAD
from comfyui_emq_node.dimensions import dimensions
from comfyui_emq_node.files import Gathered, Output
from comfyui_emq_node.metadata import copy_without_text, has_text


def picture(path: Path, kind: str, **options: object) -> Path:
    image = Image.effect_noise((37, 21), 90).convert("RGB")
    image.save(path, kind, **options)
    return path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_a_picture_has_width_and_height(tmp_path: Path, kind: str) -> None:
    path = picture(tmp_path / "x", kind)
    assert await dimensions(str(path), f"image/{kind.lower()}") == {"width": 37, "height": 21}


async def test_the_head_of_a_png_is_enough(tmp_path: Path) -> None:
    head = picture(tmp_path / "x", "PNG").read_bytes()[:HEAD]
    assert await dimensions("nowhere", "image/png", head) == {"width": 37, "height": 21}
    assert await dimensions("nowhere", "image/png", head[:-1]) == {}


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + bytes(40), b"RIFF1234WEBPVP8 "])
@pytest.mark.parametrize("content_type", ["image/png", "image/webp", "video/mp4", "audio/wav", "text/plain", ""])
async def test_what_cannot_be_read_has_none(tmp_path: Path, content: bytes, content_type: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    assert await dimensions(str(path), content_type) == {}


def test_a_png_without_its_texts_is_the_same_picture(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", '{"1": {}}')
    info.add_itxt("workflow", "ü" * 5000, zip=True)
    path = picture(tmp_path / "x.png", "PNG", pnginfo=info, dpi=(72, 72))
    assert has_text(str(path))
    copy_without_text(str(path), str(tmp_path / "y.png"))
    with Image.open(path) as before, Image.open(tmp_path / "y.png") as after:
        assert before.tobytes() == after.tobytes()
        assert (set(before.info), set(after.info)) == ({"prompt", "workflow", "dpi"}, {"dpi"})
    assert not has_text(str(tmp_path / "y.png"))
    assert b"prompt" not in (tmp_path / "y.png").read_bytes()


def test_a_broken_png_ends(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
        size = len(data) if length is None else length
        return struct.pack(">I", size) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "x.png"
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", b"abc", 0xFFFFFFFF)
    path.write_bytes(content)
    copy_without_text(str(path), str(tmp_path / "y.png"))
    assert b"tEXt" not in (tmp_path / "y.png").read_bytes()
    path.write_bytes(b"GIF89a tEXt")
    assert not has_text(str(path))


def test_stripping_leaves_the_worker_s_own_file_alone_(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", "{}")
    path = picture(tmp_path / "a.png", "PNG", pnginfo=info)
    plain = picture(tmp_path / "b.jpg", "JPEG")
    gathered = Gathered([Output("1", str(path)), Output("2", str(plain))])
    gathered.strip()
    stripped, other = gathered.outputs
    assert (stripped.filename, other.path) == ("a.png", str(plain))
    assert has_text(str(path))
    assert not has_text(stripped.path)
    gathered.discard()
    assert not os.path.exists(stripped.path)
    assert path.exists()
