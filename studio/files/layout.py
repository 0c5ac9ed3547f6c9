"""Shapes in which other programs store a tensor, as words, and the way there and back.

====== ============================== =============================================
word   on a matrix of a layer         on a convolution with k kernel axes
====== ============================== =============================================
plain  as the core has it             as the core has it
inner  ``(r, in)``                    ``(r, in/groups, *kernel)``
flat   ``(r, in)``                    ``(r, in/groups · kernel)``
spread ``(out, r)``                   ``(out, r, 1, ..)``, k ones
vector ``(n,)``                       ``(n,)``
column ``(n, 1)``                     ``(n, 1, 1, ..)``, 1 + k ones
row    ``(1, n)``                     ``(1, n, 1, ..)``, k ones at the end
====== ============================== =============================================

A pair of E experts, which the core has as ``(E, r, in)`` and ``(E, out, r)``, is stored flat: ``(E·r, in)`` and
``(out, r·E)``, E running fastest.

``"a|b"`` is the layout ``a`` on a matrix and ``b`` on a convolution.
"""

from __future__ import annotations

import math

from torch import Tensor

from studio.adapters import Site

__all__ = ["fits", "from_file", "to_file"]


def _word(layout: str, site: Site) -> tuple[str, int]:
    axes = len(site.inner_shape) - 1
    return layout.split("|")[-1 if axes else 0], axes


def _shape(tensor: Tensor, layout: str, site: Site) -> tuple[int, ...]:
    word, axes = _word(layout, site)
    ones, count = (1,) * axes, tensor.numel()
    if word == "spread":
        return (*tensor.shape[:2], *ones)
    if word == "inner":
        return (tensor.shape[0], *site.inner_shape)
    if word == "flat":
        return (tensor.shape[0], tensor[0].numel())
    return {"vector": (count,), "column": (count, 1, *ones), "row": (1, count, *ones)}.get(word, tuple(tensor.shape))


def to_file(tensor: Tensor, layout: str, site: Site) -> Tensor:
    """Brings one of our tensors into the shape that a file has it in.

    Args:
        tensor: a vector, or a factor ``(r, *inner)`` or ``(rows, r)``; before them E for experts.
        layout: the format's word for the shape, one for each case where they differ.
        site: the layer.

    Example:
        >>> import torch
        >>> from studio.adapters import site_of
        >>> site = site_of(torch.nn.Conv2d(3, 5, 2), "")
        >>> to_file(torch.zeros(5, 4), "spread", site).shape, to_file(torch.zeros(5), "vector|row", site).shape
        (torch.Size([5, 4, 1, 1]), torch.Size([1, 5, 1, 1]))
    """
    if site.lead:
        return _flat_experts(tensor, _word(layout, site)[0])
    return tensor.reshape(_shape(tensor, layout, site))


def from_file(tensor: Tensor, layout: str, site: Site) -> Tensor | None:
    """Brings a file's tensor into our shape; None where it has a shape that means something else.

    A convolution with a 1 x 1 kernel and a matrix are the same map, so either's shape is accepted for the other.

    Args:
        tensor: as the file has it: ``(n,)``, ``(n, m)``, or with the axes of a convolution.
        layout: the format's word for the shape.
        site: the layer.
    """
    word, _ = _word(layout, site)
    if site.lead:
        return _stacked_experts(tensor, word, site.lead[0])
    if word == "plain":
        return tensor
    if word == "spread":
        return tensor.flatten(1) if tensor.dim() >= 2 else None
    if word in ("inner", "flat"):
        if tensor.dim() >= 2 and math.prod(tensor.shape[1:]) == site.cols:
            return tensor.reshape(tensor.shape[0], *site.inner_shape)
        return tensor  # the adapter says what is wrong with it
    if tensor.dim() > 1 and tuple(tensor.shape) != _shape(tensor, layout, site):
        return None
    return tensor.reshape(-1)


def _flat_experts(tensor: Tensor, word: str) -> Tensor:
    """The factors of E experts as PEFT has them: ``(E·r, in)``, and ``(out, r·E)`` with E fastest."""
    if word == "spread":
        return tensor.permute(1, 2, 0).reshape(tensor.shape[1], -1)
    return tensor.reshape(-1, tensor.shape[-1]) if word == "inner" else tensor


def _stacked_experts(tensor: Tensor, word: str, count: int) -> Tensor | None:
    """The way back; None where the file's tensor is not that of ``count`` experts."""
    if word not in ("inner", "spread"):
        return tensor
    if tensor.dim() != 2 or tensor.shape[0 if word == "inner" else 1] % count:
        return None
    if word == "inner":
        return tensor.reshape(count, -1, tensor.shape[1])
    return tensor.reshape(tensor.shape[0], -1, count).permute(2, 0, 1).contiguous()


def fits(tensor: Tensor, layout: str, site: Site, count: int) -> bool:
    """Says whether ``tensor``, of any shape, is one of ``count`` numbers in that layout."""
    return tensor.numel() == count and tuple(tensor.shape) == _shape(tensor, layout, site)
