"""Choices in a prompt: variants and wildcard files, and the texts that they can become."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Choice", "Lines", "Option", "Part", "Variants", "count", "drawn", "every"]

Draw: TypeAlias = "Callable[[], float]"  # numbers in [0, 1)


@dataclass(frozen=True)
class Option:
    """One of several texts.

    Args:
        parts: what it is made of. weight: how likely it is, beside the others.
    """

    parts: tuple[Part, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Variants:
    """Some of several options, in the order in which they are written.

    Args:
        options: the options. low: how many at least. high: how many at most.
        between: what stands between two of them.
    """

    options: tuple[Option, ...]
    low: int = 1
    high: int = 1
    between: str = ", "


@dataclass(frozen=True)
class Lines:
    """One line of a wildcard file.

    Args:
        name: of the file. options: its lines.
    """

    name: str
    options: tuple[Option, ...]


Choice: TypeAlias = "Variants | Lines"
Part: TypeAlias = "str | Choice"


def drawn(parts: Sequence[Part], draw: Draw) -> str:
    """Returns one text.

    Args:
        parts: what it is made of. draw: gives numbers in [0, 1).

    Example:
        >>> drawn(["a ", Variants((Option(("red",)), Option(("blue",))))], lambda: 0.7)
        'a blue'
    """
    return "".join(part if isinstance(part, str) else _drawn(part, draw) for part in parts)


def _drawn(choice: Choice, draw: Draw) -> str:
    if isinstance(choice, Lines):
        return drawn(choice.options[_pick(choice.options, draw)].parts, draw)
    many = choice.low + int(draw() * (choice.high - choice.low + 1)) if choice.high > choice.low else choice.low
    left = list(range(len(choice.options)))
    taken = [left.pop(_pick([choice.options[index] for index in left], draw)) for _ in range(many)]
    return choice.between.join(drawn(choice.options[index].parts, draw) for index in sorted(taken))


def _pick(options: Sequence[Option], draw: Draw) -> int:
    """The place of one option."""
    at = draw() * sum(option.weight for option in options)
    for place, option in enumerate(options):
        at -= option.weight
        if at < 0:
            return place
    return max(place for place, option in enumerate(options) if option.weight)  # a sum was rounded


def count(parts: Sequence[Part]) -> int:
    """Returns how many texts there are.

    Args:
        parts: what they are made of.

    Example:
        >>> count([Variants(tuple(Option((letter,)) for letter in "abc"), 1, 2)])
        6
    """
    total = 1
    for part in parts:
        total *= 1 if isinstance(part, str) else sum(_ways(part))
    return total


def _ways(choice: Choice) -> Sequence[int]:
    """In how many ways each allowed number of options can be taken."""
    each = [count(option.parts) for option in choice.options if option.weight]
    if isinstance(choice, Lines):
        return [sum(each)]
    ways = [1] + [0] * choice.high  # elementary symmetric sums
    for one in each:
        for many in range(choice.high, 0, -1):
            ways[many] += ways[many - 1] * one
    return ways[choice.low :]


def every(parts: Sequence[Part]) -> Iterator[str]:
    """Yields all texts, the last choice changing fastest.

    Args:
        parts: what they are made of.

    Example:
        >>> list(every([Variants((Option(("a",)), Option(("b",)))), Variants((Option(("1",)), Option(("2",))))]))
        ['a1', 'a2', 'b1', 'b2']
    """
    for texts in itertools.product(*([part] if isinstance(part, str) else list(_every(part)) for part in parts)):
        yield "".join(texts)


def _every(choice: Choice) -> Iterator[str]:
    options = [option for option in choice.options if option.weight]
    if isinstance(choice, Lines):
        for option in options:
            yield from every(option.parts)
        return
    for many in range(choice.low, choice.high + 1):
        for taken in itertools.combinations(options, many):
            for texts in itertools.product(*(list(every(option.parts)) for option in taken)):
                yield choice.between.join(texts)
