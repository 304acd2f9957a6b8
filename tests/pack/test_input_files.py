"""Input files between a server and the disk: caching, resuming, broken files, full disks."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from blake3 import blake3
from PIL import Image

from comfyui_emq_node.input_cache import InputCache, Part
from comfyui_emq_node.inputs import Inputs, InputUnavailable
from comfyui_emq_node.queue import Claimed, Uploads
from tests.support.waiting import wait_until

JOB = Claimed("default", "job1", 1, "lease", b"{}", uploads=Uploads("", "Lease job1.1.lease"))


def picture(colour: tuple[int, int, int] = (1, 2, 3), kind: str = "PNG", side: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, kind)
    return buffer.getvalue()


def digest_of(content: bytes) -> str:
    return blake3(content).hexdigest()


class WatchedCache(InputCache):
    """Shows the files that are being written."""

    def __init__(self, folder: Path, budget: int) -> None:
        super().__init__(lambda: str(folder), budget)
        self.parts: list[Part] = []

    def part(self) -> Part:
        self.parts.append(super().part())
        return self.parts[-1]


class Site:
    """A web server that plays a broker's part and a public one's; counts what it sends."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[web.Request] = []
        self.asked = asyncio.Event()
        self.cut_after: list[int] = []
        """How many bytes of the next answers are sent before the connection is cut."""
        self.taken: Callable[[], int] = lambda: 0
        """How many bytes of its file the client has written."""
        self.answers: list[web.Response] = []
        """What the next requests get instead of a file."""
        self.slow_s = 0.0
        self.tags = True
        app = web.Application()
        app.router.add_get("/{tail:.*}", self.serve)
        self.server = TestServer(app)

    def url(self, path: str) -> str:
        return str(self.server.make_url(path))

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.asked.set()
        if self.answers:
            return self.answers.pop(0)
        content = self.files.get(request.path)
        if content is None:
            return web.json_response({"code": "not_found", "error": "There is no such file."}, status=404)
        tag = f'"{digest_of(content)}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        start = 0
        if (span := request.headers.get("Range")) and request.headers.get("If-Range") == tag:
            start = int(span.removeprefix("bytes=").rstrip("-"))
        headers = {"ETag": tag} if self.tags else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(content) - start
        await response.prepare(request)
        await asyncio.sleep(self.slow_s)
        cut = self.cut_after.pop(0) if self.cut_after else len(content)
        await response.write(content[start : start + cut])
        if start + cut < len(content):
            # What waits to be read when a connection breaks is lost to the client.
            await wait_until(lambda: self.taken() == start + cut, 30, "the client has written what was sent")
            assert request.transport is not None
            request.transport.close()
        return response


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    async with site.server:
        yield site


@pytest.fixture
async def inputs(site: Site, tmp_path: Path) -> AsyncIterator[Inputs]:
    async for each in made(site, tmp_path):
        yield each


async def made(site: Site, folder: Path, budget: int = 10**9) -> AsyncIterator[Inputs]:
    kinds = {"LoadImage": "image", "LoadLatent": "latent", "LoadAudio": "audio", "LoadVideo": "video"}
    cache = WatchedCache(folder, budget)
    site.taken = lambda: cache.parts[-1].size if cache.parts else 0
    inputs = Inputs(lambda _: [site.url("/")], cache, lambda name, _: kinds.get(name))
    inputs.policy = "any"
    yield inputs
    for job_id in list(inputs._held):
        inputs.release(job_id)
    await inputs.close()


async def get(inputs: Inputs, source: Any, class_type: str = "LoadImage", job_id: str = "job1") -> str:
    """What a node's input is set to."""
    graph: dict[str, Any] = {"1": {"class_type": class_type, "inputs": {"image": "?"}}}
    job = Claimed("default", job_id, 1, "lease", b"{}", uploads=JOB.uploads)
    await inputs.place(job, graph, {"1.image": source})
    return str(graph["1"]["inputs"]["image"])


async def refusal(inputs: Inputs, source: Any, class_type: str = "LoadImage") -> InputUnavailable:
    with pytest.raises(InputUnavailable) as caught:
        await get(inputs, source, class_type)
    return caught.value


def leftovers(folder: Path) -> list[str]:
    return [each.name for each in (folder / "emq").glob(".part-*")] if (folder / "emq").exists() else []


# -- names ------------------------------------------------------------------------------------------------------------

