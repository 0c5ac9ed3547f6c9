"""Folders of source code: every file is a record with the field ``code``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from studio.datasets.walk import SkippedFile, files_below
from studio.errors import BadFile
from studio.given import is_blank, read_given

__all__ = ["CODE", "read_code"]

CODE: Final = frozenset(
    ".c .cc .cpp .cs .css .go .h .hpp .html .java .js .jsx .kt .lua .php .pl .py .r .rb .rs .scala .sh .sql .swift .ts "
    ".tsx .vue".split()
)
"""Endings of files of code."""


def read_code(folder: Path) -> tuple[list[tuple[dict[str, Any], str]], tuple[str, ...]]:
    """Reads the code below a folder.

    Args:
        folder: the folder.

    Returns:
        The fields and the place of each file, sorted by path, and what was left aside, in sentences.
    """
    skipped: list[SkippedFile] = []
    made: list[tuple[dict[str, Any], str]] = []
    for file in files_below(folder, skipped):
        if file.suffix.lower() not in CODE:
            continue
        try:
            text = read_given(file, "caption-bytes").decode("utf-8-sig")
        except BadFile as problem:
            skipped.append(SkippedFile(file, str(problem)))
        except (OSError, UnicodeDecodeError):
            skipped.append(SkippedFile(file, "is no UTF-8 text that can be read"))
        else:
            if not is_blank(text):
                made.append(({"code": text}, str(file)))
    return made, tuple(str(one) for one in skipped)
