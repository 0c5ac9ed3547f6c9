"""How much a model with quantised layers holds: numbers as they are meant, bytes as they are kept."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from studio.quantization.backend import Packing, packing_of

__all__ = ["hidden_numbers", "packed_layers"]


def packed_layers(root: nn.Module) -> Iterator[tuple[str, nn.Module, Packing]]:
    """Iterates over the layers of a model whose weight is packed now: path, layer, packing."""
    for path, module in root.named_modules():
        packing = packing_of(module)
        if packing is not None and packing.packs(packing.place(module)):
            yield path, module, packing


def hidden_numbers(root: nn.Module) -> int:
    """Returns how many more numbers the quantised weights of a model stand for than its parameters hold.

    Example:
        >>> from studio.quantization import BACKENDS
        >>> net = nn.Sequential(BACKENDS["grid4"].layer(nn.Linear(32, 8).weight, None))
        >>> sum(parameter.numel() for parameter in net.parameters()), hidden_numbers(net)
        (0, 256)
    """
    found = 0
    for _, layer, packing in packed_layers(root):
        rows, cols = packing.shape(layer)
        place = packing.place(layer)
        found += rows * cols - (0 if place is None else place.numel())
    return found
