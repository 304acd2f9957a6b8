"""Puts the EMQ worker into a ComfyUI, checks that it would work, and takes it out again.

    python install.py COMFYUI_DIR [--link] [--python PY] [--broker-url URL | --redis-url URL] [--api-key KEY]
    python install.py COMFYUI_DIR --check
    python install.py COMFYUI_DIR --uninstall

Without arguments, started in its own folder, it installs the worker's packages with the Python that runs it: that is
how ComfyUI-Manager calls the install.py of a cloned node pack. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACK = "comfyui_emq_node"
SOURCE = Path(__file__).resolve().parent / PACK
SETTINGS = "emq.json"
SAFE_COMFYUI = (0, 28)  # older releases have published security holes
OLDEST_PYTHON = (3, 10)
WANTED = ("redis", "blake3")
# Where a ComfyUI keeps its Python, relative to its folder: a manual install, Desktop, the portable Windows build.
SEARCHED = ("venv", ".venv", "env", "../python_embeded", "../python_embedded", "../venv", "../.venv")

ASK_PYTHON = """
import importlib.metadata, importlib.util, json, sys
versions = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
names = ("torch", "aiohttp", "redis", "blake3")
print(json.dumps([sys.version_info[:3], {n: importlib.util.find_spec(n) and versions.get(n, "?") for n in names}]))
"""
ASK_QUEUE = """
import sys, types
package = types.ModuleType("emq")  # the worker's modules without its start inside ComfyUI
package.__path__ = [sys.argv[1]]
sys.modules["emq"] = package
from emq.check import main
main()
"""


class InstallError(Exception):
    """What went wrong and what to do about it, for the person at the terminal."""


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs a ComfyUI, and what it has."""

    path: str
    version: tuple[int, ...]
    packages: dict[str, str | None]

    def __str__(self) -> str:
        return f"{self.path} ({'.'.join(map(str, self.version))})"


Finding = tuple[str, str]
"""One line of ``--check``: ``ok``, ``warn`` or ``fail``, and what was found."""


def find_comfyui(given: str) -> Path:
    """The folder that holds ``custom_nodes``: a ComfyUI, the portable build around one, or a base directory."""
    folder = Path(given).expanduser().resolve()
    if not folder.is_dir():
        raise InstallError(f"{folder} is not a folder. Name the folder of a ComfyUI, the one with main.py in it.")
    for candidate in (folder, folder / "ComfyUI"):
        if (candidate / "main.py").is_file() and (candidate / "comfy").is_dir():
            return candidate
        if (candidate / "custom_nodes").is_dir() and (candidate / "models").is_dir():
            return candidate
    raise InstallError(f"{folder} is not a ComfyUI: it has neither main.py and comfy/ nor custom_nodes/ and models/.")


def find_python(comfyui: Path, given: str | None) -> Interpreter:
    """The Python of this ComfyUI: the given one, else the first near it, else the one running this script."""
    if given:
        return inspect_python(given)
    for place in SEARCHED:
        for name in ("bin/python", "Scripts/python.exe", "python.exe"):
            path = comfyui / place / name
            if path.is_file():
                return inspect_python(str(path))
    try:
        return inspect_python(sys.executable)
    except InstallError:
        raise InstallError(
            f"Found no Python that belongs to {comfyui}. Name the one that starts ComfyUI: --python /path/to/python"
        ) from None


def inspect_python(path: str) -> Interpreter:
    """Ask a Python what it is; refuse one that cannot be what runs a ComfyUI."""
    path = os.path.abspath(path) if os.sep in path else shutil.which(path) or path
    try:
        done = subprocess.run([path, "-c", ASK_PYTHON], capture_output=True, text=True, timeout=60, check=True)
        version, packages = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InstallError(f"{path} does not work as a Python: {error}") from error
    python = Interpreter(path, tuple(version), packages)
    if python.version < OLDEST_PYTHON:
        raise InstallError(f"{python} is too old: the worker needs Python 3.10 or newer.")
    if missing := [name for name in ("torch", "aiohttp") if not packages[name]]:
        raise InstallError(
            f"{python} does not run a ComfyUI: it has no {' and no '.join(missing)}. "
            "Name the Python that starts ComfyUI: --python /path/to/python"
        )
    return python


