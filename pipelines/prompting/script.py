"""A prompt that was taken apart: what it says in each step of the denoising, and how much each word counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from studio.families.words import Words

__all__ = ["Break", "Node", "Script", "Switch", "Text", "Turns", "Weighed"]


@dataclass(frozen=True)
class Text:
    """Text as it stands."""

    text: str


@dataclass(frozen=True)
class Break:
    """Where a new chunk begins."""


@dataclass(frozen=True)
class Weighed:
    """Words whose weight is multiplied by a factor.

    Args:
        nodes: the words. factor: above 1 they count more.
    """

    nodes: tuple[Node, ...]
    factor: float


@dataclass(frozen=True)
class Switch:
    """Words that others replace at some step.

    Args:
        before: at first. after: later.
        when: the part of the steps, or the number of steps, that ``before`` lasts.
        fraction: whether ``when`` is a part.
    """

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    when: float
    fraction: bool

    def lasts(self, steps: int) -> int:
        """Returns for how many of the steps ``before`` holds."""
        return int(self.when * steps) if self.fraction else int(self.when)


@dataclass(frozen=True)
class Turns:
    """Words that take turns, step by step."""

    options: tuple[tuple[Node, ...], ...]


Node: TypeAlias = "Text | Break | Weighed | Switch | Turns"
Piece: TypeAlias = "tuple[str, float] | None"  # None: a new chunk begins


@dataclass(frozen=True)
class Script:
    """A prompt that was taken apart.

    Args:
        nodes: its parts, in order.
    """

    nodes: tuple[Node, ...]

    def at(self, step: int, steps: int) -> Words:
        """Returns what the prompt says in one step.

        Args:
            step: its number, from 0 on. steps: how many there are.

        Example:
            >>> Script((Text("a "), Switch((Text("dog"),), (Text("cat"),), 0.5, True))).at(3, 6)
            Words(parts=((('a cat', 1.0),),), length=0)
        """
        parts: list[list[tuple[str, float]]] = [[]]
        for piece in _said(self.nodes, step, steps):
            if piece is None:
                parts.append([])
            elif parts[-1] and parts[-1][-1][1] == piece[1]:
                parts[-1][-1] = (parts[-1][-1][0] + piece[0], piece[1])
            else:
                parts[-1].append(piece)
        return Words(tuple(map(tuple, _stripped(parts))))

    def all(self, steps: int) -> list[tuple[int, Words]]:
        """Returns what it says from which step on, wherever that changes; the first entry is of step 0.

        Args:
            steps: how many steps there are.
        """
        changes = sorted({0, *(step for step in _changes(self.nodes, steps) if 0 < step < steps)})
        said: list[tuple[int, Words]] = []
        for step in changes:
            words = self.at(step, steps)
            if not said or said[-1][1] != words:
                said.append((step, words))
        return said

    def changes(self, text: str) -> bool:
        """Says whether a text is among the words that change."""
        changing = (node for node in _every(self.nodes) if isinstance(node, (Switch, Turns)))
        inside = (one for node in changing for nodes in _inside(node) for one in _every(nodes))
        return any(isinstance(one, Text) and text in one.text for one in inside)

    @property
    def breaks(self) -> bool:
        """Whether a new chunk is asked for."""
        return any(isinstance(node, Break) for node in _every(self.nodes))

    @property
    def last(self) -> float:
        """The latest number of a step at which something changes; 0 where there is none."""
        switches = [node for node in _every(self.nodes) if isinstance(node, Switch) and not node.fraction]
        return max((node.when for node in switches), default=0)


def _said(nodes: Iterable[Node], step: int, steps: int) -> Iterator[Piece]:
    for node in nodes:
        if isinstance(node, Text):
            yield node.text, 1.0
        elif isinstance(node, Break):
            yield None
        elif isinstance(node, Weighed):
            # from the inside outwards, as A1111 multiplies
            for piece in _said(node.nodes, step, steps):
                yield None if piece is None else (piece[0], piece[1] * node.factor)
        elif isinstance(node, Switch):
            yield from _said(node.before if step < node.lasts(steps) else node.after, step, steps)
        else:
            yield from _said(node.options[step % len(node.options)], step, steps)


def _changes(nodes: Iterable[Node], steps: int) -> Iterator[int]:
    for node in _every(nodes):
        if isinstance(node, Switch):
            yield node.lasts(steps)
        elif isinstance(node, Turns):
            yield from range(steps)


def _every(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes and all that are inside them."""
    for node in nodes:
        yield node
        for inside in _inside(node):
            yield from _every(inside)


def _inside(node: Node) -> Sequence[tuple[Node, ...]]:
    if isinstance(node, Weighed):
        return [node.nodes]
    if isinstance(node, Switch):
        return [node.before, node.after]
    return node.options if isinstance(node, Turns) else []


def _stripped(parts: Sequence[list[tuple[str, float]]]) -> Sequence[list[tuple[str, float]]]:
    """Blanks around a break belong to it."""
    for first, second in zip(parts, parts[1:], strict=False):
        if first:
            first[-1] = (first[-1][0].rstrip(), first[-1][1])
        if second:
            second[0] = (second[0][0].lstrip(), second[0][1])
    return parts
