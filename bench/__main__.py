"""``python -m bench [NAME] [OPTIONS]``: run one benchmark, or all of them."""

from __future__ import annotations

import sys

from bench import (
    access,
    deliveries,
    demo,
    disk,
    files,
    fleet,
    inputs,
    load,
    main_job,
    queue,
    reconnect,
    recovery,
    scale,
)
from bench.dashboard import main as dashboard

BENCHES = {
    "main-job": main_job.main,
    "demo": demo.main,
    "queue": queue.main,
    "scale": scale.main,
    "fleet": fleet.main,
    "inputs": inputs.main,
    "files": files.main,
    "disk": disk.main,
    "load": load.main,
    "deliveries": deliveries.main,
    "reconnect": reconnect.main,
    "recovery": recovery.main,
    "access": access.main,
    "dashboard": dashboard.main,
}


def main(argv: list[str]) -> int:
    """Run the named benchmark with its options; all of them without a name."""
    if argv and argv[0] in BENCHES:
        return BENCHES[argv[0]](argv[1:])
    if argv:
        print(f"no benchmark {argv[0]!r}; there are: {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    return max(bench([]) for bench in BENCHES.values())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