def requirements() -> list[str]:
    """The worker's requirements, one a line."""
    lines = (SOURCE / "requirements.txt").read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def install_packages(python: str) -> None:
    """Install the requirements with this Python: wheels only, so that nothing has to be compiled."""
    wanted = ["--only-binary", ":all:", *requirements()]
    commands = [[python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]]
    if uv := shutil.which("uv"):
        commands.append([uv, "pip", "install", "--quiet", "--python", python, *wanted])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    raise InstallError(
        f"{python} could not install {', '.join(requirements())}:\n{done.stderr.strip()}\n"
        "Install them by hand with the Python of that ComfyUI, then run this again."
    )


def target_of(comfyui: Path) -> Path:
    """Where the pack goes in this ComfyUI."""
    return comfyui / "custom_nodes" / PACK


def is_ours(target: Path) -> bool:
    """Whether this is a worker that this script put there (a folder or a link), not something else of that name."""
    return target.is_symlink() or ((target / "requirements.txt").is_file() and (target / "comfy.py").is_file())


def cloned_packs(comfyui: Path) -> list[Path]:
    """Whole clones of this project in ``custom_nodes``: each is a worker already."""
    return [found.parent for found in sorted((comfyui / "custom_nodes").glob(f"*/{PACK}")) if found.is_dir()]


def place(target: Path, link: bool) -> None:
    """Copy or link the pack to its place, replacing an older one by a rename."""
    fresh = target.with_name(f"{PACK}.new.disabled")  # ComfyUI does not load a folder with this ending
    old = target.with_name(f"{PACK}.old.disabled")
    try:
        target.parent.mkdir(exist_ok=True)
        remove(fresh)
        remove(old)
        if link:
            fresh.symlink_to(SOURCE, target_is_directory=True)
        else:
            shutil.copytree(SOURCE, fresh, ignore=shutil.ignore_patterns("__pycache__", SETTINGS))
        if os.path.lexists(target):
            target.rename(old)
        fresh.rename(target)
        remove(old)
    except OSError as error:
        raise InstallError(f"Cannot put the worker into {target.parent}: {error}.") from error


