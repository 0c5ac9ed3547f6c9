"""PEFT's ways on factors: the factors are combined each by itself, for those who must reproduce a result of PEFT's.

With scales ``c_i = s_i · alpha_i / r_i``: ``down = rule(√|c_i| sgn(c_i), down_i)`` and ``up = rule(√|c_i|, up_i)``. The
product holds every ``up_i @ down_j``, crosswise, so it is not the sum of the changes: two equal adapters at 1/2 give
twice the one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from studio.adapters.combining.numbers import COMBINERS
from studio.adapters.combining.pairs import Pair
from studio.errors import DoesNotFit

__all__ = ["crosswise"]

_DRAWN: Final = ("dare_linear", "dare_ties")


def crosswise(
    rule: str,
    pairs: Sequence[Pair],
    scales: Sequence[float],
    density: float,
    signs: str = "total",
    generator: torch.Generator | None = None,
) -> Pair:
    """Returns the pair that PEFT's ``add_weighted_adapter`` makes of pairs of one rank.

    Args:
        rule: of :data:`~studio.adapters.combining.numbers.COMBINERS`, PEFT's ``combination_type``.
        pairs: down ``(r, ...)`` and up ``(rows, r)``, without their scales. scales: the c of each.
        density: part of the numbers that is kept. signs: how a majority is found.
        generator: of the draws; None: torch's own, as in PEFT.

    Raises:
        DoesNotFit: pairs of several ranks. BadConfig: an impossible density, or another word for signs.
    """
    ranks = sorted({len(down) for down, _ in pairs})
    if len(ranks) > 1:
        raise DoesNotFit(
            f"PEFT's {rule} takes factors of one rank alone, and these have {' and '.join(map(str, ranks))} at a "
            "layer; exact and svd take any"
        )
    more: list[object] = [] if rule == "linear" else [density]
    more += [signs] if rule.endswith("ties") else []
    more += [generator] if rule in _DRAWN else []
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
    down = COMBINERS[rule]([one for one, _ in pairs], signed, *more)
    return down, COMBINERS[rule]([one for _, one in pairs], roots, *more)
