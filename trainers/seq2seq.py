"""Sequence-to-sequence models: translations, summaries, and any other text that is said of one that is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from studio.datasets.pairs import Pair, pair_of
from studio.datasets.records import source_name
from studio.datasets.samples import Form
from studio.families.language import LanguageBase
from studio.trainers.language.choices import choices_of
from studio.trainers.language.rows import short
from studio.trainers.language.seq2seq import PairRow, Seq2SeqLesson, encode_pair
from studio.trainers.text_task import Shared, TextTask

__all__ = ["Seq2Seq"]

SHOWN: Final = 4  # pairs that previews say where none are given


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(TextTask[Pair, PairRow]):
    """Teaches a sequence-to-sequence model (T5, BART, ...) to say of a text what the samples say.

    Two facts suffice: ``base`` and ``data``. :mod:`studio.datasets.pairs` has the forms of a record.
    :class:`~studio.trainers.text_task.TextTask` has the other settings.

    Attributes:
        answers: how many held-out pairs are said for the exact match; 0 measures the loss alone.
        choices: the different answers of the data are labels (at most 64): the likeliest of them is measured, and said
            by ``studio complete``.
        preview_prompts: what previews read; None: the first few held-out texts, or those of the data.
        preview_tokens: tokens of a preview at most.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> Seq2Seq(base="words", data="pairs.jsonl", held_out=0.1).task_name
        'seq2seq'
    """

    task_name: ClassVar[str] = "seq2seq"
    kind: ClassVar[str] = "seq2seq"
    least: ClassVar[Mapping[str, int]] = {"answers": 0, "preview_tokens": 1}

    answers: int = 200
    choices: bool = False
    preview_prompts: tuple[str, ...] | None = None
    preview_tokens: int = 64

    @property
    def form(self) -> Form[Pair]:
        return pair_of

    def encode(self, sample: Pair, base: LanguageBase, length: int) -> PairRow:
        return encode_pair(sample, base, length)

    def example(self, row: PairRow, base: LanguageBase) -> str:
        return f"{base.tokenizer.decode(row.read)} ⟦{base.tokenizer.decode(row.said)}⟧"

    def call(self, sample: Pair) -> Sequence[str]:
        return "complete", "BASE", short(sample.source)

    def lesson(self, shared: Shared, rows: Sequence[PairRow], held_out: Sequence[PairRow]) -> Seq2SeqLesson:
        return Seq2SeqLesson(
            **shared, samples=rows, held_out=held_out, previews=self._previews(held_out or rows), answers=self.answers,
            preview_tokens=self.preview_tokens, choices=self._choices(rows),
        )  # fmt: skip

    def settings(self, rows: Sequence[PairRow], base: LanguageBase) -> Mapping[str, Any]:
        return {"choices": list(self._choices(rows))} if self.choices else {}

    def origin(self, rows: Sequence[PairRow], base: LanguageBase) -> Mapping[str, str]:
        return {"labels": json.dumps(self._choices(rows))} if self.choices else {}

    def _choices(self, rows: Sequence[PairRow]) -> tuple[str, ...]:
        return choices_of((row.sample.target for row in rows), source_name(self.data)) if self.choices else ()

    def _previews(self, rows: Sequence[PairRow]) -> list[tuple[str, str]]:
        if self.preview_prompts is not None:
            return [(text, text) for text in self.preview_prompts]
        pairs = [row.sample for row in rows[:SHOWN]]
        return [(pair.source, f"{short(pair.source)} (wanted: {short(pair.target)})") for pair in pairs]
