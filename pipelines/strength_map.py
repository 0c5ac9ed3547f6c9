"""A heat map of how far an adapter moves its base: a row per block, a column per kind of layer, bars for the sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Final

from PIL import Image, ImageDraw

from studio.files.magnitude import Magnitudes
from studio.files.places import Kind
from studio.pipelines.heat import DEEP, INK, NOTHING, PAPER, QUIET, Colour, is_dark, mixed
from studio.pipelines.lettering import line_height, text_width, typeface, wrap, write

__all__ = ["figure", "strength_map"]

CELL: Final = 54
BAR: Final = 150
GAP: Final = 2
APART: Final = 12  # between groups of columns, and components
MARGIN: Final = 28
MANY: Final = 40  # rows from which they are lower
SCALE: Final = 180  # pixels of the legend
TOLD: Final = {
    "change": "the norm of what is added to the weights, at strength 1",
    "pair": "the norm of the factor pairs alone: their magnitudes act on the base's own weights, which were not given",
    "share": "the change as a part of weights of random numbers: the base's own were not given",
    "tensors": "the norm of the adapter's own tensors: it changes no weight",
}


def figure(number: float) -> str:
    """Returns a number in three digits.

    Example:
        >>> [figure(number) for number in (123.4, 7.0, 0.01234, 1e-9, 0.0)]
        ['123', '7.00', '0.0123', '1.0e-09', '0']
    """
    if not number or number >= 99.95:
        return f"{number:.0f}" if number < 1e5 else f"{number:.1e}"
    return f"{number:#.3g}" if number >= 1e-3 else f"{number:.1e}"


def strength_map(report: Magnitudes, *, title: str = "") -> Image.Image:
    """Draws how far an adapter moves each block of its base.

    A cell is the root of the sum of squares over the layers of one kind in one block, darker the larger (its colour
    goes by the root); the bars on the right and the last row are the same over all kinds, and over all blocks.

    Args:
        report: of :func:`studio.files.magnitude.magnitudes`. title: above it; "": the file's name.

    Example:
        >>> from pathlib import Path
        >>> from studio.files.magnitude import Magnitude
        >>> layer = Magnitude("unet.mid_block.to_q", "M00", Kind("attention", "q"), 1.5, "change", 64)
        >>> strength_map(Magnitudes(Path("dog.safetensors"), "lora", "sd1", (layer,))).mode
        'RGB'
    """
    return _Map(report, title or report.file.stem).draw()


@dataclass(frozen=True)
class _Map:
    report: Magnitudes
    title: str

    @cached_property
    def fonts(self) -> tuple[Any, Any, Any]:
        """Of cells, of labels, of the title."""
        return typeface(11), typeface(13), typeface(22)

    @cached_property
    def blocks(self) -> dict[str, float]:
        return self.report.blocks

    @cached_property
    def cells(self) -> dict[tuple[str, Kind], float]:
        return self.report.cells

    @cached_property
    def high(self) -> int:
        return 17 if len(self.blocks) > MANY else 22

    @cached_property
    def columns(self) -> dict[Kind, int]:
        """Kind -> where its column begins."""
        found: dict[Kind, int] = {}
        x = MARGIN + self.band
        for _, kinds in groupby(self.report.kinds, key=lambda kind: kind.group):
            for kind in kinds:
                found[kind] = x
                x += CELL + GAP
            x += APART
        return found

    @cached_property
    def rows(self) -> dict[str, int]:
        """Block -> where its row begins."""
        parts = {one.block: one.path.partition(".")[0] for one in self.report.layers}
        found: dict[str, int] = {}
        y, before = self.top, ""
        for block in self.blocks:
            kind = block.rstrip("0123456789") if block[-1:].isdigit() and "." not in block else parts[block]
            y += APART // 2 if found and kind != before else 0
            found[block], before = y, kind
            y += self.high + GAP
        return found

    @cached_property
    def band(self) -> int:
        return max(text_width(self.fonts[1], block) for block in (*self.blocks, "all blocks")) + 14

    @cached_property
    def bars(self) -> int:
        return max(self.columns.values()) + CELL + GAP + APART

    @cached_property
    def width(self) -> int:
        return max(self.bars + BAR + MARGIN, 760)

    @cached_property
    def lines(self) -> list[str]:
        said = [f"{self.report.method} in {len(self.report.layers)} layers of {self.report.base}; "
                f"all together {figure(self.report.whole)}"]  # fmt: skip
        said += [TOLD[name] for name in self.report.measures]
        return [part for line in said for part in wrap(line, self.fonts[1], self.width - 2 * MARGIN)]

    @cached_property
    def top(self) -> int:
        _, label, large = self.fonts
        return MARGIN + line_height(large) + 6 + len(self.lines) * line_height(label) + 16 + 2 * line_height(label) + 6

    @cached_property
    def largest(self) -> float:
        return max(self.cells.values(), default=0.0) or 1.0

    def draw(self) -> Image.Image:
        _, label, large = self.fonts
        last = max(self.rows.values()) + self.high + GAP + APART
        sheet = Image.new("RGB", (self.width, last + self.high + 22 + 2 * line_height(label) + MARGIN), PAPER)
        pen = ImageDraw.Draw(sheet)
        write(pen, MARGIN, MARGIN, wrap(f"how far {self.title} moves each block", large, self.width)[:1], large, INK)
        write(pen, MARGIN, MARGIN + line_height(large) + 6, self.lines, label, QUIET)
        self._heads(pen)
        for block, y in self.rows.items():
            self._row(pen, block, y)
        self._sums(pen, last)
        self._legend(pen, last + self.high + 22)
        return sheet

    def _heads(self, pen: ImageDraw.ImageDraw) -> None:
        _, label, _ = self.fonts
        y = self.top - 6 - 2 * line_height(label)
        for group, kinds in groupby(self.columns, key=lambda kind: kind.group):
            own = list(kinds)
            left, right = self.columns[own[0]], self.columns[own[-1]] + CELL
            shown = (group.replace(" of words", ", words"), group.replace("-forward of words", ", words"), group[:6])
            fitting = next((one for one in shown if text_width(label, one) <= right - left + APART), shown[-1])
            write(pen, left, y, [fitting], label, INK, centre=right - left)
            for kind in own:
                write(pen, self.columns[kind], y + line_height(label), [kind.part], label, QUIET, centre=CELL)
        write(pen, self.bars, y + line_height(label), ["together"], label, QUIET)

    def _row(self, pen: ImageDraw.ImageDraw, block: str, y: int) -> None:
        cell, label, _ = self.fonts
        write(pen, MARGIN, y + (self.high - line_height(label)) // 2, [block], label, INK)
        for kind, x in self.columns.items():
            norm = self.cells.get((block, kind))
            self._cell(pen, x, y, norm, NOTHING if norm is None else self._colour(norm / self.largest))
        long = round((BAR - 44) * self.blocks[block] / max(self.blocks.values())) if max(self.blocks.values()) else 0
        pen.rectangle((self.bars, y + 3, self.bars + max(long, 1), y + self.high - 4), fill=DEEP)
        inner = y + (self.high - line_height(cell)) // 2
        write(pen, self.bars + long + 7, inner, [figure(self.blocks[block])], cell, INK)

    def _sums(self, pen: ImageDraw.ImageDraw, y: int) -> None:
        cell, label, _ = self.fonts
        kinds = self.report.kinds
        most = max(kinds.values()) or 1.0
        write(pen, MARGIN, y + (self.high - line_height(label)) // 2, ["all blocks"], label, INK)
        for kind, x in self.columns.items():
            self._cell(pen, x, y, kinds[kind], self._colour(kinds[kind] / most))
        inner = y + (self.high - line_height(cell)) // 2
        write(pen, self.bars, inner, [figure(self.report.whole)], cell, INK)

    def _cell(self, pen: ImageDraw.ImageDraw, x: int, y: int, norm: float | None, colour: Colour) -> None:
        font = self.fonts[0]
        pen.rectangle((x, y, x + CELL - 1, y + self.high - 1), fill=colour)
        if norm is not None:
            inner = y + (self.high - line_height(font)) // 2
            write(pen, x, inner, [figure(norm)], font, PAPER if is_dark(colour) else INK, centre=CELL)

    def _legend(self, pen: ImageDraw.ImageDraw, y: int) -> None:
        cell, label, _ = self.fonts
        left = MARGIN + self.band
        write(pen, MARGIN, y - 2, ["a cell"], label, QUIET)
        for step in range(SCALE):
            pen.line((left + step, y, left + step, y + 11), fill=mixed(DEEP, step / (SCALE - 1)))
        for place in (0.0, 0.5, 1.0):
            text = figure(place**2 * self.largest)
            x = left + round(place * (SCALE - 1)) - text_width(cell, text) // 2
            write(pen, x, y + 14, [text], cell, QUIET)

    def _colour(self, share: float) -> Colour:
        return mixed(DEEP, share**0.5)
