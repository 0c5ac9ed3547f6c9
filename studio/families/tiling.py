"""Tiling and slicing: an autoencoder that takes a large picture in parts, or the pictures of a batch one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from studio.errors import DoesNotFit

__all__ = ["in_parts"]


@contextmanager
def in_parts(vae: Any, *, tiling: bool, slicing: bool) -> Iterator[None]:
    """While it lasts, an autoencoder takes pictures in parts; afterwards it is set as it was.

    Slicing changes no picture but by the last bits. Tiles overlap and are blended, which changes pictures that are
    larger than one (diffusers' autoencoders have tiles of 256 to 1024 pixels) a little; smaller ones stay as they are.

    Args:
        vae: a diffusers autoencoder.
        tiling: a picture in overlapping tiles.
        slicing: a batch in single pictures.

    Raises:
        DoesNotFit: it cannot do that.
    """
    asked = [name for name, wanted in (("tiling", tiling), ("slicing", slicing)) if wanted]
    for name in asked:
        if f"use_{name}" not in vars(vae):
            raise DoesNotFit(f"vae_{name}: the {type(vae).__name__} of this base knows no {name}; leave it out")
    before = {f"use_{name}": getattr(vae, f"use_{name}") for name in asked}
    try:
        for name in before:
            setattr(vae, name, True)
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
