"""A curve as SVG: the single values faint, their running mean strong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

__all__ = ["curve", "running_mean", "smoothing"]

WIDTH, HEIGHT = 760, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 28  # margins for the labels, in SVG units
MOST_POINTS: Final = 760  # of the faint line; more would only make the file larger


def running_mean(values: Sequence[float], span: int) -> list[float]:
    """Returns the exponential running mean over about ``span`` values, without the bias of its start.

    Example:
        >>> running_mean([2.0, 2.0, 2.0], 10)
        [2.0, 2.0, 2.0]
    """
    keep, total, weight, means = 1 - 1 / max(span, 1), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(round(total / weight, 12))
    return means


def smoothing(count: int) -> int:
    """Returns over how many of ``count`` values a running mean is taken to show where they go."""
    return max(count // 25, min(10, count // 4), 1)


def curve(values: Sequence[float], label: str) -> str:
    """Returns an inline SVG of ``values`` over steps 1, 2, ...; colours are left to the page's style sheet.

    Args:
        values: at least one finite number.
        label: what they are, for screen readers.
    """
    means = running_mean(values, smoothing(len(values)))
    ordered = sorted(values)
    # single losses reach far up; the axis ends where only one in fifty lies above
    high = max(ordered[min(len(ordered) - 1, int(len(ordered) * 0.98))], max(means))
    low = min(0.0, ordered[0])
    high = high if high > low else low + 1.0
    ticks = _ticks(low, high)
    high = max(high, ticks[-1])
    every = max(1, math.ceil(len(values) / MOST_POINTS))

    def across(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index / max(len(values) - 1, 1))

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (min(value, high) - low) / (high - low)

    def line(points: Sequence[float], name: str) -> str:
        places = " ".join(f"{across(i):.1f},{up(points[i]):.1f}" for i in range(0, len(points), every))
        return f'<polyline class="{name}" points="{places}"/>'

    marks = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
        for tick in ticks
    )
    steps = sorted({0, *(round((len(values) - 1) * part / 4) for part in range(5))})
    marks += "".join(
        f'<text x="{across(i):.1f}" y="{HEIGHT - 8}" text-anchor="{"end" if i and i == steps[-1] else "middle"}">'
        f"{i + 1}</text>"
        for i in steps
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{marks}'
        f"{line(values, 'single')}{line(means, 'mean')}</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers from at most ``low`` to at least nearly ``high``."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough)
    first = math.floor(low / step) * step
    return [first + step * index for index in range(math.ceil((high - first) / step - 1e-9) + 1)]
