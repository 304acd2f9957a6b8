"""The faults: each breaks something, and heals it again where it would not heal by itself."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import redis.asyncio

from tests.chaos.fleet import LEASE_S, Drill

COMFYUI_START_S = 300.0
Fault = Callable[[Drill, random.Random], Awaitable[None]]


async def kill_worker(drill: Drill, rng: random.Random) -> None:
    """A worker's machine dies; another one comes in its place."""
    worker = rng.choice(drill.workers)
    worker.kill()
    worker.start()


async def kill_comfyui(drill: Drill, rng: random.Random, number: int) -> None:
    """A real ComfyUI dies some seconds after it began to serve, and is started again by its supervisor."""
    comfy = drill.comfyuis[number]
    await asyncio.to_thread(comfy.wait_for, "serves pool", COMFYUI_START_S)
    await asyncio.sleep(rng.uniform(1.0, 6.0))
    comfy.kill()
    comfy.start()


async def freeze_worker(drill: Drill, rng: random.Random) -> None:
    """A worker stands still for longer than its lease, and goes on as if nothing had been."""
    worker = rng.choice(drill.workers)
    worker.send(signal.SIGSTOP)
    await asyncio.sleep(LEASE_S * rng.uniform(0.5, 1.6))
    worker.send(signal.SIGCONT)


async def stop_worker(drill: Drill, rng: random.Random) -> None:
    """A worker is ended by its supervisor and started again."""
    worker = rng.choice(drill.workers)
    worker.send(signal.SIGTERM)
    await asyncio.sleep(0.2)
    worker.kill()
    worker.start()


async def kill_broker(drill: Drill, rng: random.Random) -> None:
    """A replica dies and is started again at its place."""
    broker = rng.choice(drill.brokers)
    broker.kill()
    await asyncio.to_thread(broker.start)


async def restart_broker(drill: Drill, rng: random.Random) -> None:
    """A replica is stopped in order and started again, as in a rolling restart."""
    broker = rng.choice(drill.brokers)
    await asyncio.to_thread(broker.end)
    await asyncio.to_thread(broker.start)


async def freeze_broker(drill: Drill, rng: random.Random) -> None:
    """A replica stands still."""
    broker = rng.choice(drill.brokers)
    broker.send(signal.SIGSTOP)
    await asyncio.sleep(rng.uniform(0.5, 3))
    broker.send(signal.SIGCONT)


async def kill_redis(drill: Drill, rng: random.Random) -> None:
    """The server dies and comes back with its append-only file."""
    drill.redis.kill()
    await asyncio.sleep(rng.uniform(0, 0.5))
    await asyncio.to_thread(drill.start_redis)


async def cut_power(drill: Drill, rng: random.Random) -> None:
    """The server's machine loses power: what was not synced is gone."""
    drill.redis.kill()
    drill.power.cut(drill.redis.folder)
    await asyncio.to_thread(drill.start_redis)


async def freeze_redis(drill: Drill, rng: random.Random) -> None:
    """The server stands still: no lease may lapse for that alone."""
    assert drill.redis.process is not None
    drill.redis.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(rng.uniform(0.3, 4))
    drill.unfreeze_redis()


async def cut_brokers_off(drill: Drill, rng: random.Random) -> None:
    """Every connection between brokers and the server breaks."""
    drill.to_redis.cut()


async def cut_workers_off(drill: Drill, rng: random.Random) -> None:
    """Every connection between workers and the server breaks."""
    drill.from_workers.cut()


async def part_workers(drill: Drill, rng: random.Random) -> None:
    """The network between workers and the server swallows everything for longer than a lease."""
    drill.from_workers.stall()
    await asyncio.sleep(LEASE_S * rng.uniform(0.5, 1.5))
    drill.from_workers.cut()


async def part_brokers(drill: Drill, rng: random.Random) -> None:
    """The network between brokers and the server swallows everything."""
    drill.to_redis.stall()
    await asyncio.sleep(rng.uniform(0.5, 3))
    drill.to_redis.cut()


async def lose_answers(drill: Drill, rng: random.Random) -> None:
    """Some answers are lost together with their connection: who asked does not know whether it was done."""
    proxy = rng.choice([drill.to_redis, drill.from_workers])

    def lose(reply: bytes) -> bytes:
        if rng.random() < 0.02:
            proxy.cut()
            return b""
        return reply

    proxy.replies = lose
    await asyncio.sleep(1)
    proxy.replies = lambda reply: reply


async def cut_clients_off(drill: Drill, rng: random.Random) -> None:
    """Every connection of clients breaks."""
    drill.front.cut()


async def lose_functions(drill: Drill, rng: random.Random) -> None:
    """Somebody empties the server's function libraries."""
    async with redis.asyncio.Redis.from_url(drill.redis.url) as client:
        with suppress(redis.asyncio.RedisError):
            await client.function_flush("SYNC")


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_worker, freeze_worker, stop_worker, kill_broker, restart_broker, freeze_broker, kill_redis, cut_power,
        freeze_redis, cut_brokers_off, cut_workers_off, part_workers, part_brokers, lose_answers, cut_clients_off,
        lose_functions,
    )
}  # fmt: skip
OFTEN = {"kill_worker": 5, "cut_clients_off": 3, "cut_workers_off": 2, "lose_answers": 2}
"""How often one is drawn, where it is not once."""
