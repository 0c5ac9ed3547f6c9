"""What a family's files are told by, and the names that those who trained a base gave to its layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Clues", "Native"]


@dataclass(frozen=True)
class Native:
    """A layer of a denoiser as those who trained the base have it.

    Args:
        name: its dotted name there, ``"double_blocks.0.img_attn.qkv"``.
        paths: the layers of diffusers' module whose output rows it has, in this order; one, or several in one matrix.
        swapped: whether the two halves of its rows stand in the other order (shift and scale of a last norm).
    """

    name: str
    paths: tuple[str, ...]
    swapped: bool = False


@dataclass(frozen=True)
class Clues:
    """The layers that an adapter file has tensors of, by which a family knows its files.

    Args:
        sizes: name of a layer in the file, with ``_`` for every dot -> its inputs and outputs; 0 where nothing tells.

    Example:
        >>> clues = Clues({"lora_unet_double_blocks_0_img_attn_qkv": (3072, 9216)})
        >>> clues.has("double_blocks"), clues.width("img_attn_qkv"), clues.ratio("qkv$")
        (True, 3072, 3.0)
    """

    sizes: Mapping[str, tuple[int, int]]

    def has(self, expression: str) -> bool:
        """Returns whether a layer's name holds ``expression``, a regular expression."""
        return any(re.search(expression, name) for name in self.sizes)

    def width(self, expression: str) -> int:
        """Returns the inputs of the first such layer of which they are known, else 0."""
        return next((size[0] for name, size in self.sizes.items() if size[0] and re.search(expression, name)), 0)

    def ratio(self, expression: str) -> float:
        """Returns outputs over inputs of the first such layer of which both are known, else 0."""
        sizes = (size for name, size in self.sizes.items() if all(size) and re.search(expression, name))
        return next((rows / cols for cols, rows in sizes), 0.0)
