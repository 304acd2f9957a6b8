"""Debian's NGINX with the project's own configuration files, on free loopback ports."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.support.servers import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Nginx:
    """A running NGINX and its folder."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        return (self.folder / "access.log").read_text()


def adapted(file: str, folder: Path, port: int, upstream: Sequence[str], edits: dict[str, str]) -> Path:
    """The file with other addresses and paths; everything else as it is. ``edits`` are further exact changes."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "deploy" / file).read_text()

    def servers(found: re.Match[str]) -> str:
        return "\n" + "".join(f"server {address}{found[2]};" for address in upstream)

    changes: dict[str, str | Callable[[re.Match[str]], str]] = {
        r"pid /run/nginx.pid;": f"pid {folder}/pid;",
        r"/var/log/nginx/": f"{folder}/",
        r"(\n +server 127\.0\.0\.1:\d+([^;]*);[^\n]*)+": servers,
        r"listen 443 ssl http2;": f"listen 127.0.0.1:{port};",
        r"\n +ssl_[^\n]*": "",
        r"worker_processes auto;": "worker_processes 1; worker_shutdown_timeout 1s;",
        # The body of a request and the like are kept under the package's folder, which only root may write.
        r"default_type application/octet-stream;\n\n?": "default_type application/octet-stream;\n"
        + "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ),
    }
    for pattern, new in changes.items():
        text, count = re.subn(pattern, new if callable(new) else new.replace("\\", r"\\"), text)
        assert count, f"{file} has no {pattern}"
    # The server on port 80 only leads to the other one.
    text = re.sub(r"server \{\s+listen 80;.*?\n    \}", "", text, flags=re.DOTALL)
    for old, new in edits.items():
        assert old in text, f"{file} has no {old}"
        text = text.replace(old, new)
    path = folder / "nginx.conf"
    path.write_text(("user root;\n" if os.geteuid() == 0 else "") + text)
    return path


@asynccontextmanager
async def nginx(file: str, folder: Path, upstream: Sequence[str], **edits: str) -> AsyncIterator[Nginx]:
    """Run one of ``deploy/``'s configurations in front of ``upstream`` (host:port)."""
    port = free_port()
    config = adapted(file, folder, port, upstream, edits)
    with _launched(folder, config) as process:
        try:
            await wait_until(lambda: _answers(port, process), 15, f"nginx answers with {config}")
            yield Nginx(port, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, 10)
            except subprocess.TimeoutExpired:
                process.kill()


def _launched(folder: Path, config: Path) -> subprocess.Popen[bytes]:
    command = ["nginx", "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log"), "-g", "daemon off;"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


async def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, process.stderr.read().decode() if process.stderr else "nginx ended"
    try:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics"):
            return True
    except aiohttp.ClientError:
        return False
