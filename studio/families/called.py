"""The model of a base that is named, whichever sort of base it is: one that draws, or one that writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studio.families.base import BASES, open_base
from studio.families.language import LANGUAGE_BASES, open_language_base
from studio.families.opening.ids import standing

__all__ = ["model_called", "stands", "writes"]


def stands(base: str | Path) -> bool:
    """Says whether a base is an embedded one, or a path that is there, and so not a hub id."""
    return base in BASES or base in LANGUAGE_BASES or standing(base) is not None


def writes(base: str | Path) -> bool:
    """Says whether a base is a language model: an embedded one, or a folder of transformers.

    Example:
        >>> writes("facts"), writes("emoji")
        (True, False)
    """
    if base in BASES or base in LANGUAGE_BASES:
        return base in LANGUAGE_BASES
    folder = standing(base)
    return folder is not None and (folder / "config.json").is_file() and not (folder / "model_index.json").exists()


def model_called(base: str | Path) -> Any:
    """Returns the pipeline of a base that draws, or the model of one that writes.

    Args:
        base: as :func:`~studio.families.open_base` or :func:`~studio.families.language.open_language_base` takes it.

    Raises:
        UnknownName: neither a known name nor a folder nor an id that the hub has. BadFile: it is no whole base.
        DoesNotFit: a base of a family that the studio does not know.
    """
    return open_language_base(base).model if writes(base) else open_base(base).pipe
