"""What a picture starts from: noise alone, or another picture with noise, of which a mask may keep a part.

With the latents ``x₀`` of a given picture and its noise ``n``, drawing begins at the first of the kept times with
``x = α x₀ + σ n``. Under a mask m (1 is drawn anew) each step's latents become ``m x + (1 − m)(α x₀ + σ n)`` with α and
σ of the next time, as in diffusers' img2img and inpainting pipelines.

References:
    | SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (Meng et al., 2021),
      arXiv:2108.01073
    | RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022), arXiv:2201.09865
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from studio.errors import BadConfig
from studio.families import Base
from studio.families.process import Flow

__all__ = ["Given", "Start", "first_step", "started"]


@dataclass(frozen=True, kw_only=True)
class Given:
    """A picture to start from.

    Args:
        image: the picture, of the size that is drawn.
        strength: which part of the denoising is done, in (0, 1]; 1 keeps least of it.
        mask: what is drawn anew (white) and what stays (black), of the same size; None: everything is drawn.

    Raises:
        BadConfig: a strength outside (0, 1], or a mask of another size.
    """

    image: Image.Image
    strength: float
    mask: Image.Image | None = None

    def __post_init__(self) -> None:
        strength = self.strength
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= 1:
            raise BadConfig(
                f"strength={strength!r}: how much of a given picture is drawn anew is above 0 and at most 1"
            )
        if self.mask is not None and self.mask.size != self.image.size:
            sizes = ["{} x {}".format(*picture.size) for picture in (self.mask, self.image)]
            raise BadConfig(f"the mask has {sizes[0]} pixels and the picture {sizes[1]}; make them equal")


@dataclass(frozen=True)
class Start:
    """Where denoising begins.

    Args:
        latents: ``(B, C, h, w)``, as the first time wants them.
        noise: n, ``(B, C, h, w)``.
        picture: x₀, ``(B, C, h, w)``; None where there is none to keep.
        mask: m, ``(B, 1, h, w)``.
    """

    latents: Tensor
    noise: Tensor
    picture: Tensor | None = None
    mask: Tensor | None = None

    def kept(self, scheduler: Any, latents: Tensor, following: Tensor | None) -> Tensor:
        """Returns latents whose masked part is the given picture's, with the noise of the time that follows.

        Args:
            scheduler: which has just stepped.
            latents: x, ``(B, C, h, w)``.
            following: the next time, any shape; None behind the last.
        """
        if self.mask is None or self.picture is None:
            return latents
        picture = self.picture if following is None else _noisy(scheduler, self.picture, self.noise, following)
        return (1 - self.mask) * picture + self.mask * latents


def first_step(base: Base, given: Given | None, steps: int) -> int:
    """Returns how many of the steps are left out for a given picture.

    Args:
        base: which draws.
        given: the picture.
        steps: how many steps there are.

    Raises:
        BadConfig: none would be left.
    """
    if given is None:
        return 0
    wanted = min(steps * given.strength, steps)
    # diffusers' pipelines of ε and v round the steps that are done, those of flows the steps that are not
    first = int(max(steps - (wanted if base.family.process is Flow else int(wanted)), 0))
    if first >= steps:
        raise BadConfig(f"strength={given.strength!r} of {steps} steps leaves none; give more of either")
    return first


def started(
    base: Base,
    given: Sequence[Given | None],
    scheduler: Any,
    time: Tensor,
    generators: Sequence[torch.Generator],
    cells: tuple[int, int],
    device: torch.device,
) -> Start:
    """Draws what each picture of a batch starts from, each from its own generator.

    Args:
        base: which draws.
        given: the pictures; all or none of a batch, of one strength.
        scheduler: with its times set.
        time: the first of them that is kept, a scalar.
        generators: one per picture.
        cells: latent cells, high and wide.
        device: where it computes.
    """
    family, pipe = base.family, base.pipe
    shape = (1, family.channels(pipe), *cells)
    pictures = [_encoded(base, one, draw) for one, draw in zip(given, generators, strict=True) if one is not None]
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    first = given[0]
    if first is None:
        return Start(noise * getattr(scheduler, "init_noise_sigma", 1.0), noise)
    picture = torch.cat(pictures).to(device, noise.dtype)
    mask = None if first.mask is None else torch.cat([_cells(one, cells) for one in given if one]).to(device)
    if mask is not None and first.strength == 1:
        return Start(noise * getattr(scheduler, "init_noise_sigma", 1.0), noise, picture, mask)
    return Start(_noisy(scheduler, picture, noise, time), noise, picture, mask)


def _noisy(scheduler: Any, picture: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    time = timestep.reshape(1)
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(picture, time, noise)
    return scheduler.add_noise(picture, noise, time)


def _encoded(base: Base, given: Given, generator: torch.Generator) -> Tensor:
    values = np.asarray(given.image.convert("RGB"), dtype=np.float32) / 255
    pixels = torch.from_numpy(values).permute(2, 0, 1)[None] * 2 - 1
    return base.family.encode_image(base.pipe, pixels, generator).float()


def _cells(given: Given, cells: tuple[int, int]) -> Tensor:
    assert given.mask is not None, "all pictures of a batch have one"
    values = torch.from_numpy(np.asarray(given.mask.convert("L"), dtype=np.float32) / 255)
    return F.interpolate(values[None, None], size=cells)
