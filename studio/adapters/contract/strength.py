"""Strength: how strongly an adapter acts: a number, or a product of numbers per component, block, moment and place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from studio.adapters.contract.mask import Mask, MaskLike, as_mask
from studio.adapters.contract.pattern import matches
from studio.adapters.contract.schedule import Schedule, ScheduleLike, When, as_schedule
from studio.config import finite, listed, own_number
from studio.errors import BadConfig

__all__ = ["Blend", "Strength", "StrengthLike", "as_strength"]

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, init=False)
class Strength:
    """How strongly an adapter acts: ``value · component · Π blocks · sample · schedule · mask``.

    Args:
        value: a number; 0 is off, 1 is as trained, negative numbers turn the change around.
        blocks: pattern to number, for the layers that match (patterns as in ``targets``).
        samples: one number per sample of a batch.
        schedule: a factor that changes while a picture is denoised: a :class:`Schedule`, or points (progress, factor).
        mask: where in the picture it acts, 1 inside and 0 outside: a picture, its file, or numbers ``(H, W)``.
        components: one number per component of a pipeline, by name (``unet=0.8, text_encoder=0.3``).

    Raises:
        BadConfig: a value that is not a finite number, an impossible schedule or mask.
        BadFile: a mask that cannot be read.

    Example:
        >>> strength = Strength(0.5, unet=0.8, blocks={"up_blocks.*": 0.5})
        >>> strength.at("unet", "up_blocks.0.to_q"), strength.at("text_encoder", "to_q")
        (0.2, 0.5)
        >>> Strength(0.5, schedule=[(0, 0), (0.5, 1)])
        Strength(0.5, schedule=((0.0, 0.0), (0.5, 1.0)))
    """

    value: float
    blocks: tuple[tuple[str, float], ...]
    samples: tuple[float, ...] | None
    components: tuple[tuple[str, float], ...]
    schedule: Schedule | None
    mask: Mask | None

    def __init__(
        self,
        value: float = 1.0,
        *,
        blocks: Mapping[str, float] | None = None,
        samples: Sequence[float] | None = None,
        schedule: ScheduleLike | None = None,
        mask: MaskLike | None = None,
        **components: float,
    ) -> None:
        if not isinstance(blocks or {}, Mapping):
            raise BadConfig(f"the blocks of a strength are a table, pattern to number, not {blocks!r}")
        each = None if samples is None else tuple(map(_number, samples))
        if each == ():
            raise BadConfig("samples=() names no sample; give one number per sample")
        object.__setattr__(self, "value", float(_number(value)))
        object.__setattr__(self, "blocks", tuple((pattern, _number(one)) for pattern, one in (blocks or {}).items()))
        object.__setattr__(self, "samples", None if each is None else tuple(map(float, each)))
        object.__setattr__(self, "components", tuple((name, _number(one)) for name, one in components.items()))
        object.__setattr__(self, "schedule", None if schedule is None else as_schedule(schedule))
        object.__setattr__(self, "mask", None if mask is None else as_mask(mask))

    def at(self, component: str, path: str) -> float:
        """Returns the number for one layer, without the factors per sample, moment and place."""
        number = self.value
        for name, factor in self.components:
            if name == component:
                number *= factor
        for pattern, factor in self.blocks:
            if matches(pattern, path) or (component and matches(pattern, f"{component}.{path}")):
                number *= factor
        return number

    def then(self, when: When | None) -> float | None:
        """Returns the factor of the schedule at a moment: 1 without one, and None where it needs a moment."""
        if self.schedule is None:
            return 1.0
        return None if when is None else self.schedule.at(when)

    def per_sample(self) -> Tensor | None:
        """Returns the factors per sample ``(samples,)`` in fp32, or None where all samples are alike."""
        return None if self.samples is None else torch.tensor(self.samples, device="cpu")

    def of_sample(self, index: int) -> Strength:
        """Returns the strength for one sample alone."""
        return self if self.samples is None else self._with(value=self.value * self.samples[index], samples=None)

    def within(self, mask: MaskLike) -> Strength:
        """Returns the same in a part of the picture, in place of where it acts now.

        Args:
            mask: a picture, its file, or numbers ``(H, W)``.

        Raises:
            BadConfig: an impossible mask. BadFile: one that cannot be read.
        """
        return self._with(mask=as_mask(mask))

    def everywhere(self) -> Strength:
        """Returns the same without its mask."""
        return self if self.mask is None else self._with(mask=None)

    @property
    def constant(self) -> bool:
        """Whether it is the same for all samples, moments and places, so that it can be folded into weights."""
        return self.samples is None and self.schedule is None and self.mask is None

    def __mul__(self, factor: float) -> Strength:
        """Returns the same, ``factor`` times as strong."""
        return self._with(value=self.value * _number(factor))

    __rmul__ = __mul__

    def _with(self, **changed: Any) -> Strength:
        other: Any = object.__new__(Strength)
        for name, held in (vars(self) | changed).items():
            object.__setattr__(other, name, held)
        return cast(Strength, other)

    def __repr__(self) -> str:
        parts = [repr(self.value), *(f"{name}={number!r}" for name, number in self.components)]
        if self.blocks:
            parts.append(f"blocks={dict(self.blocks)!r}")
        if self.samples is not None:
            parts.append(f"samples={self.samples!r}")
        if self.schedule is not None:
            plain = self.schedule.over == "progress"
            parts.append(f"schedule={self.schedule.points if plain else self.schedule!r}")
        if self.mask is not None:
            parts.append(f"mask={self.mask!r}")
        return f"Strength({', '.join(parts)})"


def _number(value: Any) -> float:
    number = own_number(value)
    if not finite(number) or abs(number) > _LARGEST:
        raise BadConfig(f"a strength must be a finite number, of those that fp32 holds, not {value!r}")
    return cast(float, number)


StrengthLike: TypeAlias = "float | Strength | Sequence[float] | Mapping[str, Any]"
Blend: TypeAlias = "Mapping[str, StrengthLike]"


def as_strength(value: StrengthLike) -> Strength:
    """Reads a strength as people write it: a number, a :class:`Strength`, or one number per sample.

    Raises:
        BadConfig: anything else, or a number that is not finite.

    Example:
        >>> as_strength([0.0, 1.0]).samples
        (0.0, 1.0)
    """
    if isinstance(value, Strength):
        return value
    plain: Any = listed(own_number(value))
    if isinstance(plain, Sequence) and not isinstance(plain, (str, bytes)):
        return Strength(samples=plain)
    return Strength(plain)
