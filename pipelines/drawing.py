"""A picture that keeps what it says about itself when it is saved, and the texts of one that was read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from PIL import Image, PngImagePlugin

from studio.errors import BadFile
from studio.exif import LARGEST, exif_bytes, exif_texts

__all__ = ["SHEET", "Drawing", "save_options", "texts_of"]

TEXTS: Final = ("parameters", "studio")
SHEET: Final = '{"format": 1, "kind": "sheet", "tool": "adapter-studio"}'
"""The ``studio`` text of a sheet of several pictures."""


class Drawing(Image.Image):
    """A picture of Pillow, whose own ``save`` writes its ``parameters`` and ``studio`` texts into PNG, JPEG and WebP.

    Example:
        >>> import io
        >>> drawing, file = Drawing.of(Image.new("RGB", (2, 2)), {"parameters": "a dog"}), io.BytesIO()
        >>> drawing.save(file, "JPEG")
        >>> texts_of(Image.open(file))
        {'parameters': 'a dog'}
    """

    @classmethod
    def of(cls, image: Image.Image, texts: Mapping[str, str]) -> Drawing:
        """Returns a picture as one that keeps its texts.

        Args:
            image: the picture.
            texts: ``parameters`` and ``studio``.
        """
        drawing = cls()
        drawing.__setstate__(image.__getstate__())
        drawing.info.update(texts)
        return drawing

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As Pillow's, with the picture's texts, unless ``pnginfo`` or ``exif`` says what stands there.

        Raises:
            BadFile: a JPEG cannot hold texts that long.
        """
        name = fp if isinstance(fp, (str, Path)) else getattr(fp, "name", "")
        suffix = Path(name).suffix.lower() if isinstance(name, (str, Path)) else ""
        kind = (format or Image.registered_extensions().get(suffix, "")).upper()
        super().save(fp, format, **{**save_options(self, kind), **params})


def save_options(image: Image.Image, kind: str) -> dict[str, Any]:
    """Returns what Pillow's ``save`` is told so that a file keeps a picture's texts.

    Args:
        image: the picture.
        kind: the format, as Pillow names it; formats other than PNG, JPEG and WEBP hold no texts.

    Raises:
        BadFile: a JPEG cannot hold texts that long.
    """
    texts = {key: image.info[key] for key in TEXTS if isinstance(image.info.get(key), str)}
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            chunks.add_text(key, text)
        return {"pnginfo": chunks}
    if not texts or kind not in ("JPEG", "WEBP"):
        return {}
    exif = exif_bytes(texts)
    if kind == "JPEG" and len(exif) > LARGEST:
        raise BadFile(
            f"the picture says {len(exif):,} bytes about itself, and a JPEG holds at most {LARGEST:,}: save it as PNG "
            "or WebP"
        )
    return {"exif": exif}


def texts_of(image: Image.Image) -> dict[str, str]:
    """Returns all texts of a picture, by key: those in its ``info``, and those in its EXIF.

    Args:
        image: a picture that was drawn, or read from a PNG, JPEG or WebP.
    """
    own = {str(key): str(text) for key, text in image.info.items() if isinstance(text, str)}
    return {**exif_texts(image), **own}
