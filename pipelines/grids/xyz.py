"""X/Y/Z grids: pictures that differ along two axes, in a panel for each value of a third."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from studio.errors import BadConfig
from studio.limits import limit, too_many
from studio.pipelines.asking import Wanted
from studio.pipelines.grids.axis import Axis, AxisLike, axis_of
from studio.pipelines.grids.kinds import AXES, changes_of
from studio.pipelines.grids.plan import Grid, Plan
from studio.pipelines.image import ImagePipeline

__all__ = ["plan_grid", "strength_sweep", "xyz_grid"]


def xyz_grid(
    pipe: ImagePipeline,
    wanted: str | Wanted,
    *,
    x: AxisLike,
    y: AxisLike | None = None,
    z: AxisLike | None = None,
    title: str | None = None,
    batch_size: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Grid:
    """Draws pictures that differ along axes, and a sheet of them all.

    Args:
        pipe: which draws.
        wanted: a prompt, or a whole picture that the axes change.
        x: what changes from column to column: ``"strength:robot=0,0.5,1"``, ``("seed", range(4))``; the names are
            those of :data:`~studio.pipelines.grids.kinds.AXES`.
        y: what changes from row to row. z: what changes from panel to panel; without a ``y``, from row to row.
        title: above everything; None: the prompt.
        batch_size: images that are computed together. on_step: called as ``on_step(done, total)``.

    Returns:
        The pictures, each with its own texts, and the sheet.

    Raises:
        UnknownName: no axis, adapter or scheduler has that name. BadConfig: an axis that cannot be read, or two of one
            thing, or what :meth:`ImagePipeline.generate` refuses. BadFile: see there. DoesNotFit: see there.
        StudioError: see there.

    Example:
        >>> pipe = ImagePipeline.open("emoji")
        >>> grid = xyz_grid(pipe, "tiger", x="steps=1,2", y=("seed", [0, 1]))
        >>> grid.columns, grid.rows, len(grid.images), grid.at(1, 0).info["parameters"].splitlines()[1][:8]
        (('steps 1', 'steps 2'), ('seed 0', 'seed 1'), 4, 'Steps: 2')
    """
    plan = plan_grid(pipe, wanted, x=x, y=y, z=z)
    made = sorted(pipe.make(plan.wanted, batch_size=batch_size, on_step=on_step), key=lambda one: one.index)
    prompt = wanted if isinstance(wanted, str) else wanted.prompt
    return plan.grid((one.image for one in made), title=prompt if title is None else title)


def plan_grid(
    pipe: ImagePipeline, wanted: str | Wanted, *, x: AxisLike, y: AxisLike | None = None, z: AxisLike | None = None
) -> Plan:
    """Returns the pictures of a grid, to be drawn with :meth:`ImagePipeline.make`.

    Args:
        pipe: which shall draw. wanted: see :func:`xyz_grid`. x: see there. y: see there. z: see there.

    Raises:
        UnknownName: see :func:`xyz_grid`. BadConfig: see there.
    """
    wanted = Wanted(prompt=wanted) if isinstance(wanted, str) else wanted
    if wanted.seed is None or wanted.seed == -1:  # one for all of them, or they would differ by more than the axes
        wanted = replace(wanted, seed=secrets.randbelow(2**32))
    axes = [axis_of(axis) for axis in (x, y, z) if axis is not None]
    _check(axes)
    made = [changes_of(pipe, axis) for axis in axes]
    labels = [tuple(label for label, _ in changes) for changes in made]
    order = sorted(range(len(axes)), key=lambda number: _turn(axes[number]))
    pictures = []
    for places in itertools.product(*(range(len(changes)) for changes in reversed(made))):
        one = wanted
        for number in order:
            one = made[number][places[len(axes) - 1 - number]][1](one)
        pictures.append(one)
    rows, panels = (labels[number] if number < len(labels) else () for number in (1, 2))
    return Plan(wanted=tuple(pictures), columns=labels[0], rows=rows, panels=panels)


def strength_sweep(
    pipe: ImagePipeline,
    wanted: str | Wanted,
    adapter: str,
    *,
    strengths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Grid:
    """Draws a picture at several strengths of one adapter, with a row for each seed.

    Args:
        pipe: which draws, with the adapter loaded.
        wanted: a prompt, or a whole picture.
        adapter: its name.
        strengths: from left to right. seeds: from top to bottom; None: the picture's own.
        batch_size: images that are computed together.

    Raises:
        UnknownName: no adapter has that name. BadConfig: see :func:`xyz_grid`. DoesNotFit: see there.
        BadFile: see there. StudioError: see there.
    """
    y = None if seeds is None else ("seed", seeds)
    return xyz_grid(pipe, wanted, x=(f"strength:{adapter}", strengths), y=y, batch_size=batch_size)


def _check(axes: Sequence[Axis]) -> None:
    """Refuses two axes of one thing, and grids without end.

    Raises:
        BadConfig: either.
    """
    titles = [axis.title for axis in axes]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise BadConfig(f"two axes change {twice!r}, of which the second would win; give them different ones")
    count = math.prod(len(axis.values) for axis in axes)
    if count > limit("seeds"):
        raise BadConfig(f"the axes make {count:,} pictures, which is more than a sheet is for; {too_many('seeds')}")


def _turn(axis: Axis) -> tuple[int, bool]:
    return AXES[axis.name].turn, bool(axis.of)
