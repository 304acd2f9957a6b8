"""Several real servers together: a cluster, and a primary that a sentinel watches."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import redis

from tests.support.servers import RedisServer, free_port, redis7_binary
from tests.support.waiting import wait_until

CLUSTER = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
"""What each of three servers is started with."""


async def joined(nodes: Sequence[RedisServer]) -> Callable[[], bool]:
    """Make a cluster of three fresh servers; answers what tells whether it is whole."""
    for i, node in enumerate(nodes):
        with redis.Redis(port=node.port) as admin:
            admin.execute_command("CLUSTER ADDSLOTSRANGE", i * 5462, min(i * 5462 + 5461, 16383))
            admin.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
    with redis.Redis(port=nodes[0].port) as admin:
        for other in nodes[1:]:
            admin.execute_command("CLUSTER MEET", "127.0.0.1", other.port)

    def whole() -> bool:
        states = []
        for node in nodes:
            with redis.Redis(port=node.port) as admin:
                state = admin.execute_command("CLUSTER INFO")["cluster_state"]
                states.append(state == "ok" and len(admin.execute_command("CLUSTER NODES")) == 3)
        return all(states)

    await wait_until(whole, 20, "the cluster is whole")
    return whole


async def replicating(replica: RedisServer, primary: RedisServer) -> None:
    """Make one server a replica of another; wait until it has all, and counts where the primary counts replicas."""
    with redis.Redis.from_url(replica.url) as admin, redis.Redis.from_url(primary.url) as above:
        admin.replicaof(primary.host, primary.port)
        await wait_until(lambda: admin.info("replication")["master_link_status"] == "up", 20, "the replica has all")
        await wait_until(lambda: above.info("replication").get("min_slaves_good_slaves", 1), 20, "the replica counts")


async def watching(
    primary: RedisServer, host: str = "127.0.0.1", through: tuple[str, ...] = (), down_ms: int = 2000
) -> SentinelServer:
    """A sentinel (on a host of its own, perhaps) that watches a primary as the service ``main``.

    ``down_ms``: a primary that a busy machine holds up for so long is down, too, and what it has just taken is lost.
    """
    folder = Path(tempfile.mkdtemp(prefix="emq-sentinel-"))
    config = folder / "sentinel.conf"
    config.write_text(
        f"sentinel monitor main {primary.host} {primary.port} 1\nsentinel down-after-milliseconds main {down_ms}\n"
        "sentinel failover-timeout main 2000\n"
    )
    sentinel = SentinelServer(config, host, through)
    await sentinel.start()
    return sentinel


class SentinelServer(RedisServer):
    """A sentinel."""

    def __init__(self, config: Path, host: str, through: tuple[str, ...]) -> None:
        super().__init__("sentinel", redis7_binary(), config.parent, host=host, through=through)
        self._config = config

    async def start(self) -> None:  # type: ignore[override]
        self.port = free_port()
        at = ("--port", str(self.port), "--bind", self.host, "--protected-mode", "no")
        command = [*self.through, self.binary, str(self._config), "--sentinel", *at]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        await wait_until(self._up, 10, "the sentinel answers")

    def _up(self) -> bool:
        try:
            with self.asked() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def asked(self) -> redis.Redis:
        """A client of the sentinel's own."""
        return redis.Redis(host=self.host, port=self.port)

    def knows_replica(self, count: int = 1) -> bool:
        with self.asked() as client:
            return len(client.sentinel_slaves("main")) == count

    def end(self) -> None:
        """End it, and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
