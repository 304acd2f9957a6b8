"""Whether a worker's own event loop answers: what tells one that keeps silent from one that cannot speak."""

from __future__ import annotations

import time


class Pulse:
    """Pings and their answers. A worker whose interpreter is held by C code answers none, and is well."""

    def __init__(self) -> None:
        self._awake_since: float | None = time.monotonic()
        self._is_asked = False

    def asked(self) -> None:
        """A ping goes out; when the one before has no answer yet, the worker cannot speak."""
        if self._is_asked:
            self._awake_since = None
        self._is_asked = True

    def heard(self) -> None:
        """Something has come from the worker: an answer or a message."""
        self._is_asked = False
        if self._awake_since is None:
            self._awake_since = time.monotonic()

    def is_awake(self, for_s: float) -> bool:
        """Whether it could have spoken all the time of the last ``for_s`` seconds."""
        return self._awake_since is not None and time.monotonic() - self._awake_since >= for_s
