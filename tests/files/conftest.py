"""An object store in a folder of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.files.meter import Expected
from broker.files.opening import open_store
from broker.files.store import FileStore

Stream = Callable[..., AsyncIterator[bytes]]
"""Makes a stream of its arguments."""
Announce = Callable[[bytes], Expected]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return open_store(tmp_path, "outputs")


@pytest.fixture
def stream() -> Stream:
    async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return pieces


@pytest.fixture(params=[True, False], ids=["announced", "unannounced"])
def announce(request: pytest.FixtureRequest) -> Announce:
    """What is expected of a content: a small one whose size is known is put in one go, any other as a stream."""
    known = request.param
    return lambda data: Expected(limit=1 << 30, size=len(data) if known else None)
