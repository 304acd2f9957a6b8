"""The first picture: how long ``make demo`` takes on a machine that has nothing of EMQ yet.

A fresh clone of this checkout (what is committed), without virtual environment, without pip's cache and without the
trial ComfyUI: all of it is downloaded again, 1.5 GB. A second start in the same place shows what is left of that.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.stack import ROOT

STEPS = (
    ("broker", "the virtual environment, broker and Valkey up"),
    ("worker", "the trial ComfyUI, the worker ready in it"),
    ("saved", "the job, its picture saved"),
)
"""Lines that the demo says, and what has been done by then."""
STALE = ("EMQ_", "REDIS_", "COMFYUI", "VIRTUAL_ENV", "PIP_CACHE_DIR", "PYTHONPATH", "MAKE", "MFLAGS")
"""Beginnings of variables that a bare machine does not have."""


class DemoFailed(Exception):
    """The demo did not make its picture; the message has what it said last."""


def bare(folder: Path) -> dict[str, str]:
    """An environment whose caches are empty; where packages come from stays as it is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(STALE)}
    inside = os.path.dirname(sys.executable)
    path = os.pathsep.join(each for each in kept["PATH"].split(os.pathsep) if each != inside)
    return {**kept, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "share")}


def clone(folder: Path) -> Path:
    """A fresh clone of this checkout."""
    place = folder / "emq"
    subprocess.run(["git", "clone", "--quiet", "--no-local", f"file://{ROOT}", str(place)], check=True)
    return place


def demo(place: Path, environment: dict[str, str]) -> dict[str, float]:
    """Run the demo once; seconds from its start to each of ``STEPS``."""
    began = time.monotonic()
    seen: dict[str, float] = {}
    said: list[str] = []
    command = ["make", "demo", "ARGS=--once"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    child = subprocess.Popen(command, cwd=place, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        for line in child.stdout:
            said.append(line)
            if found := re.match(r"  (\w+)  ", line):
                seen.setdefault(found[1], time.monotonic() - began)
        code = child.wait()
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
    if code or not all(word in seen for word, _ in STEPS):
        raise DemoFailed("".join(said[-20:]))
    return seen


def report(name: str, seen: dict[str, float]) -> None:
    """Print the whole and its parts."""
    print(f"5 make demo to the picture, {name}:{'':{28 - len(name)}} {seen['saved']:7.1f} s")
    before = 0.0
    for word, what in STEPS:
        print(f"    {what:56} {seen[word] - before:7.1f} s", flush=True)
        before = seen[word]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="leave the second start out")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="emq-bare-"))
    try:
        place, environment = clone(folder), bare(folder)
        report("nothing there", demo(place, environment))
        if not args.once:
            report("everything there", demo(place, environment))
    except DemoFailed as error:
        print(f"the demo made no picture:\n{error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0
