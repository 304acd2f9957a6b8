"""The main job: what EMQ costs on top of a ComfyUI that is used directly.

Every round starts fresh processes with empty folders; the ways are interleaved, and medians over the rounds compared.
Stamps are taken inside ComfyUI's prompt thread (``bench/probe``), the same for every way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
import uuid
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from bench.stack import broker, comfyui, until
from bench.targets import Target, print_targets

Prompt = dict[str, Any]


def prompts(count: int, start: int = 0) -> list[Prompt]:
    """Trivial prompts, none of which ComfyUI can answer from its cache."""
    return [
        {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": start + n}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
        for n in range(count)
    ]


def texts(count: int) -> list[Prompt]:
    """Trivial prompts that make a text and no picture."""
    return [
        {
            "1": {"class_type": "PrimitiveString", "inputs": {"value": f"text {n}"}},
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        }
        for n in range(count)
    ]


async def drained(http: aiohttp.ClientSession, url: str, count: int) -> dict[str, list[float]]:
    """Wait for ``count`` executions and give their stamps."""
    async with http.get(url + "/emq_probe", params={"ends": str(count)}) as answer:
        answer.raise_for_status()
        return dict(await answer.json())


def rate(seen: dict[str, list[float]]) -> float:
    """Executions per second, from the first start to the last."""
    starts = seen["starts"]
    return (len(starts) - 1) / (starts[-1] - starts[0])


def gap_ms(seen: dict[str, list[float]]) -> float:
    """Median time from one prompt's end to the next one's start."""
    pairs = zip(seen["ends"], seen["starts"][1:], strict=False)
    return statistics.median((start - end) * 1000 for end, start in pairs)


async def through_comfyui(
    http: aiohttp.ClientSession, url: str, work: list[Prompt], fetch: bool = False
) -> dict[str, list[float]]:
    """One prompt after another over ComfyUI's own HTTP and WebSocket: the next is posted when one has ended.

    With ``fetch`` the client also gets each picture before it goes on: then it has what EMQ delivers.
    """
    client = uuid.uuid4().hex
    async with http.ws_connect(f"{url}/ws?clientId={client}") as socket:
        for prompt in work:
            async with http.post(url + "/prompt", json={"prompt": prompt, "client_id": client}) as answer:
                prompt_id = (await answer.json())["prompt_id"]
            pictures: list[dict[str, str]] = []
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                data = event["data"]
                if event["type"] == "executed":
                    pictures += (data.get("output") or {}).get("images") or ()
                if event["type"] == "executing" and data["node"] is None and data["prompt_id"] == prompt_id:
                    break
            for picture in pictures if fetch else ():
                async with http.get(url + "/view", params=picture) as answer:
                    assert await answer.read()
    return await drained(http, url, len(work))


async def in_process(http: aiohttp.ClientSession, url: str, work: list[Prompt]) -> dict[str, list[float]]:
    """All prompts put into ComfyUI's own queue at once, in process: nothing can be faster."""
    async with http.post(url + "/emq_probe", json=work) as answer:
        answer.raise_for_status()
    return await drained(http, url, len(work))


async def through_emq(
    http: aiohttp.ClientSession, broker_url: str, url: str, work: list[Prompt]
) -> dict[str, list[float]]:
    """All jobs submitted in one message over the broker's WebSocket, drained by the worker inside ComfyUI."""
    jobs = [{"payload": {"workflow": prompt}, "subscribe": False} for prompt in work]
    async with http.ws_connect(broker_url + "/ws", max_msg_size=0) as socket:
        await socket.send_json({"type": "submit_jobs", "message_id": "bench", "jobs": jobs})
        answer = await socket.receive_json()
        assert answer["type"] == "jobs_accepted", answer
        return await drained(http, url, len(work))


async def completed(http: aiohttp.ClientSession, broker_url: str) -> int:
    """Jobs whose result has been delivered."""
    async with http.get(broker_url + "/stats") as answer:
        return int((await answer.json())["jobs"]["completed"])


