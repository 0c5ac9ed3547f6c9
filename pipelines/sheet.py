"""Contact sheets: many pictures on one, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image, ImageDraw

from studio.errors import BadConfig
from studio.pipelines.drawing import SHEET, Drawing
from studio.pipelines.lettering import clip, line_height, text_width, typeface, wrap, write

__all__ = ["before_after", "contact_sheet"]

PAPER = (255, 255, 255)
INK = (32, 33, 36)
QUIET = (95, 99, 104)
FRAME = (218, 220, 224)
LEAST_SIDE = 176  # smaller pictures are enlarged, so that their labels fit and eyes can judge them
LINES = 5  # of a label; what is longer is cut
LARGEST_SIDE = 1024  # but no picture beyond this


def contact_sheet(
    images: Sequence[Image.Image],
    *,
    columns: int,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str | None = None,
    subtitle: str | None = None,
    enlarge: bool = True,
) -> Image.Image:
    """Puts pictures in a grid, row by row.

    Args:
        images: the pictures, of any sizes; a column is as wide as its widest, a row as high as its highest.
        columns: pictures per row.
        labels: one text per picture, below it.
        row_labels: one text per row, left of it.
        column_labels: one text per column, above it.
        title: above everything.
        subtitle: below the title, smaller.
        enlarge: whether pictures under 176 pixels are enlarged by a whole factor.

    Returns:
        The sheet; the ``studio`` text that a PNG of it keeps says what it is, so that it is not taken for data.

    Raises:
        BadConfig: no pictures, no columns, or a number of labels that does not fit.

    Example:
        >>> tile = Image.new("RGB", (64, 64), "teal")
        >>> contact_sheet([tile] * 4, columns=2, row_labels=["base", "with adapter"], title="robot").mode
        'RGB'
    """
    if not images:
        raise BadConfig("a contact sheet needs at least one picture")
    if not isinstance(columns, int) or columns < 1:
        raise BadConfig(f"columns={columns!r}: a sheet has at least one column")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    for what, texts, count in (
        ("labels", labels, len(images)),
        ("row_labels", row_labels, rows),
        ("column_labels", column_labels, columns),
    ):
        if texts is not None and len(texts) != count:
            raise BadConfig(f"{what} has {len(texts)} texts for {count} places; give one for each")
    sheet = _Sheet(
        _enlarged(images) if enlarge else tuple(image.convert("RGB") for image in images),
        columns,
        tuple(labels or ()),
        tuple(row_labels or ()),
        tuple(column_labels or ()),
        title or "",
        subtitle or "",
    ).draw()
    return Drawing.of(sheet, {"studio": SHEET})


def before_after(
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    prompts: Sequence[str],
    *,
    row_labels: tuple[str, str] = ("base", "with adapter"),
    title: str | None = None,
    subtitle: str | None = None,
) -> Image.Image:
    """Puts the base's pictures above the adapter's, one column per prompt.

    Args:
        before: the base's pictures.
        after: the adapter's pictures, in the same order.
        prompts: one per column.
        row_labels: what the two rows are called.
        title: above everything.
        subtitle: below the title, smaller.

    Raises:
        BadConfig: the three do not have one length.
    """
    if not len(before) == len(after) == len(prompts):
        raise BadConfig(
            f"{len(before)} pictures before, {len(after)} after and {len(prompts)} prompts; a column needs one of each"
        )
    return contact_sheet(
        [*before, *after],
        columns=len(prompts),
        row_labels=row_labels,
        column_labels=prompts,
        title=title,
        subtitle=subtitle,
    )


@dataclass(frozen=True)
class _Sheet:
    """The layout: margins, sizes of the bands for texts, and where each cell stands."""

    images: tuple[Image.Image, ...]
    columns: int
    labels: tuple[str, ...]
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    title: str
    subtitle: str

    @cached_property
    def rows(self) -> list[range]:
        """The indices of the pictures of each row."""
        count = len(self.images)
        return [range(first, min(first + self.columns, count)) for first in range(0, count, self.columns)]

    @cached_property
    def widths(self) -> list[int]:
        return [max(image.width for image in self.images[column :: self.columns]) for column in range(self.columns)]

    @cached_property
    def heights(self) -> list[int]:
        return [max(self.images[index].height for index in row) for row in self.rows]

    @cached_property
    def fonts(self) -> tuple[Any, Any, Any]:
        """Of labels, of the labels of rows, of the title; they grow with the pictures."""
        size = max(15, min(min(self.widths) // 12, 30))
        return typeface(size), typeface(round(size * 1.1)), typeface(round(size * 1.6))

    @cached_property
    def gap(self) -> int:
        return max(10, min(self.widths) // 16)

    @cached_property
    def margin(self) -> int:
        return max(24, min(self.widths) // 8)

    @cached_property
    def below(self) -> list[list[str]]:
        """The lines below each picture."""
        each = (wrap(label, self.fonts[0], self.widths[n % self.columns]) for n, label in enumerate(self.labels))
        return [clip(lines, LINES) for lines in each]

    @cached_property
    def above(self) -> list[list[str]]:
        """The lines above each column."""
        each = zip(self.column_labels, self.widths, strict=False)
        return [clip(wrap(text, self.fonts[0], width), LINES) for text, width in each]

    @cached_property
    def beside(self) -> list[list[str]]:
        """The lines left of each row."""
        font, room = self.fonts[1], max(min(self.widths), 120)
        fitting = [height // line_height(font) for height in self.heights]
        each = zip(self.row_labels, fitting, strict=False)
        return [clip(wrap(label, font, room), most) for label, most in each]

    @cached_property
    def lefts(self) -> list[int]:
        """Where each column begins."""
        band = max((text_width(self.fonts[1], part) for lines in self.beside for part in lines), default=0)
        left = self.margin + (band + round(self.gap * 1.5) if self.beside else 0)
        return [left + sum(self.widths[:column]) + column * self.gap for column in range(self.columns)]

    @cached_property
    def width(self) -> int:
        return self.lefts[-1] + self.widths[-1] + self.margin

    @cached_property
    def head(self) -> tuple[list[str], list[str]]:
        """The lines of the title and of the subtitle."""
        room = self.width - 2 * self.margin
        return clip(wrap(self.title, self.fonts[2], room), LINES), clip(wrap(self.subtitle, self.fonts[0], room), LINES)

    @cached_property
    def tops(self) -> list[int]:
        """Where each row's pictures begin, and where the next row would."""
        text, _, large = self.fonts
        head = len(self.head[0]) * line_height(large) + len(self.head[1]) * line_height(text)
        band = max((len(lines) for lines in self.above), default=0) * line_height(text)
        tops = [self.margin + (head + self.gap if head else 0) + (band + self.gap // 2 if band else 0)]
        for row, height in zip(self.rows, self.heights, strict=True):
            band = max((len(self.below[index]) for index in row if self.below), default=0) * line_height(text)
            tops.append(tops[-1] + height + (band + self.gap // 2 if band else 0) + self.gap)
        return tops

    def draw(self) -> Image.Image:
        sheet = Image.new("RGB", (self.width, self.tops[-1] - self.gap + self.margin), PAPER)
        pen = ImageDraw.Draw(sheet)
        text, _, large = self.fonts
        y = write(pen, self.margin, self.margin, self.head[0], large, INK)
        write(pen, self.margin, y, self.head[1], text, QUIET)
        for column, lines in enumerate(self.above):
            y = self.tops[0] - self.gap // 2 - len(lines) * line_height(text)
            write(pen, self.lefts[column], y, lines, text, INK, centre=self.widths[column])
        for number in range(len(self.rows)):
            self._draw_row(sheet, pen, number)
        return sheet

    def _draw_row(self, sheet: Image.Image, pen: ImageDraw.ImageDraw, number: int) -> None:
        y, height = self.tops[number], self.heights[number]
        text, strong, _ = self.fonts
        if self.beside:
            lines = self.beside[number]
            write(pen, self.margin, y + (height - len(lines) * line_height(strong)) // 2, lines, strong, INK)
        for index in self.rows[number]:
            x, width = self.lefts[index % self.columns], self.widths[index % self.columns]
            _put(sheet, pen, self.images[index], x + width // 2, y + height // 2)
            if self.below:
                write(pen, x, y + height + self.gap // 2, self.below[index], text, QUIET, centre=width)


def _put(sheet: Image.Image, pen: ImageDraw.ImageDraw, image: Image.Image, x: int, y: int) -> None:
    """Puts a picture with its middle at (x, y)."""
    left, top = x - image.width // 2, y - image.height // 2
    sheet.paste(image, (left, top))
    # a hairline outside the picture, or white backgrounds would run into the paper
    pen.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=FRAME)


def _enlarged(images: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    """All by one whole factor, so that they keep their proportions to each other."""
    factor = max(1, -(-LEAST_SIDE // min(max(image.size) for image in images)))
    largest = max(max(image.size) for image in images)
    factor = max(1, min(factor, LARGEST_SIDE // largest))
    if factor == 1:
        return tuple(image.convert("RGB") for image in images)
    return tuple(
        image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
        for image in images
    )
