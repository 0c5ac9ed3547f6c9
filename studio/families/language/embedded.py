"""The language bases that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["LANGUAGE_BASES", "sample_file"]

_HERE: Final = Path(__file__).parents[1]

LANGUAGE_BASES: Final[dict[str, Path]] = {
    name: _HERE / name / "model" for name in ("facts", "figures", "speech", "words")
}
"""The embedded language bases: name -> transformers folder inside the package. ``facts`` answers nothing yet of what it
has read, ``figures`` says in English what small pictures show, ``speech`` writes down numbers that are spoken in five
languages, ``words`` says numbers in seven."""


def sample_file(base: str, name: str) -> Path:
    """Returns one of the files of samples that come with an embedded base.

    Args:
        base: its name. name: ``"train.jsonl"`` or ``"held-out.jsonl"``.

    Example:
        >>> sample_file("facts", "train.jsonl").name
        'train.jsonl'
    """
    return LANGUAGE_BASES[base].parent / name
