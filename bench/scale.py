"""``python -m bench scale``: the queue with 100,000 jobs in 200 classes and of 100 tenants, on the real functions."""

from __future__ import annotations

import argparse
import random
import statistics
import string
import time
import zlib
from collections.abc import Callable, Iterator

from bench import affinity, every_call
from bench.server import Server, server
from bench.simulation import Pool, Worker, claiming, job, profile
from bench.targets import Target, print_targets
from broker.queue.new_job import NewJob

CLASSES, TENANTS, WORKFLOW = 200, 100, 4_600
MODELS = [f"model{number}.safetensors" for number in range(CLASSES)]
EVERYTHING = profile(MODELS)
NOTHING = profile([])


def workflow(dice: random.Random) -> bytes:
    """A workflow of 4.6 KB as people send them: JSON with repeated names, a seed and a prompt of its own."""
    words = ["".join(dice.choices(string.ascii_lowercase, k=dice.randint(3, 9))) for _ in range(60)]
    node = (
        '"{n}":{{"class_type":"KSampler","inputs":{{"seed":{seed},"steps":20,"cfg":7.5,"sampler_name":"euler",'
        '"scheduler":"normal","denoise":1.0,"model":["{m}",0],"positive":["6",0],"negative":["7",0],'
        '"latent_image":["5",0]}}}}'
    )
    text = '{"workflow":{"6":{"class_type":"CLIPTextEncode","inputs":{"clip":["4",1],"text":"' + " ".join(words) + '"}}'
    number, seed = 10, dice.getrandbits(48)
    while len(text) < WORKFLOW - 250:
        text += "," + node.format(n=number, m=number - 1, seed=seed)
        number += 1
    return (text + "}}").ljust(WORKFLOW).encode()


def jobs(count: int, payload: Callable[[], bytes], dice: random.Random) -> Iterator[tuple[str, list[NewJob]]]:
    """Submits of up to 500 jobs: classes skewed, tenants even."""
    for start in range(0, count, 500):
        some = [
            job(payload(), [MODELS[min(CLASSES - 1, int(dice.paretovariate(0.7)) - 1)]])
            for _ in range(min(500, count - start))
        ]
        yield f"tenant{dice.randrange(TENANTS)}", some


def every_class(pool: Pool) -> None:
    """One job of each class, so that none is missing."""
    pool.submit("tenant0", [job(b"{}", [model]) for model in MODELS])


def claims(up: Server, pool: Pool, count: int) -> tuple[float, list[float]]:
    """Claim ``count`` jobs one at a time: Redis CPU a claim (µs), and each one's time at the client (µs)."""
    worker = Worker("claimer")
    pool.register(worker, EVERYTHING, slots=100_000)
    pool.claim(worker)
    took = []
    with up.spent() as spent:
        for _ in range(count):
            begin = time.perf_counter()
            assert pool.claim(worker)
            took.append((time.perf_counter() - begin) * 1e6)
    return spent[0].cpu_us / count, took


def claim_costs(up: Server, full: Pool, rounds: int) -> list[Target]:
    """Claims at 100 waiting jobs (fresh pools) and at 100,000, in turns."""
    cpu: dict[str, list[float]] = {"100": [], "all": []}
    took: dict[str, list[float]] = {"100": [], "all": []}
    dice = random.Random(2)
    for number in range(rounds):
        small = Pool(up.redis, f"small{number}")
        for tenant, some in jobs(100, lambda: b"{}", dice):
            small.submit(tenant, some)
        for name, pool in (("100", small), ("all", full)):
            cost, times = claims(up, pool, 90)
            cpu[name].append(cost)
            took[name] += times
    middle = {name: statistics.median(values) for name, values in cpu.items()}
    client = {name: statistics.median(values) for name, values in took.items()}
    print(f"claim at 100: {middle['100']:.0f} us Redis CPU, {client['100']:.0f} us at the client (p50)")
    print(f"claim at 100,000: {middle['all']:.0f} us Redis CPU, {client['all']:.0f} us at the client (p50)")
    return [
        Target("claim at 100,000 / at 100, Redis CPU", middle["all"] / middle["100"], 1.5, most=True),
        Target("claim at 100,000 / at 100, client p50", client["all"] / client["100"], 1.5, most=True),
    ]


