"""A checkpoint of 4 MB that ComfyUI's own loader, KSampler and VAEDecode run for real, in 0.1 s on a CPU.

ComfyUI derives the size of an SD3 model from its weights, so one block of width 64 is a valid model. Its weights are
made so that sampling ends in a picture: the position embedding holds plane waves, the last layer adds them up to
colours, and attention's mean over the noise tints them by seed. The decoder is that of the tiny autoencoder, set to
mix and smooth. There are no text encoder's weights, so ``CLIPTextEncode`` works and gives zeros.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterator
from pathlib import Path

WIDTH = 64
CHANNELS = 16
GRID = 64
"""Patches a side at most: 64 patches of 2 latents of 8 pixels are 1024 pixels."""
WAVES = 16
HUE = 1.3
"""How far a wave's phase moves from one colour to the next."""
EMBED = 0.1
TINT = 90.0

Tensors = dict[str, tuple[tuple[int, ...], bytes]]


def write_checkpoint(path: Path) -> Path:
    """Write the checkpoint (always the same bytes) to ``path`` and return it."""
    tensors = {**_model(), **_decoder(), "text_encoders.none": _zeros(1)}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data for _, data in tensors.values())
    part.rename(path)
    return path


def _zeros(*shape: int) -> tuple[tuple[int, ...], bytes]:
    return shape, bytes(2 * math.prod(shape))


def _filled(shape: tuple[int, ...], values: dict[int, float]) -> tuple[tuple[int, ...], bytes]:
    """A tensor of zeros but for some flat positions."""
    data = bytearray(2 * math.prod(shape))
    for position, value in values.items():
        struct.pack_into("<e", data, 2 * position, value)
    return shape, bytes(data)


def _waves() -> list[tuple[float, float, float, float]]:
    """Each wave's cycles a patch across and down, its phase and its height."""
    draw = random.Random(20)  # noqa: S311
    waves = []
    for index in range(WAVES):
        turn, cycles = draw.uniform(0, math.pi), 0.035 * 1.1**index
        height = 0.75 / (1 + 0.12 * index)
        waves.append((cycles * math.cos(turn), cycles * math.sin(turn), draw.uniform(0, math.tau), height))
    return waves


def _position_embedding() -> bytes:
    """Sine and cosine of every wave at every patch, and their negatives: mean zero and length fixed, so that
    layer normalisation only scales them."""
    waves, out = _waves(), bytearray()
    for row in range(GRID):
        for column in range(GRID):
            for across, down, phase, _ in waves:
                angle = math.tau * (across * column + down * row) + phase
                sine, cosine = math.sin(angle), math.cos(angle)
                out += struct.pack("<4e", sine, cosine, -sine, -cosine)
    return bytes(out)


