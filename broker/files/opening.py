"""Which store it is: a folder on this machine, or a cloud's bucket."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from broker.errors import ConfigurationError
from broker.files.disk import DiskObjects
from broker.files.objects import Objects
from broker.files.store import FileStore, checked
from broker.settings import Settings


def open_objects(data: Path, area: str, url: str | None = None) -> Objects:
    """The objects of one ``area`` (a path of plain segments) below the data folder's ``objects``, or below ``url``.

    ``url``: ``file:///folder``, ``s3://bucket/prefix?endpoint=…&region=…``, ``gs://…`` or ``az://…``; credentials come
    from the environment, as each cloud's own tools read them. Raises ``ConfigurationError``.
    """
    parts = urlsplit(url or "")
    if url and parts.scheme != "file":
        # The library is 5 MB in memory.
        from broker.files.cloud import open_cloud  # noqa: PLC0415

        return open_cloud(url, area)
    if parts.netloc not in ("", "localhost"):
        raise ConfigurationError("EMQ_STORE_URL: a folder is named as file:///path, with three slashes.")
    base = Path(unquote(parts.path)) if url else data / "objects"
    root = (base / area).resolve()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"Cannot make the folder of stored files {root}: {error}.") from error
    return DiskObjects(root)


def open_store(
    data: Path, area: str, url: str | None = None, presign: Iterable[str] = (), keep_unused_s: float = 0
) -> FileStore:
    """The store for one ``area`` (see :func:`open_objects`)."""
    return FileStore(open_objects(data, checked(area), url), presign, keep_unused_s)


def open_stores(settings: Settings) -> tuple[FileStore, FileStore]:
    """The pool's two stores: of outputs and of input files."""
    methods = {"off": (), "get": ("GET",), "put": ("PUT",), "both": ("GET", "PUT")}[settings.store_presign]
    outputs, assets = (
        open_store(settings.data, f"{settings.pool}/{area}", settings.store_url, methods, keep_unused_s)
        for area, keep_unused_s in (("outputs", 0), ("assets", settings.keep_inputs_s))
    )
    return outputs, assets
