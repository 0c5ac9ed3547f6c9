"""Pictures of every sort, as bytes, each with the size and the colour that it is meant to be seen in."""
# ruff: noqa: E501

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy
from PIL import Image, ImageCms, features

__all__ = ["GREEN", "Odd", "broken", "encoded", "odd", "plain"]

GREEN: Final = (40, 160, 80)
SIZE: Final = (48, 32)
_SUFFIX: Final = {"JPEG2000": ".jp2"}


@dataclass(frozen=True)
class Odd:
    """One file that is called like a picture.

    Args:
        name: what is odd about it. data: its bytes.
        size: pixels that are to be seen; None: it is no picture that can be used.
        colour: mean red, green and blue that are to be seen.
        suffix: what its name ends in.
    """

    name: str
    data: bytes
    size: tuple[int, int] | None = SIZE
    colour: tuple[int, int, int] = GREEN
    suffix: str = ".png"


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture in a format."""
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def plain(colour: tuple[int, int, int] = GREEN, size: tuple[int, int] = SIZE) -> bytes:
    """A picture that nothing is odd about."""
    return encoded(Image.new("RGB", size, colour))


def odd() -> Iterator[Odd]:
    """Pictures that are odd and can be used: modes, depths, orientations, animations, formats."""
    green = Image.new("RGB", SIZE, GREEN)
    grey = (120, 120, 120)
    yield from _modes(green, grey)
    yield from _deep(grey)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        size = SIZE[::-1] if orientation > 4 else SIZE
        yield Odd(f"turned by EXIF {orientation}", encoded(green, "JPEG", exif=exif, quality=95), size, suffix=".jpg")
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue", "black")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(green, format, save_all=True, append_images=frames, lossless=True)
        yield Odd(f"several frames of {format}", data, suffix=f".{format.lower()}")
    for format in ("BMP", "PPM", "TGA", "PCX", "ICO", "JPEG2000", "AVIF", "QOI", "MPO", "DIB"):
        if format == "AVIF" and not features.check("avif"):
            continue
        square = Image.new("RGB", (32, 32), GREEN)
        yield Odd(f"as {format}", encoded(square, format), (32, 32), suffix=_SUFFIX.get(format, f".{format.lower()}"))
    for suffix in (".jpg", ".PNG", ".WebP", "", ".tif"):
        yield Odd(f"a PNG called {suffix!r}", plain(), suffix=suffix)
    for size in ((16, 16), (16, 4000), (3000, 17)):
        yield Odd(f"{size[0]} x {size[1]}", plain(size=size), size)
    yield Odd("a profile that is none", encoded(green, icc_profile=b"\0" * 200))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    yield Odd("a profile of another space", encoded(green, icc_profile=profile))
    yield Odd("bytes behind its end", plain() + b"\0" * 5000)
    yield Odd("EXIF that is none", encoded(green, "JPEG", exif=b"Exif\0\0" + b"\xff" * 50, quality=95), suffix=".jpg")


def _modes(green: Image.Image, grey: tuple[int, int, int]) -> Iterator[Odd]:
    white = (255, 255, 255)
    yield Odd("one bit", encoded(Image.new("1", SIZE, 1)), colour=white)
    yield Odd("grey", encoded(Image.new("L", SIZE, 120)), colour=grey)
    yield Odd("grey and opacity", encoded(Image.new("LA", SIZE, (0, 0))), colour=white)
    yield Odd("see-through", encoded(Image.new("RGBA", SIZE, (0, 0, 0, 0))), colour=white)
    half = tuple(round(255 - (255 - part) * 128 / 255) for part in GREEN)
    yield Odd("half see-through", encoded(Image.new("RGBA", SIZE, (*GREEN, 128))), colour=half)  # type: ignore[arg-type]
    yield Odd("a palette", encoded(green.convert("P", palette=Image.Palette.ADAPTIVE)))
    palette = green.convert("P", palette=Image.Palette.ADAPTIVE)
    yield Odd(
        "a palette with a see-through colour", encoded(palette, transparency=palette.getpixel((0, 0))), colour=white
    )
    yield Odd("a palette with opacities", encoded(palette, transparency=b"\0" * 256), colour=white)
    yield Odd("a see-through colour of RGB", encoded(green, transparency=GREEN), colour=white)
    yield Odd("a see-through grey", encoded(Image.new("L", SIZE, 120), transparency=120), colour=white)
    yield Odd("CMYK", encoded(Image.new("CMYK", SIZE, (215, 95, 175, 0)), "TIFF"), suffix=".tif")
    cmyk = encoded(Image.new("CMYK", SIZE, (215, 95, 175, 0)), "JPEG", quality=95)
    yield Odd("CMYK as JPEG", cmyk, suffix=".jpg")
    yield Odd("YCbCr", encoded(green.convert("YCbCr"), "TIFF"), suffix=".tif")


def _deep(grey: tuple[int, int, int]) -> Iterator[Odd]:
    """Pictures of 16 bits and more, all of the same grey."""
    deep = numpy.full(SIZE[::-1], 120 * 257, dtype=numpy.uint16)
    yield Odd("16 bits", encoded(Image.fromarray(deep)), colour=grey)
    yield Odd("16 bits as TIFF", encoded(Image.fromarray(deep), "TIFF"), colour=grey, suffix=".tif")
    yield Odd("32 bits", encoded(Image.fromarray(deep.astype(numpy.int32)), "TIFF"), colour=grey, suffix=".tif")
    for name, value in (("floats to 1", 120 / 255), ("floats to 255", 120.0), ("floats to 65535", 120 * 257.0)):
        data = encoded(Image.fromarray(numpy.full(SIZE[::-1], value, dtype=numpy.float32)), "TIFF")
        yield Odd(name, data, colour=grey, suffix=".tif")
    broken = numpy.full(SIZE[::-1], 120.0, dtype=numpy.float32)
    broken[0, :8] = numpy.nan
    yield Odd("floats with NaN", encoded(Image.fromarray(broken), "TIFF"), colour=(119, 119, 119), suffix=".tif")
    yield Odd("16 bits of colour", _png(SIZE, 16, 2, b"\x28\x28\xa0\xa0\x50\x50"))
    yield Odd("16 bits of grey, interlaced", _png((16, 16), 16, 0, b"\x78\x78", interlaced=True), (16, 16), grey)


def broken() -> Iterator[Odd]:
    """Files that are no picture, or not a whole one, or a larger one than there may be."""
    draw = numpy.random.default_rng(0).integers(0, 255, (*SIZE[::-1], 3), dtype=numpy.uint8)
    noise = Image.fromarray(draw)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000"):
        data, suffix = encoded(noise, format), f".{format.lower()[:4]}"
        suffix = {".tiff": ".tif", ".jpeg": ".jpg"}.get(suffix, suffix)
        for share in (0.02, 0.5, 0.9):
            yield Odd(f"{format} cut at {share:.0%}", data[: int(len(data) * share)], None, suffix=suffix)
    for name, data in (
        ("no byte", b""), ("zeros", b"\0" * 1000), ("text", b"a dog\n"), ("a web page", b"<html>404</html>"), ("SVG", b"<svg/>"),
        ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n"), ("PDF", b"%PDF-1.7\n"),
        ("a zip", b"PK\3\4" + b"\0" * 60), ("an LFS pointer", b"version https://git-lfs.github.com/spec/v1\n"),
        ("HEIC", b"\0\0\0\x18ftypheic" + b"\0" * 50), ("a film", b"\0\0\0\x18ftypisom" + b"\0" * 50), ("its start", b"\x89PNG\r\n\x1a\n"),
        ("PSD", b"8BPS\0\1" + b"\0" * 60), ("noise", draw.tobytes()), ("WMF", b"\xd7\xcd\xc6\x9a" + b"\0" * 60), ("a pickle", b"\x80\4K\1."),
    ):  # fmt: skip
        yield Odd(name, data, None)
    for size in ((100_000, 100_000), (2**31 - 1, 1), (30_000, 4_000), (0, 5)):
        yield Odd(f"it says {size[0]} x {size[1]}", _png(size, 8, 2, b"", rows=1), None)
    for size in ((1, 1), (15, 64), (1, 5000)):
        yield Odd(f"{size[0]} x {size[1]}", plain(size=size), None)
    lab = encoded(Image.new("LAB", SIZE, (120, 3, 4)), "TIFF")
    yield Odd("LAB", lab, None, suffix=".tif")
    text = zlib.compress(b"a" * 90_000_000, 9)
    yield Odd("a text that unpacks to 90 MB", _with_chunk(plain(), b"zTXt", b"studio\0\0" + text), None)
    bomb = _png((9_000, 9_000), 1, 0, b"\0")[:-40]
    yield Odd("81 million pixels, cut", bomb, None)


def _png(
    size: tuple[int, int], depth: int, colours: int, pixel: bytes, *, rows: int | None = None, interlaced: bool = False
) -> bytes:
    """A PNG by hand, for what Pillow cannot write; every pixel is the same."""
    width, height = size
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced)
    row = b"\0" + (pixel * width if depth > 7 else bytes(-(-width // 8)))
    body = b"".join(b"\0" + pixel * w for w, h in _adam7(width, height) for _ in range(h)) if interlaced else b""
    body = body or row * (height if rows is None else rows)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _adam7(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Width and height of each pass of an interlaced PNG."""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        yield -(-(width - x) // dx), -(-(height - y) // dy)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _with_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """The same PNG with one chunk more, in front of its pixels."""
    place = png.index(b"IDAT") - 4
    return png[:place] + _chunk(name, data) + png[place:]
