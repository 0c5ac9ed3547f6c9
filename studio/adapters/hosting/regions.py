"""Regions: adapters that act in a part of the picture, token by token.

``y + up · (c ⊙ (down · x))``, and ``y + c ⊙ change(x)`` for what is no pair, where ``c`` is how much of each token of
the layer lies in the mask. Where that is 0, the layer's output is what it is without the adapter, bit for bit, whatever
else acts there: each mask is added by itself, behind all that acts everywhere.

Where a token lies is known by who draws (:class:`Regions`); layers ask it. A layer whose output belongs to the whole
picture at once (the embedding of the time, a modulation) has no place: there an adapter acts by the mean of its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from studio.adapters.contract.mask import Mask
from studio.adapters.hosting.plan import Masked, use
from studio.adapters.sites.norm import NormSite
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit

__all__ = ["Regions", "act_within", "check_masked"]


class Regions(Protocol):
    """Knows where in a picture the tokens of layers are."""

    def mean(self, mask: Mask) -> float:
        """Returns the part of the picture that the mask covers."""

    def is_whole(self, path: str) -> bool:
        """Says whether the output of a layer belongs to the whole picture at once."""

    def fits(self, path: str, count: int) -> bool:
        """Says whether a layer is called with ``count`` tokens."""

    def plane(self, mask: Mask, path: str, size: tuple[int, int]) -> Tensor:
        """Returns the coverage of a map of channels, ``(h, w)``."""

    def tokens(self, mask: Mask, path: str, count: int) -> Tensor:
        """Returns the coverage of a row of tokens, ``(1 or batch, count)``."""


def act_within(
    regions: Regions | None, site: Site, masked: Sequence[Masked], x: Tensor, y: Tensor | None, total: Tensor
) -> Tensor:
    """Returns ``total`` and what adapters with masks add to it.

    Args:
        regions: knows where tokens are. site: the layer. masked: its adapters with masks.
        x: the layer's input ``(batch, ..., in)``. y: the base's output of it ``(batch, ..., rows)``; None where the
            base was called with another input, which something moved.
        total: ``y``, and what acts everywhere ``(batch, ..., rows)``.

    Raises:
        DoesNotFit: it is not known where tokens are, or this layer has none.
    """
    if regions is None:
        raise _unknown(site)
    for one in masked:
        c = _coverage(regions, one.mask, site, total) * one.strength
        if one.adapter.fused:
            stack = one.factors(total.dtype)
            ((_, scale, bias),) = stack.parts
            total = site.add_raised(total, site.lower(x, stack.down) * (c * scale), stack.up)
            change = None if bias is None else site.over_outputs(bias.to(total.dtype)) * scale
        else:
            operands = site.operands(total)
            y = site.apply(x, *operands) if y is None else y
            change = use(one.adapter, type(one.adapter).change, x, y, *operands)
        total = total if change is None else total + change * c
    return total


def check_masked(site: Site, masked: Sequence[Masked]) -> None:
    """Checks that nothing with a mask acts on a layer whose tensors are changed as a whole.

    Raises:
        DoesNotFit: something does.
    """
    if masked:
        raise DoesNotFit(
            f"an adapter with a mask cannot act on {site.path}, which is used for the whole picture at once; set its "
            f"strength there to 0: blocks={{{site.path!r}: 0}}"
        )


def _unknown(site: Site) -> DoesNotFit:
    return DoesNotFit(
        "a strength with a mask acts while a picture is drawn (ImagePipeline.generate), which knows where in it the "
        f"tokens of {site.path} are; give a strength without a mask here"
    )


def _coverage(regions: Regions, mask: Mask, site: Site, y: Tensor) -> Any:
    """``c``, so that it broadcasts over ``y`` and over ``down · x``."""
    path = site.path
    if regions.is_whole(path):
        return regions.mean(mask)
    channels_first = site.channels_first if isinstance(site, NormSite) else site.axis != -1
    if channels_first and y.dim() == 4:
        return regions.plane(mask, path, (y.shape[2], y.shape[3])).to(y.device, y.dtype)
    # (tokens of all rows, C), (B, tokens, C), and by heads (B, tokens, H, D) or (B, H, tokens, D)
    axes = [axis for axis in range(0 if y.dim() == 2 else 1, y.dim() - 1) if regions.fits(path, y.shape[axis])]
    if len(axes) != 1 or channels_first:
        raise DoesNotFit(
            f"{path} gives a tensor of the shape {tuple(y.shape)}, in which it is not known where a token lies; set "
            f"the strength of adapters with a mask there to 0: blocks={{{path!r}: 0}}"
        )
    c = regions.tokens(mask, path, y.shape[axes[0]]).to(y.device, y.dtype)
    if y.dim() == 2:
        return c[0, :, None]
    return c.reshape(len(c), *(1,) * (axes[0] - 1), -1, *(1,) * (y.dim() - 1 - axes[0]))
