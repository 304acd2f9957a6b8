"""Who is measured: EMQ, the floor, and the peers with what each needs and can do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to queue jobs."""

    name: str
    module: str
    """Its adapter, ``bench.peers.<module>``; for Node the script of that name."""
    packages: tuple[str, ...] = ()
    """What pip (or npm) installs for it; empty: it runs in EMQ's own environment."""
    recovers: bool = True
    """Whether a job whose worker died is run again."""
    bulk: bool = False
    """Whether it can take many jobs in one call."""
    parallel: bool = True
    """Whether one worker process can have 32 jobs in flight."""
    jobs: int = 10_000
    """Jobs of the drain with 32 in flight."""
    jobs_one: int = 3_000
    """Jobs of the drain with one in flight."""
    node: bool = False
    is_floor: bool = False

    @property
    def python(self) -> bool:
        """Whether it is a peer written in Python."""
        return bool(self.packages) and not self.node


FLOOR = Peer("floor, fused", "floor_fused", bulk=True, jobs=40_000, jobs_one=10_000, is_floor=True)
DUTIES = Peer("floor with duties", "floor_duties", bulk=True, jobs=40_000, jobs_one=10_000, is_floor=True)
EMQ = Peer("EMQ", "emq", bulk=True, jobs=20_000, jobs_one=10_000)

PEERS = (
    FLOOR,
    DUTIES,
    Peer("floor, claim+complete", "floor", bulk=True, jobs=40_000, jobs_one=10_000, is_floor=True),
    EMQ,
    Peer("BullMQ Node", "bullmq_node", ("bullmq", "ioredis"), bulk=True, jobs=20_000, jobs_one=10_000, node=True),
    Peer("BullMQ Python", "bullmq_python", ("bullmq", "hiredis"), bulk=True),
    Peer("SAQ", "saq", ("saq[redis,hiredis]", "typing-extensions", "uvloop")),
    Peer("arq, poll 10 ms", "arq", ("arq", "hiredis", "uvloop"), jobs_one=300),
    Peer("streaQ", "streaq", ("streaq",), bulk=True, jobs=5_000, jobs_one=2_000),
    Peer("taskiq list", "taskiq_list", ("taskiq-redis", "hiredis", "uvloop"), recovers=False),
    Peer("taskiq stream", "taskiq_stream", ("taskiq-redis", "hiredis", "uvloop")),
    Peer("dramatiq", "dramatiq", ("dramatiq[redis]", "hiredis"), jobs_one=1_000),
    Peer("Celery", "celery", ("celery[redis]", "hiredis"), jobs=4_000, jobs_one=2_000),
    Peer("RQ SimpleWorker", "rq", ("rq", "hiredis"), bulk=True, parallel=False, jobs_one=1_500),
)
