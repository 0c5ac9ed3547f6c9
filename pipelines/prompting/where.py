"""Places in a prompt, as messages name them."""

from __future__ import annotations

from typing import Final

from studio.shown import shown

__all__ = ["quoted", "where"]

LONG: Final = 120


def quoted(text: str) -> str:
    """Returns a text in quotes, a long one shortened.

    Example:
        >>> print(quoted("a dog"), len(quoted("a" * 10_000)))
        'a dog' 125
    """
    return shown(repr(text if len(text) <= LONG else f"{text[:LONG]}..."))


def where(text: str, place: int) -> str:
    """Says where a character stands.

    Args:
        text: the whole. place: of the character, from 0 on.

    Example:
        >>> where("a (dog", 2)
        "at character 3, before 'dog'"
    """
    behind = text[place + 1 : place + 21]
    return f"at character {place + 1}" + (f", before {shown(repr(behind))}" if behind else ", at the end")
