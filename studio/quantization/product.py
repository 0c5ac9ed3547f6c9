"""A product with a weight that is made anew whenever it is needed, and never kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["remade_product"]


def remade_product(x: Tensor, read: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
    """Computes ``x Wᵀ + b``; the backward pass asks for ``W`` again, so that only its packed form is held.

    Args:
        x: ``(..., cols)``. read: returns ``W`` ``(rows, cols)``, the same one every time; it gets no gradient.
        bias: ``(rows,)``, or None.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> remade_product(x, lambda: torch.full((1, 3), 2.0), None).sum().backward()
        >>> x.grad.tolist()
        [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    rows = x.reshape(-1, x.shape[-1])
    y: Tensor = _Remade.apply(rows, read, None if bias is None else bias.to(x.dtype))
    return y.view(*x.shape[:-1], y.shape[-1])


class _Remade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, read: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        ctx.read, ctx.dtype = read, x.dtype
        return F.linear(x, read().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, bias = grads[0], None, None
        if ctx.needs_input_grad[0]:
            x = (grad @ ctx.read().to(grad.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            bias = grad.sum(0)
        return x, None, bias
