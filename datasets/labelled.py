"""Labelled texts: what a classifier learns, a label of a text, of a pair of texts, or of each word.

The forms of a record:

- ``{"text": "...", "label": "..."}``, or the same with ``sentence``;
- ``{"sentence1": "...", "sentence2": "...", "label": "..."}``, or ``premise`` and ``hypothesis``: a pair;
- ``{"tokens": ["...", ...], "tags": ["...", ...]}``, or the same with ``words`` or ``ner_tags``: a label of each word.

A label is a text or a whole number; blanks around it do not count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from studio.datasets.records import Record
from studio.datasets.samples import Sample, forms_missed, text_field
from studio.errors import BadFile
from studio.given import is_blank
from studio.limits import limit
from studio.shown import short

__all__ = ["Labelled", "labelled_of", "sorted_labels"]

TEXTS: Final = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("text",), ("sentence",))
WORDS: Final = ("tokens", "words")
TAGS: Final = ("tags", "ner_tags")


@dataclass(frozen=True)
class Labelled(Sample):
    """A text, a pair of texts, or words, with what is to be said of them.

    Args:
        line: its number in the source, from 1 on.
        form: ``"text"``, ``"pair"`` or ``"words"``.
        texts: the text, the two of a pair, or the words.
        labels: the label, or one for each word.
    """

    form: str = "text"
    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def content(self) -> Any:
        return [self.form, self.texts, self.labels]

    @property
    def given(self) -> Any:
        return [self.form, self.texts]

    @property
    def label(self) -> str | None:
        return None if self.form == "words" else self.labels[0]


def labelled_of(record: Record) -> tuple[Labelled, Collection[str]]:
    """Makes a labelled text of a record.

    Raises:
        BadFile: it is of none of the forms, or of two, has an empty text, no label, or not one label for each word.

    Example:
        >>> labelled_of(Record(1, "x", {"text": "Call now!", "label": "spam"}))[0].labels
        ('spam',)
        >>> labelled_of(Record(2, "x", {"tokens": ["in", "Accra"], "tags": ["O", "B-LOC"]}))[0].form
        'words'
    """
    entry, where = record.fields, record.where
    words, tags = ([name for name in names if name in entry] for names in (WORDS, TAGS))
    found = [form for form in TEXTS if all(name in entry for name in form)]
    if len(found) + len(words) > 1:
        names = " and ".join(repr(name) for form in (*found, words) for name in form)
        raise BadFile(f"{where}: it has {names}; which one is meant?")
    if words and tags:
        return Labelled(record.line, "words", *_tagged(record, words[0], tags[0])), (words[0], tags[0])
    if not found or "label" not in entry:
        wanted = "text and label; sentence1, sentence2 and label; premise, hypothesis and label; or tokens and tags"
        raise forms_missed(record, wanted, (*WORDS, *TAGS, "label", *(name for form in TEXTS for name in form)))
    texts = tuple(text_field(entry, name, where) for name in found[0])
    form = "pair" if len(texts) > 1 else "text"
    return Labelled(record.line, form, texts, (_label(entry["label"], "label", where),)), (*found[0], "label")


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Returns each label once, in order: whole numbers by their value, else texts.

    Example:
        >>> sorted_labels(["spam", "ham", "spam"]), sorted_labels(["10", "2"])
        (('ham', 'spam'), ('2', '10'))
    """
    found = set(labels)
    return tuple(sorted(found, key=lambda label: (int(label), label)) if all(map(_is_whole, found)) else sorted(found))


def _tagged(record: Record, words: str, tags: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns words and their labels."""
    given, said, where = record.fields[words], record.fields[tags], record.where
    for name, value in ((words, given), (tags, said)):
        if not isinstance(value, list):
            raise BadFile(f"{where}: {name} must be a list with one entry for each word, not {short(value)}")
    if not given:
        raise BadFile(f"{where}: {words} is empty")
    if len(given) != len(said):
        raise BadFile(f"{where}: it has {len(given)} {words} and {len(said)} {tags}; give one of {tags} for each word")
    for number, word in enumerate(given, 1):
        if not isinstance(word, str) or is_blank(word):
            raise BadFile(f"{where}: word {number} of {words} must be a text that is not empty, not {short(word)}")
    return tuple(given), tuple(_label(tag, f"entry {number} of {tags}", where) for number, tag in enumerate(said, 1))


def _label(value: Any, name: str, where: str) -> str:
    """Returns a label as a text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # what tables make of whole numbers
        value = int(value)
    if isinstance(value, str) and not is_blank(value):
        return value.strip()
    if isinstance(value, int) and abs(value) < 10 ** limit("number-digits"):
        return str(value)
    some = "; a sample has one label" if isinstance(value, list) else ""
    raise BadFile(f"{where}: {name} must be a text or a whole number, not {short(value)}{some}")


def _is_whole(label: str) -> bool:
    digits = label.removeprefix("-")
    return digits.isdecimal() and len(digits) <= limit("number-digits")
