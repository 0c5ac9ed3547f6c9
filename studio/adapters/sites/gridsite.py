"""Sites whose weight is kept on a grid: our own quantised layer, and those of quanto and torchao.

Their weight is computed when it is asked for. Baking puts a dense weight in its place, or, where the change is constant
in every group of columns (QA-LoRA), moves the zero points and nothing else.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch.nn.functional as F
from torch import Tensor, nn

from studio.adapters.sites.quantized import Grid, GroupQuantizedLinear
from studio.adapters.sites.site import LinearSite
from studio.errors import UnsupportedLayer

__all__ = ["GridSite", "GroupSite", "Held", "QuantoSite", "TorchaoSite", "linear_site", "quanto_layer"]

Held: TypeAlias = tuple[str, str, "Tensor | None"]
"""A tensor of a module before it was replaced: the module's table, the name, the tensor."""


class GridSite(LinearSite):
    """A Linear whose weight is kept on a grid."""

    __slots__ = ()

    @property
    @abstractmethod
    def grid(self) -> Grid | None:
        """The weight as it is stored; None where it is not on a grid of groups with zero points."""

    @abstractmethod
    def shift(self, change: Tensor) -> list[Held]:
        """Adds a number per row and group to the weight, by its zero points alone.

        Args:
            change: the numbers ``(rows, groups)``.

        Returns:
            What the module held before.
        """


class GroupSite(GridSite):
    """The studio's own layer."""

    weight_name = "dense"
    __slots__ = ()

    @property
    def _layer(self) -> GroupQuantizedLinear:
        return cast(GroupQuantizedLinear, self.module)

    @property
    def weight(self) -> Tensor:
        return self._layer.weight

    @property
    def grid(self) -> Grid:
        return self._layer.grid

    def shift(self, change: Tensor) -> list[Held]:
        layer = self._layer
        before = layer.zeros
        layer._buffers["zeros"] = before - change.to(before) / layer.scales
        return [("_buffers", "zeros", before)]


class TorchaoSite(GridSite):
    """A Linear with torchao's ``IntxUnpackedToInt8Tensor``."""

    __slots__ = ()

    @property
    def _stored(self) -> Any:
        return self.module._parameters["weight"]

    @property
    def weight(self) -> Tensor:
        stored = self._stored
        return cast(Tensor, stored.dequantize() if _is_torchao(stored) else stored)

    @property
    def grid(self) -> Grid | None:
        stored = self._stored
        if not _is_torchao(stored) or stored.block_size[0] != 1:
            return None
        return Grid(stored.qdata, stored.scale, stored.zero_point.to(stored.scale.dtype))

    def shift(self, change: Tensor) -> list[Held]:
        stored, grid = self._stored, self.grid
        assert grid is not None
        moved = type(stored)(
            stored.qdata, stored.scale, grid.zeros - change.to(grid.zeros) / grid.scales, stored.target_dtype,
            stored.block_size, stored.dtype, stored.activation_quantization,
        )  # fmt: skip
        self.module._parameters["weight"] = nn.Parameter(moved, requires_grad=False)
        return [("_parameters", "weight", stored)]


class QuantoSite(GridSite):
    """quanto's frozen ``QLinear``, which would round a dense weight again: a baked one is multiplied here instead.

    Raises:
        UnsupportedLayer: a layer that is not frozen yet, or that quantises its inputs too.
    """

    hosting = "quantized"
    __slots__ = ()

    def __init__(self, path: str, module: Any) -> None:
        if not module.frozen:
            raise UnsupportedLayer(f"{path} is a QLinear that is not frozen; call quanto's freeze(model) first")
        if module.activation_qtype is not None:
            raise UnsupportedLayer(
                f"{path} quantises its inputs ({module.activation_qtype}), which an adapter cannot read; quantise "
                "weights only"
            )
        super().__init__(path, module)

    @property
    def _stored(self) -> Any:
        return self.module._parameters["weight"]

    @property
    def _kept(self) -> bool:
        return hasattr(self._stored, "_scale") or hasattr(self._stored, "_scale_shift")

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self._stored.dequantize() if self._kept else self._stored)

    def run(self, base: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Computes the layer as it stands, by quanto's own forward while the weight is quantised."""
        return base(self.module, x) if self._kept else F.linear(x, self._stored, self.bias)

    def _parts(self) -> Any:
        stored = self._stored
        optimised = hasattr(stored, "weight_qbits_tensor") and type(stored).__name__ != "WeightQBitsTensor"
        return stored.weight_qbits_tensor() if optimised else stored

    @property
    def grid(self) -> Grid | None:
        stored = self._parts()
        if not hasattr(stored, "_shift") or stored.axis != 0:
            return None
        codes = stored._data.unpack().reshape(self.rows, self.cols)
        scales = stored._scale.reshape(self.rows, -1)
        shift = stored._shift.reshape(self.rows, -1)
        return Grid(codes, scales, shift / scales if shift.is_floating_point() else shift.to(scales.dtype))

    def shift(self, change: Tensor) -> list[Held]:
        before, stored, grid = self._stored, self._parts(), self.grid
        assert grid is not None
        # W = scale · code − shift, and shift is scale · zero
        shift = (grid.zeros * grid.scales - change.to(grid.scales)).reshape(stored._scale.shape)
        moved = type(stored)(
            stored.qtype, stored.axis, stored._group_size, stored.size(), stored.stride(), stored._data, stored._scale,
            shift,
        )  # fmt: skip
        self.module._parameters["weight"] = nn.Parameter(moved, requires_grad=False)
        return [("_parameters", "weight", before)]


def quanto_layer() -> type[nn.Module] | None:
    """quanto's QLinear where quanto has been imported; a model that holds one has done so."""
    module = sys.modules.get("optimum.quanto.nn.qlinear")
    return None if module is None else cast("type[nn.Module]", module.QLinear)


def linear_site(path: str, module: nn.Linear) -> LinearSite:
    """Describes a Linear: torchao quantises one by the type of its weight alone."""
    return (TorchaoSite if _is_torchao(module._parameters["weight"]) else LinearSite)(path, module)


def _is_torchao(weight: Any) -> bool:
    return type(weight).__name__ == "IntxUnpackedToInt8Tensor" and type(weight).__module__.startswith("torchao.")