LABELS = {
    "cat.png": ".png", "CAT.JPeG": ".jpeg", "../../etc/passwd": ".png", "..\\x.png": ".png", "C:\\a.webp": ".webp",
    "a.png\x00.html": ".png", "x.html": ".png", "x.svg": ".png", "x.py": ".png", ".png": ".png", "x.png/": ".png",
    "a.png ": ".png", "CON": ".png", "x." + "y" * 300: ".png", "é.png": ".png", "": ".png", "x.p/g": ".png",
}  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
async def test_a_label_gives_at_most_an_ending(inputs: Inputs, tmp_path: Path, label: str) -> None:
    content = picture()
    name = await get(inputs, {"base64": base64.b64encode(content).decode(), "filename": label})
    assert name == f"emq/{digest_of(content)}{LABELS[label]}"
    assert (tmp_path / name).read_bytes() == content
    assert os.listdir(tmp_path) == ["emq"]


# -- fetching ---------------------------------------------------------------------------------------------------------


async def test_what_is_here_is_not_fetched_again(site: Site, inputs: Inputs) -> None:
    content = picture()
    asset, url = f"/api/assets/{digest_of(content)}", "/cat"
    site.files = {asset: content, url: content, "/api/jobs/j/outputs/by-node/2/0": content}
    sources = [
        {"asset": f"blake3:{digest_of(content)}"},
        {"url": site.url(url), "filename": "c.png"},
        {"output": {"job_id": "j", "node_id": "2", "index": 0}},
    ]
    names = [await get(inputs, source) for source in sources * 2]
    assert set(names) == {f"emq/{digest_of(content)}.png"}
    assert inputs.fetched_bytes == 2 * len(content)  # the asset, and the URL before its server had told what it is
    assert all(request.headers["Authorization"] == "Lease job1.1.lease" for request in site.requests
               if request.path.startswith("/api/"))  # fmt: skip
    assert not any("Authorization" in request.headers for request in site.requests if request.path == url)


async def test_a_file_that_a_tenant_does_not_have_is_not_given_from_the_cache(site: Site, inputs: Inputs) -> None:
    content = picture()
    await get(inputs, {"base64": base64.b64encode(content).decode()})
    error = await refusal(inputs, {"asset": f"blake3:{digest_of(content)}"})
    assert "There is no such file" in str(error)
    assert error.failure.retry is False


async def test_a_web_server_cannot_name_a_file_of_the_cache(site: Site, inputs: Inputs) -> None:
    secret = picture((9, 9, 9))
    await get(inputs, {"base64": base64.b64encode(secret).decode()})
    mine = picture((1, 1, 1))
    site.answers = [web.Response(body=mine, headers={"ETag": f'"{digest_of(secret)}"'})]
    assert digest_of(mine) in await get(inputs, {"url": site.url("/x")})


async def test_the_same_file_is_fetched_once_for_all_who_want_it(site: Site, inputs: Inputs) -> None:
    content = picture()
    asset = f"/api/assets/{digest_of(content)}"
    site.files, site.slow_s = {asset: content, "/cat": content}, 0.1
    site.tags = False
    same = {"asset": f"blake3:{digest_of(content)}"}
    await asyncio.gather(*(get(inputs, same, job_id=f"job{number}") for number in range(5)))
    await asyncio.gather(*(get(inputs, {"url": site.url("/cat")}, job_id=f"other{number}") for number in range(5)))
    assert inputs.fetched_bytes == 2 * len(content)
    assert sum(request.path == "/cat" for request in site.requests) == 1


async def test_a_url_whose_content_changes_is_fetched_anew(site: Site, inputs: Inputs) -> None:
    for colour in ((1, 1, 1), (2, 2, 2)):
        site.files["/cat.png"] = picture(colour)
        assert digest_of(site.files["/cat.png"]) in await get(inputs, {"url": site.url("/cat.png")})


async def test_a_broken_download_goes_on_where_it_was(site: Site, inputs: Inputs) -> None:
    content = os.urandom(300_000)
    site.files, site.cut_after = {"/big.bin": content}, [100_000, 50_000, 50_000]
    name = await get(inputs, {"url": site.url("/big.bin")}, "Other")
    assert name == f"emq/{digest_of(content)}.bin"
    assert [request.headers.get("Range") for request in site.requests] == [
        None, "bytes=100000-", "bytes=150000-", "bytes=200000-",
    ]  # fmt: skip
    assert inputs.fetched_bytes == len(content)


async def test_a_file_that_changes_during_its_download_is_not_put_together_from_two(site: Site, inputs: Inputs) -> None:
    first, second = os.urandom(200_000), os.urandom(200_000)
    site.files, site.cut_after = {"/x.bin": first}, [100_000]

    async def change() -> None:
        await site.asked.wait()
        site.files["/x.bin"] = second

    name, _ = await asyncio.gather(get(inputs, {"url": site.url("/x.bin")}, "Other"), change())
    assert name == f"emq/{digest_of(second)}.bin"


