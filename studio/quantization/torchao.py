"""torchao's weights, which stand in an ordinary Linear: 8 bits, 8-bit floats, and codes of 1 to 8 bits in a byte each.

Its other tensors (int4 in the layouts of kernels, quantised inputs) have no backward pass, and are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from studio.errors import UnsupportedLayer
from studio.packages import need
from studio.quantization.backend import BACKENDS, PACKINGS, Backend, Held, Packing
from studio.quantization.grid import Grid

__all__ = ["Torchao", "TorchaoPacking"]

_TRAINABLE: Final = ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor")
_OF_INPUTS: Final = ("act_quant_kwargs", "activation_quantization")
_GROUP: Final = 32


class TorchaoPacking(Packing):
    """A Linear whose weight is one of torchao's tensors."""

    says = "torchao's weights"

    def owns(self, cls: type[nn.Module], weight: type[Any]) -> bool:
        return weight.__module__.startswith("torchao.") and issubclass(cls, nn.Linear)

    def check(self, path: str, layer: nn.Module) -> None:
        weight = cast(Any, layer)._parameters["weight"]
        kind = type(weight).__name__
        if kind not in _TRAINABLE:
            raise UnsupportedLayer(
                f"the weight of {path} is torchao's {kind}, through which no gradient goes and which is not read: "
                f"quantise it as one of {', '.join(_TRAINABLE)} (studio.quantize(model, 'torchao-int8')), or exclude it"
            )
        if any(vars(weight).get(name) is not None for name in _OF_INPUTS):
            raise UnsupportedLayer(
                f"{path} quantises its inputs (torchao's {kind}), through which no gradient goes; quantise weights only"
            )

    def packs(self, weight: Tensor | None) -> bool:
        return type(weight).__module__.startswith("torchao.")

    def unpacked(self, layer: Any) -> Tensor:
        found: Tensor = layer._parameters["weight"].dequantize()
        return found

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        weight = layer._parameters["weight"]
        names = (*weight.tensor_data_names, "zero_point")
        return {name: part for name in names if (part := vars(weight).get(name)) is not None}

    def remade(self, weight: Any, make: Callable[[Tensor], Tensor]) -> Tensor | None:
        names, content = weight.__tensor_flatten__()
        parts = {name: make(getattr(weight, name)) for name in names}
        found = type(weight.data).__tensor_unflatten__(parts, content, weight.shape, weight.stride())
        return nn.Parameter(found, requires_grad=False)

    def repacked(self, layer: Any, weight: Tensor) -> list[Held]:
        old = layer._parameters["weight"]
        kind = type(old)
        if kind.__name__ == "IntxUnpackedToInt8Tensor":
            mapping = need("torchao.quantization.quant_primitives", "these layers", extra="quant").MappingType
            uneven = bool(old.zero_point.any())
            made = kind.from_hp(
                weight.to(old.dtype), old.block_size, old.target_dtype,
                mapping_type=mapping.ASYMMETRIC if uneven else mapping.SYMMETRIC,
            )  # fmt: skip
        else:
            by = need("torchao.quantization.granularity", "these layers", extra="quant")
            whole = old.block_size[0] == old.shape[0] and old.shape[0] > 1
            made = kind.from_hp(weight.to(old.dtype), granularity=by.PerTensor() if whole else by.PerRow())
        return [Held("_parameters", "weight", nn.Parameter(made, requires_grad=False))]

    def grid(self, layer: Any) -> Grid | None:
        weight = layer._parameters["weight"]
        if type(weight).__name__ != "IntxUnpackedToInt8Tensor" or weight.block_size[0] != 1:
            return None
        return Grid(weight.qdata, weight.scale, weight.zero_point.to(weight.scale.dtype))

    def shifted(self, layer: Any, change: Tensor) -> list[Held]:
        weight, grid = layer._parameters["weight"], self.grid(layer)
        assert grid is not None
        moved = type(weight)(
            weight.qdata, weight.scale, grid.zeros - change.to(grid.zeros) / grid.scales, weight.target_dtype,
            weight.block_size, weight.dtype, weight.activation_quantization,
        )  # fmt: skip
        return [Held("_parameters", "weight", nn.Parameter(moved, requires_grad=False))]


class Torchao(Backend):
    """One of torchao's weight-only forms.

    Args:
        kind: ``"int8"`` and ``"fp8"`` with a scale per row; ``"int4"`` with a scale and a zero point per row and 32
            columns, which keeps each code in a byte: it has the error of 4 bits and the size of 8.
    """

    package = "torchao"

    def __init__(self, kind: str) -> None:
        self.kind, self.name, self.packing = kind, f"torchao-{kind}", PACKING
        self.says = f"torchao's {kind} of weights"

    @property
    def step(self) -> int:
        return _GROUP if self.kind == "int4" else 1

    def bytes(self, rows: int, cols: int, itemsize: int = 4) -> int:
        beside = {"int8": 4 + 1, "fp8": 4, "int4": (cols // _GROUP) * (itemsize + 1)}  # scales and zero points
        return rows * (cols + beside[self.kind])

    def layer(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        self.need()
        made = nn.Linear(1, 1, bias=False, device=torch.device("meta"))
        made.out_features, made.in_features = weight.shape
        made.weight, made.bias = nn.Parameter(weight.detach(), requires_grad=False), cast(nn.Parameter, bias)
        library = need("torchao.quantization", "these layers", extra="quant")
        library.quantize_(made, self._settings(library))
        return made

    def _settings(self, library: Any) -> Any:
        if self.kind == "int8":
            return library.Int8WeightOnlyConfig()
        if self.kind == "fp8":
            return library.Float8WeightOnlyConfig()
        by = need("torchao.quantization.granularity", "these layers", extra="quant")
        mapping = need("torchao.quantization.quant_primitives", "these layers", extra="quant").MappingType
        return library.IntxWeightOnlyConfig(cast(Any, torch).int4, by.PerGroup(_GROUP), mapping_type=mapping.ASYMMETRIC)


PACKING = TorchaoPacking()
PACKINGS.append(PACKING)
for _kind in ("int8", "int4", "fp8"):
    _backend = Torchao(_kind)
    BACKENDS.add(_backend.name, _backend)
