"""An open tab behind NGINX outlives the death of the broker that it hears."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from playwright.async_api import Page, expect

from broker.queue.connection import Connection
from broker.queue.queue import Queue
from tests.support.browser import not_reloaded, open_live
from tests.support.commands import Replica
from tests.support.nginx import nginx
from tests.support.servers import RedisServer, free_port
from tests.support.simulated import SimulatedWorker


async def test_a_tab_moves_to_the_next_replica(
    valkey_server: RedisServer, pool: str, tmp_path: Path, tab: Page
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ports = [free_port(), free_port()]
        upstream = [f"127.0.0.1:{port}" for port in ports]
        front = await stack.enter_async_context(nginx("nginx.conf", tmp_path / "nginx", upstream))
        env = {"EMQ_POOL": pool, "EMQ_PUBLIC_URL": front.url, "EMQ_TRUSTED_PROXIES": "127.0.0.1"}
        options = ("--data", str(tmp_path / "data"), "--redis", valkey_server.url)
        one, two = (Replica(port, options, env, stack) for port in ports)
        await one.start()
        await two.start()
        connection = Connection(valkey_server.url)
        stack.push_async_callback(connection.close)
        queue = Queue(connection, pool)
        await open_live(tab, front.url)
        await one.end(signal.SIGKILL)
        await SimulatedWorker(queue, "gpu-first").register()
        await expect(tab.locator("#fleet")).to_contain_text("gpu-first")
        await one.start()
        await two.end(signal.SIGKILL)
        await SimulatedWorker(queue, "gpu-second").register()
        await expect(tab.locator("#fleet")).to_contain_text("gpu-second")
        await expect(tab.locator("#live")).to_have_text("live")
        assert await not_reloaded(tab), "whichever it heard, it went on by itself"
        await tab.goto("about:blank")  # an open stream would keep NGINX waiting
