"""An axis of a grid: what changes along it, and its values."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from studio.config import listed, own_number
from studio.errors import BadConfig
from studio.limits import limit, too_many

__all__ = ["Axis", "AxisLike", "axis_of"]

_NAME: Final = re.compile(r"\s*([a-z-]+)\s*(?::(.*))?", re.DOTALL)
_RANGE: Final = re.compile(r"\s*(-?\d{1,19})\s*\.\.\s*(-?\d{1,19})\s*")
_STEPPED: Final = re.compile(r"\s*(-?[\d.]{1,19})\s*\.\.\s*(-?[\d.]{1,19})\s*:\s*([\d.]{1,19})\s*")


@dataclass(frozen=True)
class Axis:
    """What changes along an axis.

    Args:
        name: of :data:`~studio.pipelines.grids.kinds.AXES`: ``"seed"``, ``"strength"``, ``"prompt"``, ...
        of: what of it: the adapter of a strength, the word of a prompt; ``""``: the whole.
        values: one per picture along it.

    Raises:
        BadConfig: no values, or too many.
    """

    name: str
    of: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise BadConfig(f"the axis {self.title!r} has no values; write {self.title}=1,2")
        if len(self.values) > limit("seeds"):
            raise BadConfig(f"the axis {self.title!r} has {len(self.values):,} values; give {too_many('seeds')}")

    @property
    def title(self) -> str:
        """The name, and what of it."""
        return f"{self.name}:{self.of}" if self.of else self.name


AxisLike = str | Axis | tuple[str, Sequence[Any]]


def axis_of(axis: AxisLike) -> Axis:
    """Reads an axis as people write it.

    Args:
        axis: ``"seed=0..3"``, ``"strength:robot=0,0.5,1"``, ``"guidance=1..5:2"``, ``'prompt:tiger=tiger,"a, b"'``; or
            the part in front of ``=`` and a list of values.

    Raises:
        BadConfig: none of these.

    Example:
        >>> axis_of("strength:robot=0,0.5,1"), axis_of(("seed", range(2)))
        (Axis(name='strength', of='robot', values=('0', '0.5', '1')), Axis(name='seed', of='', values=(0, 1)))
        >>> axis_of("steps=10..30:10").values
        ('10', '20', '30')
    """
    if isinstance(axis, Axis):
        return axis
    head, values = axis.partition("=")[::2] if isinstance(axis, str) else _two(axis)
    found = _NAME.fullmatch(head.replace("_", "-", 1) if ":" not in head else head) if isinstance(head, str) else None
    if not found or (isinstance(axis, str) and "=" not in axis):
        raise BadConfig(f"the axis {str(axis)[:80]!r} is not of the form seed=0..3 or strength:robot=0,0.5,1")
    if isinstance(values, str):
        return Axis(found[1], (found[2] or "").strip(), tuple(_values(values)))
    return Axis(found[1], (found[2] or "").strip(), tuple(own_number(value) for value in values))


def _two(axis: Any) -> tuple[Any, Any]:
    if isinstance(axis, tuple) and len(axis) == 2:
        values = listed(axis[1])
        if isinstance(values, (list, tuple, range, str)):
            return axis[0], values
    raise BadConfig(f"an axis is a text such as seed=0..3, or a pair such as ('seed', [0, 1]), not {str(axis)[:80]!r}")


def _values(text: str) -> Iterator[str]:
    """The values of a text, with commas between; one in quotation marks may hold commas."""
    for part in next(csv.reader(io.StringIO(text.replace("\n", " ")), skipinitialspace=True), []):
        whole, stepped = _RANGE.fullmatch(part), _STEPPED.fullmatch(part)
        if whole:
            yield from map(str, _range(part, int(whole[1]), int(whole[2])))
        elif stepped:
            yield from _steps(part, *(_number(part, one) for one in stepped.groups()))
        else:
            yield part.strip()


def _range(part: str, first: int, last: int) -> range:
    if last < first:
        raise BadConfig(f"{part.strip()!r} runs backwards; write {last}..{first}")
    if last - first >= limit("seeds"):
        raise BadConfig(f"{part.strip()!r} has {last - first + 1:,} values; give {too_many('seeds')}")
    return range(first, last + 1)


def _steps(part: str, first: float, last: float, step: float) -> Iterator[str]:
    if last < first or step <= 0:
        raise BadConfig(f"{part.strip()!r} goes nowhere; write it as 1..5:0.5, from the smallest on")
    count = int((last - first) / step + 1e-9) + 1
    if count > limit("seeds"):
        raise BadConfig(f"{part.strip()!r} has {count:,} values; give {too_many('seeds')}")
    return (f"{first + number * step:.10g}" for number in range(count))


def _number(part: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadConfig(f"{text!r} in {part.strip()!r} is no number") from None
