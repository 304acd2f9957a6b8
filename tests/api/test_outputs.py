"""Outputs and input files over HTTP, against a running broker."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import aiohttp
import pytest
from blake3 import blake3
from yarl import URL

from broker.api import outputs
from broker.app import SIGNER, STORE
from broker.errors import Unavailable
from broker.files.cleanup import Cleaner
from broker.files.replicas import ReplicatedStore
from broker.files.store import FileStore, StoredFile
from tests.api.conftest import Broker, Start
from tests.support.files import DOWNLOAD_CONTENTS, HOSTILE_NAMES, INLINE_CONTENTS
from tests.support.outputs import PNG, fetch, held_job, put, stored_files, ticket
from tests.support.waiting import PATIENCE_S, wait_until


async def test_an_uploaded_output_comes_back(broker: Broker) -> None:
    async with held_job(broker) as (_, held):
        status, stored = await put(broker, held)
        assert status == 201
        assert stored["name"] == "1-0.png"
        assert stored["key"] == f"default/{held.job_id}/1/0"
        assert (stored["size"], stored["content_type"]) == (len(PNG), "image/png")
        assert stored["hash"] == f"blake3:{blake3(PNG).hexdigest()}"
        response, body = await fetch(broker, f"/api/jobs/{held.job_id}/outputs/1-0.png")
        assert (response.status, body) == (200, PNG)
        head = response.headers
        assert head["Content-Type"] == "image/png"
        assert head["Content-Disposition"] == 'inline; filename="cat.png"'
        assert head["Content-Length"] == str(len(PNG))
        assert head["X-Content-Type-Options"] == "nosniff"
        assert head["Content-Security-Policy"] == "sandbox; default-src 'none'"
        assert head["Accept-Ranges"] == "bytes"
        assert head["ETag"] == f'"{blake3(PNG).hexdigest()}"'
        response, body = await fetch(broker, f"/api/jobs/{held.job_id}/outputs/1-0.png", "HEAD")
        assert (response.status, body, response.headers["Content-Length"]) == (200, b"", str(len(PNG)))


async def test_the_same_number_again_replaces_and_the_same_content_changes_nothing(
    broker: Broker, tmp_path: Path
) -> None:
    async with held_job(broker) as (_, held):
        assert (await put(broker, held))[0] == 201
        assert (await put(broker, held))[0] == 200
        status, stored = await put(broker, held, data=b"GIF89a!", name="cat.gif")
        assert (status, stored["name"]) == (201, "1-0.gif")
        assert (await fetch(broker, f"/api/jobs/{held.job_id}/outputs/1-0.gif"))[1] == b"GIF89a!"
        assert (await fetch(broker, f"/api/jobs/{held.job_id}/outputs/1-0.png"))[0].status == 404
        assert len(stored_files(tmp_path)) == 2


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=5-9", 206, 5, 10),
        ("bytes=100-", 206, 100, None),
        ("bytes=-7", 206, -7, None),
        ("bytes=-999999", 206, 0, None),
        ("bytes=5-999999", 206, 5, None),
        ("bytes=999999-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=9-5", 200, 0, None),
        ("bytes=", 200, 0, None),
        ("bytes=a-b", 200, 0, None),
        ("bytes=0-1,5-6", 200, 0, None),
        ("lines=0-1", 200, 0, None),
        ("bytes=99999999999999999999999-", 200, 0, None),
    ],
)
async def test_one_range_is_served(broker: Broker, asked: str, status: int, start: int, end: int | None) -> None:
    async with held_job(broker) as (_, held):
        await put(broker, held)
        response, body = await fetch(broker, f"/api/jobs/{held.job_id}/outputs/1-0.png", Range=asked)
        assert response.status == status
        if status == 416:
            assert response.headers["Content-Range"] == f"bytes */{len(PNG)}"
        else:
            assert body == PNG[start:end]
        if status == 206:
            first = start if start >= 0 else len(PNG) + start
            assert response.headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(PNG)}"


async def test_conditions(broker: Broker) -> None:
    async with held_job(broker) as (_, held):
        await put(broker, held)
        path = f"/api/jobs/{held.job_id}/outputs/1-0.png"
        tag = (await fetch(broker, path))[0].headers["ETag"]
        for condition in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            response, body = await fetch(broker, path, **{"If-None-Match": condition})
            assert (response.status, body, response.headers["ETag"]) == (304, b"", tag)
        assert (await fetch(broker, path, **{"If-None-Match": '"x"'}))[0].status == 200
        assert (await fetch(broker, path, Range="bytes=0-1", **{"If-Range": tag}))[0].status == 206
        assert (await fetch(broker, path, Range="bytes=0-1", **{"If-Range": '"x"'}))[0].status == 200


@pytest.mark.parametrize(("head", "content_type"), INLINE_CONTENTS)
async def test_the_content_says_the_type_whatever_the_name(broker: Broker, head: bytes, content_type: str) -> None:
    async with held_job(broker) as (_, held):
        _, stored = await put(broker, held, data=head, name="page.html")
        response, _ = await fetch(broker, f"/api/jobs/{held.job_id}/outputs/{stored['name']}")
        assert response.headers["Content-Type"] == content_type
        assert not stored["name"].endswith(".html")


@pytest.mark.parametrize("head", DOWNLOAD_CONTENTS)
async def test_what_may_hold_a_script_is_a_download(broker: Broker, head: bytes) -> None:
    async with held_job(broker) as (_, held):
        _, stored = await put(broker, held, data=head, name="cat.png")
        response, body = await fetch(broker, f"/api/jobs/{held.job_id}/outputs/{stored['name']}")
        assert (response.status, body) == (200, head)
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.headers["Content-Disposition"].startswith("attachment;")
        assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


async def test_hostile_names_are_labels_and_nothing_else(broker: Broker, tmp_path: Path) -> None:
    async with held_job(broker) as (_, held):
        for number, name in enumerate(HOSTILE_NAMES):
            raw = name.encode("utf-8", "surrogatepass")
            path = f"/api/jobs/{held.job_id}/outputs/1/{number}/{quote(raw, safe='')}"
            async with broker.http.put(URL(broker.url + path, encoded=True), data=PNG, headers=ticket(held)) as answer:
                if answer.status in (400, 404):  # not a path that a server can read
                    continue
                assert answer.status == 201, name
                stored = await answer.json()
            assert stored["key"] == f"default/{held.job_id}/1/{number}"
            response, body = await fetch(broker, f"/api/jobs/{held.job_id}/outputs/{stored['name']}")
            assert (response.status, body) == (200, PNG)
            assert re.fullmatch(
                r'inline; filename="[^"\\/]*"(; filename\*=\S+)?', response.headers["Content-Disposition"]
            )
        root = tmp_path / "objects"
        assert {p.relative_to(root).parts[1:3] for p in stored_files(tmp_path)} == {("outputs", "default")}
        assert not any(p.is_symlink() for p in root.rglob("*"))


@pytest.mark.parametrize("name", [quote(n, safe="") for n in HOSTILE_NAMES if n and "\ud800" not in n])
async def test_hostile_names_find_nothing(broker: Broker, name: str) -> None:
    async with held_job(broker) as (_, held):
        await put(broker, held)
        url = URL(f"{broker.url}/api/jobs/{held.job_id}/outputs/{name}", encoded=True)
        async with broker.http.get(url) as response:
            assert response.status in (400, 404)


async def test_an_upload_needs_this_job_s_lease(broker: Broker, tmp_path: Path) -> None:
    async with held_job(broker) as (_, held):
        path = f"/api/jobs/{held.job_id}/outputs/1/0/x.png"
        good = ticket(held)["Authorization"]
        for header, status in (
            (None, 401),
            ("Bearer x", 401),
            ("Lease", 401),
            ("Lease x", 401),
            ("Lease a.b.c", 401),
            (f"Lease {held.job_id}.1.{'f' * 32}", 409),
            (f"Lease {held.job_id}.2.{held.token}", 403),
            (f"Lease other.1.{held.token}", 403),
        ):
            headers = {} if header is None else {"Authorization": header}
            answer, body = await broker.json("PUT", path, data=PNG, headers=headers)
            assert (answer, body["type"]) == (status, "error"), header
        for wrong in (f"/api/jobs/{held.job_id}/outputs/1/x/x.png", f"/api/jobs/{held.job_id}/outputs/1/10000/x.png"):
            answer, _ = await broker.json("PUT", wrong, data=PNG, headers={"Authorization": good})
            assert answer in (400, 404)
        assert stored_files(tmp_path) == []


async def test_a_worker_that_lost_its_lease_leaves_nothing(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is asked for again when all bytes have come."""
    monkeypatch.setattr(outputs, "FRESH_S", 0.0)
    async with held_job(broker) as (worker, held):
        release = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield bytes(8_000_000)
            await release.wait()
            yield PNG

        upload = asyncio.create_task(put(broker, held, data=slow()))
        await wait_until(lambda: stored_files(tmp_path), what="the broker began to write")
        await worker.release(held)
        release.set()
        status, body = await upload
        assert (status, body["code"], body["details"]["reason"]) == (409, "conflict", "stale_lease")
        assert stored_files(tmp_path) == []
        status, _ = await put(broker, held)
        assert status == 409


