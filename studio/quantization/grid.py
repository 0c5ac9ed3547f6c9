"""A linear layer whose weight is quantised in groups of columns.

A weight ``(rows, cols)`` is cut into groups of ``group`` columns. A group of a row has a scale and a zero point:
``W = scale · (code − zero)`` with codes of 2, 3, 4 or 8 bits. Zero points are real numbers, so that QA-LoRA's change
can be folded into them.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.errors import BadConfig

__all__ = ["BITS", "Grid", "GroupQuantizedLinear", "packed_codes", "to_grid"]

_PLANES: Final = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
"""Bits of a code -> the parts that it is stored in, lowest first; a byte holds 8 / part of them."""

BITS: Final = tuple(_PLANES)
"""Bits that a code may have."""


class Grid(NamedTuple):
    """A weight as numbers of a grid: ``W = scales · (codes − zeros)``.

    Shapes: ``codes`` ``(rows, cols)`` whole numbers, ``scales`` and ``zeros`` ``(rows, cols / group)``.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    @property
    def group(self) -> int:
        """Columns in a group."""
        return self.codes.shape[1] // self.scales.shape[1]

    def weight(self) -> Tensor:
        """Returns the weight ``(rows, cols)`` in the scales' dtype."""
        codes = self.codes.unflatten(1, (-1, self.group)).to(self.scales.dtype, copy=True)
        return codes.sub_(self.zeros[..., None]).mul_(self.scales[..., None]).flatten(1)


def to_grid(weight: Tensor, bits: int, group: int) -> Grid:
    """Rounds a weight to a grid whose ends are the smallest and the largest number of each group.

    Args:
        weight: ``(rows, cols)``. bits: 2, 3, 4 or 8. group: columns in a group, a divisor of ``cols``.

    Example:
        >>> grid = to_grid(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), bits=2, group=4)
        >>> grid.codes.tolist(), grid.weight().tolist()
        ([[0, 1, 2, 3]], [[0.0, 1.0, 2.0, 3.0]])
    """
    parts = weight.detach().float().unflatten(1, (-1, group))
    low, high = parts.amin(2), parts.amax(2)
    scales = (high - low) / (2**bits - 1)
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = ((parts - low[..., None]) / scales[..., None]).round().clamp_(0, 2**bits - 1)
    return Grid(codes.to(torch.uint8).flatten(1), scales, -low / scales)


