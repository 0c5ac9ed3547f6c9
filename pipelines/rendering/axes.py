"""Grids: one entry of a list with several values for some fields becomes one job for each of their combinations."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from studio.config import listed, own_number
from studio.errors import BadConfig
from studio.limits import limit, too_many

__all__ = ["axes_of", "combinations", "seeds_of"]

_RANGE: Final = re.compile(r"\s*(\d{1,19})\s*(?:\.\.\s*(\d{1,19})\s*)?")


def axes_of(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Takes what has several values out of an entry.

    Args:
        values: the entry: ``prompt`` may be a list, ``seeds`` has the forms of :func:`seeds_of`, ``axes`` maps any
            other field to a list of values.
        where: where it was written.

    Returns:
        The fields with one value each, and the axes, the outermost first: prompts, the axes as written, seeds.

    Raises:
        BadConfig: an axis without values, one that the entry has a value for too, or ``axes`` that are no table.

    Example:
        >>> axes_of({"prompt": ["a", "b"], "steps": 4, "axes": {"guidance": [1, 5]}, "seeds": "0..1"}, "job 0")
        ({'steps': 4}, {'prompt': ['a', 'b'], 'guidance': [1, 5], 'seed': [0, 1]})
    """
    plain = {name: value for name, value in values.items() if value is not None}
    written = plain.pop("axes", {})
    if not isinstance(written, Mapping):
        raise BadConfig(f"{where}: axes={repr(written)[:80]} is no table; write axes: {{steps: [10, 20]}}")
    axes: dict[str, list[Any]] = {}
    if isinstance(plain.get("prompt"), (list, tuple)):
        axes["prompt"] = list(plain.pop("prompt"))
    for name, many in written.items():
        if name in axes or name in plain or (name in ("seed", "seeds") and {"seed", "seeds"} & {*axes, *plain}):
            raise BadConfig(f"{where}: {name!r} has a value and is an axis too; which one is meant?")
        own = seeds_of(many, where) if name in ("seed", "seeds") else listed(many)
        if not isinstance(own, (list, tuple)):
            raise BadConfig(f"{where}: the axis {name!r} is no list: {repr(many)[:80]}; write [10, 20]")
        axes["seed" if name == "seeds" else str(name)] = list(own)
    if "seeds" in plain:
        if "seed" in plain:
            raise BadConfig(f"{where}: seed and seeds are both given; which one is meant?")
        axes["seed"] = seeds_of(plain.pop("seeds"), where)
    empty = next((name for name, many in axes.items() if not many), None)
    if empty is not None:
        raise BadConfig(f"{where}: {empty!r} has no value, which makes no picture; give at least one")
    return plain, axes


def combinations(plain: Mapping[str, Any], axes: Mapping[str, Sequence[Any]], where: str) -> Iterator[dict[str, Any]]:
    """Yields the fields of each job of a grid, the last axis running fastest.

    Args:
        plain: the fields with one value. axes: the others; both from :func:`axes_of`.
        where: where it was written.

    Raises:
        BadConfig: more jobs than a list may have.

    Example:
        >>> [*combinations({"steps": 4}, {"prompt": ["a", "b"], "seed": [7]}, "job 0")]
        [{'steps': 4, 'prompt': 'a', 'seed': 7}, {'steps': 4, 'prompt': 'b', 'seed': 7}]
    """
    many = math.prod(len(values) for values in axes.values())
    if many > limit("jobs"):
        raise BadConfig(f"{where}: its axes make {many:,} pictures; {too_many('jobs')}")
    for values in itertools.product(*axes.values()):
        yield {**plain, **dict(zip(axes, values, strict=True))}


def seeds_of(seeds: Any, where: str) -> list[Any]:
    """Returns seeds as a list; what each of them is, is checked with the other fields.

    Args:
        seeds: a number, several in a list, or a text such as ``"0..7"`` (the last one included) and ``"0,3,5"``.
        where: where they were written.

    Raises:
        BadConfig: none of these, or too many.

    Example:
        >>> seeds_of("0..3,8", "job 0"), seeds_of(5, "job 0")
        ([0, 1, 2, 3, 8], [5])
    """
    seeds = listed(own_number(seeds))
    if not isinstance(seeds, str):
        return list(seeds) if isinstance(seeds, (list, tuple, range)) else [seeds]
    found: list[int] = []
    for part in seeds.split(","):
        match = _RANGE.fullmatch(part)
        if not match:
            raise BadConfig(f"{where}: seeds={seeds[:80]!r} is not of the form 0..7, 0,3,5 or 4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise BadConfig(f"{where}: seeds={seeds[:80]!r} runs backwards; write {last}..{first}")
        if len(found) + last - first >= limit("seeds"):
            raise BadConfig(f"{where}: seeds={seeds[:80]!r}: {too_many('seeds')}")
        found += range(first, last + 1)
    return found
