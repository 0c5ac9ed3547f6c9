"""Regular expressions as data: the parts of one, as :mod:`studio.adapters.contract.automaton` walks through them.

The syntax is that of ``re`` without what cannot be followed in linear time: what looks back, back references, flags,
possessive repeats.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = ["Char", "Edge", "Either", "Look", "Node", "Repeat", "Row", "Unsupported", "read_expression"]

_DEPTH: Final = 40
_CLASS: Final = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEAT: Final = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}")
_EDGES: Final = {"A": "^", "Z": "$", "b": "b", "B": "B"}
_ONE: Final = frozenset("dDwWsSnrtfva")


class Unsupported(ValueError):
    """An expression that is not read here, or that costs too much."""


@dataclass(frozen=True)
class Char:
    """One character, as ``re`` takes it."""

    takes: Callable[[str], object]


@dataclass(frozen=True)
class Edge:
    """A place between characters: ``^``, ``$``, ``b`` or ``B``."""

    kind: str


@dataclass(frozen=True)
class Look:
    """What follows matches, or does not; nothing is taken."""

    part: Node
    wanted: bool


@dataclass(frozen=True)
class Row:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Either:
    """One of several."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """So often; None: without end."""

    part: Node
    least: int
    most: int | None


Node: TypeAlias = "Char | Edge | Look | Row | Either | Repeat"


@functools.lru_cache(maxsize=1024)
def _character(token: str) -> Char:
    return Char(re.compile(token).fullmatch)


def read_expression(text: str) -> Node:
    """Reads an expression in the syntax of ``re`` into its parts.

    Args:
        text: the expression, which ``re`` compiles.

    Raises:
        Unsupported: it holds something that is not read here.
    """
    return _Reader(text).whole()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.place, self.depth = text, 0, 0

    def whole(self) -> Node:
        node = self.either()
        if self.place != len(self.text):
            raise Unsupported("it is not read here")
        return node

    def either(self) -> Node:
        self.depth += 1
        if self.depth > _DEPTH:
            raise Unsupported(f"its groups are more than {_DEPTH} deep")
        rows = [self.row()]
        while self.taken("|"):
            rows.append(self.row())
        self.depth -= 1
        return rows[0] if len(rows) == 1 else Either(tuple(rows))

    def row(self) -> Node:
        parts: list[Node] = []
        while self.place < len(self.text) and self.text[self.place] not in "|)":
            parts.append(self.repeated(self.part()))
        return Row(tuple(parts))

    def part(self) -> Node:
        start = self.place
        char = self.text[start]
        self.place += 1
        if char == "(":
            return self.group()
        if char in "^$":
            return Edge(char)
        if char == "\\":
            letter = self.text[self.place]
            self.place += 1
            if letter in _EDGES:
                return Edge(_EDGES[letter])
            if letter.isalnum() and letter not in _ONE:
                raise Unsupported(f"'\\{letter}' is not read here")
        elif char == "[":
            found = _CLASS.match(self.text, start)
            self.place = start if found is None else found.end()
        return _character(self.text[start : self.place])

    def group(self) -> Node:
        look: bool | None = None
        if self.taken("?"):
            if self.taken("=") or self.taken("!"):
                look = self.text[self.place - 1] == "="
            elif self.taken("P<"):
                self.place = self.text.index(">", self.place) + 1
            elif not self.taken(":"):
                raise Unsupported(f"'(?{self.text[self.place]}' is not read here")
        node = self.either()
        if not self.taken(")"):
            raise Unsupported("a group does not end")
        return node if look is None else Look(node, look)

    def repeated(self, node: Node) -> Node:
        least, most = 1, 1
        bounded = _REPEAT.match(self.text, self.place)
        if self.taken("*"):
            least, most = 0, -1
        elif self.taken("+"):
            least, most = 1, -1
        elif self.taken("?"):
            least, most = 0, 1
        elif bounded is not None and any(bounded.groups()):
            self.place = bounded.end()
            least = int(bounded[1] or 0)
            most = int(bounded[3]) if bounded[3] else -1 if bounded[2] else least
        else:
            return node
        self.taken("?")  # a lazy repeat takes the same texts
        if self.taken("+"):
            raise Unsupported("a possessive repeat is not read here")
        return Repeat(node, least, None if most < 0 else most)

    def taken(self, word: str) -> bool:
        there = self.text.startswith(word, self.place)
        self.place += len(word) if there else 0
        return there