async def test_a_server_without_entity_tags_is_asked_for_the_whole(site: Site, inputs: Inputs) -> None:
    content = os.urandom(200_000)
    site.files, site.cut_after, site.tags = {"/x.bin": content}, [100_000], False
    assert digest_of(content) in await get(inputs, {"url": site.url("/x.bin")}, "Other")
    assert [request.headers.get("Range") for request in site.requests] == [None, None]


async def test_a_server_that_is_busy_is_asked_again(site: Site, inputs: Inputs) -> None:
    site.files = {"/cat.png": picture()}
    site.answers = [web.Response(status=503), web.Response(status=429)]
    await get(inputs, {"url": site.url("/cat.png")})


async def test_a_download_that_never_gets_anywhere_fails_and_may_be_tried_elsewhere(
    site: Site, inputs: Inputs, tmp_path: Path
) -> None:
    site.answers = [web.Response(status=503) for _ in range(9)]
    error = await refusal(inputs, {"url": site.url("/cat.png")})
    assert (error.failure.code, error.failure.retry) == ("input_unavailable", True)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (web.Response(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data/"}), "another address"),
        (web.Response(status=404, text="secret page of the inside"), "HTTP 404"),
        (
            web.json_response({"error": "secret", "code": "x"}, status=403),
            "HTTP 403",
        ),
        (web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), "compressed"),
        (web.Response(body=b""), "empty"),
        (web.Response(text="<html>please log in</html>", content_type="text/html"), "no picture"),
    ],
    ids=["redirect", "missing", "forbidden", "compressed", "empty", "log-in page"],
)
async def test_answers_that_are_no_file_say_so(
    site: Site, inputs: Inputs, tmp_path: Path, answer: web.Response, reason: str
) -> None:
    site.answers = [answer]
    error = await refusal(inputs, {"url": site.url("/cat.png")})
    assert reason in str(error)
    assert "secret" not in str(error.failure)
    assert (error.failure.code, error.failure.retry) == ("input_unavailable", False)
    assert len(site.requests) == 1
    assert leftovers(tmp_path) == []


async def test_the_rule_for_urls_holds(site: Site, inputs: Inputs) -> None:
    site.files = {"/cat.png": picture()}
    for rule, reason in (("public", "no public address"), ("off", "EMQ_INPUT_URLS"), ("allow:example.com", "list")):
        inputs.policy = rule
        assert reason in str(await refusal(inputs, {"url": site.url("/cat.png")}))
    assert site.requests == []
    inputs.policy = "allow:127.0.0.1"
    await get(inputs, {"url": site.url("/cat.png")})


async def test_the_rule_comes_with_the_job(site: Site, inputs: Inputs) -> None:
    """A broker that was started anew with another rule, or another pool's, need not tell its workers first."""
    site.files = {"/cat.png": picture()}
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "?"}}}
    job = Claimed("default", "job2", 1, "lease", b"{}", input_urls="off")
    with pytest.raises(InputUnavailable, match="EMQ_INPUT_URLS"):
        await inputs.place(job, graph, {"1.image": {"url": site.url("/cat.png")}})


# -- checking ---------------------------------------------------------------------------------------------------------


def latent(**changes: bytes) -> bytes:
    header = changes.get("header", b'{"latent_tensor":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')
    return len(header).to_bytes(8, "little") + header + changes.get("data", b"\0" * 4)


BROKEN = [
    ("LoadImage", b"no picture at all", "no picture"),
    ("LoadImage", picture(side=400, kind="JPEG")[:1500], "no picture"),
    ("LoadImage", picture()[:40], "no picture"),
    ("LoadImage", latent(), "no picture"),
    ("LoadLatent", picture(), "no latent"),
    ("LoadLatent", latent(header=b'{"weight":{"data_offsets":[0,4]}}'), "no latent_tensor"),
    ("LoadLatent", latent(data=b""), "cut off"),
    ("LoadLatent", b"\xff" * 40, "no latent"),
    ("Other", b"", "empty"),
]


@pytest.mark.parametrize(("class_type", "content", "reason"), BROKEN)
async def test_a_file_that_is_not_what_the_node_takes(
    inputs: Inputs, class_type: str, content: bytes, reason: str
) -> None:
    error = await refusal(inputs, {"base64": base64.b64encode(content).decode(), "filename": "a.png"}, class_type)
    assert reason in str(error)
    assert (error.failure.code, error.failure.retry) == ("input_unavailable", False)


