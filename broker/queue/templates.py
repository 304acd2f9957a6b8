"""Workflow templates as the queue keeps them: documents are opaque bytes, versions count up and are never given twice.

==========================  ============================================================================================
``P tv:<owner>``            hash: template name → the highest version that was ever given
``P tt:<owner>:<name>``     hash: version → its summary (JSON, opaque)
``P td:<owner>:<name>@<v>`` string: the document (opaque)
==========================  ============================================================================================

``owner`` is a tenant, or ``*`` for templates that are every tenant's. A version exists while its summary does, which is
written together with its document; what a crash leaves between the counter and the two is an unused number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broker.queue.connection import Command, Connection
from broker.queue.seal import Seal

SHARED = "*"
"""The owner of shared templates; no tenant can have this name."""

Versions = dict[int, bytes]
"""Summaries by version."""


class TemplateStore:
    """Every method raises ``Unavailable`` while Redis is away."""

    def __init__(self, connection: Connection, prefix: str, seal: Seal | None = None) -> None:
        """``seal`` encrypts documents at rest."""
        self._connection = connection
        self._prefix = prefix
        self._seal = seal or Seal()

    async def _run(self, *commands: Command) -> list[Any]:
        return await self._connection.write(self._prefix, *commands) if commands else []

    def _names(self, owner: str) -> str:
        return f"{self._prefix}tv:{owner}"

    def _summaries(self, owner: str, name: str) -> str:
        return f"{self._prefix}tt:{owner}:{name}"

    def _document(self, owner: str, name: str, version: int) -> str:
        return f"{self._prefix}td:{owner}:{name}@{version}"

    async def versions(self, *wanted: tuple[str, str]) -> list[Versions]:
        """The versions of each ``(owner, name)``, with their summaries."""
        rows = await self._run(*(("HGETALL", self._summaries(*each)) for each in wanted))
        return [_versions(row) for row in rows]

    async def numbers(self, *wanted: tuple[str, str]) -> list[list[int]]:
        """The versions of each ``(owner, name)``, in order."""
        rows = await self._run(*(("HKEYS", self._summaries(*each)) for each in wanted))
        return [sorted(map(int, row)) for row in rows]

    async def listing(self, owner: str) -> dict[str, Versions]:
        """Every template of an owner with its versions."""
        (found,) = await self._run(("HKEYS", self._names(owner)))
        names = sorted(name.decode() for name in found)
        rows = await self.versions(*((owner, name) for name in names))
        return {name: versions for name, versions in zip(names, rows, strict=True) if versions}

    async def document(self, owner: str, name: str, version: int) -> bytes | None:
        """A version's document; one that another key has encrypted is encrypted anew."""
        key, about = self._document(owner, name, version), _about(owner, name, version)
        (found,) = await self._run(("GET", key))
        if not isinstance(found, bytes):
            return None
        document = self._seal.open(found, about)
        if not self._seal.is_current(found):
            await self._run(("SET", key, self._seal.close(document, about), "XX"))
        return document

    async def add(self, owner: str, name: str, summary: bytes, document: bytes) -> int:
        """Store a new version; answers its number."""
        (version,) = await self._run(("HINCRBY", self._names(owner), name, 1))
        await self._run(
            ("SET", self._document(owner, name, version), self._seal.close(document, _about(owner, name, version))),
            ("HSET", self._summaries(owner, name), str(version), summary),
        )
        return int(version)

    async def remove(self, owner: str, name: str, versions: Sequence[int]) -> list[int]:
        """Remove versions; answers those that were there. The counter stays: a number means one thing for ever."""
        gone = [
            (("HDEL", self._summaries(owner, name), str(v)), ("DEL", self._document(owner, name, v))) for v in versions
        ]
        answers = await self._run(*(command for pair in gone for command in pair))
        return [version for version, count in zip(versions, answers[::2], strict=True) if count]


def _about(owner: str, name: str, version: int) -> str:
    """What a document is authenticated with when it is encrypted."""
    return f"template:{owner}:{name}@{version}"


def _versions(row: Mapping[bytes, bytes]) -> Versions:
    return dict(sorted((int(version), summary) for version, summary in row.items()))
