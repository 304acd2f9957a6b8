"""A small typed client of EMQ: submit workflows, follow jobs, fetch what they made.

::

    async with Client("https://queue.example/queue", key="emq_…") as emq:
        job = await emq.submit(workflow, priority=5)
        async for event in job.events():
            print(event)
        for path in await emq.save((await job.result()).outputs, Path("pictures")):
            print(path)

It lives through brokers that go away: a lost connection is made again (behind a proxy: to another replica), a submit
whose answer was lost is repeated under its idempotency key, and events go on after the last one that came.
"""

from broker.client.client import Client
from broker.client.errors import BrokerUnreachable, JobCancelled, JobEnded, JobFailed, refusal
from broker.client.events import Event, Preview, parse_event
from broker.client.job import JobHandle

__all__ = [
    "BrokerUnreachable", "Client", "Event", "JobCancelled", "JobEnded", "JobFailed", "JobHandle", "Preview",
    "parse_event", "refusal",
]  # fmt: skip
