"""The store in a bucket: the same promises as on a disk, nothing left behind, and ways around the broker."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.errors import ConfigurationError, Conflict, NotFound
from broker.files.meter import Expected
from broker.files.opening import open_objects, open_store
from broker.files.store import DIRECT_FROM, FileStore
from tests.files.conftest import Announce, Stream
from tests.support.files import ANY_CONTENT
from tests.support.proxy import proxy
from tests.support.s3 import Bucket
from tests.support.waiting import wait_until

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
BIG = bytes(range(256)) * (13 << 12)
"""13 MB: three parts."""


@pytest.fixture
def cloud(bucket: Bucket, tmp_path: Path) -> FileStore:
    return open_store(tmp_path, "pool/outputs", bucket.store_url, ("GET", "PUT"))


async def content(store: FileStore, key: str, *span: int) -> bytes:
    return b"".join([chunk async for chunk in store.read(await store.stat(key), *span)])


async def test_a_file_comes_back(cloud: FileStore, bucket: Bucket, stream: Stream, announce: Announce) -> None:
    file, new = await cloud.put("t/j/1", "0", stream(PNG[:5], PNG[5:]), label="cat.png", expected=announce(PNG))
    assert new
    assert file.hash == f"blake3:{blake3(PNG).hexdigest()}"
    assert await cloud.stat("t/j/1/0") == file
    assert await content(cloud, "t/j/1/0") == PNG
    assert await content(cloud, "t/j/1/0", 2, 6) == PNG[2:6]
    assert sorted(bucket.listed()) == sorted(f"pre/fix/pool/outputs/{key}" for key in (file.key, file.data))
    assert (await cloud.put("t/j/1", "0", stream(PNG), label="cat.png", expected=announce(PNG))) == (file, False)
    await cloud.put("t/j/1", "0", stream(b"other"), label="cat.png", expected=announce(b"other"))
    assert await content(cloud, "t/j/1/0") == b"other"
    assert len(bucket.listed()) == 2
    with pytest.raises(NotFound):
        await cloud.stat("t/j/1/1")


async def test_a_small_file_that_is_refused_leaves_nothing_and_keeps_the_old_one(
    cloud: FileStore, bucket: Bucket, stream: Stream, announce: Announce
) -> None:
    await cloud.put("t/j/1", "0", stream(b"old"), label="x", expected=ANY_CONTENT)
    before = sorted(bucket.listed())

    async def refuse() -> None:
        raise Conflict("no longer yours")

    with pytest.raises(Conflict):
        await cloud.put("t/j/1", "0", stream(PNG), label="x", expected=announce(PNG), before_commit=refuse)
    assert sorted(bucket.listed()) == before
    assert await content(cloud, "t/j/1/0") == b"old"


async def test_a_big_file_goes_in_parts(cloud: FileStore, bucket: Bucket, stream: Stream) -> None:
    pieces = [BIG[i : i + (1 << 20)] for i in range(0, len(BIG), 1 << 20)]
    file, _ = await cloud.put("t/j/1", "0", stream(*pieces), label="x", expected=ANY_CONTENT)
    assert (file.size, await content(cloud, file.key, 6_000_000, 6_000_010)) == (len(BIG), BIG[6_000_000:6_000_010])
    entity_tag = bucket.server.client.head_object(Bucket=bucket.name, Key=f"pre/fix/pool/outputs/{file.data}")["ETag"]
    assert entity_tag.endswith('-3"')
    assert bucket.unfinished() == []


async def test_an_upload_that_is_refused_or_given_up_leaves_no_parts(
    cloud: FileStore, bucket: Bucket, stream: Stream
) -> None:
    pieces = [BIG[i : i + (1 << 20)] for i in range(0, len(BIG), 1 << 20)]
    with pytest.raises(Conflict):
        await cloud.put("t/j/1", "0", stream(*pieces), label="x", expected=Expected(limit=1 << 30, size=7))
    arrived = asyncio.Event()

    async def hanging() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        arrived.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(cloud.put("t/j/1", "1", hanging(), label="x", expected=ANY_CONTENT))
    await asyncio.wait_for(arrived.wait(), 60)
    await wait_until(bucket.unfinished, what="parts arrive")
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    await wait_until(lambda: not bucket.unfinished(), what="the parts are taken back")
    assert bucket.listed() == []


async def test_a_deleted_folder_is_gone_from_the_bucket(cloud: FileStore, bucket: Bucket, stream: Stream) -> None:
    for job in ("j1", "j12"):
        await cloud.put(f"t/{job}/1", "0", stream(b"x"), label="x", expected=ANY_CONTENT)
    assert await cloud.folders("t") == ["t/j1", "t/j12"]
    assert await cloud.last_modified("t/j1") is not None
    assert await cloud.delete_folder("t/j1") == 2
    assert await cloud.folders("t") == ["t/j12"]
    await cloud.delete("t/j12/1/0")
    assert bucket.listed() == []


async def test_a_reader_may_be_sent_to_the_bucket(cloud: FileStore, stream: Stream) -> None:
    shown, _ = await cloud.put("t/j/1", "0", stream(PNG), label="cät.png", expected=ANY_CONTENT)
    page, _ = await cloud.put("t/j/1", "1", stream(b"<html>"), label="x.png", expected=ANY_CONTENT)
    async with aiohttp.ClientSession() as http:
        for file, kind, disposition in (
            (shown, "image/png", "inline; filename=\"c_t.png\"; filename*=UTF-8''c%C3%A4t.png"),
            (page, "application/octet-stream", 'attachment; filename="x.png"'),
        ):
            url = await cloud.direct_url(file)
            assert url is not None
            async with http.get(url) as answer:
                assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
                assert answer.headers["Content-Disposition"] == disposition


async def test_a_sender_may_be_sent_to_the_bucket(cloud: FileStore, bucket: Bucket, stream: Stream) -> None:
    """What it brings is looked at before anybody gets it: the size, and the type by its bytes."""
    video = b"\x00\x00\x00\x1cftypisom" + bytes(DIRECT_FROM)
    digest = f"blake3:{blake3(video).hexdigest()}"
    expected = Expected(limit=1 << 30, size=len(video), hash=digest)
    assert cloud.takes_directly(expected)
    assert not cloud.takes_directly(Expected(limit=1 << 30, size=DIRECT_FROM - 1, hash=digest))
    assert not cloud.takes_directly(Expected(limit=1 << 30, size=DIRECT_FROM))
    file, url = await cloud.promise("t/j/1", "0", label="a.mp4", expected=expected)
    assert file.content_type == "video/mp4"
    assert url is not None
    with pytest.raises(NotFound):
        await cloud.stat(file.key)
    async with aiohttp.ClientSession() as http:
        async with http.put(url, data=b"<html>", headers={"Content-Type": "text/html"}) as answer:
            assert answer.status == 200
        with pytest.raises(NotFound):
            await cloud.stat(file.key)
        async with http.put(url, data=io.BytesIO(video), headers={"Content-Type": "text/html"}) as answer:
            assert answer.status == 200
    seen = await cloud.stat(file.key)
    assert (seen.content_type, seen.size, seen.hash, seen.promised) == ("video/mp4", len(video), digest, False)
    assert await cloud.direct_url(seen) is None, "the bucket would call it what its sender did"
    assert await cloud.promise("t/j/1", "0", label="a.mp4", expected=expected) == (seen, None)
    assert await cloud.stat(file.key) == seen
    assert await content(cloud, file.key, 0, 12) == video[:12]
    await cloud.put("t/j/1", "0", stream(b"other"), label="x", expected=ANY_CONTENT)
    assert len(bucket.listed()) == 2


async def test_a_download_goes_on_when_the_bucket_s_connection_breaks(
    bucket: Bucket, tmp_path: Path, stream: Stream
) -> None:
    port = int(bucket.server.url.rpartition(":")[2])
    async with proxy(port, resp=False) as way:
        store = open_store(tmp_path, "o", f"s3://{bucket.name}?endpoint=http://127.0.0.1:{way.port}")
        pieces = [BIG[i : i + (1 << 20)] for i in range(0, len(BIG), 1 << 20)]
        file, _ = await store.put("t", "0", stream(*pieces), label="x", expected=ANY_CONTENT)
        got = bytearray()
        async for chunk in store.read(file):
            if not got:
                way.cut()
            got += chunk
        assert bytes(got) == BIG


def account(folder: Path) -> str:
    """A Google service account's key file, with a private key that nobody else has."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path = folder / "account.json"
    path.write_text(json.dumps({
        "type": "service_account", "client_email": "emq@example.iam.gserviceaccount.com", "private_key_id": "1",
        "private_key": pem.decode(), "token_uri": "https://oauth2.googleapis.com/token",
    }))  # fmt: skip
    return str(path)


