"""A forecast as a picture: a bar for each phase of a run, stacked by what is held."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from studio.planning.forecast import CATEGORIES, Forecast
from studio.planning.sizes import in_words

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["draw"]

COLOURS: Final[Mapping[str, str]] = {
    "weights": "#4c6a92", "adapter": "#e08e45", "gradients": "#c9504a", "optimizer": "#8f6bb3",
    "communication": "#9c8163", "activations": "#58a083", "temporaries": "#b9c98b", "preview": "#e3c35b",
    "save": "#9aa5b1",
}  # fmt: skip
INK, PALE, RULE = "#22272e", "#5f6873", "#dfe3e8"
WIDTH, HEIGHT, SCALE = 960, 520, 2
LEFT, RIGHT, TOP, BOTTOM = 84, 200, 84, 56


def draw(forecast: Forecast, limit: int | None = None, measured: int | None = None) -> Image:
    """Returns the picture.

    Args:
        forecast: what is drawn. limit: bytes that there are, drawn as a line; None draws none. measured: bytes that a
            run has held at most, drawn as a bar of its own; None draws none.

    Example:
        >>> from studio.planning.forecast import Phase
        >>> draw(Forecast("sd1", {}, (Phase("forward", {"weights": 2_000_000_000}),))).size
        (1920, 1040)
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    sheet = _Sheet(ImageDraw.Draw(image))
    top = _ceiling(max(forecast.peak, limit or 0, measured or 0))
    sheet.text((24, 18), f"{forecast.base}: {in_words(forecast.peak)} at the peak", 22, INK)
    sheet.text((24, 50), _under(forecast), 13, PALE)
    sheet.axis(top)
    sheet.bars(forecast, top, measured)
    if limit is not None:
        sheet.limit(limit, top)
    used = [name for name in CATEGORIES if any(phase.by.get(name, 0) > top / 500 for phase in forecast.phases)]
    sheet.legend(used)
    return image


def _under(forecast: Forecast) -> str:
    words = [f"{name.replace('_', ' ')} {value}" for name, value in forecast.settings.items() if name != "task"]
    words += [str(forecast.correction)] if forecast.correction.runs else []
    said = " · ".join(words) or "the usual settings"
    return said if len(said) < 120 else f"{said[:117]}..."


def _ceiling(size: float) -> float:
    """Returns the smallest round number above a size: 1, 2, 2.5 or 5 times a power of ten, in steps of a quarter."""
    power = 10.0 ** math.floor(math.log10(max(size, 1)))
    return next(
        factor * power for factor in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12.5) if factor * power >= size * 1.04
    )


class _Sheet:
    """Draws in the picture's own points, twice as fine."""

    def __init__(self, pen: object) -> None:
        self.pen: object = pen

    def text(self, at: tuple[float, float], words: str, size: int, colour: str, anchor: str = "la") -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(size * SCALE)
        self.pen.text((at[0] * SCALE, at[1] * SCALE), words, fill=colour, font=font, anchor=anchor)  # type: ignore[attr-defined]

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        corners = [round(value * SCALE) for value in (left, top, right, bottom)]
        if corners[3] > corners[1]:
            self.pen.rectangle((corners[0], corners[1], corners[2] - 1, corners[3] - 1), fill=colour)  # type: ignore[attr-defined]

    def axis(self, top: float) -> None:
        for step in range(5):
            y = _height(top * step / 4, top)
            self.box(LEFT, y - 0.5, WIDTH - RIGHT, y + 0.5, RULE)
            self.text((LEFT - 10, y), _gigabytes(top * step / 4, top), 13, PALE, "rm")

    def bars(self, forecast: Forecast, top: float, measured: int | None) -> None:
        stacks = [(phase.name, [(COLOURS[name], phase.by.get(name, 0)) for name in CATEGORIES])
                  for phase in forecast.phases]  # fmt: skip
        if measured is not None:
            stacks.append(("measured", [(INK, measured)]))
        room = (WIDTH - RIGHT - LEFT) / len(stacks)
        for index, (word, stack) in enumerate(stacks):
            left, right, held = LEFT + room * (index + 0.16), LEFT + room * (index + 0.84), 0
            for colour, size in stack:
                self.box(left, _height(held + size, top), right, _height(held, top), colour)
                held += size
            self.under((left + right) / 2, held, top, word, word in (forecast.worst.name, "measured"))
            if word == forecast.worst.name:
                self.text(((left + right) / 2, HEIGHT - BOTTOM + 30), "peak", 12, COLOURS["gradients"], "ma")

    def under(self, middle: float, held: float, top: float, word: str, strong: bool) -> None:
        colour = INK if strong else PALE
        self.text((middle, _height(held, top) - 5), _gigabytes(held, top), 14, colour, "mb")
        self.text((middle, HEIGHT - BOTTOM + 12), word, 14, colour, "ma")

    def limit(self, size: int, top: float) -> None:
        y = _height(size, top)
        self.box(LEFT, y - 1, WIDTH - RIGHT, y + 1, COLOURS["gradients"])
        self.text((WIDTH - RIGHT - 4, y - 4), f"{size / 1e9:g} GB", 13, COLOURS["gradients"], "rb")

    def legend(self, names: Sequence[str]) -> None:
        for index, name in enumerate(reversed(names)):
            y = TOP + 8 + 26 * index
            self.box(WIDTH - RIGHT + 24, y, WIDTH - RIGHT + 40, y + 16, COLOURS[name])
            self.text((WIDTH - RIGHT + 50, y + 8), name, 14, INK, "lm")


def _height(size: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * size / top


def _gigabytes(size: float, top: float) -> str:
    if top < 1e9:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:.1f} GB" if top >= 4e9 else f"{size / 1e9:.2f} GB"
