"""One ComfyUI that serves several pools."""

from __future__ import annotations

from broker.trial.workflows import plain_image
from tests.support.comfyui import slow
from tests.worker.conftest import MakeBroker, MakeComfy


async def test_a_worker_serves_two_pools_in_turn(make_broker: MakeBroker, make_comfy: MakeComfy) -> None:
    """Many jobs in one pool do not keep those of the other out."""
    one = make_broker(EMQ_POOL="one")
    two = make_broker(EMQ_POOL="two", EMQ_REDIS_URL=one.redis_url)
    comfy = make_comfy(one, EMQ_POOLS="one,two").start()
    comfy.wait_for("serves pool one")
    comfy.wait_for("serves pool two")
    async with one.client() as first, two.client() as second:
        many = [await first.submit(slow(4, 0.05, seed=700 + index)) for index in range(20)]
        few = [await second.submit(plain_image(700 + index)) for index in range(3)]
        for job in few:
            record = await second.until(job)
            assert (record["status"], len(record["result"]["outputs"])) == ("completed", 1)
        assert (await first.job(many[-1]))["status"] == "pending"
        for job in many:
            assert (await first.until(job))["status"] == "completed"
