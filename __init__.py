"""Makes a clone of the whole project in ComfyUI's custom_nodes work as a node pack."""

from .comfyui_emq_node import NODE_CLASS_MAPPINGS

WEB_DIRECTORY = "./comfyui_emq_node/web"
__all__ = ["NODE_CLASS_MAPPINGS", "WEB_DIRECTORY"]
