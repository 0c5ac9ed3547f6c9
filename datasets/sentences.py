"""Texts that belong together: a text, one that means the same or answers it, and maybe one that does not.

The forms of a record:

- ``{"anchor": "...", "positive": "..."}``, with a ``negative`` or without one; also with ``query`` for ``anchor``;
- ``{"sentence1": "...", "sentence2": "..."}``, with a ``score`` of how close they are or without one;
- ``{"source": "...", "target": "..."}``.

Of pairs with scores those count that have at least half of the largest score (:func:`close_ones`); how close the others
are is not learned.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from studio.datasets.records import Record
from studio.datasets.samples import Sample, forms_missed, text_field
from studio.errors import BadFile
from studio.shown import short

__all__ = ["SentencePair", "close_ones", "closeness_limit", "sentences_of"]

FORMS: Final = (("anchor", "positive"), ("query", "positive"), ("sentence1", "sentence2"), ("source", "target"))
OTHERS: Final = {"positive": "negative", "sentence2": "score"}
"""The second field of a form -> what may stand beside it."""


@dataclass(frozen=True)
class SentencePair(Sample):
    """Two texts that belong together.

    Args:
        line: its number in the source, from 1 on.
        anchor: what is asked with. positive: what shall be near it.
        negative: what shall be far from it; "" where nothing is named.
        score: how close the two are, in the source's own measure; None: they belong together.
    """

    anchor: str = ""
    positive: str = ""
    negative: str = ""
    score: float | None = None

    @property
    def content(self) -> Any:
        return [self.anchor, self.positive, self.negative, self.score]

    @property
    def given(self) -> Any:
        return self.anchor


def sentences_of(record: Record) -> tuple[SentencePair, Collection[str]]:
    """Makes a pair of a record.

    Raises:
        BadFile: it is of none of the forms, or of two; a text is empty, the negative is the positive itself, or the
            score is no number.

    Example:
        >>> sentences_of(Record(1, "x", {"query": "Capital of Peru?", "positive": "Lima", "negative": "Oslo"}))[0]
        SentencePair(line=1, anchor='Capital of Peru?', positive='Lima', negative='Oslo', score=None)
        >>> sentences_of(Record(2, "x", {"sentence1": "A cat.", "sentence2": "A kitten.", "score": 4}))[0].score
        4.0
    """
    entry, where = record.fields, record.where
    found = [form for form in FORMS if all(name in entry for name in form)]
    if len(found) > 1:
        names = " and ".join(repr(name) for name in dict.fromkeys(name for form in found for name in form))
        raise BadFile(f"{where}: it has {names}; which are meant?")
    if not found:
        wanted = "anchor and positive; query and positive; sentence1 and sentence2; or source and target"
        fields = dict.fromkeys([*(name for form in FORMS for name in form), *OTHERS.values()])
        raise forms_missed(record, wanted, tuple(fields))
    first, second = found[0]
    other = OTHERS.get(second, "")
    known = (first, second, other) if other in entry else (first, second)
    anchor, positive = text_field(entry, first, where), text_field(entry, second, where)
    negative = text_field(entry, "negative", where) if "negative" in known else ""
    if negative == positive:
        raise BadFile(f"{where}: negative is the same text as positive: {short(positive)}")
    score = _score(entry["score"], where) if "score" in known else None
    return SentencePair(record.line, anchor, positive, negative, score), known


def closeness_limit(pairs: Sequence[SentencePair]) -> float | None:
    """Returns half of the largest score; None where no pair has one."""
    scores = [pair.score for pair in pairs if pair.score is not None]
    return max(scores) / 2 if scores else None


def close_ones(pairs: Sequence[SentencePair], limit: float | None, where: str) -> list[SentencePair]:
    """Returns the pairs without a score, and those whose score is at least the limit.

    Args:
        pairs: at least one. limit: what :func:`closeness_limit` says. where: what they are called in messages.

    Raises:
        BadFile: none is left, or no score is above zero, so that a half of the largest says nothing.

    Example:
        >>> pairs = [SentencePair(n, "a", "b", score=score) for n, score in enumerate((0.0, 2.5, 5.0))]
        >>> [pair.score for pair in close_ones(pairs, closeness_limit(pairs), "x")]
        [2.5, 5.0]
    """
    if limit is not None and limit <= 0:
        raise BadFile(f"no pair of {where} has a score above 0; give those that are close the larger scores")
    kept = [pair for pair in pairs if limit is None or pair.score is None or pair.score >= limit]
    if not kept:
        raise BadFile(f"no pair of {where} has a score of {limit:g} or more, half of the largest: none is close")
    return kept


def _score(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadFile(f"{where}: score must be a finite number, not {short(value)}")
    return number
