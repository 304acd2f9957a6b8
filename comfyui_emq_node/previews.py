"""Previews made only when they are wanted: a gate in front of ComfyUI's sampler previews.

It is given ComfyUI's modules by ``comfy.py`` and imports none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Wanted = Callable[[], bool]
Guard = Callable[..., Any]


class GatedPreviewer:
    """A sampler's previewer that works only when somebody wants the picture."""

    def __init__(self, previewer: Any, wanted: Wanted) -> None:
        self._previewer, self._wanted = previewer, wanted

    def decode_latent_to_preview_image(self, preview_format: str, x0: Any) -> Any:
        """ComfyUI's callback of a sampling step."""
        return self._previewer.decode_latent_to_preview_image(preview_format, x0) if self._wanted() else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._previewer, name)


def gate(latent_preview: Any, cli_args: Any, running: Callable[[], Wanted | None], guard: Guard) -> None:
    """Gate the previews of our prompts; ``running`` says whether one of them runs, and who decides for it.

    A ComfyUI that was started without previews makes them for our prompts too: somebody may come to watch.
    """
    real = latent_preview.get_previewer

    def forced(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        options = cli_args.args
        before, options.preview_method = options.preview_method, cli_args.LatentPreviewMethod.Latent2RGB
        try:
            return real(*args, **kwargs)
        finally:
            options.preview_method = before

    def get_previewer(*args: Any, **kwargs: Any) -> Any:
        wanted = guard("previews", running)
        previewer = real(*args, **kwargs)
        if wanted is None:
            return previewer
        previewer = previewer or guard("previews", forced, args, kwargs)
        return previewer and GatedPreviewer(previewer, wanted)

    latent_preview.get_previewer = get_previewer
