"""The ComfyUI that the demo runs: the trial runtime, or the one a person names with ``COMFYUI``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from broker.trial import runtime
from broker.trial.checkpoint import write_checkpoint
from broker.trial.workflows import CHECKPOINT

WORKER = "emq_demo_worker"
PACK = Path(__file__).resolve().parents[2] / "comfyui_emq_node"
PLACES = ("venv/bin/python", ".venv/bin/python", "env/bin/python", "../venv/bin/python", "../.venv/bin/python")
ASK = """
import importlib.util, json, torch
gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
print(json.dumps([bool(gpu), [name for name in ("redis", "blake3") if not importlib.util.find_spec(name)]]))
"""


class NoComfyUI(Exception):
    """The named ComfyUI cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Launch:
    """How to start a ComfyUI with the worker in it."""

    name: str
    command: list[str]
    cwd: Path
    environment: dict[str, str]


def trial(base: Path, port: int, settings: dict[str, str]) -> Launch:
    """The trial runtime with everything of this run under ``base``; built on the first use."""
    ready = runtime.prepare(lambda line: print(f"  {line}", flush=True))
    _furnish(runtime.make_base(base))
    name = f"ComfyUI {runtime.COMFYUI_VERSION} (trial, CPU)"
    return Launch(name, ready.command(base, port), ready.comfyui, ready.environment(**settings))


def own(folder: Path, base: Path, port: int, settings: dict[str, str]) -> Launch:
    """A person's ComfyUI, which stays as it is: worker, checkpoint and outputs of this run are under ``base``.

    Its own node packs are left out: one of them may be a worker that serves another queue.

    Raises:
        NoComfyUI: it is none, its Python is not found, or the worker's packages are missing.
    """
    folder = folder.expanduser().resolve()
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise NoComfyUI(f"COMFYUI={folder} is not a ComfyUI: main.py and comfy/ are not both there.")
    python = _python(folder)
    gpu, missing = _ask(python)
    if missing:
        raise NoComfyUI(f"{python} lacks the worker's {' and '.join(missing)}: run  python install.py {folder}")
    _furnish(runtime.make_base(base))
    paths = base / "paths.yaml"
    # JSON is YAML.
    places = {"base_path": str(base), "checkpoints": "models/checkpoints", "custom_nodes": "custom_nodes"}
    paths.write_text(json.dumps({"emq_demo": places}))
    command = [python, "main.py", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    command += ["--extra-model-paths-config", str(paths), "--output-directory", str(base / "output")]
    command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", WORKER]
    command += [*([] if gpu else ["--cpu"]), *shlex.split(os.environ.get("COMFYUI_ARGS", ""))]
    return Launch(f"ComfyUI in {folder}", command, folder, {**os.environ, **settings})


def _furnish(base: Path) -> None:
    """Put the sample checkpoint and the worker, without anybody's settings for it, under the run's own folder."""
    write_checkpoint(base / "models" / "checkpoints" / CHECKPOINT)
    shutil.copytree(PACK, base / "custom_nodes" / WORKER, ignore=shutil.ignore_patterns("emq.json", "__pycache__"))


def _python(folder: Path) -> str:
    """``COMFYUI_PYTHON``, or the Python in the usual places in and beside a ComfyUI."""
    candidates = [Path(os.environ.get("COMFYUI_PYTHON") or "/absent"), *(folder / place for place in PLACES)]
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate.absolute())
    raise NoComfyUI(f"Found no Python for {folder}. Name the one that starts it: COMFYUI_PYTHON=/path/to/python")


def _ask(python: str) -> tuple[bool, list[str]]:
    """Whether it sees a GPU, and which of the worker's packages it lacks."""
    done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise NoComfyUI(f"{python} does not run ComfyUI: {reason}")
    gpu, missing = json.loads(done.stdout.splitlines()[-1])
    return gpu, missing
