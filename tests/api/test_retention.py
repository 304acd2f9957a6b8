"""Files go with their job, or before it where rules say so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker.app import STORE
from broker.errors import ConfigurationError
from broker.files.cleanup import Cleaner
from broker.files.retention import KeepRules, parse_rules
from tests.api.conftest import Broker, Start
from tests.api.test_outputs import held_job, put, stored_files
from tests.support.s3 import Bucket


async def completed(broker: Broker) -> str:
    async with held_job(broker) as (worker, held):
        _, stored = await put(broker, held)
        await worker.finish(held, {"outputs": [{"node_id": "2", "kind": "image", **stored}]})
        return held.job_id


async def test_a_deleted_job_takes_its_files_with_it(broker: Broker, tmp_path: Path) -> None:
    async with held_job(broker) as (worker, held):
        await put(broker, held)
        assert (await broker.json("DELETE", f"/api/jobs/{held.job_id}"))[0] == 409
        assert stored_files(tmp_path)
        await worker.finish(held)
    status, answer = await broker.json("DELETE", f"/api/jobs/{held.job_id}")
    assert (status, answer["deleted"]) == (200, True)
    assert stored_files(tmp_path) == []
    assert (await broker.json("GET", f"/api/jobs/{held.job_id}"))[0] == 404
    assert (await broker.json("DELETE", f"/api/jobs/{held.job_id}"))[0] == 404


async def test_a_deleted_job_takes_its_files_out_of_the_bucket(start_broker: Start, bucket: Bucket) -> None:
    broker = await start_broker(store_url=bucket.store_url)
    job, other = await completed(broker), await completed(broker)
    assert (await broker.json("DELETE", f"/api/jobs/{job}"))[0] == 200
    assert {key.split("/")[5] for key in bucket.listed()} == {other}


async def test_rules_remove_files_and_keep_the_record(broker: Broker, tmp_path: Path) -> None:
    job = await completed(broker)
    store = broker.server.app[STORE]

    async def cleaned(rules: str) -> int:
        return await Cleaner(store, broker.queue, 86_400, parse_rules(rules)).round()

    assert await cleaned("failed=0,other/*=0,default/completed=60") == 0
    assert await cleaned("*=0,default/completed=60") == 0, "the most exact rule counts"
    assert len(stored_files(tmp_path)) == 2
    await asyncio.sleep(0.01)
    assert await cleaned("completed=0") == 1
    assert stored_files(tmp_path) == []
    _, record = await broker.json("GET", f"/api/jobs/{job}")
    assert record["status"] == "completed"
    assert (await broker.json("GET", record["result"]["outputs"][0]["url"]))[0] == 404


async def test_files_of_a_job_that_goes_on_stay(broker: Broker, tmp_path: Path) -> None:
    async with held_job(broker) as (_, held):
        await put(broker, held)
        assert await Cleaner(broker.server.app[STORE], broker.queue, 86_400, parse_rules("*=0")).round() == 0
        assert stored_files(tmp_path)


def test_the_rules_by_tenant_and_status() -> None:
    rules = parse_rules("completed=3600, shop/completed=60,shop/*=0,")
    found = [
        rules.seconds(*of) for of in (("a", "completed"), ("a", "failed"), ("shop", "completed"), ("shop", "failed"))
    ]
    assert found == [3600, None, 60, 0]
    assert (rules.shortest, KeepRules({}).shortest) == (0, None)


@pytest.mark.parametrize("text", ["x", "completed", "completed=-1", "completed=1h", "done=5", "/completed=5"])
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match="EMQ_KEEP_OUTPUTS"):
        parse_rules(text)
