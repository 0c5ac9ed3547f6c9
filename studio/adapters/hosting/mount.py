"""The mount: what a layer that carries adapters keeps beside them, and how they change what it computes.

There are three places where a change can act, and a formula for each. Which one a layer takes is told by its hosting
(:mod:`studio.adapters.hosting.host`); the adapters say what they change.

- its input, ``base(x + Σ s_i · d_i(x))``: :meth:`Mount.moved`;
- its output, ``y + Σ s_i · change_i(x)``: :meth:`Mount.changed`, where all low-rank pairs are one product,
  ``y + up · (c ⊙ (down · x))``;
- its tensors, ``W + Σ s_i ΔW_i`` and ``b + Σ s_i Δb_i``: :meth:`Mount.adapted`, for code that reads them itself.

A strength ``s_i`` is a number, or a tensor: one number per row of the batch, or, under ``torch.compile``, a value that
the graph reads. Numbers are folded into the small factor ``up``; tensors multiply ``down · x``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, TypeAlias, cast

import torch
from torch import Tensor, nn

from studio.adapters.contract.adapter import Adapter, Factors
from studio.adapters.hosting.levels import Levels
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit

__all__ = ["MOUNT", "Adapters", "Mount"]

MOUNT: Final = "_mount"
"""Where a hosted module keeps its mount."""

Coefficient: TypeAlias = float | Tensor
Acting: TypeAlias = list[tuple[Adapter, Coefficient]]
Pair: TypeAlias = "tuple[Tensor, Tensor | None]"


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


class Plan:
    """Which adapters act on a layer, how strongly and where, and what was made of them; threads may share it.

    Attributes:
        version: of the levels that it was made from. training: of the layer. drops: whether it depends on that.
        movers: adapters that change the input. pairs: those that are factor pairs. others: all others.
        uniform: whether one number holds for all rows, of each.
        stack: the factors of the pairs, made once. made: the adapted tensors, made once.
    """

    __slots__ = ("drops", "made", "movers", "others", "pairs", "stack", "training", "uniform", "version")

    def __init__(self, version: int, training: bool, levels: Iterable[tuple[Adapter, Coefficient]]) -> None:
        self.version, self.training, self.drops, self.uniform = version, training, False, True
        self.movers: Acting = []
        self.pairs: Acting = []
        self.others: Acting = []
        for one in levels:
            adapter, coefficient = one
            if not isinstance(coefficient, float):
                self.uniform = False
            elif coefficient == 0.0:
                continue
            self.drops = self.drops or adapter.dropout > 0
            pair = _is_pair(adapter, training)
            (self.movers if adapter.moves else self.pairs if pair else self.others).append(one)
        if self.others:  # they need the output of the base for its own input
            self.others, self.movers = [*self.movers, *self.others], []
        self.stack: FactorStack | None = None
        self.made: tuple[Sources, Pair] | None = None

    @property
    def acting(self) -> Acting:
        """All of them."""
        return [*self.pairs, *self.others, *self.movers]


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

    def prepare(self) -> Plan:
        """Returns the plan, brought up to date with the levels and with whether the layer is trained."""
        plan = self.plan
        if plan.version == self.levels.version and not (plan.drops and plan.training != self.site.module.training):
            return plan
        version = self.levels.version  # first: what changes meanwhile makes it old
        coefficient, path = self.levels.coefficient, self.site.path
        adapters = cast("dict[str, Adapter]", self.adapters._modules)
        found = [(adapter, coefficient(name, path)) for name, adapter in adapters.items()]
        self.plan = Plan(version, self.site.module.training, found)
        return self.plan

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
        return bool(self.prepare().acting)

    def follows(self, weights: Collection[int]) -> bool:
        """Says whether what acts here acts on one of ``weights`` (by ``id``) as a whole, wherever that is used."""
        return id(self.site.weight) in weights and all(adapter.tied for adapter, _ in self.prepare().acting)

    def rows(self) -> Tensor | None:
        """Returns coefficients that differ by row ``(rows,)``, or None where one number holds for all."""
        plan = self.prepare()
        return None if plan.uniform else next(number for _, number in plan.acting if isinstance(number, Tensor))

    def checked(self, coefficient: Tensor, y: Tensor) -> Tensor:
        """Returns ``coefficient`` ``(rows, ...)`` on the device and in the dtype of ``y`` ``(rows, ...)``.

        Raises:
            DoesNotFit: the blend names another number of rows.
        """
        if coefficient.shape[0] != y.shape[0]:
            raise DoesNotFit(
                f"the blend names {coefficient.shape[0]} rows, and {self.site.path} was called with {y.shape[0]}; "
                "give one strength per sample, and sample_rows(...) where a sample has several rows (guidance)"
            )
        return coefficient.to(y.device, y.dtype)

    # -- the input -----------------------------------------------------------------------------------------------------

    def moved(self, x: Tensor) -> Tensor:
        """Returns ``x + Σ s_i · d_i(x)``, what the base is called with, of the input ``x`` ``(batch, ..., in)``."""
        if torch.compiler.is_compiling():  # there they act on the output, as any other adapter
            return x
        movers, moved = self.prepare().movers, x
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
            self.called = True
            pairs, others = self._in_graph(y.dtype)
            total = self._raised_by_tensor(x, y, _read(pairs)) if pairs else y
        else:
            self.callers.add(threading.get_ident())
            plan = self.prepare()
            others = plan.others
            total = self._raised(x, y, plan) if plan.pairs else y
        if others:
            weight, bias = self.site.operands(y)
            for adapter, coefficient in others:
                if isinstance(coefficient, Tensor):
                    change = _use(adapter, type(adapter).change, x, y, weight, bias)
                    total = total + change * self._over(coefficient, y)
                else:
                    total = _use(adapter, type(adapter).act, total, x, y, weight, bias, coefficient)
        return total

    def _in_graph(self, dtype: torch.dtype) -> tuple[Acting, Acting]:
        """All pairs and all others, acting or not, with strengths that a compiled graph reads from a tensor."""
        adapters = cast("list[Adapter]", list(self.adapters._modules.values()))
        levels = self.levels.tensor(self.site.path, tuple(self.adapters._modules)).to(dtype)
        acting = [(adapter, levels[..., index]) for index, adapter in enumerate(adapters)]
        training = self.site.module.training
        pairs: Acting = [one for one in acting if _is_pair(one[0], training)]
        return pairs, [one for one in acting if not _is_pair(one[0], training)]

    def _over(self, coefficient: Tensor, y: Tensor) -> Tensor:
        return self.site.over_batch(self.checked(coefficient, y), y) if coefficient.dim() else coefficient

    def _raised(self, x: Tensor, y: Tensor, plan: Plan) -> Tensor:
        """``y + up · (c ⊙ (down · x))`` with the factors of all pairs, one behind the other."""
        site, stack = self.site, plan.stack
        if stack is not None and stack.holds(y.dtype):
            down, up, bias = stack.factors
        elif plan.uniform:
            down, up, bias = _stacked(site, cast("list[tuple[Adapter, float]]", plan.pairs), y.dtype)
            if not (down.requires_grad or up.requires_grad):
                plan.stack = FactorStack((down.detach(), up.detach(), bias), [adapter for adapter, _ in plan.pairs])
        else:
            return self._raised_by_tensor(x, y, _read(plan.pairs))
        y = site.add_raised(y, site.lower(x, down), up)
        return y if bias is None else y + bias

    def _raised_by_tensor(self, x: Tensor, y: Tensor, parts: list[tuple[Factors, Coefficient]]) -> Tensor:
        """The same with ``c`` as a tensor, ``(Σr,)`` or ``(rows, Σr)``."""
        site = self.site
        scales = [coefficient * factors.scale for factors, coefficient in parts]
        down = torch.cat([factors.down.to(y.dtype) for factors, _ in parts])
        up = torch.cat([factors.up.t().to(y.dtype) for factors, _ in parts]).t()
        c = _spread([factors.down.shape[0] for factors, _ in parts], scales)
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
        total, shift = weight, bias
        for adapter, coefficient in self.prepare().acting:
            number = coefficient[row].to(weight) if isinstance(coefficient, Tensor) else coefficient
            delta = _use(adapter, type(adapter).delta, weight, bias)
            if delta.weight is not None:
                total = total + _times(delta.weight, number).to(weight.dtype)
            if delta.bias is not None:
                change = _times(delta.bias, number).to(weight.dtype)
                shift = change if shift is None else shift + change
        return total, shift

    def kept(self) -> Pair | None:
        """Returns the adapted weight and bias, made once while nothing that they are made from is trained or written.

        None where rows differ, and under ``torch.compile``.
        """
        if torch.compiler.is_compiling() or self.rows() is not None:
            return None
        plan = self.prepare()
        made = plan.made
        if made is not None and made[0].hold(made[1][0]):
            self.note_called()
            return made[1]
        weight, bias = self.adapted(self.site.weight, self.site.bias)
        if not (weight.requires_grad or (bias is not None and bias.requires_grad)):
            plan.made = Sources(self.site.module, *(adapter for adapter, _ in plan.acting)), (weight, bias)
        return weight, bias


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
        """Says whether they are the same tensors, unchanged and frozen, so that ``made`` still stands for them."""
        if made.is_inference() and not torch.is_inference_mode_enabled():
            return False
        for table, name, tensor, version in self.tensors:
            if table.get(name) is not tensor or tensor.requires_grad or _version(tensor) != version:
                return False
        return True


class FactorStack:
    """The factors of all frozen pairs of a layer, stacked and scaled once: ``down``, ``up``, sum of biases."""

    __slots__ = ("factors", "sources")

    def __init__(self, factors: tuple[Tensor, Tensor, Tensor | None], adapters: list[Adapter]) -> None:
        self.factors, self.sources = factors, Sources(*adapters)

    def holds(self, dtype: torch.dtype) -> bool:
        """Says whether the stack still stands for its sources, in ``dtype``."""
        up = self.factors[1]
        return up.dtype == dtype and self.sources.hold(up)


def _is_pair(adapter: Adapter, training: bool) -> bool:
    """Whether it joins the product of all low-rank pairs; a mask that it draws in training is its own."""
    return adapter.fused and not (training and adapter.dropout > 0 and adapter.trainable)


def _use(adapter: Adapter, how: Callable[..., Any], *args: Any) -> Any:
    """Computes with an adapter, through a call of the module where hooks of others have to see it."""
    if adapter._forward_pre_hooks or adapter._forward_hooks or "forward" in adapter.__dict__:
        return adapter(how, *args)
    return how(adapter, *args)


def _read(pairs: Acting) -> list[tuple[Factors, Coefficient]]:
    return [(_use(adapter, type(adapter).factors), coefficient) for adapter, coefficient in pairs]


def _times(change: Tensor, number: float | Tensor) -> Tensor:
    return change if isinstance(number, float) and number == 1.0 else change * number


def _stacked(
    site: Site, pairs: list[tuple[Adapter, float]], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All ``down`` along the rank, all ``up`` with their scales in them, and the sum of the biases."""
    scaled = [_scaled(_use(adapter, type(adapter).factors), number) for adapter, number in pairs]
    down, up, shift = scaled[0]
    if len(scaled) > 1 or not (down.requires_grad or up.requires_grad):  # a single one that is trained is not copied
        down = torch.cat([factors[0] for factors in scaled])
        up = torch.cat([factors[1] for factors in scaled], dim=1)
        shifts = [factors[2] for factors in scaled if factors[2] is not None]
        shift = torch.stack(shifts).sum(0) if shifts else None
    if down.dtype != dtype or up.dtype != dtype:
        down, up = down.to(dtype), up.to(dtype)
    return down, up, None if shift is None else site.over_outputs(shift.to(dtype))


def _scaled(factors: Factors, coefficient: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """The pair and the bias with their scale in them: on the small factor, never on an activation."""
    down, up, scale, bias = factors
    scale *= coefficient
    return (down, up, bias) if scale == 1.0 else (down, up * scale, None if bias is None else bias * scale)


def _spread(ranks: list[int], scales: list[Coefficient]) -> Tensor:
    """One coefficient per stacked rank, ``(Σr,)``, or per row and stacked rank, ``(rows, Σr)``."""
    like = next(scale for scale in scales if isinstance(scale, Tensor))
    columns = [
        (scale if isinstance(scale, Tensor) else torch.full_like(like, scale))[..., None].expand(*like.shape, rank)
        for scale, rank in zip(scales, ranks, strict=True)
    ]
    return torch.cat(columns, dim=-1)


def _batched(over: Tensor, y: Tensor) -> Tensor:
    """``(batch, rows, ...)`` with as many axes as ``y``."""
    return over.reshape(over.shape[0], *(1,) * (y.dim() - over.dim()), *over.shape[1:])


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
