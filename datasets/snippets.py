"""Snippets of code with a hole: what stands before it, what fills it, what stands behind.

The forms of a record:

- ``{"prefix": "...", "middle": "...", "suffix": "..."}``: the hole is given; prefix or suffix may be empty;
- ``{"code": "..."}``, also ``content`` or ``text``: whole code, in which holes are made.

References:
    | Efficient Training of Language Models to Fill in the Middle (Bavarian et al., 2022), arXiv:2207.14255
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from studio.datasets.records import Record
from studio.datasets.samples import Sample, forms_missed, text_field
from studio.errors import BadFile

__all__ = ["Snippet", "snippet_of"]

WHOLE: Final = ("code", "content", "text")
PARTS: Final = ("prefix", "middle", "suffix")
MOST_LINES: Final = 6


@dataclass(frozen=True)
class Snippet(Sample):
    """Code with a hole, or whole code.

    Args:
        line: its number in the source, from 1 on.
        prefix: before the hole. middle: what fills it; "" for whole code, which stands in ``prefix``.
        suffix: behind it.
    """

    prefix: str = ""
    middle: str = ""
    suffix: str = ""

    @property
    def content(self) -> Any:
        return [self.prefix, self.middle, self.suffix]

    @property
    def given(self) -> Any:
        return [self.prefix, self.suffix]

    def holes(self, count: int) -> Iterator[Snippet]:
        """Makes holes in whole code: of one to six lines, or of a part of a single line.

        Which ones follows from the code alone, so they are the same in every run. A snippet whose hole is given is
        returned as it is.

        Args:
            count: how many.

        Example:
            >>> for one in Snippet(1, "a = 1\\nb = 2\\nc = 3\\n").holes(2):
            ...     print([one.prefix, one.middle, one.suffix])
            ['', 'a = 1\\n', 'b = 2\\nc = 3\\n']
            ['a = 1\\nb = 2\\n', 'c = 3\\n', '']
        """
        if self.middle:
            yield self
            return
        draw = Random(self.digest)
        lines = self.prefix.splitlines(keepends=True)
        places = [n for n, line in enumerate(lines) if line.strip()]
        seen = set[tuple[int, int]]()
        for _ in range(count):
            if len(lines) == 1:
                begin = draw.randrange(len(self.prefix) - len(self.prefix.lstrip()), len(self.prefix.rstrip()))
                end = draw.randrange(begin + 1, len(self.prefix.rstrip()) + 1)
            else:
                first = draw.choice(places)
                last = min(first + draw.randint(1, min(MOST_LINES, len(lines) - 1)), len(lines))
                begin, end = sum(map(len, lines[:first])), sum(map(len, lines[:last]))
            if (begin, end) not in seen:
                seen.add((begin, end))
                yield Snippet(self.line, self.prefix[:begin], self.prefix[begin:end], self.prefix[end:])


def snippet_of(record: Record) -> tuple[Snippet, Collection[str]]:
    """Makes a snippet of a record.

    Raises:
        BadFile: it is of none of the forms or of two of them, or what fills the hole is empty.
    """
    entry, where = record.fields, record.where
    whole = [name for name in WHOLE if name in entry]
    if "middle" in entry and not whole:
        around = {name: text_field(entry, name, where, empty=True) for name in ("prefix", "suffix") if name in entry}
        middle = text_field(entry, "middle", where, answer=True)
        if not any(around.values()):
            raise BadFile(f"{where}: nothing stands around the hole: give a prefix or a suffix")
        return Snippet(record.line, around.get("prefix", ""), middle, around.get("suffix", "")), PARTS
    if len(whole) != 1:
        if whole:
            raise BadFile(f"{where}: it has {' and '.join(map(repr, whole))}; which one is meant?")
        raise forms_missed(record, "prefix, middle and suffix; or code", (*WHOLE, *PARTS))
    if "middle" in entry:
        raise BadFile(f"{where}: it has {whole[0]!r} and also 'middle'; which one is meant?")
    return Snippet(record.line, text_field(entry, whole[0], where)), whole
