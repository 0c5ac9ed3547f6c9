"""From a loss to a step: where each process holds the whole optimizer, and where it is divided among them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from studio.adapters.training import layers
from studio.errors import BadConfig, DoesNotFit
from studio.trainers.loop.draws import micro_batches
from studio.trainers.loop.fused import FusedBackward
from studio.trainers.loop.group import Group
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.weights import Weights
from studio.trainers.loop.zero import ZERO, settings_for
from studio.trainers.loop.zero_adapter import DividedOptimizer

__all__ = ["Steps", "check_divisible", "steps_of"]


class Steps(Protocol):
    """How the gradients of all processes become a step of an adapter."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a loss's gradients to those of the step.

        Args:
            loss: a part of the step's loss, a scalar ``()``; the parts are added up. last: whether it is the step's
                last one of this process.
        """

    def step(self) -> float:
        """Does the step, unless its gradient is not finite; returns the gradient's norm over all processes."""

    def reached(self, tensor: Tensor) -> bool:
        """Whether the step that was done had a gradient of a tensor of any shape, in any process."""


class _Whole:
    """Each process has all gradients, and does the same step."""

    def __init__(self, weights: Weights, group: Group, accelerator: Any) -> None:
        self.weights, self.group, self.accelerator = weights, group, accelerator

    def backward(self, loss: Tensor, last: bool) -> None:
        with self.group.talking():
            self.accelerator.backward(loss)

    def step(self) -> float:
        trained, optimizer = self.weights.trained.values(), self.weights.optimizer
        self.group.add_gradients(trained)
        norm = float(self.accelerator.clip_grad_norm_(trained, self.weights.lesson.plan.clip or math.inf))
        if math.isfinite(norm):
            optimizer.step()
        return norm

    def reached(self, tensor: Tensor) -> bool:
        return tensor.grad is not None


class _Fused:
    """The one process steps each tensor in the backward pass."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._fused: FusedBackward | None = None

    def backward(self, loss: Tensor, last: bool) -> None:
        whole = self.weights.optimizer
        if self._fused is not None and self._fused.optimizer is not whole:  # an adapter that has grown has a new one
            self._fused.close()  # layers that were as large before keep their tensors
            self._fused = None
        if self._fused is None:
            self._fused = FusedBackward(self.weights.trained, whole)
        self._fused.begin()
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> float:
        assert self._fused is not None, "there was a backward pass"
        return self._fused.norm()

    def reached(self, tensor: Tensor) -> bool:
        return self._fused is not None and id(tensor) in self._fused.reached


class _Divided:
    """Each process has a part of the gradients, and does that part of the step."""

    def __init__(self, weights: Weights, group: Group) -> None:
        self.weights, self.group = weights, group

    @property
    def optimizer(self) -> DividedOptimizer:
        assert self.weights.divided is not None, "it was divided"
        return self.weights.divided

    def backward(self, loss: Tensor, last: bool) -> None:
        with self.group.talking():
            self.optimizer.backward(loss, last)

    def step(self) -> float:
        with self.group.talking():
            return self.optimizer.step()

    def reached(self, tensor: Tensor) -> bool:
        return self.optimizer.reached(tensor)


def check_divisible(model: Any, name: str, sharding: str) -> None:
    """Checks, before the first step, that an adapter's method does with a part of the gradients.

    Args:
        model: the model or pipeline. name: the adapter. sharding: the plan's.

    Raises:
        DoesNotFit: its steps need all of them, or all weights, in one process.
    """
    for layer in layers(model, name).values() if sharding in ZERO else ():
        if layer.scratch:
            raise DoesNotFit(
                f"{type(layer.config).__name__} looks at whole gradients or weights after every step, and "
                f"sharding={sharding!r} divides them: use sharding='none' or 'full'"
            )


def steps_of(weights: Weights, group: Group, accelerator: Any) -> Steps:
    """Returns how steps are done as the plan says; the optimizer is divided here where they share it.

    Args:
        weights: the adapter in training, where the run stands. group: the processes. accelerator: accelerate's.
    """
    plan = weights.lesson.plan
    if plan.fused_backward_pass:
        _check_fused(weights, group)
        return _Fused(weights)
    if plan.sharding not in ZERO:
        return _Whole(weights, group, accelerator)
    weights.divide(partial(_divided, weights=weights, group=group, plan=plan))
    return _Divided(weights, group)


def _check_fused(weights: Weights, group: Group) -> None:
    if not group.alone:
        raise BadConfig(
            f"fused_backward_pass steps before the gradients of {group.size} processes have been added up: leave it out"
        )
    watching = weights.lesson.adapter.watching
    if watching:
        raise DoesNotFit(
            f"{watching} looks at all gradients after every step, and fused_backward_pass keeps none: leave it out"
        )


def _divided(whole: torch.optim.Optimizer, weights: Weights, group: Group, plan: Plan) -> DividedOptimizer:
    assert plan.batch_size is not None, "the plan has been filled"
    passes = len(micro_batches(0, plan.batch_size, plan.accumulation, group))
    on_cpu = next(iter(weights.trained.values())).device.type == "cpu"
    pinned = plan.offload != "none" and not on_cpu
    settings = settings_for(
        2, offload=plan.offload, passes=passes, clip=plan.clip, numbers=weights.numbers, pinned=pinned
    )
    return DividedOptimizer(whole, group, settings)
