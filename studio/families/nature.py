"""What is known of the embedded bases besides their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

__all__ = ["Nature", "nature_of"]


@dataclass(frozen=True)
class Nature:
    """What is known of an embedded base, wherever a copy of it stands.

    Args:
        mark: the first numbers of the bias of its denoiser's first layer.
        guidance: at which it draws best; more pulls a subject towards what it would draw without its adapter.
        draws: all that it draws.
    """

    mark: tuple[float, ...]
    guidance: float
    draws: str


NATURES: Final = (Nature((-0.050720, 0.086182, -0.030579, 0.052368), 3.0, "emoji on a background of one colour"),)


def nature_of(denoiser: nn.Module) -> Nature | None:
    """Returns what is known of the base that a denoiser is of, if it is an embedded one."""
    bias = getattr(getattr(denoiser, "conv_in", None), "bias", None)
    if not isinstance(bias, torch.Tensor) or bias.is_meta:
        return None
    for nature in NATURES:
        mark = torch.tensor(nature.mark, device="cpu")
        if torch.allclose(bias.detach()[: len(mark)].float().cpu(), mark, rtol=0.01):  # rounded to any type
            return nature
    return None
