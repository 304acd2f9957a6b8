"""The object store shows whole files only, whatever happens while they arrive."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from broker.errors import Conflict, NotFound, PayloadTooLarge, StorageFull
from broker.files.meter import Expected
from broker.files.opening import open_store
from broker.files.store import FileStore
from tests.files.conftest import Announce, Stream
from tests.support.files import ANY_CONTENT, files_below

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


async def content(store: FileStore, key: str, *span: int) -> bytes:
    return b"".join([chunk async for chunk in store.read(await store.stat(key), *span)])


async def test_a_file_comes_back_with_its_size_hash_type_and_label(
    store: FileStore, stream: Stream, announce: Announce
) -> None:
    file, new = await store.put("t/j/1", "0", stream(PNG[:5], PNG[5:]), label="cat.png", expected=announce(PNG))
    assert new
    assert (file.key, file.size, file.content_type, file.label) == ("t/j/1/0", len(PNG), "image/png", "cat.png")
    assert file.hash == f"blake3:{blake3(PNG).hexdigest()}"
    assert await store.stat("t/j/1/0") == file
    assert await content(store, "t/j/1/0") == PNG
    assert await content(store, "t/j/1/0", 2, 6) == PNG[2:6]
    assert await content(store, "t/j/1/0", 100, 10_000) == PNG[100:]


async def test_an_empty_file_is_a_file(store: FileStore, stream: Stream, announce: Announce) -> None:
    file, _ = await store.put("t/j/1", "0", stream(), label="x", expected=announce(b""))
    assert file.size == 0
    assert await content(store, file.key) == b""


async def test_storing_again_replaces_in_one_step_and_leaves_nothing_behind(
    store: FileStore, stream: Stream, tmp_path: Path, announce: Announce
) -> None:
    await store.put("t/j/1", "0", stream(b"one"), label="x", expected=announce(b"one"))
    _, new = await store.put("t/j/1", "0", stream(b"two!"), label="x", expected=announce(b"two!"))
    assert new
    assert await content(store, "t/j/1/0") == b"two!"
    assert len(files_below(tmp_path)) == 2


async def test_the_same_content_again_changes_nothing(
    store: FileStore, stream: Stream, tmp_path: Path, announce: Announce
) -> None:
    first, _ = await store.put("t/j/1", "0", stream(b"one"), label="x", expected=announce(b"one"))
    second, new = await store.put("t/j/1", "0", stream(b"one"), label="x", expected=announce(b"one"))
    assert (second, new) == (first, False)
    assert len(files_below(tmp_path)) == 2


async def test_a_small_file_replaces_what_a_link_leads_to_by_a_file(
    store: FileStore, stream: Stream, tmp_path: Path, announce: Announce
) -> None:
    await store.put("t/j/1", "0", stream(b"old"), label="x", expected=announce(b"old"))
    document = next(path for path in files_below(tmp_path) if path.name == "0")
    elsewhere = tmp_path / "elsewhere"
    document.rename(elsewhere)
    document.symlink_to(elsewhere)
    _, new = await store.put("t/j/1", "0", stream(b"old"), label="x", expected=announce(b"old"))
    assert new
    assert not document.is_symlink()
    assert await content(store, "t/j/1/0") == b"old"


async def test_small_files_are_stored_while_their_folder_is_swept(store: FileStore, stream: Stream) -> None:
    async def sweep() -> None:
        for _ in range(50):
            await store.delete_folder("t/other")
            await store.delete_folder("t/j/0")

    sweeping = asyncio.create_task(sweep())
    for number in range(50):
        await store.put("t/j/0", str(number), stream(b"x"), label="x", expected=Expected(limit=9, size=1))
    await sweeping


async def test_a_small_file_whose_half_is_swept_is_written_again(
    store: FileStore, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = os.replace

    def after_a_sweep(half: str, named: str) -> None:
        monkeypatch.setattr(os, "replace", replaced)
        os.unlink(half)
        shutil.rmtree(Path(half).parent)
        replaced(half, named)

    monkeypatch.setattr(os, "replace", after_a_sweep)
    await store.put("t/j/0", "0", stream(b"x"), label="x", expected=Expected(limit=9, size=1))
    assert await content(store, "t/j/0/0") == b"x"
    assert len(files_below(tmp_path)) == 2


async def test_a_reader_of_a_replaced_file_keeps_what_it_reads(store: FileStore, stream: Stream) -> None:
    await store.put("t/j/1", "0", stream(b"a" * 3_000_000), label="x", expected=ANY_CONTENT)
    reading = store.read(await store.stat("t/j/1/0"))
    got = await anext(reading)
    await store.put("t/j/1", "0", stream(b"b" * 3_000_000), label="x", expected=ANY_CONTENT)
    got += b"".join([chunk async for chunk in reading])
    assert got == b"a" * 3_000_000


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (Expected(limit=3), None),
        (Expected(limit=99, size=5), "size_mismatch"),
        (Expected(limit=99, hash="blake3:" + "0" * 64), "hash_mismatch"),
    ],
)
async def test_what_is_not_as_announced_leaves_nothing(
    store: FileStore, stream: Stream, tmp_path: Path, expected: Expected, reason: str | None
) -> None:
    with pytest.raises(Conflict if reason else PayloadTooLarge) as caught:
        await store.put("t/j/1", "0", stream(b"four"), label="x", expected=expected)
    assert caught.value.details.get("reason") == reason
    assert files_below(tmp_path) == []


async def test_a_refusal_at_the_end_keeps_the_old_file(
    store: FileStore, stream: Stream, tmp_path: Path, announce: Announce
) -> None:
    await store.put("t/j/1", "0", stream(b"old"), label="x", expected=ANY_CONTENT)

    async def refuse() -> None:
        raise Conflict("no longer yours")

    with pytest.raises(Conflict):
        await store.put("t/j/1", "0", stream(b"new"), label="x", expected=announce(b"new"), before_commit=refuse)
    assert await content(store, "t/j/1/0") == b"old"
    assert len(files_below(tmp_path)) == 2


async def test_a_cancelled_upload_leaves_nothing(store: FileStore, tmp_path: Path) -> None:
    arrived = asyncio.Event()

    async def hanging() -> AsyncIterator[bytes]:
        yield b"x" * 12_000_000
        arrived.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(store.put("t/j/1", "0", hanging(), label="x", expected=ANY_CONTENT))
    await asyncio.wait_for(arrived.wait(), 10)
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    for _ in range(500):
        if not files_below(tmp_path):
            break
        await asyncio.sleep(0.01)
    assert files_below(tmp_path) == []


async def test_an_upload_that_is_cancelled_at_its_last_step_leaves_a_whole_file_or_none(
    store: FileStore, stream: Stream, tmp_path: Path, announce: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced, began, go_on = os.replace, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def held(half: str, named: str) -> None:
        if named.endswith("/0"):
            loop.call_soon_threadsafe(began.set)
            assert go_on.wait(30)
        replaced(half, named)

    monkeypatch.setattr(os, "replace", held)
    upload = asyncio.create_task(store.put("t/j/1", "0", stream(PNG), label="x", expected=announce(PNG)))
    await began.wait()
    upload.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert await content(store, "t/j/1/0") == PNG
    assert len(files_below(tmp_path)) == 2


async def test_a_file_named_by_its_content(store: FileStore, stream: Stream) -> None:
    digest = blake3(b"abc").hexdigest()
    file, _ = await store.put("t", None, stream(b"abc"), label="x", expected=ANY_CONTENT)
    assert file.key == f"t/{digest}"


async def test_deleting_a_folder_takes_only_its_files(store: FileStore, stream: Stream, tmp_path: Path) -> None:
    for job in ("j1", "j12"):
        await store.put(f"t/{job}/1", "0", stream(b"x"), label="x", expected=ANY_CONTENT)
    assert await store.folders("t") == ["t/j1", "t/j12"]
    assert await store.delete_folder("t/j1") == 2
    assert await store.folders("t") == ["t/j12"]
    assert await content(store, "t/j12/1/0") == b"x"
    await store.delete("t/j12/1/0")
    assert files_below(tmp_path) == []


KILLED = """
import asyncio, sys
from pathlib import Path
from broker.files.meter import Expected
from broker.files.opening import open_store

