"""Records: what a data set holds before anyone asks what it is for, one set of named fields per sample.

A source is one of:

- a file of one of the :data:`READERS`, told by its ending: JSON lines (``.jsonl``, ``.ndjson``), a JSON list
  (``.json``), a table with a header (``.csv``, ``.tsv``), Parquet (``.parquet``), or plain text (``.txt``, ``.md``),
  each paragraph of which is a record with the field ``text``;
- a folder of source code (:mod:`studio.datasets.sources`), or of sounds or pictures with their texts
  (:mod:`studio.datasets.beside`);
- a data set of Hugging Face's ``datasets``, or any list of dicts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from studio.datasets.captions import LINE_END, MARKS
from studio.datasets.tables import parquet_rows, table_rows, with_value
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
        folder: where the paths of its fields begin; None: where the program runs.
    """

    line: int
    where: str
    fields: Mapping[str, Any]
    folder: Path | None = None


@dataclass(frozen=True)
class Records:
    """The records of a source, in order.

    Args:
        source: what messages call it.
        items: the records.
        notes: what was left aside, in sentences.
    """

    source: str
    items: tuple[Record, ...]
    notes: tuple[str, ...] = ()


def read_records(source: Any, called: str = "data") -> Records:
    """Reads all records of a source; of an object, as of a Parquet file, cells without a value are left out.

    Args:
        source: a path, a data set, or a list of dicts. called: what messages call an object.

    Raises:
        BadFile: it cannot be read, has no record, or one that is no set of named fields; its place is told.
        MissingPackage: what reads Parquet is not installed.
    """
    if not isinstance(source, (str, Path)):
        return Records(source_name(source, called), tuple(_of_objects(source, called)))
    path = given_path(source)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        from studio.datasets.beside import read_beside
        from studio.datasets.sources import read_code

        entries, notes = read_code(path)
        if not entries:
            entries, notes = read_beside(path)
        return Records(str(path), tuple(_record(entry, n, where) for n, (entry, where) in enumerate(entries, 1)), notes)
    read = READERS.get(path.suffix.lower(), _json_lines)(path)
    items = tuple(replace(record, folder=path.parent) for record in read)
    if not items:
        raise BadFile(f"{path} has no sample: give one JSON object per line")
    return Records(str(path), items)


def source_name(source: Any, called: str = "data") -> str:
    """Returns what messages call a source: the name of its file, ``called`` for an object.

    Args:
        source, called: as of :func:`read_records`.
    """
    return Path(source).name if isinstance(source, (str, Path)) else called


def _of_objects(source: Any, called: str) -> Iterator[Record]:
    """The rows of a data set, or of a list of dicts."""
    if isinstance(source, Mapping) and source:
        splits = [*map(str, source)]
        raise BadFile(f"the {called} has the splits {', '.join(splits)}: give one of them, {called}[{splits[0]!r}]")
    if not isinstance(source, Iterable) or isinstance(source, (bytes, bytearray)):
        raise BadFile(f"{called} is a path, a data set or a list of dicts, not a {type(source).__name__}")
    number = 0
    for number, entry in enumerate(_read(source, called), 1):
        there = with_value(entry) if isinstance(entry, Mapping) else entry
        yield _record(there, number, f"{called}, entry {number}")
    if not number:
        raise BadFile(f"the {called} has no sample")


def _read(source: Iterable[Any], called: str) -> Iterator[Any]:
    """The entries; a data set decodes sounds and pictures while it is read, which raises anything."""
    number = 1
    try:
        for entry in source:
            yield entry
            number += 1
    except Exception as problem:
        sentence = str(problem).strip().partition("\n")[0] or repr(problem)
        raise BadFile(f"{called}, entry {number} cannot be read: {sentence}") from problem


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
        raise BadFile(f"{file} is not JSON: {problem}; name a file of one JSON object per line .jsonl") from None
    if not isinstance(content, list):
        raise BadFile(f"{file} holds {short(content)}, and a list of samples is asked for")
    for number, entry in enumerate(content, 1):
        yield _record(entry, number, f"{file}, entry {number}")


def _table(file: Path) -> Iterator[Record]:
    for number, entry in table_rows(_text_of(file), "\t" if file.suffix.lower() == ".tsv" else ",", str(file)):
        yield _record(entry, number, f"{file}, line {number}")


def _parquet(file: Path) -> Iterator[Record]:
    for number, entry in enumerate(parquet_rows(_bytes_of(file), str(file)), 1):
        yield _record(entry, number, f"{file}, row {number}")


def _paragraphs(file: Path) -> Iterator[Record]:
    """Texts with blank lines between them; a record's line is that of its first."""
    text = LINE_END.sub("\n", _text_of(file))
    for found in re.finditer(r"(?:[^\n]*\S[^\n]*(?:\n|\Z))+", text):
        number = text.count("\n", 0, found.start()) + 1
        yield Record(number, f"{file}, line {number}", {"text": found[0].rstrip("\n")})


def _record(entry: Any, number: int, where: str) -> Record:
    if not isinstance(entry, Mapping):
        raise BadFile(f"{where}: a sample is a JSON object, not {short(entry)}")
    return Record(number, where, entry)


def _bytes_of(file: Path) -> bytes:
    try:
        return read_given(file, "data-bytes")
    except FileNotFoundError:
        raise BadFile(f"there is no file {file}; check the path") from None
    except OSError as problem:
        raise BadFile(f"{file} cannot be read: {problem.strerror}") from problem
    except BadFile as problem:
        raise BadFile(f"{file} {problem}") from None


def _text_of(file: Path) -> str:
    """Reads UTF-8, with a mark or without, or UTF-16 with its mark."""
    data = _bytes_of(file)
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise BadFile(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from None


READERS: Final[dict[str, Callable[[Path], Iterator[Record]]]] = {
    ".csv": _table, ".json": _json_list, ".jsonl": _json_lines, ".md": _paragraphs, ".ndjson": _json_lines,
    ".parquet": _parquet, ".tsv": _table, ".txt": _paragraphs,
}  # fmt: skip
"""Ending of a file -> what reads it; other endings are read as JSON lines."""
