"""EMQ's worker: dropped into ComfyUI's ``custom_nodes``, it takes jobs from the queue and runs them in this ComfyUI.

ComfyUI imports this file at start-up. Whatever goes wrong here ends in one log line and a ComfyUI that works as before.
"""

from __future__ import annotations

import logging

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

WEB_DIRECTORY = "./web"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def _start() -> None:
    """Hook ComfyUI and start the worker once its server does."""
    try:
        from .settings import Settings, SettingsError
    except Exception:
        logging.getLogger("emq").exception("the worker cannot be imported; ComfyUI goes on without it")
        return
    try:
        settings = Settings.load()
    except SettingsError as error:
        logging.getLogger("emq").error("the worker does not start: %s", error)
        return
    try:
        from .start import install

        install(settings)
    except Exception:
        logging.getLogger("emq").exception("the worker does not start; ComfyUI goes on without it")


_start()
