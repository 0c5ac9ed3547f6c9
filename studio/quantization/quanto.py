"""quanto's ``QLinear``: integers of 8, 4 and 2 bits, and 8-bit floats."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.errors import UnsupportedLayer
from studio.packages import need
from studio.quantization.backend import BACKENDS, PACKINGS, Backend, Held, Named, Packing
from studio.quantization.grid import Grid

__all__ = ["Quanto", "QuantoPacking"]

_TYPES: Final = {"int8": ("qint8", 8), "int4": ("qint4", 4), "int2": ("qint2", 2), "fp8": ("qfloat8_e4m3fn", 8)}
"""Name -> quanto's own, and bits."""


class QuantoPacking(Packing):
    """A frozen ``QLinear``, which would round a dense weight again: a baked one is multiplied here instead."""

    says = "quanto's layers"
    fetched = False

    def __init__(self) -> None:
        self._class = Named("optimum.quanto.", "QLinear")

    def owns(self, cls: type[nn.Module], weight: type[Any]) -> bool:
        return self._class.among(cls)

    def check(self, path: str, layer: Any) -> None:
        if "adapters" not in layer._modules and not layer.frozen:  # a hosted one may have a dense weight
            raise UnsupportedLayer(f"{path} is a QLinear that is not frozen; call quanto's freeze(model) first")
        if layer.activation_qtype is not None:
            raise UnsupportedLayer(
                f"{path} quantises its inputs ({layer.activation_qtype}), which an adapter cannot read; quantise "
                "weights only"
            )

    def packs(self, weight: Tensor | None) -> bool:
        return type(weight).__module__.startswith("optimum.")

    def unpacked(self, layer: Any) -> Tensor:
        found: Tensor = layer._parameters["weight"].dequantize()
        return found

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        weight = self._parts(layer)
        codes = weight._data if type(weight._data) is Tensor else weight._data._data
        shift = {"shift": weight._shift} if _has_shift(weight) else {}
        return {"data": codes, "scale": weight._scale, **shift}

    def repacked(self, layer: Any, weight: Tensor) -> list[Held]:
        made = _linear(layer.weight_qtype, weight.to(layer._parameters["weight"].dtype), None)
        return [Held("_parameters", "weight", made.weight)]

    def _parts(self, layer: Any) -> Any:
        """The weight in quanto's plain form; kernels of accelerators have forms of their own."""
        weight = layer._parameters["weight"]
        plain = type(weight).__name__ in ("WeightQBitsTensor", "WeightQBytesTensor")
        return weight if plain or not _is_bits(weight) else weight.weight_qbits_tensor()

    def grid(self, layer: Any) -> Grid | None:
        weight = self._parts(layer)
        if not _has_shift(weight) or weight.axis != 0:
            return None
        rows, cols = self.shape(layer)
        scales, shift = weight._scale.reshape(rows, -1), weight._shift.reshape(rows, -1)
        codes = weight._data.unpack().reshape(rows, cols)
        return Grid(codes, scales, shift / scales if shift.is_floating_point() else shift.to(scales.dtype))

    def shifted(self, layer: Any, change: Tensor) -> list[Held]:
        weight, grid = self._parts(layer), self.grid(layer)
        assert grid is not None
        # W = scale · code − shift, and shift is scale · zero
        shift = (grid.zeros * grid.scales - change.to(grid.scales)).reshape(weight._scale.shape)
        moved = type(weight)(
            weight.qtype, weight.axis, weight._group_size, weight.size(), weight.stride(), weight._data, weight._scale,
            shift,
        )  # fmt: skip
        return [Held("_parameters", "weight", nn.Parameter(moved, requires_grad=False))]


def _is_bits(weight: Any) -> bool:
    return any(one.__name__ == "WeightQBitsTensor" for one in type(weight).__mro__)


def _has_shift(weight: Any) -> bool:
    return "_shift" in vars(weight)


def _linear(kind: Any, weight: Tensor, bias: nn.Parameter | None) -> Any:
    """A frozen QLinear."""
    library = need("optimum.quanto", "these layers", extra="quant")
    plain = nn.Linear(1, 1, bias=False, device=torch.device("meta"))
    plain.out_features, plain.in_features = weight.shape
    made = library.nn.QLinear(
        weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype, device=torch.device("meta"),
        weights=kind, activations=None, optimizer=None, quantize_input=True,
    )  # fmt: skip
    made.weight, made.bias = nn.Parameter(weight.detach(), requires_grad=False), bias
    made.input_scale = made.output_scale = torch.ones((), dtype=weight.dtype, device=weight.device)
    made.freeze()
    made.weight.requires_grad_(False)
    return made


class Quanto(Backend):
    """One of quanto's types of weights.

    Args:
        kind: ``"int8"`` and ``"fp8"`` with a scale per row; ``"int4"`` and ``"int2"`` with a scale and a shift per row
            and group of columns: the largest of 128, 96, 64, 32 that divides the inputs, else the row.
    """

    package = "optimum.quanto"

    def __init__(self, kind: str) -> None:
        self.kind, self.name, self.packing = kind, f"quanto-{kind}", PACKING
        self.bits = _TYPES[kind][1]
        self.says = f"quanto's {kind}"

    def bytes(self, rows: int, cols: int, itemsize: int = 4) -> int:
        if self.bits == 8:
            return rows * cols + itemsize * rows
        group = next((size for size in (128, 96, 64, 32) if cols > 128 and cols % size == 0), cols)
        return rows * cols * self.bits // 8 + 2 * itemsize * rows * (cols // group)

    def layer(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        made: nn.Module = _linear(getattr(self.need(), _TYPES[self.kind][0]), weight, bias)
        return made


PACKING = QuantoPacking()
PACKINGS.append(PACKING)
for _kind in _TYPES:
    _backend = Quanto(_kind)
    BACKENDS.add(_backend.name, _backend)
