"""The pictures of a grid and where each stands, before and after they are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from studio.errors import BadConfig
from studio.limits import limit
from studio.pipelines.asking import Wanted
from studio.pipelines.sheet import contact_sheet

__all__ = ["Grid", "Plan"]

LEAST: Final = 32  # pixels along the longer side of a picture that had to shrink


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A grid that is to be drawn.

    Args:
        wanted: the pictures: panel by panel, in each row by row.
        columns: what each column is called. rows: what each row is. panels: what each panel is; empty: there is one.
    """

    wanted: tuple[Wanted, ...]
    columns: tuple[str, ...]
    rows: tuple[str, ...] = ()
    panels: tuple[str, ...] = ()

    def grid(self, images: Iterable[Image.Image], *, title: str | None = None, subtitle: str | None = None) -> Grid:
        """Returns the grid of the pictures that were drawn.

        Args:
            images: one for each that was wanted, in that order.
            title: above everything. subtitle: below the title, smaller.

        Raises:
            BadConfig: another number of pictures.
        """
        images = tuple(images)
        if len(images) != len(self.wanted):
            raise BadConfig(f"{len(images)} pictures for a grid of {len(self.wanted)}; give one for each place")
        shown = _fitting(images)
        sheet = _sheet(self, shown, title, subtitle, enlarge=shown is images)
        return Grid(images=images, columns=self.columns, rows=self.rows, panels=self.panels, sheet=sheet)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid that was drawn.

    Args:
        images: the pictures: panel by panel, in each row by row.
        columns: what each column is called. rows: what each row is. panels: what each panel is; empty: there is one.
        sheet: all of them on one, with labels.
    """

    images: tuple[Image.Image, ...]
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    panels: tuple[str, ...]
    sheet: Image.Image

    def at(self, x: int, y: int = 0, z: int = 0) -> Image.Image:
        """Returns the picture of a column, a row and a panel, each counted from 0.

        Raises:
            BadConfig: there is no such place.
        """
        counts = [len(self.columns), max(1, len(self.rows)), max(1, len(self.panels))]
        if not all(0 <= place < count for place, count in zip((x, y, z), counts, strict=True)):
            raise BadConfig(f"the grid has {' x '.join(map(str, counts))} places, and ({x}, {y}, {z}) is none of them")
        return self.images[(z * counts[1] + y) * counts[0] + x]


def _sheet(
    plan: Plan, images: Sequence[Image.Image], title: str | None, subtitle: str | None, *, enlarge: bool
) -> Image.Image:
    size = len(plan.columns) * max(1, len(plan.rows))

    def panel(some: Sequence[Image.Image], name: str | None, below: str | None = None) -> Image.Image:
        return contact_sheet(
            some, columns=len(plan.columns), row_labels=plan.rows or None, column_labels=plan.columns, title=name,
            subtitle=below, enlarge=enlarge,
        )  # fmt: skip

    if not plan.panels:
        return panel(images, title, subtitle)
    panels = [panel(images[number * size : (number + 1) * size], name) for number, name in enumerate(plan.panels)]
    return contact_sheet(panels, columns=_across(panels), title=title, subtitle=subtitle, enlarge=False)


def _across(panels: Sequence[Image.Image]) -> int:
    """How many panels stand side by side so that the sheet is about three by two."""
    width, height = (max(side) for side in zip(*(panel.size for panel in panels), strict=True))
    return min(len(panels), max(1, round(math.sqrt(1.5 * len(panels) * height / width))))


def _fitting(images: tuple[Image.Image, ...]) -> tuple[Image.Image, ...]:
    """All by one factor, so that a sheet of them keeps within what is opened as a picture."""
    area = sum(image.width * image.height for image in images) * 1.5  # margins and labels
    factor = min(1.0, math.sqrt(limit("picture-pixels") / area))
    factor = max(factor, LEAST / max(max(image.size) for image in images))
    if factor >= 1:
        return images
    return tuple(
        image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))), Image.Resampling.LANCZOS)
        for image in images
    )
