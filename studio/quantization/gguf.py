"""llama.cpp's blocks, as diffusers reads them from a ``.gguf`` file: every type is read, the plain ones are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.errors import UnsupportedLayer
from studio.packages import need
from studio.quantization.backend import BACKENDS, PACKINGS, Backend, Held, Named, Packing
from studio.quantization.product import remade_product

__all__ = ["GGUF", "GGUFPacking"]

_TYPES: Final = {"q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18}
"""Name -> bytes of a block."""

_BLOCK: Final = 32  # weights in a block


class GGUFPacking(Packing):
    """diffusers' ``GGUFLinear``."""

    says = "GGUF layers"

    def __init__(self) -> None:
        self._class = Named("diffusers.quantizers.gguf", "GGUFLinear")

    def owns(self, cls: type[nn.Module], weight: type[Any]) -> bool:
        return self._class.among(cls)

    def packs(self, weight: Tensor | None) -> bool:
        return type(weight).__name__ == "GGUFParameter"

    def check(self, path: str, layer: nn.Module) -> None:
        weight: Any = layer._parameters["weight"]
        read = need("diffusers.quantizers.gguf.utils", "these layers", extra="gguf").dequantize_functions
        if self.packs(weight) and weight.quant_type not in read:
            raise UnsupportedLayer(
                f"the weight of {path} is in GGUF blocks of the type {weight.quant_type.name}, which diffusers cannot "
                f"read (it reads {', '.join(sorted(kind.name for kind in read))}): take the base in one of those, or "
                "exclude the layer"
            )

    def unpacked(self, layer: Any) -> Tensor:
        library = need("diffusers.quantizers.gguf.utils", "these layers", extra="gguf")
        found: Tensor = library.dequantize_gguf_tensor(layer._parameters["weight"])
        return found.detach().to(layer.compute_dtype)

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        return {"weight": layer._parameters["weight"].as_tensor()}

    def packed_product(self, layer: Any, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
        if x.device.type == "cpu" or torch.is_grad_enabled():  # diffusers keeps the weight for the backward pass
            return remade_product(x, lambda: self.unpacked(layer), layer.bias)
        return forward(layer, x)

    def compute_in(self, layer: Any, dtype: torch.dtype) -> None:
        layer.compute_dtype = dtype

    def remade(self, weight: Any, make: Callable[[Tensor], Tensor]) -> Tensor | None:
        if type(weight).__name__ != "GGUFParameter":
            return None
        utils = need("diffusers.quantizers.gguf.utils", "these layers", extra="gguf")
        made: Tensor = utils.GGUFParameter(make(weight.as_tensor()), quant_type=weight.quant_type)
        return made

    def repacked(self, layer: Any, weight: Tensor) -> list[Held]:
        made = _parameter(weight, layer._parameters["weight"].quant_type)
        return [Held("_parameters", "weight", made)]


def _parameter(weight: Tensor, kind: Any) -> Any:
    """A weight in blocks of a type."""
    written = need("gguf.quants", "these layers", extra="gguf")
    utils = need("diffusers.quantizers.gguf.utils", "these layers", extra="gguf")
    try:
        blocks = written.quantize(weight.detach().float().cpu().numpy(), kind)
    except NotImplementedError as problem:
        raise UnsupportedLayer(
            f"blocks of the type {kind.name} can be read and not written ({', '.join(_TYPES)} can): bake without "
            "quantising anew"
        ) from problem
    return utils.GGUFParameter(torch.from_numpy(blocks).to(weight.device), quant_type=kind)


class GGUF(Backend):
    """Blocks of 32 weights with a scale each, and an offset in ``q4_1`` and ``q5_1``.

    Args:
        kind: one of ``q8_0``, ``q5_1``, ``q5_0``, ``q4_1``, ``q4_0``.
    """

    package = "gguf"
    extra = "gguf"

    def __init__(self, kind: str) -> None:
        self.kind, self.name, self.packing = kind, f"gguf-{kind.replace('_', '-')}", PACKING
        self.says = f"GGUF's {kind.upper()}"

    @property
    def step(self) -> int:
        return _BLOCK

    def bytes(self, rows: int, cols: int, itemsize: int = 4) -> int:
        return rows * (cols // _BLOCK) * _TYPES[self.kind]

    def layer(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        kind = self.need().GGMLQuantizationType[self.kind.upper()]
        utils = need("diffusers.quantizers.gguf.utils", "these layers", extra="gguf")
        made = utils.GGUFLinear(1, 1, bias=False, compute_dtype=weight.dtype, device=torch.device("meta"))
        made.out_features, made.in_features = weight.shape
        made.device = weight.device
        made.weight, made.bias = _parameter(weight, kind), bias
        found: nn.Module = made
        return found


PACKING = GGUFPacking()
PACKINGS.append(PACKING)
for _kind in _TYPES:
    _backend = GGUF(_kind)
    BACKENDS.add(_backend.name, _backend)
