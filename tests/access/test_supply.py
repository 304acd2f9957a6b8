"""What EMQ is built from: every package of a broker is locked by hash, and the code has no door for code in data."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENTRY = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)((?:[^\n]*\\\n\s+--hash=sha256:[0-9a-f]{64})+)", re.MULTILINE)
BANNED = {"pickle", "marshal", "shelve", "dill", "yaml", "jsonpickle", "cloudpickle"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_of_a_broker_is_locked_by_hash() -> None:
    text = (ROOT / ".ci/requirements.lock").read_text()
    locked = {plain(name): version for name, version, _ in ENTRY.findall(text)}
    assert len(locked) == text.count("=="), "an entry without a hash"
    pinned = dict(line.split("==") for line in (ROOT / ".ci/constraints.txt").read_text().splitlines() if "==" in line)
    assert locked == {name: v for name, v in ((plain(n), v) for n, v in pinned.items()) if name in locked}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {plain(re.match(r"[A-Za-z0-9_.-]+", need)[0]) for need in project["dependencies"]}  # type: ignore[index]
    assert wanted <= set(locked), "make lock"


def test_nothing_that_runs_what_it_reads() -> None:
    files = [*ROOT.glob("broker/**/*.py"), *ROOT.glob("comfyui_emq_node/**/*.py"), ROOT / "install.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file.name}:{getattr(node, 'lineno', '')}"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & BANNED, where
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                assert called not in ("eval", "exec", "__import__"), where
                shell = [word for word in node.keywords if word.arg == "shell"]
                assert all(isinstance(w.value, ast.Constant) and w.value.value is False for w in shell), where
