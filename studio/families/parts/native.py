"""The sizes of a base: pixels per cell of its latents, and the picture that it was trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["by_config", "by_vae", "square"]


def by_vae(patch: int = 1) -> Callable[[Any], int]:
    """Returns a function of a pipeline: pixels per cell along one side, ``2 ** halvings * patch``.

    The halvings are those of its own autoencoder, as diffusers' pipelines count them, so one of other depth than the
    family's public bases is read for what it is; a pipeline without one says its ``vae_scale_factor``.

    Args:
        patch: cells of the autoencoder that are folded into one of :attr:`~studio.families.family.Family.predict`.
    """

    def downscale(pipe: Any) -> int:
        vae = getattr(pipe, "vae", None)
        return (int(pipe.vae_scale_factor) if vae is None else 2 ** _halvings(vae.config)) * patch

    return downscale


def _halvings(config: Mapping[str, Any]) -> int:
    levels = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    return len(levels) - 1 if levels else len(config["temperal_downsample"])


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
