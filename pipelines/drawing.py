"""A picture that keeps what it says about itself when it is saved as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from PIL import Image, PngImagePlugin

__all__ = ["SHEET", "Drawing", "texts_of"]

TEXTS: Final = ("parameters", "studio")
SHEET: Final = '{"format": 1, "kind": "sheet", "tool": "adapter-studio"}'
"""The ``studio`` text of a sheet of several pictures."""


class Drawing(Image.Image):
    """A picture of Pillow, whose own ``save`` writes its ``parameters`` and ``studio`` texts into a PNG.

    Example:
        >>> import io
        >>> drawing, file = Drawing.of(Image.new("RGB", (2, 2)), {"parameters": "a dog"}), io.BytesIO()
        >>> drawing.save(file, "PNG")
        >>> Image.open(file).text
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
        """As Pillow's, with the picture's texts where the format is PNG and no ``pnginfo`` is given."""
        suffix = Path(fp).suffix.lower() if isinstance(fp, (str, Path)) else ""
        if (format or suffix.removeprefix(".")).upper() == "PNG" and "pnginfo" not in params:
            params["pnginfo"] = texts_of(self)
        super().save(fp, format, **params)


def texts_of(image: Image.Image) -> PngImagePlugin.PngInfo:
    """Returns the texts of a picture as a PNG holds them."""
    texts = PngImagePlugin.PngInfo()
    for key in TEXTS:
        if isinstance(image.info.get(key), str):
            texts.add_text(key, image.info[key])
    return texts