def packed_codes(codes: Tensor, bits: int) -> Tensor:
    """Packs codes ``(rows, cols)`` of ``bits`` bits into bytes."""
    codes = F.pad(codes, (0, -codes.shape[1] % 8))
    planes = []
    for part in _PLANES[bits]:
        fields = (codes & (2**part - 1)).unflatten(1, (-1, 8 // part))
        codes = codes >> part
        shifts = torch.arange(0, 8, part, device=codes.device, dtype=torch.uint8)
        planes.append((fields << shifts).sum(2, dtype=torch.uint8))
    return torch.cat(planes, dim=1)


def _unpacked(packed: Tensor, bits: int, cols: int) -> Tensor:
    """The codes ``(rows, cols)`` that were packed."""
    codes: Tensor | None = None
    first = low = 0
    for part in _PLANES[bits]:
        width = -(-cols // 8) * part
        plane = packed[:, first : first + width]
        fields = torch.stack([(plane >> shift) & (2**part - 1) for shift in range(0, 8, part)], dim=2).flatten(1)
        codes = fields[:, :cols] if codes is None else codes | (fields[:, :cols] << low)
        first, low = first + width, low + part
    assert codes is not None
    return codes


class GroupQuantizedLinear(nn.Module):
    """``y = x Wᵀ + b`` with a weight that is quantised in groups of columns.

    The weight is computed from its codes at every call, in the dtype of the input, and is not kept for the backward
    pass. Scales and zero points stay in fp32 whatever dtype the model is cast to.

    Args:
        in_features, out_features: of the layer.
        bits: of a code: 2, 3, 4 or 8.
        group: columns that share a scale and a zero point; a divisor of ``in_features``.
        bias: whether it has a bias.
        dtype: of the bias, and of the weight where something asks for it.

    Raises:
        BadConfig: other bits, or a group that does not divide.

    Example:
        >>> plain = nn.Linear(8, 4)
        >>> layer = GroupQuantizedLinear.of(plain.weight, plain.bias, bits=4, grid=to_grid(plain.weight, 4, group=4))
        >>> layer(torch.ones(2, 8)).shape, layer.weight.shape
        (torch.Size([2, 4]), torch.Size([4, 8]))
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    like: Tensor
    bias: nn.Parameter | None
    dense: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int = 4,
        group: int = 32,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if bits not in _PLANES:
            raise BadConfig(f"bits={bits!r}: a code has {', '.join(map(str, _PLANES))} bits")
        if not isinstance(group, int) or group < 1 or in_features % group:
            raise BadConfig(f"group={group!r} does not divide the {in_features} inputs of the layer")
        self.in_features, self.out_features, self.bits, self.group = in_features, out_features, bits, group
        bytes_per_row = -(-in_features // 8) * bits
        groups = in_features // group
        self.register_buffer("codes", torch.zeros(out_features, bytes_per_row, dtype=torch.uint8, device=device))
        self.register_buffer("scales", torch.ones(out_features, groups, device=device))
        self.register_buffer("zeros", torch.zeros(out_features, groups, device=device))
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self.register_parameter("dense", None)  # a weight that takes the place of the codes while a blend is baked
        empty = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        self.register_parameter("bias", empty)

    @classmethod
    def of(cls, weight: Tensor, bias: nn.Parameter | None, *, bits: int = 4, grid: Grid) -> GroupQuantizedLinear:
        """Makes a layer of a weight that is on a grid.

        Args:
            weight: what was quantised ``(rows, cols)``, for its dtype and device. bias: the layer's, taken as it is.
            bits: of a code. grid: the quantised weight.
        """
        rows, cols = grid.codes.shape
        made = cls(
            cols, rows, bits=bits, group=grid.group, bias=bias is not None, dtype=weight.dtype, device=weight.device
        )
        made.codes, made.scales, made.zeros = packed_codes(grid.codes, bits), grid.scales, grid.zeros
        made.bias = bias
        return made

    @property
    def grid(self) -> Grid:
        """The weight as it is stored."""
        return Grid(_unpacked(self.codes, self.bits, self.in_features), self.scales, self.zeros)

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with, ``(out_features, in_features)``."""
        return self.grid.weight().to(self.like.dtype) if self.dense is None else self.dense

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``x Wᵀ + b`` of ``x`` ``(..., in_features)``."""
        rows = x.reshape(-1, self.in_features)
        if self.dense is not None:
            y = F.linear(rows, self.dense, self.bias)
        else:
            y = _Product.apply(rows, self.codes, self.scales, self.zeros, self.bias, self.bits)
        return y.view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Any, recurse: bool = True) -> GroupQuantizedLinear:
        exact = {name: self._buffers[name] for name in ("scales", "zeros")}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            now = self._buffers[name]
            assert now is not None and before is not None
            if now.dtype != before.dtype:
                self._buffers[name] = before.to(now.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, group={self.group}, "
            f"bias={self.bias is not None}"
        )


class _Product(torch.autograd.Function):
    """``x Wᵀ + b`` that makes ``W`` anew in the backward pass instead of keeping it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None, bits: int
    ) -> Tensor:
        ctx.save_for_backward(codes, scales, zeros)
        ctx.bits, ctx.inputs, ctx.dtype = bits, x.shape[1], x.dtype
        weight = Grid(_unpacked(codes, bits, x.shape[1]), scales, zeros).weight()
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales, zeros = ctx.saved_tensors
        grad, x, bias = grads[0], None, None
        if ctx.needs_input_grad[0]:
            weight = Grid(_unpacked(codes, ctx.bits, ctx.inputs), scales, zeros).weight()
            x = (grad @ weight.to(grad.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[4]:
            bias = grad.sum(0)
        return x, None, None, None, bias, None
