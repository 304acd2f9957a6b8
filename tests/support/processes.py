"""What the kernel says of processes."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def children(parent: int) -> dict[int, str]:
    """The living children of a process, with their command lines."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and state(int(folder.name))[1] == parent and is_there(int(folder.name)):
            try:
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def side_process(comfyui: int) -> int | None:
    """The side process of the worker in a ComfyUI."""
    return next((pid for pid, command in children(comfyui).items() if "emq.keeper" in command), None)


def listening(pid: int) -> set[int]:
    """The TCP ports at which a process and its children wait for connections."""
    own = {link for process in (pid, *children(pid)) for link in _open_files(process)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:  # 0A: LISTEN
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def _open_files(pid: int) -> set[str]:
    found: set[str] = set()
    with contextlib.suppress(OSError):  # the process has ended
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it has closed the file
                found.add(os.readlink(link))
    return found


def pss_mb(pid: int) -> float:
    """A process' memory in MB; pages that others have too count in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def is_there(pid: int) -> bool:
    """Whether a process runs. A zombie counts, unless it is an orphan that nobody here can reap."""
    now, parent = state(pid)
    return now != "" and not (now == "Z" and parent == 1)


def state(pid: int) -> tuple[str, int]:
    """State and parent; empty when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])


def idle_s() -> float:
    """A clock that stands still while this thread computes, or could and others have the cores.

    What passes on it is waiting for something, however slow or busy the machine is.
    """
    try:
        computed, delayed, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except OSError:  # a kernel that does not say how long others had the cores
        return time.monotonic() - time.thread_time()
    return time.monotonic() - (int(computed) + int(delayed)) / 1e9
