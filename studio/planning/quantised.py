"""What the weights of a base take where they are quantised, and what comes back while one of its layers computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from studio.quantization import Backend
from studio.quantization.layers import matrix_of, quantizable

__all__ = ["Matrix", "Saved", "matrices", "quantised"]


@dataclass(frozen=True)
class Matrix:
    """A weight that could be quantised.

    Args:
        rows, cols: its shape. itemsize: bytes of a number as it stands.
    """

    rows: int
    cols: int
    itemsize: int

    @property
    def size(self) -> int:
        """Bytes as it stands."""
        return self.rows * self.cols * self.itemsize


@dataclass(frozen=True)
class Saved:
    """What quantising some weights changes.

    Args:
        layers: how many. before, after: bytes. largest: of one put together again, which is held while it computes.
    """

    layers: int = 0
    before: int = 0
    after: int = 0
    largest: int = 0

    def __add__(self, other: Saved) -> Saved:
        return Saved(
            self.layers + other.layers, self.before + other.before, self.after + other.after,
            max(self.largest, other.largest),
        )  # fmt: skip


def matrices(module: nn.Module) -> list[Matrix]:
    """Returns the weights of a module, without adapters on it, that could be quantised."""
    shapes = ((matrix_of(layer).shape, matrix_of(layer).element_size()) for layer in quantizable(module).values())
    return [Matrix(rows, cols, size) for (rows, cols), size in shapes]


def quantised(parts: Mapping[str, Sequence[Matrix]], asked: Mapping[str, Backend]) -> Saved:
    """Returns what quantising changes.

    Args:
        parts: component -> its weights. asked: component -> how; what its blocks do not divide stays as it is.

    Example:
        >>> from studio.quantization import BACKENDS
        >>> saved = quantised({"unet": [Matrix(4096, 4096, 2)]}, {"unet": BACKENDS["nf4"]})
        >>> round(saved.after / saved.before, 3), saved.largest
        (0.258, 33554432)
    """
    done = Saved()
    for part, backend in asked.items():
        for one in parts.get(part, ()):
            if one.cols % backend.step == 0:
                done += Saved(1, one.size, backend.bytes(one.rows, one.cols, one.itemsize), one.size)
    return done
