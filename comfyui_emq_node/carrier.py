"""Carries one file to where it is wanted: hashed, then sent by PUT. Blocking, for threads; nothing is held whole.

The side process does this, so that no byte of an output passes through ComfyUI's interpreter; the worker does it itself
where no side process can be had.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

CHUNK = 1 << 20
SMALL = 256 << 10
"""A file up to this size is read once, for its hash and for the wire."""
HEAD = 24
"""So many bytes tell how large a PNG's picture is."""
CONNECT_S = 5.0
CONTINUE_S = 5.0
"""How long a server may take to say that a file may come; who says nothing gets it all the same."""
SILENT_S = 60.0
MAX_ANSWER = 1 << 20
STORES = (307, 308)
"""The broker sends the file to the object store itself."""


@dataclass(frozen=True)
class Errand:
    """A file, where it goes, and the most bytes that are taken there."""

    path: str
    url: str
    authorization: str
    max_bytes: int | None = None


class Connection(http.client.HTTPConnection):
    """Sends a request's head together with the first piece of its body: one packet, and one wake-up for the server."""

    _held: list[bytes] | None = None

    def send(self, data: Any) -> None:
        """Send, or keep for :meth:`begin_with`."""
        if self._held is None:
            super().send(data)
        else:
            self._held.append(data)

    def begin_with(self, piece: bytes) -> None:
        """End the head and send it with a piece of the body."""
        held = self._held = []
        try:
            self.endheaders()
        finally:
            self._held = None
        self.send(b"".join((*held, piece)))


class SecuredConnection(Connection, http.client.HTTPSConnection):
    """The same by TLS."""


class Carrier:
    """Sends files; connections are kept open for the next."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str], list[Connection]] = {}
        self._lock = threading.Lock()

    def put(self, errand: Errand) -> dict[str, Any]:
        """Carry a file.

        Gives ``status`` (HTTP) with ``answer``, ``size``, ``hash`` and, of a small file, its ``head`` (hexadecimal);
        or ``too_large`` (bytes); or ``unreadable`` or ``again``, each with the reason. Never raises.
        """
        try:
            content = _read_small(errand.path)
            size, digest = _measured(content) if content is not None else _measure(errand.path)
        except OSError as error:
            return {"unreadable": str(error)}
        if errand.max_bytes is not None and size > errand.max_bytes:
            return {"too_large": size}
        try:
            status, answer = self._deliver(errand, content, size, digest)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return {"again": str(error) or type(error).__name__}
        head = {} if content is None else {"head": content[:HEAD].hex()}
        return {"status": status, "answer": answer, "size": size, "hash": f"blake3:{digest}", **head}

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def _deliver(self, errand: Errand, content: bytes | None, size: int, digest: str) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Length": str(size), "X-Content-Blake3": digest}

        def body() -> Iterator[bytes]:
            return iter((content,)) if content is not None else _pieces(errand.path)

        given = {**headers, "Authorization": errand.authorization}
        if content is None:  # a large file is not sent to a broker that refuses it or sends it on
            given["Expect"] = "100-continue"
        status, answer, location = self._send("PUT", errand.url, body(), given)
        if status not in STORES or not location:
            return status, answer
        # to the store itself; the lease is for the broker alone, and the store's refusal says nothing about it
        status, _, _ = self._send("PUT", urljoin(errand.url, location), body(), headers)
        if status >= 300:
            raise OSError(f"the object store answers HTTP {status}")
        return status, answer

    def post(self, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> int:
        """Send a JSON document; gives the status. Raises ``OSError`` or ``HTTPException``."""
        data = json.dumps(body).encode()
        named = {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}
        return self._send("POST", url, iter((data,)), named)[0]

    def _send(
        self, method: str, url: str, body: Iterator[bytes], headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any], str | None]:
        parts = urlsplit(url)
        place = (parts.scheme, parts.netloc)
        connection = self._connection(place)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            refused = _begin(connection, method, target, body, headers)
            if refused is not None:
                connection.close()  # it waits for what will not come
                return refused
            response = _rest(connection, body)
            text = response.read()
        except BaseException:
            connection.close()
            raise
        self._keep(place, connection)
        return response.status, _object(text), response.getheader("Location")

    def _connection(self, place: tuple[str, str]) -> Connection:
        with self._lock:
            idle = self._idle.get(place)
            connection = idle.pop() if idle else None
        if connection is not None and not _is_closed(connection):
            return connection
        kind = SecuredConnection if place[0] == "https" else Connection
        connection = kind(place[1], timeout=CONNECT_S)
        connection.connect()
        connection.sock.settimeout(SILENT_S)
        return connection

    def _keep(self, place: tuple[str, str], connection: Connection) -> None:
        if connection.sock is not None:  # the answer did not close it
            with self._lock:
                self._idle.setdefault(place, []).append(connection)


def _begin(
    connection: Connection, method: str, target: str, body: Iterator[bytes], headers: Mapping[str, str]
) -> tuple[int, dict[str, Any], str | None] | None:
    """Send a request's head, with the first piece of its body; asked first, what the server has against the body."""
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if "Expect" not in headers:
        connection.begin_with(next(body, b""))
        return None
    connection.endheaders()
    connection.sock.settimeout(CONTINUE_S)
    try:
        return _verdict(connection.sock)
    except TimeoutError:
        return None
    finally:
        connection.sock.settimeout(SILENT_S)


def _verdict(sock: socket.socket) -> tuple[int, dict[str, Any], str | None] | None:
    """A server's answer to a request's head alone: status, object and location; ``None``: the body may come."""
    with sock.makefile("rb", 0) as file:
        words = file.readline(1 << 16).split(None, 2)
        if len(words) < 2 or not words[1].isdigit():
            raise http.client.RemoteDisconnected("the server closed the connection without an answer")
        headers, status = http.client.parse_headers(file), int(words[1])
        if status == http.client.CONTINUE:
            return None
        text, left = b"", min(int(headers.get("Content-Length") or 0), MAX_ANSWER)
        while left > len(text) and (piece := file.read(left - len(text))):
            text += piece
        return status, _object(text), headers.get("Location")


def _rest(connection: Connection, body: Iterator[bytes]) -> http.client.HTTPResponse:
    """Send what is left of the body; the answer."""
    try:
        for piece in body:
            connection.send(piece)
    except ConnectionError:  # refused before the end: the answer may be there
        return connection.getresponse()
    return connection.getresponse()


def _is_closed(connection: Connection) -> bool:
    """Whether the server has closed an idle connection: nothing but an end can be read from it."""
    import select

    return bool(select.select([connection.sock], [], [], 0)[0])


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read_small(path: str) -> bytes | None:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > SMALL:
            return None
        content = file.read(SMALL + 1)
    return content if len(content) <= SMALL else None


def _measured(content: bytes) -> tuple[int, str]:
    from blake3 import blake3

    return len(content), blake3(content).hexdigest()


def _measure(path: str) -> tuple[int, str]:
    """Size and blake3 of a file."""
    from blake3 import blake3

    hasher = blake3()
    size = 0
    for piece in _pieces(path):
        hasher.update(piece)
        size += len(piece)
    return size, hasher.hexdigest()


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            yield piece
