"""The size that a base was trained for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["by_config", "square"]


def by_config(denoiser: str, downscale: int) -> Callable[[Any], tuple[int, int]]:
    """Returns a function of a pipeline: width and height in pixels, of the denoiser's ``sample_size`` in cells."""

    def native(pipe: Any) -> tuple[int, int]:
        size = pipe.components[denoiser].config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return width * downscale, height * downscale

    return native


def square(side: int) -> Callable[[Any], tuple[int, int]]:
    """Returns a function of a pipeline that gives ``side`` twice, for bases whose config does not say it."""
    return lambda pipe: (side, side)
