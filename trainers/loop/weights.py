"""What a training changes: the adapter's tensors as they are now, the optimizer over them, and their average."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from studio.adapters import detach, grow, state
from studio.adapters.contract.starts import padded
from studio.adapters.grow import rehearse_growth
from studio.adapters.training import layers, scratch
from studio.errors import BadFile, DoesNotFit
from studio.trainers.loop.average import Average
from studio.trainers.loop.checkpoint import Checkpoint
from studio.trainers.loop.optimizer import OPTIMIZERS, Work, hand_on
from studio.trainers.loop.task import Lesson
from studio.trainers.loop.zero_adapter import DividedOptimizer

__all__ = ["Movement", "Weights", "rehearsed_growth"]


@dataclass(frozen=True)
class Movement:
    """How far the adapter of one component went.

    Args:
        sites: layers.
        numbers: trained numbers.
        norm: ``‖end − start‖₂`` over all its tensors.
        rate: its full learning rate.
    """

    sites: int
    numbers: int
    norm: float
    rate: float


def rehearsed_growth(lesson: Lesson) -> float:
    """Finds out before step 1 whether the adapter can grow as planned; returns by how much it grows.

    Raises:
        DoesNotFit: its method decides about the ranks itself.
        UnsupportedLayer: it cannot grow.
    """
    ranks, config = list(lesson.plan.stages.values()), lesson.adapter
    if not ranks:
        return 1.0
    if config.watching:
        raise DoesNotFit(f"{config.watching} decides about its ranks itself while it trains; leave grow out")
    for rank in (ranks[0], ranks[-1]):
        rehearse_growth(lesson.model, lesson.name, rank)
    return ranks[-1] / getattr(config, "rank", ranks[-1])


class Weights:
    """An attached adapter in training.

    Args:
        lesson: whose model the adapter is on.

    Attributes:
        tensors: all its tensors by ``"<component>.<path>.<tensor>"``.
        scratch: what its method keeps beside them while it trains, by key.
        trained: those of the tensors that the optimizer changes.
        start: what these were before the first step, zeros where they have grown since.
        optimizer: the optimizer over them.
        divided: what does its work among several processes, each with a part of its state; None: it does so itself.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.divided: DividedOptimizer | None = None
        self._divide: Callable[[torch.optim.Optimizer], DividedOptimizer] | None = None
        self._look()
        self.start = {key: tensor.detach().clone() for key, tensor in self.trained.items()}
        self._average = Average(self._moving, lesson.plan.ema)

    def _look(self) -> None:
        """Looks up the adapter's tensors as they are now, and makes the optimizer over them."""
        lesson = self.lesson
        parts = layers(lesson.model, lesson.name)
        self.tensors = state(lesson.model, lesson.name)
        self.scratch = scratch(lesson.model, lesson.name)
        self.optimizer = OPTIMIZERS[lesson.plan.optimizer](Work(self.tensors, parts, lesson.rates, lesson.plan))
        self.trained = {key: tensor for key, tensor in self.tensors.items() if tensor.requires_grad}
        driven = {name for member in lesson.attached.members for name in member.adapter.driven}
        self._moving = {k: t for k, t in self.tensors.items() if k in self.trained or k.rpartition(".")[2] in driven}

    @property
    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(tensor.numel() for tensor in self.trained.values())

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(
            tensor.numel() * tensor.element_size() for tensor in (*self.tensors.values(), *self.scratch.values())
        )

    def grow(self, rank: int) -> int:
        """Lets the adapter grow, and with it what is known of its tensors; returns how many numbers are trained then.

        Raises:
            UnsupportedLayer: it cannot grow.
        """
        start, average = self.start, self._average
        found = grow(self.lesson.model, self.lesson.name, rank, seed=self.lesson.plan.seed)
        if self.lesson.swap is not None:
            self.lesson.swap.settle()
        before = self._acting.state_dict()
        if self.divided is not None:
            self.divided.destroy()
        self._look()
        hand_on(before, self.optimizer)
        self._part()
        self.start = {key: padded(start[key], tensor) for key, tensor in self.trained.items()}
        self._average = average.grown(self._moving)
        return found.parameters

    def divide(self, divide: Callable[[torch.optim.Optimizer], DividedOptimizer]) -> None:
        """Divides the optimizer among processes, and again when the adapter has grown.

        Args:
            divide: returns an optimizer that goes on from a whole one.
        """
        self._divide = divide
        self._part()

    def _part(self) -> None:
        if self._divide is not None:
            self.divided = self._divide(self.optimizer)

    @property
    def _acting(self) -> torch.optim.Optimizer | DividedOptimizer:
        return self.divided or self.optimizer

    def step(self, done: int) -> None:
        """Takes the tensors after ``done`` steps into their average, and drops the gradients."""
        self._acting.zero_grad(set_to_none=True)
        self._average.update(done)

    def checkpoint(self, done: int) -> Checkpoint:
        """Returns the state after ``done`` steps; of a divided optimizer, all processes have to ask for it at once."""
        tensors = {key: tensor.detach() for key, tensor in self.tensors.items()}
        return Checkpoint(done, tensors, self.scratch, self._average.tensors, self._acting.state_dict())

    def restore(self, found: Checkpoint) -> None:
        """Takes up the state of a checkpoint.

        Raises:
            BadFile: the checkpoint is of another adapter.
            UnsupportedLayer: the adapter had grown then, and cannot.
        """
        self._grow_until(found.step)
        _fill(self.tensors, found.tensors, "the checkpoint")
        _fill(self.scratch, found.scratch, "the checkpoint")
        self._average.load(found.average)
        self.optimizer.load_state_dict(dict(found.optimizer))

    def take(self, file: Path, done: int = 0) -> None:
        """Takes the tensors of an adapter file, with no moments of an optimizer.

        Args:
            file: an adapter of the same method and ranks.
            done: steps of this run that are in it; 0: it is where the run starts from.

        Raises:
            BadFile: it is no adapter, or one of other tensors.
            DoesNotFit: nothing in it fits the model.
            PartialLoad: a part of it does not fit.
            UnsupportedLayer: the adapter had grown by then, and cannot.
        """
        from studio.files import load

        self._grow_until(done)
        model, name = self.lesson.model, f"{self.lesson.name}-taken"
        load(model, file, name=name)
        try:
            _fill(self.tensors, state(model, name), str(file))
        finally:
            detach(model, name)
        if not done:
            self.start = {key: tensor.detach().clone() for key, tensor in self.trained.items()}
        self._average = Average(self._moving, self.lesson.plan.ema)

    def _grow_until(self, done: int) -> None:
        """Lets the adapter grow as it has in the first ``done`` steps."""
        for after, rank in self.lesson.plan.stages.items():
            if after <= done:
                self.grow(rank)

    def averaged(self) -> AbstractContextManager[None]:
        """Puts the average, where one is kept, in the tensors' place for a while: it is what is saved and shown."""
        return self._average.shown()

    def movements(self) -> dict[str, Movement]:
        """Returns how far each component's adapter has gone."""
        return {part or "model": self._movement(part, rate) for part, rate in self.lesson.rates.items()}

    def _movement(self, part: str, rate: float) -> Movement:
        moved = {key: tensor for key, tensor in self.trained.items() if not part or key.startswith(f"{part}.")}
        squares = sum(_squares(tensor.detach() - self.start[key]) for key, tensor in moved.items())
        numbers = sum(tensor.numel() for tensor in moved.values())
        return Movement(len({key.rpartition(".")[0] for key in moved}), numbers, math.sqrt(squares), rate)


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Copies all of the given tensors to their places, or none.

    Raises:
        BadFile: they are not the same ones.
    """
    odd = sorted(tensors.keys() ^ given.keys())
    odd += [key for key, tensor in tensors.items() if key in given and given[key].shape != tensor.shape]
    if odd:
        raise BadFile(f"{what} is of another adapter: its tensors differ in {odd[0]!r} and {len(odd) - 1} more")
    for key, tensor in tensors.items():
        tensor.copy_(given[key])


def _squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
