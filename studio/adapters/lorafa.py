"""LoRA-FA: AdamW over one side of each pair, along the direction in which full training would go."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["LoRAFA"]


class LoRAFA(torch.optim.Optimizer):
    """AdamW over ``up`` alone, along ``G (A Aᵀ)⁻¹ / s²``: what moves ``s · up @ A`` most nearly as full training would.

    ``A`` is ``down`` as a matrix, which stays as it was drawn, and ``G`` the gradient of ``up``. Tensors that are no
    ``up`` are trained by AdamW as they are.

    Args:
        groups: what is trained, with ``lr`` and ``rate``; with ``correct_bias=False`` the averages are taken as they
            are.
        pairs: ``(down, up, s)`` of every layer.
        betas: decay of the averages of gradients and of their squares.
        eps: added to the root of the squares.
        weight_decay: decay of every tensor.

    References:
        | LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning (Zhang et al., 2023),
          arXiv:2308.03303
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        pairs: Sequence[tuple[Tensor, Tensor, float]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._pairs = {id(up): (down, scale) for down, up, scale in pairs}
        self._inverses: dict[int, tuple[int, Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Does a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._move(tensor, self._direction(tensor), group)
        return loss

    def _direction(self, tensor: Tensor) -> Tensor:
        assert tensor.grad is not None, "tensors without one are left alone"
        if id(tensor) not in self._pairs:
            return tensor.grad
        down, scale = self._pairs[id(tensor)]
        return (tensor.grad @ self._inverse(down)) / scale**2

    def _inverse(self, down: Tensor) -> Tensor:
        """``(A Aᵀ)⁻¹``; computed anew only where ``down`` was written to (a checkpoint was read)."""
        version, inverse = self._inverses.get(id(down), (-1, down))
        if version != down._version:
            matrix = down.detach().flatten(1)
            inverse = torch.linalg.pinv(matrix @ matrix.t() + 1e-8 * torch.eye(len(matrix)).to(matrix))
            self._inverses[id(down)] = (down._version, inverse)
        return inverse

    def _move(self, tensor: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        state = self.state[tensor]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(tensor), torch.zeros_like(tensor)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].mul_(beta1).add_(direction, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(direction, direction, value=1 - beta2)
        size = group["lr"]
        if group.get("correct_bias", True):
            size = size * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        tensor.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-size)
        if group["weight_decay"]:
            tensor.mul_(1 - group["lr"] * group["weight_decay"])