@pytest.mark.parametrize(
    ("url", "methods", "address"),
    [
        ("gs://box/pre/fix", {"GET", "PUT"}, "https://storage.googleapis.com/box/pre/fix/pool/outputs/t/j/1/~0"),
        ("az://box/pre/fix", {"GET"}, "https://shop.blob.core.windows.net/box/pre/fix/pool/outputs/t/j/1/~0"),
    ],
)
async def test_other_clouds_are_set_up_and_sign_for_who_may_go_there(
    url: str, methods: set[str], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials come from the variables that the documents name; signing needs nobody else."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", account(tmp_path))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "shop")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(bytes(64)).decode())
    objects = open_objects(tmp_path, "pool/outputs", url)
    assert (objects.is_local, set(objects.signs)) == (False, methods)
    for method in objects.signs:
        signed = await objects.signed_url("PUT" if method == "PUT" else "GET", "t/j/1/~0", 60)
        assert signed is not None
        assert urlsplit(signed)._replace(query="").geturl().replace("%7E", "~") == address
        assert {"X-Goog-Signature", "sig"} & dict(parse_qsl(urlsplit(signed).query)).keys()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "s3://bucket/x?aws_secret_access_key=x",
        "s3://key:secret@bucket/x",
        "file://folder/x",
        "bucket",
    ],
)
def test_a_url_that_is_none_of_a_store(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_objects(tmp_path, "outputs", url)
    assert "secret" not in str(caught.value)


async def test_a_bucket_that_is_not_there_is_told_at_the_start(bucket: Bucket, tmp_path: Path) -> None:
    await open_store(tmp_path, "outputs", bucket.store_url).check()
    missing = open_store(tmp_path, "outputs", f"s3://no-such-bucket/x?endpoint={bucket.server.url}")
    with pytest.raises(ConfigurationError, match="EMQ_STORE_URL"):
        await missing.check()


async def test_a_folder_by_url(tmp_path: Path, stream: Stream) -> None:
    store = open_store(Path("/nowhere"), "outputs", f"file://{tmp_path}/a%20b")
    await store.put("t", "0", stream(b"x"), label="x", expected=ANY_CONTENT)
    assert (tmp_path / "a b/outputs/t/0").is_file()


async def test_a_broker_with_its_own_disk_does_not_load_the_clouds_library() -> None:
    """It is 5 MB."""
    code = "import sys, broker.app, broker.cli.serve; print('obstore' in sys.modules)"
    asked = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    said, _ = await asked.communicate()
    assert said == b"False\n"
