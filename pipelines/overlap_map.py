"""A heat map of what adapters do to each other: a row per block, a column per adapter, pair and sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from PIL import Image, ImageDraw

from studio.adapters.interference import BlendReport, cells, heading
from studio.adapters.overlap import Overlap
from studio.pipelines.heat import COLD, DEEP, INK, NOTHING, PAPER, QUIET, WARM, Colour, is_dark, mixed
from studio.pipelines.lettering import line_height, text_width, typeface, wrap, write

__all__ = ["overlap_map"]

CELL: Final = 96
HIGH: Final = 30
GAP: Final = 2
MARGIN: Final = 28


def overlap_map(report: BlendReport) -> Image.Image:
    """Draws a report: how far each adapter moves each block, how alike two are there, and how far all go together.

    Violet is the change as a part of the base's norm, darker the larger. A cosine is red where two do the same and blue
    where they undo each other; the growth is red where the sum goes further than the strongest by itself.

    Args:
        report: of :func:`studio.blend_report`.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",), init="gaussian"), name="dog")
        >>> _ = studio.state(net, "dog")["0.up"].data.fill_(0.1)
        >>> overlap_map(studio.blend_report(net)).mode
        'RGB'
    """
    return _Map(report).draw()


@dataclass(frozen=True)
class _Map:
    report: BlendReport

    @cached_property
    def fonts(self) -> tuple[object, object]:
        """Of cells, of the title."""
        return typeface(15), typeface(22)

    @cached_property
    def places(self) -> list[Overlap]:
        return [*self.report.blocks, self.report.whole]

    @cached_property
    def rows(self) -> list[tuple[str, ...]]:
        return [cells(place, self.report.whole) for place in self.places]

    @cached_property
    def heads(self) -> list[list[str]]:
        """The lines above each column; a pair is broken between its names."""
        titles = [title.replace("·", " · ") for title in heading(self.report.whole)[2:]]
        return [wrap(title, self.fonts[0], CELL - 4) for title in titles]

    @cached_property
    def band(self) -> int:
        return max(text_width(self.fonts[0], row[0]) for row in self.rows) + 16

    @cached_property
    def width(self) -> int:
        return max(2 * MARGIN + self.band + len(self.heads) * (CELL + GAP), 640)

    @cached_property
    def advice(self) -> list[str]:
        room = self.width - 2 * MARGIN
        clauses = [clause for line in self.report.advice for clause in line.split("; ")]
        return [part for clause in clauses for part in wrap(clause, self.fonts[0], room)]

    def draw(self) -> Image.Image:
        text, large = self.fonts
        top = MARGIN + line_height(large) + 12 + max(map(len, self.heads)) * line_height(text) + 6
        end = top + len(self.rows) * (HIGH + GAP) + 8
        high = end + 14 + len(self.advice) * line_height(text) + MARGIN
        sheet = Image.new("RGB", (self.width, high), PAPER)
        pen = ImageDraw.Draw(sheet)
        write(pen, MARGIN, MARGIN, [f"what {' and '.join(self.report.whole.norms)} do to each other"], large, INK)
        for column, lines in enumerate(self.heads):
            y = top - 6 - len(lines) * line_height(text)
            write(pen, self._left(column), y, lines, text, QUIET, centre=CELL)
        for number, (place, row) in enumerate(zip(self.places, self.rows, strict=True)):
            last = number == len(self.rows) - 1
            self._row(pen, top + number * (HIGH + GAP) + (8 if last else 0), place, row)
        write(pen, MARGIN, end + 14, self.advice, text, INK)
        return sheet

    def _left(self, column: int) -> int:
        return MARGIN + self.band + column * (CELL + GAP)

    def _row(self, pen: ImageDraw.ImageDraw, y: int, place: Overlap, row: Sequence[str]) -> None:
        text = self.fonts[0]
        inner = y + (HIGH - line_height(text)) // 2
        write(pen, MARGIN, inner, [row[0]], text, INK)
        for column, (cell, colour) in enumerate(zip(row[2:], self._colours(place), strict=True)):
            x = self._left(column)
            pen.rectangle((x, y, x + CELL - 1, y + HIGH - 1), fill=colour)
            write(pen, x, inner, [cell], text, PAPER if is_dark(colour) else INK, centre=CELL)

    def _colours(self, place: Overlap) -> list[Colour]:
        """One per column, in the order of :func:`cells`."""
        whole = self.report.whole
        norms = [_or_nothing(place.norms.get(name), self._by_change(place)) for name in whole.norms]
        cosines = [_or_nothing(place.cosines.get(pair), _two_sided) for pair in whole.cosines]
        return [*norms, *cosines, self._by_change(place)(place.total), _two_sided(place.growth - 1), NOTHING]

    def _by_change(self, place: Overlap) -> Callable[[float], Colour]:
        """The colour of a change at a place: of its part of the base, against the largest anywhere."""
        return lambda norm: mixed(DEEP, _part(place, norm) / self._largest)

    @cached_property
    def _largest(self) -> float:
        return max(_part(place, norm) for place in self.places for norm in (place.total, *place.norms.values())) or 1.0


def _part(place: Overlap, norm: float) -> float:
    part = place.relative(norm)
    return norm if part is None else part


def _or_nothing(value: float | None, colour: Callable[[float], Colour]) -> Colour:
    return NOTHING if value is None else colour(value)


def _two_sided(value: float) -> Colour:
    return mixed(WARM if value > 0 else COLD, abs(value))
