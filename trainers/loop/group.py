"""The processes of one run: started by ``studio launch``, torchrun or ``accelerate launch``, on one machine or several.

What is drawn for a sample follows from its running number, so every process computes the loss of its share of a step's
samples, and what the step needs of the others are the adapter's gradients: they alone travel, in one piece. Each
process then does the same step with the same numbers. One of them, the *main* process, holds the folder and writes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from studio.device import collective_backend, own_device
from studio.errors import BadConfig, DoesNotFit, StudioError
from studio.launched import started_processes

__all__ = ["Group", "ProcessLost", "joined"]

R = TypeVar("R")
PATIENCE: Final = timedelta(hours=12)  # the others wait while the main process draws class pictures and previews


class ProcessLost(StudioError):
    """Another process of the run has ended, so this one cannot go on."""

    exit_code = 75  # what ``studio launch`` tells it by from the process that failed


class Group:
    """The processes of a run, as one of them sees them; by default there is this one alone.

    Args:
        rank: the number of this one, from 0. size: how many there are.

    Example:
        >>> Group(1, 2).share(range(8, 13)), Group().share(range(8, 13))
        (range(11, 13), range(8, 13))
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other one."""
        return self.size == 1

    def share(self, numbers: range) -> range:
        """Returns which of some samples this process computes; shares differ by one sample at most."""
        each, more = divmod(len(numbers), self.size)
        begin = self.rank * each + min(self.rank, more)
        return numbers[begin : begin + each + (self.rank < more)]

    def check_room(self, samples: int) -> None:
        """Checks that there is work for every process.

        Args:
            samples: of one step.

        Raises:
            BadConfig: there are more processes than samples.
        """
        if samples < self.size:
            raise BadConfig(
                f"a step has {samples} sample{'s' if samples > 1 else ''} and {self.size} processes were started: "
                "start fewer, or raise batch_size"
            )

    def check_same(self, content: Mapping[str, Any]) -> None:
        """Checks that all processes were started with the same settings, data and versions.

        Args:
            content: what must be equal.

        Raises:
            DoesNotFit: naming a setting that differs.
        """
        if self.alone:
            return
        from studio.config import differences

        everyone = self._together(lambda: _gathered(dict(content), self.size))
        for rank, other in enumerate(everyone):
            found = differences(everyone[0], other)
            if found:
                raise DoesNotFit(f"process {rank} was started with other settings than process 0: {'; '.join(found)}")

    def totals(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Returns the sums of numbers over all processes, computed in float64."""
        if self.alone:
            return dict(figures)
        sums = torch.tensor(list(figures.values()), dtype=torch.float64)
        self._together(lambda: dist.all_reduce(sums))
        return dict(zip(figures, sums.tolist(), strict=True))

    def any(self, here: bool) -> bool:
        """Returns whether something is so in any process."""
        return self.totals({"": float(here)})[""] > 0

    @torch.no_grad()
    def add_gradients(self, tensors: Iterable[Tensor]) -> None:
        """Gives every tensor the sum of its gradients over all processes; one that has none anywhere keeps none."""
        if self.alone:
            return
        trained = list(tensors)
        have = torch.tensor([float(tensor.grad is not None) for tensor in trained])
        self._together(lambda: dist.all_reduce(have))
        wanted = [tensor for tensor, count in zip(trained, have.tolist(), strict=True) if count]
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in wanted]
        whole = torch.cat([part.flatten().float() for part in parts]) if parts else torch.zeros(0)
        self._together(lambda: dist.all_reduce(whole))
        for tensor, part in zip(wanted, whole.split([part.numel() for part in parts]), strict=True):
            tensor.grad = part.view_as(tensor).to(tensor.dtype)

    def handed(self, make: Callable[[], R]) -> R:
        """Returns what the main process makes, to all of them.

        Args:
            make: is called in the main process alone; its result is pickled.
        """
        if self.alone:
            return make()
        box: list[Any] = [make() if self.main else None]
        self._together(lambda: dist.broadcast_object_list(box, src=0))
        return box[0]

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        """Lets the main process go first and the others follow, which find what it has made."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def wait(self) -> None:
        """Waits until all processes are here."""
        if not self.alone:
            self._together(dist.barrier)

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """Lasts while others' code lets the processes talk to each other among other things.

        Raises:
            ProcessLost: one of them has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection")):
                raise self._lost(error) from None
            raise

    def _lost(self, error: Exception) -> ProcessLost:
        reason = str(error).partition("\n")[0][:160]
        return ProcessLost(
            f"another process of this run has ended, so process {self.rank} stops too; its last checkpoint stands, "
            f"and the same command goes on from there ({reason})"
        )

    def _together(self, act: Callable[[], R]) -> R:
        """Does what all processes do at once.

        Raises:
            ProcessLost: one of them has ended.
        """
        try:
            return act()
        except RuntimeError as error:
            raise self._lost(error) from None


def joined() -> Group:
    """Joins the processes that a launcher has started; without one, there is this one alone.

    They stay together until they end: a second training of the same script finds them.

    Raises:
        BadConfig: a launcher's variables that are no numbers.
        ProcessLost: the others cannot be reached.
    """
    rank, size = started_processes()
    if size == 1 or not dist.is_available():
        return Group()
    group = Group(rank, size)
    if not dist.is_initialized():
        own_device(int(os.environ.get("LOCAL_RANK", "0")))
        group._together(lambda: dist.init_process_group(collective_backend(), timeout=PATIENCE))
        atexit.register(_leave)
    return group


def _leave() -> None:
    """Ends what the processes share, after the divided bases that still hold on to it."""
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def _gathered(content: Mapping[str, Any], size: int) -> Sequence[Any]:
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, content)
    return everyone
