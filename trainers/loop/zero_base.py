"""The frozen base under ZeRO-3: each process holds a part of every weight, on its device or in the machine's memory.

DeepSpeed puts a layer's weight together when the layer runs, forwards and backwards, fetches the next ones meanwhile,
and drops it right after. Adapters are hidden from it while it looks the modules over, so they stay whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import DoesNotFit
from studio.trainers.loop.zero import engine, settings_for

__all__ = ["LentBase"]


class LentBase:
    """Modules whose frozen weights are divided, until the process ends.

    Args:
        modules: the base's, with the adapter attached. adapter: tensors that stay whole. unit: numbers of the largest
            block. offload: the plan's.

    Raises:
        DoesNotFit: weights that cannot be divided.
    """

    def __init__(self, modules: Sequence[nn.Module], adapter: Sequence[Tensor], unit: int, offload: str) -> None:
        whole = {id(tensor) for tensor in adapter}
        root = nn.ModuleList(modules)
        device = next(root.parameters()).device
        with _hidden(root, whole):
            _check(root, whole)
            numbers = sum(parameter.numel() for parameter in root.parameters())
            settings = settings_for(
                3, offload=offload, unit=unit, numbers=numbers, pinned=offload == "all" and device.type != "cpu"
            )
            made: Any = engine(root, settings, device)
            self._modules = list(root.modules())
        self._lender = made.optimizer

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Lasts while all processes run the modules forwards, once or more often.

        What was fetched for the pass before and not used is dropped. A weight that is read by another module than its
        own is fetched then, and from then on with that one.
        """
        self._lender.release_backward_leftovers()
        self._lender.get_param_coordinator().reset_step()
        self._let_fetch(True)
        try:
            yield
        finally:
            self._let_fetch(False)

    def _let_fetch(self, fetches: bool) -> None:
        for module in self._modules:
            parameters: Any = module._parameters  # DeepSpeed's own sort of table
            parameters._in_forward = fetches


def _check(root: nn.Module, whole: set[int]) -> None:
    """Checks that all weights are plain frozen numbers.

    Raises:
        DoesNotFit: the first that is not.
    """
    for name, parameter in root.named_parameters():
        path = name.partition(".")[2]
        if id(parameter) in whole:
            raise DoesNotFit(f"the adapter's {path} stands among the base's weights, which sharding='zero3' divides: "
                             "use sharding='zero2'")  # fmt: skip
        if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor or not _plain(parameter):
            raise DoesNotFit(f"the base's {path} is quantised, and sharding='zero3' divides plain weights: leave "
                             "quantize out, or use sharding='zero2', which leaves the base whole")  # fmt: skip


def _plain(parameter: Tensor) -> bool:
    return parameter.dtype in (torch.float32, torch.bfloat16, torch.float16)


@contextlib.contextmanager
def _hidden(root: nn.Module, whole: set[int]) -> Iterator[None]:
    """Takes modules that hold nothing but the given tensors out, and puts them back in their places."""
    taken: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            held = [id(parameter) for parameter in child.parameters()]
            if held and whole.issuperset(held):
                taken.append((parent, name, child))
                parent._modules[name] = nn.Module()
    try:
        yield
    finally:
        for parent, name, child in reversed(taken):
            parent._modules[name] = child
