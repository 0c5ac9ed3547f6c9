"""What is drawn for a sample: a pure function of (seed, n), n being the running number of the drawn sample.

``n = step × global batch + position``. Nothing here has a state, so resuming, previews, caches, batch size against
accumulation and the number of processes cannot shift what sample n gets. Every sort of draw has a stream of its own:
switching flips on changes no noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from studio.adapters.contract.adapter import generator_for
from studio.errors import BadConfig
from studio.trainers.loop.group import Group

__all__ = ["Draws", "micro_batches"]


def micro_batches(step: int, batch_size: int, accumulation: int, group: Group) -> list[range]:
    """Returns the numbers of the samples that a process computes in a step, one range for each forward pass.

    Args:
        step: optimizer steps done before, >= 0.
        batch_size: samples of a forward pass of one process by itself; several divide them.
        accumulation: such passes per step.
        group: the processes.

    Example:
        >>> from studio.trainers.loop.group import Group
        >>> micro_batches(1, 4, 2, Group()), micro_batches(1, 4, 2, Group(1, 2))
        ([range(8, 12), range(12, 16)], [range(12, 14), range(14, 16)])
    """
    count, width = batch_size * accumulation, -(-batch_size // group.size)
    own = group.share(range(step * count, (step + 1) * count))
    return [own[begin : begin + width] for begin in range(0, len(own), width)]


class Draws:
    """All that chance decides for a sample.

    Args:
        seed: the run's seed.
        part: which half of the loss, ``"instance"`` or ``"prior"``; the halves draw independently.
    """

    def __init__(self, seed: int, part: str = "instance") -> None:
        self.seed, self.part = seed, part

    def generator(self, n: int, what: str) -> torch.Generator:
        """Returns the CPU generator of the stream ``what`` for sample ``n``."""
        return generator_for(self.seed, self.part, what, n)

    def item(self, n: int, count: int) -> int:
        """Returns which of ``count`` items sample ``n`` is: a new seeded permutation in every epoch.

        Raises:
            BadConfig: there is no item.

        Example:
            >>> draws = Draws(seed=0)
            >>> sorted(draws.item(n, 5) for n in range(5, 10))
            [0, 1, 2, 3, 4]
        """
        if count < 1:
            raise BadConfig("there is nothing to draw from: give at least one item")
        epoch, place = divmod(n, count)
        return _order(self.seed, self.part, epoch, count)[place]

    def uniform(self, n: int, what: str) -> float:
        """Returns a number in [0, 1) for a decision by name."""
        return float(torch.rand((), generator=self.generator(n, what), dtype=torch.float64))

    def uniforms(self, numbers: Sequence[int], what: str) -> Tensor:
        """Returns a number in [0, 1) for each sample, float64 ``(B,)``."""
        return torch.tensor([self.uniform(n, what) for n in numbers], dtype=torch.float64)

    def noise(self, numbers: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Returns standard normal noise for each sample, fp32 ``(B, *shape)``."""
        return torch.stack([torch.randn(tuple(shape), generator=self.generator(n, "noise")) for n in numbers])


@lru_cache(maxsize=8)
def _order(seed: int, part: str, epoch: int, count: int) -> list[int]:
    return torch.randperm(count, generator=generator_for(seed, part, "order", epoch)).tolist()
