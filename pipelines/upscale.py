"""What is asked for where a picture is drawn at its size, scaled up, and drawn again from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from studio.config import finite, own_number
from studio.errors import BadConfig

__all__ = ["Upscale", "upscale_of"]

STRENGTH: Final = 0.5
MOST: Final = 16.0


@dataclass(frozen=True, kw_only=True)
class Upscale:
    """What is done to a picture after it was drawn.

    Args:
        factor: from its size to that of the second pass, above 1.
        strength: which part of the denoising the second pass goes through, above 0 and at most 1.
        steps: denoising steps of the second pass; None: as many as the first has.

    Raises:
        BadConfig: a number that is impossible.
    """

    factor: float
    strength: float = STRENGTH
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "strength", "steps"):
            object.__setattr__(self, name, own_number(getattr(self, name)))
        if not finite(self.factor) or isinstance(self.factor, bool) or not 1 < self.factor <= MOST:
            raise BadConfig(
                f"upscale={self.factor!r}: how much larger the picture is drawn again is above 1, at most 16"
            )
        if not finite(self.strength) or isinstance(self.strength, bool) or not 0 < self.strength <= 1:
            raise BadConfig(f"upscale_strength={self.strength!r}: how much is drawn anew is above 0 and at most 1")
        if self.steps is not None and (type(self.steps) is not int or self.steps < 1):
            raise BadConfig(f"upscale_steps={self.steps!r}: the number of steps must be a whole number from 1 on")


def upscale_of(factor: Any, strength: Any, steps: Any) -> Upscale | None:
    """Returns what a caller says about a second pass; None: there is none.

    Args:
        factor: how much larger. strength: how much is drawn anew; None: :data:`STRENGTH`. steps: of the second pass.

    Raises:
        BadConfig: a number that is impossible, or a strength or steps without a factor.
    """
    if factor is None:
        for name, value in (("upscale_strength", strength), ("upscale_steps", steps)):
            if value is not None:
                raise BadConfig(f"{name} is given without a second pass: give upscale=2.0 too")
        return None
    return Upscale(factor=factor, strength=STRENGTH if strength is None else strength, steps=steps)
