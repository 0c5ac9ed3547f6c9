"""A mask: where in a picture something acts."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from studio.errors import BadConfig, BadFile
from studio.given import given_path, read_given
from studio.limits import within
from studio.rgb import to_rgb

__all__ = ["Mask", "MaskLike", "as_mask"]


@dataclass(frozen=True)
class Mask:
    """Where something acts: 1 inside, 0 outside, and parts between at soft edges.

    Args:
        height: rows. width: columns.
        levels: the numbers in [0, 1] as fp32, row by row, in bytes; so that masks compare and can be keys.

    Example:
        >>> left = as_mask([[1.0, 0.0]])
        >>> left.tensor(), left == as_mask(torch.tensor([[1, 0]]))
        (tensor([[1., 0.]]), True)
    """

    height: int
    width: int
    levels: bytes

    def tensor(self) -> Tensor:
        """Returns the mask, fp32 ``(H, W)`` on the CPU."""
        return torch.frombuffer(bytearray(self.levels), dtype=torch.float32).reshape(self.height, self.width)

    @property
    def digest(self) -> str:
        """A SHA-256 of its size and numbers."""
        return hashlib.sha256(f"{self.height} {self.width} ".encode() + self.levels).hexdigest()

    def __repr__(self) -> str:
        return f"Mask({self.width}x{self.height}, {self.digest[:12]})"


MaskLike: TypeAlias = "Mask | str | Path | Image.Image | np.ndarray | Tensor | list[list[float]]"


def as_mask(value: MaskLike) -> Mask:
    """Reads a mask.

    Args:
        value: a picture, or the file of one (white is inside, what is transparent is outside), or numbers in [0, 1],
            ``(H, W)``.

    Raises:
        BadConfig: numbers of another shape, out of [0, 1], or 0 everywhere. BadFile: a picture that cannot be read.
    """
    if isinstance(value, Mask):
        return value
    if isinstance(value, (str, Path)):
        value = _opened(value)
    if isinstance(value, Image.Image):
        grey = to_rgb(ImageOps.exif_transpose(value), (0, 0, 0)).convert("L")
        numbers = np.asarray(grey, dtype=np.float32) / 255
    else:
        numbers = _numbers(value)
    height, width = numbers.shape
    if not np.isfinite(numbers).all() or numbers.min() < 0 or numbers.max() > 1:
        raise BadConfig("a mask has numbers from 0 (outside) to 1 (inside)")
    if not numbers.any():
        raise BadConfig("the mask is 0 everywhere, so nothing would act; 1, or white, is inside")
    return Mask(height, width, np.ascontiguousarray(numbers).tobytes())


def _numbers(value: Any) -> Any:
    try:
        plain = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        numbers = np.asarray(plain, dtype=np.float32)
    except (TypeError, ValueError):
        raise BadConfig(f"a mask is a picture, a file of one, or numbers in rows, not {value!r:.80}") from None
    if numbers.ndim != 2 or not numbers.size:
        raise BadConfig(f"a mask has rows and columns (H, W); this one has the shape {numbers.shape}")
    within("picture-pixels", numbers.size, "the mask has")
    return numbers


def _opened(file: str | Path) -> Image.Image:
    path = given_path(file, "mask")
    try:
        with Image.open(io.BytesIO(read_given(path, "picture-bytes"))) as image:
            within("picture-pixels", image.width * image.height, "has")
            image.load()
            return image.copy()
    except FileNotFoundError:
        raise BadFile(f"there is no mask {path}") from None
    except Exception as problem:  # a decoder raises anything on hostile bytes; whatever it is, the file is named
        reason = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
        raise BadFile(f"the mask {path} cannot be read as a picture: {reason}") from None
