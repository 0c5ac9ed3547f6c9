"""Norms as sites: LayerNorm, RMSNorm, GroupNorm, BatchNorm, and the model libraries' own classes of them.

A norm computes ``y = n(x) ⊙ (c + w) + b`` with ``c = 0``, or ``c = 1`` in Gemma's norms, whose weight is stored around
zero. Its map of a change ``(Δw, Δb)`` is ``n(x) ⊙ Δw + Δb``: the layer's own forward with ``Δw − c`` in place of ``w``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from studio.adapters.sites.site import Site
from studio.adapters.sites.stored import check_stored
from studio.errors import UnsupportedLayer

__all__ = ["NormSite", "is_norm"]

Formula: TypeAlias = "Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]"


def is_norm(module: nn.Module) -> bool:
    """Says whether ``module`` is a norm with a weight: a class of torch's, or one that is called so and has no parts.

    Example:
        >>> is_norm(nn.GroupNorm(2, 4)), is_norm(nn.GroupNorm(2, 4, affine=False)), is_norm(nn.Linear(2, 2))
        (True, False, False)
    """
    usual = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm))
    if usual and "parametrizations" in module._modules:
        return True  # which NormSite refuses by its name
    if module._parameters.get("weight") is None or not module._modules.keys() <= {"adapters"}:
        return False
    if usual:
        return True
    return "norm" in type(module).__name__.lower() and module._parameters.keys() <= {"weight", "bias"}


def _batch_norm(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Without a second update of the running statistics: what they were made from is what this batch is scaled by."""
    own = module.training or module.running_mean is None
    mean, variance = (None, None) if own else (module.running_mean, module.running_var)
    return F.batch_norm(x, mean, variance, weight, bias, own, 0.0, module.eps)


_FORMULAS: Final[dict[Callable[..., Any], Formula]] = {
    nn.LayerNorm.forward: lambda m, x, w, b: F.layer_norm(x, m.normalized_shape, w, b, m.eps),
    nn.RMSNorm.forward: lambda m, x, w, b: F.rms_norm(x, m.normalized_shape, w, m.eps),
    nn.GroupNorm.forward: lambda m, x, w, b: F.group_norm(x, m.num_groups, w, b, m.eps),
    _BatchNorm.forward: _batch_norm,
}
"""Torch's own norms as functions; every other class is called with other tensors in place of its own."""


class NormSite(Site):
    """A norm with a weight, and with a bias where its class has one.

    Raises:
        UnsupportedLayer: a class whose output is not affine in its weight and bias, or that takes further inputs, or a
            weight that is computed.
    """

    kind = "norm"
    hosting = "norm"
    __slots__ = ("base", "bias_name", "channels_first", "offset", "shape")

    def __init__(self, path: str, module: nn.Module) -> None:
        check_stored(path, module)
        self.shape = tuple(cast(Tensor, module._parameters["weight"]).shape)
        super().__init__(path, module, math.prod(self.shape), (1,))
        self.base = type(module)
        self.bias_name = "bias" if "bias" in module._parameters else None
        self.channels_first, self.offset = isinstance(module, (nn.GroupNorm, _BatchNorm)), 0.0
        if self.base.forward not in _FORMULAS:
            self._probe()

    @property
    def stateless(self) -> bool:
        """Whether a call leaves the layer as it was; a batch norm in training counts what it has seen."""
        return not (isinstance(self.module, _BatchNorm) and self.module.training)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return self.shape

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.rows, 1)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.computed(x, weight - self.offset if self.offset else weight, bias)

    def spread(self, bias: Tensor, y: Tensor) -> Tensor:
        if self.channels_first:
            bias = bias.reshape(-1, *(1,) * (y.dim() - 2))
        return bias.expand_as(y)

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own output of ``x`` with another weight and bias."""
        formula = _FORMULAS.get(self.base.forward)
        if formula is not None:
            return formula(self.module, x, weight, bias)
        twin = self.base.__new__(self.base)  # the layer without its hosting and hooks, and with these tensors
        twin.__dict__.update(self.module.__dict__, _parameters={"weight": weight})
        if self.bias_name is not None:
            twin._parameters["bias"] = cast(nn.Parameter, torch.zeros_like(weight) if bias is None else bias)
        return cast(Tensor, self.base.forward(twin, x))

    @torch.no_grad()
    def _probe(self) -> None:
        """Finds the number that the layer adds to its weight, and its axis, by trying it on small inputs.

        Raises:
            UnsupportedLayer: there is none, or the layer cannot be called with one input.
        """
        what = f"{self.path or 'the model'} is a {self.base.__name__}"
        if len(inspect.signature(self.base.forward).parameters) != 2:
            raise UnsupportedLayer(f"{what}, which takes further inputs; how they meet its weight is not known")
        problem = ""
        pictures = [(2, self.rows, *(2,) * axes) for axes in (1, 2, 3)] if len(self.shape) == 1 else []
        for shape in ((2, *self.shape), *pictures):
            try:
                offset = self._offset(shape)
            except Exception as error:
                problem = problem or f"it could not be tried on a small input: {error}"
                continue
            problem = "its output is not affine in its weight and bias"
            if offset is not None:
                self.channels_first, self.offset = self.channels_first or len(shape) > 1 + len(self.shape), offset
                return
        raise UnsupportedLayer(f"{what}, and {problem}; exclude it")

    def _offset(self, shape: tuple[int, ...]) -> float | None:
        """The number that the layer adds to its weight, found with an input of ``shape``."""
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(shape, generator=draw, device="cpu")
        weight, bias = (torch.randn(self.shape, generator=draw, device="cpu") for _ in range(2))
        known = bias if self.bias_name else None
        for offset in (0.0, 1.0):
            zero = self.computed(x, torch.full(self.shape, -offset, device="cpu"), None)
            if zero.shape == x.shape and not zero.count_nonzero():
                once = self.computed(x, weight - offset, known)
                twice = self.computed(x, 2 * weight - offset, None if known is None else 2 * known)
                return offset if torch.allclose(2 * once, twice, atol=1e-5) else None
        return None
