"""A process with a share in a data folder's Valkey: ``python share_valkey.py DATA [--once]``.

Prints the URL when the server answers, then waits for SIGTERM (``--once``: for its input to end), as a broker
(a command line) would.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from broker.queue.embedded import EmbeddedValkey


async def main(data: str, once: bool) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    valkey = EmbeddedValkey(Path(data), supervise=not once)
    print(await valkey.start(), flush=True)
    if once:
        await asyncio.to_thread(sys.stdin.read)
    else:
        await stop.wait()
    await valkey.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], "--once" in sys.argv))
