"""The arrows between the product's modules: who imports whom, wherever the import stands, drawn as text."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Arrow", "arrows_of", "circles", "draw"]


@dataclass(frozen=True)
class Arrow:
    """One import: ``source`` imports ``target`` in a line that reads ``text``."""

    source: str
    target: str
    line: int
    text: str


def arrows_of(trees: Mapping[str, ast.Module]) -> list[Arrow]:
    """Returns the first import of each module by each other one.

    Imports inside functions and under ``TYPE_CHECKING`` count as those at the top do: a reader follows them all.

    Example:
        >>> trees = {"a": ast.parse("def f():\\n    from b import c"), "b": ast.parse("x = 1"), "b.c": ast.parse("")}
        >>> [(arrow.source, arrow.target, arrow.line) for arrow in arrows_of(trees)]
        [('a', 'b.c', 2)]
    """
    found: dict[tuple[str, str], Arrow] = {}
    for source, tree in trees.items():
        nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in sorted(nodes, key=lambda node: node.lineno):
            for target in _named(node, trees):
                if target != source:
                    arrow = Arrow(source, target, node.lineno, ast.unparse(node))
                    found.setdefault((source, target), arrow)
    return list(found.values())


def _named(node: ast.Import | ast.ImportFrom, known: Iterable[str]) -> list[str]:
    """The modules of ours that a statement names; ``from package import module`` names the module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in known]
    full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    named = [full[name] if full[name] in known else node.module for name in full]
    return [name for name in named if name in known]


def circles(arrows: Iterable[Arrow]) -> list[list[Arrow]]:
    """Returns the shortest circle through every module that is in one, each circle once.

    Example:
        >>> ways = [Arrow("a", "b", 1, ""), Arrow("b", "a", 2, ""), Arrow("b", "c", 3, "")]
        >>> [[arrow.source for arrow in circle] for circle in circles(ways)]
        [['a', 'b']]
    """
    leaving: dict[str, list[Arrow]] = {}
    for arrow in arrows:
        leaving.setdefault(arrow.source, []).append(arrow)
    found: dict[frozenset[str], list[Arrow]] = {}
    for start in sorted(leaving):
        circle = _way_back(start, leaving)
        found.setdefault(frozenset(arrow.source for arrow in circle), circle)
    return [circle for members, circle in found.items() if members]


def _way_back(start: str, leaving: Mapping[str, list[Arrow]]) -> list[Arrow]:
    """The shortest way from a module to itself, breadth first; empty if there is none."""
    ways: list[list[Arrow]] = [[arrow] for arrow in leaving[start]]
    seen: set[str] = set()
    for way in ways:  # it grows while it is read
        end = way[-1].target
        if end == start:
            return way
        if end not in seen:
            seen.add(end)
            ways += [[*way, arrow] for arrow in leaving.get(end, ())]
    return []


def draw(way: Iterable[Arrow]) -> str:
    """Draws arrows that follow each other, from the top down.

    Example:
        >>> print(draw([Arrow("a", "b", 1, "import b"), Arrow("b", "a", 2, "import a")]))
        a
        │   line 1: import b
        ▼
        b
        │   line 2: import a
        ▼
        a
    """
    lines: list[str] = []
    for arrow in way:
        lines += [*([] if lines else [arrow.source]), f"│   line {arrow.line}: {arrow.text}", "▼", arrow.target]
    return "\n".join(lines)
