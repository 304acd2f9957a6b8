"""On a local disk the store does itself what a library does in a bucket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from broker.errors import NotFound, Unavailable
from broker.files.cleanup import Cleaner
from broker.files.disk import PIECE
from broker.files.meter import Expected
from broker.files.store import FileStore
from broker.queue.queue import Answer
from tests.files.conftest import Stream
from tests.support.files import ANY_CONTENT, files_below


class NoRecords:
    """All jobs are gone."""

    async def job(self, job_id: str, tenant: str = "") -> Answer:
        raise NotFound("There is no such job.")


@pytest.fixture
def root(tmp_path: Path, store: FileStore) -> Path:
    """Where the store's files lie."""
    return tmp_path / "objects" / "outputs"


async def put(store: FileStore, stream: Stream, *folders: str) -> None:
    for folder in folders:
        await store.put(folder, "0", stream(b"x"), label="x", expected=Expected(limit=9, size=1))


async def test_what_a_link_leads_to_stays_when_its_folder_goes(
    store: FileStore, stream: Stream, root: Path, tmp_path: Path
) -> None:
    await put(store, stream, "t/j/1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (root / "t/j/1/9").symlink_to(tmp_path / "mine" / "file")
    (root / "t/j/2").symlink_to(tmp_path / "mine")
    assert [folder.rpartition("/")[2] for folder in await store.folders("t/j")] == ["1"]
    await store.delete_folder("t/j")
    assert files_below(tmp_path) == [tmp_path / "mine" / "file"]
    assert await store.folders() == []


async def test_folders_come_in_order_and_by_parts(store: FileStore, stream: Stream, root: Path) -> None:
    await put(store, stream, "t/c", "t/a", "t/b", "t/d")
    (root / "t" / "lost+found").mkdir()  # not ours
    assert await store.folders("t") == ["t/a", "t/b", "t/c", "t/d"]
    assert await store.folders("t", "t/a", 2) == ["t/b", "t/c"]
    assert await store.folders("none") == []


async def test_cleaning_goes_on_where_it_stopped_and_past_what_is_not_ours(
    store: FileStore, stream: Stream, root: Path, tmp_path: Path
) -> None:
    await put(store, stream, *[f"{tenant}/{job}/1" for tenant in ("a", "a-b", "c") for job in ("1", "2", "3")])
    (root / "a" / ".mine").mkdir()
    for path in files_below(tmp_path):
        os.utime(path, (0, 0))
    cleaner = Cleaner(store, NoRecords(), min_age_s=100)
    assert [await cleaner.round(limit=4) for _ in range(4)] == [4, 4, 1, 0]
    assert files_below(tmp_path) == []


async def test_a_young_folder_without_a_record_stays(store: FileStore, stream: Stream) -> None:
    await put(store, stream, "a/1/1")
    assert await Cleaner(store, NoRecords(), min_age_s=100).round() == 0
    assert await store.folders("a") == ["a/1"]


async def test_a_stream_that_fails_leaves_nothing_and_says_why(
    store: FileStore, stream: Stream, tmp_path: Path
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(2_000_000)
        raise ConnectionResetError("the worker is gone")

    with pytest.raises(ConnectionResetError, match="the worker is gone"):
        await store.put("t/j/1", "0", broken(), label="x", expected=ANY_CONTENT)
    assert files_below(tmp_path) == []


async def test_a_streamed_file_whose_half_is_swept_is_to_be_sent_again(
    store: FileStore, stream: Stream, tmp_path: Path
) -> None:
    async def swept() -> AsyncIterator[bytes]:
        yield b"x"
        assert await store.delete_folder("t/j") == 0, "it is not there yet"
        yield b"y"

    with pytest.raises(Unavailable, match="send it again") as caught:
        await store.put("t/j/1", "0", swept(), label="x", expected=ANY_CONTENT)
    assert (caught.value.code, caught.value.http_status) == ("unavailable", 503)
    assert caught.value.details == {"reason": "swept"}
    assert files_below(tmp_path) == []
    file, new = await store.put("t/j/1", "0", stream(b"x", b"y"), label="x", expected=ANY_CONTENT)
    assert (file.size, new) == (2, True)


async def test_a_reader_that_is_cancelled_leaves_no_file_open(store: FileStore, stream: Stream) -> None:
    def opened() -> int:
        return len([link for link in Path("/proc/self/fd").iterdir() if "/t/j/1/~" in os.path.realpath(link)])

    await store.put("t/j/1", "0", stream(bytes(3 * PIECE)), label="x", expected=ANY_CONTENT)
    file = await store.stat("t/j/1/0")
    began = asyncio.Event()

    async def read() -> None:
        async with aclosing(store.read(file)) as pieces:
            await anext(pieces)
            assert opened() == 1
            began.set()
            await asyncio.Event().wait()

    reader = asyncio.create_task(read())
    await began.wait()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert opened() == 0
