"""Records: what a data set holds before anyone asks what it is for, one set of named fields per sample.

A source is a file of one of the :data:`READERS`, told by its ending: ``.jsonl`` has one JSON object per line, ``.json``
a list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from studio.datasets.captions import LINE_END, MARKS
from studio.errors import BadFile
from studio.given import given_path, parse_json, read_given
from studio.shown import short

__all__ = ["READERS", "Record", "Records", "read_records", "source_name"]


@dataclass(frozen=True)
class Record:
    """One sample as it stands in its source.

    Args:
        line: its number in the source, from 1 on: of its line in a file of lines, else of its place.
        where: the same in words, for messages: ``"data.jsonl, line 3"``.
        fields: what it has, by name.
    """

    line: int
    where: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """The records of a source, in order.

    Args:
        source: what messages call it. folder: what paths inside its fields are relative to.
        items: the records.
    """

    source: str
    folder: Path
    items: tuple[Record, ...]


def read_records(source: str | Path) -> Records:
    """Reads all records of a source.

    Raises:
        BadFile: it cannot be read, has no record, or one that is no set of named fields; its place is told.
    """
    file = given_path(source)
    reader = READERS.get(file.suffix.lower(), READERS[".jsonl"])
    items = tuple(reader(file))
    if not items:
        raise BadFile(f"{file} has no sample: give one JSON object per line")
    return Records(str(file), file.parent, items)


def source_name(source: Any) -> str:
    """Returns what messages call a source: the name of its file.

    Args:
        source: what :func:`read_records` reads.
    """
    return Path(str(source)).name


def _json_lines(file: Path) -> Iterator[Record]:
    for number, content in enumerate(LINE_END.split(_text_of(file)), 1):
        if content.strip():
            where = f"{file}, line {number}"
            try:
                entry = parse_json(content)
            except ValueError as problem:
                array = number == 1 and content.lstrip().startswith("[")
                hint = "this is a JSON array; name the file .json, or write one object per line" if array else problem
                raise BadFile(f"{where}: not a JSON object: {hint}") from None
            yield _record(entry, number, where)


def _json_list(file: Path) -> Iterator[Record]:
    try:
        content = parse_json(_text_of(file))
    except ValueError as problem:
        raise BadFile(f"{file} is not JSON: {problem}") from None
    if not isinstance(content, list):
        raise BadFile(f"{file} holds {short(content)}, and a list of samples is asked for")
    for number, entry in enumerate(content, 1):
        yield _record(entry, number, f"{file}, entry {number}")


def _record(entry: Any, number: int, where: str) -> Record:
    if not isinstance(entry, dict):
        raise BadFile(f"{where}: a sample is a JSON object, not {short(entry)}")
    return Record(number, where, entry)


def _text_of(file: Path) -> str:
    """Reads UTF-8, with a mark or without, or UTF-16 with its mark."""
    try:
        data = read_given(file, "data-bytes")
    except FileNotFoundError:
        raise BadFile(f"there is no file {file}; check the path") from None
    except OSError as problem:
        raise BadFile(f"{file} cannot be read: {problem.strerror}") from problem
    except BadFile as problem:
        hint = "; name a JSONL file, with one JSON object per line" if file.is_dir() else ""
        raise BadFile(f"{file} {problem}{hint}") from None
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise BadFile(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from None


READERS: Final[dict[str, Callable[[Path], Iterator[Record]]]] = {".jsonl": _json_lines, ".json": _json_list}
"""Ending of a file -> what reads it; other endings are read as JSON lines."""
