"""The entries of a list, out of a YAML, CSV or JSONL file or out of tables of Python, each with its place."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from studio.errors import BadConfig, BadFile, nearest
from studio.given import given_path, parse_json, read_given
from studio.pipelines.rendering.job import FIELDS
from studio.pipelines.rendering.yaml_file import parse_yaml

__all__ = ["Entry", "Written", "written"]

TOP: Final = ("jobs", "defaults", "adapters", "base", "axes")
"""What a list may say besides its jobs."""


@dataclass(frozen=True)
class Entry:
    """One entry: where it stands and what it says, or why that cannot be read."""

    where: str
    values: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Written:
    """A list as it was written.

    Args:
        entries: its entries.
        folder: where its paths are looked for first; ``Path()``: nowhere else than from here.
        defaults: the fields of jobs that do not say otherwise. adapters: files by name.
        axes: what every job is multiplied by.
    """

    entries: list[Entry]
    folder: Path = Path()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Any] = field(default_factory=dict)


def written(jobs: Any) -> Written:
    """Reads a list of jobs as far as its entries.

    Args:
        jobs: a file, a table with the keys of a YAML file, or one table per job.

    Raises:
        BadFile: the file is missing, too large, or cannot be read as a whole.
        BadConfig: it is no list of jobs.
    """
    if isinstance(jobs, Mapping):
        return _of_table(jobs, "the list", Path(), lambda number: f"job {number}")
    if isinstance(jobs, (str, Path)):
        file = given_path(jobs, "jobs")
        read = _READERS.get(file.suffix.lower())
        if read is None:
            raise BadFile(f"{file} is no list of jobs: its name must end with {', '.join(_READERS)}, as its form is")
        return read(file, _text(file))
    if isinstance(jobs, bytes) or not isinstance(jobs, Sequence):
        raise BadConfig(f"jobs are a file, or one table per job in a list, not {repr(jobs)[:80]}")
    return Written([Entry(f"job {number}", values) for number, values in enumerate(jobs)])


def _text(file: Path) -> str:
    try:
        return read_given(file, "data-bytes").decode("utf-8-sig")
    except FileNotFoundError:
        raise BadFile(f"there is no list of jobs {file}") from None
    except OSError as problem:
        raise BadFile(f"{file} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise BadFile(f"{file} is not UTF-8 (byte {problem.start}): save it as that") from None
    except BadFile as problem:
        raise BadFile(f"{file} {problem}") from None


def _yaml(file: Path, text: str) -> Written:
    content, line_of = parse_yaml(text, str(file))
    return _of_table(content, str(file), file.parent, lambda number: f"{file.name} line {line_of(number)}")


def _of_table(content: Any, what: str, folder: Path, where: Callable[[int], str]) -> Written:
    """A list with what holds for all of its jobs beside them."""
    if isinstance(content, list):
        content = {"jobs": content}
    if not isinstance(content, Mapping) or not isinstance(content.get("jobs"), (list, tuple)):
        raise BadConfig(f"{what} holds no jobs: write them in a list under 'jobs:', or as a list alone")
    unknown = next((str(name) for name in content if name not in TOP), None)
    if unknown is not None:
        close = nearest(unknown, TOP, 1)[0]
        known = ", ".join(TOP)
        raise BadConfig(f"{what} says {unknown[:80]!r}, which means nothing here; did you mean {close!r}? ({known})")
    tables = {name: content.get(name) or {} for name in ("defaults", "adapters", "axes")}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise BadConfig(f"{what}: {name} is no table: {repr(table)[:80]}")
    base = {} if content.get("base") is None else {"base": content["base"]}
    entries = [Entry(where(number), values) for number, values in enumerate(content["jobs"])]
    return Written(entries, folder, {**base, **tables["defaults"]}, tables["adapters"], tables["axes"])


def _jsonl(file: Path, text: str) -> Written:
    return Written(list(_lines(file, text)), file.parent)


def _lines(file: Path, text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{file.name} line {number}"
        if not line.strip():
            continue
        try:
            yield Entry(where, parse_json(line))
        except ValueError as error:
            yield Entry(where, error=f"{where} is not valid JSON: {error}")


def _csv(file: Path, text: str) -> Written:
    rows = _rows(file, text)
    head = next((row for _, row in rows if isinstance(row, list)), None)
    return Written([] if head is None else list(_cells(rows, _checked(file, head))), file.parent)


def _rows(file: Path, text: str) -> Iterator[tuple[str, list[str] | str]]:
    """Every row that is not empty, with its place; instead of one that cannot be read, why."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        where = f"{file.name} line {reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, f"{where} is no row of a table: {error}"
            continue
        if any(cell.strip() for cell in row):
            yield where, row


def _cells(rows: Iterator[tuple[str, list[str] | str]], head: Sequence[str]) -> Iterator[Entry]:
    for where, row in rows:
        if isinstance(row, str):
            yield Entry(where, error=row)
        elif len(row) != len(head):
            many = f"{where} has {len(row)} cells and the first line {len(head)}"
            yield Entry(where, error=f"{many}; put quotes around what holds a comma")
        else:  # an empty cell says nothing
            yield Entry(where, {name: cell for name, cell in zip(head, row, strict=True) if cell})


def _checked(file: Path, row: Sequence[str]) -> list[str]:
    """The names of the columns.

    Raises:
        BadFile: one that no job has, or one twice.
    """
    head = [cell.strip() for cell in row]
    known = [*FIELDS, "seeds", "adapters"]
    wrong = next((name for name in head if name not in known and not name.startswith("strength:")), None)
    if wrong is not None:
        close, names = nearest(wrong, known, 1)[0], ", ".join(known)
        raise BadFile(
            f"{file}: its first line names the columns, and no job has {wrong[:80]!r}; did you mean {close!r}? "
            f"(columns: {names}, strength:NAME)"
        )
    if len(set(head)) < len(head):
        raise BadFile(f"{file}: its first line names a column twice; which one is meant?")
    return head


_READERS: Final[Mapping[str, Callable[[Path, str], Written]]] = {
    ".yaml": _yaml, ".yml": _yaml, ".csv": _csv, ".jsonl": _jsonl,
}  # fmt: skip
