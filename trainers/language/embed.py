"""The lesson on sentence embeddings: a text's partner is near it, and the partners of other texts are far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from studio.datasets.sentences import SentencePair
from studio.families.language import LanguageBase
from studio.families.language.encoding import check_encodes, embeddings
from studio.families.language.judging import Reading, read_texts
from studio.trainers.language.lesson import MEASURED, TextLesson
from studio.trainers.language.rehearsal import Stand
from studio.trainers.language.rows import short
from studio.trainers.loop.mode import evaluating
from studio.trainers.loop.task import Loss

__all__ = [
    "EmbedLesson",
    "SentenceRow",
    "encode_sentences",
    "info_nce",
    "ranks_of",
    "rehearsed_sentences",
    "sentence_sizes",
    "told_apart",
]

SHOWN: Final = 4  # anchors of which previews say the nearest text
AMONG: Final = 64  # texts among which previews look for it


@dataclass(frozen=True)
class SentenceRow:
    """A pair as token numbers.

    Args:
        sample: what it is of. anchor, positive: the two texts. negative: the third one, where it is named.
    """

    sample: SentencePair
    anchor: Reading
    positive: Reading
    negative: Reading | None

    @property
    def size(self) -> int:
        """Its tokens."""
        return sum(len(one.tokens) for one in self.texts)

    @property
    def counted(self) -> int:
        """1: a pair is one decision."""
        return 1

    @property
    def lost(self) -> int:
        """How many tokens were cut off."""
        return sum(one.lost for one in self.texts)

    def ends(self, base: LanguageBase) -> bool:
        """Nothing is written, so nothing has to end."""
        return True

    @property
    def texts(self) -> list[Reading]:
        """The two texts, and the third one where it is named."""
        return [self.anchor, self.positive, *([] if self.negative is None else [self.negative])]


def encode_sentences(sample: SentencePair, base: LanguageBase, length: int) -> SentenceRow:
    """Turns a pair into token numbers, at most ``length`` of each text.

    Args:
        sample: the pair. base: whose tokenizer counts. length: tokens of a text at most.
    """
    anchor, positive = (read_texts(base, [text], length) for text in (sample.anchor, sample.positive))
    return SentenceRow(
        sample, anchor, positive, read_texts(base, [sample.negative], length) if sample.negative else None
    )


def told_apart(group: Sequence[SentenceRow]) -> tuple[list[Reading], Tensor]:
    """Returns the texts that the anchors of a group choose from, and which of them each may choose.

    The texts are the N positives, of which the i-th is anchor i's, and the C − N negatives behind them. An anchor does
    not choose from a text that is right as well: its own positive or itself once more, or the positive of an equal
    anchor.

    Args:
        group: N pairs.

    Returns:
        The texts, and a mask, bool ``(N, C)``.
    """
    pairs = [row.sample for row in group]
    denied = [row for row in group if row.negative is not None]
    readings = [row.positive for row in group] + [row.negative for row in denied if row.negative is not None]
    texts = [pair.positive for pair in pairs] + [row.sample.negative for row in denied]
    rights = [{pair.anchor} | {one.positive for one in pairs if one.anchor == pair.anchor} for pair in pairs]
    may = [[text not in right for text in texts] for right in rights]
    for place in range(len(group)):
        may[place][place] = True
    return readings, torch.tensor(may)


def info_nce(anchors: Tensor, texts: Tensor, may: Tensor, right: Sequence[int], temperature: float) -> Tensor:
    r"""Returns the loss of each anchor, ``(A,)``: ``−log( exp(a·p/τ) / Σ exp(a·t/τ) )`` (InfoNCE, arXiv:2104.08821).

    Args:
        anchors: vectors of length 1, ``(A, D)``. texts: the same, ``(C, D)``. may: which texts t an anchor chooses
            from, bool ``(A, C)``. right: the number of its own, p. temperature: τ.

    Example:
        >>> eye = torch.eye(2)
        >>> info_nce(eye, eye, torch.ones(2, 2, dtype=torch.bool), [0, 1], 1.0)  # log(1 + 1/e)
        tensor([0.3133, 0.3133])
    """
    scores = (anchors @ texts.mT / temperature).masked_fill(~may.to(anchors.device), -torch.inf)
    return scores.logsumexp(-1) - scores[torch.arange(len(right)), list(right)]


def ranks_of(scores: Tensor, pairs: Sequence[SentencePair]) -> list[int]:
    """Returns the place, from 1 on, that each anchor's positive has among all different positives.

    Texts that are as near as the right one stand before it; other right texts of an equal anchor do not count.

    Args:
        scores: how near the anchor is to each pair's positive, ``(N, N)``. pairs: N of them.
    """
    rights: dict[str, set[str]] = {}
    for pair in pairs:
        rights.setdefault(pair.anchor, set()).add(pair.positive)
    first = {pair.positive: place for place, pair in reversed(list(enumerate(pairs)))}
    return [
        1 + sum(row[place] >= row[own] for text, place in first.items() if text not in rights[pair.anchor])
        for own, (row, pair) in enumerate(zip(scores.tolist(), pairs, strict=True))
    ]


@dataclass(kw_only=True)
class EmbedLesson(TextLesson[SentenceRow]):
    r"""An opened task on sentence embeddings.

    The loss of B pairs is the mean of :func:`info_nce`. What an anchor chooses from is usually "the other pairs of the
    batch", which would make the loss depend on how a step is cut into passes and processes. Here the drawn samples
    stand in groups of ``G`` by their running numbers, sample n in group ``⌊n / G⌋``, and it chooses from the texts of
    its group: a pure function of (seed, n). A pass that holds a part of a group computes the texts of all of it, so
    accumulation and processes change nothing; where whole groups share a pass, each text is computed once.

    Args:
        pooling: what makes a text's vector. temperature: τ. group: G.
    """

    pooling: str
    temperature: float
    group: int

    def loss(self, numbers: Sequence[int]) -> Loss:
        """Returns the loss of the drawn samples ``numbers``."""
        groups: dict[int, list[int]] = {}
        for n in numbers:
            groups.setdefault(n // self.group, []).append(n % self.group)
        losses = [
            self._losses(self.drawn(range(number * self.group, (number + 1) * self.group)), places)
            for number, places in groups.items()
        ]
        return Loss(torch.cat(losses).mean())

    def _losses(self, group: Sequence[SentenceRow], places: Sequence[int]) -> Tensor:
        """The losses of some pairs of a group."""
        readings, may = told_apart(group)
        anchors = self._vectors([group[place].anchor for place in places])
        return info_nce(anchors, self._vectors(readings), may[list(places)], places, self.temperature)

    def _vectors(self, readings: Sequence[Reading]) -> Tensor:
        return embeddings(self.base, readings, self.pooling)

    def measured(self) -> Mapping[str, float]:
        """Returns figures of the held-out pairs.

        The loss, in groups in their order; the share of anchors whose own positive is the nearest of all held-out
        positives; and the mean reciprocal rank among them.
        """
        total = 0.0
        for begin in range(0, len(self.held_out), self.group):
            group = self.held_out[begin : begin + self.group]
            total += float(self._losses(group, range(len(group))).sum())
        ranks = ranks_of(self._nearness(self.held_out), [row.sample for row in self.held_out])
        return {
            "held_out_loss": total / len(ranks), "recall_at_1": ranks.count(1) / len(ranks),
            "reciprocal_rank": sum(1 / rank for rank in ranks) / len(ranks),
        }  # fmt: skip

    def _nearness(self, rows: Sequence[SentenceRow]) -> Tensor:
        """The cosines of all anchors to all positives, ``(N, N)`` on the CPU."""
        sides = ([row.anchor for row in rows], [row.positive for row in rows])
        anchors, positives = (
            torch.cat([self._vectors(side[begin : begin + MEASURED]).cpu() for begin in range(0, len(side), MEASURED)])
            for side in sides
        )
        return anchors @ positives.mT

    def preview(self) -> list[str]:
        """Says the nearest text for a few anchors, with the adapter as it is now."""
        rows = self._shown
        with torch.no_grad(), evaluating([self.model]):
            nearest = self._nearness(rows).argmax(-1).tolist()[:SHOWN]
        return [short(rows[place].sample.positive) for place in nearest]

    def captions(self) -> list[str]:
        """Returns one line for each text of :meth:`preview`."""
        pairs = [row.sample for row in self._shown[:SHOWN]]
        return [f"{short(pair.anchor)} (wanted: {short(pair.positive)})" for pair in pairs]

    @property
    def _shown(self) -> Sequence[SentenceRow]:
        return (self.held_out or self.samples)[:AMONG]


def rehearsed_sentences(stand: Stand) -> EmbedLesson:
    """Returns the lesson on pairs of texts that say nothing, none with a third one.

    Args:
        stand: what it is rehearsed with; ``pooling`` and ``group`` are as of the task.

    Raises:
        DoesNotFit: the base cannot be pooled so.
    """
    check_encodes(stand.base, stand.own["pooling"])
    rows = [SentenceRow(SentencePair(1), stand.reading(less), stand.reading(less), None) for less in (0, 1)]
    return EmbedLesson(**stand.shared, **stand.own, samples=rows, held_out=[], temperature=1.0)


def sentence_sizes(rows: Sequence[SentenceRow], own: Mapping[str, Any]) -> dict[str, int]:
    """Returns the tokens of the longest text.

    Args:
        rows: at least one. own: the task's settings.
    """
    return {"length": max(len(one.tokens) for row in rows for one in row.texts)}
