"""Strength: how strongly an adapter acts, as a number or as a product of numbers per component, block and sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from studio.adapters.contract.pattern import matches
from studio.config import finite, listed, own_number
from studio.errors import BadConfig

__all__ = ["Blend", "Strength", "StrengthLike", "as_strength"]


@dataclass(frozen=True, init=False)
class Strength:
    """How strongly an adapter acts: ``value · component · Π blocks · sample``.

    Args:
        value: a number; 0 is off, 1 is as trained, negative numbers turn the change around.
        blocks: pattern to number, for the layers that match (patterns as in ``targets``).
        samples: one number per sample of a batch.
        components: one number per component of a pipeline, by name (``unet=0.8, text_encoder=0.3``).

    Raises:
        BadConfig: a value that is not a finite number.

    Example:
        >>> strength = Strength(0.5, unet=0.8, blocks={"up_blocks.*": 0.5})
        >>> strength.at("unet", "up_blocks.0.to_q"), strength.at("text_encoder", "to_q")
        (0.2, 0.5)
    """

    value: float
    blocks: tuple[tuple[str, float], ...]
    samples: tuple[float, ...] | None
    components: tuple[tuple[str, float], ...]

    def __init__(
        self,
        value: float = 1.0,
        *,
        blocks: Mapping[str, float] | None = None,
        samples: Sequence[float] | None = None,
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

    def at(self, component: str, path: str) -> float:
        """Returns the number for one layer, without the factor per sample."""
        number = self.value
        for name, factor in self.components:
            if name == component:
                number *= factor
        for pattern, factor in self.blocks:
            if matches(pattern, path) or (component and matches(pattern, f"{component}.{path}")):
                number *= factor
        return number

    def per_sample(self) -> Tensor | None:
        """Returns the factors per sample ``(samples,)`` in fp32, or None where all samples are alike."""
        return None if self.samples is None else torch.tensor(self.samples, device="cpu")


def _number(value: Any) -> float:
    number = own_number(value)
    if not finite(number):
        raise BadConfig(f"a strength must be a finite number, not {value!r}")
    return cast(float, number)


StrengthLike: TypeAlias = "float | Strength | Sequence[float]"
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
