"""A ComfyUI of one's own to install into, and Pythons with and without the worker's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.trial.runtime import TrialRuntime, prepare

ROOT = Path(__file__).resolve().parents[2]
WORKERS_PACKAGES = ("redis", "blake3")

Install = Callable[..., subprocess.CompletedProcess[str]]


def copy_pack(to: Path) -> None:
    """Copy the worker; other tests start ComfyUIs that compile the original meanwhile."""
    shutil.copytree(ROOT / "comfyui_emq_node", to, ignore=shutil.ignore_patterns("__pycache__", "emq.json"))


def quiet_environment() -> dict[str, str]:
    """This environment without anything that tells a worker where its queue is."""
    ours = ("EMQ_", "REDIS_", "COMFYUI")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "XDG_DATA_HOME": "/absent"}


@pytest.fixture(scope="session")
def runtime() -> TrialRuntime:
    return prepare()


@pytest.fixture
def bare_venv(comfyui_venv: Path) -> Path:
    """A virtual environment with ComfyUI's requirements and without the worker's two packages."""
    site = next(comfyui_venv.glob("lib/python*/site-packages"))
    for found in [*site.glob("redis*"), *site.glob("blake3*")]:
        shutil.rmtree(found)
    return comfyui_venv


@pytest.fixture(scope="session")
def comfyui_venv(runtime: TrialRuntime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``bare_venv`` gives, with what the tests before installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv = folder / "venv"
    subprocess.run([runtime.python, "-m", "venv", venv], check=True)
    shared = folder / "shared"
    shared.mkdir()
    for found in next((runtime.root / "venv").glob("lib/python*/site-packages")).iterdir():
        if not found.name.lower().startswith((*WORKERS_PACKAGES, "pip", "_")):
            (shared / found.name).symlink_to(found)
    (next(venv.glob("lib/python*/site-packages")) / "shared.pth").write_text(f"{shared}\n")
    return venv


@pytest.fixture
def comfyui(runtime: TrialRuntime, tmp_path: Path) -> Path:
    """A ComfyUI with its own ``venv``, as a person sets one up; it has the worker's packages already."""
    folder = tmp_path / "ComfyUI"
    shutil.copytree(runtime.comfyui, folder, ignore=shutil.ignore_patterns("__pycache__", "output", "temp"))
    for name in ("custom_nodes", "models/checkpoints", "input", "output", "user"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "venv").symlink_to(runtime.root / "venv")
    return folder


@pytest.fixture
def install() -> Install:
    """Runs ``install.py`` with arguments, as a person does; ``script`` and ``cwd`` may be another copy's."""

    def run(
        *arguments: object, script: Path = ROOT / "install.py", python: Path | str = sys.executable, **more: object
    ) -> subprocess.CompletedProcess[str]:
        command = [str(python), str(script), *map(str, arguments)]
        options = {"env": quiet_environment(), "cwd": ROOT.parent, **more}
        return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, **options)  # type: ignore[call-overload,no-any-return]

    return run
