"""Objects, whatever keeps them: :mod:`broker.files.disk` or :mod:`broker.files.cloud`.

Bytes stream both ways. An object appears when all of it has come, on a local disk as in a bucket.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from broker.errors import EmqError, NotFound, Unavailable

CHUNK = 1 << 20
SMALL = 256 << 10
"""The size up to which an object is put and read in one go."""
Method = Literal["GET", "PUT"]
Decide = Callable[[bytes | None], bytes | None]
"""Makes of a small object (``None``: there is none) what it shall be (``None``: it stays as it is)."""


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an object, its whole size, and the content type it was stored with."""

    start: bytes
    size: int
    content_type: str | None


class Objects(Protocol):
    """Objects under keys. Errors: ``NotFound``, ``Unavailable``, ``StorageFull``."""

    is_local: bool
    """Whether the objects lie on a local disk."""

    async def check(self) -> None:
        """See that the store lets us in; raises ``ConfigurationError``, ``Unavailable`` when it does not answer."""

    async def write(self, key: str, chunks: AsyncIterator[bytes], headers: Callable[[], Mapping[str, str]]) -> None:
        """Stream into a new object, which appears when the stream has ended well; raises what ``chunks`` raises.

        ``headers``, asked for once the first bytes are known, go with the object where a store keeps such.
        """

    async def name(self, key: str, data: str, decide: Decide) -> bytes | None:
        """Have the small object ``key`` name ``data``, which has come, as ``decide`` says; answers what ``key`` was.

        An object that is not named, be it because of an error, is removed.
        """

    async def put(
        self, key: str, data: str, content: bytes, headers: Mapping[str, str], decide: Decide
    ) -> bytes | None:
        """Put a small object under ``data`` and have ``key`` name it, as :meth:`name` does."""

    async def write_small(self, key: str, content: bytes) -> None:
        """Write an object in one step."""

    async def read_small(self, key: str, limit: int) -> bytes:
        """A whole object; ``NotFound`` also for one over ``limit`` bytes."""

    def read(self, key: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Stream bytes ``start`` to ``end`` (exclusive)."""

    async def head(self, key: str, length: int) -> Head:
        """The first bytes, and what the store says of the rest."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""

    async def remove(self, parent: str) -> int:
        """Remove everything below a folder; answers how many objects there were."""

    async def sweep(self, below: str, before: datetime) -> None:
        """Remove what was half written before then and no listing has: a broker that was killed leaves it."""

    def below(self, parent: str) -> AsyncGenerator[list[tuple[str, datetime]], None]:
        """Keys of everything below a folder, each with the time of its last change, in batches."""

    async def folders(self, parent: str, after: str, most: int) -> list[str]:
        """The keys of the folders directly below ``parent`` (empty: the root), in order: the first behind ``after``."""

    @property
    def signs(self) -> frozenset[str]:
        """The methods for which the store makes URLs."""

    async def signed_url(self, method: Method, key: str, age_s: int) -> str | None:
        """A URL by which whoever has it may GET or PUT this one object for ``age_s`` seconds.

        ``None``: the store makes none for this method, as :attr:`signs` says.
        """


@contextmanager
def translated(
    errors: tuple[type[Exception], ...], meaning: Callable[[Exception], EmqError | None], *, writing: bool = False
) -> Iterator[None]:
    """Turns a store's errors into ours; what is not found while ``writing`` is the store.

    ``meaning`` knows those of ``errors`` that say more than that it does not answer (``None``: this one does not).
    """
    try:
        yield
    except FileNotFoundError as error:
        if writing:
            raise Unavailable("The object store is not there; its operator has to look at it.") from error
        raise NotFound("There is no such file.") from error
    except errors as error:
        raise meaning(error) or Unavailable("The object store does not answer; try again.") from error
