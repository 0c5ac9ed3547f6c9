"""8-bit floats with a scale: what ComfyUI's files call ``scaled fp8``; it needs no package."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.quantization.backend import BACKENDS, PACKINGS, Backend, Held, Packing
from studio.quantization.product import remade_product

__all__ = ["ScaledFloat8", "ScaledLinear", "ScaledPacking"]

_KIND: Final = torch.float8_e4m3fn


class ScaledLinear(nn.Module):
    """``y = x Wᵀ + b`` with ``W = scale · codes``, computed at every call in the type of the input.

    Args:
        codes: 8-bit floats ``(rows, cols)``.
        scale: one number ``()``, or one per row ``(rows, 1)``, fp32.
        bias: taken as it is. dtype: of the weight where something asks for it.

    Example:
        >>> layer = ScaledLinear(torch.ones(2, 3).to(torch.float8_e4m3fn), torch.tensor(0.5), None, torch.float32)
        >>> layer(torch.ones(1, 3)).tolist()
        [[1.5, 1.5]]
    """

    codes: Tensor
    scale: Tensor
    like: Tensor
    dense: nn.Parameter | None

    def __init__(self, codes: Tensor, scale: Tensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=codes.device), persistent=False)
        self.register_parameter("dense", None)  # a weight that takes the place of the codes while a blend is baked
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with, ``(out_features, in_features)``."""
        return PACKING.weight(self)

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``x Wᵀ + b`` of ``x`` ``(..., in_features)``."""
        return PACKING.product(self, type(self).forward, x)

    def _apply(self, fn: Any, recurse: bool = True) -> ScaledLinear:
        exact = {name: self._buffers[name] for name in ("codes", "scale")}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            now = self._buffers[name]
            assert now is not None and before is not None
            if now.dtype != before.dtype:
                self._buffers[name] = before.to(now.device)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class ScaledPacking(Packing):
    """:class:`ScaledLinear`."""

    says = "layers of scaled fp8"
    weight_name = "dense"

    def owns(self, cls: type[nn.Module], weight: type[Any]) -> bool:
        return issubclass(cls, ScaledLinear)

    def packs(self, weight: Tensor | None) -> bool:
        return weight is None

    def exact(self, layer: Any) -> Tensor:
        """The weight in fp32."""
        found: Tensor = layer.codes.float() * layer.scale
        return found

    def unpacked(self, layer: Any) -> Tensor:
        return self.exact(layer).to(layer.like.dtype)

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        return {"codes": layer.codes, "scale": layer.scale}

    def device(self, layer: Any) -> torch.device:
        found: torch.device = layer.codes.device
        return found

    def packed_product(self, layer: Any, forward: Any, x: Tensor) -> Tensor:
        return remade_product(x, lambda: self.exact(layer), layer.bias)

    def repacked(self, layer: Any, weight: Tensor) -> list[Held]:
        codes, scale = to_codes(weight, whole=layer.scale.dim() == 0)
        return [Held("_buffers", "codes", codes), Held("_buffers", "scale", scale), Held("_parameters", "dense", None)]


def to_codes(weight: Tensor, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Rounds a weight ``(rows, cols)`` to 8-bit floats; returns them and their scale, one for all or one per row."""
    exact = weight.detach().float()
    high = exact.abs().amax() if whole else exact.abs().amax(1, keepdim=True)
    scale = torch.where(high > 0, high / torch.finfo(_KIND).max, torch.ones_like(high))
    return (exact / scale).to(_KIND), scale


class ScaledFloat8(Backend):
    """8-bit floats (4 bits of exponent, 3 of mantissa) with a scale per row."""

    name = "fp8"
    says = "8-bit floats with a scale per row"

    def __init__(self) -> None:
        self.packing = PACKING

    def bytes(self, rows: int, cols: int, itemsize: int = 4) -> int:
        return rows * cols + 4 * rows

    def layer(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        return ScaledLinear(*to_codes(weight), bias, weight.dtype)


PACKING = ScaledPacking()
PACKINGS.append(PACKING)
BACKENDS.add("fp8", ScaledFloat8())
