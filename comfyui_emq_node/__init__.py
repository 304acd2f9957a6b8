"""EMQ's worker: dropped into ComfyUI's ``custom_nodes``, it takes jobs from the queue and runs them in this ComfyUI.

ComfyUI imports this file at start-up. Whatever goes wrong here ends in one log line and a ComfyUI that works as before.
"""

from __future__ import annotations

import logging
import sys

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

WEB_DIRECTORY = "./web"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def _named(record: logging.LogRecord) -> bool:
    """ComfyUI's log shows bare messages: ours say whose they are."""
    if not str(record.msg).startswith("EMQ: "):
        record.msg = f"EMQ: {record.msg}"
    return True


def _start() -> None:
    """Hook ComfyUI; the worker starts once ComfyUI's server does. Elsewhere (in tests, say) nothing happens."""
    if "server" not in sys.modules or "folder_paths" not in sys.modules:
        return
    log = logging.getLogger("emq")
    log.addFilter(_named)
    try:
        from .settings import Settings, SettingsError
        from .start import install

        try:
            install(Settings.load())
        except SettingsError as error:
            log.error("the worker does not start: %s", error)
    except Exception:
        log.exception("the worker does not start; ComfyUI goes on without it")


_start()
