"""The lesson on pairs of answers: DPO, IPO and ORPO, measured on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from studio.datasets import chat
from studio.datasets.preferences import Answer, Comparison
from studio.families.language import LanguageBase
from studio.trainers.language.answers import encode_answer
from studio.trainers.language.preference_losses import dpo, ipo, orpo
from studio.trainers.language.reference import ReferenceLesson
from studio.trainers.language.rehearsal import Stand
from studio.trainers.language.texts import TokenRow
from studio.trainers.loop.task import Loss, Say

__all__ = [
    "PAIR_LOSSES",
    "ComparisonRow",
    "PairLoss",
    "PairwiseLesson",
    "encode_comparison",
    "preferred",
    "rehearsed_comparisons",
]


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs of answers.

    Args:
        formula: ``(chosen, rejected, beta) -> (B,)``, of a score of each answer.
        mean: whether a score is the mean over the answer's tokens, not the sum.
        reference: whether scores are held against the reference.
    """

    formula: Callable[[Tensor, Tensor, float], Tensor]
    mean: bool
    reference: bool


PAIR_LOSSES: Final = {
    "dpo": PairLoss(dpo, mean=False, reference=True),
    "ipo": PairLoss(ipo, mean=True, reference=True),
    "orpo": PairLoss(orpo, mean=True, reference=False),
}
"""Name -> the loss."""


@dataclass(frozen=True)
class ComparisonRow:
    """A comparison as token numbers.

    Args:
        sample: what it is of. chosen: the better answer behind the prompt. rejected: the other one.
    """

    sample: Comparison
    chosen: TokenRow
    rejected: TokenRow

    @property
    def size(self) -> int:
        """Its tokens."""
        return self.chosen.size + self.rejected.size

    @property
    def counted(self) -> int:
        """Tokens of the answers; none where what is left of them tells them apart no longer."""
        told = self.chosen.counted and self.rejected.counted and self.chosen.tokens != self.rejected.tokens
        return self.chosen.counted + self.rejected.counted if told else 0

    @property
    def lost(self) -> int:
        """How many tokens were cut off."""
        return self.chosen.lost + self.rejected.lost

    def ends(self, base: LanguageBase) -> bool:
        """Whether both answers end."""
        return self.chosen.ends(base) and self.rejected.ends(base)


def encode_comparison(sample: Comparison, base: LanguageBase, length: int) -> ComparisonRow:
    """Turns a comparison into token numbers, at most ``length`` of each answer with its prompt.

    Raises:
        BadFile: as :func:`studio.trainers.language.texts.render`.
    """
    return ComparisonRow(sample, *(encode_answer(one, base, length) for one in (sample.chosen, sample.rejected)))


def preferred(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Returns how often the chosen answer has the higher score, ``(B,)``: 1, 0, or ½ where both are equal.

    Args:
        chosen: its scores ``(B,)``.
        rejected: those of the other ``(B,)``.

    Example:
        >>> preferred(torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3)).tolist()
        [1.0, 0.5, 0.5]
    """
    return torch.where(chosen == rejected, 0.5, (chosen > rejected).double())


@dataclass(kw_only=True)
class PairwiseLesson(ReferenceLesson[ComparisonRow]):
    r"""An opened task on pairs of answers.

    The score of an answer is ``log π(y|x) − log ρ(y|x)``, or its mean over the answer's tokens, or the mean of
    ``log π`` alone; see :mod:`studio.trainers.language.preference_losses`. The loss of B pairs is the mean of their
    losses.

    Args:
        loss_of: the loss. beta: its β.
    """

    loss_of: PairLoss
    beta: float

    @property
    def asks(self) -> bool:
        """Whether scores are held against the reference."""
        return self.loss_of.reference

    def remember(self, say: Say) -> None:
        """Asks the reference for the answers of the data, and for the held-out ones as they are measured."""
        self._before = torch.zeros(2, len(self.samples))
        self._held_before = [torch.zeros(2, len(rows)) for rows in self.batches()]
        if self.loss_of.reference:
            say(f"asking the reference, the base without an adapter, about {2 * len(self.samples)} answers")
            chosen, rejected = [row.chosen for row in self.samples], [row.rejected for row in self.samples]
            self._before = torch.stack([self.trained_sums(chosen), self.trained_sums(rejected)])
            self._held_before = [torch.stack(self._pair_sums(rows)) for rows in self.batches()]

    def loss(self, numbers: Sequence[int]) -> Loss:
        """Returns the loss of the drawn samples ``numbers``."""
        items = [self.draws.item(n, len(self.samples)) for n in numbers]
        rows = [self.samples[item] for item in items]
        both = self.sums([row.chosen for row in rows] + [row.rejected for row in rows])
        chosen, rejected = self._scores(rows, both.chunk(2), self._before[:, items].to(both.device))
        found = self.loss_of.formula(chosen, rejected, self.beta)
        return Loss(found.mean(), {"margin": (chosen - rejected).detach().mean()})

    def measured(self) -> dict[str, float]:
        """Returns figures of the held-out pairs.

        The loss; the share of pairs whose chosen answer has the higher score; by how much on average; and, of the
        chosen answers, the mean KL divergence per token from the reference.
        """
        totals, strayed, tokens = torch.zeros(3, dtype=torch.float64), 0.0, 0
        for rows, before in zip(self.batches(), self._held_before, strict=True):
            chosen, rejected = (one.cpu() for one in self._scores(rows, self._pair_sums(rows), before))
            found = self.loss_of.formula(chosen, rejected, self.beta)
            totals += torch.stack(
                [one.double().sum() for one in (found, preferred(chosen, rejected), chosen - rejected)]
            )
            more, count = self.strayed([row.chosen for row in rows])
            strayed, tokens = strayed + more, tokens + count
        loss, accuracy, margin = (totals / len(self.held_out)).tolist()
        return {"held_out_loss": loss, "accuracy": accuracy, "margin": margin, "kl": strayed / tokens}

    def _pair_sums(self, rows: Sequence[ComparisonRow]) -> list[Tensor]:
        return [self.sums([row.chosen for row in rows]), self.sums([row.rejected for row in rows])]

    def _scores(
        self, rows: Sequence[ComparisonRow], now: Sequence[Tensor], before: Tensor
    ) -> list[Tensor]:  # fmt: skip
        """The scores of the chosen and of the rejected answers, each ``(B,)``."""
        ratios = [one - then.to(one.device) for one, then in zip(now, before, strict=True)]
        if not self.loss_of.mean:
            return ratios
        counts = ([row.chosen.counted for row in rows], [row.rejected.counted for row in rows])
        return [ratio / torch.tensor(count, device=ratio.device) for ratio, count in zip(ratios, counts, strict=True)]


def rehearsed_comparisons(stand: Stand) -> PairwiseLesson:
    """Returns the lesson on pairs of answers that say nothing, as many as the reference is asked about at once.

    Args:
        stand: what it is rehearsed with; ``loss`` is as of the task.
    """
    answer = Answer(chat.Sample(1))
    rows = [ComparisonRow(Comparison(1, answer, answer), stand.row(), stand.row(less=1))] * stand.together
    return PairwiseLesson(
        **stand.shared, samples=rows, held_out=[], previews=[], preview_tokens=1, beta=0.1,
        loss_of=PAIR_LOSSES[stand.own["loss"]],
    )  # fmt: skip
