"""What saves memory while a base draws, at the price of time."""

from __future__ import annotations

from dataclasses import dataclass, fields

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

    @property
    def changes(self) -> dict[str, str | bool]:
        """What differs from how a base draws by itself; all of it may move a picture's last bits.

        Example:
            >>> Saving(vae_tiling=True).changes
            {'vae_tiling': True}
        """
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
