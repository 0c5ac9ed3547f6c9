"""The moving average of what is trained, which is what is saved and shown where a run asks for one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from studio.adapters.contract.starts import padded

__all__ = ["Average"]


class Average:
    """The exponential moving average of tensors: ``a ← d a + (1 − d) w`` with ``d = min(decay, (1 + n) / (10 + n))``.

    The smaller decay at the start keeps the first, untrained tensors from lingering. What is exactly zero is zero in
    the average too: a rank that AdaLoRA has pruned does not live on in it.

    Args:
        tensors: what is averaged, by key.
        decay: in [0, 1); 0 keeps no average.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self._live = decay, list(tensors.values())
        self.tensors = {key: tensor.detach().clone() for key, tensor in tensors.items()} if decay else {}

    def grown(self, tensors: Mapping[str, Tensor]) -> Average:
        """Returns the average of the same tensors after some of them have grown; what is new stands as it is."""
        average = Average(tensors, self.decay)
        average.tensors = {key: padded(before, tensors[key]) for key, before in self.tensors.items()}
        return average

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the tensors after ``step`` steps into the average."""
        if self.tensors:
            decay = min(self.decay, (1 + step) / (10 + step))
            averages, live = list(self.tensors.values()), [tensor.detach() for tensor in self._live]
            torch._foreach_lerp_(averages, live, 1 - decay)
            torch._foreach_mul_(averages, [tensor != 0 for tensor in live])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on with an average from a checkpoint."""
        for key, tensor in self.tensors.items():
            tensor.copy_(tensors[key])

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Puts the average in the tensors' place for a while."""
        if not self.tensors:
            yield
            return
        with torch.no_grad():
            kept = [live.detach().clone() for live in self._live]
            for live, average in zip(self._live, self.tensors.values(), strict=True):
                live.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for live, own in zip(self._live, kept, strict=True):
                    live.copy_(own)
