"""Pairs of texts: what is read, and what is to be said of it, for sequence-to-sequence models.

The forms of a record:

- ``{"source": "...", "target": "..."}``, or the same as ``input`` and ``output``, or ``prompt`` and ``completion``;
- ``{"instruction": "...", "input": "...", "output": "..."}``: the instruction, an empty line, and the input are read;
- ``{"document": "...", "summary": "..."}``, also with ``article``, ``text`` or ``dialogue``, and ``highlights``;
- ``{"translation": {"en": "...", "de": "..."}}``: the first language is read, the second is to be said.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from studio.datasets.records import Record
from studio.datasets.samples import Sample, forms_missed, text_field
from studio.datasets.tables import with_value
from studio.errors import BadFile
from studio.shown import short

__all__ = ["Pair", "pair_of"]

READ: Final = ("source", "input", "prompt", "document", "article", "dialogue", "text")
SAID: Final = ("target", "output", "completion", "summary", "highlights")


@dataclass(frozen=True)
class Pair(Sample):
    """A text, and what is to be said of it.

    Args:
        line: its number in the source, from 1 on. source: what is read. target: what is to be said.
    """

    source: str = ""
    target: str = ""

    @property
    def content(self) -> Any:
        return [self.source, self.target]

    @property
    def given(self) -> Any:
        return self.source


def pair_of(record: Record) -> tuple[Pair, Collection[str]]:
    """Makes a pair of a record.

    Raises:
        BadFile: it is of none of the forms, of two of them, or one of the texts is empty.

    Example:
        >>> pair_of(Record(1, "x", {"article": "Long.", "highlights": "L."}))
        (Pair(line=1, source='Long.', target='L.'), ('article', 'highlights'))
    """
    entry, where = record.fields, record.where
    if "translation" in entry:
        return _translation(record), ("translation",)
    read, said = [name for name in READ if name in entry], [name for name in SAID if name in entry]
    if len(read) > 1 or len(said) > 1:
        names = " and ".join(map(repr, read if len(read) > 1 else said))
        raise BadFile(f"{where}: it has {names}; which one is meant?")
    if not said or not (read or "instruction" in entry):
        wanted = "source and target; instruction and output; document and summary; or translation"
        raise forms_missed(record, wanted, (*READ, *SAID, "instruction", "translation"))
    target = text_field(entry, said[0], where, answer=True)
    parts = [text_field(entry, name, where) for name in ("instruction", *read) if name in entry and entry[name] != ""]
    if not parts:
        raise BadFile(f"{where}: there is nothing to read: {(*read, 'instruction')[0]} is empty")
    known = tuple(name for name in ("instruction", *read, *said) if name in entry)
    return Pair(record.line, "\n\n".join(parts), target), known


def _translation(record: Record) -> Pair:
    pair = record.fields["translation"]
    languages = tuple(with_value(pair)) if isinstance(pair, Mapping) else ()
    if len(languages) != 2:
        raise BadFile(f"{record.where}: translation has a text in each of two languages, not {short(pair)}")
    source, target = languages
    return Pair(
        record.line, text_field(pair, source, record.where), text_field(pair, target, record.where, answer=True)
    )  # fmt: skip
