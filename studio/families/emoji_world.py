"""The emoji world: every picture of it can be computed, so what a training should have learned is known exactly.

A picture is one emoji drawing of some size at some place, mirrored or not and turned a little, composited on one of ten
colours. The drawings are Noto emoji
(Google, Apache-2.0; see ``emoji/ATTRIBUTION.md``). Eight concepts are not in the atlas because they stay unseen by
whatever is tuned with it: they are there for measurements by others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from studio.errors import BadConfig, UnknownName, nearest

__all__ = ["COLOURS", "SIDE", "STYLE_FOLDER", "composite", "core_names", "emoji_image", "emoji_names", "instance_set"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (16, 16, 16),
    "red": (220, 50, 50),
    "green": (60, 170, 80),
    "blue": (60, 100, 220),
    "yellow": (250, 215, 70),
    "orange": (245, 140, 40),
    "purple": (140, 80, 190),
    "pink": (250, 160, 190),
    "gray": (140, 140, 140),
}
"""The ten backgrounds of the embedded base's world, by the names that its captions use."""

SIDE = 64
"""Side of every picture and of every drawing, in pixels."""

_FOLDER = Path(__file__).parent / "emoji"
_COLUMNS = 32  # of the atlas

INSTANCE_FOLDER = _FOLDER / "instances"
STYLE_FOLDER = _FOLDER / "style" / "twemoji"
"""24 Twemoji drawings with captions: the packaged style set (CC-BY 4.0)."""


@lru_cache(maxsize=1)
def emoji_names() -> tuple[str, ...]:
    """Returns the names of all drawings (CLDR short names, lower case), sorted.

    Example:
        >>> len(emoji_names()), "robot" in emoji_names()
        (1628, True)
    """
    lines = (_FOLDER / "names.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.split("\t")[0] for line in lines)


@lru_cache(maxsize=1)
def core_names() -> tuple[str, ...]:
    """Returns the names that the embedded base draws best, sorted: it has seen them most often.

    Example:
        >>> len(core_names()), "tiger" in core_names(), "robot" in core_names()
        (161, True, False)
    """
    return tuple((_FOLDER / "core.txt").read_text(encoding="utf-8").split("\n")[:-1])


@lru_cache(maxsize=1)
def atlas() -> NDArray[np.uint8]:
    """Returns all drawings, ``(N, 64, 64, 4)``, RGBA with straight alpha, in the order of :func:`emoji_names`."""
    with Image.open(_FOLDER / "atlas.webp") as image:
        sheet = np.asarray(image.convert("RGBA"))
    rows = sheet.shape[0] // SIDE
    tiles = sheet.reshape(rows, SIDE, _COLUMNS, SIDE, 4).transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 4)
    return np.ascontiguousarray(tiles[: len(emoji_names())])


def emoji_image(name: str) -> Image.Image:
    """Returns one drawing, 64 × 64, RGBA.

    Raises:
        UnknownName: no emoji has the name; the nearest ones are named.
    """
    names = emoji_names()
    if name not in names:
        raise UnknownName(f"no emoji is called {name!r}; the nearest names are {', '.join(nearest(name, names))}")
    return Image.fromarray(atlas()[names.index(name)], "RGBA")


def composite(
    name: str,
    colour: str,
    size: int = SIDE,
    *,
    left: int | None = None,
    top: int | None = None,
    mirror: bool = False,
    turn: float = 0.0,
) -> Image.Image:
    """Returns the true picture of ``name`` on ``colour``: ``α · drawing + (1 - α) · colour``.

    Args:
        name: of :func:`emoji_names`.
        colour: of :data:`COLOURS`.
        size: side of the drawing in pixels, 1 to 64; resized by area averaging of premultiplied colours.
        left: x of the drawing's left edge in pixels; ``None``: centred. It may lie outside, the drawing is cut then.
        top: y of the drawing's upper edge in pixels; ``None``: centred.
        mirror: left and right are exchanged, before the turn.
        turn: degrees, counter-clockwise, about the drawing's middle.

    Raises:
        UnknownName: no such emoji or colour.
        BadConfig: a size outside 1 to 64.

    Example:
        >>> composite("robot", "purple").getpixel((0, 0))
        (140, 80, 190)
    """
    if colour not in COLOURS:
        raise UnknownName(f"no background is called {colour!r}; the ten are {', '.join(COLOURS)}")
    if not 1 <= size <= SIDE:
        raise BadConfig(f"a drawing of {size} pixels was asked for; sizes go from 1 to {SIDE}")
    drawing = posed(emoji_image(name), size, mirror, turn)
    room = SIDE - size
    layer = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    layer.paste(drawing, (room // 2 if left is None else left, room // 2 if top is None else top))
    return Image.alpha_composite(Image.new("RGBA", (SIDE, SIDE), (*COLOURS[colour], 255)), layer).convert("RGB")


def posed(drawing: Image.Image, size: int, mirror: bool = False, turn: float = 0.0) -> Image.Image:
    """Returns a drawing mirrored, turned by ``turn`` degrees and ``size`` pixels wide, in this order; RGBA.

    What a turn moves out of the square is cut; premultiplied colours are interpolated.
    """
    if mirror:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if turn:
        drawing = drawing.rotate(turn, Image.Resampling.BICUBIC)
    if size != drawing.width:
        drawing = drawing.convert("RGBa").resize((size, size), Image.Resampling.BOX).convert("RGBA")
    return drawing


def instance_set(
    name: str, colours: Sequence[str] = ("white", "yellow"), count: int = 6, seed: int = 0
) -> list[Image.Image]:
    """Returns ``count`` pictures of one subject, as a user's photos would be: other places and sizes, few backgrounds.

    Picture i lies on ``colours[i % len(colours)]``; its size is 46 to 62 pixels, its place anywhere in the picture.
    All of it follows from the arguments alone.

    Raises:
        UnknownName: no such emoji or colour.
        BadConfig: fewer than one picture or no colour.

    Example:
        >>> len(instance_set("robot")), instance_set("robot")[1].getpixel((0, 63))
        (6, (250, 215, 70))
    """
    if count < 1 or not colours:
        raise BadConfig(
            f"an instance set of {count} pictures on {len(colours)} colours was asked for; both are 1 or more"
        )
    pictures = []
    for i in range(count):
        drawn = hashlib.sha256(f"{name}|{seed}|{i}".encode()).digest()
        size = 46 + drawn[0] % 17
        left, top = (int(byte / 256 * (SIDE - size + 1)) for byte in drawn[1:3])
        pictures.append(composite(name, colours[i % len(colours)], size, left=left, top=top))
    return pictures
