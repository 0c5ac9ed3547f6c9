"""A training of every weight itself, which other programs do and published figures are of."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from studio.families import components
from studio.trainers.loop.task import Lesson

__all__ = ["Whole"]


class Whole:
    """The weights of whole components in training, beside :class:`studio.trainers.loop.weights.Weights`.

    Args:
        lesson: whose rates name the components.

    Attributes:
        trained: the parameters, by name. tensors: none that would be saved beside them.
        optimizer: AdamW over them.
    """

    def __init__(self, lesson: Lesson) -> None:
        parts = components(lesson.model)
        self.trained = {
            f"{part}.{name}": parameter for part in lesson.rates for name, parameter in parts[part].named_parameters()
        }
        self.tensors: dict[str, torch.Tensor] = {}
        self.optimizer = torch.optim.AdamW(list(self.trained.values()), lr=1e-4, fused=True)

    def step(self, done: int) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def averaged(self) -> AbstractContextManager[None]:
        """There is no average."""
        return nullcontext()
