"""The lesson on classifiers: labels of texts or of words, measured on held-out ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.datasets.labelled import Labelled
from studio.families.language import LanguageBase
from studio.families.language.heads import head_layers
from studio.families.language.judging import Reading, label_logits, read_texts, read_words
from studio.trainers.language.agreement import entity_f1, is_of_entities, macro_f1
from studio.trainers.language.lesson import MEASURED, TextLesson
from studio.trainers.language.rehearsal import Stand
from studio.trainers.language.rows import short
from studio.trainers.loop.task import Loss

__all__ = ["LabelLesson", "LabelRow", "encode_labelled", "rehearsed_labels"]


@dataclass(frozen=True)
class LabelRow:
    """A labelled text as numbers.

    Args:
        sample: what it is of.
        reading: what the classifier reads.
        labels: the numbers of the labels that are learned; those of words that were cut off are gone.
    """

    sample: Labelled
    reading: Reading
    labels: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its tokens."""
        return len(self.reading.tokens)

    @property
    def counted(self) -> int:
        """Its labels."""
        return len(self.labels)

    @property
    def lost(self) -> int:
        """How many tokens were cut off."""
        return self.reading.lost

    def ends(self, base: LanguageBase) -> bool:
        """Nothing is written, so nothing has to end."""
        return True


def encode_labelled(sample: Labelled, base: LanguageBase, length: int) -> LabelRow:
    """Turns a labelled text into numbers, at most ``length`` tokens.

    Args:
        sample: the text. base: a classifier of its labels. length: tokens at most.
    """
    numbers = {label: number for number, label in enumerate(base.labels)}
    if sample.form != "words":
        return LabelRow(sample, read_texts(base, sample.texts, length), (numbers[sample.labels[0]],))
    reading = read_words(base, sample.texts, length)
    return LabelRow(sample, reading, tuple(numbers[label] for label in sample.labels[: len(reading.places)]))


@dataclass(kw_only=True)
class LabelLesson(TextLesson[LabelRow]):
    r"""An opened task on a classifier.

    The loss of B samples is ``Σ −w(label) log p(label) / (B m)``, the sum over their labels and ``m`` the mean number
    of labels per sample of the whole data set: of texts 1, so that it is the mean cross-entropy per sample.

    Args:
        weights: w, one for each label; None: all weigh 1.
        previews: what previews judge, texts or pairs or words, and the caption of each.
    """

    weights: Sequence[float] | None
    previews: Sequence[tuple[tuple[str, ...], str]]

    def loss(self, numbers: Sequence[int]) -> Loss:
        """Returns the loss of the drawn samples ``numbers``."""
        rows = self.drawn(numbers)
        logits, wanted = self._judged(rows)
        weights = None if self.weights is None else torch.tensor(self.weights, device=logits.device)
        total = F.cross_entropy(logits, wanted, weight=weights, reduction="sum")
        return Loss(total / (len(rows) * self.mean_counted))

    def measured(self) -> Mapping[str, float]:
        """Returns the held-out loss per label, the share of right labels, and F1.

        F1 is that of entities where words have labels such as ``B-LOC``, else the mean over the labels.
        """
        total, right, made = 0.0, list[tuple[str, ...]](), list[tuple[str, ...]]()
        names = self.base.labels
        for rows in self.batches():
            logits, wanted = self._judged(rows)
            total += float(F.cross_entropy(logits, wanted, reduction="sum"))
            said = iter(logits.argmax(-1).tolist())
            for row in rows:
                right.append(tuple(names[label] for label in row.labels))
                made.append(tuple(names[next(said)] for _ in row.labels))
        flat = [(one, other) for both in zip(right, made, strict=True) for one, other in zip(*both, strict=True)]
        found = {"held_out_loss": total / len(flat), "accuracy": sum(one == other for one, other in flat) / len(flat)}
        if self.base.kind.name == "token-classifier" and is_of_entities(names):
            return found | {"entity_f1": entity_f1(right, made)}
        return found | {"macro_f1": macro_f1([one for one, _ in flat], [other for _, other in flat])}

    def preview(self) -> list[str]:
        """Judges what previews show with the adapter as it is now, through the one path for verdicts."""
        from studio.pipelines.verdicts import judge

        return [verdict.line for verdict in judge(self.base, [texts for texts, _ in self.previews], MEASURED)]

    def captions(self) -> list[str]:
        """Returns one line for each text of :meth:`preview`."""
        return [short(caption) for _, caption in self.previews]

    def _judged(self, rows: Sequence[LabelRow]) -> tuple[Tensor, Tensor]:
        """Returns the logits of all labels of rows, ``(N, C)``, and the right ones, int64 ``(N,)``."""
        logits = label_logits(self.base, [row.reading for row in rows])
        return logits, torch.tensor([label for row in rows for label in row.labels], device=logits.device)


def rehearsed_labels(stand: Stand) -> LabelLesson:
    """Returns the lesson on texts that say nothing, each with a label.

    Args:
        stand: what it is rehearsed with; ``keep_head`` is as of the task.
    """
    head = () if stand.own["keep_head"] else head_layers(stand.base.model)
    rows = [LabelRow(Labelled(1), stand.reading(less), (0,)) for less in (0, 1)]
    return LabelLesson(**{**stand.shared, "head": head}, samples=rows, held_out=[], weights=None, previews=[])