async def test_what_arrives_must_be_what_was_announced(start_broker: Start, tmp_path: Path) -> None:
    broker = await start_broker(max_output_mb=1)
    async with held_job(broker) as (_, held):
        digest = blake3(PNG).hexdigest()
        status, body = await put(broker, held, headers={"X-Content-Blake3": "0" * 64})
        assert (status, body["details"]["reason"]) == (409, "hash_mismatch")
        status, _ = await put(broker, held, headers={"X-Content-Blake3": "zz"})
        assert status == 400
        status, _ = await put(broker, held, headers={"Content-Encoding": "gzip"})
        assert status == 400

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield bytes(500_000)

        status, body = await put(broker, held, data=io.BytesIO(bytes(2_000_000)))
        assert (status, body["code"], body["details"]["max_bytes"]) == (413, "payload_too_large", 1 << 20)
        status, body = await put(broker, held, data=endless())
        assert (status, body["code"]) == (413, "payload_too_large")
        assert stored_files(tmp_path) == []
        status, _ = await put(broker, held, headers={"X-Content-Blake3": f"blake3:{digest}"})
        assert status == 201


async def test_an_upload_that_breaks_off_leaves_nothing_and_can_be_repeated(broker: Broker, tmp_path: Path) -> None:
    async with held_job(broker) as (_, held):
        parts = urlsplit(broker.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = (
            f"PUT /api/jobs/{held.job_id}/outputs/1/0/x.png HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: {ticket(held)['Authorization']}\r\nContent-Length: 20000000\r\n\r\n"
        )
        writer.write(head.encode() + bytes(8_000_000))
        await writer.drain()
        await wait_until(lambda: stored_files(tmp_path), what="the broker began to write")
        writer.close()
        await writer.wait_closed()
        del reader
        await wait_until(lambda: not stored_files(tmp_path), what="the broken upload is gone")
        assert (await put(broker, held))[0] == 201


@pytest.mark.parametrize("name", ["outputs/1-0.bin", "outputs.zip"])
async def test_a_download_that_breaks_off_ends_its_connection(
    broker: Broker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong is not told in the middle of the file, whose reader would take it for the rest, or wait for it."""
    async with held_job(broker) as (worker, held):
        _, stored = await put(broker, held, data=io.BytesIO(bytes(600_000)), name="x.bin")
        await worker.finish(held, {"outputs": [{"node_id": "2", "kind": "image", **stored}]})
    read = FileStore.read

    async def breaks(
        store: FileStore, file: StoredFile, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        yield await anext(read(store, file, start, end))
        raise Unavailable("The store has gone.")

    monkeypatch.setattr(ReplicatedStore, "read", breaks)
    answer = await broker.http.get(f"{broker.url}/api/jobs/{held.job_id}/{name}")
    assert answer.status == 200
    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(answer.read(), PATIENCE_S)


async def test_who_leaves_in_the_middle_of_a_download_is_no_fault(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with held_job(broker) as (_, held):
        await put(broker, held, data=io.BytesIO(bytes(20_000_000)), name="x.bin")
    async with broker.http.get(f"{broker.url}/api/jobs/{held.job_id}/outputs/1-0.bin") as answer:
        await answer.content.readexactly(1000)
        answer.close()
    await wait_until(lambda: not broker.handles(), what="the broker notices")
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_record_has_signed_urls_that_need_no_credential(broker: Broker) -> None:
    async with held_job(broker) as (worker, held):
        _, stored = await put(broker, held)
        output = {"node_id": "2", "kind": "image", "filename": "cat.png", **stored, "url": "http://evil.example/x"}
        hostile = [{**output, "name": n, "url": "javascript:x"} for n in ("../../x", "1-0.png/..", 7, None)]
        await worker.finish(held, {"outputs": [output, *hostile]})
        _, record = await broker.json("GET", f"/api/jobs/{held.job_id}")
        first, *others = record["result"]["outputs"]
        assert urlsplit(first["url"]).path == f"/api/jobs/{held.job_id}/outputs/1-0.png"
        assert all(not str(o.get("url") or "").startswith(("javascript", "http")) for o in others)
        assert "key" not in first
        response, body = await fetch(broker, first["url"])
        assert (response.status, body) == (200, PNG)
        assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"


async def test_forged_and_expired_urls_are_refused(broker: Broker) -> None:
    async with held_job(broker) as (_, held):
        _, stored = await put(broker, held)
        await put(broker, held, number=1)
        signer = broker.server.app[SIGNER]
        good = signer.output_url("default", held.job_id, stored["name"])
        split = urlsplit(good)
        query = dict(parse_qsl(split.query))
        assert (await fetch(broker, good))[0].status == 200
        for field, value in (("t", "other"), ("e", "9999999999"), ("k", "0" * 8), ("s", "0" * 64), ("s", "")):
            forged = f"{split.path}?{urlencode({**query, field: value})}"
            assert (await fetch(broker, forged))[0].status == 403, field
        other = split.path.replace("1-0", "1-1")
        assert (await fetch(broker, f"{other}?{split.query}"))[0].status == 403
        expired = signer.sign(split.path, "default", age_s=-1)
        assert (await fetch(broker, expired))[0].status == 403
        foreign = signer.output_url("other-tenant", held.job_id, stored["name"])
        assert (await fetch(broker, foreign))[0].status == 404
        assert (await broker.json("PUT", f"{split.path}?{split.query}", data=b"x"))[0] in (401, 404, 405)


async def test_the_lease_also_opens_the_tenant_s_files(broker: Broker) -> None:
    async with held_job(broker) as (_, held):
        await put(broker, held)
        path = f"/api/jobs/{held.job_id}/outputs/1-0.png"
        assert (await fetch(broker, path, **ticket(held)))[0].status == 200
        stale = {"Authorization": f"Lease {held.job_id}.1.{'f' * 32}"}
        assert (await fetch(broker, path, **stale))[0].status == 409


# -- input files -------------------------------------------------------------------------------------------------------


async def test_an_asset_travels_once(broker: Broker) -> None:
    digest = blake3(PNG).hexdigest()
    path = f"/api/assets/{digest}"
    assert (await fetch(broker, path, "HEAD"))[0].status == 404
    assert await broker.json("PUT", f"{path}?filename=cat.png", data=PNG) == (
        201,
        {"asset": f"blake3:{digest}", "hash": f"blake3:{digest}", "size": len(PNG), "content_type": "image/png",
         "filename": "cat.png"},
    )  # fmt: skip
    assert (await broker.json("PUT", path, data=PNG))[0] == 200
    assert (await fetch(broker, path, "HEAD"))[0].status == 200
    response, body = await fetch(broker, path)
    assert (response.status, body, response.headers["Content-Type"]) == (200, PNG, "image/png")
    assert (await fetch(broker, path, Range="bytes=0-3"))[1] == PNG[:4]


async def test_an_asset_with_another_hash_is_refused(broker: Broker, tmp_path: Path) -> None:
    digest = blake3(PNG).hexdigest()
    status, body = await broker.json("PUT", f"/api/assets/{digest}", data=b"other")
    assert (status, body["code"], body["details"]["reason"]) == (409, "conflict", "hash_mismatch")
    assert stored_files(tmp_path) == []
    await broker.json("PUT", f"/api/assets/{digest}", data=PNG)
    assert (await broker.json("PUT", f"/api/assets/{digest}", data=b"other"))[0] == 409
    assert (await fetch(broker, f"/api/assets/{digest}"))[1] == PNG
    for bad in ("xyz", "..%2f..%2fsecret", "0" * 63, "g" * 64):
        assert (await broker.json("PUT", f"/api/assets/{bad}", data=PNG))[0] in (400, 404)


async def test_a_form_may_bring_several_files(broker: Broker) -> None:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("note", "not a file")
    form.add_field("image", PNG, filename="../../cat.png", content_type="text/html")
    form.add_field("image", b"GIF89a", filename="b.gif")
    status, body = await broker.json("POST", "/api/assets", data=form)
    assert status == 201
    assert [a["hash"] for a in body["assets"]] == [f"blake3:{blake3(d).hexdigest()}" for d in (PNG, b"GIF89a")]
    assert [a["filename"] for a in body["assets"]] == ["cat.png", "b.gif"]
    assert body["hash"] == body["assets"][0]["hash"]
    response, content = await fetch(broker, f"/api/assets/{blake3(PNG).hexdigest()}")
    assert (content, response.headers["Content-Type"]) == (PNG, "image/png")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"x", "text/plain"),
        (b"", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=b"),
        (b"--b\r\n\r\nx", "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n', "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="a"; filename="x"\r\n\r\nx', "multipart/form-data; boundary=b"),
    ],
)
async def test_a_form_that_is_none_is_refused(broker: Broker, tmp_path: Path, body: bytes, kind: str) -> None:
    status, answer = await broker.json("POST", "/api/assets", data=body, headers={"Content-Type": kind})
    assert (status, answer["code"]) == (400, "bad_message")
    assert stored_files(tmp_path) == [] or b'filename="x"' in body


# -- room --------------------------------------------------------------------------------------------------------------


async def test_files_go_when_the_record_has_gone(broker: Broker, tmp_path: Path) -> None:
    store = broker.server.app[STORE]
    async with held_job(broker) as (_, held):
        await put(broker, held)
        [kept, *_] = stored_files(tmp_path)
        orphans = kept.parents[2] / "no-such-job" / "1"
        orphans.mkdir(parents=True)
        for path in stored_files(tmp_path):
            (orphans / path.name).write_bytes(path.read_bytes())
        cleaner = Cleaner(store, broker.queue, min_age_s=100)
        assert await cleaner.round() == 0
        for path in stored_files(tmp_path):
            os.utime(path, (0, 0))
        assert await cleaner.round() == 1
        assert {path.parent for path in stored_files(tmp_path)} == {kept.parent}
        assert await cleaner.round(limit=1) == 0


async def test_a_full_disk_is_507(start_broker: Start, small_disk: Path) -> None:
    broker = await start_broker(data=small_disk)
    async with held_job(broker) as (_, held):
        status, body = await put(broker, held, data=io.BytesIO(bytes(12_000_000)))
        assert (status, body["code"], body["details"]["reason"]) == (507, "unavailable", "storage_full")
        assert "disk is full" in body["error"]
        assert (await put(broker, held))[0] == 201
