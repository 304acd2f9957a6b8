"""The side process of a worker: it keeps the lease while ComfyUI cannot, says when ComfyUI has died, carries files.

C code that holds the interpreter for a minute stops every thread of ComfyUI, so the lease is kept from outside of it.
It is small on purpose: the standard library, blake3, nothing of ComfyUI. It takes one JSON object a line on stdin
and answers errands so on stdout. It ends with ComfyUI, whatever ended that: the pipe is closed, or the parent is gone
(a forked child may hold the pipe open). Unless ``bye`` came first, the queue then hears at once that this worker has
died, and its jobs go on elsewhere.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, BinaryIO

from .carrier import Carrier, Errand
from .resp import Incomplete, ReplyError, pack, parse

CARRIERS = 4
"""Files that are under way at the same time."""
ANSWER_S = 3.0
KEEP_MAX_S = 5.0
TELL_FOR_S = 30.0
Message = dict[str, Any]


class Server:
    """A connection to a Redis server, opened when it is needed. ``place`` says where and with which login."""

    def __init__(self, place: Message) -> None:
        self._place = place
        self._socket: socket.socket | None = None
        self._rest = b""

    def call(self, *command: bytes | str | int) -> Any:
        """One command; raises ``OSError`` or ``ReplyError``, and then begins anew with the next."""
        try:
            if self._socket is None:
                self._open()
            return self._ask(*command)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        place = self._place
        if place.get("path"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(ANSWER_S)
            self._socket.connect(place["path"])
        else:
            self._socket = socket.create_connection((place["host"], place["port"]), ANSWER_S)
        if place.get("tls") is not None:
            self._socket = _secured(self._socket, place["host"], place["tls"])
        login = [place["username"]] if place.get("username") else []
        if place.get("password"):
            self._ask("AUTH", *login, place["password"])
        if place.get("database"):
            self._ask("SELECT", place["database"])

    def _ask(self, *command: bytes | str | int) -> Any:
        assert self._socket is not None
        self._socket.sendall(pack(command))
        while True:
            with contextlib.suppress(Incomplete):
                answer, end = parse(self._rest)
                self._rest = self._rest[end:]
                if isinstance(answer, ReplyError):
                    raise answer
                return answer
            piece = self._socket.recv(65536)
            if not piece:
                raise ConnectionError("Redis has closed the connection")
            self._rest += piece

    def close(self) -> None:
        """Close the connection; never raises."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._rest = b""


def _secured(plain: socket.socket, host: str, tls: Message) -> socket.socket:
    """The connection with TLS, checked as the worker checks its own."""
    import ssl

    context = ssl.create_default_context(cafile=tls.get("ca_certs"), capath=tls.get("ca_path"))
    context.check_hostname = tls["checked"] and tls["check_hostname"]
    if not tls["checked"]:
        context.verify_mode = ssl.CERT_NONE
    if tls.get("certfile"):
        context.load_cert_chain(tls["certfile"], tls.get("keyfile"), tls.get("password"))
    return context.wrap_socket(plain, server_hostname=host)


class Lease:
    """A worker's lease in one pool, kept in Redis."""

    def __init__(self, message: Message) -> None:
        self._place: Message = message["server"]
        self._prefix, self._worker, self._instance = message["prefix"], message["worker"], message["instance"]
        self._pause = min(KEEP_MAX_S, max(0.1, message["lease_s"] / 4))
        self._over = threading.Event()

    def start(self) -> None:
        """Keep it from now on."""
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Keep it no longer."""
        self._over.set()

    def _run(self) -> None:
        """Where Redis is away the next turn is soon enough; another process that has the name ends it."""
        server = Server(self._place)
        while not self._over.wait(self._pause):
            with contextlib.suppress(OSError, ReplyError, ValueError):
                if self._call(server, "emq_keep", "worker", self._worker) == b"superseded":
                    break
        server.close()

    def _call(self, server: Server, function: str, *pairs: str) -> bytes:
        answer = server.call("FCALL", function, 1, self._prefix, "instance", self._instance, *pairs)
        return bytes(answer[0])

    def tell_gone(self) -> None:
        """Say that the worker has died, on a connection of its own; raises ``OSError`` or ``ReplyError``."""
        self._call(Server(self._place), "emq_gone")


class Link:
    """A worker that has its lease by an open socket at a broker: only its death is told here."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def start(self) -> None:
        """Nothing is to be kept."""

    def stop(self) -> None:
        """Nothing was kept."""

    def tell_gone(self) -> None:
        """Say that the worker has died; raises ``OSError`` or ``HTTPException``."""
        message = self._message
        status = Carrier().post(message["url"], {"instance": message["instance"]}, message["headers"])
        if status >= 500:
            raise ConnectionError(f"the broker answers {status}")


class Keeper:
    """What this process does for its worker."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._pools: dict[str, Lease | Link] = {}
        self._carrier = Carrier()
        self._errands: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._open, self._carriers = 0, 0
        self._said_bye = False

    def take(self, message: Message) -> None:
        """Do what one line says."""
        if "put" in message:
            self._send_off(message)
        elif "keep" in message:
            pool, what = message["keep"], message["as"]
            if pool in self._pools:
                self._pools[pool].stop()
            self._pools[pool] = Lease(what) if "server" in what else Link(what)
            self._pools[pool].start()
        elif "bye" in message:
            self._said_bye = True

    def _send_off(self, message: Message) -> None:
        """Have a file carried; another thread is begun where all have something to do."""
        with self._lock:
            self._open += 1
            more = self._carriers < min(self._open, CARRIERS)
            self._carriers += more
        self._errands.put(message)
        if more:
            threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self) -> None:
        while True:
            message = self._errands.get()
            try:
                answer = self._carrier.put(Errand(**message["put"]))
            except Exception as error:
                answer = {"again": f"{type(error).__name__}: {error}"}
            with self._lock:
                self._open -= 1
            self._say({"id": message["id"], **answer})

    def _say(self, answer: Message) -> None:
        line = json.dumps(answer).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            self._out.write(line)
            self._out.flush()

    def end(self) -> None:
        """The worker's process is no more: say so, unless it has said it itself; then end this one."""
        if self._said_bye:
            os._exit(0)
        until, pools = time.monotonic() + TELL_FOR_S, dict(self._pools)
        for pool in pools.values():
            pool.stop()
        while pools and time.monotonic() < until:
            for name, pool in list(pools.items()):
                with contextlib.suppress(OSError, ReplyError, ValueError, http.client.HTTPException):
                    pool.tell_gone()
                    del pools[name]
            if pools:
                time.sleep(0.5)
        os._exit(0)


def await_death(parent: int) -> None:
    """Return when the process ``parent`` is no longer this one's parent."""
    with contextlib.suppress(AttributeError, OSError):
        handle = os.pidfd_open(parent)
        if os.getppid() == parent:
            select.select([handle], [], [])
    while os.getppid() == parent:  # where there are no such handles
        time.sleep(1.0)


def main(parent: int) -> None:
    """Serve the worker whose process is ``parent`` until it has gone."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # meant for ComfyUI, and sent to its whole group
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    keeper = Keeper(sys.stdout.buffer)

    def watch() -> None:
        await_death(parent)
        keeper.end()

    threading.Thread(target=watch, daemon=True).start()
    for line in sys.stdin.buffer:
        keeper.take(json.loads(line))
    keeper.end()
