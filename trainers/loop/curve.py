"""A curve as SVG: the single values faint, their running mean strong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["RunningMean", "curve", "running_mean", "smoothing"]

WIDTH, HEIGHT = 760, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 28  # margins for the labels, in SVG units
MOST_POINTS: Final = 760  # of the faint line; more would only make the file larger


def running_mean(values: Sequence[float], span: int) -> list[float]:
    """Returns the exponential running mean over about ``span`` values, without the bias of its start.

    Example:
        >>> running_mean([2.0, 2.0, 2.0], 10)
        [2.0, 2.0, 2.0]
    """
    mean = RunningMean(span)
    return [mean.take(value) for value in values]


class RunningMean:
    """The same one value at a time; a value that is not known (NaN) leaves the mean as it is.

    Args:
        span: over about how many values.

    Example:
        >>> mean = RunningMean(10)
        >>> [mean.take(value) for value in (2.0, math.nan, 2.0)]
        [2.0, 2.0, 2.0]
    """

    def __init__(self, span: int) -> None:
        self.keep, self.total, self.weight = 1 - 1 / max(span, 1), 0.0, 0.0

    def take(self, value: float) -> float:
        """Takes the next value in and returns the mean, NaN while no value is known."""
        if not math.isnan(value):
            self.total, self.weight = self.keep * self.total + value, self.keep * self.weight + 1
        return round(self.total / self.weight, 12) if self.weight else math.nan


def smoothing(count: int) -> int:
    """Returns over how many of ``count`` values a running mean is taken to show where they go."""
    return max(count // 25, min(10, count // 4), 1)


def curve(values: Sequence[float], label: str) -> str:
    """Returns an inline SVG of ``values`` over steps 1, 2, ...; colours are left to the page's style sheet.

    Args:
        values: numbers; NaN where one is not known.
        label: what they are, for screen readers.
    """
    means = running_mean(values, smoothing(len(values)))
    ordered = sorted(_known(values))
    if not ordered:
        return ""
    # single losses reach far up; the axis ends where only one in fifty lies above
    high = max(ordered[min(len(ordered) - 1, int(len(ordered) * 0.98))], *_known(means))
    low = min(0.0, ordered[0])
    high = high if high > low else low + 1.0
    ticks = _ticks(low, high)
    plane = _Plane(len(values), low, max(high, ticks[-1]))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{_marks(plane, ticks)}'
        f"{_line(plane, values, 'single')}{_line(plane, means, 'mean')}</svg>"
    )


@dataclass(frozen=True)
class _Plane:
    """Where ``count`` values between ``low`` and ``high`` are drawn, in SVG units."""

    count: int
    low: float
    high: float

    def across(self, index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index / max(self.count - 1, 1))

    def up(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (min(value, self.high) - self.low) / (self.high - self.low)


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _known_places(values: Sequence[float], every: int) -> list[int]:
    return [place for place in range(0, len(values), every) if not math.isnan(values[place])]


def _line(plane: _Plane, points: Sequence[float], name: str) -> str:
    every = max(1, math.ceil(plane.count / MOST_POINTS))
    places = " ".join(f"{plane.across(i):.1f},{plane.up(points[i]):.1f}" for i in _known_places(points, every))
    return f'<polyline class="{name}" points="{places}"/>'


def _marks(plane: _Plane, ticks: Sequence[float]) -> str:
    """The grid with its numbers, and the steps below it."""
    last = plane.count - 1
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{plane.up(tick):.1f}" y2="{plane.up(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{plane.up(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        for tick in ticks
    )
    steps = "".join(
        f'<text x="{plane.across(i):.1f}" y="{HEIGHT - 8}" text-anchor="{"end" if i and i == last else "middle"}">'
        f"{i + 1}</text>"
        for i in sorted({0, *(round(last * part / 4) for part in range(5))})
    )
    return grid + steps


def _ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers from at most ``low`` to at least nearly ``high``."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough)
    first = math.floor(low / step) * step
    return [first + step * index for index in range(math.ceil((high - first) / step - 1e-9) + 1)]