async def emq_rates(
    http: aiohttp.ClientSession, broker_url: str, url: str, work: list[Prompt]
) -> tuple[dict[str, list[float]], float]:
    """The stamps of the executions, and jobs a second from the first start to the last result."""
    before = await completed(http, broker_url)
    seen = await through_emq(http, broker_url, url, work)

    async def all_delivered() -> bool:
        return await completed(http, broker_url) >= before + len(work)

    await until(all_delivered, "every result", 60)
    return seen, len(work) / (time.time() - seen["starts"][0])


async def latencies_ms(http: aiohttp.ClientSession, broker_url: str, url: str, count: int) -> list[float]:
    """From sending a submit on an idle system to the start of its execution."""
    out = []
    async with http.ws_connect(broker_url + "/ws") as socket:
        for prompt in prompts(count, start=1 << 20):
            sent = time.time()
            await socket.send_json({"type": "submit_job", "payload": {"workflow": prompt}})
            while (await socket.receive_json())["type"] != "complete_job":
                pass
            out.append(((await drained(http, url, 1))["starts"][0] - sent) * 1000)
            await asyncio.sleep(0.1)
    return out


def cpu_s(pid: int) -> float:
    """CPU time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Memory of a process, shared pages counted in full: other ComfyUIs on this machine do not change it."""
    return _rollup_mb(pid, "Rss")


def pss_mb(pid: int) -> float:
    """Memory of a process, shared pages counted in part."""
    return _rollup_mb(pid, "Pss")


def _rollup_mb(pid: int, kind: str) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"no {kind} line")


