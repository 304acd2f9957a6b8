"""Jobs on a disk: a folder with ``jobs.jsonl`` and the files they need, to leave a queue by and to come back.

Each line of ``jobs.jsonl`` is a job (``job_id``, ``tenant``, ``created_at``, ``status``, and ``submit``, a
``submit_job`` message), or says that one was withdrawn because a worker took it first. Files lie under ``files/`` by
their hash.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from broker.errors import BadMessage

JOBS = "jobs.jsonl"
FILES = "files"


@dataclass(frozen=True, slots=True)
class ArchivedJob:
    """A job as it waited. ``created_at`` is epoch ms."""

    job_id: str
    tenant: str
    created_at: int
    status: str
    submit: dict[str, Any]


class Archive:
    """A folder of exported jobs; it can be added to, also after an interrupted run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / JOBS

    @classmethod
    def create(cls, folder: Path) -> Archive:
        """The archive in ``folder``, made if it is not there; a line that a crash cut short is removed."""
        (folder / FILES).mkdir(parents=True, exist_ok=True, mode=0o700)
        archive = cls(folder)
        if archive._path.exists():
            raw = archive._path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            if len(whole) < len(raw):
                os.truncate(archive._path, len(whole))
        return archive

    @classmethod
    def open(cls, folder: Path) -> Archive:
        """The archive in ``folder``. Raises ``BadMessage`` when there is none."""
        if not (folder / JOBS).is_file():
            raise BadMessage(f"{folder} is no export: it has no {JOBS}. `python -m broker export {folder}` makes one.")
        return cls(folder)

    def jobs(self) -> list[ArchivedJob]:
        """The jobs, oldest first, without those that were withdrawn. Raises ``BadMessage`` for a broken line."""
        found: dict[str, ArchivedJob] = {}
        for number, line in enumerate(self._lines(), 1):
            try:
                entry = json.loads(line)
                if entry.get("withdrawn"):
                    found.pop(entry["job_id"], None)
                else:
                    found[entry["job_id"]] = ArchivedJob(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise BadMessage(f"{self._path}:{number} is not a line of an export.") from None
        return sorted(found.values(), key=lambda job: job.created_at)

    def add(self, jobs: Iterable[ArchivedJob]) -> None:
        """Write jobs; they are on the disk when this returns."""
        self._append([asdict(job) for job in jobs])

    def withdraw(self, job_ids: Iterable[str]) -> None:
        """Note that these jobs did not leave the queue after all."""
        self._append([{"job_id": job_id, "withdrawn": True} for job_id in job_ids])

    def file(self, name: str) -> Path:
        """Where the file of a hash (``blake3:<hex>``) lies."""
        return self.folder / FILES / name.removeprefix("blake3:")

    async def keep(self, name: str, chunks: AsyncIterator[bytes]) -> None:
        """Write a file once; half a file never has its name."""
        path = self.file(name)
        if path.exists():
            return
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            async for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)

    def _lines(self) -> list[str]:
        return self._path.read_text("utf-8").splitlines() if self._path.exists() else []

    def _append(self, entries: list[dict[str, Any]]) -> None:
        if not entries:
            return
        with self._path.open("a", encoding="utf-8") as file:
            os.chmod(self._path, 0o600)  # jobs are their tenants' own
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())
