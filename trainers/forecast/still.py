"""What stands in for pictures, texts and chance where only shapes are computed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from studio.trainers.loop.draws import Draws

__all__ = ["Blank", "Still", "item"]


class Still(Draws):
    """Draws in which nothing is left to chance."""

    def item(self, n: int, count: int) -> int:
        """One after the other."""
        return n % count

    def uniform(self, n: int, what: str) -> float:
        """The middle."""
        return 0.5


class Blank:
    """A tokenizer that reads every text as its begin and end: what a denoiser is shown is padded to one length.

    Args:
        length: tokens of a row. pad: the token that fills up.
    """

    added_tokens_encoder: dict[str, int] = {}
    unk_token_id = bos_token_id = cls_token_id = 0
    eos_token_id = 1
    all_special_ids = (0, 1)

    def __init__(self, length: int, pad: int = 1) -> None:
        self.model_max_length, self.pad_token_id = length, pad

    def __call__(self, texts: Any, **told: Any) -> Any:
        """No tokens between begin and end."""
        return SimpleNamespace(input_ids=[[] for _ in texts] if isinstance(texts, list) else [])

    def convert_tokens_to_ids(self, token: str) -> int:
        """No token is known."""
        return 0

    def get_added_vocab(self) -> dict[str, int]:
        """None were added."""
        return {}


def item(size: tuple[int, int]) -> Any:
    """Returns a picture of a size, as a folder names it."""
    return SimpleNamespace(width=size[0], height=size[1], repeats=1, digest="", file=Path("picture.png"), caption=None)
