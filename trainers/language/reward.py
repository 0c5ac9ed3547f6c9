"""The lesson on reward models: a number for an answer to a prompt, higher for the better one of two answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.datasets import chat
from studio.datasets.preferences import Answer, Comparison
from studio.families.language import LanguageBase
from studio.families.language.heads import head_layers
from studio.families.language.judging import Reading, label_logits, read_texts
from studio.trainers.language.lesson import TextLesson
from studio.trainers.language.preference import preferred
from studio.trainers.language.preference_losses import bradley_terry
from studio.trainers.language.rehearsal import Stand
from studio.trainers.loop.task import Loss

__all__ = ["RewardLesson", "RewardRow", "encode_rewarded", "rehearsed_rewards", "reward_sizes", "rewarded_texts"]


@dataclass(frozen=True)
class RewardRow:
    """A comparison as a reward model reads it.

    Args:
        sample: what it is of. chosen: the prompt and the better answer. rejected: the prompt and the other one.
    """

    sample: Comparison
    chosen: Reading
    rejected: Reading

    @property
    def size(self) -> int:
        """Its tokens."""
        return len(self.chosen.tokens) + len(self.rejected.tokens)

    @property
    def counted(self) -> int:
        """1; 0 where what is left of the answers tells them apart no longer."""
        return int(self.chosen.tokens != self.rejected.tokens)

    @property
    def lost(self) -> int:
        """How many tokens were cut off."""
        return self.chosen.lost + self.rejected.lost

    def ends(self, base: LanguageBase) -> bool:
        """Nothing is written, so nothing has to end."""
        return True


def rewarded_texts(answer: Answer) -> tuple[str, str]:
    """Returns what a reward model reads of an answer: all that was said before it, and the answer itself.

    Turns have an empty line between them.

    Example:
        >>> from studio.datasets.chat import Sample
        >>> rewarded_texts(Answer(Sample(1, (("user", "Hi?"), ("assistant", "Yes."))), given=1))
        ('Hi?', 'Yes.')
    """
    if not answer.whole.chat:
        return answer.whole.prompt, answer.whole.completion
    turns = [content for _, content in answer.whole.turns]
    return "\n\n".join(turns[: answer.given]), "\n\n".join(turns[answer.given :])


def encode_rewarded(sample: Comparison, base: LanguageBase, length: int) -> RewardRow:
    """Turns a comparison into numbers, at most ``length`` tokens of each answer with its prompt.

    Args:
        sample: the comparison. base: a classifier. length: tokens at most.
    """
    both = (read_texts(base, rewarded_texts(one), length) for one in (sample.chosen, sample.rejected))
    return RewardRow(sample, *both)


@dataclass(kw_only=True)
class RewardLesson(TextLesson[RewardRow]):
    """An opened task on a reward model, a classifier of one label whose logit is the reward.

    The loss of B comparisons is the mean of :func:`~studio.trainers.language.preference_losses.bradley_terry`.
    """

    def loss(self, numbers: Sequence[int]) -> Loss:
        """Returns the loss of the drawn samples ``numbers``."""
        chosen, rejected = self._rewards(self.drawn(numbers))
        return Loss(bradley_terry(chosen, rejected).mean(), {"margin": (chosen - rejected).detach().mean()})

    def measured(self) -> Mapping[str, float]:
        """Returns figures of the held-out comparisons.

        The loss; the share of them whose chosen answer has the higher reward; and by how much on average.
        """
        totals = torch.zeros(3, dtype=torch.float64)
        for rows in self.batches():
            chosen, rejected = (one.double().cpu() for one in self._rewards(rows))
            found = (bradley_terry(chosen, rejected), preferred(chosen, rejected), chosen - rejected)
            totals += torch.stack([one.sum() for one in found])
        loss, accuracy, margin = (totals / len(self.held_out)).tolist()
        return {"held_out_loss": loss, "accuracy": accuracy, "margin": margin}

    def _rewards(self, rows: Sequence[RewardRow]) -> tuple[Tensor, Tensor]:
        """The rewards of the chosen and of the rejected answers, each ``(B,)``."""
        both = label_logits(self.base, [row.chosen for row in rows] + [row.rejected for row in rows])[:, 0]
        chosen, rejected = both.chunk(2)
        return chosen, rejected


def rehearsed_rewards(stand: Stand) -> RewardLesson:
    """Returns the lesson on comparisons of answers that say nothing.

    Args:
        stand: what it is rehearsed with.
    """
    answer = Answer(chat.Sample(1))
    row = RewardRow(Comparison(1, answer, answer), stand.reading(), stand.reading(less=1))
    head = head_layers(stand.base.model)
    return RewardLesson(**{**stand.shared, "head": head}, samples=[row], held_out=[])


def reward_sizes(rows: Sequence[RewardRow], own: Mapping[str, Any]) -> dict[str, int]:
    """Returns the tokens of the longest answer with its prompt.

    Args:
        rows: at least one. own: the task's settings.
    """
    return {"length": max(len(one.tokens) for row in rows for one in (row.chosen, row.rejected))}
