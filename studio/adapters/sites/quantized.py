"""Sites whose weight is kept in few bits, by whichever packing (:mod:`studio.quantization`).

Their weight is computed when it is asked for. Baking puts a dense weight in its place, or packs the changed weight
anew, or, where the change is constant in every group of columns of a grid (QA-LoRA), moves the zero points and nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters.sites.site import LinearSite
from studio.quantization import Packing
from studio.quantization.backend import Held
from studio.quantization.grid import Grid

__all__ = ["QuantizedSite", "put"]


class QuantizedSite(LinearSite):
    """A Linear whose weight is packed.

    Args:
        path: where it stands. module: the layer. packing: how it keeps its weight.

    Raises:
        UnsupportedLayer: a layer through which no gradient goes, or whose weight cannot be read.
    """

    hosting = "quantized"
    __slots__ = ("packing", "weight_name")

    def __init__(self, path: str, module: Any, packing: Packing) -> None:
        packing.check(path, module)
        super().__init__(path, module)
        self.packing, self.weight_name = packing, packing.weight_name
        self.rows, self.cols = packing.shape(module)

    @property
    def weight(self) -> Tensor:
        return self.packing.weight(self.module)

    @property
    def device(self) -> torch.device:
        return self.packing.device(self.module)

    @property
    def packed(self) -> bool:
        """Whether the weight is packed now, and no dense one has been baked into its place."""
        return self.packing.packs(self.packing.place(self.module))

    @property
    def grid(self) -> Grid | None:
        """The weight as numbers of a grid with zero points; None where it is not kept so."""
        return self.packing.grid(self.module) if self.packed else None

    def run(self, base: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Computes the layer as it stands; ``base`` is the forward of its class."""
        return self.packing.product(self.module, base, x)

    def shift(self, change: Tensor) -> list[Held]:
        """Adds a number per row and group to a weight on a grid, by its zero points alone.

        Args:
            change: the numbers ``(rows, groups)``.

        Returns:
            What the module held before.
        """
        return put(self.module, self.packing.shifted(self.module, change))

    def pack(self, weight: Tensor) -> list[Held]:
        """Packs another weight ``(rows, cols)`` in the same way, in place; returns what the module held before."""
        return put(self.module, self.packing.repacked(self.module, weight))


def put(module: nn.Module, held: list[Held]) -> list[Held]:
    """Puts tensors into a module's tables, and returns what was there."""
    before = []
    for table, name, value in held:
        places = getattr(module, table)
        before.append(Held(table, name, places.get(name)))
        places[name] = value
    return before
