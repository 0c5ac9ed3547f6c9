"""The picture that drawing starts from, as a caller gives it: opened, turned upright, scaled and cropped."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from studio.config import own_number
from studio.errors import BadConfig, BadFile
from studio.families import Base
from studio.limits import limit, too_many
from studio.pipelines.metadata import open_picture
from studio.pipelines.start import Given
from studio.rgb import to_rgb

__all__ = ["STRENGTH", "given_picture", "picture_facts"]

STRENGTH = 0.6
"""Which part of the denoising a given picture goes through where nothing else is asked for."""


def given_picture(
    base: Base,
    image: str | Path | Image.Image | None,
    mask: str | Path | Image.Image | None,
    strength: float | None,
    size: tuple[int | None, int | None],
) -> Given | None:
    """Returns the picture to start from, of the size to draw.

    Args:
        base: which draws.
        image: the picture; None: there is none.
        mask: what is drawn anew (white) and what stays (black), of the picture's size.
        strength: which part of the denoising is done; None: :data:`STRENGTH`.
        size: width and height in pixels; None: those nearest to the picture's shape with as many pixels as the base's
            own.

    Raises:
        BadConfig: a mask or a strength without a picture, a mask of another size, or an impossible strength.
        BadFile: no such picture.
    """
    if image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise BadConfig(f"{name} is given without a picture to start from: give image too")
        return None
    picture = _upright(image, "RGB")
    masked = None if mask is None else _upright(mask, "L")
    if masked is not None and masked.size != picture.size:
        sizes = ["{} x {}".format(*one.size) for one in (masked, picture)]
        raise BadConfig(f"the mask has {sizes[0]} pixels and the picture {sizes[1]}; make them equal")
    width, height = _size(base, picture, size)
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    covered = None if masked is None else ImageOps.fit(masked, (width, height), Image.Resampling.NEAREST)
    return Given(image=fitted, strength=STRENGTH if strength is None else own_number(strength), mask=covered)


def picture_facts(given: Given) -> dict[str, Any]:
    """Returns what a drawn picture says about the one that it started from: hashes of pixels, and the strength."""
    mask = {} if given.mask is None else {"mask": _digest(given.mask)}
    return {"image": _digest(given.image), "strength": float(given.strength), **mask}


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def _upright(image: str | Path | Image.Image, mode: str) -> Image.Image:
    """In 8 bits, as a viewer shows it; what is transparent is white in a picture, and black in a mask."""
    opened = image if isinstance(image, Image.Image) else open_picture(image)
    try:
        plain = to_rgb(ImageOps.exif_transpose(opened), (255, 255, 255) if mode == "RGB" else (0, 0, 0))
    except BadFile as problem:
        raise BadFile(f"the picture to start from, or its mask, {problem}") from None
    return plain.convert(mode)


def _size(base: Base, picture: Image.Image, size: tuple[int | None, int | None]) -> tuple[int, int]:
    """As asked, else of the picture's shape and as many pixels as the base was trained for."""
    unit, (native_width, native_height) = base.multiple, base.native
    scale = math.sqrt(native_width * native_height / (picture.width * picture.height))
    own = [max(unit, round(side * scale / unit) * unit) for side in picture.size]
    width, height = (mine if asked is None else own_number(asked) for asked, mine in zip(size, own, strict=True))
    for side in (width, height):  # before the picture is made as large as that
        if not isinstance(side, int) or isinstance(side, bool) or side < 1:
            raise BadConfig(
                f"a picture of {width!r} x {height!r} pixels cannot be drawn; give whole numbers from {unit} on"
            )
        if side > limit("side"):
            raise BadConfig(f"a picture of {width} x {height} pixels: {too_many('side')}")
    return width, height
