"""What waits to be sent on one connection: bounded, in order, with newer progress in the place of older."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from broker.flag import Flag

HIGH_BYTES = 256 * 1024
"""Above this no further request of the client is read and event streams wait."""
MAX_PREVIEWS = 8


@dataclass(slots=True)
class _Item:
    data: str | bytes | None
    key: tuple[str, str] | None


class Outbox:
    """A queue of frames for one writer.

    A frame with a ``key`` replaces the one with the same key that was not sent yet and takes the place at the end, so
    it never overtakes a change of state. Frames without a key are never dropped; :meth:`room` bounds their number.
    """

    __slots__ = ("_bytes", "_ended", "_items", "_keyed", "_previews", "_room", "_some", "_write_now")

    def __init__(self, write_now: Callable[[str | bytes], bool] | None = None) -> None:
        """``write_now`` sends a frame without the writer, if it can at once: what lies here goes before."""
        self._write_now = write_now
        self._items: deque[_Item] = deque()
        self._keyed: dict[tuple[str, str], _Item] = {}
        self._previews = 0
        self._bytes = 0
        self._ended = False
        self._some = Flag()
        self._room = Flag(on=True)

    def put(self, text: str) -> None:
        """A frame that must arrive. Answers to a client that sends without pause cost less one behind the other."""
        self._append(_Item(text, None))

    def put_latest(self, kind: str, subject: str, text: str) -> None:
        """A frame of which only the newest matters (progress of a job, figures)."""
        if not self._went(text):
            self._replace(_Item(text, (kind, subject)))

    def put_preview(self, job_id: str, data: bytes) -> None:
        """A picture; dropped when the connection lags."""
        key = ("preview", job_id)
        if key in self._keyed or (self._previews < MAX_PREVIEWS and self._room.is_set()):
            self._replace(_Item(data, key))

    async def get(self) -> str | bytes:
        """The next frame to send."""
        while True:
            while self._items:
                item = self._items.popleft()
                data = item.data
                if data is not None:
                    self._forget(item)
                    return data
            self._some.clear()
            await self._some.wait()

    async def room(self) -> None:
        """Wait until the client has taken enough of what lies here, or takes no more."""
        await self._room.wait()

    def end(self) -> None:
        """Nobody takes any more: what lies here and what comes is dropped, and nobody waits for room."""
        self._ended = True
        self._items.clear()
        self._keyed.clear()
        self._room.set()

    def __len__(self) -> int:
        return sum(item.data is not None for item in self._items)

    def _went(self, text: str) -> bool:
        return not self._items and self._write_now is not None and self._write_now(text)

    def _replace(self, item: _Item) -> None:
        if self._ended:
            return
        assert item.key is not None
        old = self._keyed.get(item.key)
        if old is not None:
            self._forget(old)
            old.data = None
        self._keyed[item.key] = item
        self._previews += item.key[0] == "preview"
        self._append(item)

    def _append(self, item: _Item) -> None:
        if self._ended:
            return
        self._items.append(item)
        self._bytes += len(item.data or b"")
        if self._bytes > HIGH_BYTES:
            self._room.clear()
        self._some.set()

    def _forget(self, item: _Item) -> None:
        self._bytes -= len(item.data or b"")
        if item.key is not None:
            self._keyed.pop(item.key, None)
            self._previews -= item.key[0] == "preview"
        if self._bytes <= HIGH_BYTES // 2:
            self._room.set()
