"""One ComfyUI that serves several pools."""

from __future__ import annotations

from pathlib import Path

from broker.trial.workflows import plain_image
from tests.support.comfyui import LONG, slow
from tests.worker.conftest import MakeBroker, MakeComfy


async def test_a_worker_serves_two_pools_in_turn(
    make_broker: MakeBroker, make_comfy: MakeComfy, tmp_path: Path
) -> None:
    """Many jobs in one pool do not keep those of the other out.

    Which pool is asked first is drawn each time: of 60 draws, 3 are for the other one but for once in 10^15 tests.
    """
    all_wait = tmp_path / "all wait"
    one = make_broker(EMQ_POOL="one")
    two = make_broker(EMQ_POOL="two", EMQ_REDIS_URL=one.redis_url)
    comfy = make_comfy(one, EMQ_POOLS="one,two").start()
    comfy.wait_for("serves pool one")
    comfy.wait_for("serves pool two")
    async with one.client() as first, two.client() as second:
        head = await first.submit(slow(LONG, until=str(all_wait)))
        await first.until(head, "processing")
        many = [await first.submit(slow(1, 0.02, seed=700 + index)) for index in range(60)]
        few = [await second.submit(plain_image(700 + index)) for index in range(3)]
        all_wait.touch()
        done = [await second.until(job) for job in few]
        assert [(record["status"], len(record["result"]["outputs"])) for record in done] == [("completed", 1)] * 3
        ends = [await first.until(job) for job in (head, *many)]
        assert {record["status"] for record in ends} == {"completed"}
        assert max(record["started_at"] for record in done) < ends[-1]["started_at"]
