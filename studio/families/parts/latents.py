"""Latents of the autoencoders, and the layouts in which denoisers want them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.families.parts.place import device_of

__all__ = ["grid", "kl_channels", "kl_decode", "kl_encode", "pack", "same_channels", "unpack"]


def kl_channels(pipe: Any) -> int:
    """Returns the channels of an ``AutoencoderKL``'s latents."""
    return int(pipe.vae.config.latent_channels)


def same_channels(pipe: Any, denoiser: str, channels: int) -> bool:
    """Whether a denoiser takes latents and nothing beside them, as one for inpainting or control would."""
    return bool(pipe.components[denoiser].config.in_channels == channels) and "controlnet" not in pipe.components


def kl_encode(pipe: Any, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns scaled latents ``z = (e - shift) * scale`` of ``pixels`` ``(B, 3, H, W)`` in [-1, 1].

    ``e`` is the posterior's mode, or with a ``generator`` a sample of it.
    """
    vae = pipe.vae
    posterior = vae.encode(pixels.to(device_of(pipe, vae), vae.dtype)).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def kl_decode(pipe: Any, latents: Tensor) -> Tensor:
    """Returns pixels ``(B, 3, H, W)``, clipped to [-1, 1], of scaled latents ``(B, C, h, w)``."""
    vae = pipe.vae
    unscaled = latents.to(device_of(pipe, vae), vae.dtype) / vae.config.scaling_factor + (
        vae.config.shift_factor or 0.0
    )
    return vae.decode(unscaled).sample.clamp(-1, 1)


def pack(latents: Tensor) -> Tensor:
    """Returns latents as tokens of 2 x 2 cells; the order of their numbers is channel, row, column.

    Args:
        latents: ``(B, C, h, w)``; ``(B, h/2 · w/2, 4 C)`` comes of them.

    Example:
        >>> x = torch.randn(1, 16, 4, 6)
        >>> pack(x).shape, torch.equal(unpack(pack(x), 4, 6), x)
        (torch.Size([1, 6, 64]), True)
    """
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Returns tokens ``(B, N, 4 C)`` as latents ``(B, C, height, width)``: the inverse of :func:`pack`."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def grid(height: int, width: int, axes: int, like: Tensor) -> Tensor:
    """Returns positions ``(height · width, axes)`` with the row on axis 1 and the column on axis 2, else 0.

    Args:
        height, width: cells.
        axes: how many numbers a position has.
        like: whose device and type they have, ``()``.

    Example:
        >>> grid(1, 2, 3, torch.zeros(())).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    ids = torch.zeros(height, width, axes, device=like.device, dtype=like.dtype)
    ids[..., 1] += torch.arange(height, device=like.device)[:, None]
    ids[..., 2] += torch.arange(width, device=like.device)[None]
    return ids.flatten(0, 1)