async def test_hash_and_size_are_compared(site: Site, inputs: Inputs) -> None:
    content = picture()
    site.files = {"/cat.png": content, f"/api/assets/{'0' * 64}": content}
    good = {"url": site.url("/cat.png"), "hash": f"blake3:{digest_of(content)}", "size": len(content)}
    await get(inputs, good)
    assert "another hash" in str(await refusal(inputs, {**good, "hash": f"blake3:{'1' * 64}"}))
    assert "bytes" in str(await refusal(inputs, {**good, "size": 5}))
    assert "another hash" in str(await refusal(inputs, {"asset": f"blake3:{'0' * 64}"}))


# -- the cache --------------------------------------------------------------------------------------------------------


async def test_what_was_not_used_for_longest_goes_and_what_is_used_stays(site: Site, tmp_path: Path) -> None:
    async for inputs in made(site, tmp_path, budget=250_000):
        names = {}
        for number in range(5):
            site.files[f"/{number}.bin"] = os.urandom(100_000)
            names[number] = await get(inputs, {"url": site.url(f"/{number}.bin")}, "Other", f"job{number}")
            if number in (1, 2):
                inputs.release(f"job{number}")
        there = {number for number, name in names.items() if (tmp_path / name).exists()}
        assert there == {0, 3, 4}, "0, 3 and 4 are held by jobs, whatever the budget says"


async def test_another_process_keeps_its_files(site: Site, inputs: Inputs, tmp_path: Path) -> None:
    """Several ComfyUIs may share an input folder: what one of them uses, no other one drops."""
    name = await get(inputs, {"base64": base64.b64encode(picture()).decode()})
    other = InputCache(lambda: str(tmp_path), 0)
    (tmp_path / "emq" / ".part-dead").write_bytes(b"what a killed process left")
    await asyncio.to_thread(other.make_room)
    assert [each.name for each in (tmp_path / "emq").iterdir()] == [Path(name).name]
    inputs.release("job1")
    await asyncio.to_thread(other.make_room)
    assert list((tmp_path / "emq").iterdir()) == []


async def test_what_a_killed_process_left_goes_at_the_start(inputs: Inputs, tmp_path: Path) -> None:
    name = await get(inputs, {"base64": base64.b64encode(picture()).decode()})
    inputs.release("job1")
    (tmp_path / "emq" / ".part-dead").write_bytes(b"half")
    await asyncio.to_thread(InputCache(lambda: str(tmp_path), 10**9).tidy)
    assert os.listdir(tmp_path / "emq") == [Path(name).name]


async def test_a_file_that_a_power_cut_has_spoiled_is_fetched_again(site: Site, inputs: Inputs, tmp_path: Path) -> None:
    content = picture()
    site.files = {f"/api/assets/{digest_of(content)}": content}
    (tmp_path / "emq").mkdir()
    (tmp_path / "emq" / f"{digest_of(content)}.png").write_bytes(content[:20])
    name = await get(inputs, {"asset": f"blake3:{digest_of(content)}", "filename": "a.png"})
    assert (tmp_path / name).read_bytes() == content
    assert inputs.fetched_bytes == len(content)


async def test_the_same_content_under_another_ending_is_one_file(inputs: Inputs, tmp_path: Path) -> None:
    text = base64.b64encode(picture()).decode()
    names = [await get(inputs, {"base64": text, "filename": label}) for label in ("a.png", "a.webp")]
    first, second = ((tmp_path / name).stat() for name in names)
    assert [Path(name).suffix for name in names] == [".png", ".webp"]
    assert first.st_ino == second.st_ino


async def test_the_time_of_change_stays_when_a_file_is_used_again(inputs: Inputs, tmp_path: Path) -> None:
    """ComfyUI's video loader takes a file for new by it, and would run again."""
    source = {"base64": base64.b64encode(picture()).decode()}
    path = tmp_path / await get(inputs, source)
    before = path.stat()
    await asyncio.sleep(0.01)
    await get(inputs, source)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert path.stat().st_atime_ns > before.st_atime_ns


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_is_told_and_nothing_half_done_is_left(site: Site, small_disk: Path) -> None:
    site.files = {"/big.bin": os.urandom(3 << 20), "/a.bin": os.urandom(700_000), "/b.bin": os.urandom(700_000)}
    async for inputs in made(site, small_disk):
        await get(inputs, {"url": site.url("/a.bin")}, "Other", "first")
        error = await refusal(inputs, {"url": site.url("/b.bin")}, "Other")
        assert error.failure.code == "worker_disk_full"
        assert len(list((small_disk / "emq").iterdir())) == 1
        inputs.release("first")  # what no job uses makes room
        await get(inputs, {"url": site.url("/b.bin")}, "Other", "second")
        inputs.release("second")
        assert (await refusal(inputs, {"url": site.url("/big.bin")}, "Other")).failure.code == "worker_disk_full"
        assert list((small_disk / "emq").iterdir()) == []