def empty_claims(up: Server, pool: Pool) -> list[Target]:
    """Claims by workers that can run no class, or one that does not wait, 32 in a trip."""
    none, other = Worker("useless"), Worker("elsewhere")
    pool.register(none, NOTHING)
    pool.submit("tenant0", [job(b"{}", ["another.safetensors"])])
    pool.register(other, profile(["another.safetensors"]), slots=2)
    assert pool.claim(other)
    out = []
    for worker, able in ((none, "of no class"), (other, "of a class that does not wait")):
        costs = []
        for _ in range(5):
            pool.call("sweep", "limit", "100")  # as a broker does each second: claims leave to it what is due
            with up.spent() as spent:
                for _ in range(50):
                    for answer in pool.calls([("claim", claiming(worker)) for _ in range(32)]):
                        assert answer[0] == b"none"
            costs.append(spent[0].cpu_us / (50 * 32))
        middle = statistics.median(costs)
        out.append(Target("a claim when nothing fits, us of Redis CPU", middle, 20, most=True, against=able))
    return out


def memory(count: int) -> Target:
    """Memory of ``count`` workflows of 4.6 KB as the broker stores them."""
    dice = random.Random(3)
    with server("off") as up:
        pool = Pool(up.redis)
        every_class(pool)
        before = int(up.redis.info("memory")["used_memory"])
        for tenant, some in jobs(count, lambda: zlib.compress(workflow(dice), 1), dice):
            pool.submit(tenant, some)
        used = int(up.redis.info("memory")["used_memory"]) - before
    return Target(f"{count:,} jobs of 4.6 KB, MB", used / 1e6, 150 * count / 100_000, most=True)


def calls(pool: Pool, workers: int) -> list[Target]:
    """Every function with many workers registered: which were missed, and which took over 5 ms."""
    fleet = [Worker(f"worker{number}") for number in range(workers)]
    for number, worker in enumerate(fleet):
        pool.register(worker, profile(MODELS[number % 20 :: 20]) if number % 2 else EVERYTHING)
    costs = every_call.costs(pool, MODELS, fleet[::2])  # these can run everything
    missed = every_call.FUNCTIONS - costs.keys()
    most = sorted(costs, key=lambda name: -costs[name])
    print(
        f"{len(costs)} functions called with {workers:,} workers; the longest by the server's CPU: "
        + ", ".join(f"{name} {costs[name] / 1000:.1f} ms" for name in most[:8])
    )
    slow = [name for name in most if costs[name] > every_call.SLOW_US]
    return [
        Target("functions that were not called", len(missed), 0, most=True, against=", ".join(sorted(missed))),
        Target(f"functions over 5 ms with {workers:,} workers", len(slow), 0, most=True, against=", ".join(slow)),
    ]


def positions(up: Server) -> list[Target]:
    """Positions that are said to be exact against the order of the claims, with up to 1,000 and more lanes ahead."""
    pool, lanes = Pool(up.redis, "positions"), 1_200
    asked: dict[str, int] = {}
    for number in range(lanes):
        for answer in pool.submit(f"tenant{number:04}", [job(b"{}", MODELS[:1]) for _ in range(2)]):
            asked[answer.text("job_id")] = number
    told = {job_id: pool.call("job", "job", job_id) for job_id in asked}
    worker = Worker("claimer")
    pool.register(worker, EVERYTHING, slots=10_000)
    order = [got.text("job_id") for _ in asked if (got := pool.claim(worker))]
    off = {job_id: abs(told[job_id].number("position") - place) / place for place, job_id in enumerate(order, 1)}
    exact = [job_id for job_id in order if told[job_id].flag("exact")]
    # The first jobs of all tenants come before all second ones: so many lanes are ahead of a tenant's first job.
    ahead = {job_id: asked[job_id] if place < lanes else lanes - 1 for place, job_id in enumerate(order)}
    marked = [ahead[job_id] for job_id in order if not told[job_id].flag("exact")]
    print(
        f"positions of {len(order):,} jobs in {lanes:,} lanes: {len(exact):,} exact, {len(marked):,} marked as "
        f"estimates, which are off by {max(off.values(), default=0):.1%} at most"
    )
    return [
        Target("positions said to be exact that are wrong", sum(off[job_id] > 0 for job_id in exact), 0, most=True),
        Target("lanes ahead up to which positions are exact", min(marked, default=lanes) - 1, 1_000),
    ]


