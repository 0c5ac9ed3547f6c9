"""What a forecast plays of a task: the task's own lesson on samples that have sizes and say nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from studio.datasets import chat
from studio.families.language import LanguageBase
from studio.families.language.judging import Reading
from studio.trainers.language.lesson import MEASURED, TextLesson
from studio.trainers.language.texts import TokenRow

__all__ = ["USUAL_LENGTH", "Rehearsal", "Stand", "whole_rows"]

USUAL_LENGTH: Final = 512
"""Tokens of a sample where nothing is said."""

_ORDINARY: Final = 3  # a token that is no mark, and fills nothing up


@dataclass(frozen=True)
class Stand:
    """What a lesson is rehearsed with.

    Texts of a batch are hardly ever of one length, and what is filled up is left out by a mask, which is kept for the
    backward pass: so there are longest ones, and such as are a token shorter.

    Args:
        base: the base, with a tokenizer that reads nothing.
        shared: what every lesson takes.
        length: tokens of a text. answer: of what is said of it, where a decoder of its own says it.
        own: the task's own settings, by name.
    """

    base: LanguageBase
    shared: Mapping[str, Any]
    length: int
    answer: int
    own: Mapping[str, Any]

    @property
    def together(self) -> int:
        """Rows that the reference is asked about together."""
        return min(MEASURED, int(self.shared["plan"].batch_size))

    def row(self, less: int = 0) -> TokenRow:
        """Returns a text of which every token is learned, the most that there can be.

        Args:
            less: by how many tokens it is shorter than the longest.
        """
        length = max(self.length - less, 1)
        return TokenRow(chat.Sample(1), (1,) * length, (True,) * length)

    def reading(self, less: int = 0) -> Reading:
        """Returns a text as a classifier or an encoder reads it; some look for the end that it has.

        Args:
            less: by how many tokens it is shorter than the longest.
        """
        length = max(self.length - less, 1)
        end = getattr(self.base.model.config, "eos_token_id", None)
        last = end if isinstance(end, int) else _ORDINARY
        return Reading((_ORDINARY,) * (length - 1) + (last,), (0,) * length)


def whole_rows(rows: Sequence[Any], own: Mapping[str, Any]) -> dict[str, int]:
    """Returns the tokens of the longest row, where a row is one text.

    Args:
        rows: at least one. own: the task's settings.
    """
    return {"length": max(row.size for row in rows)}


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a task says of itself for a forecast.

    Which rows there are and how long, how many passes with a gradient and without one, and what becomes of the logits
    is not written down again: the lesson computes it.

    Args:
        kind: what its base is opened as, of :data:`studio.families.language.KINDS`.
        lesson: ``(stand) -> lesson`` on samples that say nothing.
        sizes: ``(rows, own) -> length, and answer`` that rows of the task have, by fields of a forecast's settings.
        options: the task's settings that decide what it takes (``own``), with the task's own defaults.
        labels: how many a head tells apart; 0 where there is none.
        length: tokens of a sample where nothing is said. least: ``(base, own) -> tokens`` of a sample at least.
        taken: what is taken for granted, in sentences.
    """

    kind: str
    lesson: Callable[[Stand], TextLesson[Any]]
    sizes: Callable[[Sequence[Any], Mapping[str, Any]], Mapping[str, int]] = whole_rows
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: int = 0
    length: int = USUAL_LENGTH
    least: Callable[[LanguageBase, Mapping[str, Any]], int] = lambda base, own: 2
    taken: tuple[str, ...] = ()
