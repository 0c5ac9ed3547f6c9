"""What a picture looks like while it is drawn: a linear map from latents to colours, fitted on the autoencoder.

With the latents ``z`` of fixed pictures, ``(N, C)`` over all their cells, and the colours ``y`` that the decoder gives
these cells on average, ``(N, 3)``, the map is ``W`` of the least ``‖[z 1] W − y‖² + λ ‖W‖²``, in closed form. It costs
two passes of the autoencoder over small pictures, once for each autoencoder in a process, and then next to nothing.

Shown is the picture x₀ that a prediction implies, not the noise that is still on it
(:mod:`studio.families.process` has the formulas).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from studio.families import Base
from studio.pipelines.moment import Moment

__all__ = ["Colours", "colours_of", "implied"]

PICTURES = 24
CELLS = 8  # along a side of a picture that the map is fitted on, at least
TOGETHER = 4
RIDGE = 1e-4  # λ per cell
_FITTED: WeakKeyDictionary[Any, Colours] = WeakKeyDictionary()


@dataclass(frozen=True)
class Colours:
    """The map.

    Args:
        weight: W, fp32 ``(C + 1, 3)``; its last row is the constant.
    """

    weight: Tensor

    def picture(self, latents: Tensor, size: tuple[int, int]) -> Image.Image:
        """Returns the picture of one image's latents, enlarged.

        Args:
            latents: x₀, ``(C, h, w)``. size: width and height in pixels.
        """
        cells = latents.detach().float().cpu()
        pixels = torch.einsum("chw,cd->hwd", cells, self.weight[:-1]) + self.weight[-1]
        levels = ((pixels.nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        array: np.ndarray = levels.numpy()
        return Image.fromarray(np.ascontiguousarray(array)).resize(size, Image.Resampling.BICUBIC)


def colours_of(base: Base) -> Colours:
    """Returns the map of a base's autoencoder, fitted where that was not done yet; nothing random is drawn for it.

    Args:
        base: whose autoencoder it is of.
    """
    vae = base.pipe.vae
    if vae not in _FITTED:
        _FITTED[vae] = _fit(base)
    return _FITTED[vae]


def implied(base: Base, noisy: Tensor, output: Tensor, moment: Moment) -> Tensor:
    """Returns the picture that a prediction implies, x₀ ``(B, C, h, w)``.

    Args:
        base: whose denoiser predicted.
        noisy: what it saw, ``α x₀ + σ n``, ``(B, C, h, w)``.
        output: the prediction, ``(B, C, h, w)``.
        moment: how noisy that is.
    """
    process = base.family.process.of(base.pipe.scheduler, "cpu")
    return process.picture(noisy.float(), output.float(), moment.noise)


def _fit(base: Base) -> Colours:
    cells, colours = zip(*(_pair(base, some) for some in _pictures(base).split(TOGETHER)), strict=True)
    z = torch.cat(cells).double()
    known = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], dim=1)
    left = known.T @ known + RIDGE * len(z) * torch.eye(known.shape[1], dtype=z.dtype)
    return Colours(torch.linalg.solve(left, known.T @ torch.cat(colours).double()).float())


def _pair(base: Base, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The cells of some pictures ``(N, C)``, and the colours that the decoder gives them ``(N, 3)``."""
    family, pipe = base.family, base.pipe
    with torch.no_grad():
        latents = family.encode_image(pipe, pixels, None)
        decoded = family.decode(pipe, latents).float().cpu().nan_to_num()
    colours = F.adaptive_avg_pool2d(decoded, (latents.shape[-2], latents.shape[-1]))
    flat = [one.float().cpu().nan_to_num().permute(0, 2, 3, 1).flatten(0, 2) for one in (latents, colours)]
    return flat[0], flat[1]


def _pictures(base: Base) -> Tensor:
    """Fixed pictures ``(N, 3, side, side)`` in [-1, 1]: colours that run into one another, plain ones, and patches."""
    side = -(-CELLS * base.downscale // base.multiple) * base.multiple
    draw, made = torch.Generator("cpu").manual_seed(0), []
    for number in range(PICTURES):
        patches = (1, 2, 4, side // base.downscale)[number % 4]
        colours = torch.rand(1, 3, patches, patches, generator=draw) * 2 - 1
        smooth = {"mode": "bilinear", "align_corners": True} if number % 8 < 4 else {"mode": "nearest"}
        made.append(F.interpolate(colours, size=(side, side), **smooth))  # type: ignore[arg-type]
    return torch.cat(made)