async def endless():
    for _ in range(3):
        yield bytes(1 << 20)
    print("half written", flush=True)
    await asyncio.sleep(600)

store = open_store(Path(sys.argv[1]), "outputs")
asyncio.run(store.put("t/j/1", "0", endless(), label="x", expected=Expected(1 << 30)))
"""


async def half_written(folder: Path) -> list[Path]:
    """What a broker leaves that is killed while a file comes."""
    broker = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(folder), stdout=subprocess.PIPE)
    assert broker.stdout is not None
    assert await broker.stdout.readline() == b"half written\n"
    broker.kill()
    await broker.wait()
    return files_below(folder)


async def test_what_a_killed_broker_left_half_written_goes_with_its_job(
    store: FileStore, stream: Stream, tmp_path: Path
) -> None:
    await store.put("t/j/1", "1", stream(b"x"), label="x", expected=ANY_CONTENT)
    assert len(await half_written(tmp_path)) == 3
    assert await store.delete_folder("t/j") == 2
    assert files_below(tmp_path) == []
    assert await store.folders("t") == []


async def test_what_a_killed_broker_left_half_written_goes_with_what_is_unused(stream: Stream, tmp_path: Path) -> None:
    """Also bytes whose document was never written. What is in use, or has just come, stays."""
    store = open_store(tmp_path, "outputs", keep_unused_s=100)
    used, _ = await store.put("t/j/1", None, stream(b"used"), label="x", expected=ANY_CONTENT)
    [rest] = set(await half_written(tmp_path)) - {tmp_path / "objects/outputs" / name for name in (used.key, used.data)}
    orphan = rest.with_name("~" + "0" * 24)
    orphan.write_bytes(b"no document")
    assert await store.delete_unused("t/j/1") == 0
    assert {rest, orphan} <= set(files_below(tmp_path))
    for path in files_below(tmp_path):
        os.utime(path, (0, 0))
    await open_store(tmp_path, "outputs", keep_unused_s=100).stat(used.key)
    assert await store.delete_unused("t/j/1") == 0
    assert not {rest, orphan} & set(files_below(tmp_path))
    assert await content(store, used.key) == b"used"


@pytest.mark.parametrize(
    "key", ["../x", "a/../b", "/etc/passwd", "a//b", "a/.hidden", "", "a/b\0", "a/\\b", "C:/x", "~a"]
)
async def test_a_key_that_is_not_plain_is_no_file(store: FileStore, stream: Stream, key: str) -> None:
    with pytest.raises(NotFound):
        await store.stat(key)
    with pytest.raises(NotFound):
        await store.put(key, "0", stream(b"x"), label="x", expected=ANY_CONTENT)


async def test_links_in_the_store_are_no_files(store: FileStore, stream: Stream, tmp_path: Path) -> None:
    await store.put("t/j/1", "0", stream(b"x"), label="x", expected=ANY_CONTENT)
    root = tmp_path / "objects" / "outputs"
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (root / "t/j/1/1").symlink_to(root / "t/j/1/0")
    (root / "t/k").symlink_to(root / "t/j")
    for key in ("t/j/1/1", "t/k/1/0"):
        with pytest.raises(NotFound):
            await store.stat(key)
    data = root / (await store.stat("t/j/1/0")).data
    file = await store.stat("t/j/1/0")
    data.unlink()
    data.symlink_to(secret)
    with pytest.raises(NotFound):
        await anext(store.read(file))


async def test_a_full_disk_is_said_clearly_and_leaves_nothing(small_disk: Path, stream: Stream) -> None:
    store = open_store(small_disk, "outputs")
    with pytest.raises(StorageFull) as caught:
        await store.put("t/j/1", "0", stream(*[b"x" * 1_000_000] * 12), label="x", expected=ANY_CONTENT)
    assert caught.value.http_status == 507
    assert files_below(small_disk) == []
    await store.put("t/j/1", "0", stream(b"small"), label="x", expected=ANY_CONTENT)


async def test_memory_stays_flat_while_a_big_file_passes(store: FileStore) -> None:
    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    chunk = os.urandom(1 << 20)
    peak = 0

    async def big() -> AsyncIterator[bytes]:
        nonlocal peak
        for _ in range(200):
            peak = max(peak, resident())
            yield chunk

    before = resident()
    file, _ = await store.put("t/j/1", "0", big(), label="x", expected=ANY_CONTENT)
    size = 0
    async for piece in store.read(file):
        size += len(piece)
        peak = max(peak, resident())
    assert size == file.size == 200 << 20
    assert peak - before < 64 << 20


@pytest.mark.parametrize("area", ["../outside", "pool/.hidden", "", "/etc"])
def test_an_area_is_a_plain_path(tmp_path: Path, area: str) -> None:
    with pytest.raises(NotFound):
        open_store(tmp_path, area)
    assert list(tmp_path.iterdir()) == []
