"""Tables: rows of named cells, from texts with separators and from Parquet."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from studio.errors import BadFile
from studio.limits import limit
from studio.packages import need

__all__ = ["parquet_rows", "table_rows", "with_value"]


def table_rows(text: str, separator: str, where: str) -> Iterator[tuple[int, dict[str, str]]]:
    r"""Returns the rows of a table as named cells, each with the number of the line on which it ends.

    Args:
        text: the table, whose first row names the columns. separator: between cells. where: the file, for messages.

    Raises:
        BadFile: no header, a name that two columns have, or a row of another number of cells.

    Example:
        >>> list(table_rows('text,label\n"a, b",good\n', ",", "x.csv"))
        [(2, {'text': 'a, b', 'label': 'good'})]
    """
    before = csv.field_size_limit(limit("data-bytes"))
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        names = [name.strip() for name in next(rows, [])]
        _check_header(names, where)
        for row in rows:
            if row and len(row) != len(names):
                raise BadFile(
                    f"{where}, line {rows.line_num}: the row has {len(row)} cells and the header names {len(names)} "
                    f"({', '.join(names)}); put quotes around texts with {'tabs' if separator == chr(9) else 'commas'}"
                )
            if row:
                yield rows.line_num, dict(zip(names, row, strict=True))
    except csv.Error as problem:
        raise BadFile(f"{where}, line {rows.line_num}: not a table: {problem}") from None
    finally:
        csv.field_size_limit(before)


def _check_header(names: list[str], where: str) -> None:
    if not any(names):
        raise BadFile(f"{where} has no header: its first line names the columns (text,label)")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise BadFile(f"{where}: two columns are called {twice!r}; which one is meant?")


def parquet_rows(data: bytes, where: str) -> Iterator[dict[str, Any]]:
    """Returns the rows of a Parquet file; cells without a value are left out.

    Args:
        data: its bytes. where: the file, for messages.

    Raises:
        BadFile: it is no Parquet, or is damaged. MissingPackage: pyarrow is not installed.
    """
    parquet = need("pyarrow.parquet", "Parquet files", extra="llm")
    try:
        for batch in parquet.read_table(io.BytesIO(data)).to_batches(max_chunksize=1024):
            yield from map(with_value, batch.to_pylist())
    except Exception as problem:  # pyarrow has errors of many classes for damaged files
        sentence = str(problem).strip().splitlines()[0] if str(problem).strip() else repr(problem)
        raise BadFile(f"{where} cannot be read as Parquet: {sentence}; copy it again") from None


def with_value(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the cells that have a value: such tables give every row all columns.

    Args:
        row: all cells.

    Example:
        >>> with_value({"text": "a", "label": None})
        {'text': 'a'}
    """
    return {name: cell for name, cell in row.items() if cell is not None}
