"""A backward pass that steps each tensor of the adapter as soon as its gradient is complete, and lets the gradient go.

So one gradient is held at a time, not all of them. It is the same step as after the backward pass, bit for bit: an
optimizer moves a tensor by its own gradient and moments alone, and no gradient that is still to come reads a tensor
whose own is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["FusedBackward"]


class FusedBackward:
    """Steps tensors while the backward pass runs.

    Args:
        tensors: what is trained, by key. optimizer: over them; its rates are those of the moment.

    Attributes:
        reached: the ids of the tensors that have had a gradient since :meth:`begin`.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> fused = FusedBackward({"x": x}, torch.optim.SGD([x], lr=0.5))
        >>> (3 * x).sum().backward()
        >>> x.tolist(), x.grad is None, round(fused.norm() ** 2, 5)
        ([-0.5, -0.5], True, 18.0)
    """

    def __init__(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.reached = optimizer, set[int]()
        self._norms: dict[str, Tensor] = {}
        self._groups = {id(tensor): group for group in optimizer.param_groups for tensor in group["params"]}
        self._order = list(tensors)
        self._hooks = [self._watch(key, tensor) for key, tensor in tensors.items()]

    def _watch(self, key: str, tensor: Tensor) -> Any:
        def complete(one: Tensor) -> None:
            assert one.grad is not None, "it is complete"
            self.reached.add(id(one))
            self._norms[key] = torch.linalg.vector_norm(one.grad)
            self._step(one)
            one.grad = None

        return tensor.register_post_accumulate_grad_hook(complete)

    def _step(self, tensor: Tensor) -> None:
        """Lets the optimizer see this tensor alone."""
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**self._groups[id(tensor)], "params": [tensor]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups

    def begin(self) -> None:
        """Begins a step."""
        self.reached.clear()
        self._norms.clear()

    def norm(self) -> float:
        """Returns the norm of the step's gradients, all of them together."""
        norms = [self._norms[key] for key in self._order if key in self._norms]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    def close(self) -> None:
        """Ends it: gradients stay where they are from now on."""
        for hook in self._hooks:
            hook.remove()