def newcomer(up: Server) -> Target:
    """A tenant's first job behind another's 100,000: how many jobs of the other start before it."""
    pool = Pool(up.redis, "newcomer")
    for _ in range(200):
        pool.submit("many", [job(b"{}", MODELS[:1]) for _ in range(500)])
    workers = [Worker(f"w{number}") for number in range(4)]
    for worker in workers:
        pool.register(worker, EVERYTHING)
    running = [(worker, pool.claim(worker)) for worker in workers]
    (mine,) = pool.submit("one", [job(b"{}", MODELS[:1])])
    before = 0
    for worker, got in running:
        assert got
        following = pool.finish(worker, got, 1000, cold=False)
        if following and following.text("job_id") == mine.text("job_id"):
            break
        before += 1
    return Target("others' jobs started before a newcomer's (4 workers)", before, 3, most=True)


def loads(up: Server) -> list[Target]:
    """A mixed stream of 8 models over 4 simulated workers: loads, waits, and whether starts came when predicted."""
    out = []
    for number, per_s in enumerate((0.2, 0.5, 0.8, 1.0)):
        arrivals = affinity.stream(600, per_s)
        plain, ours = affinity.fifo(arrivals), affinity.emq(Pool(up.redis, f"aff{number}", lease_ms=10**9), arrivals)
        seer = affinity.Foresight(arrivals).run()
        print(
            f"{per_s} jobs/s of {affinity.RUN_MS / 1000:.0f} s (a load takes {affinity.LOAD_MS / 1000:.0f} s more): "
            f"loads {ours.loads} against {plain.loads}, p95 wait {ours.p95_s():.0f} s against {plain.p95_s():.0f} s; "
            f"one that knows what comes, and holds no work back, has {seer.loads} ({seer.loads / plain.loads:.2f}); "
            f"of {ours.predicted} predicted starts {ours.within_p50:.0%} by p50, {ours.within_p90:.0%} by p90"
        )
        at = f"at {per_s} jobs/s"
        seen = f"{at}; with foresight {seer.loads / plain.loads:.2f}"
        out += [
            Target("model loads / first in, first out", ours.loads / plain.loads, 1 / 3, most=True, against=seen),
            Target("p95 wait / first in, first out", ours.p95_s() / plain.p95_s(), 1.2, most=True, against=at),
            Target("starts by the predicted p90", ours.within_p90, 0.8, against=at),
        ]
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench scale", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    found: list[Target] = []
    dice = random.Random(1)
    with server("everysec") as up:
        pool = Pool(up.redis)
        every_class(pool)
        for tenant, some in jobs(args.jobs, lambda: b"{}", dice):
            pool.submit(tenant, some)
        lanes = sum(1 for _ in up.redis.scan_iter(f"{pool.prefix}n:*", count=10_000))
        print(f"{args.jobs:,} jobs wait in {lanes:,} lanes of {CLASSES} classes and {TENANTS} tenants")
        found += claim_costs(up, pool, args.rounds)
        found += empty_claims(up, pool)
        found += calls(pool, args.workers)
    with server("off") as up:
        found.append(newcomer(up))
        found += positions(up)
        found += loads(up)
    found.append(memory(args.jobs))
    print_targets(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
