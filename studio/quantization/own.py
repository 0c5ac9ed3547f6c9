"""The studio's own grid of 2, 3, 4 or 8 bits (:mod:`studio.quantization.grid`); it needs no package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import BadConfig
from studio.quantization.backend import BACKENDS, PACKINGS, Backend, Held, Packing
from studio.quantization.grid import BITS, Grid, GroupQuantizedLinear, packed_codes, to_grid

__all__ = ["OwnGrid", "OwnPacking"]

_PARTS = ("codes", "scales", "zeros")


class OwnPacking(Packing):
    """:class:`GroupQuantizedLinear`."""

    says = "the studio's quantised layers"
    weight_name = "dense"

    def owns(self, cls: type[nn.Module], weight: type[Any]) -> bool:
        return issubclass(cls, GroupQuantizedLinear)

    def packs(self, weight: Tensor | None) -> bool:
        return weight is None

    def unpacked(self, layer: Any) -> Tensor:
        found: Tensor = layer.grid.weight().to(layer.like.dtype)
        return found

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        return {name: getattr(layer, name) for name in _PARTS}

    def device(self, layer: Any) -> torch.device:
        found: torch.device = layer.codes.device
        return found

    def repacked(self, layer: Any, weight: Tensor) -> list[Held]:
        grid = to_grid(weight, layer.bits, layer.group)
        parts = (packed_codes(grid.codes, layer.bits), grid.scales, grid.zeros)
        packed = [Held("_buffers", name, part) for name, part in zip(_PARTS, parts, strict=True)]
        return [*packed, Held("_parameters", "dense", None)]

    def grid(self, layer: Any) -> Grid:
        found: Grid = layer.grid
        return found

    def shifted(self, layer: Any, change: Tensor) -> list[Held]:
        return [Held("_buffers", "zeros", layer.zeros - change.to(layer.zeros) / layer.scales)]


class OwnGrid(Backend):
    """Codes of ``bits`` bits with a scale and a zero point per row and ``group`` columns.

    Args:
        bits: 2, 3, 4 or 8. group: columns that share a scale.
    """

    def __init__(self, bits: int, group: int = 32) -> None:
        self.name, self.bits, self.group = f"grid{bits}", bits, group
        self.says = f"the studio's grid of {bits} bits, groups of {group}"
        self.packing = PACKING

    @property
    def step(self) -> int:
        return self.group

    def check(self, path: str, rows: int, cols: int) -> None:
        if self.bits not in BITS:
            raise BadConfig(f"bits={self.bits!r}: a code has {', '.join(map(str, BITS))} bits")
        if self.group < 1 or cols % self.group:
            raise BadConfig(
                f"group={self.group} does not divide the {cols} inputs of {path}; exclude it, or use another group"
            )

    def bytes(self, rows: int, cols: int, itemsize: int = 4) -> int:
        return rows * (-(-cols // 8) * self.bits + 2 * 4 * (cols // self.group))

    def layer(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        return GroupQuantizedLinear.of(
            weight, bias, bits=self.bits, grid=to_grid(weight, self.bits, self.group)
        )  # fmt: skip


PACKING = OwnPacking()
PACKINGS.append(PACKING)
for _bits in BITS:
    _backend = OwnGrid(_bits)
    BACKENDS.add(_backend.name, _backend)
