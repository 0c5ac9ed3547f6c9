"""The shortest endings of dotted names that tell some of them from all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["shortest_endings"]


def shortest_endings(chosen: Iterable[str], among: Iterable[str]) -> list[str] | None:
    """Finds the shortest endings (whole words) that name exactly ``chosen`` and nothing else of ``among``.

    Returns:
        The endings, sorted; None if no set of endings can do it, because a chosen name ends another one.

    Example:
        >>> shortest_endings(["a.to_q", "b.to_q", "b.proj"], ["a.to_q", "b.to_q", "b.proj", "a.proj"])
        ['b.proj', 'to_q']
    """
    wanted = list(chosen)
    all_of, of_wanted = (Counter(ending for name in names for ending in _endings(name)) for names in (among, wanted))
    found: set[str] = set()
    for name in wanted:
        ending = next((ending for ending in _endings(name) if all_of[ending] <= of_wanted[ending]), None)
        if ending is None:
            return None
        found.add(ending)
    return sorted(found)


def _endings(name: str) -> Iterator[str]:
    """The endings of a dotted name, the shortest first."""
    words: Sequence[str] = name.split(".")
    for count in range(1, len(words) + 1):
        yield ".".join(words[-count:])
