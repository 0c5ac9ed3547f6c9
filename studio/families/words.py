"""A prompt as a family's text encoders are given it: pieces of text, each of which counts more or less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Pieces", "Prompts", "Words", "texts"]

Pieces: TypeAlias = "tuple[tuple[str, float], ...]"


@dataclass(frozen=True)
class Words:
    """A prompt in parts, each of which is pieces of text with their weights.

    Where prompts are read in chunks a part begins a new one, and what is longer than a chunk goes on in the next.
    Elsewhere the parts are one text.

    Args:
        parts: the parts; a piece is a text and its weight, 1 as it stands.
        length: tokens that its row has at least, where prompts are read in chunks.

    Example:
        >>> words = Words(((("a ", 1.0), ("red", 1.2), (" dog", 1.0)), (("on grass", 1.0),)))
        >>> str(words), words.weighed
        ('a red dog on grass', True)
    """

    parts: tuple[Pieces, ...]
    length: int = 0

    def __str__(self) -> str:
        return " ".join("".join(text for text, _ in part) for part in self.parts)

    @property
    def weighed(self) -> bool:
        """Whether some piece counts more or less than the others."""
        return any(weight != 1 for part in self.parts for _, weight in part)

    @property
    def pieces(self) -> Pieces:
        """The pieces of all parts as one text."""
        joined = [piece for part in self.parts for piece in ((" ", 1.0), *part)]
        return tuple(joined[1:])


Prompts: TypeAlias = "Sequence[str | Words]"
"""What a family encodes: captions, each read in one piece and as it stands, or prompts that were taken apart."""


def texts(prompts: Prompts) -> list[str]:
    """Returns prompts as texts without weights."""
    return [str(prompt) for prompt in prompts]
