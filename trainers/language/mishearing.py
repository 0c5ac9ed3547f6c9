"""How far what was written down is from what was said: the rates of wrong words and of wrong letters."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["edits", "error_rate"]


def edits(right: Sequence[str], made: Sequence[str]) -> int:
    """Returns how many parts have to be put in, taken out or exchanged to make one sequence of another (Levenshtein).

    Args:
        right: one of them. made: the other.

    Example:
        >>> edits("kitten", "sitting"), edits("one two".split(), "two".split())
        (3, 1)
    """
    row = list(range(len(made) + 1))  # edits from the parts so far to the first n of what was made
    for count, part in enumerate(right, 1):
        before, row[0] = row[0], count
        for place, other in enumerate(made, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (part != other))
    return row[-1]


def error_rate(right: Sequence[Sequence[str]], made: Sequence[Sequence[str]]) -> float:
    """Returns ``Σ edits / Σ parts`` over sequences and what was made of them; it may lie above 1.

    Args:
        right: what is right, with a part at least in all. made: what was made of each.

    Example:
        >>> error_rate([["a", "b"], ["c", "d"]], [["a", "x"], ["c", "d"]])
        0.25
    """
    wrong = sum(edits(one, other) for one, other in zip(right, made, strict=True))
    return wrong / sum(map(len, right))
