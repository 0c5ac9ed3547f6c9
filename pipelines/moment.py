"""A moment of the denoising: where in it one step stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from studio.families import Base

__all__ = ["Moment", "moments"]


@dataclass(frozen=True)
class Moment:
    """One of the times at which the denoiser is called.

    Args:
        number: its number, from 0 on. of: how many there are; a scheduler of second order has two for most steps.
        noise: how much of the latents is noise, ``σ / (α + σ)``: 1 is noise alone, 0 the picture; in flows that is σ.

    Example:
        >>> Moment(5, 20, 0.8).progress
        0.25
    """

    number: int
    of: int
    noise: float

    @property
    def progress(self) -> float:
        """The part of the denoising that is done, from 0 on; the last call stands at ``1 - 1 / of``."""
        return self.number / self.of


def moments(base: Base, times: Tensor) -> Iterator[tuple[Moment, Tensor]]:
    """Yields the moments of a denoising, each with its time.

    Args:
        base: which denoises. times: as the scheduler has them, ``(of,)``.
    """
    process = base.family.process.of(base.pipe.scheduler, "cpu")
    ratios = process.snr(times.detach().cpu().round().long()).sqrt()
    for number, (timestep, ratio) in enumerate(zip(times, ratios.tolist(), strict=True)):
        yield Moment(number, len(times), 1 / (1 + ratio)), timestep
