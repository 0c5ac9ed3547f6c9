"""Which picture formats are opened, and how: by a list, within limits, and by nothing that starts another program."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Final

from PIL import Image

from studio.limits import limit, within
from studio.packages import EXTRAS

__all__ = ["INSTALL_HEIF", "opened", "several_frames", "suffixes", "what_else"]

# Pillow knows more: EPS is drawn by Ghostscript, WMF by Windows, and the rest nobody trains on
FORMATS: Final = (
    "PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "QOI",
)  # fmt: skip
HEIF: Final = "HEIF"
INSTALL_HEIF: Final = f"{EXTRAS['heic'].command} makes it readable, or save it as PNG or JPEG"


@cache
def formats() -> tuple[str, ...]:
    """Returns the names of the formats that are opened here, HEIC too where ``pillow-heif`` is installed."""
    Image.init()
    known: list[str] = [name for name in FORMATS if name in Image.OPEN]
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif  # type: ignore[import-not-found]

        pillow_heif.register_heif_opener()
        known.append(HEIF)
    return tuple(known)


@cache
def suffixes() -> frozenset[str]:
    """Returns the suffixes of these formats, lower case: ``".png"``."""
    known = formats()
    return frozenset({".mpo"} | {suffix for suffix, name in Image.registered_extensions().items() if name in known})


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Opens a picture; its size is checked before anything is decoded.

    Args:
        data: the bytes of the file.

    Raises:
        BadFile: it has more pixels than are decoded; the message completes "this file ...".
        UnidentifiedImageError: it is in none of the formats.
    """
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and limit("picture-pixels") > most:
        Image.MAX_IMAGE_PIXELS = limit("picture-pixels")  # ours is the one table of limits
    try:
        with quiet(), Image.open(io.BytesIO(data), formats=formats()) as image:
            within("picture-pixels", image.width * image.height, f"is {image.width}x{image.height}, which are")
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = most


def several_frames(data: bytes) -> bool:
    """Whether a picture has a second frame or page; counting them all would read the whole file."""
    with quiet(), Image.open(io.BytesIO(data), formats=formats()) as image:
        try:
            image.seek(1)
        except EOFError:
            return False
        except Exception:  # a second page that is damaged is one more page all the same
            return True
    return True


def what_else(data: bytes) -> str:
    """Says what a file that no decoder knows is; completes "this file ..."."""
    head = data[:2048]
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the picture itself: run `git lfs pull`"
    if head[4:8] == b"ftyp":
        heic = head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
        return (
            f"is a HEIC file: {INSTALL_HEIF}"
            if heic
            else ("is an AVIF or video file, which cannot be read here: save it as PNG or JPEG")
        )
    if head.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "is PostScript (EPS), which another program would have to draw: save it as PNG or JPEG"
    if head.lstrip()[:1] == b"<":
        return "is a web page or SVG, not a pixel image: save the picture itself as PNG or JPEG"
    with contextlib.suppress(UnicodeDecodeError):
        text = head.decode("utf-8", errors="strict" if len(data) <= 2048 else "ignore")
        if "\0" not in text:
            return "is text, not an image, whatever its name says: remove or rename it"
    return "is not an image in a format that can be read: save it as PNG or JPEG"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps PIL's remarks on odd metadata from the user: what matters about a file is in the reader's own report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
