"""File locks that the kernel gives back when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """One ``flock`` on one file. Not shared with child processes unless :meth:`fileno` is passed on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def fileno(self) -> int:
        """The descriptor that holds the lock; a child process that inherits it keeps the lock while it lives."""
        if self._fd is None:
            raise ValueError(f"{self.path} is not locked")
        return self._fd

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free now; ``True`` when it is held afterwards. Raises ``OSError``."""
        if self._fd is not None:
            return True
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def last(self) -> bool:
        """Turn a shared lock into an exclusive one, which only the last holder can.

        Of several holders that ask, the last to ask succeeds: the kernel gives up the shared lock before it tries.
        """
        try:
            fcntl.flock(self.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give the lock back, unless a child process holds it too."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
