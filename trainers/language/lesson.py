"""What the lessons on language bases share: rows that are drawn, and held-out rows that are measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import torch

from studio.families.language import LanguageBase
from studio.trainers.language.rows import Row
from studio.trainers.loop.draws import Draws
from studio.trainers.loop.mode import evaluating
from studio.trainers.loop.task import Lesson, Say

__all__ = ["MEASURED", "TextLesson"]

MEASURED: Final = 32
"""Held-out rows that are measured together."""

R = TypeVar("R", bound=Row)


@dataclass(kw_only=True)
class TextLesson(Lesson, Generic[R]):
    """An opened task on a language base.

    Args:
        base: the base.
        samples: what is trained on.
        held_out: what is measured on, in a fixed order.
        say: takes what was measured.
    """

    base: LanguageBase
    samples: Sequence[R]
    held_out: Sequence[R]
    say: Say

    def __post_init__(self) -> None:
        super().__post_init__()
        self.draws = Draws(self.plan.seed)

    @property
    def model(self) -> Any:
        """The base's model."""
        return self.base.model

    @property
    def mean_counted(self) -> float:
        """The mean number of learned tokens per sample of the whole data set."""
        return sum(row.counted for row in self.samples) / len(self.samples)

    def drawn(self, numbers: Sequence[int]) -> list[R]:
        """Returns the rows of the drawn samples ``numbers``."""
        return [self.samples[self.draws.item(n, len(self.samples))] for n in numbers]

    def measure(self) -> dict[str, float]:
        """Measures on the held-out rows; always the same rows, order and batches."""
        if not self.held_out:
            return {}
        with torch.no_grad(), evaluating([self.model]):
            found = dict(self.measured())
        self.say(", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.items()))
        return found

    @abstractmethod
    def measured(self) -> Mapping[str, float]:
        """Returns the figures of the held-out rows, with the model in evaluation mode and without gradients."""

    def batches(self) -> Iterator[Sequence[R]]:
        """The held-out rows in the batches in which they are measured."""
        for begin in range(0, len(self.held_out), MEASURED):
            yield self.held_out[begin : begin + MEASURED]

    def preview(self) -> Sequence[str]:
        """Makes texts of the held-out samples with the adapter as it is now."""
        return []

    def captions(self) -> list[str]:
        """Returns one line for each text of :meth:`preview`."""
        return []
