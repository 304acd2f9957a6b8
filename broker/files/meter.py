"""What is checked of a file while it streams by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from blake3 import blake3

from broker.errors import Conflict, PayloadTooLarge
from broker.files import types


@dataclass(frozen=True, slots=True)
class Expected:
    """What the sender says of a file; ``None`` where it says nothing. ``limit`` is the most bytes that are taken."""

    limit: int
    size: int | None = None
    hash: str | None = None


class Meter(AsyncIterator[bytes]):
    """Passes a stream through while it counts, hashes, keeps the first bytes, and checks at the end."""

    def __init__(self, chunks: AsyncIterator[bytes], expected: Expected) -> None:
        self._chunks = chunks
        self._expected = expected
        self._hasher = blake3()
        self.size = 0
        self.head = b""

    @property
    def hash(self) -> str:
        """``blake3:<hex>`` of what passed."""
        return f"blake3:{self._hasher.hexdigest()}"

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._check()
            raise
        self.size += len(chunk)
        if self.size > self._expected.limit:
            raise too_large(self._expected.limit)
        self._hasher.update(chunk)
        if len(self.head) < types.HEAD_BYTES:
            self.head += chunk[: types.HEAD_BYTES - len(self.head)]
        return chunk

    def _check(self) -> None:
        expected = self._expected
        if expected.size is not None and expected.size != self.size:
            raise Conflict(
                f"{self.size} bytes arrived, {expected.size} were announced; send the file again.",
                reason="size_mismatch",
            )
        if expected.hash is not None and expected.hash != self.hash:
            raise Conflict(
                "The content has another hash than announced; send the file again.",
                reason="hash_mismatch",
                hash=self.hash,
            )


def too_large(limit: int) -> PayloadTooLarge:
    """The refusal of a file over ``limit`` bytes."""
    return PayloadTooLarge(f"The file is larger than the limit of {limit} bytes.", max_bytes=limit)
