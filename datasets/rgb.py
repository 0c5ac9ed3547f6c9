"""A picture of any mode as plain RGB: depth, transparency and colour profiles."""

from __future__ import annotations

import io

import numpy
from PIL import Image, ImageCms

from studio.errors import BadFile

__all__ = ["to_rgb"]

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Returns a picture in 8-bit RGB, as a viewer shows it.

    Args:
        image: the picture, in any mode.
        background: red, green and blue, 0..255, behind transparent pixels.

    Raises:
        BadFile: a colour space that is not converted here; the message completes "this file ...".
    """
    image = _eight_bits(image)
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


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit and float pictures to 8 bits; PIL's own conversion would clip them to white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = numpy.asarray(image).astype(numpy.float64)
        scaled = values / 257 if image.mode != "I" or values.max(initial=0) > 255 else values
    elif image.mode == "F":
        values = numpy.nan_to_num(numpy.asarray(image).astype(numpy.float64))
        high = values.max(initial=0)
        scaled = values * 255 if high <= 1 else values / 257 if high > 255 else values
    else:
        return image
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
