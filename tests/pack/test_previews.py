"""Frames for those who watch a job."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui_emq_node.previews import Preview, Sound, encode, parse_text, shown_by


def opened(frame: bytes | None) -> tuple[dict[str, Any], bytes]:
    assert frame is not None
    kind, length = struct.unpack(">II", frame[:8])
    assert kind == 4
    return json.loads(frame[8 : 8 + length]), frame[8 + length :]


@pytest.mark.parametrize(("side", "largest"), [(256, 15 * 1024), (512, 4 * 15 * 1024), (1024, 16 * 15 * 1024)])
def test_even_noise_fits(side: int, largest: int) -> None:
    for size in ((800, 600), (4000, 100), (30, 2000)):
        frame = encode(Preview(Image.effect_noise(size, 200), "3"), "job", side)
        meta, content = opened(frame)
        assert (meta, len(frame or b"") <= largest) == (
            {"job_id": "job", "node_id": "3", "image_type": "image/jpeg"},
            True,
        )
        assert max(Image.open(io.BytesIO(content)).size) <= side


def test_a_small_picture_is_not_made_larger() -> None:
    _, content = opened(encode(Preview(Image.new("RGBA", (20, 10)), None), "job", 1024))
    assert Image.open(io.BytesIO(content)).size == (20, 10)


def test_a_text_is_cut_between_characters() -> None:
    meta, content = opened(encode(Preview("ü" * 20_000, "1"), "job"))
    assert (meta["image_type"], set(content.decode())) == ("text/plain", {"ü"})
    assert len(content) <= 15 * 1024


def test_a_text_that_names_a_file_stays_a_text(tmp_path: Path) -> None:
    (tmp_path / "secret.flac").write_bytes(b"secret")
    meta, content = opened(encode(Preview(str(tmp_path / "secret.flac"), "1"), "job"))
    assert (meta["image_type"], content.decode()) == ("text/plain", str(tmp_path / "secret.flac"))


def test_a_short_sound_is_shown_and_a_long_one_is_not(tmp_path: Path) -> None:
    for size, shown in ((1000, True), (1 << 20, False)):
        (tmp_path / "a.flac").write_bytes(b"x" * size)
        frame = encode(Preview(Sound(str(tmp_path / "a.flac")), "1"), "job")
        assert (frame is not None) == shown
        if frame:
            assert opened(frame)[0]["image_type"] == "audio/flac"


def test_what_nodes_show() -> None:
    def file_of(item: dict[str, Any]) -> str | None:
        return f"/temp/{item['filename']}"

    assert shown_by({"text": ("a", "b")}, file_of) == "a\nb"
    assert shown_by({"audio": [{"filename": "a.flac", "type": "temp"}]}, file_of) == Sound("/temp/a.flac")
    silent: list[Any] = [None, {}, {"text": []}, {"text": [5]}, {"audio": [{"filename": "a.exe"}]}, {"images": []}, "x"]
    for nothing in silent:
        assert shown_by(nothing, file_of) is None


def test_a_node_s_text_is_read_as_comfyui_packs_it() -> None:
    assert parse_text(struct.pack(">I", 2) + b"17" + "hällo".encode()) == ("17", "hällo")
