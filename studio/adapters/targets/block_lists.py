"""The lists and presets of block weights that other tools have, by the names of a base's blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["BLOCK_PRESETS", "LISTS", "PART_PRESETS", "UNET"]

UNET: Final = ["BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12))]


def _without(*ranges: tuple[str, Iterable[int]]) -> list[str]:
    left_out = {f"{kind}{number:02}" for kind, numbers in ranges for number in numbers}
    return [block for block in UNET if block not in left_out]


LISTS: Final[dict[int, list[str]]] = {
    26: UNET,
    17: _without(("IN", (0, 3, 6, 9, 10, 11)), ("OUT", range(3))),
    20: _without(("IN", range(9, 12)), ("OUT", range(9, 12))),
    12: _without(("IN", (0, 1, 2, 3, 6, 9, 10, 11)), ("OUT", range(6, 12))),
    61: ["CLIP", "T5", "IN", *(f"D{n:02}" for n in range(19)), *(f"S{n:02}" for n in range(38)), "OUT"],
}
BLOCK_PRESETS: Final[Mapping[str, tuple[float, ...]]] = {
    "NONE": (0,) * 17,
    "ALL": (1,) * 17,
    "INS": (1, 1, 1, 1, *(0,) * 13),
    "IND": (1, 0, 0, 0, 1, 1, 1, *(0,) * 10),
    "INALL": (*(1,) * 7, *(0,) * 10),
    "MIDD": (1, 0, 0, 0, *(1,) * 8, *(0,) * 5),
    "OUTD": (1, *(0,) * 7, 1, 1, 1, 1, *(0,) * 5),
    "OUTS": (1, *(0,) * 11, *(1,) * 5),
    "OUTALL": (1, *(0,) * 7, *(1,) * 9),
    "ALL0.5": (0.5,) * 17,
    "FLUXALL": (1,) * 61,
}
"""lora-block-weight's own presets."""

PART_PRESETS: Final[Mapping[str, str]] = {
    "B-LoRA-content": "up_blocks.0.attentions.0",
    "B-LoRA-style": "up_blocks.0.attentions.1",
    "content": "up_blocks.0.attentions.0",
    "style": "up_blocks.0.attentions.1",
}
"""Preset -> the one part of SDXL's denoiser where it leaves an adapter: what a picture shows, and how it looks, by
B-LoRA (Implicit Style-Content Separation using B-LoRA, Frenkel et al., 2024, https://arxiv.org/abs/2403.14572)."""
