"""An object store in a folder of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.files.store import FileStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return open_store(tmp_path, "outputs")


@pytest.fixture
def stream() -> Callable[..., AsyncIterator[bytes]]:
    async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return pieces
