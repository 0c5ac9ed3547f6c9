"""Samples: records that a task understands.

A *form* makes a sample of a record, or refuses it with the record's place: :mod:`studio.datasets.chat` has that of
causal language models, and each other task one of its own. A sample is a frozen dataclass over :class:`Sample`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Generic, TypeAlias, TypeVar

from studio.datasets.records import Record, read_records
from studio.errors import BadFile, nearest
from studio.given import is_blank
from studio.shown import short

__all__ = ["Form", "Sample", "Samples", "forms_missed", "read_samples", "samples_digest", "text_field"]


@dataclass(frozen=True)
class Sample(ABC):
    """One sample of a task.

    Args:
        line: its number in the source, from 1 on.
    """

    line: int

    @property
    @abstractmethod
    def content(self) -> Any:
        """All that it says, as JSON has it, without its place."""

    @property
    def given(self) -> Any:
        """Of the content, what is given before what is learned, as JSON has it; None where all is learned."""
        return None

    @property
    def label(self) -> str | None:
        """The class that it is of, where a task tells classes apart."""
        return None

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the content."""
        return hashlib.sha256(json.dumps(self.content).encode()).hexdigest()


S = TypeVar("S", bound=Sample)
Form: TypeAlias = Callable[[Record], "tuple[S, Collection[str]]"]
"""Makes a sample of a record and says which of its fields it has read; raises BadFile with the record's place."""


@dataclass(frozen=True)
class Samples(Generic[S]):
    """The samples of a source.

    Args:
        file: where they are from.
        items: the samples, in the source's order.
        unused: fields of the records that say nothing to the task ("id", "source"), with the number of records.
        notes: what of the source was left aside, in sentences.
    """

    file: str
    items: tuple[S, ...]
    unused: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_samples(source: Any, form: Form[S], called: str = "data") -> Samples[S]:
    """Reads the samples of a source; every record is checked before anything is trained.

    Args:
        source, called: as of :func:`studio.datasets.records.read_records`. form: that of the task.

    Raises:
        BadFile: as :func:`studio.datasets.records.read_records` and the form.
    """
    records = read_records(source, called)
    items, unused = [], dict[str, int]()
    for record in records.items:
        sample, known = form(record)
        items.append(sample)
        for name in record.fields:
            if name not in known:
                unused[name] = unused.get(name, 0) + 1
    return Samples(records.source, tuple(items), unused, records.notes)


def samples_digest(items: Sequence[Sample]) -> str:
    """SHA-256 (hex) over samples in order."""
    return hashlib.sha256("\n".join(sample.digest for sample in items).encode()).hexdigest()


def text_field(
    entry: Mapping[str, Any], name: str, where: str, *, answer: bool = False, empty: bool = False
) -> str:  # fmt: skip
    """Returns a field that is a text.

    Args:
        entry: the fields. name: the field's. where: the record's place.
        answer: it is what is learned. empty: it may be blank.

    Raises:
        BadFile: it is no text, or blank.
    """
    value = entry[name]
    if not isinstance(value, str):
        raise BadFile(f"{where}: {name} must be a text, not {short(value)}")
    if not empty and is_blank(value):
        raise BadFile(f"{where}: {'the sample has no answer: ' if answer else ''}{name} is empty")
    return value


_ALIKE: Final = 0.6
"""How alike a field and a known one are at least, for one to be meant by the other."""


def forms_missed(record: Record, wanted: str, fields: Sequence[str]) -> BadFile:
    """The refusal of a record that is of no form of a task.

    Args:
        record: the record. wanted: the forms in words, "source and target, or text and summary".
        fields: the names of all their fields, of which the nearest is suggested.

    Example:
        >>> print(forms_missed(Record(1, "x.jsonl, line 1", {"txet": 1}), "text and label", ("text", "label")))
        x.jsonl, line 1: a sample has text and label; found: 'txet'; did you mean 'text' by 'txet'?
    """
    others = [name for name in record.fields if name not in fields]
    close = [(name, field) for name in others for field in nearest(name, fields, 1, _ALIKE)]
    hint = f"; did you mean {close[0][1]!r} by {close[0][0]!r}?" if close else ""
    found = ", ".join(map(repr, record.fields)) or "nothing"
    return BadFile(f"{record.where}: a sample has {wanted}; found: {found}{hint}")
