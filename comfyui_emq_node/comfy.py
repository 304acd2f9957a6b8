"""Everything that touches ComfyUI, and nothing else does.

The seams, chosen because they have been there since 2023 and survive its releases: ``PromptServer.instance.send_sync``
(every event, on the thread where it is born), ``prompt_queue.task_done`` (the final word on a prompt),
``prompt_queue.put``, ``app.on_startup``, the registered ``POST /prompt`` handler (all that validation, ids and queue
items need is then right by itself), and the sampler's previewer.

A hook must never raise and never wait: ComfyUI's own prompts go through them too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from . import previews
from .inventory import Inventory
from .prompt import Listener, Submitted

log = logging.getLogger("emq")

MARK = "emq_prompt"
"""Names our prompt in its extra data, so that the hook on ``put`` knows it; it is taken out there."""
PREVIEW, TEXT, PREVIEW_WITH_METADATA = 2, 3, 4
STATUS_PAUSE_S = 0.5
"""Pages hear about the queue's length at most this often while only our prompts change it."""


class _Request:
    """All that the prompt handler reads of a request."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body
        self.headers: dict[str, str] = {}

    async def json(self) -> dict[str, Any]:
        return self._body


class Comfy:
    """This process's ComfyUI."""

    def __init__(self) -> None:
        import comfy.model_management
        import folder_paths
        import nodes
        from server import PromptServer

        self._server: Any = PromptServer.instance
        self._queue: Any = self._server.prompt_queue
        self._nodes, self._management = nodes, comfy.model_management
        self._folders = folder_paths
        self.inventory = Inventory(nodes, folder_paths, comfy.model_management)
        self.tally = previews.Tally()
        self.client_id = f"emq-{uuid.uuid4().hex}"
        self.on_foreign_end: Callable[[], None] = lambda: None
        """Called (on any thread) when a prompt that is not ours has ended."""
        self.fresh_outputs = False
        """Have output nodes save again, also where ComfyUI has the same result from before (its files may be gone)."""
        self._listeners: dict[str, Listener] = {}
        self._cancelled: set[str] = set()
        self._staged: set[str] = set()
        self._held: dict[str, Any] = {}
        self._following = ("", "")
        """A prompt, and the held one that is to be queued when it ends."""
        self._thread: threading.Thread | None = None
        self._quiet_until = 0.0
        self._status_due = False
        self._troubles: set[str] = set()

    # -- hooking ------------------------------------------------------------------------------------------------------

    def hook(self, on_startup: Callable[[], Awaitable[None]]) -> None:
        """Set the hooks; ``on_startup`` runs in ComfyUI's loop when its server starts."""

        async def start(_app: Any) -> None:
            try:
                await on_startup()
            except Exception:
                log.exception("the worker does not start; ComfyUI goes on without it")

        self._server.app.on_startup.append(start)
        self._real_send, self._server.send_sync = self._server.send_sync, self._send_sync
        self._real_done, self._queue.task_done = self._queue.task_done, self._task_done
        self._real_put, self._queue.put = self._queue.put, self._put
        self._guard("previews", self._hook_previews)

    def _hook_previews(self) -> None:
        import comfy.cli_args
        import latent_preview

        def running() -> Callable[[], bool] | None:
            listener = self._running_listener()
            return None if listener is None else listener.wants_preview

        previews.gate(latent_preview, comfy.cli_args, running, self._guard, self.tally)

    def _guard(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call; an error is logged (once for each ``what``) and gives None."""
        try:
            return function(*args)
        except Exception:
            if what not in self._troubles:
                self._troubles.add(what)
                log.exception("%s: this ComfyUI is not as expected; the worker goes on", what)
            return None

    # -- the hooks ----------------------------------------------------------------------------------------------------

    def _send_sync(self, event: Any, data: Any, sid: Any = None, *args: Any, **kwargs: Any) -> Any:
        if sid == self.client_id:  # nobody is connected under this id: ComfyUI would wake its loop and send to no one
            self._guard(f"event {event}", self._observe, event, data)
            return None
        if event == TEXT and sid is None and self._guard("text", self._observe_text, data):
            return None
        if event == "status" and sid is None and self._guard("status", self._is_quiet):
            return None
        return self._real_send(event, data, sid, *args, **kwargs)

    def _observe(self, event: Any, data: Any) -> None:
        if isinstance(event, str):
            prompt_id = data.get("prompt_id") if isinstance(data, dict) else None
            if event == "execution_start":
                self._thread = threading.current_thread()
                if prompt_id in self._cancelled:  # an interrupt before this moment was wiped by the executor
                    self._nodes.interrupt_processing()
            listener = self._listeners.get(prompt_id) if prompt_id else None
            if listener is not None:
                listener.event(event, data)
                if event == "executed" and listener.is_watched:
                    self._show(listener, previews.shown_by(data.get("output"), self.file_of), data.get("node"))
        elif event in (PREVIEW, PREVIEW_WITH_METADATA):
            self._observe_image(data if event == PREVIEW_WITH_METADATA else (data, {}))

    def _observe_image(self, data: tuple[Any, dict[str, Any]]) -> None:
        (kind, image, size), meta = data
        listener = self._listeners.get(str(meta.get("prompt_id") or getattr(self._server, "last_prompt_id", "")))
        node_id = meta.get("display_node_id") or meta.get("node_id") or getattr(self._server, "last_node_id", None)
        if listener is None:
            return
        if kind == "PNG" and size is None:  # SaveImageWebsocket's way of delivering
            listener.final_image(image, node_id)
        elif listener.wants_preview():
            listener.preview(image, node_id)

    def _observe_text(self, message: bytes) -> bool:
        """A text that a node sends to all pages while it runs: if it is ours, it is none of theirs."""
        listener = self._running_listener()
        if listener is not None and listener.is_watched:
            node_id, text = previews.parse_text(message)
            self._show(listener, text, node_id)
        return listener is not None

    @staticmethod
    def _show(listener: Listener, content: Any, node_id: Any) -> None:
        if content is not None:
            listener.preview(content, None if node_id is None else str(node_id))

    def _put(self, item: Any, *args: Any, **kwargs: Any) -> Any:
        prompt_id = self._guard("put", lambda: item[3].pop(MARK, None))
        if prompt_id is None:
            return self._real_put(item, *args, **kwargs)
        if prompt_id not in self._listeners:  # given up while ComfyUI was validating it
            return None
        if item[1] != prompt_id:  # before 0.3.45 ComfyUI draws the id itself
            item = (item[0], prompt_id, *item[2:])
        self._held[prompt_id] = item
        if prompt_id not in self._staged:
            self.push(prompt_id)
        return None

    def _task_done(self, item_id: Any, *args: Any, **kwargs: Any) -> Any:
        item = self._guard("task_done", self._queue.currently_running.get, item_id)
        try:
            return self._real_done(item_id, *args, **kwargs)
        finally:
            if item is not None:
                self._guard("task_done", self._ended, item[1])

    def _ended(self, prompt_id: str) -> None:
        before, following = self._following
        if before == prompt_id and self.foreign()[1] == 0:
            self.push(following)
        listener = self.forget(prompt_id)
        if listener is None:
            self.on_foreign_end()
            return
        with self._queue.mutex:  # a person's history is not to fill up with the queue's prompts
            entry = self._queue.history.pop(prompt_id, None)
        listener.end(entry or {})

    def _is_quiet(self) -> bool:
        """Hold back news of the queue's length while only our prompts move it; the last news is always sent."""
        running, pending = self.foreign()
        if running or pending or (not self._listeners and time.monotonic() > self._quiet_until):
            return False
        if not self._status_due:
            self._status_due = True
            self._server.loop.call_soon_threadsafe(self._server.loop.call_later, STATUS_PAUSE_S, self._send_status)
        return True

    def _send_status(self) -> None:
        self._status_due = False
        self._guard("status", lambda: self._real_send("status", {"status": self._server.get_queue_info()}))

    # -- prompts ------------------------------------------------------------------------------------------------------

    async def submit(
        self,
        prompt_id: str,
        graph: dict[str, Any],
        extra: dict[str, Any],
        listener: Listener,
        *,
        front: bool,
        hold: bool,
    ) -> Submitted:
        """Give a prompt to ComfyUI's own handler, as its page would.

        ``front`` puts it before the waiting prompts of the page; with ``hold`` it is validated now and queued by
        :meth:`push`. Raises ``asyncio.TimeoutError`` when ComfyUI's loop is needed and does not answer within a
        minute; the prompt then never runs.
        """
        self._listeners[prompt_id] = listener
        if hold:
            self._staged.add(prompt_id)
        named = {"prompt_id": prompt_id, "client_id": self.client_id}
        body: dict[str, Any] = {"prompt": graph, **named, "extra_data": {**extra, MARK: prompt_id}}
        if front:
            body["front"] = True
        try:
            answer = await self._post_somewhere(body)
        except BaseException:
            self.cancel(prompt_id)
            self.forget(prompt_id)
            raise
        if answer.status != 200:
            self.forget(prompt_id)
        return answer

    async def _post_somewhere(self, body: dict[str, Any]) -> Submitted:
        """Call the handler here, where it keeps ComfyUI's own loop free; there, where packs have a hand in it."""
        self._ask_for_metadata()
        handler = self._handler()
        packs = getattr(self._server, "on_prompt_handlers", None)
        if not packs and getattr(handler, "__module__", "") == "server":
            return await self._post(handler, body)
        future = asyncio.run_coroutine_threadsafe(self._post(handler, body), self._server.loop)
        return await asyncio.wait_for(asyncio.wrap_future(future), 60)

    @staticmethod
    async def _post(handler: Callable[[Any], Awaitable[Any]], body: dict[str, Any]) -> Submitted:
        response = await handler(_Request(body))
        return Submitted(response.status, json.loads(response.text or "{}"))

    def push(self, prompt_id: str) -> None:
        """Queue a held prompt; harmless when it is queued already."""
        item = self._held.pop(prompt_id, None)
        if item is not None:
            self._quiet_until = time.monotonic() + STATUS_PAUSE_S
            self._real_put(item)

    def follow(self, prompt_id: str, following: str) -> None:
        """Queue a held prompt in the moment in which another one ends, on ComfyUI's own thread."""
        self._following = (prompt_id, following)

    def _handler(self) -> Callable[[Any], Awaitable[Any]]:
        for route in self._server.routes:
            if getattr(route, "method", "") == "POST" and getattr(route, "path", "") == "/prompt":
                handler: Callable[[Any], Awaitable[Any]] = route.handler
                return handler
        raise RuntimeError("this ComfyUI has no handler for POST /prompt")

    def _ask_for_metadata(self) -> None:
        """Have every preview name its prompt and node (since 0.3.45)."""
        known = getattr(self._server, "sockets_metadata", None)
        if isinstance(known, dict):
            known.setdefault(self.client_id, {"feature_flags": {"supports_preview_metadata": True}})

    def forget(self, prompt_id: str) -> Listener | None:
        """Tell nobody about this prompt any more; returns who was told."""
        self._cancelled.discard(prompt_id)
        self._staged.discard(prompt_id)
        self._held.pop(prompt_id, None)
        return self._listeners.pop(prompt_id, None)

    def cancel(self, prompt_id: str) -> None:
        """Take the prompt out of the queue, or interrupt it if it is the one that runs; nobody else's is touched.

        A node that never looks at the interrupt runs on; the listener is told when the prompt is over.
        """
        with self._queue.mutex:
            if prompt_id not in self._listeners:
                return
            self._cancelled.add(prompt_id)
            held = self._held.pop(prompt_id, None) is not None
            if held or self._queue.delete_queue_item(lambda item: item[1] == prompt_id):
                listener = self.forget(prompt_id)
                if listener is not None:
                    listener.end(None)
            elif any(item[1] == prompt_id for item in self._queue.currently_running.values()):
                self._nodes.interrupt_processing()

    def is_known(self, prompt_id: str) -> bool:
        """Whether ComfyUI still has the prompt, waiting or running (a person may clear the queue)."""
        if prompt_id in self._held:
            return True
        with self._queue.mutex:
            items = [*self._queue.queue, *self._queue.currently_running.values()]
        return any(item[1] == prompt_id for item in items)

    def foreign(self) -> tuple[int, int]:
        """How many prompts that are not ours run and wait."""
        with self._queue.mutex:
            running, waiting = list(self._queue.currently_running.values()), list(self._queue.queue)
        return self._count_foreign(running), self._count_foreign(waiting)

    def _count_foreign(self, items: Iterable[Any]) -> int:
        return sum(1 for item in items if item[1] not in self._listeners)

    def _running_listener(self) -> Listener | None:
        for item in list(self._queue.currently_running.values()):
            return self._listeners.get(item[1])
        return None

    # -- the process --------------------------------------------------------------------------------------------------

    def is_prompt_thread_alive(self) -> bool:
        """Whether the thread that runs prompts lives; a node that raises SystemExit ends it, ComfyUI goes on."""
        if self._thread is None:
            found = [each for each in threading.enumerate() if each.name.endswith("(prompt_worker)")]
            self._thread = found[0] if found else None
        return self._thread is None or self._thread.is_alive()

    def free_memory(self) -> None:
        """Have ComfyUI unload its models and drop its node cache after the current prompt."""
        self._queue.set_flag("unload_models", True)
        self._queue.set_flag("free_memory", True)

    def file_of(self, item: dict[str, Any]) -> str | None:
        """The path of an output entry ``{filename, subfolder, type}``, if it lies where such files do."""
        folder = self._folders.get_directory_by_type(str(item.get("type") or "output"))
        if folder is None:
            return None
        root = os.path.abspath(folder)
        path = os.path.abspath(os.path.join(root, str(item.get("subfolder") or ""), str(item["filename"])))
        return path if path.startswith(root + os.sep) and os.path.isfile(path) else None

    def add_routes(self, routes: Iterable[tuple[str, str, Callable[[Any], Awaitable[Any]]]]) -> None:
        """Serve paths on ComfyUI's own port, as ``/path`` and ``/api/path``; called while nodes are imported."""
        for method, path, handler in routes:
            self._server.routes.route(method, path)(handler)

    def input_folder(self) -> str:
        """Where input files go."""
        return str(self._folders.get_input_directory())

    def output_folder(self) -> str:
        """Where nodes save."""
        return str(self._folders.get_output_directory())

    def port(self) -> int:
        """The port this ComfyUI serves on."""
        from comfy.cli_args import args as options

        return int(options.port)

    def on_signal(self, handler: Callable[[], None]) -> bool:
        """Call ``handler`` in ComfyUI's loop on SIGINT and SIGTERM; False where a loop cannot do that (Windows)."""
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._server.loop.add_signal_handler(number, handler)
        except (NotImplementedError, RuntimeError, ValueError):
            return False
        return True

    def end(self) -> None:
        """End ComfyUI as Ctrl-C does; may be called from any thread."""

        def interrupt() -> None:
            raise KeyboardInterrupt

        self._server.loop.call_soon_threadsafe(interrupt)


def node_class(name: str) -> Any:
    """One of ComfyUI's own node classes; raises ``KeyError``."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[name]
