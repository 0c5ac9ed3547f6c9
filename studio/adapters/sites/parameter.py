"""Bare parameters as sites: a weight that a module keeps itself, outside any layer class.

A projection that is written as a parameter (``text_projection``), a table of positions, the weights of all experts of
a mixture-of-experts block in one tensor ``(E, …, …)``: the module reads them itself, so nothing can be added to an
output. The adapted tensor takes the parameter's place wherever the module is asked for it (see
:mod:`studio.adapters.hosting.owner`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import cast

from torch import Tensor, nn

from studio.adapters.sites.kinds import has_own_forward, kind_of
from studio.adapters.sites.read import module_at
from studio.adapters.sites.site import LAYERS, Site
from studio.errors import UnsupportedLayer
from studio.families import named_parts

__all__ = ["BARE", "ExpertsSite", "ParameterSite", "bare_parameters", "experts_in", "parameter_site"]

BARE = ("parameter", "experts")
"""Kinds of bare parameters."""


class ParameterSite(Site):
    """A parameter ``(rows, cols)`` or ``(rows,)`` that ``module`` keeps under ``weight_name``; its path ends in it."""

    kind = "parameter"
    hosting = "owner"
    bias_name = None
    __slots__ = ("shape", "weight_name")

    def __init__(self, path: str, module: nn.Module, name: str) -> None:
        self.weight_name = name
        self.shape = tuple(cast(Tensor, module._parameters[name]).shape)
        super().__init__(path, module, self.shape[-2] if len(self.shape) > 1 else self.shape[0], self._inner())

    def _inner(self) -> tuple[int, ...]:
        return (self.shape[-1] if len(self.shape) > 1 else 1,)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def owner(self) -> str:
        """Path of the module that keeps the parameter."""
        return self.path.rpartition(".")[0]


class ExpertsSite(ParameterSite):
    """E matrices in one parameter: ``(E, rows, cols)``, or ``(E, cols, rows)`` in a block that says so.

    The matrix form has the experts in front: ``(E, rows, cols)``.
    """

    kind = "experts"
    __slots__ = ("lead", "transposed")

    def __init__(self, path: str, module: nn.Module, name: str) -> None:
        super().__init__(path, module, name)
        self.lead = self.shape[:1]
        self.transposed = bool(vars(module).get("is_transposed", False))  # transformers' word for (E, in, out)
        if self.transposed:
            self.rows, self.cols = self.cols, self.rows
            self.inner_shape = (self.cols,)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.mT if self.transposed else weight

    def shaped(self, matrix: Tensor) -> Tensor:
        return matrix.mT if self.transposed else matrix


def bare_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yields path, owner and name of every parameter that belongs to no layer or norm."""
    for path, module in named_parts(root):
        if not module._parameters:
            continue
        kind = kind_of(module)
        if kind == "norm" or (kind in LAYERS and not has_own_forward(module)):
            continue
        if {"adapters", "parametrizations"} & set(path.split(".")):
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}" if path else name, module, name


def experts_in(root: nn.Module) -> list[str]:
    """Returns the paths of the parameters that hold the matrices of several experts.

    Example:
        >>> import torch
        >>> block = nn.Module()
        >>> block.experts = nn.Module()
        >>> block.experts.up = nn.Parameter(torch.zeros(4, 16, 8))
        >>> block.positions = nn.Parameter(torch.zeros(2, 4, 8))
        >>> experts_in(block)
        ['experts.up']
    """
    found = []
    for path, module, name in bare_parameters(root):
        called = "expert" in f"{type(module).__name__} {path}".lower() or "num_experts" in vars(module)
        if called and cast(Tensor, module._parameters[name]).dim() == 3:
            found.append(path)
    return found


def parameter_site(root: nn.Module, path: str, kinds: Collection[str]) -> ParameterSite | None:
    """Describes the parameter at ``path`` as a site; None where there is no such parameter.

    Raises:
        UnsupportedLayer: a parameter of a layer, one with no or more than three axes, or of a kind that is not asked
            for.
    """
    above, _, name = path.rpartition(".")
    module = module_at(root, above)
    parameter = None if module is None else module._parameters.get(name)
    if module is None or parameter is None:
        return None
    if name not in {bare for _, owner, bare in bare_parameters(module) if owner is module}:
        raise UnsupportedLayer(f"{path} is a parameter of a layer; name the layer {above!r} instead")
    if parameter.dim() not in (1, 2, 3) or not parameter.is_floating_point():
        raise UnsupportedLayer(
            f"{path} is a parameter of shape {tuple(parameter.shape)}; adapters act on those with one to three axes"
        )
    site = ExpertsSite(path, module, name) if parameter.dim() == 3 else ParameterSite(path, module, name)
    if site.kind not in kinds:
        raise UnsupportedLayer(f"{path} is of kind {site.kind!r}, which this method does not cover")
    return site