def _colours() -> dict[int, float]:
    """The last layer: minus the picture, for each of a patch's four latents shifted to its own place."""
    values: dict[int, float] = {}
    for place in range(4):
        down_by, across_by = (place // 2 - 0.5) / 2, (place % 2 - 0.5) / 2
        for channel in range(CHANNELS - 1):
            row = (place * CHANNELS + channel) * WIDTH
            for index, (across, down, _, height) in enumerate(_waves()):
                shift = math.tau * (across * across_by + down * down_by) + HUE * (channel // 5)
                values[row + 4 * index] = -height * math.cos(shift)
                values[row + 4 * index + 1] = -height * math.sin(shift)
    return values


def _tint() -> tuple[dict[int, float], dict[int, float]]:
    """Attention's value and output matrices: sums in which the waves cancel and the noise does not, put back as
    an offset of the waves."""
    value: dict[int, float] = {}
    output: dict[int, float] = {}
    for index in range(WAVES):
        for part in range(2):
            feature = 4 * index + part
            row = (2 * WIDTH + feature) * WIDTH
            value[row + feature] = value[row + feature + 2] = 1.0
            output[feature * WIDTH + feature] = TINT / 8
            output[(feature + 2) * WIDTH + feature] = -TINT / 8
    return value, output


def _model() -> Tensors:
    value, output = _tint()
    parts: Tensors = {
        "x_embedder.proj.weight": _filled((WIDTH, CHANNELS, 2, 2), {i * WIDTH + i: EMBED for i in range(WIDTH)}),
        "x_embedder.proj.bias": _zeros(WIDTH),
        "pos_embed": ((1, GRID * GRID, WIDTH), _position_embedding()),
        "final_layer.linear.weight": _filled((4 * CHANNELS, WIDTH), _colours()),
        "final_layer.linear.bias": _zeros(4 * CHANNELS),
        "joint_blocks.0.x_block.attn.qkv.weight": _filled((3 * WIDTH, WIDTH), value),
        "joint_blocks.0.x_block.attn.proj.weight": _filled((WIDTH, WIDTH), output),
        "joint_blocks.0.x_block.adaLN_modulation.1.bias": _filled(
            (6 * WIDTH,), dict.fromkeys(range(2 * WIDTH, 3 * WIDTH), 1.0)
        ),
    }
    for name, shape in _blank_layers():
        parts.setdefault(f"{name}.weight", _zeros(*shape))
        parts.setdefault(f"{name}.bias", _zeros(shape[0]))
    return {f"model.diffusion_model.{name}": tensor for name, tensor in parts.items()}


def _blank_layers() -> Iterator[tuple[str, tuple[int, int]]]:
    yield "t_embedder.mlp.0", (WIDTH, 256)
    yield "t_embedder.mlp.2", (WIDTH, WIDTH)
    yield "y_embedder.mlp.0", (WIDTH, 2048)
    yield "y_embedder.mlp.2", (WIDTH, WIDTH)
    yield "context_embedder", (WIDTH, 4096)
    yield "final_layer.adaLN_modulation.1", (2 * WIDTH, WIDTH)
    block = "joint_blocks.0"
    yield f"{block}.context_block.attn.qkv", (3 * WIDTH, WIDTH)
    yield f"{block}.context_block.adaLN_modulation.1", (2 * WIDTH, WIDTH)
    yield f"{block}.x_block.attn.qkv", (3 * WIDTH, WIDTH)
    yield f"{block}.x_block.attn.proj", (WIDTH, WIDTH)
    yield f"{block}.x_block.mlp.fc1", (4 * WIDTH, WIDTH)
    yield f"{block}.x_block.mlp.fc2", (WIDTH, 4 * WIDTH)
    yield f"{block}.x_block.adaLN_modulation.1", (6 * WIDTH, WIDTH)


SMOOTH = tuple(a * b / 16 for a in (1, 2, 1) for b in (1, 2, 1))


def _smoothing(outputs: int, inputs: int, mix: dict[tuple[int, int], float]) -> tuple[tuple[int, ...], bytes]:
    """A 3x3 convolution that blurs, mixing channels as ``mix[output, input]`` says."""
    values = {
        (output * inputs + source) * 9 + tap: weight * smooth
        for (output, source), weight in mix.items()
        for tap, smooth in enumerate(SMOOTH)
    }
    return _filled((outputs, inputs, 3, 3), values)


def _decoder() -> Tensors:
    """The tiny autoencoder's decoder: five latent channels a colour, blurred at each of three enlargements."""
    parts: Tensors = {}
    first = {(channel // 5, channel): 0.2 / 2.2 for channel in range(CHANNELS - 1)}
    parts["1.weight"] = _smoothing(64, CHANNELS, first)
    parts["1.bias"] = _filled((64,), {0: 0.5, 1: 0.5, 2: 0.5})
    same = {(colour, colour): 1.0 for colour in range(3)}
    for block in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        for layer in (0, 2, 4):
            parts[f"{block}.conv.{layer}.weight"] = _zeros(64, 64, 3, 3)
            parts[f"{block}.conv.{layer}.bias"] = _zeros(64)
    for layer in (7, 12, 17):
        parts[f"{layer}.weight"] = _smoothing(64, 64, same)
    parts["19.weight"] = _smoothing(3, 64, same)
    parts["19.bias"] = _zeros(3)
    return {f"first_stage_model.taesd_decoder.{name}": tensor for name, tensor in parts.items()}
