"""What saves memory while a base draws, at the price of time."""

from __future__ import annotations

from dataclasses import dataclass

from studio.families.attention import ATTENTIONS

__all__ = ["Saving"]


@dataclass(frozen=True, kw_only=True)
class Saving:
    """How a base draws with less memory.

    Args:
        attention: a key of :data:`~studio.families.attention.ATTENTIONS`.
        vae_tiling: the autoencoder takes a large picture in overlapping tiles.
        vae_slicing: the autoencoder takes the pictures of a batch one by one.

    Raises:
        UnknownName: no attention is called so.
    """

    attention: str = "sdpa"
    vae_tiling: bool = False
    vae_slicing: bool = False

    def __post_init__(self) -> None:
        _ = ATTENTIONS[self.attention]
