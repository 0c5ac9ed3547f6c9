"""Braces and wildcards in a text, taken apart into choices."""

from __future__ import annotations

import re
from collections.abc import Callable

from studio.errors import BadConfig
from studio.limits import limit, too_many
from studio.pipelines.prompting.brackets import ESCAPED
from studio.pipelines.prompting.choices import Lines, Option, Part, Variants
from studio.pipelines.prompting.where import where

__all__ = ["read_choices", "weight_of"]

_TOKEN = re.compile(rf"{ESCAPED}|__(?:(?!__)[\w./-])+__|[{{}}\[\]|]|(?:(?!__)[^\\{{}}\[\]|])+|__|\\", re.DOTALL)
_MANY = re.compile(r"(\d+)(?:-(\d+))?\$\$(?:([^|{}$]*)\$\$)?")
_NAME = re.compile(r"__((?:(?!__)[\w./-])+)__")
_WEIGHT = re.compile(r"\s*([+-]?\d*\.?\d+)::")


def read_choices(text: str, lines: Callable[[str], Lines], at: str) -> tuple[Part, ...]:
    """Takes a text apart.

    Args:
        text: the text. lines: gives the lines of a wildcard file by its name. at: which text it is, in sentences.

    Raises:
        BadConfig: a brace that nothing opens or closes, or a number that is not possible.

    Example:
        >>> read_choices("a {2::red|}", lambda name: Lines(name, ()), "the prompt")[1].options
        (Option(parts=('red',), weight=2.0), Option(parts=(), weight=1.0))
    """
    return _Reader(text, lines, at).read()


def weight_of(text: str, place: int, at: str) -> tuple[float, int]:
    """Reads the weight of an option.

    Args:
        text: in which it stands. place: where the option begins. at: which text it is, in sentences.

    Returns:
        The weight, 1 where there is none, and where what follows begins.

    Raises:
        BadConfig: an impossible weight.
    """
    found = _WEIGHT.match(text, place)
    if found is None:
        return 1.0, place
    if not 0 <= float(found[1]) < 1e9:
        raise BadConfig(f"{at} has the weight {found[1]}; a weight is a number from 0 on")
    return float(found[1]), found.end()


class _Reader:
    """Takes one text apart, from the left to the right.

    Args:
        text: the text. lines: gives the lines of a file. at: which text it is.
    """

    def __init__(self, text: str, lines: Callable[[str], Lines], at: str) -> None:
        self.text, self.lines, self.at = text, lines, at
        self.place = 0

    def read(self) -> tuple[Part, ...]:
        parts, end = self._parts(0)
        if end:
            raise BadConfig(
                f"{self.at}: the '}}' {where(self.text, self.place - 1)} closes nothing; write \\}} for the character"
            )
        return parts

    def _parts(self, depth: int) -> tuple[tuple[Part, ...], str]:
        """Reads up to a bar or the brace that closes; returns what was read and that sign."""
        parts, square = list[Part](), 0
        while self.place < len(self.text):
            found = _TOKEN.match(self.text, self.place)
            assert found is not None, "every character is in some token"
            start, self.place, sign = self.place, found.end(), found[0]
            if sign == "{":
                parts.append(self._variants(start, depth + 1))
            elif sign == "}" or (sign == "|" and depth and not square):
                return tuple(parts), sign
            elif name := _NAME.fullmatch(sign):
                parts.append(self.lines(name[1]))
            else:
                square = max(square + {"[": 1, "]": -1}.get(sign, 0), 0)
                parts.append(sign)
        return tuple(parts), ""

    def _variants(self, start: int, depth: int) -> Variants:
        if depth > limit("prompt-depth"):
            raise BadConfig(f"{self.at}: {too_many('prompt-depth')}")
        head, options, end = _MANY.match(self.text, self.place), list[Option](), "|"
        self.place = head.end() if head else self.place
        while end == "|":
            weight, self.place = weight_of(self.text, self.place, self.at)
            parts, end = self._parts(depth)
            options.append(Option(parts, weight))
        if not end:
            raise BadConfig(
                f"{self.at}: nothing closes the '{{' {where(self.text, start)}; close it, or write \\{{ for the "
                "character"
            )
        low, high, between = self._many(head)
        possible = sum(1 for option in options if option.weight)
        if not 0 <= low <= high <= possible or not possible:
            raise BadConfig(
                f"{self.at}: {low}-{high} of {possible} options cannot be taken ({where(self.text, start)})"
            )
        return Variants(tuple(options), low, high, between)

    def _many(self, head: re.Match[str] | None) -> tuple[int, int, str]:
        """How many options at least and at most, and what is between them."""
        if head is None:
            return 1, 1, ", "
        low = min(int(head[1]), 10**9)
        return low, low if head[2] is None else min(int(head[2]), 10**9), ", " if head[3] is None else head[3]
