"""All outputs of a job as one zip."""

from __future__ import annotations

import asyncio
import io
import zipfile
from pathlib import Path
from typing import Any

from broker.app import SIGNER
from tests.api.conftest import Broker, Start
from tests.support.files import HOSTILE_NAMES
from tests.support.outputs import fetch, held_job, put
from tests.support.s3 import Bucket

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4000
FILES = {"cat.png": PNG, "Cat.PNG": b"GIF89a", "größe 😀.txt": "Grüße".encode(), "empty.bin": b""}


async def finished(broker: Broker, files: list[tuple[str, bytes]]) -> str:
    """A completed job with these outputs."""
    async with held_job(broker) as (worker, held):
        outputs = []
        for number, (name, content) in enumerate(files):
            _, stored = await put(broker, held, number, data=io.BytesIO(content), name=name)
            outputs.append({"node_id": "2", "kind": "file", **stored, "filename": name})
        await worker.finish(held, {"outputs": outputs})
        return held.job_id


def opened(body: bytes) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(io.BytesIO(body))
    assert archive.testzip() is None
    return archive


async def test_a_zip_has_every_file_as_it_is(broker: Broker) -> None:
    job = await finished(broker, list(FILES.items()))
    response, body = await fetch(broker, f"/api/jobs/{job}/outputs.zip")
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/zip"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{job}.zip"'
    assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    archive = opened(body)
    assert archive.namelist() == ["cat.png", "Cat (2).PNG", "größe 😀.txt", "empty.bin"]
    assert [archive.read(name) for name in archive.namelist()] == list(FILES.values())
    assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    response, body = await fetch(broker, f"/api/jobs/{job}/outputs.zip", "HEAD")
    assert (response.status, body) == (200, b"")


async def test_hostile_names_stay_inside_the_folder_it_is_unpacked_in(broker: Broker) -> None:
    job = await finished(broker, [(name, b"x") for name in HOSTILE_NAMES if name and "\ud800" not in name])
    _, body = await fetch(broker, f"/api/jobs/{job}/outputs.zip")
    names = opened(body).namelist()
    assert len({name.casefold() for name in names}) == len(names)
    assert not any(set(name) & set('/\\:*?"<>|\0\r\n') or name.startswith(".") for name in names)


async def test_a_job_without_files_has_no_zip(broker: Broker) -> None:
    job = await finished(broker, [])
    assert (await broker.json("GET", f"/api/jobs/{job}/outputs.zip"))[0] == 404
    assert (await broker.json("GET", "/api/jobs/nothing/outputs.zip"))[0] == 404
    async with held_job(broker) as (_, held):
        status, body = await broker.json("GET", f"/api/jobs/{held.job_id}/outputs.zip")
        assert status == 404
        assert "processing" in body["error"]


async def test_a_signed_link_to_a_zip(broker: Broker) -> None:
    job = await finished(broker, [("a.png", PNG)])
    link = broker.server.app[SIGNER].sign(f"/api/jobs/{job}/outputs.zip", "default")
    response, body = await fetch(broker, link)
    assert response.status == 200
    assert opened(body).read("a.png") == PNG
    assert (await fetch(broker, link.replace("outputs.zip", "outputs/1-0.png")))[0].status == 403
    foreign = broker.server.app[SIGNER].sign(f"/api/jobs/{job}/outputs.zip", "other")
    assert (await fetch(broker, foreign))[0].status == 404


async def test_a_reader_that_leaves_is_no_trouble(broker: Broker) -> None:
    job = await finished(broker, [(f"{n}.png", PNG * 8) for n in range(4)])
    for _ in range(3):
        async with broker.http.get(f"{broker.url}/api/jobs/{job}/outputs.zip") as response:
            await response.content.readexactly(100_000)
            response.close()
    _, body = await fetch(broker, f"/api/jobs/{job}/outputs.zip")
    assert len(opened(body).namelist()) == 4


async def test_a_zip_out_of_a_bucket(start_broker: Start, bucket: Bucket) -> None:
    broker = await start_broker(store_url=bucket.store_url)
    job = await finished(broker, [("a.png", PNG), ("a.png", b"other")])
    _, body = await fetch(broker, f"/api/jobs/{job}/outputs.zip")
    archive = opened(body)
    assert [archive.read(name) for name in ("a.png", "a (2).png")] == [PNG, b"other"]


async def test_a_file_that_went_meanwhile_is_told_before_anything_is_sent(broker: Broker, tmp_path: Path) -> None:
    job = await finished(broker, [("a.png", PNG), ("b.png", PNG)])
    gone: Any = next((tmp_path / "objects").rglob(f"{job}/1/1"))
    await asyncio.to_thread(gone.unlink)
    assert (await broker.json("GET", f"/api/jobs/{job}/outputs.zip"))[0] == 404
