"""Reward models: a number for an answer, learned from which of two answers is the better one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from studio.datasets.preferences import Comparison, comparison_of
from studio.datasets.samples import Form
from studio.families.language import LanguageBase
from studio.families.language.heads import head_layers
from studio.trainers.language.reward import RewardLesson, RewardRow, encode_rewarded, rewarded_texts
from studio.trainers.language.rows import short
from studio.trainers.text_task import Read, Shared, TextTask

__all__ = ["REWARD", "Reward"]

REWARD: Final = "reward"
"""The one label of a reward model."""


@dataclass(frozen=True, kw_only=True)
class Reward(TextTask[Comparison, RewardRow]):
    """Teaches a model how good an answer is, from comparisons of two answers.

    Two facts suffice: ``base`` and ``data``. :mod:`studio.datasets.preferences` has the forms of a comparison. The
    model reads a prompt and an answer as a pair of texts, without a chat template; its head, one number, is made where
    the base has none, trained, and saved with the adapter. :class:`~studio.trainers.text_task.TextTask` has the
    settings. :class:`~studio.trainers.GRPO` learns from such an adapter.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> Reward(base="facts", data="pairs.jsonl", held_out=0.1).task_name
        'reward'
    """

    task_name: ClassVar[str] = "reward"
    kind: ClassVar[str] = "classifier"

    @property
    def form(self) -> Form[Comparison]:
        return comparison_of

    def labels(self, read: Read[Comparison]) -> tuple[str, ...]:
        return (REWARD,)

    def head(self, base: LanguageBase) -> Sequence[str]:
        return head_layers(base.model)

    def encode(self, sample: Comparison, base: LanguageBase, length: int) -> RewardRow:
        return encode_rewarded(sample, base, length)

    def example(self, row: RewardRow, base: LanguageBase) -> str:
        chosen, rejected = (base.tokenizer.decode(one.tokens) for one in (row.chosen, row.rejected))
        return f"⟦{chosen}⟧ rather than ⟦{rejected}⟧"

    def call(self, sample: Comparison) -> Sequence[str]:
        return "complete", "BASE", *map(short, rewarded_texts(sample.chosen))

    def origin(self, rows: Sequence[RewardRow], base: LanguageBase) -> Mapping[str, str]:
        return {"labels": json.dumps([REWARD]), "form": "pair"}

    def lesson(self, shared: Shared, rows: Sequence[RewardRow], held_out: Sequence[RewardRow]) -> RewardLesson:
        return RewardLesson(**shared, samples=rows, held_out=held_out)
