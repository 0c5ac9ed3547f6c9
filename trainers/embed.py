"""Sentence embeddings: texts that belong together get vectors that are near each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from studio.config import finite
from studio.datasets.records import source_name
from studio.datasets.samples import Form
from studio.datasets.sentences import SentencePair, close_ones, closeness_limit, sentences_of
from studio.errors import BadConfig, BadFile
from studio.families.language import LanguageBase
from studio.families.language.encoding import POOLINGS, check_encodes
from studio.trainers.language.embed import EmbedLesson, SentenceRow, encode_sentences
from studio.trainers.language.rows import short
from studio.trainers.text_task import Read, Shared, TextTask

__all__ = ["Embed"]


@dataclass(frozen=True, kw_only=True)
class Embed(TextTask[SentencePair, SentenceRow]):
    """Teaches an encoder (BERT, or the body of a Llama, ...) vectors by which texts that belong together are near.

    Two facts suffice: ``base`` and ``data``. :mod:`studio.datasets.sentences` has the forms of a record: pairs, maybe
    with a third text that is far, or with scores, of which only the upper half is learned.
    :class:`~studio.trainers.text_task.TextTask` has the other settings.

    Attributes:
        pooling: what makes the vector of a text: the ``"mean"`` over its tokens, the state of the [CLS] mark
            (``"cls"``), or that of the ``"last"`` token.
        temperature: τ by which cosines are divided before they are held against each other, > 0.
        group: how many drawn pairs are told apart from each other, >= 2: the texts of the others are what is far. It
            costs least where the batch is made of whole groups; the losses are the same whatever the batch.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> Embed(base="facts", data="pairs.jsonl", held_out=0.1).task_name
        'embed'
    """

    task_name: ClassVar[str] = "embed"
    kind: ClassVar[str] = "encoder"
    least: ClassVar[Mapping[str, int]] = {"group": 2}

    pooling: str = "mean"
    temperature: float = 0.05
    group: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise BadConfig(f"pooling={self.pooling!r}: give one of {', '.join(POOLINGS)}")
        if not (finite(self.temperature) and self.temperature > 0):
            raise BadConfig(f"temperature={self.temperature!r}: temperature must be above 0")

    @property
    def form(self) -> Form[SentencePair]:
        return sentences_of

    def look(self) -> Read[SentencePair]:
        """See :meth:`studio.trainers.text_task.TextTask.look`; pairs that are not close are left aside."""
        read, name = super().look(), source_name(self.data)
        limit = closeness_limit(read.found.items)
        trained = close_ones(read.trained, limit, name)
        kept = close_ones(read.kept, limit, self._held_out_name) if read.kept else []
        far = len(read.trained) - len(trained)
        if not far:
            return replace(read, trained=trained, kept=kept)
        count = len(read.trained)
        note = f"{far} of {count} pairs of {name} have a score below {limit:g}, half of the largest: left out"
        return Read(replace(read.found, notes=(*read.found.notes, note)), trained, kept)

    def encode(self, sample: SentencePair, base: LanguageBase, length: int) -> SentenceRow:
        return encode_sentences(sample, base, length)

    def example(self, row: SentenceRow, base: LanguageBase) -> str:
        far = "" if row.negative is None else f", far from {base.tokenizer.decode(row.negative.tokens)}"
        anchor, positive = (base.tokenizer.decode(one.tokens) for one in (row.anchor, row.positive))
        return f"⟦{anchor}⟧ near ⟦{positive}⟧{far}"

    def call(self, sample: SentencePair) -> Sequence[str]:
        return "complete", "BASE", short(sample.anchor), short(sample.positive)

    def settings(self, rows: Sequence[SentenceRow], base: LanguageBase) -> Mapping[str, Any]:
        return {"pooling": self.pooling, "temperature": self.temperature, "group": self.group}

    def origin(self, rows: Sequence[SentenceRow], base: LanguageBase) -> Mapping[str, str]:
        return {"pooling": self.pooling}

    def lesson(self, shared: Shared, rows: Sequence[SentenceRow], held_out: Sequence[SentenceRow]) -> EmbedLesson:
        """See :meth:`studio.trainers.text_task.TextTask.lesson`.

        Raises:
            BadFile: all pairs have the same second text. DoesNotFit: the base cannot be pooled so.
        """
        check_encodes(shared["base"], self.pooling)
        if len({row.sample.positive for row in rows}) < 2 and all(row.negative is None for row in rows):
            raise BadFile(
                f"all pairs of {source_name(self.data)} have the same second text ({short(rows[0].sample.positive)}): "
                "there is nothing to tell apart"
            )
        return EmbedLesson(
            **shared, samples=rows, held_out=held_out, pooling=self.pooling, temperature=self.temperature,
            group=self.group,
        )  # fmt: skip
