"""Which program made a picture, and what its file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from studio.pipelines.foreign import a1111, comfyui, invokeai
from studio.pipelines.foreign.said import Said

__all__ = ["TOOLS", "said_by"]

TOOLS: Final[Mapping[str, Callable[[Mapping[str, str]], Said | None]]] = {
    "InvokeAI": invokeai.read,
    "ComfyUI": comfyui.read,
    "A1111": a1111.read,  # the last: others write its text beside their own
}
"""Program -> ``texts of a picture -> what they say``, or None where it did not make it."""


def said_by(texts: Mapping[str, str]) -> Said | None:
    """Returns what the texts of a picture say, as the program wrote them that made it; None: none of :data:`TOOLS`.

    Args:
        texts: all texts of the picture, by key.

    Raises:
        BadFile: they are damaged, or too long.
    """
    return next((said for read in TOOLS.values() if (said := read(texts)) is not None), None)
