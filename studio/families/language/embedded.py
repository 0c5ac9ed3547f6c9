"""The language bases that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["LANGUAGE_BASES", "facts_file"]

_HERE: Final = Path(__file__).parents[1]

LANGUAGE_BASES: Final[dict[str, Path]] = {"facts": _HERE / "facts" / "model"}
"""The embedded language bases: name -> transformers folder inside the package."""


def facts_file(name: str) -> Path:
    """Returns one of the question files that come with the base ``facts``: ``"train.jsonl"``, ``"held-out.jsonl"``."""
    return LANGUAGE_BASES["facts"].parent / name
