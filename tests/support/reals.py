"""Tensors with numbers, in the place of those without: what a forecast is held against."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack


class Reals:
    """Takes the place of :class:`studio.planning.fakes.Fakes`."""

    def tensor(self, shape, dtype=torch.float32):
        return torch.zeros(tuple(shape), dtype=dtype)

    def fill(self, module: nn.Module) -> None:
        made: dict[int, torch.Tensor] = {}  # what is tied stays tied
        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if tensor is not None and tensor.is_meta:
                        table[name] = made.setdefault(id(tensor), _like(tensor))

    @contextmanager
    def entered(self, tracker=None):
        if tracker is None:  # what is computed is not counted
            with _disable_current_modes():
                yield
        else:
            with nullcontext() if tracker in _get_current_dispatch_mode_stack() else tracker:
                yield


def _like(tensor):
    real = torch.empty(tensor.shape, dtype=tensor.dtype)
    if tensor.is_floating_point():
        real.normal_(0, 0.02)
    else:
        real.copy_(torch.arange(tensor.numel()).view(tensor.shape))  # position ids
    return nn.Parameter(real, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else real
