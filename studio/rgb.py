"""A picture of any mode as plain RGB: depth, transparency and colour profiles."""

from __future__ import annotations

import io

import numpy
from PIL import Image, ImageCms

from studio.errors import BadFile

__all__ = ["to_rgb"]

STRIP = 2**22  # pixels that are converted together: a large picture in one piece would need many copies of itself
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Returns a picture in 8-bit RGB, as a viewer shows it.

    Args:
        image: the picture, in any mode.
        background: red, green and blue, 0..255, behind transparent pixels.

    Raises:
        BadFile: a colour space that is not converted here; the message completes "this file ...".
    """
    factor = _factor(image)
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        return _flat(image, background, factor)
    canvas = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        canvas.paste(_flat(image.crop(box), background, factor), box)
    return canvas


def _flat(image: Image.Image, background: tuple[int, int, int], factor: float | None) -> Image.Image:
    """Converts a picture, or a strip of one: no step looks at more than one pixel."""
    image = image if factor is None else _eight_bits(image, factor)
    if image.mode == "LAB":
        raise BadFile("is in the LAB colour space: save it as RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        if image.mode in ("RGBa", "La"):
            image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        colour = _to_srgb(rgba.convert("RGB"), image)
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(colour, mask=alpha)
        return canvas
    return _to_srgb(image, image).convert("RGB")


def _factor(image: Image.Image) -> float | None:
    """What 16-bit and float pictures are multiplied by for 8 bits; PIL's own conversion would clip them to white."""
    if image.mode.startswith("I;16"):
        return 1 / 257
    if image.mode == "I":
        return 1 / 257 if _highest(image) > 255 else 1.0
    if image.mode == "F":
        high = _highest(image)
        return 255.0 if high <= 1 else 1 / 257 if high > 255 else 1.0
    return None


def _highest(image: Image.Image) -> float:
    return float(numpy.nan_to_num(numpy.asarray(image)).max(initial=0))


def _eight_bits(image: Image.Image, factor: float) -> Image.Image:
    values = numpy.asarray(image).astype(numpy.float64)
    if image.mode == "F":
        values = numpy.nan_to_num(values)
    scaled = values / 257 if factor == 1 / 257 else values * factor
    grey = Image.fromarray(scaled.clip(0, 255).round().astype(numpy.uint8))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return grey


def _to_srgb(image: Image.Image, source: Image.Image) -> Image.Image:
    """Converts from the colour profile that ``source`` embeds, where there is one that fits and can be read."""
    embedded = source.info.get("icc_profile")
    if not embedded or image.mode not in ("RGB", "CMYK"):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        if profile.profile.xcolor_space.strip() != image.mode:
            return image  # a grey profile on a picture that was converted to RGB
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a broken profile: the plain conversion is what every viewer shows
    return image if converted is None else converted
