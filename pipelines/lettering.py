"""Text on pictures: lines that fit a width, in the typeface that comes with Pillow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final
from unicodedata import combining, normalize

from PIL import ImageDraw, ImageFont

__all__ = ["clip", "line_height", "readable", "text_width", "typeface", "wrap", "write"]

_INSTEAD: Final = {
    "—": "-",
    "–": "-",
    "−": "-",
    "×": "x",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "ß": "ss",
    "«": '"',
    "»": '"',
}
LONGEST = 200  # characters of a text that are read at all: no label shows more


@lru_cache(maxsize=16)
def typeface(size: int) -> Any:
    """Returns Pillow's own typeface in a size in pixels: a sheet looks alike on every machine."""
    return ImageFont.load_default(size)


def readable(text: str) -> str:
    """Returns a text in the letters that the typeface has: an accent goes, a dash becomes a shorter one.

    Example:
        >>> readable("grün — 64 × 64, 火")
        'grun - 64 x 64, 火'
    """
    return "".join(map(_letter, text))


@lru_cache(maxsize=4096)
def _letter(letter: str) -> str:
    """The letter, or what stands for it; one that nothing stands for is drawn as a box."""
    plain = _INSTEAD.get(letter) or "".join(one for one in normalize("NFKD", letter) if not combining(one))
    return letter if _drawn(letter) or not plain or not all(map(_drawn, plain)) else plain


def _drawn(letter: str) -> bool:
    font = typeface(15)
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))


def line_height(font: Any) -> int:
    """Returns the pixels from one line to the next."""
    ascent, descent = font.getmetrics()
    return round((ascent + descent) * 1.15)


def text_width(font: Any, text: str) -> int:
    """Returns the pixels that a line of text takes."""
    return round(font.getlength(text))


def wrap(text: str, font: Any, width: int) -> list[str]:
    """Breaks a text into lines no wider than ``width`` pixels, as few as possible and then as even as possible.

    Example:
        >>> wrap("one two three four", typeface(15), 100)
        ['one two', 'three four']
    """
    text = readable(text)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    lines = _fill(text, font, width)
    for narrower in range(width, 0, -max(1, width // 24)):
        evener = _fill(text, font, narrower)
        if len(evener) > len(lines):
            break
        lines = evener
    return lines


def clip(lines: Sequence[str], most: int) -> list[str]:
    """Returns at most so many lines; where some are left out, the last one ends in ``…``.

    Example:
        >>> clip(["one", "two", "three"], 2)
        ['one', 'two…']
    """
    most = max(1, most)
    return [*lines] if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1].rstrip()}…"]


def _fill(text: str, font: Any, width: int) -> list[str]:
    """Lines no wider than ``width``; a word that is wider is cut."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            while text_width(font, word) > width and len(word) > 1:
                cut = _fitting(word, font, width)
                lines += [line, word[:cut]] if line else [word[:cut]]
                line, word = "", word[cut:]
            longer = f"{line} {word}".strip()
            if line and text_width(font, longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def _fitting(word: str, font: Any, width: int) -> int:
    """How many letters of a word fit, one at least; by halves, as a longer beginning is a wider one."""
    return max(1, bisect_right(range(1, len(word)), width, key=lambda letters: text_width(font, word[:letters])))


def write(
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
        shift = 0 if centre is None else (centre - text_width(font, line)) // 2
        pen.text((x + shift, y), line, font=font, fill=colour)
        y += line_height(font)
    return y
