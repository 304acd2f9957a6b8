"""Jobs leave a queue with their files and come back, and run on a plain ComfyUI."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from broker.client import Client, JobCancelled
from broker.errors import BadMessage
from broker.files.meter import Expected
from broker.files.opening import open_store
from broker.files.outputs import tenant_folder
from broker.files.store import FileStore
from broker.jobs.archive import JOBS, Archive, ArchivedJob
from broker.jobs.export import REASON, Exported, Exporter, Imported, Importer, Stores
from broker.jobs.fleet import Fleet
from broker.jobs.replay import Replay
from broker.jobs.submission import Submitter
from broker.protocol.base import now_ms
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from broker.settings import Settings
from tests.api.conftest import GRAPH
from tests.support.comfyui import ComfyProcess, fails, node
from tests.support.commands import emq, serving
from tests.support.jobs import profile
from tests.support.simulated import SimulatedWorker

CONTENT = b"a file" * 1000
HASH = f"blake3:{blake3(CONTENT).hexdigest()}"


async def chunks(content: bytes) -> Any:
    yield content


class Place:
    """A queue with its stores."""

    def __init__(self, queue: Queue, data: Path) -> None:
        self.queue = queue
        self.stores = Stores(open_store(data, "p/outputs"), open_store(data, "p/assets"))
        self.submitter = Submitter(queue, Fleet(queue), Settings())

    async def submit(self, tenant: str = "ann", **fields: Any) -> str:
        message = {"type": "submit_job", "payload": {"workflow": GRAPH}, **fields}
        accepted = await self.submitter.submit(tenant, message)
        assert accepted.job_id is not None
        return accepted.job_id

    async def keep(self, store: FileStore, folder: str, name: str | None = None) -> None:
        await store.put(folder, name, chunks(CONTENT), label="cat.png", expected=Expected(limit=1 << 20))

    async def export(self, archive: Archive, take: bool = False, tenant: str = "") -> Exported:
        return await Exporter(self.queue, self.stores, archive).run(tenant, take)

    async def bring(self, archive: Archive) -> Imported:
        return await Importer(self.queue, self.submitter, self.stores.assets, archive).run(now_ms())

    async def status(self, job_id: str) -> str:
        return (await self.queue.job(job_id)).text("status")


@pytest.fixture
def place(queue: Queue, tmp_path: Path) -> Place:
    return Place(queue, tmp_path / "data")


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "export")


async def test_what_waits_is_written_and_comes_back_under_its_id(
    place: Place, archive: Archive, connection: Any, pool: str, tmp_path: Path
) -> None:
    first = await place.submit(priority=7, metadata={"order": 5}, max_attempts=5, timeout_s=30, group="g")
    child = await place.submit(depends_on=[first], on_parent_failure="run")
    later = await place.submit(tenant="bob", delay_s=3600, requirements={"tags": ["big"]})
    short = await place.submit(expires_s=1800)
    done = await place.export(archive)
    assert (done.written, done.known, done.taken, done.missing) == (4, 0, 0, [])
    assert [job.job_id for job in archive.jobs()] == [first, child, later, short]
    assert (await place.export(archive)).known == 4, "a second run writes nothing twice"
    assert len(archive.jobs()) == 4

    other = Place(Queue(connection, f"{pool}-other"), tmp_path / "other")
    await other.queue.configure()
    began = now_ms()
    assert (await other.bring(archive)).submitted == 4
    took_ms = now_ms() - began
    assert (await other.bring(archive)).known == 4, "a second run submits nothing twice"
    for job_id in (first, child, later, short):
        old, new = await place.queue.job(job_id), await other.queue.job(job_id)
        same = ("status", "tenant", "priority", "max_attempts", "timeout_s", "group", "job_type", "class")
        assert [old.text(name) for name in same] == [new.text(name) for name in same]
        bodies = [await one.queue.payload(job_id) for one in (place, other)]
        assert bodies[0].pairs["payload"] == bodies[1].pairs["payload"]
        assert bodies[0].pairs["spec"] == bodies[1].pairs["spec"]
    due = [(await one.queue.job(later)).number("due_at") for one in (place, other)]
    assert due[0] == due[1]
    ends = [(await one.queue.job(short)).number("expires_at") for one in (place, other)]
    assert -5 <= ends[1] - ends[0] <= took_ms + 5, "later by what passed in the import at most, and rounding"


async def test_taken_jobs_are_cancelled_here_and_put_back_by_an_import(place: Place, archive: Archive) -> None:
    parent = await place.submit()
    child = await place.submit(depends_on=[parent])
    worker = SimulatedWorker(place.queue, profile=profile(nodes=("EmptyImage", "SaveImage")))
    await worker.register()
    running = await place.submit(priority=50)
    held = await worker.claim()
    assert held is not None
    assert held.job_id == running
    done = await place.export(archive, take=True)
    assert (done.written, done.taken) == (2, 2)
    for job_id in (parent, child):
        record = await place.queue.job(job_id)
        assert (record.text("status"), record.text("reason")) == ("cancelled", REASON)
    assert await place.status(running) == "claimed", "a job that a worker holds stays with it"
    again = await place.bring(archive)
    assert (again.returned, again.submitted, again.refused) == (2, 0, [])
    assert await place.status(parent) == "pending"
    await worker.release(held)


async def test_job_that_a_worker_takes_first_is_withdrawn(place: Place, archive: Archive) -> None:
    job = await place.submit()
    exporter = Exporter(place.queue, place.stores, archive)
    worker = SimulatedWorker(place.queue, profile=profile(nodes=("EmptyImage", "SaveImage")))
    await worker.register()
    read = exporter._read

    async def late(job_id: str) -> ArchivedJob | None:
        found = await read(job_id)
        assert await worker.claim() is not None
        return found

    exporter._read = late  # type: ignore[method-assign]
    done = await exporter.run(take=True)
    assert (done.written, done.taken) == (0, 0)
    assert archive.jobs() == []
    assert await place.status(job) == "claimed"
    await worker.bye()


async def test_files_travel_with_their_jobs(place: Place, archive: Archive, tmp_path: Path) -> None:
    await place.keep(place.stores.assets, tenant_folder("ann"))
    inputs = {"1.image": {"asset": HASH, "filename": "cat.png"}}
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "x"}}, "2": GRAPH["2"]}
    job = await place.submit(payload={"workflow": graph, "inputs": inputs})
    gone = await place.submit(payload={"workflow": graph, "inputs": {"1.image": {"asset": "blake3:" + "0" * 64}}})
    done = await place.export(archive)
    assert done.missing == [f"{gone}: input 1.image"]
    assert archive.file(HASH).read_bytes() == CONTENT
    await place.queue.cancel(job, reason=REASON)
    await place.stores.assets.delete_folder(tenant_folder("ann"))
    await place.bring(archive)
    file = await place.stores.assets.stat(f"{tenant_folder('ann')}/{HASH.removeprefix('blake3:')}")
    assert file.size == len(CONTENT)


async def test_torn_last_line_is_dropped_and_a_broken_one_named(archive: Archive) -> None:
    job = ArchivedJob("j1", "ann", 5, "pending", {"type": "submit_job", "payload": {"workflow": GRAPH}})
    archive.add([job])
    with (archive.folder / JOBS).open("a") as file:
        file.write('{"job_id": "j2", "ten')
    assert Archive.create(archive.folder).jobs() == [job]
    with (archive.folder / JOBS).open("a") as file:
        file.write("[]\n")
    with pytest.raises(BadMessage, match=r"jobs\.jsonl:2"):
        archive.jobs()
    with pytest.raises(BadMessage, match="is no export"):
        Archive.open(archive.folder / "nothing")


@pytest.mark.comfyui
@pytest.mark.timeout(240)
async def test_replay_on_a_plain_comfyui(plain_comfyui: ComfyProcess, archive: Archive, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "in.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    name = f"blake3:{blake3(picture.read_bytes()).hexdigest()}"
    await archive.keep(name, chunks(picture.read_bytes()))
    copies = {"1": node("LoadImage", image="x"), "2": node("SaveImage", images=["1", 0], filename_prefix="replayed")}
    from_file = {"workflow": copies, "inputs": {"1.image": {"asset": name, "filename": "in.png"}}}
    payloads: dict[str, dict[str, Any]] = {
        "good": from_file,
        "fails": {"workflow": fails("ValueError")},
        "unknown": {"workflow": {"1": node("NoSuchNode")}},
        "url": {"workflow": copies, "inputs": {"1.image": {"url": "http://127.0.0.1:9/x.png"}}},
    }
    archive.add(
        ArchivedJob(job_id, "ann", number, "pending", {"type": "submit_job", "payload": payload})
        for number, (job_id, payload) in enumerate(payloads.items())
    )
    async with Replay(archive, plain_comfyui.url, tmp_path / "out") as replay:
        outcomes = {outcome.job_id: outcome async for outcome in replay.run(60)}
        assert [outcomes[job_id].status for job_id in payloads] == ["completed", "failed", "skipped", "skipped"]
        assert "on purpose" in outcomes["fails"].reason
        (saved,) = outcomes["good"].files
        assert Image.open(saved).getpixel((5, 5)) == (255, 0, 0)
        assert [outcome async for outcome in replay.run(60)] == [], "a second run does nothing again"
    assert {json.loads(line)["job_id"] for line in (archive.folder / "replayed.jsonl").read_text().splitlines()} == set(
        payloads
    )


async def test_pause_resume_and_drain(valkey_url: str, pool: str, tmp_path: Path) -> None:
    """Without a broker. A drain waits for what runs, and for no longer than it is told to."""
    connection = Connection(valkey_url)
    queue = Queue(connection, pool)
    await connection.load(queue.prefix)
    # A lease that no busy machine uses up while a command starts: nobody sends heartbeats beside.
    await queue.configure(lease_ms=600_000)
    at, place = ("--redis", valkey_url, "--data", str(tmp_path)), Place(queue, tmp_path)
    jobs = [await place.submit(), await place.submit("bob")]
    worker = SimulatedWorker(queue, profile=profile(nodes=("EmptyImage", "SaveImage")), slots=2)
    await worker.register()
    held = await worker.claim(jobs[0])
    assert held is not None
    code, out, _ = await emq("drain", "--limit", "0", *at, EMQ_POOL=pool)
    assert (code, out) == (1, f"pool {pool} is paused; 1 jobs still run\n")
    assert await worker.claim() is None
    draining = asyncio.create_task(emq("drain", *at, EMQ_POOL=pool))
    await worker.report(held, 1)
    assert not draining.done()
    await worker.finish(held)
    assert (await draining)[:2] == (0, f"pool {pool} is paused, and nothing runs\n")
    assert (await emq("pause", "--tenant", "bob", *at, EMQ_POOL=pool))[0] == 0
    assert (await emq("resume", *at, EMQ_POOL=pool))[:2] == (0, f"pool {pool} goes on\n")
    assert await worker.claim() is None, "bob is paused still"
    assert (await emq("resume", "--tenant", "bob", *at, EMQ_POOL=pool))[0] == 0
    held = await worker.claim()
    assert held is not None
    assert held.job_id == jobs[1]
    code, _, err = await emq("pause", "--worker", "nobody", *at, EMQ_POOL=pool)
    assert (code, "There is no worker nobody" in err) == (1, True)
    await connection.close()


async def test_the_three_commands(valkey_url: str, pool: str, tmp_path: Path) -> None:
    folder, at = str(tmp_path / "export"), ("--redis", valkey_url, "--data", str(tmp_path / "data"))
    async with serving(*at, EMQ_POOL=pool) as broker, Client(broker.url) as client:
        job = await client.submit(GRAPH, follow=False)
        hearing = asyncio.create_task(job.result())
        code, out, _ = await emq("export", folder, "--take", *at, EMQ_POOL=pool)
        assert (code, "1 jobs exported" in out, "1 of them left" in out) == (0, True, True)
        with pytest.raises(JobCancelled, match=REASON):
            await hearing
        code, out, _ = await emq("import", folder, *at, EMQ_POOL=pool)
        assert (code, out) == (0, "0 jobs submitted, 1 put back, 0 were there already\n")
        assert (await job.record()).status == "pending"
    code, _, err = await emq("replay", folder, "--comfyui", "http://127.0.0.1:9")
    assert (code, "cannot be reached" in err) == (1, True)
    code, _, err = await emq("import", str(tmp_path), *at, EMQ_POOL=pool)
    assert (code, "is no export" in err) == (1, True)
