"""A schedule: how strongly something acts while a picture is denoised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from studio.config import finite, own_number
from studio.errors import BadConfig

__all__ = ["Over", "Schedule", "ScheduleLike", "When", "as_schedule"]

Over: TypeAlias = Literal["progress", "noise"]


class When(NamedTuple):
    """Where in the denoising a pass stands.

    Args:
        progress: the part that is done, from 0 on. noise: ``σ / (α + σ)``, from 1 (noise alone) to 0.
    """

    progress: float
    noise: float


@dataclass(frozen=True)
class Schedule:
    """A factor that changes while a picture is denoised: linear between points, constant before and behind them.

    Args:
        points: pairs (where, factor), in the order of the denoising; two at one place are a jump, and the later holds
            there.
        over: what the places are counted in. ``"progress"``: the part of the denoising that is done, from 0 to 1.
            ``"noise"``: how much of the latents is noise, ``σ / (α + σ)``, from 1 to 0; that means the same for ε, v
            and flow and does not depend on how the scheduler spaces its steps.

    Raises:
        BadConfig: no point, one out of [0, 1] or that is not finite, or points that go backwards.

    Example:
        >>> late = Schedule(((0.0, 0.0), (0.4, 1.0)))
        >>> [late.at(When(progress, 1.0)) for progress in (0.0, 0.1, 0.5)]
        [0.0, 0.25, 1.0]
        >>> Schedule(((0.5, 0.0), (0.2, 1.0)))
        Traceback (most recent call last):
        studio.errors.BadConfig: the schedule goes backwards from 0.5 to 0.2; its places rise from 0 to 1
    """

    points: tuple[tuple[float, float], ...]
    over: Over = "progress"

    def __post_init__(self) -> None:
        if self.over not in ("progress", "noise"):
            raise BadConfig(f"a schedule is over 'progress' or 'noise', not over {self.over!r}")
        object.__setattr__(self, "points", tuple(map(_point, _listed(self.points))))
        if not self.points:
            raise BadConfig("the schedule has no point; give at least one pair (where, factor)")
        places, falls = [place for place, _ in self.points], self.over == "noise"
        for before, after in zip(places, places[1:], strict=False):
            if (after > before) if falls else (after < before):
                way = "fall from 1 to 0" if falls else "rise from 0 to 1"
                raise BadConfig(f"the schedule goes backwards from {before:g} to {after:g}; its places {way}")

    def at(self, when: When) -> float:
        """Returns the factor at a moment."""
        place = when.progress if self.over == "progress" else 1 - when.noise
        points = [(where if self.over == "progress" else 1 - where, factor) for where, factor in self.points]
        before = [point for point in points if point[0] <= place]
        after = [point for point in points if point[0] > place]
        if not before or not after:
            return before[-1][1] if before else after[0][1]
        (start, first), (end, last) = before[-1], after[0]
        return first + (last - first) * (place - start) / (end - start)


ScheduleLike: TypeAlias = "Schedule | Sequence[tuple[float, float]]"


def as_schedule(value: ScheduleLike) -> Schedule:
    """Reads a schedule as people write it: a :class:`Schedule`, or its points over the progress.

    Raises:
        BadConfig: neither, or an impossible one.
    """
    return value if isinstance(value, Schedule) else Schedule(cast(Any, _listed(value)))


def _listed(points: Any) -> tuple[Any, ...]:
    if isinstance(points, (str, bytes)) or not isinstance(points, Iterable):
        raise BadConfig(f"a schedule is a list of pairs (where, factor) such as [(0, 0), (0.4, 1)], not {points!r}")
    return tuple(points)


def _point(pair: Any) -> tuple[float, float]:
    numbers = tuple(map(own_number, pair)) if isinstance(pair, Sequence) and not isinstance(pair, str) else ()
    if len(numbers) != 2 or not all(map(finite, numbers)):
        raise BadConfig(f"a point of a schedule is a pair of finite numbers (where, factor), not {pair!r}")
    place, factor = (float(number) for number in numbers)
    if not 0 <= place <= 1:
        raise BadConfig(f"a schedule has the place {place:g}; places are parts of the denoising, from 0 to 1")
    return place, factor
