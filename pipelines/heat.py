"""The colours of heat maps, and how much of one a number gets."""

from __future__ import annotations

from typing import Final

__all__ = ["COLD", "DEEP", "INK", "NOTHING", "PAPER", "QUIET", "WARM", "Colour", "is_dark", "mixed"]

Colour = tuple[int, int, int]
PAPER: Final[Colour] = (255, 255, 255)
INK: Final[Colour] = (32, 33, 36)
QUIET: Final[Colour] = (95, 99, 104)
NOTHING: Final[Colour] = (241, 243, 244)
WARM: Final[Colour] = (214, 69, 53)
COLD: Final[Colour] = (48, 104, 196)
DEEP: Final[Colour] = (94, 84, 142)


def mixed(colour: Colour, share: float) -> Colour:
    """Returns so much of a colour on paper.

    Args:
        share: from 0, nothing of it, to 1, all.

    Example:
        >>> mixed(DEEP, 0.0), mixed(DEEP, 1.0)
        ((250, 250, 250), (94, 84, 142))
    """
    share = max(0.0, min(1.0, share))
    red, green, blue = (
        round(paper + (ink - paper) * share) for ink, paper in zip(colour, (250, 250, 250), strict=True)
    )
    return red, green, blue


def is_dark(colour: Colour) -> bool:
    """Says whether light letters are read on a colour better than dark ones."""
    return sum(part * weight for part, weight in zip(colour, (0.3, 0.59, 0.11), strict=True)) < 140
