"""Installs each peer from public packages into an environment of its own in the cache.

One environment a peer: their pins of redis-py exclude each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.peers.catalog import Peer


def home(peer: Peer) -> Path:
    """The peer's folder: ``~/.cache/emq/bench-peers-<name>-<digest of its packages>``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emq"
    digest = hashlib.sha256(json.dumps([peer.packages, sys.version_info[:2]]).encode()).hexdigest()[:8]
    return cache / f"bench-peers-{peer.module}-{digest}"


def interpreter(peer: Peer) -> list[str]:
    """The command that runs the peer's adapter, without its arguments."""
    adapters = Path(__file__).parent
    if peer.node:
        return ["node", str(adapters / f"{peer.module}.cjs"), str(home(peer))]
    python = str(home(peer) / "bin" / "python") if peer.packages else sys.executable
    return [python, "-m", "bench.peers.child", peer.module]


def install(peer: Peer) -> None:
    """Install the peer unless it is there. Raises ``subprocess.CalledProcessError``; a half made one is removed."""
    folder = home(peer)
    if not peer.packages or (folder / ".ready").exists():
        return
    print(f"installing {peer.name}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if peer.node:
        options = ["--silent", "--no-fund", "--no-audit", "--prefix", str(folder)]
        subprocess.run(["npm", "install", *options, *peer.packages], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", "--no-input",
             "--disable-pip-version-check", *peer.packages], check=True
        )  # fmt: skip
    (folder / ".ready").touch()


def version(peer: Peer) -> str:
    """The installed versions of the peer's first package and of its Redis client."""
    if not peer.packages:
        return ""
    if peer.node:
        packages = home(peer) / "node_modules"
        found = [packages / name / "package.json" for name in ("bullmq", "ioredis", "redis")]
        return ", ".join(f"{p.parent.name} {json.loads(p.read_text())['version']}" for p in found if p.exists())
    name = peer.packages[0].partition("[")[0]
    code = (
        "import importlib.metadata as m, sys\n"
        "print(', '.join(f'{p} {m.version(p)}' for p in dict.fromkeys([*sys.argv[1:], 'redis']) if p))"
    )
    command = [str(home(peer) / "bin" / "python"), "-c", code, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or name


def main() -> int:
    """Install every peer, and say which version is there."""
    from bench.peers.catalog import PEERS  # noqa: PLC0415 - only this entry needs the table

    for peer in PEERS:
        install(peer)
        print(f"{peer.name:24} {version(peer)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
