"""Classification: a label of a text, of a pair of texts, or of each word."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from studio.adapters.tokens.contract import TokenConfig
from studio.datasets.labelled import Labelled, labelled_of, sorted_labels
from studio.datasets.samples import Form
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.families.language import LanguageBase
from studio.families.language.heads import head_layers
from studio.trainers.language.labels import LabelLesson, LabelRow, encode_labelled
from studio.trainers.language.rows import short
from studio.trainers.text_task import Read, Shared, TextTask

__all__ = ["Classify"]

SHOWN: Final = 4  # texts that previews judge where none are given
NAMED: Final = 3  # contradictions that are named one by one


@dataclass(frozen=True, kw_only=True)
class Classify(TextTask[Labelled, LabelRow]):
    """Teaches a model to tell texts, pairs of texts, or words apart by labels.

    Two facts suffice: ``base`` and ``data``. :mod:`studio.datasets.labelled` has the forms of a record. The labels are
    those of the data, in order; where the base has no head for them, one is made
    (:mod:`studio.families.language.heads`) and trained with the adapter, in whose file it is.
    :class:`~studio.trainers.text_task.TextTask` has the other settings.

    Attributes:
        keep_head: the head stays as it is, and the adapter alone is trained.
        balanced: every label counts in the loss as much as any other, however often it stands in the data: a sample
            weighs ``n / (C n(label))``, with n labels in all, C different ones and n(label) of its own.
        preview_prompts: what previews judge; None: the first few held-out texts, or those of the data.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> Classify(base="facts", data="messages.jsonl", held_out=0.1).task_name
        'classify'
    """

    task_name: ClassVar[str] = "classify"
    kind: ClassVar[str] = "classifier"

    keep_head: bool = False
    balanced: bool = False
    preview_prompts: tuple[str, ...] | None = None

    @property
    def form(self) -> Form[Labelled]:
        return labelled_of

    def kind_for(self, read: Read[Labelled]) -> str:
        return "token-classifier" if read.found.items[0].form == "words" else self.kind

    def labels(self, read: Read[Labelled]) -> tuple[str, ...]:
        """Returns the labels of what is trained on, in order.

        Raises:
            BadFile: two forms in one data set, a single label, or one that is only held out.
        """
        first = read.found.items[0]
        other = next((one for one in (*read.found.items, *read.kept) if one.form != first.form), None)
        if other is not None:
            raise BadFile(
                f"line {first.line} of {read.found.file} labels {_FORMS[first.form]} and line {other.line} "
                f"{_FORMS[other.form]}: one classifier learns one of them"
            )
        found = sorted_labels(label for sample in read.trained for label in sample.labels)
        lone = next(((s, label) for s in read.kept for label in s.labels if label not in found), None)
        if lone is not None:
            raise BadFile(
                f"line {lone[0].line} of what is held out has the label {lone[1]!r}, which nothing that is trained on "
                f"has ({_some(found)}): take it out, or give samples of it"
            )
        if len(found) < 2:
            raise BadFile(
                f"every sample of {read.found.file} has the label {found[0]!r}: there is nothing to tell apart"
            )
        return found

    def encode(self, sample: Labelled, base: LanguageBase, length: int) -> LabelRow:
        return encode_labelled(sample, base, length)

    def head(self, base: LanguageBase) -> Sequence[str]:
        return () if self.keep_head else head_layers(base.model)

    def settings(self, rows: Sequence[LabelRow], base: LanguageBase) -> Mapping[str, Any]:
        return {"labels": list(base.labels), "keep_head": self.keep_head, "balanced": self.balanced}

    def origin(self, rows: Sequence[LabelRow], base: LanguageBase) -> Mapping[str, str]:
        return {"labels": json.dumps(list(base.labels)), "form": rows[0].sample.form}

    def example(self, row: LabelRow, base: LanguageBase) -> str:
        if not row.reading.places:
            return f"{base.tokenizer.decode(row.reading.tokens)} ⟦{row.sample.labels[0]}⟧"
        kept = list(zip(row.sample.texts, row.sample.labels, strict=True))[: row.counted]
        return " ".join(f"{word} ⟦{label}⟧" for word, label in kept)

    def call(self, sample: Labelled) -> Sequence[str]:
        texts = [" ".join(sample.texts)] if sample.form == "words" else sample.texts
        return "complete", "BASE", *map(short, texts)

    def lesson(self, shared: Shared, rows: Sequence[LabelRow], held_out: Sequence[LabelRow]) -> LabelLesson:
        """See :meth:`studio.trainers.text_task.TextTask.lesson`.

        Raises:
            DoesNotFit: a method of virtual tokens.
        """
        base = shared["base"]
        if isinstance(shared["adapter"], TokenConfig):
            raise DoesNotFit(
                f"{shared['adapter'].method} puts virtual tokens where a classifier looks for its answer: take a "
                "method that changes layers"
            )
        for line in (*self._of_head(base), *_contradictions(rows, held_out)):
            shared["notes"].append(line)
            shared["say"](line)
        return LabelLesson(
            **shared, samples=rows, held_out=held_out, weights=_weights(rows, base) if self.balanced else None,
            previews=self._previews(held_out or rows),
        )  # fmt: skip

    def _of_head(self, base: LanguageBase) -> list[str]:
        """Says what becomes of the head."""
        told = f"the labels: {_some(base.labels)}"
        if base.made:
            kept = ", and kept as it is" if self.keep_head else ""
            told += f"; {base.id} has no head for them, so one is made ({', '.join(base.made)}){kept}"
        return [told]

    def _previews(self, rows: Sequence[LabelRow]) -> list[tuple[tuple[str, ...], str]]:
        form = rows[0].sample.form
        if self.preview_prompts is None:
            some = [row.sample for row in rows[:SHOWN]]
            return [(one.texts, f"{short(' '.join(one.texts), 80)} (wanted: {' '.join(one.labels)})") for one in some]
        if form == "pair":
            raise BadConfig("preview_prompts are single texts, and pairs are judged here: leave them out")
        split = form == "words"
        return [(tuple(text.split()) if split else (text,), text) for text in self.preview_prompts]


_FORMS: Final = {"text": "a text", "pair": "a pair of texts", "words": "words"}


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 12} more" if len(labels) > 12 else ""
    return f"{', '.join(labels[:12])}{more}"


def _weights(rows: Sequence[LabelRow], base: LanguageBase) -> list[float]:
    """Returns ``n / (C n(label))`` of each label."""
    counts = Counter(label for row in rows for label in row.labels)
    return [counts.total() / (len(base.labels) * max(counts[number], 1)) for number in range(len(base.labels))]


def _contradictions(rows: Sequence[LabelRow], held_out: Sequence[LabelRow]) -> list[str]:
    """Says which texts stand there again with other labels."""
    first: dict[tuple[str, ...], Labelled] = {}
    found = []
    for row in (*rows, *held_out):
        sample = first.setdefault(row.sample.texts, row.sample)
        if sample.labels != row.sample.labels:
            found.append(f"line {sample.line} {' '.join(sample.labels)!r}, line {row.sample.line} "
                         f"{' '.join(row.sample.labels)!r}")  # fmt: skip
    if not found:
        return []
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return [f"{len(found)} texts stand there again with another label: {'; '.join(found[:NAMED])}{more}"]