def remove(path: Path) -> None:
    """Remove a folder or a link; nothing there is fine. A link's target is left alone."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def read_settings(pack: Path) -> dict[str, str]:
    """The settings in the pack's folder; empty when there are none."""
    try:
        content = json.loads((pack / SETTINGS).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InstallError(f"Cannot read {pack / SETTINGS}: {error}. Correct it, or remove it.") from error
    if not isinstance(content, dict):
        raise InstallError(f"{pack / SETTINGS} does not hold a JSON object. Correct it, or remove it.")
    return {str(name): str(value) for name, value in content.items()}


def merged_settings(old: dict[str, str], args: argparse.Namespace) -> dict[str, str]:
    """The old settings with what was given on the command line; a new address replaces one of the other kind."""
    given = {"EMQ_BROKER_URL": args.broker_url, "EMQ_REDIS_URL": args.redis_url, "EMQ_API_KEY": args.api_key}
    if args.broker_url or args.redis_url:
        old = {name: value for name, value in old.items() if name not in given}
    return {**old, **{name: value for name, value in given.items() if value}}


def write_settings(pack: Path, settings: dict[str, str]) -> None:
    """Write the settings file so that only its owner may read it: it may hold a password."""
    path = pack / SETTINGS
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(json.dumps(settings, indent=2) + "\n")


def install(args: argparse.Namespace) -> int:
    """Install or update the worker."""
    comfyui = find_comfyui(args.comfyui)
    target, here = target_of(comfyui), False
    if clones := cloned_packs(comfyui):
        here = [clone.resolve() for clone in clones] == [SOURCE.parent] and not os.path.lexists(target)
        if not here:
            known = "is a worker already (the whole project, cloned). Remove it first, or use its own install.py."
            raise InstallError(f"{clones[0]} {known}")
        target = clones[0] / PACK
    if os.path.lexists(target) and not is_ours(target):
        raise InstallError(f"{target} exists and is not an EMQ worker. Move it away first.")
    if not os.access(target.parent if target.parent.is_dir() else comfyui, os.W_OK):
        raise InstallError(f"No permission to write to {target.parent}. Run this as the user that owns ComfyUI.")
    python = find_python(comfyui, args.python)
    updated = os.path.lexists(target)
    settings = merged_settings(read_settings(target), args)
    install_packages(python.path)
    if not here:
        place(target, args.link)
    if settings:
        write_settings(target, settings)
    python = inspect_python(python.path)
    way = f"linked     {target} -> {SOURCE}" if args.link else f"copied to  {target}"
    print(f"The EMQ worker is {'updated' if updated and not here else 'installed'}.")
    print(f"  python     {python}")
    print(f"  packages   {', '.join(f'{name} {python.packages[name]}' for name in WANTED)}")
    print(f"  in place   {target}" if here else f"  {way}")
    print(f"  settings   {f'{target / SETTINGS}: ' + ', '.join(settings) if settings else 'none: a broker here'}")
    print(f"Restart ComfyUI. To see whether it would work: python install.py {args.comfyui} --check")
    return 0


def uninstall(args: argparse.Namespace) -> int:
    """Remove the pack (or the link to it) with its settings. The packages stay: another pack may use them."""
    comfyui = find_comfyui(args.comfyui)
    target = target_of(comfyui)
    if clones := cloned_packs(comfyui):
        raise InstallError(f"{clones[0]} is a clone of the whole project: remove that folder, or use ComfyUI-Manager.")
    if not os.path.lexists(target):
        print(f"There is no EMQ worker in {comfyui}.")
        return 0
    if not is_ours(target):
        raise InstallError(f"{target} is not an EMQ worker; it stays.")
    kept = (target / SETTINGS).resolve() if target.is_symlink() else None
    try:
        remove(target)
    except OSError as error:
        raise InstallError(f"Cannot remove {target}: {error}.") from error
    print(f"Removed {target}. The packages redis and blake3 stay. Restart ComfyUI.")
    if kept is not None and kept.is_file():
        print(f"Its settings stay in {kept}: another ComfyUI may be linked to that folder.")
    return 0


def install_requirements_here() -> int:
    """ComfyUI-Manager's way: the pack is in place already, only its packages are missing."""
    install_packages(sys.executable)
    print(f"Installed {', '.join(requirements())} with {sys.executable}.")
    print("If this folder is not in custom_nodes: python install.py COMFYUI_DIR puts the worker into a ComfyUI.")
    return 0


def check(args: argparse.Namespace) -> int:
    """Print a line for everything the worker needs; 0 unless one of them fails."""
    comfyui = find_comfyui(args.comfyui)
    findings = list(findings_of(comfyui, args))
    print("\n".join(f"{level:<4} {text}" for level, text in findings))
    return int("fail" in dict(findings))


def findings_of(comfyui: Path, args: argparse.Namespace) -> Iterator[Finding]:
    """Everything worth knowing about this ComfyUI's worker, most basic first."""
    yield check_comfyui(comfyui)
    packs = [path for path in (target_of(comfyui), *(clone / PACK for clone in cloned_packs(comfyui))) if path.is_dir()]
    yield check_pack(comfyui, packs)
    try:
        python = find_python(comfyui, args.python)
    except InstallError as error:
        yield "fail", str(error)
        return
    yield "ok", f"Python {python}"
    yield from check_packages(python)
    if packs:
        yield check_queue(python, packs[0], args.redis_url or args.broker_url)


def check_comfyui(comfyui: Path) -> Finding:
    """The version of ComfyUI. The file that tells it is absent before 2025, and from a base directory."""
    file = comfyui / "comfyui_version.py"
    found = re.search(r"__version__\s*=\s*[\"'](\d+(?:\.\d+)*)", file.read_text("utf-8")) if file.is_file() else None
    if not found:
        return "warn", f"ComfyUI in {comfyui} does not tell its version; before 0.28 it has known security holes"
    if tuple(map(int, found[1].split("."))) < SAFE_COMFYUI:
        return "warn", f"ComfyUI {found[1]} has known security holes: update to 0.28 or newer"
    return "ok", f"ComfyUI {found[1]}"


def check_pack(comfyui: Path, packs: list[Path]) -> Finding:
    """Whether exactly one worker lies in ``custom_nodes``."""
    if not packs:
        return "fail", f"no worker in {comfyui / 'custom_nodes'}: run install.py {comfyui}"
    if len(packs) > 1:
        return "fail", f"two workers: {packs[0]} and {packs[1]}. Remove one"
    return "ok", f"worker in {packs[0]}" + (f" -> {packs[0].resolve()}" if packs[0].is_symlink() else "")


def check_packages(python: Interpreter) -> Iterator[Finding]:
    """The worker's packages in ComfyUI's Python: there, and importable."""
    for name in WANTED:
        done = subprocess.run([python.path, "-c", f"import {name}"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            yield "ok", f"{name} {python.packages[name]}"
        else:
            reason = (done.stderr.strip().splitlines() or ["unknown error"])[-1]
            yield "fail", f"{name} cannot be imported ({reason}): run install.py again"


def check_queue(python: Interpreter, pack: Path, given: str | None) -> Finding:
    """Whether the Redis or the broker that this worker would use is there: asked by the worker's own clients."""
    asked = json.dumps({"file": str(pack / SETTINGS), "url": given or ""})
    # Not in the current folder: one with a queue.py in it would come before Python's own modules.
    folder = os.path.dirname(python.path)
    command = [python.path, "-c", ASK_QUEUE, str(SOURCE)]
    try:
        done = subprocess.run(command, input=asked, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
        level, text = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines() or [type(error).__name__]
        return "fail", f"the queue could not be looked at: {lines[-1]}"
    return level, text


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; the folder may be left out where this project lies in a ComfyUI's ``custom_nodes``."""
    parser = argparse.ArgumentParser(description="Put the EMQ worker into a ComfyUI.")
    parser.add_argument("comfyui", nargs="?", metavar="COMFYUI_DIR", help="the ComfyUI's folder")
    deed = parser.add_mutually_exclusive_group()
    deed.add_argument("--check", action="store_true", help="tell whether the worker would work; changes nothing")
    deed.add_argument("--uninstall", action="store_true", help="take the worker out again")
    parser.add_argument("--link", action="store_true", help="link to this folder instead of copying it")
    parser.add_argument("--python", metavar="PY", help="the Python that starts ComfyUI, if it is not found")
    address = parser.add_mutually_exclusive_group()
    address.add_argument("--broker-url", metavar="URL", help="use this broker's gateway")
    address.add_argument("--redis-url", metavar="URL", help="use this Redis directly")
    parser.add_argument("--api-key", metavar="KEY", help="a key with the scope worker, for --broker-url")
    args = parser.parse_args(argv)
    if args.comfyui is None:
        above = Path(__file__).resolve().parent.parent
        if above.name != "custom_nodes":
            parser.error("name the folder of a ComfyUI")
        args.comfyui = str(above.parent)
    return args


def main(argv: list[str]) -> int:
    """Do what the command line says."""
    try:
        if not argv and Path.cwd() == Path(__file__).resolve().parent:
            return install_requirements_here()
        args = parse(argv)
        if args.check:
            return check(args)
        return uninstall(args) if args.uninstall else install(args)
    except InstallError as error:
        print(f"install.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
