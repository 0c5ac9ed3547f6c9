"""The plan of a layer: which adapters act there now, how strongly and where, and what was made of their tensors.

A plan is of one blend. Where the rows of a batch have blends of their own, it has a plan of each beside it, and the
rows that it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from studio.adapters.contract.adapter import Adapter, Factors
from studio.adapters.contract.mask import Mask

__all__ = [
    "Acting",
    "Coefficient",
    "FactorStack",
    "Masked",
    "Pair",
    "Plan",
    "Sources",
    "Stacked",
    "factors_of",
    "is_pair",
    "spread",
    "use",
]

Coefficient: TypeAlias = float | Tensor
Acting: TypeAlias = list[tuple[Adapter, Coefficient]]
Pair: TypeAlias = "tuple[Tensor, Tensor | None]"
Stacked: TypeAlias = "tuple[FactorStack, Coefficient, Tensor | None]"


class Plan:
    """Which adapters act on a layer, how strongly and where, and what was made of them; threads may share it.

    Attributes:
        version: of the levels that it was made from. training: of the layer. drops: whether it depends on that.
        movers: adapters that change the input. pairs: those that are factor pairs. others: all others.
        masked: those that act in a part of the picture, whatever they are.
        uniform: whether one number holds for all rows, of each.
        apart: the rows that have a blend together, and its plan; None where all rows of any batch have the same one.
        count: of the rows that these are.
        stack: the factors of the pairs, and what they are scaled by. made: the adapted tensors, made once.
    """

    __slots__ = (
        "apart", "count", "drops", "made", "masked", "movers", "others", "pairs", "stack", "training", "uniform",
        "version",
    )  # fmt: skip

    def __init__(
        self,
        version: int,
        training: bool,
        levels: Iterable[tuple[Adapter, Coefficient]],
        masked: Sequence[Masked] = (),
    ) -> None:
        self.version, self.training, self.drops, self.uniform = version, training, False, True
        self.movers: Acting = []
        self.pairs: Acting = []
        self.others: Acting = []
        self.masked = [one for one in masked if one.strength]
        for one in levels:
            adapter, coefficient = one
            if not isinstance(coefficient, float):
                self.uniform = False
            elif coefficient == 0.0:
                continue
            self.drops = self.drops or adapter.dropout > 0
            pair = is_pair(adapter, training)
            (self.movers if adapter.moves else self.pairs if pair else self.others).append(one)
        if self.others:  # they need the output of the base for its own input
            self.others, self.movers = [*self.movers, *self.others], []
        self.apart: list[tuple[tuple[int, ...], Plan]] | None = None
        self.count = 0
        self.stack: Stacked | None = None
        self.made: tuple[Sources, Pair] | None = None

    @property
    def acting(self) -> Acting:
        """All of them."""
        return [*self.pairs, *self.others, *self.movers]

    def at(self, row: int) -> Plan:
        """Returns the plan of one row."""
        return self if self.apart is None else next(plan for rows, plan in self.apart if row in rows)


class Masked:
    """An adapter on one layer that acts in a part of the picture.

    Args:
        adapter: the adapter. strength: its number there. mask: where it acts.
    """

    __slots__ = ("adapter", "mask", "stack", "strength")

    def __init__(self, adapter: Adapter, strength: float, mask: Mask) -> None:
        self.adapter, self.strength, self.mask = adapter, strength, mask
        self.stack: FactorStack | None = None

    def factors(self, dtype: torch.dtype) -> FactorStack:
        """Returns its pair in ``dtype``, made once while its tensors stay the same."""
        if self.stack is None or not self.stack.holds(dtype):
            self.stack = FactorStack([self.adapter], dtype)
        return self.stack


class Sources:
    """The tensors of frozen modules that something was made from."""

    __slots__ = ("tensors",)

    def __init__(self, *modules: nn.Module) -> None:
        self.tensors = [
            (table, name, tensor, _version(tensor))
            for module in modules
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]

    def hold(self, made: Tensor) -> bool:
        """Says whether they are the same tensors, unchanged and frozen, so that what was made of them still stands.

        Args:
            made: that, of any shape.
        """
        if made.is_inference() and not torch.is_inference_mode_enabled():
            return False
        for table, name, tensor, version in self.tensors:
            if table.get(name) is not tensor or tensor.requires_grad or _version(tensor) != version:
                return False
        return True


class FactorStack:
    """The factors of several pairs of a layer, one behind the other, without any strength.

    Args:
        adapters: the pairs.
        dtype: that they compute in.

    Attributes:
        down: ``(Σr, *inner_shape)``. up: ``(rows, Σr)``. parts: of each, its rank, scale and bias ``(rows,)``.
    """

    __slots__ = ("adapters", "down", "parts", "sources", "up")

    def __init__(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        read = [use(adapter, type(adapter).factors) for adapter in adapters]
        self.adapters, (down, up, _, _) = tuple(adapters), read[0]
        if len(read) > 1 or not (down.requires_grad or up.requires_grad):  # a single one that is trained is not copied
            down, up = torch.cat([one.down for one in read]), torch.cat([one.up for one in read], dim=1)
        self.down, self.up = down.to(dtype), up.to(dtype)
        self.parts = [(one.down.shape[0], one.scale, one.bias) for one in read]
        self.sources = Sources(*adapters)

    @property
    def trained(self) -> bool:
        """Whether gradients flow into it, so that it stands for one pass alone."""
        biases = [bias for _, _, bias in self.parts if bias is not None]
        return any(tensor.requires_grad for tensor in (self.down, self.up, *biases))

    def holds(self, dtype: torch.dtype) -> bool:
        """Says whether it is still of its pairs as they are, in ``dtype``."""
        return self.up.dtype == dtype and self.sources.hold(self.up)

    def scaled(self, numbers: Sequence[float]) -> tuple[Coefficient, Tensor | None]:
        """Returns what ``down · x`` is multiplied by under strengths, a number or ``(Σr,)``, and the sum of the biases.

        Args:
            numbers: one per pair.
        """
        scales = [number * scale for number, (_, scale, _) in zip(numbers, self.parts, strict=True)]
        shifts = [bias * scale for scale, (_, _, bias) in zip(scales, self.parts, strict=True) if bias is not None]
        shift = torch.stack(shifts).sum(0).to(self.up.dtype) if shifts else None
        if all(scale == scales[0] for scale in scales):
            return scales[0], shift
        each = [scale for scale, (rank, _, _) in zip(scales, self.parts, strict=True) for _ in range(rank)]
        return torch.tensor(each, dtype=self.up.dtype, device=self.up.device), shift


def is_pair(adapter: Adapter, training: bool) -> bool:
    """Whether it joins the product of all low-rank pairs; a mask that it draws in training is its own."""
    return adapter.fused and not (training and adapter.dropout > 0 and adapter.trainable)


def use(adapter: Adapter, how: Callable[..., Any], *args: Any) -> Any:
    """Computes with an adapter, through a call of the module where hooks of others have to see it."""
    if adapter._forward_pre_hooks or adapter._forward_hooks or "forward" in adapter.__dict__:
        return adapter(how, *args)
    return how(adapter, *args)


def factors_of(pairs: Acting) -> list[tuple[Factors, Coefficient]]:
    """Returns the factors of pairs, and their strengths."""
    return [(use(adapter, type(adapter).factors), coefficient) for adapter, coefficient in pairs]


def spread(ranks: Sequence[int], scales: Sequence[Coefficient]) -> Tensor:
    """Returns one coefficient per stacked rank, ``(Σr,)``, or per row and stacked rank, ``(rows, Σr)``.

    Args:
        ranks: r of each. scales: a number or ``()`` or ``(rows,)`` of each.
    """
    like = next(scale for scale in scales if isinstance(scale, Tensor))
    columns = [
        (scale if isinstance(scale, Tensor) else torch.full_like(like, scale))[..., None].expand(*like.shape, rank)
        for scale, rank in zip(scales, ranks, strict=True)
    ]
    return torch.cat(columns, dim=-1)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
