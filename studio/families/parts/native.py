"""The sizes of a base: pixels per cell of its latents, and the picture that it was trained for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from studio.errors import DoesNotFit

__all__ = ["by_config", "by_vae", "square"]


def by_vae(patch: int = 1) -> Callable[[Any], int]:
    """Returns a function of a pipeline: pixels per cell along one side, ``2 ** halvings * patch``.

    The halvings are those of its own autoencoder, as diffusers' pipelines count them, so one of other depth than the
    family's public bases is read for what it is. Where its config does not tell them, the pipeline's
    ``vae_scale_factor`` does.

    Args:
        patch: cells of the autoencoder that are folded into one of :attr:`~studio.families.family.Family.predict`.

    Raises:
        DoesNotFit: neither tells them; of the function that is returned.

    Example:
        >>> from types import SimpleNamespace
        >>> vae = SimpleNamespace(config={"block_out_channels": (128, 256, 512, 512)})
        >>> by_vae()(SimpleNamespace(vae=vae)), by_vae(patch=2)(SimpleNamespace(vae=vae))
        (8, 16)
    """

    def downscale(pipe: Any) -> int:
        vae = getattr(pipe, "vae", None)
        config = {} if vae is None else vae.config
        for key, more in (("block_out_channels", 1), ("encoder_block_out_channels", 1), ("temperal_downsample", 0)):
            if config.get(key):
                return int(2 ** (len(config[key]) - more)) * patch
        told = getattr(pipe, "vae_scale_factor", None)
        if told is None:
            raise DoesNotFit(
                "nothing tells how many pixels a cell of the latents is: the pipeline has "
                f"{'no autoencoder' if vae is None else f'a {type(vae).__name__}'}; give one with the autoencoder "
                "that it was trained with"
            )
        return int(told) * patch

    return downscale


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
