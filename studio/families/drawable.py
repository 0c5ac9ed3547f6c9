"""Whether a base that draws little can draw what it shall learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from studio.families.base import Base

__all__ = ["cannot_draw"]

EDGE: Final = 2  # pixels
PLAIN: Final = (
    13.0  # of 255: mean distance of the edge from its own colour; packaged pictures: 0 to 12, photographs: 20 on
)


@torch.no_grad()
def cannot_draw(base: Base, pictures: Sequence[Tensor]) -> str | None:
    """Returns a sentence where a base cannot draw such pictures, None where it can or draws many things.

    Args:
        base: the base.
        pictures: as the training sees them, each ``(3, H, W)`` with values in [-1, 1].
    """
    if base.draws is None or not pictures:
        return None
    strange = [pixels for pixels in pictures if _edge(pixels) > PLAIN]
    if 2 * len(strange) <= len(pictures):
        return None
    first = strange[0][None]
    back = base.family.decode(base.pipe, base.family.encode_image(base.pipe, first, None))
    lost = float((back - first).abs().mean()) * 127.5
    return (
        f"{base.id} draws {base.draws} and nothing else, and {len(strange)} of {len(pictures)} pictures look like "
        f"photographs: they come out as stains (its autoencoder alone changes the first by {lost:.0f} of 255 levels); "
        "name a Stable Diffusion folder as the base for those"
    )


def _edge(pixels: Tensor) -> float:
    """How far the pixels at a picture's edge are from one colour, in levels of 255."""
    sides = (pixels[:, :EDGE], pixels[:, -EDGE:], pixels[:, :, :EDGE], pixels[:, :, -EDGE:])
    edge = torch.cat([side.flatten(1) for side in sides], dim=1)
    return float((edge - edge.median(dim=1, keepdim=True).values).abs().mean()) * 127.5
