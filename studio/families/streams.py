"""Streams: which of a denoiser's layers compute on the picture, on the words, or on both; a fact of its family.

A layer's input is a row of tokens, and only the family knows what they are: a count says nothing, for a prompt may have
as many tokens as a picture. What a layer is called with is one of four streams:

- ``image``: the picture, token by token or as a map of channels, perhaps at half the resolution;
- ``text``: the words of the prompt;
- ``joint``: both, one behind the other;
- ``vector``: what holds for the whole picture at once, as the time does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from studio.errors import DoesNotFit

__all__ = ["Attending", "Stream", "Streams"]

Stream: TypeAlias = Literal["image", "text", "joint", "vector"]
Attending: TypeAlias = Literal["crossed", "joined", "refined"]


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The streams of a denoiser, by levels of its layers' paths: ``"attn2.to_k"``, or ``"layers.*.norm1.linear"``.

    A layer is named by levels that follow each other anywhere in its path, an attention by the last ones. Layers that
    nothing names compute on the picture.

    Args:
        text: layers on the words. joint: on both, but for those on words alone. vector: on one vector per picture.
        first: what stands first where both are in one row.
        crossed: attentions in which the picture asks the words.
        joined: attentions in which picture and words ask both.
        refined: attentions in which words ask words alone.
        patch: latent cells per token along one side; 0: 1, 2, 4, … from block to block.
        packed: whether words that do not count are taken out of the row, so that what follows them moves up.
        multiple: what the numbers of tokens of a picture and of a context of words are each filled up to.
        flat: layers that are given the tokens of all rows as one row.

    Example:
        >>> streams = Streams(text=("attn2.to_k", "attn2.to_v"), vector=("time_embedding",))
        >>> [streams.of(path) for path in ("up.0.attn2.to_k", "time_embedding.linear_1", "up.0.attn1.to_k")]
        ['text', 'vector', 'image']
    """

    text: tuple[str, ...] = ()
    joint: tuple[str, ...] = ()
    vector: tuple[str, ...] = ()
    first: Literal["image", "text"] = "text"
    crossed: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    refined: tuple[str, ...] = ()
    patch: int = 2
    packed: bool = False
    multiple: int = 1
    flat: tuple[str, ...] = ()

    def of(self, path: str) -> Stream:
        """Returns the stream of the layer at ``path`` in the denoiser."""
        if _names(self.vector, path):
            return "vector"
        if _names(self.text, path):
            return "text"
        return "joint" if _names(self.joint, path) else "image"

    def is_flat(self, path: str) -> bool:
        """Says whether a layer is given the tokens of all rows as one row."""
        return _names(self.flat, path)

    def attentions(self, denoiser: nn.Module) -> dict[str, Attending]:
        """Returns the attentions in which words are asked or ask: path -> how.

        Args:
            denoiser: the module.
        """
        kinds: tuple[tuple[Attending, tuple[str, ...]], ...] = (
            ("crossed", self.crossed), ("joined", self.joined), ("refined", self.refined)
        )  # fmt: skip
        paths = [path for path, _ in denoiser.named_modules()]
        return {path: kind for kind, patterns in kinds for path in paths if _ends(patterns, path)}

    def grid(self, cells: tuple[int, int], tokens: int, path: str) -> tuple[int, int]:
        """Returns the rows and columns of a picture of ``tokens`` tokens at a layer.

        Args:
            cells: rows and columns of the latents. tokens: what the layer has. path: of the layer, for the message.

        Raises:
            DoesNotFit: no resolution of the family has so many.
        """
        for height, width in self.grids(cells):
            if height * width == tokens:
                return height, width
        raise DoesNotFit(
            f"{path} has {tokens} tokens, and a picture of {cells[0]} x {cells[1]} latent cells has none of so many "
            "here: where a region lies there is not known; exclude that layer from adapters with a mask"
        )

    def grids(self, cells: tuple[int, int]) -> Sequence[tuple[int, int]]:
        """Returns the resolutions that layers compute at, the finest first."""
        if self.patch:
            return [(cells[0] // self.patch, cells[1] // self.patch)]
        found = [cells]
        while found[-1] != (1, 1):
            found.append(((found[-1][0] + 1) // 2, (found[-1][1] + 1) // 2))
        return found


@functools.lru_cache(maxsize=256)
def _expression(patterns: tuple[str, ...]) -> re.Pattern[str]:
    levels = "|".join(re.escape(pattern).replace(r"\*", r"[^.]+") for pattern in patterns)
    return re.compile(rf"(?:.*\.)?(?:{levels})")


def _names(patterns: tuple[str, ...], path: str) -> bool:
    return bool(patterns) and _within(patterns).match(path) is not None


@functools.lru_cache(maxsize=256)
def _within(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"{_expression(patterns).pattern}(?:\.|$)")


def _ends(patterns: tuple[str, ...], path: str) -> bool:
    return bool(patterns) and _expression(patterns).fullmatch(path) is not None
