"""The sizes of a base: pixels per cell of its latents, and the picture that it was trained for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["by_config", "by_vae", "square"]


def by_vae(patch: int = 1) -> Callable[[Any], int]:
    """Returns a function of a pipeline: pixels per cell along one side, ``vae_scale_factor * patch``.

    diffusers counts the halvings of the pipeline's own autoencoder, so one of other depth than the family's public
    bases is read for what it is.

    Args:
        patch: cells of the autoencoder that are folded into one of :attr:`~studio.families.family.Family.predict`.
    """
    return lambda pipe: int(pipe.vae_scale_factor) * patch


def by_config(denoiser: str) -> Callable[[Any], tuple[int, int]]:
    """Returns a function of a pipeline: width and height in pixels, of the denoiser's ``sample_size`` in cells."""
    pixels = by_vae()

    def native(pipe: Any) -> tuple[int, int]:
        size = pipe.components[denoiser].config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return width * pixels(pipe), height * pixels(pipe)

    return native


def square(side: int) -> Callable[[Any], tuple[int, int]]:
    """Returns a function of a pipeline that gives ``side`` twice, for bases whose config does not say it."""
    return lambda pipe: (side, side)