def side_process(pid: int) -> int:
    """The worker's side process, a child of ComfyUI's."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid and b"emq.keeper" in (folder / "cmdline").read_bytes():
                    return int(folder.name)
    raise LookupError("the worker has no side process")


async def idle(pid: int, seconds: float) -> tuple[float, float]:
    """Idle CPU in percent of a core, and memory in MB."""
    await asyncio.sleep(3)
    before = cpu_s(pid)
    await asyncio.sleep(seconds)
    return (cpu_s(pid) - before) / seconds * 100, rss_mb(pid)


async def registered(http: aiohttp.ClientSession, broker_url: str) -> bool:
    """Whether a worker is idle at the broker."""
    async with http.get(broker_url + "/api/workers") as answer:
        workers = (await answer.json())["workers"]
    return any(worker["status"] == "idle" for worker in workers)


async def one_round(args: argparse.Namespace, results: dict[str, list[float]], folders: Path) -> None:
    """Measure every way once, each on fresh processes with a new one of the ``folders``.

    They are removed when all rounds are over: an ext4 without a journal looks past what was deleted in the last minutes
    for each file that it makes, which took ten times as long then, and EMQ makes more of them than ComfyUI alone.
    """
    work = prompts(args.count)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        fetching = partial(through_comfyui, fetch=True)
        for name, way in (("native", through_comfyui), ("native, fetching", fetching), ("in process", in_process)):
            async with comfyui(Path(tempfile.mkdtemp(dir=folders)), http, worker=False) as (url, child):
                if name == "native":
                    cpu, memory = await idle(child.pid, args.idle)
                    results["idle cpu, alone"].append(cpu)
                    results["memory, alone"].append(memory)
                before = cpu_s(child.pid)
                seen = await way(http, url, work)
                results[f"cpu, {name}"].append((cpu_s(child.pid) - before) * 1000 / len(work))
                results[f"rate, {name}"].append(rate(seen))
                results[f"gap, {name}"].append(gap_ms(seen))
                if name == "native":
                    results["rate, native, text"].append(rate(await way(http, url, texts(args.count))))
        folder = Path(tempfile.mkdtemp(dir=folders))
        async with broker(folder, http) as broker_url, comfyui(folder, http, worker=True) as (url, child):
            await until(lambda: registered(http, broker_url), "the worker registers")
            cpu, memory = await idle(child.pid, args.idle)
            results["idle cpu, EMQ"].append(cpu)
            results["memory, EMQ"].append(memory)
            side, before = side_process(child.pid), cpu_s(side_process(child.pid))
            await asyncio.sleep(args.idle)
            results["idle cpu, side process"].append((cpu_s(side) - before) / args.idle * 100)
            before = cpu_s(child.pid)
            for kind, some in (("", work), (", text", texts(args.count))):
                seen, delivered = await emq_rates(http, broker_url, url, some)
                results[f"rate, EMQ{kind}"].append(rate(seen))
                results[f"rate, EMQ{kind}, delivered"].append(delivered)
                results[f"gap, EMQ{kind}"].append(gap_ms(seen))
                if not kind:
                    results["cpu, EMQ"].append((cpu_s(child.pid) - before) * 1000 / len(some))
            results["memory, side process"].append(pss_mb(side))
            await asyncio.sleep(2)
            results["latency"] += await latencies_ms(http, broker_url, url, args.latency)


def report(results: dict[str, list[float]]) -> None:
    """Print medians and ratios, with the rounds behind them."""
    mid = {name: statistics.median(values) for name, values in results.items()}
    for name in sorted(results):
        if name != "latency":
            print(f"  {name:26} {mid[name]:9.2f}   rounds: {', '.join(f'{v:.2f}' for v in results[name])}")
    fetching = mid["rate, native, fetching"]
    for what, figure in (
        ("1 jobs/s, EMQ / ComfyUI's, each picture fetched", f"{mid['rate, EMQ'] / fetching:.2f}"),
        ("1 … to EMQ's last result / the same", f"{mid['rate, EMQ, delivered'] / fetching:.2f}"),
        ("1 … of a text alone, EMQ / ComfyUI's", f"{mid['rate, EMQ, text'] / mid['rate, native, text']:.2f}"),
        ("1 CPU of ComfyUI's process, ms a job: alone, EMQ", f"{mid['cpu, native']:.2f}  {mid['cpu, EMQ']:.2f}"),
        ("4 idle CPU of the side process (% of a core)", f"{mid['idle cpu, side process']:.2f}"),
    ):
        print(f"{what:60} {figure}")
    print_targets(targets(mid, sorted(results["latency"])))


def targets(mid: dict[str, float], latency: list[float]) -> list[Target]:
    """What the main job is to reach."""
    gap = mid["gap, EMQ"] - mid["gap, in process"]
    cpu = mid["idle cpu, EMQ"] - mid["idle cpu, alone"] + mid["idle cpu, side process"]
    memory, p99 = mid["memory, EMQ"] - mid["memory, alone"], latency[min(len(latency) - 1, int(len(latency) * 0.99))]
    return [
        Target("1 jobs/s, EMQ / ComfyUI's HTTP+WebSocket in turn", mid["rate, EMQ"] / mid["rate, native"], 1.0),
        Target("2 gap, EMQ - in process, ms at the median", gap, 1.0, most=True),
        Target("3 submit to execution start, idle, p50 ms", statistics.median(latency), 10, most=True),
        Target("3 submit to execution start, idle, p99 ms", p99, 50, most=True),
        Target("4 idle CPU, worker and side process, % of a core", cpu, 0.5, most=True),
        Target("4 memory added to ComfyUI, MB (RSS)", memory, 20, most=True),
        Target("4 memory of the side process, MB (PSS)", mid["memory, side process"], 20, most=True),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench main-job", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=200, help="prompts a way and round")
    parser.add_argument("--latency", type=int, default=40, help="single submits a round")
    parser.add_argument("--idle", type=float, default=20, help="seconds of idling a measurement")
    args = parser.parse_args(argv)
    results: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folders:
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", flush=True)
            asyncio.run(one_round(args, results, Path(folders)))
    report(results)
    return 0
