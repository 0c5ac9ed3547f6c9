"""Whether a base can learn from these pictures and texts, before it does."""

from __future__ import annotations

from collections.abc import Sequence

from studio.errors import DoesNotFit
from studio.families import Base
from studio.families.drawable import cannot_draw
from studio.shown import shown
from studio.trainers.image.latents import Latents

__all__ = ["check_fit"]


def check_fit(base: Base, latents: Latents, captions: Sequence[str]) -> str | None:
    """Checks that the base reads every text whole.

    Args:
        base: the base.
        latents: the pictures.
        captions: the text that each is trained with.

    Returns:
        A sentence where the base cannot draw what the pictures show, else None.

    Raises:
        DoesNotFit: a text is too long; its picture is named.
    """
    for item, text in zip(latents.items, captions, strict=True):
        try:
            base.family.check_text(base.pipe, [text])
        except DoesNotFit as problem:
            raise DoesNotFit(f"{shown(item.file.name)}: {problem}") from None
    if base.draws is None:
        return None
    return cannot_draw(base, [latents.pixels(index) for index in range(len(latents.items))])
