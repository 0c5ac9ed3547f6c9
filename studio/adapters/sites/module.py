"""Any module as a site: its output is changed, whatever it computes.

The output has to be a tensor, or a tuple, list or ``ModelOutput`` whose first entry is one; that tensor is ``y``. How
many channels it has, and on which axis, is told by the last layer with a weight matrix inside the module; how many its
input ``x`` has, by the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit, UnsupportedLayer

__all__ = ["ModuleSite", "first_of", "input_of", "with_first"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ModuleSite(Site):
    """A module by its output ``y`` with ``rows`` channels; ``cols`` are the channels of its input.

    Raises:
        UnsupportedLayer: a module without any layer that tells its width.
    """

    kind = "module"
    hosting = "module"
    bias_name = None
    __slots__ = ("last",)

    def __init__(self, path: str, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if _widths(layer) is not None]
        if not layers:
            raise UnsupportedLayer(
                f"{path or 'the model'} is a {type(module).__name__} without a linear layer or convolution in it, so "
                "the width of its output is not known; name the module that holds it"
            )
        (cols, _), (_, rows) = cast("list[tuple[int, int]]", [_widths(layers[0]), _widths(layers[-1])])
        super().__init__(path, module, rows, (cols,))
        self.last = layers[-1]

    @property
    def weight(self) -> Tensor:
        """The weight of the last layer inside, for its device and dtype."""
        return cast(Tensor, self.last.weight)  # which may be computed

    @property
    def holder(self) -> nn.Module:
        return self.last

    def operands(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return y.new_empty(0), None  # the weights inside belong to other layers, and may be offloaded by now

    @property
    def axis(self) -> int:
        return 1 - self.weight.dim() if isinstance(self.last, _CONVOLUTIONS) else -1


def _widths(layer: nn.Module) -> tuple[int, int] | None:
    """Channels that a layer takes and gives, or None for what has no weight matrix."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, _CONVOLUTIONS):
        return layer.in_channels, layer.out_channels
    weight = layer._parameters.get("weight")
    if weight is not None and type(layer).__name__ == "Conv1D" and weight.dim() == 2:
        return weight.shape[0], weight.shape[1]
    return None


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Returns the tensor that a module was called with: the first argument, or ``hidden_states``."""
    found = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
    return found if isinstance(found, Tensor) else None


def first_of(output: Any, path: str) -> Tensor:
    """Returns the tensor of a module's output that adapters change.

    Raises:
        DoesNotFit: the output is no tensor and does not begin with one.

    Example:
        >>> import torch
        >>> first_of((torch.ones(2), None), "mlp")
        tensor([1., 1.])
    """
    values = list(output.values()) if isinstance(output, Mapping) else output
    found = values[0] if isinstance(values, (tuple, list)) and values else values
    if not isinstance(found, Tensor):
        raise DoesNotFit(
            f"{path or 'the model'} returned a {type(output).__name__} that does not begin with a tensor, so an "
            "adapter on it has nothing to change; name another module"
        )
    return found


def with_first(output: Any, tensor: Tensor) -> Any:
    """Returns ``output`` with ``tensor`` (of any shape) in place of its first tensor, of the same type."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        first = next(iter(output))
        return cast(Any, type(output))(**{**output, first: tensor})
    made, rest = cast(Any, type(output)), (tensor, *output[1:])
    return made(rest) if made in (tuple, list) else made(*rest)  # a named tuple takes its entries one by one
