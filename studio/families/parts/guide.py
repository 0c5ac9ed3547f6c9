"""Rules of guidance that keep the length of the prediction under the prompt."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from studio.families.parts.latents import pack, unpack

__all__ = ["patch_norm", "renormed", "width_norm"]


def renormed(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Returns a family's ``guide``: ``p = u + g (c − u)``, then ``p · |c| / |p|``.

    Args:
        norm: ``|·|``; its result broadcasts over its argument.
    """

    def guide(without: Tensor, within: Tensor, guidance: float) -> Tensor:
        mixed = without + guidance * (within - without)
        return mixed * (norm(within) / norm(mixed))

    return guide


def patch_norm(x: Tensor) -> Tensor:
    """Returns the length of each 2 x 2 patch of ``(B, C, h, w)`` over all channels, at each of its numbers."""
    return unpack(pack(x).norm(dim=-1, keepdim=True).expand(-1, -1, 4 * x.shape[1]), *x.shape[2:])


def width_norm(x: Tensor) -> Tensor:
    """Returns the length of each row of ``x (B, C, h, w)`` along the picture's width, ``(B, C, h, 1)``."""
    return x.norm(dim=-1, keepdim=True)
