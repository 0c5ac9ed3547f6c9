"""The pictures that a command is asked for, as a list, and the sheet that shows them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import BadConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from studio.pipelines import ImagePipeline, Wanted

__all__ = ["Asked", "Listed", "sheet_place"]


@dataclass(frozen=True)
class Listed:
    """Pictures in their order, and how they stand on a sheet.

    Args:
        wanted: the pictures. sheet: makes the sheet of them, drawn.
    """

    wanted: Sequence[Wanted]
    sheet: Callable[[Sequence[Image]], Image]


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, before a base is open.

    Args:
        prompts: none: those of the picture that it begins with. seeds: likewise.
        sheet: ``x``, ``y``, ``z`` and ``matrix``, of those that were given.
        picture: what is said of each picture, by the names of :class:`Wanted`.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    sheet: Mapping[str, Any]
    picture: Mapping[str, Any]

    def count(self) -> int:
        """Returns how many pictures that are.

        Raises:
            BadConfig: an axis that cannot be read, too many of them, or a matrix beside them.
        """
        if self.sheet.get("matrix"):
            return len(self._matrix(None).wanted)
        from studio.pipelines.grids.axis import axis_of

        axes = [axis_of(axis) for axis in self._axes()]
        return (
            math.prod(len(axis.values) for axis in axes)
            if axes
            else max(1, len(self.prompts)) * max(1, len(self.seeds))
        )

    def listed(self, pipe: ImagePipeline, like: Wanted | None) -> Listed:
        """Returns the pictures.

        Args:
            pipe: which shall draw them.
            like: the picture that they are like; None: there is none.

        Raises:
            BadConfig: see :meth:`count`. UnknownName: an axis, or what it is of, is not known.
        """
        from studio.pipelines.grids.xyz import plan_grid

        if self.sheet.get("matrix"):
            plan = self._matrix(like)
            return Listed(plan.wanted, lambda images: plan.grid(images, title=plan.wanted[0].prompt).sheet)
        axes = self._axes()
        if axes:
            first = self._each(like)[0]
            grid = plan_grid(pipe, first, **dict(zip("xyz", axes, strict=False)))
            return Listed(grid.wanted, lambda images: grid.grid(images, title=first.prompt).sheet)
        each = self._each(like)
        return Listed(each, lambda images: _plain_sheet(images, each, len(self.seeds)))

    def _axes(self) -> list[Any]:
        """Those that were given; several prompts, and several seeds, are axes where any is."""
        given = [self.sheet[name] for name in "xyz" if name in self.sheet]
        if not given:
            return []
        if "x" not in self.sheet:
            raise BadConfig("a grid begins with --x: give it too")
        more: list[Any] = [("prompt", self.prompts)] if len(self.prompts) > 1 else []
        more += [("seed", self.seeds)] if len(self.seeds) > 1 else []
        if len(given) + len(more) > 3:
            raise BadConfig("a grid has three axes, and several prompts, or several seeds, are one each; give fewer")
        return [*given, *more]

    def _matrix(self, like: Wanted | None) -> Any:
        from studio.pipelines.grids.matrix import plan_matrix

        if any(name in self.sheet for name in "xyz") or len(self.prompts) > 1 or len(self.seeds) > 1:
            raise BadConfig(
                "--matrix is of one prompt and one seed, without --x, --y and --z; give them in another call"
            )
        return plan_matrix(self._each(like)[0])

    def _each(self, like: Wanted | None) -> list[Wanted]:
        """Every prompt with every seed."""
        from studio.pipelines import Wanted

        first = replace(like or Wanted(prompt=self.prompts[0] if self.prompts else ""), **self.picture)
        if {"negative", "wildcards"} & set(self.picture):
            first = replace(first, resolved=None)
        prompts = [replace(first, prompt=prompt, resolved=None) for prompt in self.prompts] or [first]
        return [replace(one, seed=seed) for one in prompts for seed in self.seeds] if self.seeds else prompts


def sheet_place(folder: Path, grid: Path | None, sheet: Mapping[str, Any], *, overwrite: bool) -> Path | None:
    """Returns where the sheet goes: where it was asked for, or, of a grid, into the pictures' folder.

    Args:
        folder: of the pictures. grid: the file that was named; None: none was. sheet: the axes that were given.
        overwrite: over the one that is there.
    """
    if grid is not None or not sheet:
        return None if grid is None else grid.expanduser()
    names = (folder / (f"grid-{number}.png" if number else "grid.png") for number in range(100_000))
    return next(file for file in names if overwrite or not file.exists())


def _plain_sheet(images: Sequence[Image], wanted: Sequence[Wanted], seeds: int) -> Image:
    """One sheet of them all, each with its prompt and seed."""
    from studio.pipelines import contact_sheet

    labels = [f"{one.prompt} · {one.seed}" for one in wanted]
    columns = seeds if 1 < seeds <= 8 else min(len(images), 8 if len(images) > 12 else 4)
    return contact_sheet(images, columns=columns, labels=labels)
