"""Input files on this machine's disk: named by the hash of their content, used by jobs, the unused ones dropped.

They lie in the folder ``emq`` inside ComfyUI's input folder, where its loaders find them as ``emq/<hash>.png``, as they
find what its page uploads. Several ComfyUIs may share one input folder: a file that a job uses is held open and
locked, and nobody drops a locked one. A process that dies leaves no lock behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

if sys.platform != "win32":
    import fcntl

FOLDER = "emq"
PART = ".part-"
IDLE_NS = 3600 * 10**9
"""Where files cannot be locked, one that was not used for this long counts as unused."""


def _lock(file: IO[bytes], alone: bool) -> bool:
    """Lock an open file, shared or alone, until it is closed; False when another has it.

    On Windows an open file cannot be removed, which does the same. Raises ``OSError`` where locks do not work.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Held:
    """A file that stays as long as this is open. ``name`` is what a graph calls it."""

    name: str
    path: str
    digest: str
    size: int
    file: IO[bytes]

    def close(self) -> None:
        """Let go of the file; it may be dropped then."""
        self.file.close()


class Part:
    """A file that is being written."""

    def __init__(self, file: Any) -> None:
        from blake3 import blake3

        self._file, self._new = file, blake3
        self.path = str(file.name)
        self.hasher, self.size = blake3(), 0
        with contextlib.suppress(OSError):
            _lock(file, alone=False)

    def write(self, piece: bytes) -> None:
        """Add to the file."""
        self._file.write(piece)
        self.hasher.update(piece)
        self.size += len(piece)

    def restart(self) -> None:
        """Begin again with nothing."""
        self._file.seek(0)
        self._file.truncate()
        self.hasher, self.size = self._new(), 0

    def close(self) -> None:
        """Have everything on its way to the disk."""
        self._file.close()

    def discard(self) -> None:
        """Remove it."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


class InputCache:
    """The folder of input files; ``budget`` in bytes. Methods read and write disks: call them on a thread."""

    def __init__(self, input_folder: Callable[[], str], budget: int) -> None:
        self._input_folder, self._budget = input_folder, budget
        self._lock = threading.Lock()
        self._names: dict[str, str] | None = None
        """File name by hash, as far as this process knows."""
        self._total = 0
        self._whole: set[str] = set()
        """Paths of files that this process has written or looked through."""

    @property
    def _folder(self) -> str:
        return os.path.join(self._input_folder(), FOLDER)

    def find(self, digest: str, ending: str = "") -> Held | None:
        """A file by the hash of its content (under another ending, too), held; None when it is not here."""
        with self._lock:
            known = self._known().get(digest)
        for name in dict.fromkeys(filter(None, (known, digest + ending))):
            held = self._hold(name, digest)
            if held is not None and self._is_whole(held):
                return self._under(held, ending) if ending and not name.endswith(ending) else held
        return None

    def part(self) -> Part:
        """A new file to write to."""
        os.makedirs(self._folder, exist_ok=True)
        return Part(tempfile.NamedTemporaryFile(prefix=PART, dir=self._folder, delete=False))

    def keep(self, part: Part, ending: str) -> Held:
        """Take a complete file in, under its hash; what was not used for longest makes room."""
        digest = part.hasher.hexdigest()
        part.close()
        held = self.find(digest, ending)
        if held is not None:
            part.discard()
            return held
        name = digest + ending
        path = os.path.join(self._folder, name)
        os.replace(part.path, path)
        self._whole.add(path)
        held = self._hold(name, digest)
        if held is None:
            raise OSError(errno.ENOENT, "the file went away")
        with self._lock:
            self._known()[digest] = name
            self._total += held.size
            over = self._total > self._budget
        if over:
            self.make_room(self._budget * 9 // 10)
        return held

    def tidy(self) -> None:
        """Keep to the budget, and remove what a process that was killed left half written."""
        self.make_room(self._budget)

    def make_room(self, goal: int = 0) -> int:
        """Drop unused files, those first that were not used for longest, until ``goal`` bytes are left; says how much.

        What a process left half written goes in any case.
        """
        with self._lock:
            files = sorted(self._files(), key=lambda each: (not each[2].startswith(PART), each[0]))
            total, dropped = sum(size for _, size, _ in files), 0
            for used, size, name in files:
                if not name.startswith(PART) and total - dropped <= goal:
                    break
                path = os.path.join(self._folder, name)
                if self._drop(path, used):
                    dropped += size
                    self._whole.discard(path)
                    self._known().pop(name.partition(".")[0], None)
            self._total = total - dropped
            return dropped

    def _is_whole(self, held: Held) -> bool:
        """Look once whether a file from before this process is what its name says; a power cut may have changed it."""
        from blake3 import blake3

        if held.path in self._whole:
            return True
        hasher = blake3()
        while piece := held.file.read(1 << 20):
            hasher.update(piece)
        if hasher.hexdigest() == held.digest:
            self._whole.add(held.path)
            return True
        held.close()
        with contextlib.suppress(OSError):
            os.unlink(held.path)
        return False

    # -- inside ---------------------------------------------------------------------------------------------------

    def _known(self) -> dict[str, str]:
        if self._names is None:
            files = [each for each in self._files() if not each[2].startswith(".")]
            self._names = {name.partition(".")[0]: name for _, _, name in files}
            self._total = sum(size for _, size, _ in files)
        return self._names

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """(last use, size, name) of each."""
        try:
            entries = list(os.scandir(self._folder))
        except OSError:
            return
        for entry in entries:
            with contextlib.suppress(OSError):
                stat = entry.stat(follow_symlinks=False)
                if entry.is_file(follow_symlinks=False):
                    yield stat.st_atime_ns, stat.st_size, entry.name

    def _hold(self, name: str, digest: str) -> Held | None:
        path = os.path.join(self._folder, name)
        try:
            file = open(path, "rb")  # noqa: SIM115 - it stays open as long as a job uses it
        except OSError:
            return None
        with contextlib.suppress(OSError):
            _lock(file, alone=False)
        stat = os.fstat(file.fileno())
        if not stat.st_nlink:  # dropped between the opening and the lock
            file.close()
            return None
        # The time of the last use; that of the last change stays, because loaders tell by it whether a file is new.
        with contextlib.suppress(OSError):
            os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))
        return Held(f"{FOLDER}/{name}", path, digest, stat.st_size, file)

    def _under(self, held: Held, ending: str) -> Held:
        """The same content under another ending; the disk keeps it once, where it can."""
        name = held.digest + ending
        path = os.path.join(self._folder, name)
        try:
            if not os.path.exists(path):
                try:
                    os.link(held.path, path)
                except OSError:
                    shutil.copy2(held.path, path)
            other = self._hold(name, held.digest)
        except BaseException:
            held.close()
            raise
        if other is None:
            return held
        held.close()
        return other

    def _drop(self, path: str, used: int) -> bool:
        try:
            with open(path, "rb") as file:
                try:
                    free = _lock(file, alone=True)
                except OSError:
                    free = time.time_ns() - used > IDLE_NS
                if free and sys.platform != "win32":
                    os.unlink(path)
                    return True
            if free:
                os.unlink(path)
        except OSError:
            return False
        return free
