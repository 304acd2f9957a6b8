"""The files of the embedded Valkey: where they are, what is in them, and what to say when they cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import stat
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlencode

from broker.errors import ConfigurationError

SOCKET_PATH = 103
"""Longest path of a Unix socket in bytes: 107 on Linux, 103 on macOS."""
LOG_BYTES = 8 * 2**20
"""A larger log is set aside when the server starts."""


@dataclass(frozen=True, slots=True)
class Record:
    """``valkey.json``: how to reach the server (see ``broker/queue/embedded.py``)."""

    url: str
    socket: str
    port: int
    password: str
    pid: int | None = None
    started: int = 0
    format: int = 1

    @classmethod
    def new(cls, port: int, password: str, socket_path: str) -> Record:
        """A record of a server about to start; an empty password draws one."""
        password = password or secrets.token_urlsafe(24)
        return cls(f"redis://:{password}@127.0.0.1:{port}/0", socket_path, port, password)

    @property
    def local_url(self) -> str:
        """The fastest way for a process of the same user."""
        if not self.socket:
            return self.url
        return f"unix://{quote(self.socket)}?{urlencode({'password': self.password})}"

    def running(self, pid: int | None) -> Record:
        """The record of a server that started, or (``None``) ended, just now."""
        return replace(self, pid=pid, started=int(time.time() * 1000) if pid else 0)


class Files:
    """The files of one data folder."""

    def __init__(self, data: Path, appendfsync: str = "always") -> None:
        self.data = Path(os.path.abspath(data))
        self.folder = self.data / "valkey"
        self.record = self.data / "valkey.json"
        self.watch_lock = self.data / "valkey.lock"
        self.users_lock = self.data / "brokers.lock"
        self.server_lock = self.folder / "server.lock"
        self.log = self.folder / "valkey.log"
        self._appendfsync = appendfsync

    def prepare(self) -> None:
        """Make the folders. Raises ``OSError`` when they cannot be made or written."""
        self.data.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.data, self.folder):
            with tempfile.TemporaryFile(dir=folder):
                pass

    def unusable(self, error: OSError) -> ConfigurationError:
        """What to tell about a folder that gave ``error``."""
        return ConfigurationError(
            f"The data folder {self.data} cannot be used: {error.strerror or error}. "
            "Set EMQ_DATA (or --data) to a folder on a local disk that this user can write."
        )

    def read(self) -> Record | None:
        """The record, if there is one that can be read."""
        try:
            fields = json.loads(self.record.read_text())
            known = {name: fields[name] for name in Record.__dataclass_fields__ if name in fields}
            return Record(**known)
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, record: Record) -> Record:
        """Replace the record."""
        _write_private(self.record, json.dumps(asdict(record), indent=1) + "\n")
        return record

    def write_config(self, record: Record) -> Path:
        """The server's configuration file, written anew for each start."""
        self._set_log_aside()
        path = self.folder / "valkey.conf"
        lines = (f"{name} {_quoted(value)}" for name, value in self._config(record).items())
        _write_private(path, "\n".join(lines) + "\n")
        return path

    def _config(self, record: Record) -> dict[str, str]:
        config = {
            "bind": "127.0.0.1",
            "port": str(record.port),
            "requirepass": record.password,
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            # Specs and results of a usual job stay in the compact form of a hash.
            "hash-max-listpack-value": "1024",
            # The collation of a broken LANG would keep the server from starting.
            "locale-collate": "C",
        }
        if record.socket:
            config |= {"unixsocket": record.socket, "unixsocketperm": "700"}
        return config

    def _set_log_aside(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))

    def socket_path(self) -> str:
        """Where the Unix socket goes; empty when there is no place for one (the loopback port serves then)."""
        path = str(self.folder / "valkey.sock")
        if len(os.fsencode(path)) <= SOCKET_PATH:
            return path
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"emq-{os.getuid()}"
        path = str(base / f"{hashlib.sha256(os.fsencode(self.data.resolve())).hexdigest()[:16]}.sock")
        try:
            base.mkdir(mode=0o700, exist_ok=True)
            info = base.lstat()
        except OSError:
            return ""
        # In a folder that others can write, somebody else could have made it first.
        ours = stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077
        return path if ours and len(os.fsencode(path)) <= SOCKET_PATH else ""

    def last_words(self) -> str:
        """The end of the server's log, on one line."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 4096))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            return "it left no log"
        return " | ".join([line.strip() for line in lines if line.strip()][-3:])


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether nobody listens on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
