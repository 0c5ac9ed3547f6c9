"""Regular expressions in linear time: what Python's ``re`` would backtrack over for ever is walked through once.

An expression that stands in a file was written by anybody. ``re`` can need 2^n steps for one; here all ways through an
expression are followed at once (Thompson, 1968), so a text of n characters costs n steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from studio.adapters.contract.expression import (
    Char,
    Edge,
    Either,
    Look,
    Node,
    Repeat,
    Row,
    Unsupported,
    read_expression,
)

__all__ = ["Automaton", "Unsupported"]

MOST: Final = 20_000
"""Parts of an expression, its bounded repeats written out."""
WORK: Final = 20_000_000
"""Steps that one expression may cost in all; those of people need thousands."""
Here: TypeAlias = frozenset[int]


@dataclass
class _Step:
    """One place in an automaton: what has to be there, and where it goes on."""

    needs: Char | Edge | Automaton | None = None
    after: list[int] = field(default_factory=list)
    wanted: bool = True


class Automaton:
    """An expression that matches whole texts in linear time.

    Args:
        expression: in the syntax of ``re``; or a part of one that was read.

    Raises:
        Unsupported: it holds something that is not read here, or is too large.
        re.error: ``re`` cannot read it either.

    Example:
        >>> Automaton("(a+)+b").fullmatch("a" * 1000), Automaton(r".*\\.to_[qk]").fullmatch("mid.to_q")
        (False, True)
    """

    def __init__(self, expression: str | Node) -> None:
        if isinstance(expression, str):
            re.compile(expression)
            expression = read_expression(expression)
        self._steps = [_Step()]  # the end
        self._built = self._work = 0
        self._start = self._put(expression, 0)
        kinds = {type(step.needs) for step in self._steps}
        self._looks, self._edges = Automaton in kinds, Edge in kinds
        self._known: dict[tuple[Here, str, str], Here] = {}

    def fullmatch(self, text: str) -> bool:
        """Says whether the whole of ``text`` matches.

        Raises:
            Unsupported: the expression has cost too much by now.
        """
        here: Here = frozenset((self._start,))
        for place in range(len(text)):
            here = self._next(here, text, place)
            if not here:
                return False
        return 0 in self._open(here, text, len(text))

    def begins(self, text: str, place: int) -> bool:
        """Says whether something that begins at ``place`` matches."""
        here: Here = frozenset((self._start,))
        for end in range(place, len(text) + 1):
            if 0 in self._open(here, text, end):
                return True
            here = self._next(here, text, end) if end < len(text) else here
        return False

    def _next(self, here: Here, text: str, place: int) -> Here:
        """Where the character at ``place`` leads to."""
        char, before = text[place], text[place - 1] if self._edges and place else ""
        key = (here, before, char)
        if not self._looks and key in self._known:
            return self._known[key]
        found: set[int] = set()
        for number in self._open(here, text, place):
            step = self._steps[number]
            if isinstance(step.needs, Char) and step.needs.takes(char):
                found.update(step.after)
        if len(self._known) > MOST:
            self._known.clear()
        self._known[key] = frozenset(found)
        return self._known[key]

    def _open(self, here: Here, text: str, place: int) -> set[int]:
        """All steps that can be reached without taking a character."""
        found, waiting = set(here), list(here)
        while waiting:
            step = self._steps[waiting.pop()]
            if isinstance(step.needs, Char) or (step.needs is not None and not _holds(step, text, place)):
                continue
            waiting += [number for number in step.after if number not in found]
            found.update(step.after)
        self._work += len(found)
        if self._work > WORK:
            raise Unsupported("it takes too many steps")
        return found

    def _put(self, node: Node, after: int) -> int:
        """Adds a part that goes on at ``after``; returns where it begins."""
        self._built += 1
        if self._built > MOST:
            raise Unsupported(f"it has more than {MOST:,} parts")
        if isinstance(node, Row):
            for part in reversed(node.parts):
                after = self._put(part, after)
            return after
        if isinstance(node, Either):
            return self._add(None, [self._put(part, after) for part in node.parts])
        if isinstance(node, Repeat):
            return self._put_repeat(node, after)
        if isinstance(node, Look):
            return self._add(Automaton(node.part), [after], node.wanted)
        return self._add(node, [after])

    def _put_repeat(self, node: Repeat, after: int) -> int:
        if node.most is None:
            loop = self._add(None, [after])
            self._steps[loop].after.append(self._put(node.part, loop))
            after = loop
        else:
            end = after
            for _ in range(node.most - node.least):
                after = self._add(None, [end, self._put(node.part, after)])
        for _ in range(node.least):
            after = self._put(node.part, after)
        return after

    def _add(self, needs: Char | Edge | Automaton | None, after: list[int], wanted: bool = True) -> int:
        self._steps.append(_Step(needs, after, wanted))
        return len(self._steps) - 1


def _holds(step: _Step, text: str, place: int) -> bool:
    if isinstance(step.needs, Automaton):
        return step.needs.begins(text, place) == step.wanted
    assert isinstance(step.needs, Edge)
    kind = step.needs.kind
    if kind in "^$":
        return place == (0 if kind == "^" else len(text))
    words = [0 <= at < len(text) and (text[at] == "_" or text[at].isalnum()) for at in (place - 1, place)]
    return (words[0] != words[1]) == (kind == "b")
