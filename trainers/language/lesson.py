"""What the lessons on language bases share: rows that are drawn, and held-out rows that are measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor

from studio.families.language import LanguageBase
from studio.trainers.language.rows import Row
from studio.trainers.loop.draws import Draws
from studio.trainers.loop.mode import evaluating
from studio.trainers.loop.task import Lesson, Loss, Say

__all__ = ["MEASURED", "TextLesson", "TokenLesson", "exact_match"]

MEASURED: Final = 32
"""Held-out rows that are measured together, at most."""

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

    @cached_property
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

    @property
    def together(self) -> int:
        """Rows that are computed together without a gradient: no more than of a step, which the memory is known for."""
        return min(MEASURED, self.plan.batch_size or MEASURED)

    def batches(self) -> Iterator[Sequence[R]]:
        """The held-out rows in the batches in which they are measured."""
        for begin in range(0, len(self.held_out), self.together):
            yield self.held_out[begin : begin + self.together]

    def preview(self) -> Sequence[str]:
        """Makes texts of the held-out samples with the adapter as it is now."""
        return []

    def captions(self) -> list[str]:
        """Returns one line for each text of :meth:`preview`."""
        return []


@dataclass(kw_only=True)
class TokenLesson(TextLesson[R]):
    r"""A lesson that counts tokens: what is to be said is learned, all tokens of it alike.

    The loss of B samples is ``Σ −log p(token) / (B m)``, the sum over their learned tokens and ``m`` the mean number of
    learned tokens per sample of the whole data set. All tokens weigh the same, whatever batch they are drawn in, and
    accumulation gives the gradients of the larger batch.

    Args:
        answers: how many of the held-out samples are answered, to compare what is said with what is right.
        preview_tokens: tokens of a preview's answer at most.
    """

    answers: int
    preview_tokens: int

    @abstractmethod
    def summed(self, rows: Sequence[R]) -> tuple[Tensor, int]:
        """Returns the sum of the losses of the learned tokens, a scalar, and their number.

        Args:
            rows: B samples.
        """

    def loss(self, numbers: Sequence[int]) -> Loss:
        """Returns the loss of the drawn samples ``numbers``."""
        rows = self.drawn(numbers)
        total, _ = self.summed(rows)
        return Loss(total / (len(rows) * self.mean_counted))

    def measured(self) -> dict[str, float]:
        """Returns the held-out loss per token, and what :meth:`judged` says of the answers."""
        total, count = 0.0, 0
        for rows in self.batches():
            loss, tokens = self.summed(rows)
            total, count = total + float(loss), count + tokens
        return {"held_out_loss": total / count, **self.judged()}

    @abstractmethod
    def judged(self) -> Mapping[str, float]:
        """Returns how what is said of the held-out samples, the likeliest token each time, compares with the right."""

    @cached_property
    def asked(self) -> list[R]:
        """The held-out samples that are answered: whole ones."""
        return [row for row in self.held_out if not row.lost][: self.answers]


def exact_match(said: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """Returns the share of texts that are right to the letter, but for blanks around them; nothing of none.

    Args:
        said: what was said. right: what should have been.

    Example:
        >>> exact_match(["Paris", "Rome"], [" Paris", "Oslo"]), exact_match([], [])
        ({'exact_match': 0.5}, {})
    """
    same = [text == wanted.strip() for text, wanted in zip(said, right, strict=True)]
    return {"exact_match": sum(same) / len(same)} if same else {}
