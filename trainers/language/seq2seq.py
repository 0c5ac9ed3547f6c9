"""The lesson on sequence-to-sequence models: what is said of what is read, measured on held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.datasets.pairs import Pair
from studio.families.language import LanguageBase
from studio.trainers.language.choices import chosen
from studio.trainers.language.lesson import MEASURED, TokenLesson, exact_match
from studio.trainers.language.rehearsal import Stand
from studio.trainers.language.rows import short
from studio.trainers.language.texts import IGNORED

__all__ = [
    "PairRow",
    "Seq2SeqLesson",
    "encode_pair",
    "filled",
    "pair_loss",
    "pair_sizes",
    "rehearsed_pairs",
    "shortened",
]


@dataclass(frozen=True)
class PairRow:
    """A pair as token numbers, all of the second of which are learned.

    Args:
        sample: what it is of.
        read: token numbers of what is read.
        said: those of what is to be said, its end included.
        lost: how many tokens were cut off at the ends.
    """

    sample: Pair
    read: tuple[int, ...]
    said: tuple[int, ...]
    lost: int = 0

    @property
    def size(self) -> int:
        """Its tokens."""
        return len(self.read) + len(self.said)

    @property
    def counted(self) -> int:
        """Its learned tokens."""
        return len(self.said)

    def ends(self, base: LanguageBase) -> bool:
        """Whether the last token ends an answer."""
        return self.said[-1] in base.ends


def encode_pair(pair: Pair, base: LanguageBase, length: int) -> PairRow:
    """Turns a pair into token numbers, at most ``length`` on either side.

    What is too long loses tokens before its last mark, so that both sides still end as the base knows it.

    Args:
        pair: the pair. base: whose tokenizer counts. length: tokens of a side at most.
    """
    read, said = base.reads(pair.source), base.says(pair.target)
    lost = max(len(read) - length, 0) + max(len(said) - length, 0)
    return PairRow(pair, shortened(read, length), shortened(said, length), lost)


def shortened(tokens: Sequence[int], length: int) -> tuple[int, ...]:
    """Returns at most ``length`` tokens; what is too long loses those before its last.

    Args:
        tokens: a text. length: tokens at most.
    """
    return tuple(tokens) if len(tokens) <= length else (*tokens[: length - 1], tokens[-1])


def pair_loss(base: LanguageBase, rows: Sequence[PairRow]) -> tuple[Tensor, int]:
    """Returns the sum of the losses of what is to be said, and the number of its tokens.

    Args:
        base: the base. rows: B pairs.
    """
    device = base.model.device
    tokens, mask = filled([row.read for row in rows], base.pad)
    labels, _ = filled([row.said for row in rows], IGNORED)
    labels = labels.to(device)
    # what the decoder begins with is the model's own matter (M2M100 and mBART have each their way), so it gets labels
    logits = base.model(
        input_ids=tokens.to(device), attention_mask=mask.to(device), labels=labels, use_cache=False
    ).logits  # fmt: skip
    kept = labels != IGNORED
    return F.cross_entropy(logits[kept].float(), labels[kept], reduction="sum"), int(kept.sum())


def filled(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Returns rows of equal length, filled up on the right, and the mask of what is not filling; each int64 ``(B, T)``.

    Args:
        rows: B texts. fill: the number that fills up.
    """
    length = max(map(len, rows))
    tokens = torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return tokens, mask


@dataclass(kw_only=True)
class Seq2SeqLesson(TokenLesson[PairRow]):
    r"""An opened task on a sequence-to-sequence model.

    Args:
        previews: (text, caption) of what previews read.
        choices: all answers that there are, where the likeliest of them counts as what is said; none: whatever is said.
    """

    previews: Sequence[tuple[str, str]]
    choices: Sequence[str] = ()

    def summed(self, rows: Sequence[PairRow]) -> tuple[Tensor, int]:
        return pair_loss(self.base, rows)

    def judged(self) -> dict[str, float]:
        """Returns which share of the held-out pairs is said exactly right."""
        found = dict[str, float]()
        if self.asked:
            made = self._said([row.sample.source for row in self.asked], self._longest)
            found = exact_match(made, [row.sample.target for row in self.asked])
        if self.choices:
            pairs = [row.sample for row in self.held_out if not row.lost]
            asked = [(pair.source, False) for pair in pairs]
            found |= chosen(self.base, asked, [pair.target for pair in pairs], self.choices, MEASURED)
        return found

    def preview(self) -> list[str]:
        """Says what previews read with the adapter as it is now, through the one path for texts."""
        return self._said([text for text, _ in self.previews], self.preview_tokens)

    def captions(self) -> list[str]:
        """Returns one line for each text of :meth:`preview`."""
        return [short(caption) for _, caption in self.previews]

    @property
    def _longest(self) -> int:
        return 4 + max(len(row.said) for row in self.asked)

    def _said(self, texts: Sequence[str], most: int) -> list[str]:
        from studio.pipelines.write import write

        made = write(self.base, texts, chat=False, max_new_tokens=most, batch_size=MEASURED)
        return [text for text, _, _ in made]


def rehearsed_pairs(stand: Stand) -> Seq2SeqLesson:
    """Returns the lesson on pairs that say nothing.

    Args:
        stand: what it is rehearsed with.
    """
    rows = [PairRow(Pair(1), stand.row(less).tokens, (1,) * stand.answer) for less in (0, 1)]
    return Seq2SeqLesson(**stand.shared, samples=rows, held_out=[], previews=[], answers=0, preview_tokens=1)


def pair_sizes(rows: Sequence[PairRow], own: Mapping[str, Any]) -> dict[str, int]:
    """Returns the tokens of the longest text that is read, and of the longest that is said.

    Args:
        rows: at least one. own: the task's settings.
    """
    return {"length": max(len(row.read) for row in rows), "answer": max(len(row.said) for row in rows)}
