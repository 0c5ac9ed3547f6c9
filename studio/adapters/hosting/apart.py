"""Rows apart: a batch whose rows have blends of their own, while nothing is trained.

The base computes the batch as one, and what adapters change is computed row by row: every product has the shape that
it has for one row, on memory that begins as that of a whole tensor does. So the bits of a row depend on its own blend
and its own input alone, and not on which blends its neighbours have, nor on its place among them.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import Adapter, Delta
from studio.adapters.hosting.levels import Levels
from studio.adapters.hosting.plan import Plan, Stacked, use
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit

__all__ = ["SharedLayer", "changed_apart", "moved_apart", "other_rows"]

_ALIGNED = 64  # bytes; vectorised products of memory that begins elsewhere give other last bits


class Host(Protocol):
    """What is asked of a layer's mount."""

    site: Site
    levels: Levels

    def stacked(self, plan: Plan, dtype: torch.dtype) -> Stacked:
        """Returns the stacked factors of a plan."""

    def raised(self, x: Tensor, y: Tensor, plan: Plan, *, own: bool = False, stacked: Stacked | None = None) -> Tensor:
        """Returns ``y`` and what the pairs of a plan change."""


class SharedLayer(DoesNotFit):
    """A layer that computes once for all rows of a batch, under blends that differ there."""


def other_rows(path: str, named: int, called: int) -> SharedLayer:
    """Returns the error for a layer that is called with another number of rows than the blend names.

    Args:
        path: of the layer. named: rows of the blend. called: rows of its input.
    """
    return SharedLayer(
        f"the blend names {named} rows, and {path} was called with {called}; "
        "give one strength per sample, and sample_rows(...) where a sample has several rows (guidance)"
    )


def moved_apart(mount: Host, x: Tensor, plan: Plan) -> Tensor:
    """Returns what the base is called with: each row of ``x`` moved as its own blend says.

    Args:
        mount: of the layer. x: its input ``(batch, ..., in)``. plan: with a plan per group of rows.

    Raises:
        SharedLayer: the layer is called with other rows than the blend names.
    """
    groups = [(rows, one) for rows, one in plan.apart or () if one.movers]
    if not groups:
        return x
    if plan.uniform and x.shape[0] != plan.count:
        return _moved(x, x, groups[0][1])
    each, moved = _each(mount, x, plan), x.clone()
    for rows, one in groups:
        for row in rows:
            part = _aligned(x[row * each : (row + 1) * each])
            moved[row * each : (row + 1) * each] = _moved(part, part, one)
    return moved


def _moved(total: Tensor, x: Tensor, plan: Plan) -> Tensor:
    for adapter, number in plan.movers:
        total = adapter(type(adapter).moved, total, x, number)
    return total


def changed_apart(mount: Host, x: Tensor, y: Tensor, plan: Plan, own: bool) -> Tensor:
    """Returns ``y`` with each row changed as its own blend says.

    Args:
        mount: of the layer. x: its input ``(batch, ..., in)``. y: the base's output ``(batch, ..., rows)``.
        plan: with a plan per group of rows. own: whether the sum may be written into ``y``.

    Raises:
        SharedLayer: the layer is called with other rows than the blend names.
    """
    groups = [(rows, one) for rows, one in plan.apart or () if one.pairs or one.others]
    if not groups:
        return y
    operands = mount.site.operands(y) if any(one.others for _, one in groups) else None
    deltas: dict[Adapter, Delta] = {}
    if plan.uniform and y.shape[0] != plan.count and not _flat(mount, plan, y):
        return _changed(mount, x, y, groups[0][1], operands, deltas, None, own=False)
    each, total = _each(mount, y, plan), y if own else y.clone()
    for rows, one in groups:
        stacked = mount.stacked(one, y.dtype) if one.pairs else None
        for row in rows:
            place = total[row * each : (row + 1) * each]
            part = _aligned(place)
            made = _changed(mount, _rows_of(x, y, row, each), part, one, operands, deltas, stacked, own=not one.others)
            if made.data_ptr() != place.data_ptr():
                place.copy_(made)
    return total


def _changed(
    mount: Host,
    x: Tensor,
    y: Tensor,
    plan: Plan,
    operands: tuple[Tensor, Tensor | None] | None,
    deltas: dict[Adapter, Delta],
    stacked: Stacked | None,
    *,
    own: bool,
) -> Tensor:
    """``y`` under one blend; the change to a weight is computed once for all rows."""
    total = mount.raised(x, y, plan, own=own, stacked=stacked) if plan.pairs else y
    for adapter, number in plan.others:
        weight, bias = cast("tuple[Tensor, Tensor | None]", operands)
        kind, number = type(adapter), cast(float, number)
        if kind.change is not Adapter.change or kind.act is not Adapter.act:
            total = use(adapter, kind.act, total, x, y, weight, bias, number)
            continue
        if adapter not in deltas:
            deltas[adapter] = use(adapter, kind.delta, weight, bias)
        total = torch.add(total, adapter.applied(deltas[adapter], x, y), alpha=number)
    return total


def _each(mount: Host, y: Tensor, plan: Plan) -> int:
    """How much of the first axis belongs to a row: 1, or its tokens where those of all rows stand in one row."""
    if y.shape[0] == plan.count:
        return 1
    if _flat(mount, plan, y):
        return y.shape[0] // plan.count
    raise other_rows(mount.site.path, plan.count, y.shape[0])


def _flat(mount: Host, plan: Plan, y: Tensor) -> bool:
    return y.shape[0] % plan.count == 0 and mount.levels.flat(mount.site.path)


def _rows_of(x: Tensor, y: Tensor, row: int, each: int) -> Tensor:
    return _aligned(x[row * each : (row + 1) * each]) if x.shape[0] == y.shape[0] else x


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it where its memory begins elsewhere than that of a whole tensor."""
    return tensor if tensor.data_ptr() % _ALIGNED == 0 and tensor.is_contiguous() else tensor.contiguous().clone()
