"""The mount: what a layer that carries adapters keeps beside them, and how they change what it computes.

There are three places where a change can act, and a formula for each. Which one a layer takes is told by its hosting
(:mod:`studio.adapters.hosting.host`); the adapters say what they change.

- its input, ``base(x + Σ s_i · d_i(x))``: :meth:`Mount.moved`;
- its output, ``y + Σ s_i · change_i(x)``: :meth:`Mount.changed`, where all low-rank pairs are one product,
  ``y + up · (c ⊙ (down · x))``;
- its tensors, ``W + Σ s_i ΔW_i`` and ``b + Σ s_i Δb_i``: :meth:`Mount.adapted`, for code that reads them itself.

A strength ``s_i`` is a number, or a tensor: under ``torch.compile``, or in training where the rows of a batch have
strengths of their own. While nothing is trained, rows with blends of their own are computed one by one
(:mod:`studio.adapters.hosting.apart`).
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from studio.adapters.contract.adapter import Adapter, Factors
from studio.adapters.hosting.apart import changed_apart, moved_apart, other_rows
from studio.adapters.hosting.levels import Levels
from studio.adapters.hosting.plan import (
    Acting,
    Coefficient,
    FactorStack,
    Masked,
    Pair,
    Plan,
    Sources,
    Stacked,
    factors_of,
    is_pair,
    spread,
    use,
)
from studio.adapters.hosting.regions import act_within, check_masked
from studio.adapters.sites.site import Site

__all__ = ["MOUNT", "Adapters", "Mount"]

MOUNT: Final = "_mount"
"""Where a hosted module keeps its mount."""


class Adapters(nn.ModuleDict):
    """The adapters of one layer, by name; any name is allowed, ``keys`` and ``forward`` too."""

    def forward(self, x: Any) -> Any:
        """Returns ``x``: a Sequential with adapters on it calls all that is in it, one behind the other."""
        return x

    def add(self, name: str, adapter: Adapter) -> None:
        """Puts ``adapter`` under ``name``."""
        self._modules[name] = adapter

    def get(self, name: str) -> Adapter | None:
        """Returns the adapter ``name``, or None where this layer does not have it."""
        return cast("Adapter | None", self._modules.get(name))

    def remove(self, name: str) -> None:
        """Takes the adapter ``name`` out."""
        del self._modules[name]

    def names(self) -> list[str]:
        """Returns the names of the adapters on this layer."""
        return list(self._modules)


class Mount:
    """What a hosted layer keeps beside its adapters: its site, the levels that it follows, and the plan made from them.

    Attributes:
        called: whether a compiled layer has let its adapters act since the model was last called; callers: the threads
            in which any has. seen: whether it ever has.
        hooks: what lets adapters act on a model as a whole, or None (see :data:`studio.adapters.hosting.host.HOOKS`).
    """

    def __init__(self, site: Site, levels: Levels) -> None:
        self.site, self.levels = site, levels
        self.called = self.seen = False
        self.callers: set[int] = set()
        self.hooks: Any = None
        self.forget()

    # -- whether it was called -----------------------------------------------------------------------------------------

    def note_called(self) -> None:
        """Notes that the layer lets its adapters act."""
        if torch.compiler.is_compiling():
            self.called = True
        else:
            self.callers.add(threading.get_ident())

    def was_called(self) -> bool:
        """Says whether it has, in this thread, since :meth:`begin_call`."""
        return self.called or threading.get_ident() in self.callers

    def begin_call(self) -> None:
        """Begins anew, for this thread."""
        self.called = False
        self.callers.discard(threading.get_ident())

    # -- the plan: which adapters act, how strongly, and where ---------------------------------------------------------

    def forget(self) -> None:
        """Drops the plan and all tensors made from it."""
        self.plan = Plan(-1, False, [])
        self.stacks: dict[tuple[int, ...], FactorStack] = {}

    def prepare(self) -> Plan:
        """Returns the plan, brought up to date with the levels and with whether the layer is trained."""
        plan = self.plan
        if plan.version == self.levels.version and not (plan.drops and plan.training != self.site.module.training):
            return plan
        levels, path, training = self.levels, self.site.path, self.site.module.training
        version = levels.version  # first: what changes meanwhile makes it old
        adapters = cast("dict[str, Adapter]", self.adapters._modules)
        here = [(name, adapters[name]) for name in levels.acting if name in adapters]
        found = [(adapter, levels.coefficient(name, path)) for name, adapter in here if name not in levels.masks]
        masked = [
            Masked(one, levels.within(name, path), levels.masks[name]) for name, one in here if name in levels.masks
        ]
        plan = Plan(version, training, found, masked)
        groups = levels.groups()
        if groups is not None:
            plan.count, plan.apart = sum(len(group.rows) for group in groups), []
            for group in groups:
                own = [(adapter, levels.number_in(group, name, path)) for name, adapter in here]
                plan.apart.append((group.rows, Plan(version, training, own)))
        self.plan = plan
        return plan

    @property
    def adapters(self) -> Adapters:
        """The adapters on the layer."""
        found = cast(Adapters, self.site.module._modules["adapters"])
        return cast(Adapters, found._modules[self.site.weight_name]) if self.site.hosting == "owner" else found

    @property
    def place(self) -> str:
        """Path of :attr:`adapters` in the model."""
        path = self.site.path
        if self.site.hosting == "owner":
            path, _, name = path.rpartition(".")
            return f"{path}.adapters.{name}".lstrip(".")
        return f"{path}.adapters".lstrip(".")

    def acts(self) -> bool:
        """Says whether any adapter acts on the layer under the current blend."""
        return bool(self.prepare().acting or self.prepare().masked)

    def follows(self, weights: Collection[int]) -> bool:
        """Says whether what acts here acts on one of ``weights`` (by ``id``) as a whole, wherever that is used."""
        return id(self.site.weight) in weights and all(adapter.tied for adapter, _ in self.prepare().acting)

    def rows(self) -> int | None:
        """Returns how many rows have a blend of their own, or None where any batch has one for all its rows."""
        return self.prepare().count or None

    def checked(self, coefficient: Tensor, y: Tensor) -> Tensor:
        """Returns ``coefficient`` ``(rows, ...)`` on the device and in the dtype of ``y`` ``(rows, ...)``.

        Raises:
            DoesNotFit: the blend names another number of rows.
        """
        if coefficient.shape[0] != y.shape[0]:
            raise other_rows(self.site.path, coefficient.shape[0], y.shape[0])
        return coefficient.to(y.device, y.dtype)

    # -- the input -----------------------------------------------------------------------------------------------------

    def moved(self, x: Tensor) -> Tensor:
        """Returns ``x + Σ s_i · d_i(x)``, what the base is called with, of the input ``x`` ``(batch, ..., in)``."""
        if torch.compiler.is_compiling():  # there they act on the output, as any other adapter
            return x
        plan = self.prepare()
        if plan.apart is not None and not torch.is_grad_enabled():
            return moved_apart(self, x, plan)
        movers, moved = plan.movers, x
        for adapter, coefficient in movers:
            if isinstance(coefficient, Tensor):
                coefficient = self.site.over_batch(self.checked(coefficient, x), x)
            moved = adapter(type(adapter).moved, moved, x, coefficient)
        return moved

    # -- the output ----------------------------------------------------------------------------------------------------

    def changed(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns ``y + Σ s_i · change_i(x)``.

        Args:
            x: the layer's input ``(batch, ..., in)``; a module's main one.
            y: the base's output ``(batch, ..., rows)``.
        """
        if torch.compiler.is_compiling():
            self.levels.check_uncompiled()
            self.called = True
            pairs, others = self._in_graph(y.dtype)
            total = self._raised_by_tensor(x, y, factors_of(pairs)) if pairs else y
            return self._changed_by(others, x, y, total) if others else total
        self.callers.add(threading.get_ident())
        plan = self.prepare()
        # in training or by hand, y may be needed as it is; and a module may give out what is not its own
        own = self.site.hosting in ("layer", "quantized") and not torch.is_grad_enabled()
        if plan.apart is not None and not torch.is_grad_enabled():
            return changed_apart(self, x, y, plan, own)
        alone = not (plan.others or plan.masked)
        total = self.raised(x, y, plan, own=own and alone) if plan.pairs else y
        total = self._changed_by(plan.others, x, y, total) if plan.others else total
        if not plan.masked:
            return total
        return act_within(self.levels.regions, self.site, plan.masked, x, None if plan.movers else y, total)

    def _changed_by(self, others: Acting, x: Tensor, y: Tensor, total: Tensor) -> Tensor:
        """``total`` and what adapters that are no pairs change."""
        weight, bias = self.site.operands(y)
        for adapter, coefficient in others:
            if isinstance(coefficient, Tensor):
                change = use(adapter, type(adapter).change, x, y, weight, bias)
                total = total + change * self._over(coefficient, y)
            else:
                total = use(adapter, type(adapter).act, total, x, y, weight, bias, coefficient)
        return total

    def _in_graph(self, dtype: torch.dtype) -> tuple[Acting, Acting]:
        """All pairs and all others, acting or not, with strengths that a compiled graph reads from a tensor."""
        adapters = cast("list[Adapter]", list(self.adapters._modules.values()))
        levels = self.levels.tensor(self.site.path, tuple(self.adapters._modules)).to(dtype)
        acting = [(adapter, levels[..., index]) for index, adapter in enumerate(adapters)]
        training = self.site.module.training
        pairs: Acting = [one for one in acting if is_pair(one[0], training)]
        return pairs, [one for one in acting if not is_pair(one[0], training)]

    def _over(self, coefficient: Tensor, y: Tensor) -> Tensor:
        return self.site.over_batch(self.checked(coefficient, y), y) if coefficient.dim() else coefficient

    def raised(self, x: Tensor, y: Tensor, plan: Plan, *, own: bool = False, stacked: Stacked | None = None) -> Tensor:
        """Returns ``y + up · (c ⊙ (down · x))`` with the factors of all pairs of a plan, one behind the other.

        Args:
            x: the layer's input ``(batch, ..., in)``. y: the base's output ``(batch, ..., rows)``.
            plan: of one blend. own: whether the sum may be written into ``y``. stacked: from :meth:`stacked`.
        """
        site = self.site
        if not plan.uniform:
            return self._raised_by_tensor(x, y, factors_of(plan.pairs))
        stack, scale, shift = self.stacked(plan, y.dtype) if stacked is None else stacked
        h = site.lower(x, stack.down)
        if isinstance(scale, Tensor):  # in training too: nothing needs h itself
            h, scale = h.mul_(site.over_rank(scale, h)), 1.0
        y = site.add_raised(y, h, stack.up, own=own, scale=scale)
        if shift is None:
            return y
        return y.add_(site.over_outputs(shift)) if own else y + site.over_outputs(shift)

    def stacked(self, plan: Plan, dtype: torch.dtype) -> Stacked:
        """Returns the stacked factors of a plan, an earlier plan's where they still stand, and their scales."""
        if plan.stack is not None and plan.stack[0].holds(dtype):
            return plan.stack
        adapters = [adapter for adapter, _ in plan.pairs]
        key = tuple(map(id, adapters))
        stack = self.stacks.get(key)
        if stack is None or stack.adapters != tuple(adapters) or not stack.holds(dtype):
            stack = FactorStack(adapters, dtype)
        made = (stack, *stack.scaled([cast(float, number) for _, number in plan.pairs]))
        if not stack.trained:
            now = [self.plan] if self.plan.apart is None else [one for _, one in self.plan.apart]
            wanted = {tuple(id(adapter) for adapter, _ in one.pairs) for one in now}
            self.stacks = {one: held for one, held in self.stacks.items() if one in wanted} | {key: stack}
            plan.stack = made
        return made

    def _raised_by_tensor(self, x: Tensor, y: Tensor, parts: list[tuple[Factors, Coefficient]]) -> Tensor:
        """The same with ``c`` as a tensor, ``(Σr,)`` or ``(rows, Σr)``."""
        site = self.site
        scales = [coefficient * factors.scale for factors, coefficient in parts]
        down = torch.cat([factors.down.to(y.dtype) for factors, _ in parts])
        up = torch.cat([factors.up.t().to(y.dtype) for factors, _ in parts]).t()
        c = spread([factors.down.shape[0] for factors, _ in parts], scales)
        c = self.checked(c, y) if c.dim() > 1 else c.to(y.device, y.dtype)
        h = site.lower(x, down)
        y = site.add_raised(y, h * site.over_rank(c, h), up)
        for (factors, _), scale in zip(parts, scales, strict=True):
            if factors.bias is not None:
                each = scale.to(y.device, y.dtype)[..., None] if isinstance(scale, Tensor) else scale
                shift = site.over_outputs(factors.bias.to(y.dtype) * each)
                y = y + (_batched(shift, y) if c.dim() > 1 and isinstance(scale, Tensor) else shift)
        return y

    # -- the tensors ---------------------------------------------------------------------------------------------------

    def adapted(self, weight: Tensor, bias: Tensor | None, row: int = 0) -> Pair:
        """Returns ``(W + Σ s_i ΔW_i, b + Σ s_i Δb_i)``; of one row, where strengths differ by row.

        Args:
            weight: the base's weight ``(rows, *inner_shape)``. bias: the base's bias ``(rows,)``, or None.
            row: the row.
        """
        self.note_called()
        check_masked(self.site, self.prepare().masked)
        total, shift = weight, bias
        for adapter, coefficient in self.prepare().at(row).acting:
            number = cast(float, coefficient)
            delta = use(adapter, type(adapter).delta, weight, bias)
            if delta.weight is not None:
                total = total + _times(delta.weight, number).to(weight.dtype)
            if delta.bias is not None:
                change = _times(delta.bias, number).to(weight.dtype)
                shift = change if shift is None else shift + change
        return total, shift

    def kept(self) -> Pair | None:
        """Returns the adapted weight and bias, made once while nothing that they are made from is trained or written.

        None where rows have blends of their own, and under ``torch.compile``.
        """
        plan = self.prepare()
        if torch.compiler.is_compiling() or plan.apart is not None or plan.masked:
            return None
        made = plan.made
        if made is not None and made[0].hold(made[1][0]):
            self.note_called()
            return made[1]
        weight, bias = self.adapted(self.site.weight, self.site.bias)
        if not (weight.requires_grad or (bias is not None and bias.requires_grad)):
            plan.made = Sources(self.site.module, *(adapter for adapter, _ in plan.acting)), (weight, bias)
        return weight, bias


def _times(change: Tensor, number: float) -> Tensor:
    return change if number == 1.0 else change * number


def _batched(over: Tensor, y: Tensor) -> Tensor:
    """``(batch, rows, ...)`` with as many axes as ``y``."""
    return over.reshape(over.shape[0], *(1,) * (y.dim() - over.dim()), *over.shape[1:])
