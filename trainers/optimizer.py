"""The optimizer over an adapter's tensors, with a rate per component, and their moving average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["Average", "adamw", "set_rates"]


def adamw(
    tensors: Mapping[str, Tensor], rates: Mapping[str, float], weight_decay: float = 1e-2, beta2: float = 0.999
) -> torch.optim.AdamW:
    """Returns AdamW with one group of tensors per component.

    Args:
        tensors: the trained tensors by ``"<component>.<path>.<tensor>"``, in a fixed order.
        rates: component -> learning rate; ``""`` is a model by itself.
        weight_decay: decay of every tensor.
        beta2: decay of the squared gradients; the gradients' own is 0.9.

    References:
        | Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019), arXiv:1711.05101
    """
    groups = [
        {
            "params": [tensor for key, tensor in tensors.items() if not part or key.startswith(f"{part}.")],
            "lr": rate,
            "rate": rate,
        }
        for part, rate in rates.items()
    ]
    try:
        return torch.optim.AdamW(groups, betas=(0.9, beta2), weight_decay=weight_decay, fused=True)
    except RuntimeError:  # a device without the fused kernel
        return torch.optim.AdamW(groups, betas=(0.9, beta2), weight_decay=weight_decay)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group's learning rate to ``factor`` times its full one; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor
    return float(optimizer.param_groups[0]["lr"])


class Average:
    """The exponential moving average of tensors: ``a ← d a + (1 − d) w`` with ``d = min(decay, (1 + n) / (10 + n))``.

    The smaller decay at the start keeps the first, untrained tensors from lingering.

    Args:
        tensors: what is averaged, by key.
        decay: in [0, 1); 0 keeps no average.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self._live = decay, list(tensors.values())
        self.tensors = {key: tensor.detach().clone() for key, tensor in tensors.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the tensors after ``step`` steps into the average."""
        if self.tensors:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.tensors.values()), [live.detach() for live in self._live], 1 - decay)

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
