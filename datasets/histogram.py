"""How often which lengths occur, drawn in characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

__all__ = ["histogram"]

LONGEST_BAR: Final = 40  # characters
BINS: Final = 8


def histogram(lengths: Sequence[int], unit: str) -> list[str]:
    """Returns the lengths as bars, a line for each of at most eight equal ranges.

    Args:
        lengths: of the samples. unit: what they are counted in.

    Example:
        >>> print("\\n".join(histogram([1, 2, 2, 9], "tokens")))
        tokens 1-2  ████████████████████████████████████████ 3
        tokens 3-4   0
        tokens 5-6   0
        tokens 7-8   0
        tokens 9-10 █████████████ 1
    """
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // BINS)
    bins = Counter((length - low) // width for length in lengths)
    most = max(bins.values())
    names = [f"{low + n * width}-{low + (n + 1) * width - 1}" for n in range((high - low) // width + 1)]
    room = max(map(len, names))
    return [
        f"{unit} {name:{room}} {'█' * round(LONGEST_BAR * bins[n] / most)} {bins[n]}" for n, name in enumerate(names)
    ]  # fmt: skip
