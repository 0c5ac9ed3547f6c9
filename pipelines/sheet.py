"""Contact sheets: many pictures on one, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from studio.errors import BadConfig

__all__ = ["before_after", "contact_sheet"]

PAPER = (255, 255, 255)
INK = (32, 33, 36)
QUIET = (95, 99, 104)
FRAME = (218, 220, 224)
LEAST_SIDE = 176  # smaller pictures are enlarged, so that their labels fit and eyes can judge them
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
    return _Sheet(
        _enlarged(images) if enlarge else tuple(image.convert("RGB") for image in images),
        columns,
        tuple(labels or ()),
        tuple(row_labels or ()),
        tuple(column_labels or ()),
        title or "",
        subtitle or "",
    ).draw()


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

    def draw(self) -> Image.Image:
        count = self.columns
        rows = [range(first, min(first + count, len(self.images))) for first in range(0, len(self.images), count)]
        widths = [max(image.width for image in self.images[column::count]) for column in range(count)]
        heights = [max(self.images[index].height for index in row) for row in rows]
        size = max(15, min(min(widths) // 12, 30))
        text, strong, head = _font(size), _font(round(size * 1.1)), _font(round(size * 1.6))
        gap, margin, line = max(10, min(widths) // 16), max(24, min(widths) // 8), _line(text)

        labels = [_wrap(label, text, widths[index % count]) for index, label in enumerate(self.labels)]
        tops = [_wrap(label, text, width) for label, width in zip(self.column_labels, widths, strict=False)]
        sides = [_wrap(label, strong, max(min(widths), 120)) for label in self.row_labels]
        below = [max((len(labels[index]) for index in row if labels), default=0) * line for row in rows]
        top_band = max((len(lines) for lines in tops), default=0) * line
        side_band = max((_width(strong, part) for lines in sides for part in lines), default=0)
        left = margin + (side_band + round(gap * 1.5) if sides else 0)
        lefts = [left + sum(widths[:column]) + column * gap for column in range(count)]
        whole = lefts[-1] + widths[-1] + margin
        titles = _wrap(self.title, head, whole - 2 * margin)
        subtitles = _wrap(self.subtitle, text, whole - 2 * margin)
        title_band = len(titles) * _line(head) + len(subtitles) * line
        top = margin + (title_band + gap if title_band else 0) + (top_band + gap // 2 if top_band else 0)
        steps = [height + (band + gap // 2 if band else 0) + gap for height, band in zip(heights, below, strict=True)]
        sheet = Image.new("RGB", (whole, top + sum(steps) - gap + margin), PAPER)
        pen = ImageDraw.Draw(sheet)

        y = _write(pen, margin, margin, titles, head, INK)
        _write(pen, margin, y, subtitles, text, QUIET)
        for column, lines in enumerate(tops):
            y = top - gap // 2 - len(lines) * line
            _write(pen, lefts[column], y, lines, text, INK, centre=widths[column])
        for number, row in enumerate(rows):
            y, height = top + sum(steps[:number]), heights[number]
            if sides:
                _write(pen, margin, y + (height - len(sides[number]) * _line(strong)) // 2, sides[number], strong, INK)
            for index in row:
                x, width = lefts[index % count], widths[index % count]
                _put(sheet, pen, self.images[index], x + width // 2, y + height // 2)
                if labels:
                    _write(pen, x, y + height + gap // 2, labels[index], text, QUIET, centre=width)
        return sheet


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


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)  # it comes with Pillow: a sheet looks alike on every machine


def _line(font: Any) -> int:
    ascent, descent = font.getmetrics()
    return round((ascent + descent) * 1.15)


def _width(font: Any, text: str) -> int:
    return round(font.getlength(text))


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Lines no wider than ``width``, as few as possible and then as even as possible."""
    lines = _fill(text, font, width)
    for narrower in range(width, 0, -max(1, width // 24)):
        evener = _fill(text, font, narrower)
        if len(evener) > len(lines):
            break
        lines = evener
    return lines


def _fill(text: str, font: Any, width: int) -> list[str]:
    """Lines no wider than ``width``; a word that is wider is cut."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            while _width(font, word) > width and len(word) > 1:
                cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _width(font, word[:n]) <= width)
                lines += [line, word[:cut]] if line else [word[:cut]]
                line, word = "", word[cut:]
            longer = f"{line} {word}".strip()
            if line and _width(font, longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def _write(
    pen: ImageDraw.ImageDraw,
    x: int,
    y: int,
    lines: Sequence[str],
    font: Any,
    colour: tuple[int, int, int],
    *,
    centre: int | None = None,
) -> int:
    """Writes lines from ``(x, y)`` downwards, centred in ``centre`` pixels if asked; returns the next y."""
    for line in lines:
        shift = 0 if centre is None else (centre - _width(font, line)) // 2
        pen.text((x + shift, y), line, font=font, fill=colour)
        y += _line(font)
    return y
