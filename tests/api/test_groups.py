"""A group's progress and its one summary."""

from __future__ import annotations

from tests.api.conftest import Broker, submit


async def test_who_submits_a_group_hears_its_end_once(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client, broker.client() as other:
        jobs = [submit(max_attempts=1) for _ in range(3)]
        await client.ask({"type": "submit_jobs", "group": "batch", "jobs": jobs})
        confirmed = await other.ask({"type": "subscribe_group", "group": "batch"})
        assert (confirmed["type"], confirmed["group"], confirmed["subscribed"]) == (
            "subscription_confirmed", "batch", True,
        )  # fmt: skip
        await worker.work_one()
        status = await client.ask({"type": "request_group", "group": "batch"})
        assert (status["progress"], status["done"]) == (33.3, False)
        held = await worker.claim()
        assert held is not None
        await worker.fail(held)
        await worker.work_one()
        for each in (client, other):
            done = await each.until("group_done")
            assert (done["group"], done["total"], done["ended"]) == ("batch", 3, 1)
            assert (done["jobs"]["completed"], done["jobs"]["failed"]) == (2, 1)
        status = await client.ask({"type": "request_group", "group": "batch"})
        assert (status["progress"], status["done"]) == (100.0, True)
        assert sum(message["type"] == "group_done" for message in client.heard) == 1
        # More work in the same group: a second end, for whoever asked for all of them.
        await other.ask(submit(group="batch", subscribe=False))
        await worker.work_one()
        assert (await other.until("group_done"))["ended"] == 2
        off = await other.ask({"type": "subscribe_group", "group": "batch", "enabled": False})
        assert off["subscribed"] is False


async def test_a_group_of_nobody_cannot_be_followed(broker: Broker) -> None:
    async with broker.client() as client:
        answer = await client.ask({"type": "subscribe_group", "group": "none"})
        assert (answer["type"], answer["code"]) == ("error", "not_found")
